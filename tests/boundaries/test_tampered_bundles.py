"""Thousands of forged bundles, and not one gets as far as onnxruntime.

Each is read in a process in which onnxruntime cannot be imported: a forgery that got that far would end it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SMALL, FULL = 600, 10_000


def _forgeries(tiny_bundle, count: int, folder: Path) -> dict[str, int]:
    process = subprocess.run(
        [
            *(sys.executable, "-W", "ignore:Duplicate name", str(Path(__file__).with_name("forgery_process.py"))),
            *(str(tiny_bundle.path), str(tiny_bundle.key), str(folder), str(count)),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, ""), process.stderr[-2000:]
    report: dict[str, int] = json.loads(process.stdout)
    return report


def _check(report: dict[str, int], count: int) -> None:
    assert report["refused"] == count
    assert report["accepted"] == report["crashed"] == 0, report
    # The unforged bundle is read by the same lines: they do not refuse everything.
    assert report["genuine"] == 1
    assert all(report[f"kind {kind}"] >= count // 20 for kind in report["kinds"].split()), report
    assert report["growth_mb"] <= 20, report


def test_every_forgery_is_refused(tiny_bundle, tmp_path):
    _check(_forgeries(tiny_bundle, SMALL, tmp_path), SMALL)


@pytest.mark.soak
def test_ten_thousand_forgeries(tiny_bundle, tmp_path):
    report = _forgeries(tiny_bundle, FULL, tmp_path)
    print(report)
    _check(report, FULL)
