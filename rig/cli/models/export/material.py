"""The sound that an export is calibrated and measured with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from export.build import Material
    from firmware_models.data import Clips
    from firmware_models.progress import Progress
    from rig.cli.models.export.network import Network


@dataclass(frozen=True, eq=False)
class Sound:
    """Clips of a data set, or golden sounds alone where none was named.

    ``measured`` are the splits whose labels are the network's, by name; ``data`` and ``train`` are None without a
    data set. ``for_build`` is what the exporter takes of them.
    """

    data: Path | None
    train: Clips | None
    measured: Mapping[str, Clips]
    for_build: Material


def read_material(network: Network, data: Path | None, clips: int, *, progress: Progress) -> Sound:
    """Read the splits; labels that are not the network's are only refused for a network trained here.

    Raises:
        DataError: the data set cannot be used for this network.
    """
    from export.build import Material, calibration_pcm
    from export.golden import golden_pcm
    from firmware_models.data import load
    from firmware_models.evaluation import check_labels

    if data is None:
        golden = golden_pcm(network.window_samples, network.rate_hz).astype(np.float32) / np.float32(32768)
        return Sound(None, None, {}, Material(golden))
    splits: dict[str, Clips] = {}
    for split in ("train", "validation", "test"):
        splits[split] = load(data, split, window_samples=network.window_samples, progress=progress)
        if splits[split].rate_hz != network.rate_hz:
            raise DataError(f"{data}: read at {splits[split].rate_hz} Hz, the model hears {network.rate_hz} Hz")
    train = splits.pop("train")
    if network.foreign and train.labels != network.labels:
        splits = {}
    else:
        check_labels(network.labels, train)
    return Sound(data, train, splits, Material(calibration_pcm(train, clips), splits))
