"""Where a checkpoint comes from: what it says itself, and what its run's folder adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.card import SPEECH_COMMANDS, SPEECH_COMMANDS_LICENCE, Facts
from firmware_models.data import LABELS, SILENCE
from firmware_models.training.checkpoint import CheckpointInfo
from firmware_models.training.loop import TEACHER

_CONFIG, _METRICS = "config.json", "metrics.json"


def facts_of(checkpoint: Path, info: CheckpointInfo) -> Facts:
    """The facts for a card: command, minutes, clips and speakers.

    A checkpoint that was moved out of its run's folder has less to tell; nothing is guessed.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    config, metrics = _read(folder / _CONFIG), _read(folder / _METRICS)
    data = config.get("data", {})
    synthetic = data.get("synthetic", {}).get("clips", 0)
    training = dict(info.training)
    teacher = _read(folder / TEACHER / _METRICS)
    for key, value in (("teacher_minutes", teacher.get("minutes")), ("threads", metrics.get("threads"))):
        if value is not None:
            training.setdefault(key, value)
    seed = f" --seed {training['seed']}" if "seed" in training else ""
    added = " --synthetic DIR" if synthetic else ""
    training.setdefault("command", f"earshot train {info.architecture} --data DIR{added} --out RUN{seed}")
    if info.labels != LABELS:
        return Facts(training=training)
    sources = [SPEECH_COMMANDS + _counts(data.get("train", {}))]
    if synthetic:
        sources.append(f"{synthetic} clips synthesised with espeak-ng (python -m firmware_models.zoo.synthesise)")
    return Facts(training=training, training_data="; ".join(sources), licence=SPEECH_COMMANDS_LICENCE)


def _counts(part: dict[str, Any]) -> str:
    if "clips" not in part:
        return ""
    silence = part.get("per_label", {}).get(SILENCE, 0)
    return f" ({part['clips'] - silence} recordings and {silence} cuts of its background noise)"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
