"""``earshot room``: look at the room of a plan before anything runs in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.errors import PlanError
from rig.cli.console import print_json, progress, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rig.plan import Plan
    from rig.scenes import Scene

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Look at the room of a plan before anything runs in it."
)

# More lines than these are for --json.
MAX_LINES = 24
MAX_CLIPPING = 8


@app.callback()
def group() -> None:
    """Look at the room of a plan before anything runs in it."""


@app.command()
def show(
    plan: Annotated[Path, typer.Argument(help="The plan, a YAML file.")],
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write the plan view here: .png, .svg or .pdf.", show_default=False)
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry", "--dry-run", help="Simulate nothing and read no clips: geometry and formulas only.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell distances, levels, reverberation, what is left of each attack budget, and what would clip."""
    from rig.plan import load
    from rig.scenes import picture

    if plot is not None:
        picture.require_format(plot)
    loaded = load(plan)
    scene = _scene(loaded)
    told = _estimate(loaded) if dry else _measure(loaded, show_progress=not as_json)
    if plot is not None:
        distance_m = told["room"].get("critical_distance_m")
        picture.save(plot, scene, title=f"{loaded.name}: {_shape(told)}", critical_distance_m=distance_m)
        told["picture"] = str(plot)
    if as_json:
        print_json(told)
        return
    _print(told)
    if plot is not None:
        say(f"plan view: {plot}")


def _estimate(plan: Plan) -> dict[str, Any]:
    from rig.scenes import preview

    scene = _scene(plan)
    found = preview.outline(scene)
    return {"plan": plan.name, "simulated": False, **found, "budgets": preview.expected_snr(found, _eps(plan))}


def _measure(plan: Plan, *, show_progress: bool) -> dict[str, Any]:
    from rig.scenes import preview
    from rig.scenes.respond import respond

    scene = _scene(plan)
    clips, rate_hz = _clips(plan, show_progress=show_progress)
    with progress("simulating the room", enabled=show_progress) as simulating:
        heard = respond(scene, rate_hz, progress=simulating)
    with progress("playing clips and budgets", enabled=show_progress) as playing:
        rows = preview.budgets(scene, heard, clips, _eps(plan), seed=plan.seed, progress=playing)
    for row in rows:
        row["attacks"] = [attack.title for attack in plan.attacks if row["eps"] in (attack.eps or (0.0,))]
    clipping = [row for row in rows if row["clipped"]]
    found = preview.preview(scene, heard)
    return {"plan": plan.name, "simulated": scene.measured is None, **found, "budgets": rows, "clipping": clipping}


def _scene(plan: Plan) -> Scene:
    if plan.room is None:
        raise PlanError(f"plan {plan.name}: has no 'room', add one with size_m, rt60_s and positions")
    return plan.room


def _eps(plan: Plan) -> list[float]:
    return sorted({eps for attack in plan.attacks for eps in attack.eps})


def _clips(plan: Plan, *, show_progress: bool) -> tuple[NDArray[np.float32], int]:
    """The plan's clips float32 (clips, window), full scale = 1, and their rate."""
    import numpy as np

    from edge.bundle.reading import read_bundle
    from edge.bundle.signing import load_public_key
    from firmware_models import zoo
    from rig import clips

    trusted = [load_public_key(zoo.PUBLIC_KEY if entry == "zoo" else Path(entry)) for entry in plan.trust]
    entry = plan.bundles[0]
    path = zoo.bundle(entry.removeprefix("zoo:")) if entry.startswith("zoo:") else Path(entry)
    manifest = read_bundle(path, trusted=trusted).manifest
    choice = plan.clips
    if plan.recogniser is not None and not choice.labels:
        choice = choice.model_copy(update={"labels": tuple(plan.recogniser.hears)})
    with progress("reading clips", enabled=show_progress) as reading:
        chosen = clips.choose(
            choice, manifest.labels, seed=plan.seed, window_samples=manifest.window_samples, progress=reading
        )
    pcm = np.stack([clip.pcm for clip in chosen]).astype(np.float32)
    return pcm / np.float32(32768), manifest.rate_hz


def _shape(told: dict[str, Any]) -> str:
    room = told["room"]
    parts = []
    if "extent_m" in room:
        size = " x ".join(f"{high - low:g}" for low, high in room["extent_m"])
        parts.append(f"{size} m, {room['volume_m3']:g} m3")
    if "rt60_wanted_s" in room:
        parts.append(f"RT60 wanted {room['rt60_wanted_s']:g} s")
    if "rt60_s" in room:
        low, high = room["rt60_range_s"]
        parts.append(f"reached {room['rt60_s']:.2f} s ({low:.2f} to {high:.2f} over the room)")
    elif "rt60_estimated_s" in room and "rt60_wanted_s" not in room:
        parts.append(f"RT60 by Eyring {room['rt60_estimated_s']:.2f} s")
    return ", ".join(parts) or "a measured room"


def _print(told: dict[str, Any]) -> None:
    room = told["room"]
    say(f"{told['plan']}: {_shape(told)}")
    if room.get("critical_distance_m"):
        say(f"critical distance {room['critical_distance_m']:.2f} m: further away the reverberation is louder")
    if "warning" in room:
        say(f"warning: {room['warning']}")
    _table(
        ["device", "source", "distance", "direct", "whole", "DRR", "RT60", "T20", "C50", "D50"],
        [
            [
                row["device"],
                row["source"],
                _number(row["distance_m"], "m", 2),
                _number(row["direct_db"], "dB"),
                _number(row.get("level_db"), "dB"),
                _number(row.get("drr_db"), "dB"),
                _number(row.get("t30_s"), "s", 3),
                _number(row.get("t20_s"), "s", 3),
                _number(row.get("c50_db"), "dB"),
                _number(row.get("d50"), "", 2),
            ]
            for row in told["pairs"]
        ],
    )
    say()
    say("levels are re what the loudspeaker plays; expected SNR of a perturbation that uses its whole budget:")
    _table(
        ["device", "attacker", "eps", "talker", "SNR", "from", "to", "would clip"],
        [
            [
                row["device"],
                row["attacker"] or "none",
                f"{row['eps']:g}" if row["eps"] else "-",
                _number(row.get("talker_dbfs"), "dBFS"),
                _number(row["snr_db"], "dB"),
                *(_number(value, "dB") for value in row.get("snr_range_db", [None, None])),
                f"{row['clipped']} of {row['tried']}" if row.get("clipped") else "-",
            ]
            for row in told["budgets"]
        ],
    )
    if not told["simulated"] and "clipping" not in told:
        say("nothing was simulated: SNR of the direct sounds, for speech at -26 dBFS")
    elif told["clipping"]:
        for row in told["clipping"][:MAX_CLIPPING]:
            where = f" from {row['attacker']}, eps {row['eps']:g}" if row["attacker"] else ""
            say(f"would clip: {', '.join(row['attacks']) or 'the talker alone'} at {row['device']}{where}")
        if len(told["clipping"]) > MAX_CLIPPING:
            say(f"  ... and {len(told['clipping']) - MAX_CLIPPING} of {len(told['budgets'])} more, --json has them all")
        say("a trial whose microphone clips does not count: lower gain_db or eps")
    else:
        say("nothing would clip")


def _number(value: float | None, unit: str, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f} {unit}".rstrip()


def _table(heads: list[str], rows: list[list[str]]) -> None:
    shown = rows[:MAX_LINES]
    kept = [i for i in range(len(heads)) if i < 2 or any(row[i] != "-" for row in shown)]
    widths = [max(len(line[i]) for line in [heads, *shown]) for i in range(len(heads))]
    for line in [heads, *shown]:
        cells = [line[i].ljust(widths[i]) if i < 2 else line[i].rjust(widths[i]) for i in kept]
        say("  " + "  ".join(cells).rstrip())
    if len(rows) > len(shown):
        say(f"  ... and {len(rows) - len(shown)} more, --json has them all")
