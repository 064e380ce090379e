"""Devices on this machine: the agent in its own process, as it would run behind a real microphone."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from edge.mqtt.broker_url import BrokerUrl
from rig.devices.events import Events, ProcessEnded

STOP_TIMEOUT_S = 5.0
LOG_TAIL_LINES = 3


class LocalDevice:
    """One ``earshot-device run`` process.

    It ends with the rig, even when the rig is killed: its standard input is a pipe that closes then.

    Args:
        name: device name in topics.
        bundle: file to run.
        trust: public key files.
        operator: public key file of who commands it.
        broker: where it reports.
        sound: ``HOST:PORT`` of the rig's :class:`rig.devices.audio_server.AudioServer`.
        folder: keeps its outbox and its log.
        events: told when the process ends by itself.
    """

    def __init__(
        self,
        name: str,
        *,
        bundle: Path,
        trust: list[Path],
        operator: Path,
        broker: BrokerUrl,
        sound: str,
        folder: Path,
        events: Events,
    ) -> None:
        self.name = name
        self._events = events
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "edge.cli", "run", "--name", name, "--bundle", str(bundle)]
        for key in trust:
            self._command += ["--trust", str(key)]
        self._command += ["--operator", str(operator)]
        self._command += ["--broker", str(broker), "--microphone", f"socket:{sound}"]
        self._command += ["--state-dir", str(folder / name), "--exit-on-stdin-eof"]
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    @property
    def process_id(self) -> int | None:
        """The process that runs now."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, again if it ended."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=output, stderr=output)
        self._process = process
        threading.Thread(target=self._watch, args=(process,), name=f"watch-{self.name}", daemon=True).start()

    def last_words(self) -> str:
        """The end of its log, in one line, for an error message."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "no log"
        return " | ".join(lines[-LOG_TAIL_LINES:]) or "empty log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        process = self._process
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        exit_code = process.wait()
        if not self._stopping:
            self._events.put(ProcessEnded(self.name, exit_code))
