"""Work in a child; each test forks from a fresh interpreter, because this one has threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.sound.level import FLOOR_DBFS, level_dbfs

ROOT = Path(__file__).resolve().parents[2]


def _run(code: str) -> subprocess.CompletedProcess[str]:
    start = f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\nfrom edge.bundle.apart import apart\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False, timeout=60)


def test_the_result_comes_back_and_what_was_imported_does_not() -> None:
    done = _run(
        "def work():\n"
        "    import numpy\n"
        "    return os.getpid(), bytes(numpy.arange(100_000, dtype='<i4'))\n"
        "child, data = apart(work)\n"
        "print(child != os.getpid(), len(data), 'numpy' in sys.modules)"
    )
    assert (done.returncode, done.stdout) == (0, "True 400000 False\n")


def test_an_error_for_the_user_comes_back_as_itself() -> None:
    done = _run(
        "from edge.errors import BundleError\n"
        "def work(): raise BundleError('x.earshot: unsigned')\n"
        "try: apart(work)\n"
        "except BundleError as error: print(error)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "x.earshot: unsigned\n", "")


def test_a_bug_in_the_child_is_a_bug() -> None:
    done = _run("apart(lambda: 1 // 0)")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "a child process ended with code 1" in done.stderr


def test_a_crash_of_the_child_is_reported() -> None:
    done = _run("apart(lambda: os.kill(os.getpid(), 9))")
    assert done.returncode == 1
    assert "a child process ended with code -9" in done.stderr


def test_levels_are_relative_to_full_scale() -> None:
    rms_dbfs, peak_dbfs = level_dbfs(np.full(100, 16384, np.int16))
    assert rms_dbfs == pytest.approx(-6.02, abs=0.01)
    assert peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert level_dbfs(np.full(10, -32768, np.int16)) == (0.0, 0.0)
    assert level_dbfs(np.zeros(10, np.int16)) == (FLOOR_DBFS, FLOOR_DBFS)
    assert level_dbfs(np.zeros(0, np.int16)) == (FLOOR_DBFS, FLOOR_DBFS)
