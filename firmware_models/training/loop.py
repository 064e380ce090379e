"""Train a model: steps and validations until the recipe is done, over any number of interruptions."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from edge import files
from edge.errors import UsageError
from firmware_models.architectures import FirmwareModel
from firmware_models.progress import Progress, silent
from firmware_models.training.checkpoint import CheckpointInfo, load_checkpoint
from firmware_models.training.recipe import START, Recipe, load_recipe
from firmware_models.training.run import METRICS_FILE, STATE_FILE, Material, Run
from firmware_models.training.start import Start, check_start

CONFIG_FILE, TEACHER = "config.json", "teacher"


def train(
    recipe: Recipe,
    material: Material,
    out: Path,
    *,
    start: Start | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a model and leave it in ``out/model.safetensors``, beside config, metrics and the resumable state.

    A recipe with ``distillation`` trains its teacher first, in ``out/teacher``, unless ``start`` brings one. With
    ``start`` a trained model is trained further, and what it and the network it was split from answer on the
    validation split is in the metrics under ``before``; the result is never worse there than the start.

    With ``resume`` a run that was killed goes on from its last validation and ends with the same weights as if nothing
    had happened (on the same machine and versions); a finished run is left as it is.

    Returns:
        the content of ``out/metrics.json``.

    Raises:
        UsageError: ``out`` holds another run, there is nothing to resume, or recipe, start and data do not fit.
    """
    check_start(recipe, start, material.train)
    config: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "data": material.describe(), "device": device}
    if start is not None:
        config["start"] = start.describe()
    _claim(out, config, resume=resume)
    teacher: tuple[FirmwareModel, CheckpointInfo | None] | None = None
    before = 0
    if recipe.distillation is not None and recipe.distillation.recipe == START and start is not None and start.whole:
        teacher = copy.deepcopy(start.whole), None
    elif start is not None and start.teacher is not None:
        teacher = copy.deepcopy(start.teacher[0]), start.teacher[1]
    elif recipe.distillation is not None:
        teaching = load_recipe(recipe.distillation.recipe)
        before = teaching.steps
        teacher = _train_teacher(teaching, material, out / TEACHER, device, _then(progress, recipe.steps))
    run = Run(recipe, material, device, teacher, start)
    started = time.monotonic()
    if resume and (out / STATE_FILE).exists():
        run.restore(out / STATE_FILE)
        started -= run.elapsed_s
    else:
        run.validate_start()
    while run.step < recipe.steps:
        loss = run.advance()
        progress(before + run.step, before + recipe.steps, run.note(loss))
        if run.step % recipe.validate_every == 0 or run.step == recipe.steps:
            run.validate()
            run.elapsed_s = time.monotonic() - started
            run.write(out)
    metrics: dict[str, Any] = json.loads((out / METRICS_FILE).read_text())
    return metrics


def _train_teacher(
    recipe: Recipe, material: Material, out: Path, device: str, progress: Progress
) -> tuple[FirmwareModel, CheckpointInfo]:
    if recipe.distillation is not None:
        raise UsageError(f"the teacher {recipe.architecture!r} would have a teacher itself; remove its distillation")
    train(recipe, material, out, resume=(out / CONFIG_FILE).exists(), device=device, progress=progress)
    return load_checkpoint(out)


def _then(progress: Progress, steps: int) -> Progress:
    """Report a teacher's progress as the first part of what is to be done."""

    def report(done: int, total: int, note: str = "") -> None:
        progress(done, total + steps, f"teacher: {note}")

    return report


def check_out(out: Path, *, resume: bool) -> None:
    """Refuse a folder in which a run cannot begin, or with ``resume`` not go on.

    Raises:
        UsageError: ``out`` holds a run or other files, or there is nothing to resume.
    """
    if (out / CONFIG_FILE).exists():
        if not resume:
            raise UsageError(f"{out}: holds a run already; go on with --resume or name a new folder")
        return
    if resume:
        raise UsageError(f"{out}: no run to resume here; start it without --resume")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and holds other files; name a new folder")


def _claim(out: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Make sure that ``out`` is new, or holds the very run that is to be resumed."""
    content = json.dumps(config, indent=1, sort_keys=True) + "\n"
    stored = out / CONFIG_FILE
    check_out(out, resume=resume)
    if not stored.exists():
        files.write(stored, content.encode())
        return
    if stored.read_text() != content:
        was, now = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (stored.read_text(), content))
        raise UsageError(
            f"{out}: was begun with another recipe, data or device (config {was}, now {now}); see {stored}"
        )
