"""The socket that carries sound from a rig to a device: one header line, then raw samples.

The device is the client and connects to the rig. On each connection the rig sends one JSON object on one
line (at most 512 bytes with its newline), then little-endian signed 16-bit mono samples as fast as it
likes: the device reads them as they come, and TCP holds the rig back when the device cannot keep up. The
first sample after the header has ``sample_index`` 0. A connection is a stream: its ``stream_id`` is
never used again.

Example::

    {"earshot_audio":1,"rate_hz":16000,"channels":1,"format":"s16le","stream_id":"7f3a"}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import DataError
from edge.messages import Identifier
from edge.validation import describe

HEADER_LIMIT_BYTES = 512
BYTES_PER_SAMPLE = 2


class AudioHeader(BaseModel):
    """What the rig says before the first sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    earshot_audio: Literal[1] = 1
    rate_hz: Annotated[int, Field(gt=0, le=192_000)]
    channels: Literal[1] = 1
    format: Literal["s16le"] = "s16le"
    stream_id: Identifier

    def to_line(self) -> bytes:
        """Encode as the first line of a connection, newline included."""
        return self.model_dump_json().encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> AudioHeader:
        """Decode the first line of a connection.

        Raises:
            DataError: it is too long, not JSON, or says something else than mono 16-bit samples.
        """
        if len(line) > HEADER_LIMIT_BYTES:
            raise DataError(f"audio header: {len(line)} bytes exceed the limit of {HEADER_LIMIT_BYTES}")
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise DataError(f"audio header: {describe(error, document='line')}") from None
