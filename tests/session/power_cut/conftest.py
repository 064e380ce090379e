"""Cutting the power of an updating device: a traced process, and the disk as a cut may leave it.

SIGKILL alone loses nothing that was written, since the kernel goes on. So there are two ways to cut: strace kills the
process at its n-th call of a kind, and a model of the disk, fed with a trace of all calls, gives what a disk may hold
when the power goes after each of them: data and names that were not synchronised may be there, lost or torn.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

# Which of them there are depends on the processor.
SPELLINGS = {
    "rename": "?rename,?renameat,?renameat2",
    "unlink": "?unlink,?unlinkat",
    "mkdir": "?mkdir,?mkdirat",
}
_TRACED = (
    *("write", "lseek", "openat", "fsync", "fdatasync", "mkdir", "mkdirat"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat"),
)
# An updating process makes none of these; if ever one does, the model must learn them.
_UNKNOWN = ("pwrite64", "writev", "ftruncate", "truncate", "link", "symlink", "sendfile", "copy_file_range")
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"^(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")


@dataclass
class File:
    """Its content, what of it is certain, and whether the two may differ. ``content`` is replaced, never changed."""

    content: bytes = b""
    certain: bytes = b""

    def left(self, how: str, rng: np.random.Generator) -> bytes:
        if how == "lost":
            return self.certain
        if how == "zeros":
            # The length has reached the disk, the data has not.
            return self.certain[: len(self.content)].ljust(len(self.content), b"\0")
        if how == "torn" and self.content != self.certain:
            at = int(rng.integers(0, max(len(self.content), len(self.certain)) + 1))
            return self.content[:at] + self.certain[at:]
        return self.content


@dataclass
class Disk:
    """Names and files of one folder; names are relative paths, a folder's file is None."""

    names: dict[str, File | None]
    certain_names: dict[str, File | None]
    # Changes of names that are not certain: {name: what it is now, or absent}, with the folders concerned.
    pending: list[tuple[dict[str, File | str | None], set[str]]] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> "Disk":
        names: dict[str, File | None] = {}
        for path in sorted(folder.rglob("*")):
            content = None if path.is_dir() else path.read_bytes()
            names[str(path.relative_to(folder))] = None if content is None else File(content, content)
        return cls(names, dict(names))

    def change(self, changes: dict[str, File | str | None]) -> None:
        _apply(self.names, changes)
        self.pending.append((changes, {str(Path(name).parent) for name in changes}))

    def synchronise(self, name: str) -> None:
        file = self.names.get(name)
        if file is not None:
            file.certain = file.content
            return
        for changes, folders in self.pending:
            if name in folders:
                _apply(self.certain_names, changes)
        self.pending = [each for each in self.pending if name not in each[1]]

    def states(self, rng: np.random.Generator, draws: int) -> Iterator[dict[str, bytes | None]]:
        """What may be there after a cut at this moment: the extremes, then draws where each part meets its own fate."""
        for names_kept, data in (("all", "all"), ("none", "lost"), ("all", "lost"), ("all", "zeros"), ("all", "torn")):
            yield self._state([names_kept == "all"] * len(self.pending), lambda how=data: how, rng)
        for _ in range(draws):
            kept = [bool(rng.integers(2)) for _ in self.pending]
            yield self._state(kept, lambda: ("all", "lost", "zeros", "torn")[rng.integers(4)], rng)

    def _state(self, kept, fate, rng) -> dict[str, bytes | None]:
        names = dict(self.certain_names)
        for keep, (changes, _) in zip(kept, self.pending, strict=True):
            if keep:
                _apply(names, changes)
        found = {}
        for name, file in names.items():
            if all(str(parent) in names for parent in Path(name).parents if str(parent) != "."):
                found[name] = None if file is None else file.left(fate(), rng)
        return found


def _apply(names: dict, changes: dict) -> None:
    for name, file in changes.items():
        if file == "absent":
            names.pop(name, None)
        else:
            names[name] = file


class Replay:
    """A trace done again on a model of the disk; ``folder`` is as it was before."""

    def __init__(self, folder: Path) -> None:
        self.disk = Disk.of(folder)
        self.said = ""
        self._root = str(folder)
        self._handles: dict[int, list] = {}  # descriptor -> [name, offset]

    def do(self, line: str) -> str | None:
        """Do one line of the trace; the name of the call if it was an operation on the folder."""
        call = _CALL.match(line)
        if call is None or call[3].startswith("-"):
            return None
        kind, arguments, result = call[1], call[2], int(call[3])
        strings = [bytes.fromhex(each.replace("\\x", "")) for each in _STRING.findall(arguments)]
        handle = _FD.match(arguments)
        if kind == "write" and handle and handle[1] == "1" and strings[0].startswith(b"said "):
            self.said = strings[0].decode().removeprefix("said ").strip()
        if kind in {"write", "fsync", "fdatasync", "lseek"}:
            at = self._handles.get(int(handle[1]))
            return None if at is None else self._on_handle(kind, at, strings, result)
        names = [self._inside(each.decode()) for each in strings]
        if kind == "openat":
            return self._open(names[0], arguments, result)
        if names[-1] is None:
            return None
        return self._on_names(kind, names)

    def _inside(self, path: str) -> str | None:
        if path == self._root:
            return "."
        return path.removeprefix(self._root + "/") if path.startswith(self._root + "/") else None

    def _open(self, name: str | None, arguments: str, descriptor: int) -> str | None:
        self._handles.pop(descriptor, None)
        if name is None:
            return None
        self._handles[descriptor] = [name, 0]
        if "O_CREAT" in arguments and name not in self.disk.names:
            self.disk.change({name: File()})
        elif "O_TRUNC" in arguments:
            self.disk.names[name].content = b""
        else:
            return None
        return "openat"

    def _on_handle(self, kind: str, at: list, strings: list[bytes], result: int) -> str | None:
        name, offset = at
        if kind == "lseek":
            at[1] = result
            return None
        if kind == "write":
            file, data = self.disk.names[name], strings[0]
            file.content = file.content[:offset].ljust(offset, b"\0") + data + file.content[offset + len(data) :]
            at[1] += len(data)
        else:
            self.disk.synchronise(name)
        return kind

    def _on_names(self, kind: str, names: list[str]) -> str:
        if kind in {"rename", "renameat", "renameat2"}:
            self.disk.change({names[0]: "absent", names[1]: self.disk.names[names[0]]})
        elif kind in {"unlink", "unlinkat"}:
            self.disk.change({names[0]: "absent"})
        else:
            assert kind in {"mkdir", "mkdirat"}, f"the model of the disk knows no {kind} yet"
            self.disk.change({names[0]: None})
        return kind


def replay(trace: str, folder: Path) -> Iterator[tuple[Disk, str, str]]:
    """The disk after each operation of a trace, the operation, and what was said last."""
    replayed = Replay(folder)
    for line in trace.splitlines():
        if (call := replayed.do(line)) is not None:
            yield replayed.disk, call, replayed.said


def lay_out(state: dict[str, bytes | None], folder: Path) -> str:
    """Write a state of the disk into an empty folder; returns its hash."""
    digest = hashlib.sha256()
    for name, content in sorted(state.items()):
        path = folder / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        digest.update(f"{name}\0{None if content is None else hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Ended:
    """How a deed ended: -9 where it was killed; what it had said, and the trace."""

    code: int
    said: str
    trace: str


class Actor:
    """Does deeds in traced processes, see ``actor.py``."""

    def __init__(self, strace: str, folder: Path, key: Path) -> None:
        self._strace = strace
        self._trace = folder / "trace"
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("actor.py"), key],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def do(self, deed: str, folder: Path, task: dict | None = None, *, kill_at: tuple[str, int] | None = None) -> Ended:
        """Do a deed and record it, or kill it when it makes its n-th call of a kind."""
        order = {"deed": deed, "folder": str(folder), "task": task or {}}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        process_id = self._line().removeprefix("pid ")
        what = ["-e", f"trace=?{',?'.join((*_TRACED, *_UNKNOWN))}", "-y", "-xx", "-s", "1000000"]
        if kill_at is not None:
            calls, count = SPELLINGS.get(kill_at[0], kill_at[0]), kill_at[1]
            what = ["-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={count}"]
        command = [self._strace, "-f", "-o", self._trace, *what, "-p", process_id]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            attached = tracer.stderr.readline()
            self._process.stdin.write(b"\n")
            assert "attached" in attached, f"strace cannot trace: {attached}"
            said = ""
            while not (line := self._line()).startswith("exit "):
                said = line.removeprefix("said ")
            tracer.stderr.read()
        return Ended(int(line.removeprefix("exit ")), said, self._trace.read_text())

    def _line(self) -> str:
        line = self._process.stdout.readline().decode().strip()
        assert line, "the actor has gone"
        return line


@pytest.fixture(scope="session")
def strace_program() -> str:
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is missing: apt-get install strace")
    probe = subprocess.run([program, "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace needs the permission to trace processes: {probe.stderr.strip()[:100]}")
    return program


@pytest.fixture(scope="session")
def actor(strace_program, keys, tmp_path_factory) -> Iterator[Actor]:
    made = Actor(strace_program, tmp_path_factory.mktemp("actor"), keys.public)
    yield made
    made.close()


@pytest.fixture(name="replay", scope="session")
def _replay():
    return replay


@pytest.fixture(scope="session")
def spellings() -> dict[str, str]:
    return SPELLINGS


@pytest.fixture(name="lay_out", scope="session")
def _lay_out():
    return lay_out
