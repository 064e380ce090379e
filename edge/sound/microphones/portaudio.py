"""A sound card as a microphone, through PortAudio."""

from __future__ import annotations

import queue
import secrets
from types import ModuleType
from typing import Any

import numpy as np

from edge.errors import UnavailableError
from edge.sound.microphones.resampling import Resampler
from edge.sound.ring import Pcm16

INSTALL_HINT = "PortAudio is missing: apt-get install libportaudio2"
_QUEUE_BLOCKS = 512
_READ_TIMEOUT_S = 0.5
# A card that delivers nothing for this long was unplugged, or its driver is stuck.
_SILENT_CARD_S = 5.0


def import_sounddevice() -> ModuleType:
    """The module sounddevice; imported here alone, since its import needs PortAudio.

    Raises:
        UnavailableError: the library is not installed.
    """
    try:
        import sounddevice  # noqa: PLC0415 - a device with another microphone needs no PortAudio
    except OSError:
        raise UnavailableError(INSTALL_HINT) from None
    return sounddevice  # type: ignore[no-any-return]


class PortAudioMicrophone:
    """The first channel of an input device, resampled where the card cannot do the model's rate.

    Raises:
        UnavailableError: PortAudio or the input device is not there.
    """

    can_wait = False
    reopens = True

    def __init__(self, device: str | None, rate_hz: int) -> None:
        self.name = "sounddevice" + (f":{device}" if device else "")
        self.xruns = 0
        self._device: str | int | None = int(device) if device and device.isdecimal() else device
        self._rate_hz = rate_hz
        self._sounddevice = import_sounddevice()
        self._blocks: queue.Queue[bytes] = queue.Queue(_QUEUE_BLOCKS)
        self._stream: Any = None
        self._channels = 1
        self._resampler: Resampler | None = None
        self._waited_s = 0.0
        self._choose_format()

    def _choose_format(self) -> int:
        """Find rate and channels that the card accepts, the model's own rate first; returns the rate."""
        sounddevice = self._sounddevice
        try:
            own_rate_hz = round(sounddevice.query_devices(self._device, "input")["default_samplerate"])
        except (ValueError, sounddevice.PortAudioError) as error:
            raise UnavailableError(f"{self.name}: no such input device: {_one_line(error)}") from None
        reason = ""
        for rate_hz in (self._rate_hz, own_rate_hz, 48_000, 44_100):
            for channels in (1, 2):
                try:
                    sounddevice.check_input_settings(self._device, channels, "int16", samplerate=rate_hz)
                except (ValueError, sounddevice.PortAudioError) as error:
                    reason = _one_line(error)
                    continue
                self._channels = channels
                base = self.name.split(" (")[0]
                self.name = base if rate_hz == self._rate_hz else f"{base} (resampled from {rate_hz} Hz)"
                return rate_hz
        raise UnavailableError(f"{self.name}: records neither {self._rate_hz} Hz nor a usual rate: {reason}")

    def open(self) -> str:
        """Start recording."""
        self.close()
        rate_hz = self._choose_format()
        self._resampler = None if rate_hz == self._rate_hz else Resampler(rate_hz, self._rate_hz)
        self._blocks = queue.Queue(_QUEUE_BLOCKS)
        self._waited_s = 0.0
        try:
            self._stream = self._sounddevice.RawInputStream(
                samplerate=rate_hz,
                device=self._device,
                channels=self._channels,
                dtype="int16",
                callback=self._callback,
            )
            self._stream.start()
        except self._sounddevice.PortAudioError as error:
            self.close()
            raise UnavailableError(f"{self.name}: {_one_line(error)}") from None
        return f"card-{secrets.token_hex(6)}"

    def _callback(self, data: Any, frames: int, time: Any, status: Any) -> None:
        if status:
            self.xruns += 1
        try:
            self._blocks.put_nowait(bytes(data))
        except queue.Full:
            self.xruns += 1

    def read(self) -> Pcm16 | None:
        """The next block of the card."""
        try:
            block = self._blocks.get(timeout=_READ_TIMEOUT_S)
        except queue.Empty:
            self._waited_s += _READ_TIMEOUT_S
            if self._waited_s >= _SILENT_CARD_S:
                raise UnavailableError(f"{self.name}: the card has been silent for {_SILENT_CARD_S:.0f} s") from None
            return np.zeros(0, np.int16)
        self._waited_s = 0.0
        pcm: Pcm16 = np.frombuffer(block, dtype=np.int16)[:: self._channels]
        if self._resampler is None:
            return pcm
        return self._resampler.feed(pcm.astype(np.float32) / np.float32(32768))

    def close(self) -> None:
        """Stop recording."""
        if self._stream is not None:
            self._stream.close(ignore_errors=True)
            self._stream = None
        self._resampler = None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
