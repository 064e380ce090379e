"""A small plan on models with random weights: what they decide does not matter, that it is recorded does."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
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
