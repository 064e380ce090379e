"""The updating process as its parent sees it, and how the parent begins again."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError

from edge.mqtt.broker_url import PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE
from edge.update.job import MAX_LINE_BYTES, Job, Stage

if TYPE_CHECKING:
    import subprocess

_READ_BYTES = 64 << 10
# It talks to no broker and not to the service manager.
_NOT_ITS_OWN = {PASSWORD_VARIABLE, PASSWORD_FILE_VARIABLE, "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}


class UpdatingProcess:
    """One run of ``python -m edge.update.worker``; it ends with the thread that started it."""

    def __init__(self, job: Job) -> None:
        import subprocess  # noqa: PLC0415 - a device that updates nothing needs none of it

        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "edge.update.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
            bufsize=0,
            env={name: value for name, value in os.environ.items() if name not in _NOT_ITS_OWN},
        )
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("a process without the pipes that it was given")
        self._stdout = stdout
        os.set_blocking(stdout.fileno(), False)
        # A job is shorter than a pipe holds; a process that has died already is noticed when it is listened to.
        with contextlib.suppress(BrokenPipeError), stdin:
            stdin.write(job.model_dump_json(exclude_none=True).encode() + b"\n")
        self._unread = b""
        self._over = False

    def stages(self) -> list[Stage]:
        """What it has said since the last call; the last stage is always ``installed`` or ``failed``."""
        stages: list[Stage] = []
        while not self._over:
            try:
                data = os.read(self._stdout.fileno(), _READ_BYTES)
            except BlockingIOError:
                return stages
            self._unread += data
            *lines, self._unread = self._unread.split(b"\n")
            stages += filter(None, map(_stage, lines))
            final = bool(stages) and stages[-1].stage in {"installed", "failed"}
            if final or not data or len(self._unread) > MAX_LINE_BYTES:
                code = self.end()
                if not final:
                    stages.append(Stage(stage="failed", detail=f"the updating process ended with code {code}"))
        return stages

    @property
    def over(self) -> bool:
        """Whether it has said its last word."""
        return self._over

    def end(self) -> int:
        """Kill it if it still runs; return its exit code, negative for a signal."""
        self._over = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._stdout.close()
        return self._process.wait()


def _stage(line: bytes) -> Stage | None:
    try:
        return Stage.model_validate_json(line)
    except ValidationError:
        return None


def restart() -> NoReturn:
    """Re-execute this program with the same arguments and environment; its locks and sockets are closed by that.

    It stays the same process, so that a service manager sees no end of it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own command line
