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
from firmware_models.training.recipe import ANY, START, Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A trained ``model`` to go on with, and ``whole``, the network that it was split from, if there is one.

    ``training`` is what the record of the new checkpoint tells of the training before, anything JSON.
    """

    model: FirmwareModel
    whole: FirmwareModel | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """What tells this start from another, for the config of the run."""
        return {
            "architecture": self.model.name,
            "settings": self.model.settings.model_dump(mode="json"),
            "low_rank": layout(self.model),
            # The factors follow from the whole network; their last bits may depend on the number of threads.
            "sha256": _digest(self.model if self.whole is None else self.whole),
        }


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
    model = start.model
    if recipe.architecture not in {ANY, model.name}:
        raise UsageError(
            f"the recipe is for {recipe.architecture!r}, the model is {model.name!r}; use one for it or any"
        )
    own = model.settings.model_dump(mode="json")
    for key, value in recipe.settings.items():
        if own.get(key) != value:
            raise UsageError(f"the recipe sets {key} to {value!r}, the trained model has {own.get(key)!r}; remove it")
    if taught_by_start and start.whole is None:
        raise UsageError("distillation.recipe 'start': the whole network that the model was split from is not given")
    if model.labels != clips.labels:
        raise UsageError(
            f"the model's labels ({' '.join(model.labels)}) are not those of {clips.root} ({' '.join(clips.labels)})"
        )
    if (model.window_samples, model.rate_hz) != (clips.pcm.shape[1], clips.rate_hz):
        raise UsageError(
            f"the model hears {model.window_samples} samples at {model.rate_hz} Hz, the clips of {clips.root} have "
            f"{clips.pcm.shape[1]} at {clips.rate_hz} Hz; read them with the model's window"
        )


def _digest(model: FirmwareModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
