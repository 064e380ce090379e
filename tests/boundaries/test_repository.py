"""What git tracks: no keys, nothing large, no path of one machine; pins for everything."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "refuse_files.py"


@pytest.fixture(scope="module")
def refuse_files() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refuse_files", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_tracked_file_is_refused(refuse_files: ModuleType) -> None:
    try:
        paths = refuse_files.tracked(ROOT)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs git and a checkout: {error}")
    assert SCRIPT in paths
    assert [line for path in paths for line in refuse_files.findings(path)] == []


def private_key(kind: str) -> bytes:
    return f"-----BEGIN {kind}PRIVATE KEY-----\nMC4CAQ==\n".encode()  # put together here, so this file is no finding


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.txt", private_key(""), "private key"),
        ("signing", b"\0\0" + private_key("OPENSSH "), "private key"),
        ("zoo.pem", b"", "private key by its name"),
        ("clip.flac", b"\0" * (2 * 1024 * 1024 + 1), "allowed 2097152"),
        ("train.yaml", b"data: /" + b"home/anna/speech\n", "one machine only"),
        ("run.sh", b"cd /" + b"root/lab\n", "one machine only"),
    ],
)
def test_the_check_finds(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert reason in result.stdout
    assert result.stdout.count("\n") == 1


def test_the_check_lets_harmless_files_pass(tmp_path: Path, refuse_files: ModuleType) -> None:
    path = tmp_path / "zoo.pub"
    path.write_text("-----BEGIN PUBLIC KEY-----\nsee https://example.org/home/anna/ and ./root/x\n")
    assert list(refuse_files.findings(path)) == []
