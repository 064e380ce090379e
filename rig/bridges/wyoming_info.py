"""What a Wyoming service says of itself, as far as wake words go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from wyoming.event import Event

from edge.errors import DataError, UsageError
from edge.validation import describe

_Text = Annotated[str, Field(max_length=512)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


_Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]


class _Told(BaseModel):
    # A service may say more than is needed here.
    model_config = ConfigDict(frozen=True, extra="ignore")


class WakeModel(_Told):
    """One wake word."""

    name: _Name
    version: _Text | None = None
    phrase: _Text | None = None
    languages: Annotated[tuple[_Text, ...], Field(max_length=64)] = ()
    installed: bool = True


class WakeProgram(_Told):
    """One program that knows wake words."""

    name: _Name
    version: _Text | None = None
    models: Annotated[tuple[WakeModel, ...], Field(max_length=1000)] = ()


class ServiceInfo(_Told):
    """The answer to ``describe``."""

    wake: Annotated[tuple[WakeProgram, ...], Field(max_length=64)] = ()

    @property
    def words(self) -> dict[str, tuple[WakeProgram, WakeModel]]:
        """Every installed wake word; of two with one name the first counts."""
        found: dict[str, tuple[WakeProgram, WakeModel]] = {}
        for program in self.wake:
            for model in program.models:
                if model.installed:
                    found.setdefault(model.name, (program, model))
        return found

    def choose(self, service: str, wanted: Sequence[str]) -> tuple[WakeProgram, tuple[WakeModel, ...]]:
        """The program and its wake words by name, in alphabetical order; all of the first program if none is wanted.

        Raises:
            UsageError: it has no wake words, not these, or only in two programs.
        """
        known = self.words
        if not known:
            raise UsageError(f"--service {service}: offers no wake words, name a wake-word service")
        missing = [word for word in wanted if word not in known]
        if missing:
            raise UsageError(f"--wake-word {missing[0]!r}: {service} knows {', '.join(sorted(known))}")
        first = next(iter(known.values()))[0]
        chosen = [known[word] for word in wanted] or [entry for entry in known.values() if entry[0] == first]
        if any(program != chosen[0][0] for program, _ in chosen):
            raise UsageError(f"--wake-word: {', '.join(wanted)} belong to several programs of {service}, name fewer")
        return chosen[0][0], tuple(sorted((model for _, model in chosen), key=lambda model: model.name))


def read_info(service: str, event: Event) -> ServiceInfo:
    """Decode an ``info`` event.

    Raises:
        DataError: it is malformed.
    """
    try:
        return ServiceInfo.model_validate(event.data)
    except ValidationError as error:
        raise DataError(f"{service}: info: {describe(error)}") from None


class Detected(_Told):
    """A ``detection`` event."""

    name: Annotated[str, Field(max_length=128)] | None = None
    timestamp: int | None = None


def read_detection(service: str, event: Event, words: Sequence[str], others: frozenset[str] = frozenset()) -> Detected:
    """Decode a ``detection``: its name is one of ``words``, or of ``others`` that nobody asked for.

    Raises:
        DataError: it is malformed, or names what nobody knows.
    """
    try:
        detected = Detected.model_validate(event.data)
    except ValidationError as error:
        raise DataError(f"{service}: detection: {describe(error)}") from None
    if detected.name is None:
        if len(words) != 1:
            raise DataError(f"{service}: a detection without a name, where {len(words)} wake words are listened for")
        return detected.model_copy(update={"name": words[0]})
    if detected.name not in words and detected.name not in others:
        raise DataError(f"{service}: detected {detected.name[:60]!a}, which is none of {', '.join(words)}")
    return detected
