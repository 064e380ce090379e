"""From the scores of overlapping windows to one word that was recognised, once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import exp
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.errors import UsageError

BACKGROUND = ("_silence_", "_unknown_", "_background_noise_", "silence", "unknown")
# An hour of history at the shortest hop is more than anybody smooths over.
_MOST_WINDOWS = 4096


class ListeningSettings(BaseModel):
    """How a device listens without being asked; times in milliseconds, probabilities in [0, 1].

    Every ``hop_ms`` one window is classified. Class probabilities are averaged over the windows that began within
    the last ``smoothing_ms`` (0: each window for itself). A label whose average reaches ``threshold`` fires once; it
    can fire again after its average was below ``release`` (absent: five eighths of the threshold), and no label fires
    within ``refractory_ms`` of another fire. The labels of ``background`` never fire. ``keep`` says which predictions
    are repeated until they are acknowledged: those that fired, or all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hop_ms: Annotated[float, Field(ge=10, le=60_000)] = 100.0
    smoothing_ms: Annotated[float, Field(ge=0, le=60_000)] = 300.0
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    release: Annotated[float, Field(ge=0, lt=1)] | None = None
    refractory_ms: Annotated[float, Field(ge=0, le=600_000)] = 1000.0
    keep: Literal["triggered", "all"] = "triggered"
    background: tuple[str, ...] = BACKGROUND

    @model_validator(mode="after")
    def _release_is_lower(self) -> Self:
        if self.release is not None and not self.release < self.threshold:
            raise ValueError(f"{self.release:g} is not below the threshold of {self.threshold:g}: lower it")
        return self

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Settings from what a user gave, None standing for what was not given.

        Raises:
            UsageError: a value is out of its range; the message is one line that names the option.
        """
        given = {name: value for name, value in values.items() if value is not None}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "release"
            option = "--" + name.removesuffix("_ms").replace("_", "-")
            said = first["msg"].removeprefix("Value error, ")
            shown = f" {given[name]}" if name in given and first["loc"] else ""
            raise UsageError(f"{option}{shown}: {said[0].lower()}{said[1:]}") from None

    @property
    def lower_threshold(self) -> float:
        """Below it a label that has fired is armed again."""
        return 0.625 * self.threshold if self.release is None else self.release

    def hop_samples(self, rate_hz: int) -> int:
        """The hop in samples, at least one."""
        return max(1, round(self.hop_ms * rate_hz / 1000))


class Trigger:
    """Smooths, compares, remembers what has fired; used by one thread.

    The average is over windows of one stream alone and is formed anew each time, so no rounding error grows; it counts
    once half of the windows that smoothing asks for are there. Averaging and refractory time are those of posterior
    handling in small-footprint keyword spotting (Chen, Parada and Heigold, ICASSP 2014); hysteresis is the addition.

    Args:
        labels: the classes, in the order of the scores.
        score_kind: ``logits``, of which the softmax is taken, or ``probabilities``.
        rate_hz: samples per second, the unit of window positions.
        settings: times and thresholds.
    """

    def __init__(
        self,
        labels: Sequence[str],
        score_kind: Literal["logits", "probabilities"],
        rate_hz: int,
        settings: ListeningSettings,
    ) -> None:
        hop = settings.hop_samples(rate_hz)
        self._span = max(hop, round(settings.smoothing_ms * rate_hz / 1000))
        count = min(_MOST_WINDOWS, -(-self._span // hop))
        self._enough = (count + 1) // 2
        self._refractory = round(settings.refractory_ms * rate_hz / 1000)
        self._threshold, self._release = settings.threshold, settings.lower_threshold
        self._labels = tuple(labels)
        self._foreground = [number for number, label in enumerate(labels) if label not in settings.background]
        self._softmax = score_kind == "logits"
        # The last windows: position and probabilities. A dozen numbers at a time: lists are quicker than arrays.
        self._windows: deque[tuple[int, list[float]]] = deque(maxlen=count)
        self._last: int | None = None
        self._waiting = 0
        self._armed = [True] * len(labels)
        self.smoothed = [0.0] * len(labels)

    def reset(self) -> None:
        """A new stream begins: windows of the old one no longer count, but what has fired is still remembered."""
        self._windows.clear()
        self._last = None

    def feed(self, scores: Sequence[float], sample_index: int) -> str | None:
        """Take the scores (classes,) of the window at ``sample_index``; returns the label that fires, if one does.

        Positions grow within a stream; one that does not is the first of a new stream.
        """
        if self._last is not None:
            if sample_index <= self._last:
                self.reset()
            else:
                self._waiting = max(0, self._waiting - (sample_index - self._last))
        self._last = sample_index
        windows = self._windows
        windows.append((sample_index, _softmax(scores) if self._softmax else list(scores)))
        while windows[0][0] <= sample_index - self._span:
            windows.popleft()
        self.smoothed = smoothed = _mean([row for _, row in windows])
        if len(windows) < self._enough:
            return None
        armed, best = self._armed, -1
        for number in self._foreground:
            value = smoothed[number]
            if value < self._release:
                armed[number] = True
            elif value >= self._threshold and armed[number] and (best < 0 or value > smoothed[best]):
                best = number
        if best < 0 or self._waiting:
            return None
        armed[best] = False
        self._waiting = self._refractory
        return self._labels[best]


def _softmax(logits: Sequence[float]) -> list[float]:
    highest = max(logits)
    powers = [exp(each - highest) for each in logits]
    whole = sum(powers)
    return [each / whole for each in powers]


def _mean(rows: list[list[float]]) -> list[float]:
    if len(rows) == 1:
        return rows[0]
    count = len(rows)
    return [sum(column) / count for column in zip(*rows, strict=True)]
