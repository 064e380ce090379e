"""No bytes from a network, a file or a user make a parser crash, grow, or say what no log may hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SMALL, FULL = 4_000, 5_000_000
# Strings that pydantic caches come and go; a leak of one object per payload would be millions.
GROWN_BLOCKS = 50_000


def _fuzz(runs: int, folder: Path, timeout_s: float, jobs: int = 1) -> list[dict[str, Any]]:
    pytest.importorskip("atheris", reason="atheris is missing: pip install atheris (it has wheels for x86-64 Linux)")
    command = [sys.executable, str(Path(__file__).with_name("fuzzing_process.py")), str(runs), "1", str(folder)]
    process = subprocess.run(
        [*command, str(jobs)], capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads(line) for line in process.stdout.splitlines()]


def _check(reports: list[dict[str, Any]], runs: int) -> None:
    assert len(reports) >= 25
    for report in reports:
        assert report["runs"] == report["accepted"] + report["refused"] == runs, report
        # Both ways out of the parser were taken.
        assert report["accepted"] > 0, report
        assert report["refused"] > 0, report
        assert report["grown_blocks"] < GROWN_BLOCKS, report


def test_some_payloads_for_every_parser(tmp_path):
    _check(_fuzz(SMALL, tmp_path, 120), SMALL)


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_five_million_payloads_for_every_parser(tmp_path):
    reports = _fuzz(FULL, tmp_path, 3 * 3600, jobs=os.cpu_count() or 1)
    for report in reports:
        print(json.dumps(report))
    _check(reports, FULL)
