"""Train a model: steps and validations until the recipe is done, over any number of interruptions."""

from __future__ import annotations

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
from firmware_models.training.recipe import Recipe, load_recipe
from firmware_models.training.run import METRICS_FILE, STATE_FILE, Material, Run

CONFIG_FILE, TEACHER = "config.json", "teacher"


def train(
    recipe: Recipe,
    material: Material,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a model and leave it in ``out/model.safetensors``, beside config, metrics and the resumable state.

    A recipe with ``distillation`` trains its teacher first, in ``out/teacher``.

    With ``resume`` a run that was killed goes on from its last validation and ends with the same weights as if nothing
    had happened (on the same machine and versions); a finished run is left as it is.

    Returns:
        the content of ``out/metrics.json``.

    Raises:
        UsageError: ``out`` holds another run, or there is nothing to resume.
    """
    config = {"recipe": recipe.model_dump(mode="json"), "data": material.describe(), "device": device}
    _claim(out, config, resume=resume)
    teacher, before = None, 0
    if recipe.distillation is not None:
        teaching = load_recipe(recipe.distillation.recipe)
        before = teaching.steps
        teacher = _train_teacher(teaching, material, out / TEACHER, device, _then(progress, recipe.steps))
    run = Run(recipe, material, device, teacher)
    if resume and (out / STATE_FILE).exists():
        run.restore(out / STATE_FILE)
    started = time.monotonic() - run.elapsed_s
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


def _claim(out: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Make sure that ``out`` is new, or holds the very run that is to be resumed."""
    content = json.dumps(config, indent=1, sort_keys=True) + "\n"
    stored = out / CONFIG_FILE
    if not stored.exists():
        if resume:
            raise UsageError(f"{out}: no run to resume here; start it without --resume")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: exists and holds other files; name a new folder")
        files.write(stored, content.encode())
        return
    if not resume:
        raise UsageError(f"{out}: holds a run already; go on with --resume or name a new folder")
    if stored.read_text() != content:
        was, now = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (stored.read_text(), content))
        raise UsageError(
            f"{out}: was begun with another recipe, data or device (config {was}, now {now}); see {stored}"
        )
