"""A few trials to listen to: the clip, what was played at the device's place, and what the device heard."""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from rig.airs.protocol import Pcm, Rendering
from rig.journal import Trial
from rig.plan import Condition
from rig.session.prepare import AUDIO

if TYPE_CHECKING:  # showing a session must not wait for torch
    from rig.session.material import Material

log = logging.getLogger(__name__)


class Samples:
    """Chooses one trial per attack and budget and keeps its three recordings as FLAC.

    Chosen is the first planned trial without delay, on the first bundle; the device is asked for its own
    recording of it.
    """

    def __init__(self, folder: Path, material: Material, trials: list[Trial]) -> None:
        self._folder = folder / AUDIO
        self._folder.mkdir(exist_ok=True)
        self._material = material
        self._chosen = {trial.trial_id for trial in choose(trials, list(material.conditions))}

    def wants(self, trial: Trial) -> bool:
        """Whether this trial is one to listen to."""
        return trial.trial_id in self._chosen

    def keep_played(self, trial: Trial, rendering: Rendering) -> None:
        """Keep the clip alone, and clip plus perturbation as the air mixed them."""
        if not self.wants(trial):
            return
        start = rendering.window_start
        self._write(trial, "clean", self._material.clips[trial.clip].pcm)
        self._write(trial, "mixed", rendering.pcm[start : start + self._material.window_samples])

    def keep_heard(self, trial: Trial, audio: str) -> None:
        """Keep what the device says it heard: base64 of little-endian int16."""
        try:
            heard = np.frombuffer(base64.b64decode(audio, validate=True), dtype="<i2")
        except (binascii.Error, ValueError):
            log.warning("trial %s: the device's recording is not base64 of 16-bit samples", trial.trial_id)
            return
        self._write(trial, "heard", heard.astype(np.int16))

    def _write(self, trial: Trial, kind: str, pcm: Pcm) -> None:
        soundfile.write(self._folder / f"{trial.trial_id}-{kind}.flac", pcm, self._material.rate_hz, format="FLAC")


def choose(trials: list[Trial], conditions: list[Condition]) -> list[Trial]:
    """The first trial of each attack and budget on the first bundle without delay."""
    first: dict[tuple[str, float, str | None], Trial] = {}
    for trial in trials:
        cell = conditions[trial.condition]
        if cell.bundle == conditions[0].bundle and cell.delay_ms == 0:
            first.setdefault((cell.attack, cell.eps, cell.target), trial)
    return list(first.values())
