"""The import contracts hold, and they notice when somebody breaks them."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edge", "rig", "export", "firmware_models")
MAX_LINES = 400
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [*command, "--no-cache", "--no-logo"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=lambda _, names: skipped(names))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def skipped(names: list[str]) -> set[str]:
    return {name for name in names if "." in name and not name.endswith(".py")} | {"__pycache__"}


def test_contracts_hold(copy: Path) -> None:
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("edge/errors.py", "import firmware_models.frontend", "One way down"),
        ("firmware_models/frontend.py", "import export.parity", "One way down"),
        ("export/parity.py", "import rig.plan", "One way down"),
        ("edge/bundle/reading.py", "import onnx", "A device has no workstation library"),
        ("edge/sound/ring.py", "from scipy import signal", "A device has no workstation library"),
        ("rig/attacks/__init__.py", "from firmware_models import evaluation", "Attacks know nothing of our models"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(copy: Path, module: str, line: str, contract: str) -> None:
    with (copy / module).open("a") as file:
        file.write(f"\n\ndef _late() -> None:\n    {line}\n")  # hidden in a function, as it would be
    result = lint_imports(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = [entry for entry in result.stdout.splitlines() if entry.endswith("BROKEN")]
    assert any(contract in entry for entry in broken), result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    relative = path.relative_to(ROOT)
    assert text.count("\n") <= MAX_LINES, f"{relative}: split it, more than {MAX_LINES} lines"
    assert "utils" not in relative.as_posix(), f"{relative}: name it after what it does"
    commands = relative.parts[:2] in {("rig", "cli"), ("edge", "cli")}
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if __name__ ==")]
    for node in ast.walk(tree):
        where = f"{relative}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: assert vanishes under -O; raise an error of edge.errors"
        if isinstance(node, ast.Call) and not commands:
            called = ast.unparse(node.func)
            assert called not in {"print", "exit", "quit", "sys.exit", "SystemExit"}, (
                f"{where}: library code neither prints nor exits ({called})"
            )
