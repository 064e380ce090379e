"""A small plan on models with random weights: what they decide does not matter, that it is recorded does."""

from __future__ import annotations

import importlib.util
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

WORDS = ("yes", "no", "up", "down")


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> Path:
    """Six speakers who say four words: noise of many levels in the layout of Speech Commands."""
    folder = tmp_path_factory.mktemp("recordings")
    generator = np.random.default_rng(0)
    for word in WORDS:
        (folder / word).mkdir()
        for speaker in range(6):
            sound = generator.standard_normal(16000) * 10 ** generator.uniform(-3, -1)
            soundfile.write(folder / word / f"{speaker:08x}_nohash_0.wav", sound.clip(-1, 1), 16000, subtype="PCM_16")
    return folder


@dataclass
class Rig:
    """The command ``earshot`` as a user runs it, in its own process with its own cache."""

    cache: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {**os.environ, "EARSHOT_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rig.cli.main", *map(str, arguments)]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # A shell starts what it puts into the background deaf to Ctrl-C, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - takes no lock
        )

    def run(self, *arguments: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture(scope="session")
def rig(tmp_path_factory) -> Rig:
    return Rig(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def write_plan(tmp_path, recordings, fp32_bundle, keys) -> Callable[..., Path]:
    def write(**changes) -> Path:
        document = {
            "schema": 1,
            "name": "small",
            "seed": 1,
            "bundles": [str(fp32_bundle)],
            "trust": [str(keys.public)],
            "clips": {"data": str(recordings), "split": "all", "count": 12},
            "attacks": [
                {"name": "benign"},
                {"name": "random-sign", "eps": [0.005]},
                {"name": "fgsm", "eps": [0.005]},
            ],
            "delays_ms": [0, 100],
            **changes,
        }
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def concluded(folder: Path) -> list[str]:
    """The trials of a session that count, read while the rig may be writing."""
    path = folder / "journal.sqlite"
    if not path.is_file():
        return []
    database = sqlite3.connect(path, timeout=10)
    try:
        return [row[0] for row in database.execute("SELECT trial_id FROM attempts WHERE outcome <> 'invalid'")]
    finally:
        database.close()


@pytest.fixture(name="concluded")
def _concluded() -> Callable[[Path], list[str]]:
    return concluded


class Assistant:
    """A voice assistant that is not ours, in a process of its own; see ``assistant_process.py``."""

    LABEL, WORD = "stop", "okay_stop"

    def __init__(self, folder: Path) -> None:
        from firmware_models import data, zoo

        self.log = folder / "assistant.log"
        self._bundle = ["--bundle", zoo.bundle("lms-int8"), "--trust", zoo.PUBLIC_KEY]
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments: list[str] = []
        self.clips = data.load(zoo.CLIPS, "all")
        path = Path(__file__).with_name("assistant_process.py")
        specification = importlib.util.spec_from_file_location("assistant_process", path)
        self.code = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self.code)

    def start(self, *arguments: str) -> None:
        self._arguments = [*arguments]
        self.start_again()

    def start_again(self) -> None:
        script = Path(__file__).with_name("assistant_process.py")
        command = [sys.executable, script, *self._arguments, *self._bundle, "--word", f"{self.LABEL}={self.WORD}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def windows(self, label: str) -> np.ndarray:
        """The shipped clips of a word, int16 (n, 16000)."""
        wanted = self.clips.labels.index(label)
        return np.asarray(self.clips.pcm[self.clips.label_index == wanted], np.int16)

    def hears(self, window: np.ndarray, *, lead_ms: int, tail_ms: int) -> str | None:
        """What the assistant must say of a window, computed with its own code in this process."""
        sound = np.concatenate([np.zeros(16 * lead_ms, np.int16), window, np.zeros(16 * tail_ms, np.int16)])
        detector = self.code.Detector(Path(self._bundle[1]), Path(self._bundle[3]), {self.LABEL: self.WORD})
        return next(iter(detector.feed(sound)), None)


@pytest.fixture
def assistant(tmp_path) -> Iterator[Assistant]:
    assistant = Assistant(tmp_path)
    yield assistant
    assistant.kill()
