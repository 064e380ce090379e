"""``earshot export``: a checkpoint becomes a signed bundle."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.bundle.manifest import MAX_VERSION
from rig.cli.console import print_json, progress, say

if TYPE_CHECKING:
    from export.build import Built
    from export.fixed_point.quantise import QuantisationSettings
    from firmware_models.data import Clips

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Turn a checkpoint into a signed bundle.")

METHODS = ("minmax", "entropy", "percentile", "distribution")


@app.command(no_args_is_help=True)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="model.safetensors, or the folder of a run.")],
    calibration: Annotated[
        Path, typer.Option("--calibration", help="Data set: ranges from train, checks on validation and test.")
    ],
    key: Annotated[Path, typer.Option("--key", help="Private key (NAME.pem of earshot keys new).")],
    out: Annotated[Path, typer.Option("--out", help="The bundle, NAME.earshot.")],
    bits: Annotated[int, typer.Option("--bits", help="32 or 8.")] = 32,
    profile: Annotated[str, typer.Option("--profile", help="cpu.")] = "cpu",
    name: Annotated[
        str | None, typer.Option("--name", help="Name in the manifest.", show_default="NAME of --out")
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            "--version", help="It only grows.", show_default="one more than in --out, or 1", min=1, max=MAX_VERSION
        ),
    ] = None,
    clips: Annotated[int, typer.Option("--clips", help="Calibration clips.", min=16, max=100_000)] = 1024,
    method: Annotated[str, typer.Option("--method", help=f"INT8 ranges: {', '.join(METHODS)}.")] = "minmax",
    training_data: Annotated[
        str | None, typer.Option("--training-data", help="Data and licence for manifest and card.")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Licence for manifest and card.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export, quantise, hold against torch, and sign; nothing is written when onnxruntime and torch disagree."""
    from edge.bundle.signing import load_private_key
    from edge.errors import UsageError
    from export import build, pack
    from export.fixed_point.number_format import number_format
    from export.origin import facts_of
    from firmware_models import data
    from firmware_models.training.checkpoint import load_checkpoint

    form = number_format(bits, profile=profile)
    settings = _settings(method)
    signer = load_private_key(key)
    if out.suffix != ".earshot":
        raise UsageError(f"{out}: a bundle's name ends in .earshot")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UsageError(f"{out.parent}: no such folder, or not writable")
    name = name or out.stem
    chosen_version = pack.next_version(out, name, version)
    model, info = load_checkpoint(checkpoint)
    with progress("export", enabled=not as_json) as report:
        train = data.load(calibration, "train", progress=report)
        measured = {split: data.load(calibration, split, progress=report) for split in ("validation", "test")}
        outline = _outline(out, name, chosen_version, bits, min(clips, len(train)), measured)
        if dry_run:
            _say_outline(outline, as_json=as_json)
            return
        given: dict[str, Any] = {"training_data": training_data, "licence": licence}
        built = build.build(
            model,
            out,
            form=form,
            name=name,
            version=chosen_version,
            key=signer,
            material=build.Material(build.calibration_pcm(train, clips), measured),
            facts=dataclasses.replace(
                facts_of(checkpoint, info), **{key: value for key, value in given.items() if value is not None}
            ),
            settings=settings,
            progress=report,
        )
    _say_built(built, as_json=as_json)


def _settings(method: str) -> QuantisationSettings:
    from edge.errors import UsageError
    from export.fixed_point.quantise import QuantisationSettings

    if method not in METHODS:
        raise UsageError(f"--method {method!r}: use one of {', '.join(METHODS)}")
    return QuantisationSettings.model_validate({"method": method})


def _outline(
    out: Path, name: str, version: int, bits: int, calibration: int, measured: dict[str, Clips]
) -> dict[str, Any]:
    counts = {split: len(clips) for split, clips in measured.items()}
    return {
        "out": str(out),
        "name": name,
        "version": version,
        "bits": bits,
        "calibration_clips": calibration,
        "measured_clips": counts,
        # Four ways to score a clip at 4 ms, and calibration at 3 ms: what one core of a laptop needs.
        "about_s": round(15 + 0.02 * sum(counts.values()) + (0.003 * calibration if bits == 8 else 0)),
        "dry_run": True,
    }


def _say_outline(outline: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(outline)
        return
    say(f"would write {outline['out']}: {outline['name']} version {outline['version']}, {outline['bits']} bits")
    counts = ", ".join(f"{split} {count}" for split, count in outline["measured_clips"].items())
    say(f"  calibration on {outline['calibration_clips']} clips, checks on {counts}; about {outline['about_s']} s")


def _say_built(built: Built, *, as_json: bool) -> None:
    bundle = built.bundle
    manifest = bundle.manifest
    size_bytes = bundle.path.stat().st_size
    if as_json:
        print_json(
            {
                "path": str(bundle.path),
                "name": manifest.name,
                "version": manifest.version,
                "bits": manifest.quantisation.bits,
                "sha256": bundle.sha256,
                "key": bundle.key,
                "size_bytes": size_bytes,
                "parity": built.fp32.to_json(),
                "twin": built.twin.to_json(),
                "drop": built.drop,
                "metrics": manifest.metrics,
            }
        )
        return
    say(f"{bundle.path}: {manifest.name} version {manifest.version}, {size_bytes / 1e6:.3f} MB, signed by {bundle.key}")
    say(f"  FP32 scores, onnxruntime and torch: at most {built.fp32.max_abs:.2g} apart over {built.fp32.clips} clips")
    say(f"  labels, onnxruntime and twin: equal on {built.twin.labels_equal:.2%} of {built.twin.clips} clips")
    if built.drop is not None:
        say(f"  quantisation costs {100 * built.drop:.2f} points of top-1")
    for split in ("validation", "test"):
        if f"{split}_top1" in manifest.metrics:
            top1, balanced = manifest.metrics[f"{split}_top1"], manifest.metrics[f"{split}_balanced"]
            say(f"  {split}: top-1 {top1:.2%}, every label weighed equally {balanced:.2%}")
