"""``earshot parity``: does a bundle compute the same everywhere it runs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.errors import ThresholdError, UnavailableError
from rig.cli.console import print_json, progress, say
from rig.cli.models.material import load_clips, read_bundles

if TYPE_CHECKING:
    from edge.bundle.reading import Bundle
    from export.measurement.parity_report import Comparison, Report
    from export.measurement.userland import Outline, Userland
    from firmware_models.data import Clips

app = typer.Typer(add_completion=False, no_args_is_help=True)

_WAYS = {
    "torch": "torch FP32, checkpoint",
    "twin": "torch, twin",
    "onnxruntime-aarch64": "onnxruntime, aarch64 emulated",
}


@app.command(no_args_is_help=True)
def parity(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Files NAME.earshot.")],
    *,
    data: Annotated[Path, typer.Option("--data", help="A data set whose clips are computed.")],
    split: Annotated[str, typer.Option("--split", help="train, validation, test or all.")] = "test",
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The run the bundles were exported from.")
    ] = None,
    clips: Annotated[int, typer.Option("--clips", min=1, max=100_000, help="Clips for aarch64, which is slow.")] = 40,
    aarch64: Annotated[bool, typer.Option("--aarch64/--no-aarch64", help="Emulate a Cortex-A76.")] = True,
    require_aarch64: Annotated[
        bool, typer.Option("--require-aarch64", help="Fail (exit code 4) where aarch64 cannot be emulated.")
    ] = False,
    trust: Annotated[
        list[Path] | None,
        typer.Option("--trust", help="A public key whose bundles may be loaded.", show_default="the zoo's"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done and downloaded.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare torch, the twin and onnxruntime on two processors; exit code 3 when a gate is missed."""
    from export.measurement import parity_report, userland
    from firmware_models.training.checkpoint import load_checkpoint

    found, keys = read_bundles(bundles, trust)
    model = None if checkpoint is None else load_checkpoint(checkpoint)[0]
    with progress("reading clips", enabled=not as_json) as report:
        material = load_clips(data, split, found, report)
    for bundle in found:
        parity_report.check_fits(bundle.manifest, material[bundle.manifest.window_samples], model)
    wanted = aarch64 or require_aarch64
    plan = userland.outline() if wanted else None
    if require_aarch64 and plan is not None and plan.missing:
        raise UnavailableError(plan.missing)
    if dry_run:
        _say_outline(found, material, plan, clips, checkpoint, as_json=as_json)
        return
    emulator, reason = _emulator(require=require_aarch64, as_json=as_json) if wanted else (None, "left out")
    reports = []
    with progress("comparing", enabled=not as_json) as report:
        reports = [
            parity_report.compare(
                bundle,
                material[bundle.manifest.window_samples],
                checkpoint=model,
                userland=emulator,
                keys=keys,
                emulated_clips=clips,
                progress=report,
            )
            for bundle in found
        ]
    _show(reports, str(data), split, reason, as_json=as_json)
    missed = [each.path.name for each in reports if not each.passed]
    if missed:
        raise ThresholdError(f"a gate was missed by {', '.join(missed)}: see the report above")


def _emulator(*, require: bool, as_json: bool) -> tuple[Userland | None, str | None]:
    """The userland, or why there is none."""
    from export.measurement import userland

    try:
        with progress("making an aarch64 userland (MB)", enabled=not as_json) as report:
            return userland.prepare(report), None
    except UnavailableError as error:
        if require:
            raise
        return None, str(error)


def _say_outline(
    found: Sequence[Bundle],
    material: dict[int, Clips],
    plan: Outline | None,
    clips: int,
    checkpoint: Path | None,
    *,
    as_json: bool,
) -> None:
    counts = {bundle.path.name: len(material[bundle.manifest.window_samples]) for bundle in found}
    ways = ["onnxruntime here", "twin", *(["torch FP32"] if checkpoint else [])]
    # 5 ms per clip and way; a start of 5 s and 0.4 s per clip under emulation.
    about_s = sum(counts.values()) * len(ways) * 0.005
    if plan is not None and not plan.missing:
        about_s += len(found) * (5 + 0.4 * clips) + (0 if plan.ready else 30)
        ways.append("onnxruntime on aarch64")
    if as_json:
        emulation = plan and {
            "folder": str(plan.folder),
            "ready": plan.ready,
            "missing": plan.missing,
            "download_mb": plan.download_mb,
            "mirror": plan.mirror,
            "wheels": plan.wheels,
        }
        print_json({"clips": counts, "ways": ways, "about_s": round(about_s), "aarch64": emulation, "dry_run": True})
        return
    for name, count in counts.items():
        say(f"would compute {count} clips of {name} by {', '.join(ways)}")
    say(f"  about {about_s:.0f} s")
    if plan is None:
        return
    if plan.missing:
        say(f"  {plan.missing}")
    elif plan.ready:
        say(f"  the aarch64 userland is there: {plan.folder}")
    else:
        from export.measurement.userland import DISK_MB, SUITE

        say(f"  would make an aarch64 userland in {plan.folder}: about {plan.download_mb} MB to download,")
        say(f"  {DISK_MB} MB on disk: Debian {SUITE} from {plan.mirror}, {', '.join(plan.wheels)}")


def _show(reports: Sequence[Report], data: str, split: str, reason: str | None, *, as_json: bool) -> None:
    if as_json:
        documents: list[dict[str, Any]] = []
        for report in reports:
            missing = dict(report.not_measured) | ({"onnxruntime-aarch64": reason} if reason else {})
            documents.append({**report.to_json(), "not_measured": missing})
        about = {"data": data, "split": split, "reference": f"onnxruntime {platform.machine()}"}
        print_json({**about, "bundles": documents, "passed": all(report.passed for report in reports)})
        return
    for report in reports:
        manifest = report.manifest
        right = "" if report.top1 is None else f", top-1 {report.top1:.2%}"
        say(f"{report.path}: {manifest.name} version {manifest.version}, {manifest.quantisation.scheme}")
        say(f"  against onnxruntime here ({platform.machine()}, {report.clips} clips of {split} of {data}{right}):")
        say(f"  {'':<30} {'n':>5} {'max diff':>9}  {'labels equal (95 %)':<24} {'bits':<9} {'gate':<15} verdict")
        for each in report.comparisons:
            say("  " + _line(each))
        for way, why in report.not_measured.items():
            say(f"  {_WAYS[way]:<30} not measured: {why}")
        if reason:
            say(f"  {_WAYS['onnxruntime-aarch64']:<30} not measured: {reason}")


def _line(each: Comparison) -> str:
    from firmware_models.statistics import wilson

    rate = wilson(each.labels_equal, each.n)
    labels = f"{rate.rate:.2%} ({100 * rate.low:.2f}..{100 * rate.high:.2f})"
    bits = "identical" if each.bit_identical else "differ"
    verdict = {None: "-", True: "ok", False: "MISSED"}[each.passed]
    gate = "-" if each.gate is None else str(each.gate)
    return f"{_WAYS[each.way]:<30} {each.n:>5} {each.max_abs:>9.2g}  {labels:<24} {bits:<9} {gate:<15} {verdict}"
