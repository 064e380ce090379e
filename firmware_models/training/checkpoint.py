"""Checkpoints: safetensors files that say themselves what they are; written completely or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from edge import files
from edge.errors import UsageError
from firmware_models.architectures import FirmwareModel, build, find
from firmware_models.low_rank.layout import lay_out, layout

MODEL_FILE = "model.safetensors"
_KEY = "earshot"
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint says of itself; ``settings`` are the architecture's, ``metrics`` those of its training.

    ``low_rank`` names the layers that are split into factors; see :func:`firmware_models.low_rank.layout.layout`.
    """

    architecture: str
    labels: tuple[str, ...]
    window_samples: int
    rate_hz: int
    settings: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    low_rank: dict[str, Any] | None = None


def save_checkpoint(
    path: Path,
    model: FirmwareModel,
    *,
    weights: dict[str, Tensor] | None = None,
    metrics: dict[str, float] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write the model (or other ``weights`` of it) to ``path``; ``training`` is anything JSON that tells its origin."""
    info = CheckpointInfo(
        architecture=model.name,
        labels=model.labels,
        window_samples=model.window_samples,
        rate_hz=model.rate_hz,
        settings=model.settings.model_dump(),
        metrics=metrics or {},
        training=training or {},
        low_rank=layout(model),
    )
    save_tensors(path, model.state_dict() if weights is None else weights, {"schema": _SCHEMA, **asdict(info)})


def load_checkpoint(path: Path) -> tuple[FirmwareModel, CheckpointInfo]:
    """Read a checkpoint file, or ``model.safetensors`` of a run folder; the model is in evaluation mode.

    Raises:
        UsageError: no such file, not a checkpoint of this project, or its weights do not fit its architecture.
    """
    if path.is_dir():
        path = path / MODEL_FILE
    tensors, about = load_tensors(path)
    try:
        info = CheckpointInfo(
            architecture=str(about["architecture"]),
            labels=tuple(map(str, about["labels"])),
            window_samples=int(about["window_samples"]),
            rate_hz=int(about["rate_hz"]),
            settings=dict(about["settings"]),
            metrics=dict(about.get("metrics", {})),
            training=dict(about.get("training", {})),
            low_rank=dict(about["low_rank"]) if about.get("low_rank") else None,
        )
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{path}: its description is incomplete; it is not a model that earshot train wrote") from None
    try:
        find(info.architecture)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    # Building draws random weights that are replaced at once; the caller's random numbers must not notice.
    with torch.random.fork_rng(devices=[]):
        model = build(
            info.architecture,
            labels=info.labels,
            window_samples=info.window_samples,
            rate_hz=info.rate_hz,
            **info.settings,
        )
    try:
        lay_out(model, info.low_rank)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: the weights do not fit the architecture {info.architecture!r}: {reason}") from None
    return model.eval(), info


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a JSON description, complete or not at all: temporary file, fsync, rename, fsync."""
    content = save({name: t.detach().contiguous() for name, t in tensors.items()}, {_KEY: json.dumps(about)})
    files.write(path, content)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        UsageError: no such file, or not written by :func:`save_tensors`.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint; make one with: earshot train lms --data DIR --out RUN")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        about = json.loads(metadata[_KEY])
        if about.get("schema") != _SCHEMA:
            raise UsageError(f"{path}: schema {about.get('schema')!r}, this version reads {_SCHEMA}")
        return load_file(str(path)), about
    except KeyError:
        raise UsageError(f"{path}: a safetensors file, but not a model that earshot train wrote") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a readable safetensors file ({' '.join(str(error).split())})") from None
