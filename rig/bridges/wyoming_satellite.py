"""An assistant with a microphone of its own: the bridge plays to it, and its satellite's events say what it heard."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from wyoming.wake import Detection

from edge.errors import DataError, UnavailableError
from edge.sound.ring import Pcm16
from rig.bridges.assistant import Description
from rig.bridges.player import Player
from rig.bridges.utterance import Utterance
from rig.bridges.wyoming_info import read_detection
from rig.bridges.wyoming_wire import Address, Wire

log = logging.getLogger(__name__)

MAX_SATELLITES = 4
_POLL_S = 0.2
_KEPT_EVENTS = 256


@dataclass(frozen=True)
class _Heard:
    """A detection, or a fault in one, and when it came on the monotonic clock."""

    at_s: float
    word: str = ""
    fault: str = ""


class WyomingSatellite:
    """Listens where a satellite sends its events (``--event-uri`` of wyoming-satellite).

    Args:
        address: where to listen.
        words: the wake words that count.
        utterance: what stands around a window; its pace is real time.
        player: makes the sound that the satellite's microphone hears.
        late_s: how long after the sound an event may still come.

    Raises:
        UnavailableError: the address cannot be used.
    """

    def __init__(
        self, address: Address, words: Sequence[str], *, utterance: Utterance, player: Player, late_s: float
    ) -> None:
        self._address = address
        self._player = player
        self._late_s = late_s
        self.description = Description("satellite", tuple(sorted(words)), {"utterance": utterance.model_dump()})
        self._heard: deque[_Heard] = deque(maxlen=_KEPT_EVENTS)
        self._connected = 0
        self._lock = threading.Lock()
        self._listener = address.listen()
        threading.Thread(target=self._accept, name="satellites", daemon=True).start()

    def check(self) -> None:
        """Whether a satellite is connected; see :class:`rig.bridges.assistant.Assistant`."""
        if not self._connected:
            raise UnavailableError(f"no satellite sends its events to {self._address.uri}: start it with that address")

    def hear(self, pcm: Pcm16) -> str | None:
        """Play a window and see which detections come from its first sample on."""
        self.check()
        with self._lock:
            self._heard.clear()
        began_s = self._player.play(pcm)
        time.sleep(self._late_s)
        with self._lock:
            heard = list(self._heard)
        self.check()
        for each in heard:
            if each.fault:
                raise DataError(each.fault)
            if each.at_s < began_s:
                raise DataError(f"a detection of {each.word} before the window began")
        return heard[0].word if heard else None

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                refused = self._connected >= MAX_SATELLITES
                self._connected += not refused
            if refused:
                log.warning("refused a satellite: %d are connected already", MAX_SATELLITES)
                connection.close()
                continue
            threading.Thread(target=self._follow, args=(connection,), name="satellite", daemon=True).start()

    def _follow(self, connection: socket.socket) -> None:
        log.info("a satellite is connected")
        reason = ""
        try:
            with Wire(connection, "satellite") as wire:
                while True:
                    event = wire.receive(_POLL_S)
                    if event is not None and Detection.is_type(event.type):
                        detected = read_detection("satellite", event, self.description.words)
                        self._note(_Heard(time.monotonic(), word=detected.name or ""))
        except DataError as error:
            # What it meant is unknown, so what it heard in this trial is.
            self._note(_Heard(time.monotonic(), fault=str(error)))
            reason = str(error)
        except (UnavailableError, OSError) as error:
            reason = str(error)
        finally:
            with self._lock:
                self._connected -= 1
        log.warning("a satellite is gone: %s", reason)

    def _note(self, heard: _Heard) -> None:
        with self._lock:
            self._heard.append(heard)
