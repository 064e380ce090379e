"""From a window of sound to the message that says what the model made of it."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from edge.agent.recogniser import Model, Recogniser
from edge.bundle.noise import fresh_seed
from edge.errors import DataError
from edge.messages import Listen, Prediction
from edge.sound.ring import Pcm16

log = logging.getLogger(__name__)

_FULL_SCALE = np.float32(1 / 32768)


class Predictor:
    """Classifies one window at a time, so that ``latency_ms`` is what one window costs, and numbers the results.

    ``publish_noise_seed`` tells with every prediction of a stochastic ensemble, and in the log, what its noise was
    drawn from; otherwise nobody ever learns it. ``on_window(latency_ms)`` is called for each window, asked for or not.
    """

    def __init__(
        self,
        device: str,
        boot_id: str,
        bundle: Model,
        classifier: Recogniser,
        *,
        publish_noise_seed: bool = False,
        on_window: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.windows = 0
        self.boot_id = boot_id
        self.bundle_sha256 = bundle.sha256
        self._device = device
        self._labels = bundle.manifest.labels
        self._classifier = classifier
        self._publish_noise_seed = publish_noise_seed
        self._on_window = on_window
        self._seq = 0
        # Fresh memory for every window would be cold.
        self._sound = np.zeros((1, bundle.manifest.window_samples), np.float32)

    def predict(
        self,
        pcm: Pcm16,
        *,
        stream_id: str,
        sample_index: int,
        xruns: int,
        command: Listen | None = None,
        trigger: Callable[[Sequence[float]], str | None] | None = None,
    ) -> Prediction:
        """Classify samples (window_samples,); the trial's ids are those of ``command``.

        ``trigger`` is shown the scores (classes,) and says which label they make fire, if any.

        Raises:
            DataError: the model gave a score that is not finite, or what is no answer.
            UnavailableError: who recognises cannot be reached now.
        """
        scores, latency_ms, seed = self._classify(pcm)
        published = seed.hex() if seed is not None and self._publish_noise_seed else None
        if published is not None:
            members = self._classifier.members
            log.info("window at %d of %s: noise seed %s, %d members", sample_index, stream_id, published, members)
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
            label=self._labels[scores.index(max(scores))],
            scores=scores,
            latency_ms=latency_ms,
            bundle_sha256=self.bundle_sha256,
            pcm_sha256=hashlib.sha256(pcm.astype("<i2", copy=False).data).hexdigest(),
            xruns=xruns,
            noise_seed=published,
            trigger=None if trigger is None else trigger(scores),
        )
        self._seq += 1
        return prediction

    def try_out(self, pcm: Pcm16) -> None:
        """Classify samples (window_samples,) for nobody, to see whether it can be done.

        Raises:
            DataError: the model gave a score that is not finite, or what is no answer.
            UnavailableError: who recognises cannot be reached now.
        """
        self._classify(pcm)

    def _classify(self, pcm: Pcm16) -> tuple[tuple[float, ...], float, bytes | None]:
        """Scores (classes,), what they cost in milliseconds, and the seed of the noise, if any."""
        start_ns = time.perf_counter_ns()
        seed = None if self._classifier.members is None else fresh_seed()
        noise = None if seed is None else self._classifier.noise(seed)
        self._sound[0] = pcm
        self._sound *= _FULL_SCALE
        scores = tuple(self._classifier.scores(self._sound, noise=noise)[0].tolist())
        latency_ms = (time.perf_counter_ns() - start_ns) / 1e6
        # Single precision numbers cannot overflow this sum.
        if not math.isfinite(sum(scores)):
            raise DataError("the model gave a score that is not finite")
        self.windows += 1
        self._on_window(latency_ms)
        return scores, latency_ms, seed
