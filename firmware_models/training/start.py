"""What a run goes on from instead of random weights: a trained model, for example one just split into factors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from edge.errors import UsageError
from firmware_models.architectures import FirmwareModel
from firmware_models.data import Clips
from firmware_models.low_rank.layout import layout
from firmware_models.training.checkpoint import CheckpointInfo
from firmware_models.training.recipe import ANY, START, Recipe, load_recipe


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A trained ``model`` to go on with, and ``whole``, the network that it was split from, if there is one.

    ``training`` is what the record of the new checkpoint tells of the training before, anything JSON. ``teacher`` is
    one that was trained already, with what its checkpoint says; the run trains none of its own then.
    """

    model: FirmwareModel
    whole: FirmwareModel | None = None
    training: dict[str, Any] = field(default_factory=dict)
    teacher: tuple[FirmwareModel, CheckpointInfo] | None = None

    def describe(self) -> dict[str, Any]:
        """What tells this start from another, for the config of the run."""
        found = {
            "architecture": self.model.name,
            "settings": self.model.settings.model_dump(mode="json"),
            "low_rank": layout(self.model),
            # The factors follow from the whole network; their last bits may depend on the number of threads.
            "sha256": _digest(self.model if self.whole is None else self.whole),
        }
        if self.teacher is not None:
            found["teacher"] = {"architecture": self.teacher[0].name, "sha256": _digest(self.teacher[0])}
        return found


def check_start(recipe: Recipe, start: Start | None, clips: Clips) -> None:
    """Refuse a recipe that does not fit what it starts from, and data that the model was not made for.

    Raises:
        UsageError: the recipe needs a start and there is none, or is for another model; labels or window differ.
    """
    taught_by_start = recipe.distillation is not None and recipe.distillation.recipe == START
    if start is None:
        if recipe.architecture == ANY:
            raise UsageError(
                "the recipe names no architecture: it goes on with a trained model (earshot export CHECKPOINT "
                "--retrain low-rank); to train from nothing use a recipe with an architecture, for example lms"
            )
        if taught_by_start:
            raise UsageError("distillation.recipe 'start' is only for a run that goes on with a split model")
        return
    if start.teacher is not None:
        _check_teacher(recipe, start.teacher[0], start.model)
    _check_settings(recipe, start.model)
    if taught_by_start and start.whole is None:
        raise UsageError("distillation.recipe 'start': the whole network that the model was split from is not given")
    model = start.model
    if model.labels != clips.labels:
        raise UsageError(
            f"the model's labels ({' '.join(model.labels)}) are not those of {clips.root} ({' '.join(clips.labels)})"
        )
    if (model.window_samples, model.rate_hz) != (clips.pcm.shape[1], clips.rate_hz):
        raise UsageError(
            f"the model hears {model.window_samples} samples at {model.rate_hz} Hz, the clips of {clips.root} have "
            f"{clips.pcm.shape[1]} at {clips.rate_hz} Hz; read them with the model's window"
        )


def _check_settings(recipe: Recipe, model: FirmwareModel) -> None:
    if recipe.architecture not in {ANY, model.name}:
        raise UsageError(
            f"the recipe is for {recipe.architecture!r}, the model is {model.name!r}; use one for it or any"
        )
    own = model.settings.model_dump(mode="json")
    for key, value in recipe.settings.items():
        if own.get(key) != value:
            raise UsageError(f"the recipe sets {key} to {value!r}, the trained model has {own.get(key)!r}; remove it")


def _check_teacher(recipe: Recipe, teacher: FirmwareModel, pupil: FirmwareModel) -> None:
    """Refuse a teacher that the recipe does not ask for, or that hears or answers other things than its pupil.

    Raises:
        UsageError: one of these; the message says which.
    """
    if recipe.distillation is None or recipe.distillation.recipe == START:
        taught = "by nobody" if recipe.distillation is None else "by the whole network itself"
        raise UsageError(
            f"a teacher was given, but this recipe is taught {taught}; leave it out or change distillation"
        )
    wanted = load_recipe(recipe.distillation.recipe).architecture
    if teacher.name != wanted:
        raise UsageError(
            f"the teacher is a {teacher.name!r}, the recipe asks for a {wanted!r}; give one or leave it out"
        )
    if (teacher.labels, teacher.window_samples, teacher.rate_hz) != (pupil.labels, pupil.window_samples, pupil.rate_hz):
        raise UsageError(
            f"the teacher tells {len(teacher.labels)} labels in {teacher.window_samples} samples at {teacher.rate_hz} "
            f"Hz, the model {len(pupil.labels)} in {pupil.window_samples} at {pupil.rate_hz} Hz; give a teacher of the "
            "same data or leave it out"
        )


def _digest(model: FirmwareModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
