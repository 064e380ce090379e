"""Sound out of this machine through any program that plays raw samples from its standard input."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import threading
import time

from edge.errors import UnavailableError, UsageError
from edge.sound.ring import Pcm16
from rig.bridges.utterance import Piece, Utterance

_END_TIMEOUT_S = 10.0


class Player:
    """Runs ``command`` once per utterance and gives it mono signed 16-bit samples at the pace of real time.

    Raises:
        UsageError: the command is empty, or its program is not installed.
    """

    def __init__(self, command: str, utterance: Utterance, stop: threading.Event) -> None:
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"--play {command!r}: {error}") from None
        if not self._arguments or shutil.which(self._arguments[0]) is None:
            raise UsageError(
                f"--play {command!r}: no such program, use e.g. 'aplay -q -t raw -f S16_LE -c 1 -r {utterance.rate_hz}'"
            )
        self._utterance = utterance
        self._stop = stop

    def play(self, pcm: Pcm16) -> float:
        """Play a window (samples,) with the silence around it to its end.

        Returns:
            when the window's first sample was handed over, on the monotonic clock.

        Raises:
            UnavailableError: the program failed.
        """
        began_s = 0.0
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(self._arguments, stdin=subprocess.PIPE, stdout=complaints, stderr=complaints)
            try:
                clock = self._utterance.clock()
                for piece in self._utterance.pieces(pcm):
                    if piece.at_sample <= 0:
                        began_s = time.monotonic()
                    self._give(process, piece)
                    if self._stop.wait(max(0.0, clock.due_s(piece) - time.monotonic())):
                        raise UnavailableError("the bridge was told to end")
                self._finish(process)
            except (OSError, subprocess.TimeoutExpired):
                process.kill()
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
            if process.returncode != 0:
                complaints.seek(0)
                words = " ".join(complaints.read(2000).decode(errors="replace").split())
                raise UnavailableError(f"--play: {self._arguments[0]} ended with {process.returncode} ({words[-200:]})")
        return began_s

    @staticmethod
    def _give(process: subprocess.Popen[bytes], piece: Piece) -> None:
        if process.stdin is not None:
            process.stdin.write(piece.pcm.astype("<i2").tobytes())
            process.stdin.flush()

    @staticmethod
    def _finish(process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        # What a player still holds is heard before it ends.
        process.wait(_END_TIMEOUT_S)
