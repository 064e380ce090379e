"""What every microphone does."""

from __future__ import annotations

from typing import Protocol

from edge.sound.ring import Pcm16


class Microphone(Protocol):
    """A source of mono int16 samples at the rate that the model wants, used by one thread.

    ``name`` says for people what it is. ``can_wait`` is true where reading late loses nothing.
    ``reopens`` is true where another stream may follow the end of one. ``xruns`` counts the times
    that sound was lost on the way in, ``overruns`` the blocks among it that were ours to take and found no room.

    ``stream_id`` names the stream that what was read last belongs to. It changes where sound was lost, so that no
    sample index is wrong and no window reaches across the gap.
    """

    name: str
    can_wait: bool
    reopens: bool
    xruns: int
    overruns: int
    stream_id: str

    def open(self) -> str:
        """Begin a stream and return its id, which is never used again.

        Raises:
            UnavailableError: it is not there now.
            DataError: it is there but its sound cannot be used.
        """

    def read(self) -> Pcm16 | None:
        """The next samples (n,), none after at most half a second of waiting, or None at the stream's end.

        Raises:
            UnavailableError: it went away.
        """

    def close(self) -> None:
        """Let it go; harmless when it is not open."""
