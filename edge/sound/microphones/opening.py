"""From ``--microphone SPEC`` to a microphone."""

from __future__ import annotations

from edge.errors import UsageError
from edge.sound.microphones.protocol import Microphone

FORMS = "sounddevice[:NAME], file:PATH[?loop], socket:HOST:PORT or socket:unix:PATH"


def microphone(spec: str, rate_hz: int) -> Microphone:
    """The microphone that ``spec`` names, delivering ``rate_hz``; nothing is recorded yet.

    Raises:
        UsageError: the spec or what it names makes no sense.
        UnavailableError: the sound card or its library is not there.
    """
    # Each kind is imported when it is asked for: a device carries no sound library that it does not use.
    kind, _, rest = spec.partition(":")
    if kind == "sounddevice":
        from edge.sound.microphones.portaudio import PortAudioMicrophone  # noqa: PLC0415

        return PortAudioMicrophone(rest or None, rate_hz)
    if kind == "file" and rest:
        from edge.sound.microphones.file import FileMicrophone  # noqa: PLC0415

        path, mark, option = rest.rpartition("?")
        if not mark:
            return FileMicrophone(rest, rate_hz)
        if option == "loop":
            return FileMicrophone(path, rate_hz, loop=True)
        raise UsageError(f"microphone {spec!r}: unknown option {option!r}: the one option of a file is ?loop")
    if kind == "socket" and rest:
        from edge.sound.microphones.socket import SocketMicrophone  # noqa: PLC0415

        return SocketMicrophone(rest, rate_hz)
    raise UsageError(f"microphone {spec!r}: use {FORMS}")
