"""What the agent needs of whatever recognises sound: a bundle's classifier, or a stranger behind a bridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from edge.bundle.reading import Floats


class Facts(Protocol):
    """What a model says of itself."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def version(self) -> int:
        """Its version; it only grows."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the scores."""

    @property
    def score_kind(self) -> Literal["logits", "probabilities"]:
        """What the scores are."""

    @property
    def rate_hz(self) -> int:
        """Sample rate of the sound it takes."""

    @property
    def window_samples(self) -> int:
        """How many samples it hears at once."""


class Model(Protocol):
    """A model that can be told from any other."""

    @property
    def manifest(self) -> Facts:
        """What it says of itself."""

    @property
    def sha256(self) -> str:
        """The hash of all that makes it what it is."""


class Recogniser(Protocol):
    """PCM in, scores out; used by one thread."""

    @property
    def providers(self) -> Sequence[str]:
        """What computes the scores."""

    @property
    def members(self) -> int | None:
        """The number of members of a stochastic ensemble, None for any other model."""

    def noise(self, seed: bytes) -> Floats:
        """The noise that ``seed`` stands for; asked only of a stochastic ensemble."""

    def scores(self, pcm: Floats, *, noise: Floats | None = None) -> Floats:
        """Scores float32 (batch, labels) of clips float32 (batch, window_samples) in [-1, 1).

        Raises:
            DataError: what came back is no answer to what was asked.
            UnavailableError: whoever recognises cannot be reached now.
        """
