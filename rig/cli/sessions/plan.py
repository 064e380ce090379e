"""``earshot plan``: find out before it runs whether a plan can run, and what it would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rig.cli.console import print_json, progress, say

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check a plan before it runs.")

AirOption = Annotated[
    str | None, typer.Option("--air", help="Only this air: digital or room.", show_default="all that fit")
]


@app.callback()
def group() -> None:
    """Check a plan before it runs."""


@app.command()
def check(
    plan: Annotated[Path, typer.Argument(help="The plan, a YAML file.")],
    air: AirOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Verify bundles, clips and positions of a plan and count its trials."""
    outline = outline_plan(plan, air, show_progress=not as_json)
    if as_json:
        print_json(outline)
        return
    print_outline(outline)
    say("OK")


def outline_plan(path: Path, air: str | None, *, show_progress: bool) -> dict[str, Any]:
    """What a plan would do in an air, or in every air it fits, without doing any of it."""
    from rig.airs import AIRS
    from rig.plan import load
    from rig.session import material
    from rig.session.prepare import order

    plan = load(path)
    airs = [air] if air else [name for name in AIRS if name != "room" or plan.room is not None]
    outline: dict[str, Any] = {"plan": plan.name, "seed": plan.seed, "airs": {}}
    for name in airs:
        with progress("reading clips", enabled=show_progress) as reading:
            loaded = material.load(plan, name, progress=reading)
        outline["bundles"] = {
            bundle.manifest.name: {"sha256": bundle.sha256, "bits": bundle.manifest.quantisation.bits}
            for bundle in loaded.bundles.values()
        }
        if plan.recogniser is not None:
            outline["recogniser"] = plan.recogniser.model_dump(mode="json")
        outline["clips"] = len(loaded.clips)
        outline["airs"][name] = {
            "conditions": len(loaded.conditions),
            "trials": len(order(loaded, plan)),
            **loaded.air.facts(),
        }
    return outline


def print_outline(outline: dict[str, Any]) -> None:
    """Tell a person what a plan would do."""
    say(f"plan {outline['plan']}, seed {outline['seed']}, {outline['clips']} clips")
    for name, bundle in outline["bundles"].items():
        say(f"  bundle {name}: {bundle['bits']} bit, sha256 {bundle['sha256'][:16]}, signature verified")
    if "recogniser" in outline:
        heard = ", ".join(f"{label} as {word}" for label, word in outline["recogniser"]["hears"].items())
        say(f"  tests {outline['recogniser']['name']} behind a bridge, which must hear {heard} and nothing else")
    for name, facts in outline["airs"].items():
        more = "".join(f", {key} {value}" for key, value in facts.items() if key not in {"conditions", "trials"})
        say(f"  {name} air: {facts['conditions']} conditions, {facts['trials']} trials{more}")
