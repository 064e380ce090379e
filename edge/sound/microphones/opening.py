"""From ``--microphone SPEC`` to a microphone."""

from __future__ import annotations

from edge.errors import UsageError
from edge.sound.microphones.options import split_options
from edge.sound.microphones.protocol import Microphone

FORMS = (
    "sounddevice[:NAME][?channel=N&gain_db=DB], file:PATH[?loop&channel=N&gain_db=DB], "
    "socket:HOST:PORT or socket:unix:PATH"
)


def microphone(spec: str, rate_hz: int) -> Microphone:
    """The microphone that ``spec`` names, delivering ``rate_hz``; nothing is recorded yet.

    Raises:
        UsageError: the spec or what it names makes no sense.
        UnavailableError: the sound card or its library is not there.
    """
    # Each kind is imported when it is asked for: a device carries no sound library that it does not use.
    kind, colon, rest = spec.partition(":")
    if not colon:
        kind, mark, options = spec.partition("?")
        rest = mark + options
    if kind == "sounddevice":
        name, chosen = split_options(spec, rest, ("channel", "gain_db"))
        from edge.sound.microphones.portaudio import PortAudioMicrophone  # noqa: PLC0415

        return PortAudioMicrophone(name or None, rate_hz, chosen)
    if kind == "file" and rest:
        path, chosen = split_options(spec, rest, ("loop", "channel", "gain_db"))
        from edge.sound.microphones.file import FileMicrophone  # noqa: PLC0415

        return FileMicrophone(path, rate_hz, chosen)
    if kind == "socket" and rest:
        from edge.sound.microphones.socket import SocketMicrophone  # noqa: PLC0415

        return SocketMicrophone(rest, rate_hz)
    raise UsageError(f"microphone {spec!r}: use {FORMS}")
