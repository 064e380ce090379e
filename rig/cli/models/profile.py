"""``earshot profile``: what bundles cost to run, and how good they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.errors import UsageError
from rig.cli.console import print_json, progress, say
from rig.cli.models.material import load_clips, read_bundles

if TYPE_CHECKING:
    from edge.bundle.reading import Bundle
    from export.measurement.profile import Profile

app = typer.Typer(add_completion=False, no_args_is_help=True)

_PICTURES = (".png", ".svg", ".pdf")


@app.command(no_args_is_help=True)
def profile(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Files NAME.earshot; the first is compared with.")
    ],
    *,
    data: Annotated[
        Path | None, typer.Option("--data", help="Measure the accuracy here.", show_default="as the manifest says")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation, test or all.")] = "test",
    rounds: Annotated[int, typer.Option("--rounds", min=10, max=1_000_000, help="Windows per bundle.")] = 300,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw accuracy over size and latency here (.png, .svg, .pdf).")
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option("--trust", help="A public key whose bundles may be loaded.", show_default="the zoo's"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, tell how long it takes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure bytes, multiply-adds, latency, cold start and memory on one thread, the bundles in turn."""
    from export.measurement.profile import profile as measure
    from export.measurement.profile import stated_accuracy

    if plot is not None and plot.suffix.lower() not in _PICTURES:
        raise UsageError(f"{plot}: a plot is written as {', '.join(_PICTURES)}")
    found, keys = read_bundles(bundles, trust)
    if plot is not None and data is None and not any(stated_accuracy(bundle.manifest) for bundle in found):
        raise UsageError(f"{plot}: nothing to draw, no manifest tells an accuracy: measure it with --data DIR")
    with progress("reading clips", enabled=not as_json) as report:
        clips = None if data is None else load_clips(data, split, found, report)
    if dry_run:
        counts = {samples: len(each) for samples, each in clips.items()} if clips else {}
        _say_outline(found, rounds, counts, as_json=as_json)
        return
    with progress("measuring", enabled=not as_json) as report:
        profiles = measure(found, keys=keys, clips=clips, rounds=rounds, progress=report)
    if plot is not None:
        from export.measurement.profile_plot import draw_profile

        draw_profile(profiles, plot)
        left_out = [each.manifest.name for each in profiles if each.accuracy is None]
        if left_out and not as_json:
            say(f"not in {plot}, for want of an accuracy: {', '.join(left_out)}")
    if as_json:
        print_json({"threads": 1, "rounds": rounds, "bundles": [each.to_json() for each in profiles]})
        return
    _print(profiles)


def _say_outline(found: Sequence[Bundle], rounds: int, counts: dict[int, int], *, as_json: bool) -> None:
    from export.measurement.profile import STARTS

    windows = {bundle.path.name: rounds + counts.get(bundle.manifest.window_samples, 0) for bundle in found}
    # 4 ms per window and 0.6 s per cold start: what one core of a laptop needs.
    about_s = round(2 + 0.004 * sum(windows.values()) + 0.6 * STARTS * len(found))
    if as_json:
        print_json({"windows": windows, "cold_starts": STARTS, "about_s": about_s, "dry_run": True})
        return
    for name, count in windows.items():
        say(f"would give {count} windows to {name} and start it {STARTS} times in a fresh process")
    say(f"  about {about_s} s")


def _print(profiles: Sequence[Profile]) -> None:
    width = max(len(each.manifest.name) for each in profiles)
    say(f"{'':<{width}}  {'MB':>7} {'parameters':>11} {'mult-adds':>11}  {'top-1 (95 %)':<26} computes in")
    for each in profiles:
        accuracy = "not measured"
        if (known := each.accuracy) is not None:
            accuracy = f"{known.top1:.2%} ({100 * known.low:.1f}..{100 * known.high:.1f}), n {known.n}"
        say(
            f"{each.manifest.name:<{width}}  {each.file_bytes / 1e6:>7.3f} {each.cost.parameters:>11,} "
            f"{each.cost.multiply_adds / 1e6:>9.2f} M  {accuracy:<26} {each.kernels.computes_in}"
        )
    say()
    titles = f"{'median ms':>9} {'p99 ms':>8} {'CPU ms':>7} {'to first':>8} {'real time':>10}  {'cold start ms':>13}"
    say(f"{'':<{width}}  {titles}  memory MB (peak)")
    for each in profiles:
        start = each.start
        say(
            f"{each.manifest.name:<{width}}  {each.latency.median_ms:>9.3f} {each.latency.p99_ms:>8.3f} "
            f"{each.latency.processor_ms:>7.3f} "
            f"{each.latency.ratio:>8.2f} {each.real_time_factor:>10.5f}  {start.total_ms:>13.0f}  "
            f"{start.resident_bytes / 1e6:.0f} ({start.peak_bytes / 1e6:.0f})"
        )
    say()
    rounds = profiles[0].latency.rounds
    sources = dict.fromkeys(each.accuracy.source for each in profiles if each.accuracy)
    say(f"One thread, {rounds} windows per bundle in turn; CPU: processor time; 'to first' is the median ratio of it.")
    if any(each.latency.busy for each in profiles):
        say("Other programs held this machine's processors: median, p99 and real-time factor are too long.")
    say("Cold start: a fresh process of the device's code until the scores of its first window, files cached.")
    if sources:
        say(f"Top-1 from: {', '.join(sources)}.")
    counted = {name for each in profiles for name in each.cost.uncounted}
    if counted:
        say(f"Not counted in the multiply-adds: {', '.join(sorted(counted))}.")
