"""The low-rank part of an export: split layers, search ranks, retrain, and measure what each step saves and costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edge.errors import UsageError

if TYPE_CHECKING:
    from firmware_models.architectures import FirmwareModel
    from firmware_models.data import Clips
    from firmware_models.low_rank.factorise import Report
    from firmware_models.low_rank.search import Search
    from firmware_models.progress import Progress
    from firmware_models.training.checkpoint import CheckpointInfo
    from firmware_models.training.recipe import Recipe
    from firmware_models.training.start import Start
    from rig.cli.models.export.material import Sound


@dataclass(frozen=True, kw_only=True)
class LowRankOptions:
    """What was asked for; ``max_drop`` is the relative loss of accuracy that the search for ranks may cost."""

    rank_fc: int | None
    rank_conv: int | None
    reshape: str
    max_drop: float | None
    recipe: Recipe | None
    run: Path | None
    teacher: Path | None = None

    @property
    def wanted(self) -> bool:
        """Whether layers are to be split at all."""
        return self.rank_fc is not None or self.rank_conv is not None or self.max_drop is not None

    @classmethod
    def of(
        cls,
        *,
        rank_fc: int | None,
        rank_conv: int | None,
        reshape: str,
        max_drop: float | None,
        recipe: str | None,
        run: Path | None,
        teacher: Path | None = None,
    ) -> Self:
        """Options as they were typed.

        Raises:
            UsageError: a value that is not allowed, or two that contradict each other.
        """
        from firmware_models.training.recipe import load_recipe

        if max_drop is not None and (rank_fc is not None or rank_conv is not None):
            raise UsageError("--max-drop finds the ranks itself: leave out --rank-fc and --rank-conv")
        if reshape not in {"channels", "spatial"}:
            raise UsageError(f"--reshape {reshape!r}: use channels or spatial")
        for option, rank in (("--rank-fc", rank_fc), ("--rank-conv", rank_conv)):
            if rank is not None and rank < 1:
                raise UsageError(f"{option} {rank}: use 1 or more; more than the rank of a layer is capped at it")
        if (recipe is None) != (run is None):
            raise UsageError("--retrain RECIPE and --run DIR go together: the retraining needs a folder of its own")
        if recipe is not None and rank_fc is None and rank_conv is None and max_drop is None:
            raise UsageError("--retrain: factors are retrained; add --rank-fc and --rank-conv, or --max-drop")
        if teacher is not None and recipe is None:
            raise UsageError("--teacher: teaches factors that are retrained; add --retrain RECIPE and --run DIR")
        return cls(
            rank_fc=rank_fc,
            rank_conv=rank_conv,
            reshape=reshape,
            max_drop=max_drop,
            recipe=None if recipe is None else load_recipe(recipe),
            run=run,
            teacher=teacher,
        )


@dataclass(frozen=True, eq=False)
class Factored:
    """A factored model, and what the card says of it. Metrics are shares of the split in their names.

    ``full_*`` is the network before, ``split_*`` the one whose layers were split but not yet retrained.
    """

    model: FirmwareModel
    report: Report
    search: Search | None
    metrics: Mapping[str, float]
    training: Mapping[str, Any]
    notes: tuple[str, ...]


def factor(
    model: FirmwareModel,
    options: LowRankOptions,
    *,
    checkpoint: Path,
    material: Sound,
    training: dict[str, Any],
    progress: Progress,
) -> Factored:
    """Split the layers of ``model``, retrain where that was asked, and measure before and after.

    The teacher that trained ``checkpoint`` teaches the factors too where their recipe asks for such a one.
    """
    from firmware_models.low_rank.factorise import Ranks, factorise
    from firmware_models.low_rank.search import search
    from firmware_models.training.start import Start

    found: Search | None = None
    if options.max_drop is None:
        ranks = Ranks.model_validate({"fc": options.rank_fc, "conv": options.rank_conv, "reshape": options.reshape})
    else:
        found = search(
            model,
            material.measured["validation"],
            max_drop=options.max_drop,
            reshape="spatial" if options.reshape == "spatial" else "channels",
            progress=progress,
        )
        ranks = found.ranks
    split, report = factorise(model, ranks)
    metrics = {
        **_accuracy(model, material.measured, "full", progress),
        **_accuracy(split, material.measured, "split", progress),
        "full_parameters": float(report.parameters_before),
        "full_multiply_adds": float(report.multiply_adds_before),
        **{f"rank_{row.name}": float(row.rank) for row in report.layers if row.rank is not None},
    }
    notes = [f"Low rank: W ~ U diag(s) V, reshape {ranks.reshape}; see the metrics rank_LAYER."]
    notes += [f"{row.name}: {row.note}." for row in report.layers if row.note]
    if found is not None:
        notes.append(f"The ranks are the smallest found that lose at most {options.max_drop:.1%} of the accuracy.")
    told: dict[str, Any] = {}
    if options.recipe is not None and options.run is not None:
        teacher = _teacher(options.recipe, options.run, options.teacher, checkpoint)
        begin = Start(model=split, whole=model, training=training, teacher=teacher)
        split, told = _retrain(begin, options.recipe, options.run, material=material, progress=progress)
        notes.append("The factors were retrained from the split weights.")
    return Factored(split, report, found, metrics, told, tuple(notes))


def _accuracy(model: FirmwareModel, measured: Mapping[str, Clips], prefix: str, progress: Progress) -> dict[str, float]:
    from firmware_models.evaluation import evaluate
    from firmware_models.scoring import torch_scorer

    def report(done: int, total: int, note: str = "") -> None:
        progress(done, total, note or f"accuracy, {prefix} network")

    return {
        f"{prefix}_{split}_top1": evaluate(torch_scorer(model), clips, progress=report).top1
        for split, clips in measured.items()
    }


def _teacher(
    recipe: Recipe, run: Path, named: Path | None, checkpoint: Path
) -> tuple[FirmwareModel, CheckpointInfo] | None:
    """The teacher named, or the one in the checkpoint's folder if it is what the recipe asks for.

    A run that began to train a teacher of its own goes on with that.

    Raises:
        UsageError: the one named cannot be read.
    """
    from firmware_models.training.checkpoint import MODEL_FILE, load_checkpoint
    from firmware_models.training.loop import TEACHER
    from firmware_models.training.recipe import START, load_recipe

    if named is not None:
        return load_checkpoint(named)
    beside = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / TEACHER
    if recipe.distillation is None or recipe.distillation.recipe == START or (run / TEACHER).exists():
        return None
    if not _finished(beside) or not (beside / MODEL_FILE).exists():
        return None
    teacher, info = load_checkpoint(beside)
    return (teacher, info) if teacher.name == load_recipe(recipe.distillation.recipe).architecture else None


def _finished(run: Path) -> bool:
    from firmware_models.training.run import METRICS_FILE

    try:
        return bool(json.loads((run / METRICS_FILE).read_text())["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _retrain(
    start: Start, recipe: Recipe, out: Path, *, material: Sound, progress: Progress
) -> tuple[FirmwareModel, dict[str, Any]]:
    """Retrain, or go on where it was interrupted; a finished run is taken as it is."""
    from firmware_models.data import load_noises
    from firmware_models.training.allocator import keep_freed_memory
    from firmware_models.training.checkpoint import load_checkpoint
    from firmware_models.training.loop import CONFIG_FILE, train
    from firmware_models.training.run import Material

    if material.train is None or material.data is None:
        raise UsageError("--retrain: needs the data set that --calibration names")
    keep_freed_memory()
    metrics = train(
        recipe,
        Material(
            train=material.train,
            validation=material.measured["validation"],
            noises=tuple(load_noises(material.data, "train", window_samples=start.model.window_samples)),
        ),
        out,
        start=start,
        resume=(out / CONFIG_FILE).exists(),
        progress=progress,
    )
    model, _ = load_checkpoint(out)
    return model, {"retrained_minutes": metrics["minutes"], "retrained_steps": metrics["steps"]}
