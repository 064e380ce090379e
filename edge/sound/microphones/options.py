"""What may follow the ``?`` of a microphone: ``channel=2&gain_db=6``, and ``loop`` for a file."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import UsageError

MEANINGS = {
    "loop": "loop",
    "channel": "channel=1 to 64",
    "gain_db": "gain_db=-40 to 40",
}


class Options(BaseModel):
    """How a microphone is heard: ``channel`` counts from 1, absent is the first; gain is in dB."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loop: bool = False
    channel: Annotated[int, Field(ge=1, le=64)] | None = None
    gain_db: Annotated[float, Field(ge=-40, le=40)] = 0.0

    def notes(self, channels: int) -> list[str]:
        """What people are told about channel and gain, of a source that has so many ``channels``."""
        notes = []
        if self.channel is not None:
            notes.append(f"channel {self.channel} of {channels}")
        elif channels > 1:
            notes.append(f"first of {channels} channels")
        if self.gain_db:
            notes.append(f"gain {self.gain_db:+g} dB")
        return notes


def split_options(spec: str, rest: str, allowed: tuple[str, ...]) -> tuple[str, Options]:
    """``NAME?OPTIONS`` as name and options; ``spec`` is what the user wrote, ``rest`` what follows its kind.

    Raises:
        UsageError: an option that this kind of microphone does not take, twice the same, or a value out of its range.
    """
    name, mark, text = rest.rpartition("?")
    if not mark:
        return rest, Options()
    choice = f"use {', '.join(MEANINGS[key] for key in allowed)}, joined by &"
    values: dict[str, str | bool] = {}
    for part in text.split("&"):
        key, equals, value = part.partition("=")
        if key not in allowed or key in values or (key == "loop") == bool(equals):
            raise UsageError(f"microphone {spec!r}: unknown option {part!r}: {choice}")
        values[key] = value if equals else True
    try:
        return name, Options.model_validate(values)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise UsageError(f"microphone {spec!r}: {key}={values[key]}: use {MEANINGS[key]}") from None
