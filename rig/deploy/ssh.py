"""One ssh connection to a machine, over which scripts run and files travel.

The system's own ``ssh`` connects, so that its configuration, agents, jump hosts and host key checks hold, and a person
can type a password once. Later sessions share that connection (``ControlMaster``).
"""

from __future__ import annotations

import contextlib
import io
import re
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge.errors import UnavailableError
from firmware_models.progress import Progress, silent
from rig.deploy.script import UPLOAD, UPLOADED, Script
from rig.deploy.target import Target

SSH_MISSING = "ssh is missing here: apt-get install openssh-client"
_CONNECT_TIMEOUT_S = 20
_ALIVE_S = 15
_SCRIPT_TIMEOUT_S = 120.0
_MAX_OUTPUT_CHARACTERS = 1 << 20
_UPLOADS = re.compile(re.escape(UPLOAD) + "[A-Za-z0-9]{8}")
_PLAIN = "/bin/sh -s"
_SUDO = "sudo -n -- /bin/sh -s"
# ``read`` takes no byte more than its line: a password that sudo did not ask for is dropped here and never run.
_SUDO_WITH_PASSWORD = (
    "sudo -S -k -p '' -- /bin/sh -c "  # noqa: S105 - a command
    "'while IFS= read -r line; do if [ \"$line\" = earshot-begin ]; then exec /bin/sh -s; fi; done'"
)


@dataclass(frozen=True)
class Result:
    """How a script ended and what it said."""

    code: int
    output: str
    errors: str

    @property
    def last_words(self) -> str:
        """The end of what it said, in one line, for an error message."""
        lines = [line.strip() for line in (self.errors or self.output).splitlines() if line.strip()]
        return " | ".join(lines[-3:]) or f"exit code {self.code}"


class Remote:
    """A machine that is connected, see :func:`connected`."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self._folder = folder
        self._as_root = _PLAIN
        self._password: str | None = None

    def become_root(self, password: str | None = None) -> None:
        """Let scripts that need it run by sudo from now on, with or without a password.

        Raises:
            UnavailableError: sudo refuses.
        """
        self._as_root = _SUDO if password is None else _SUDO_WITH_PASSWORD
        self._password = password
        if self._run(self._as_root, "exit 0\n", password, 30.0, None).code:
            raise UnavailableError(f"{self.target}: sudo refuses: check the password and that the user may use sudo")

    def run(
        self,
        script: Script,
        *,
        uploaded: str = UPLOADED,
        as_root: bool = True,
        timeout_s: float = _SCRIPT_TIMEOUT_S,
        line: Callable[[str], None] | None = None,
    ) -> Result:
        """Run a script to its end.

        ``uploaded`` is what :meth:`upload` gave; ``line`` is called with each line of the output as it comes.

        Raises:
            UnavailableError: the connection broke, or the time is up.
        """
        command, password = (self._as_root, self._password) if as_root else (_PLAIN, None)
        return self._run(command, script.text(uploaded), password, timeout_s, line)

    def _run(
        self, command: str, text: str, password: str | None, timeout_s: float, line: Callable[[str], None] | None
    ) -> Result:
        head = "" if password is None else f"{password}\nearshot-begin\n"
        with self._session(command, timeout_s) as session:
            stdin, out = _pipes(session)
            with contextlib.suppress(BrokenPipeError), stdin:
                stdin.write((head + text).encode())
            output, length = [], 0
            for raw in out:
                decoded = raw.decode(errors="replace")
                length += len(decoded)
                if length <= _MAX_OUTPUT_CHARACTERS:
                    output.append(decoded)
                if line is not None:
                    line(decoded.rstrip("\n"))
        return self._ended(session, "".join(output))

    def upload(self, files: Mapping[str, Path | bytes], progress: Progress = silent) -> str:
        """Send files into a new folder which only the login and root can read, and return its path.

        ``progress`` counts bytes.

        Raises:
            UnavailableError: the connection broke, or there is no space.
        """
        made = self.run(Script("upload.sh", "make"), as_root=False)
        folder = made.output.strip()
        if made.code or not _UPLOADS.fullmatch(folder):
            raise UnavailableError(f"{self.target}: /var/tmp takes no files: {made.last_words}")
        try:
            with self._session(f"tar -x -f - -C {folder}", 3600.0) as session:
                stdin, out = _pipes(session)
                with contextlib.suppress(BrokenPipeError), stdin:
                    _pack(files, stdin, progress)
                out.read()
            result = self._ended(session, "")
        except BaseException:
            self.discard(folder)
            raise
        if result.code:
            self.discard(folder)
            raise UnavailableError(f"{self.target}: sending files failed: {result.last_words}")
        return folder

    def discard(self, folder: str) -> None:
        """Remove what :meth:`upload` made; where the connection is gone, its folder stays."""
        with contextlib.suppress(UnavailableError):
            self.run(Script("upload.sh", "remove", (folder,)), as_root=False, timeout_s=30)

    @contextlib.contextmanager
    def _session(self, command: str, timeout_s: float) -> Iterator[subprocess.Popen[bytes]]:
        words = ssh_command(self.target, self._folder, ("-o", "ControlMaster=no", "-o", "BatchMode=yes"), command)
        with (self._folder / "errors").open("wb") as errors:
            session = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            session.kill()

        timer = threading.Timer(timeout_s, end)
        timer.start()
        try:
            with session:
                yield session
        except BaseException:
            session.kill()
            raise
        finally:
            timer.cancel()
        if overdue.is_set():
            raise UnavailableError(f"{self.target}: no answer within {timeout_s:.0f} s: try again")

    def _ended(self, session: subprocess.Popen[bytes], output: str) -> Result:
        with (self._folder / "errors").open(encoding="utf-8", errors="replace") as file:
            errors = file.read(_MAX_OUTPUT_CHARACTERS)
        result = Result(session.returncode, output, errors)
        if session.returncode == 255:
            raise UnavailableError(f"{self.target}: the connection broke: {result.last_words}: try again")
        return result


@contextlib.contextmanager
def connected(target: Target) -> Iterator[Remote]:
    """Connect to ``target`` while the block lasts.

    Raises:
        UnavailableError: ssh is missing, or cannot connect.
    """
    if shutil.which("ssh") is None:
        raise UnavailableError(SSH_MISSING)
    # Not $TMPDIR: the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="earshot-", dir="/tmp") as name:
        folder = Path(name)
        options = ["-T", "-o", "ControlMaster=yes", "-o", "ControlPersist=no", "-o", "RemoteCommand=none"]
        options += ["-o", f"ConnectTimeout={_CONNECT_TIMEOUT_S}", "-o", f"ServerAliveInterval={_ALIVE_S}"]
        with (folder / "log").open("wb") as log:
            # It lasts as long as ``cat`` there has its input from here: however this process ends, it ends too.
            master = subprocess.Popen(
                ssh_command(target, folder, options, "cat"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        stdin, out = _pipes(master)
        try:
            if not _echoes(stdin, out):
                said = (folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
                reason = " ".join(line.strip() for line in said[-3:]).strip() or "the connection ended"
                raise UnavailableError(f"{target}: ssh cannot connect: {reason}: mend it until 'ssh {target}' works")
            yield Remote(target, folder)
        finally:
            with contextlib.suppress(BrokenPipeError):
                stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                master.wait(2)
            master.kill()
            master.wait()
            out.close()


def ssh_command(target: Target, folder: Path, options: list[str] | tuple[str, ...], command: str) -> list[str]:
    """The command line of ssh for a session over the connection kept in ``folder``."""
    return ["ssh", *target.options(), *options, "-o", f"ControlPath={folder}/s", "--", str(target), command]


def _echoes(stdin: IO[bytes], out: IO[bytes]) -> bool:
    mark = f"earshot-{secrets.token_hex(8)}\n".encode()
    with contextlib.suppress(BrokenPipeError):
        stdin.write(mark)
        stdin.flush()
    # A login's own files may print something first.
    return any(line.endswith(mark) for line in iter(out.readline, b""))


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("a session has pipes")
    return process.stdin, process.stdout


class _Counting(io.RawIOBase):
    def __init__(self, sink: IO[bytes], total: int, progress: Progress) -> None:
        self._sink, self._total, self._progress, self._done = sink, total, progress, 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._sink.write(data)
        self._done += len(data)
        self._progress(min(self._done, self._total), self._total, "bytes sent")
        return len(data)


def _pack(files: Mapping[str, Path | bytes], sink: IO[bytes], progress: Progress) -> None:
    sizes = {name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in files.items()}
    counting = _Counting(sink, max(1, sum(sizes.values())), progress)
    with tarfile.open(fileobj=counting, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = sizes[name], 0o600
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                archive.addfile(member, file)
