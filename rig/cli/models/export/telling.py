"""What ``earshot export`` tells: the outline of a dry run, and what was built."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig.cli.console import print_json, say

if TYPE_CHECKING:
    from export.build import Built
    from export.card import Facts
    from export.fixed_point.number_format import NumberFormat
    from rig.cli.models.export.low_rank import Factored, LowRankOptions
    from rig.cli.models.export.material import Sound
    from rig.cli.models.export.network import Network

# Seconds on one core of a laptop: fixed work, per clip and way to score it, per calibration clip and rounded network.
_FIXED_S, _SCORING_S, _CALIBRATION_S = 15.0, 0.005, 0.03


def stated(facts: Facts, *, training_data: str | None, licence: str | None, command: str) -> Facts:
    """The facts with what the user says of data and licence, and typed."""
    given: dict[str, Any] = {"training_data": training_data, "licence": licence, "export_command": command}
    return dataclasses.replace(facts, **{key: value for key, value in given.items() if value is not None})


def outline(
    out: Path,
    name: str,
    version: int,
    form: NumberFormat,
    network: Network,
    material: Sound,
    low_rank: LowRankOptions,
    *,
    as_json: bool,
) -> None:
    """Tell what an export would do."""
    counts = {split: len(clips) for split, clips in material.measured.items()}
    calibration = len(material.for_build.calibration) if form.quantised else 0
    about_s = _FIXED_S + 4 * _SCORING_S * sum(counts.values()) + _CALIBRATION_S * calibration
    steps = low_rank.recipe.steps if low_rank.recipe is not None else 0
    found = {
        "out": str(out),
        "name": name,
        "version": version,
        "bits": form.bits,
        "activation_bits": form.activation_bits,
        "profile": form.profile,
        "scheme": form.scheme,
        "labels": list(network.labels),
        "low_rank": low_rank.wanted,
        "retraining_steps": steps,
        "calibration_clips": calibration,
        "measured_clips": counts,
        "about_s": round(about_s),
        "dry_run": True,
    }
    if as_json:
        print_json(found)
        return
    say(f"would write {out}: {name} version {version}, {form.scheme}, profile {form.profile}")
    checks = ", ".join(f"{split} {count}" for split, count in counts.items()) or "golden sounds only"
    say(f"  calibration on {calibration} clips, checks on {checks}; about {about_s:.0f} s")
    if steps:
        say(f"  and {steps} steps of retraining in {low_rank.run}")


def built(result: Built, factored: Factored | None, *, as_json: bool) -> None:
    """Tell what was written and measured."""
    bundle = result.bundle
    manifest = bundle.manifest
    size_bytes = bundle.path.stat().st_size
    if as_json:
        print_json(
            {
                "path": str(bundle.path),
                "name": manifest.name,
                "version": manifest.version,
                "bits": manifest.quantisation.bits,
                "activation_bits": manifest.quantisation.activation_bits,
                "profile": manifest.quantisation.profile,
                "scheme": manifest.quantisation.scheme,
                "sha256": bundle.sha256,
                "key": bundle.key,
                "size_bytes": size_bytes,
                "parity": None if result.fp32 is None else result.fp32.to_json(),
                "twin": None if result.twin is None else result.twin.to_json(),
                "drop": result.drop,
                "low_rank": None if factored is None else factored.report.to_json(),
                "search": None if factored is None or factored.search is None else factored.search.to_json(),
                "metrics": manifest.metrics,
            }
        )
        return
    say(f"{bundle.path}: {manifest.name} version {manifest.version}, {size_bytes / 1e6:.3f} MB, signed by {bundle.key}")
    say(f"  {manifest.quantisation.scheme}, profile {manifest.quantisation.profile}")
    if factored is not None:
        _say_low_rank(factored, manifest.metrics)
    if result.fp32 is not None:
        say(f"  FP32 scores, onnxruntime and torch: at most {result.fp32.max_abs:.2g} apart, {result.fp32.clips} clips")
    if result.twin is not None:
        say(f"  labels, onnxruntime and twin: equal on {result.twin.labels_equal:.2%} of {result.twin.clips} clips")
    else:
        say("  no twin: attacks that follow a gradient cannot be crafted on this bundle")
    if result.drop is not None:
        say(f"  quantisation costs {100 * result.drop:.2f} points of top-1")
    for split in ("validation", "test"):
        if f"{split}_top1" in manifest.metrics:
            top1, balanced = manifest.metrics[f"{split}_top1"], manifest.metrics[f"{split}_balanced"]
            say(f"  {split}: top-1 {top1:.2%}, every label weighed equally {balanced:.2%}")


def _say_low_rank(factored: Factored, metrics: dict[str, float]) -> None:
    report = factored.report
    for row in report.layers:
        rank = f"rank {row.rank}" if row.rank is not None else "whole"
        say(
            f"  {row.name:<12} {'x'.join(map(str, row.shape)):<16} {rank:<9} "
            f"{row.parameters_before:>9,} -> {row.parameters_after:>9,} parameters  {row.note}".rstrip()
        )
    say(
        f"  in all {report.parameters_before:,} -> {report.parameters_after:,} parameters, "
        f"{report.multiply_adds_before / 1e6:.1f} -> {report.multiply_adds_after / 1e6:.1f} million multiply-adds"
    )
    if "full_test_top1" in metrics:
        steps = f"whole {metrics['full_test_top1']:.2%}, split {metrics['split_test_top1']:.2%}"
        after = f", retrained {metrics['test_top1']:.2%}" if factored.training else ""
        say(f"  top-1 on test: {steps}{after} (as exported)")
