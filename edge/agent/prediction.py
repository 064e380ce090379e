"""From a window of sound to the message that says what the model made of it."""

from __future__ import annotations

import hashlib
import time

import numpy as np

from edge.bundle.classifier import Classifier
from edge.bundle.reading import Bundle
from edge.errors import DataError
from edge.messages import Listen, Prediction
from edge.sound.ring import Pcm16


class Predictor:
    """Classifies one window at a time, so that ``latency_ms`` is what one window costs, and numbers the results."""

    def __init__(self, device: str, boot_id: str, bundle: Bundle, classifier: Classifier) -> None:
        self.boot_id = boot_id
        self.bundle_sha256 = bundle.sha256
        self._device = device
        self._labels = bundle.manifest.labels
        self._classifier = classifier
        self._seq = 0

    def predict(
        self, pcm: Pcm16, *, stream_id: str, sample_index: int, xruns: int, command: Listen | None = None
    ) -> Prediction:
        """Classify samples (window_samples,); the trial's ids are those of ``command``.

        Raises:
            DataError: the model gave a score that is not finite.
        """
        start_ns = time.perf_counter_ns()
        scores = self._classifier.scores(pcm.astype(np.float32)[np.newaxis] / np.float32(32768))[0]
        latency_ms = (time.perf_counter_ns() - start_ns) / 1e6
        if not np.isfinite(scores).all():
            raise DataError("the model gave a score that is not finite")
        prediction = Prediction(
            device=self._device,
            boot_id=self.boot_id,
            seq=self._seq,
            session_id=None if command is None else command.session_id,
            trial_id=None if command is None else command.trial_id,
            attempt=None if command is None else command.attempt,
            stream_id=stream_id,
            sample_index=sample_index,
            t_monotonic_ns=time.monotonic_ns(),
            t_utc_ns=time.time_ns(),
            label=self._labels[int(scores.argmax())],
            scores=tuple(scores.tolist()),
            latency_ms=latency_ms,
            bundle_sha256=self.bundle_sha256,
            pcm_sha256=hashlib.sha256(pcm.astype("<i2", copy=False).tobytes()).hexdigest(),
            xruns=xruns,
        )
        self._seq += 1
        return prediction
