"""A sound card as a microphone, through PortAudio."""

from __future__ import annotations

import atexit
import logging
import queue
import secrets
import threading
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from edge.errors import UnavailableError, UsageError
from edge.sound.microphones.continuity import Continuity
from edge.sound.microphones.options import Options
from edge.sound.microphones.resampling import Resampler, amplify, factor
from edge.sound.ring import Pcm16

log = logging.getLogger(__name__)

INSTALL_HINT = "PortAudio is missing: apt-get install libportaudio2"
# What PortAudio chooses itself is half as long: ten threads' wakings in every hop.
_BLOCK_S = 0.02
_QUEUE_BLOCKS = 512
_READ_TIMEOUT_S = 0.5
# A card that delivers nothing for this long was unplugged, or its driver is stuck.
_SILENT_CARD_S = 5.0
_CLOSE_TIMEOUT_S = 2.0
_MOST_STUCK = 3
# After a loss a stream begins once this much has come without another: a card in trouble must not begin a hundred.
_SETTLE_S = 0.2
_NOTHING: Pcm16 = np.zeros(0, np.int16)


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


class _Block(NamedTuple):
    data: bytes
    adc_s: float
    overflow: bool
    underflow: bool
    # Blocks that found the queue full just before this one.
    dropped: int


class _Inlet:
    """What the audio callback writes to; each opening has its own, so that a stuck card cannot write into the next."""

    def __init__(self) -> None:
        self.blocks: queue.Queue[_Block] = queue.Queue(_QUEUE_BLOCKS)
        self._dropped = 0

    def callback(self, data: Any, frames: int, time: Any, status: Any) -> None:
        block = _Block(
            bytes(data), time.inputBufferAdcTime, status.input_overflow, status.input_underflow, self._dropped
        )
        try:
            self.blocks.put_nowait(block)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1


class PortAudioMicrophone:
    """One channel of an input device, resampled where the card cannot do the model's rate.

    Raises:
        UnavailableError: PortAudio or the input device is not there.
        UsageError: the device has no such channel.
    """

    can_wait = False
    reopens = True

    def __init__(self, device: str | None, rate_hz: int, options: Options | None = None) -> None:
        self._options = options or Options()
        self._label = "sounddevice" + (f":{device}" if device else "")
        self.name = self._label
        self.xruns = self.overruns = 0
        self.stream_id = ""
        self._device: str | int | None = int(device) if device and device.isdecimal() else device
        self._rate_hz = rate_hz
        self._column = (self._options.channel or 1) - 1
        self._gain = factor(self._options.gain_db) if self._options.gain_db else None
        self._sounddevice = import_sounddevice()
        self._inlet = _Inlet()
        self._stream: Any = None
        self._channels = 1
        self._card_rate_hz = rate_hz
        self._resampler: Resampler | None = None
        self._continuity = Continuity(rate_hz)
        self._settling: list[Pcm16] | None = None
        self._waited_s = 0.0
        self._lost = False
        self._stuck: list[threading.Thread] = []
        self._choose_format()

    def _choose_format(self) -> None:
        """Find rate and channels that the card accepts, the model's own rate first."""
        sounddevice = self._sounddevice
        try:
            card = sounddevice.query_devices(self._device, "input")
        except (ValueError, sounddevice.PortAudioError) as error:
            raise UnavailableError(f"{self._label}: no such input device: {_one_line(error)}") from None
        most = int(card["max_input_channels"])
        least = self._column + 1
        if least > most:
            raise UsageError(f"{self._label}: channel {least}: the card has {most}")
        reason = ""
        for rate_hz in (self._rate_hz, round(card["default_samplerate"]), 48_000, 44_100):
            for channels in sorted({least, max(least, min(2, most)), most}):
                try:
                    sounddevice.check_input_settings(self._device, channels, "int16", samplerate=rate_hz)
                except (ValueError, sounddevice.PortAudioError) as error:
                    reason = _one_line(error)
                    continue
                self._card_rate_hz, self._channels = rate_hz, channels
                notes = [] if rate_hz == self._rate_hz else [f"resampled from {rate_hz} Hz"]
                notes += self._options.notes(most) if self._options.channel else self._options.notes(1)
                self.name = self._label + (f" ({', '.join(notes)})" if notes else "")
                return
        raise UnavailableError(f"{self._label}: records neither {self._rate_hz} Hz nor a usual rate: {reason}")

    def open(self) -> str:
        """Start recording."""
        self.close()
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        if len(self._stuck) >= _MOST_STUCK:
            raise UnavailableError(f"{self._label}: its driver hangs: unplug the card, or restart the machine")
        if self._lost and not self._stuck:
            self._look_for_cards()
        self._choose_format()
        self._begin()
        self._inlet = inlet = _Inlet()
        try:
            self._stream = self._sounddevice.RawInputStream(
                samplerate=self._card_rate_hz,
                device=self._device,
                channels=self._channels,
                dtype="int16",
                blocksize=round(_BLOCK_S * self._card_rate_hz),
                callback=inlet.callback,
            )
            self._stream.start()
        except self._sounddevice.PortAudioError as error:
            self.close()
            self._lost = True
            raise UnavailableError(f"{self._label}: {_one_line(error)}") from None
        self._lost = False
        return self.stream_id

    def _look_for_cards(self) -> None:
        """PortAudio knows only the cards that were there when it started: it is started again."""
        sounddevice = self._sounddevice
        try:
            sounddevice._terminate()  # noqa: SLF001 - there is no public way
            sounddevice._initialize()  # noqa: SLF001
        except sounddevice.PortAudioError as error:
            raise UnavailableError(f"{self._label}: PortAudio does not start again: {_one_line(error)}") from None

    def _begin(self) -> None:
        self.stream_id = f"card-{secrets.token_hex(6)}"
        self._resampler = None
        if self._card_rate_hz != self._rate_hz:
            self._resampler = Resampler(self._card_rate_hz, self._rate_hz)
        self._continuity = Continuity(self._card_rate_hz)
        self._settling = None
        self._waited_s = 0.0

    def read(self) -> Pcm16 | None:
        """The next block of the card."""
        try:
            block = self._inlet.blocks.get(timeout=_READ_TIMEOUT_S)
        except queue.Empty:
            self._wait_on()
            return _NOTHING
        self._waited_s = 0.0
        frames: Pcm16 = np.frombuffer(block.data, dtype=np.int16)[self._column :: self._channels]
        if self._is_lost(block, len(frames)):
            self._settling = []
            if block.underflow:
                # Zeros stand in it for what did not come.
                return _NOTHING
        if self._settling is None:
            return self._convert(frames)
        self._settling.append(frames)
        if sum(map(len, self._settling)) < _SETTLE_S * self._card_rate_hz:
            return _NOTHING
        frames = np.concatenate(self._settling)
        self._begin()
        return self._convert(frames)

    def _wait_on(self) -> None:
        self._waited_s += _READ_TIMEOUT_S
        problem = ""
        if self._stream is None or not self._stream.active:
            problem = "the card went away"
        elif self._waited_s >= _SILENT_CARD_S:
            problem = f"the card has been silent for {_SILENT_CARD_S:.0f} s"
        if problem:
            self._lost = True
            raise UnavailableError(f"{self._label}: {problem}")

    def _is_lost(self, block: _Block, frames: int) -> bool:
        """Count what went wrong before this block; true when sound is missing there."""
        flagged = block.overflow or block.underflow
        missing = self._continuity.lost(frames, block.adc_s, flagged=flagged)
        self.overruns += block.dropped
        self.xruns += block.dropped + (flagged or missing)
        if missing or block.dropped or block.underflow:
            self._continuity.restart()
            return True
        return False

    def _convert(self, pcm: Pcm16) -> Pcm16:
        if self._resampler is None:
            return pcm if self._gain is None else amplify(pcm, self._gain)
        return self._resampler.feed(pcm * ((self._gain or np.float32(1)) / np.float32(32768)))

    def close(self) -> None:
        """Stop recording; a card whose driver hangs is left to itself."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        closing = threading.Thread(target=stream.close, name="close-card", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)
        if closing.is_alive():
            self._stuck.append(closing)
            log.warning("%s: its driver hangs; left alone", self._label)
            # At its own end PortAudio would wait for this card, and the process never end.
            atexit.unregister(self._sounddevice._exit_handler)  # noqa: SLF001


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
