"""A sound file as a microphone, played in real time."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from edge.errors import DataError, UnavailableError
from edge.sound.microphones.options import Options
from edge.sound.microphones.resampling import Resampler, factor, to_pcm16
from edge.sound.ring import Pcm16

_BLOCK_S = 0.05


class FileMicrophone:
    """One channel of a WAV or FLAC file, once or for ever; resampled where its rate differs.

    Raises:
        DataError: the file is missing, unreadable or empty, or has no such channel.
    """

    can_wait = True
    reopens = False

    def __init__(self, path: str, rate_hz: int, options: Options | None = None) -> None:
        options = options or Options()
        self.xruns = self.overruns = 0
        self.stream_id = ""
        self._path = Path(path)
        self._rate_hz = rate_hz
        self._loop = options.loop
        self._column = (options.channel or 1) - 1
        self._gain = factor(options.gain_db) if options.gain_db else None
        self._file: soundfile.SoundFile | None = None
        self._resampler: Resampler | None = None
        self._start_s = 0.0
        self._played_s = 0.0
        with self._open_file() as file:
            self._file_rate_hz = int(file.samplerate)
            notes = [] if self._file_rate_hz == rate_hz else [f"resampled from {self._file_rate_hz} Hz"]
            if self._column >= file.channels:
                raise DataError(f"{path}: channel {options.channel}: the file has {file.channels}")
            notes += options.notes(file.channels)
            if file.frames == 0:
                raise DataError(f"{path}: the file holds no sound")
        self.name = f"file:{path}" + (f" ({', '.join(notes)})" if notes else "")

    def _open_file(self) -> soundfile.SoundFile:
        if not self._path.is_file():
            raise DataError(f"{self._path}: no such sound file")
        try:
            return soundfile.SoundFile(self._path)
        except (soundfile.SoundFileError, OSError) as error:
            raise DataError(f"{self._path}: not a readable WAV or FLAC file: {error}") from None

    def open(self) -> str:
        """Begin at the start of the file."""
        self.close()
        self._file = self._open_file()
        if self._file_rate_hz != self._rate_hz:
            self._resampler = Resampler(self._file_rate_hz, self._rate_hz)
        self._start_s, self._played_s = time.monotonic(), 0.0
        self.stream_id = f"file-{secrets.token_hex(6)}"
        return self.stream_id

    def read(self) -> Pcm16 | None:
        """The next 50 ms, when their time has come."""
        if self._file is None:
            return None
        ahead_s = self._start_s + self._played_s - time.monotonic()
        if ahead_s > 0:
            time.sleep(min(ahead_s, 0.5))
        wanted = max(1, int(_BLOCK_S * self._file_rate_hz))
        sound = self._read_block(wanted)
        last = len(sound) < wanted
        self._played_s += len(sound) / self._file_rate_hz
        if last:
            self.close_file()
        if self._gain is not None:
            sound *= self._gain
        if self._resampler is not None:
            return self._resampler.feed(sound, last=last)
        return to_pcm16(sound)

    def _read_block(self, wanted: int) -> NDArray[np.float32]:
        file = self._file
        if file is None:
            return np.zeros(0, np.float32)
        blocks, count = [], 0
        try:
            while count < wanted:
                block: NDArray[np.float32] = file.read(wanted - count, dtype="float32", always_2d=True)[:, self._column]
                blocks.append(block)
                count += len(block)
                if count < wanted and not self._loop:
                    break
                if count < wanted:
                    file.seek(0)
        except (soundfile.SoundFileError, OSError) as error:
            raise UnavailableError(f"{self._path}: {error}") from None
        return np.concatenate(blocks)

    def close_file(self) -> None:
        """Close the file; what the resampler holds can still be read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file."""
        self.close_file()
        self._resampler = None
