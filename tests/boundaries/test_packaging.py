"""The distribution: what it holds, what it needs, and that every version of it is pinned."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("edge", "rig", "export", "firmware_models")
WORKSTATION_ONLY = {"torch", "onnx", "onnxscript", "scipy", "pyroomacoustics", "matplotlib", "typer", "rich", "amqtt"}


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    requirements = [each for each in map(Requirement, filter(None, lines)) if not each.marker or each.marker.evaluate()]
    for requirement in requirements:
        assert re.fullmatch(r"==[0-9][^*+,]*", str(requirement.specifier)), f"{requirement} is no exact public version"
    assert len({canonicalize_name(each.name) for each in requirements}) == len(requirements)
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in requirements}


def closure(extras: set[str]) -> set[str]:
    """The installed distributions that earshot needs with these extras, directly or not."""
    seen: set[tuple[str, str]] = set()
    todo = [("earshot", extra) for extra in {"", *extras}]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(requirement.name), each) for each in {"", *requirement.extras}]
    return {name for name, _ in seen} - {"earshot"}


def test_every_package_of_the_environment_is_pinned() -> None:
    pinned = pins()
    needed = closure({"workstation", "dev"})
    assert {"torch", "numpy", "onnxruntime", "pytest", "hatchling"} <= needed
    assert sorted(needed - set(pinned)) == []


def test_the_environment_has_the_versions_pinned() -> None:
    pinned = pins()
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in closure({"workstation", "dev"})}
    assert {name: version for name, version in installed.items() if pinned[name] != version} == {}


def test_direct_dependencies_allow_their_pins() -> None:
    pinned = pins()
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["workstation"], *extras["dev"]]:
        requirement = Requirement(line)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, line


def test_a_device_installs_no_workstation_library() -> None:
    assert not closure(set()) & WORKSTATION_ONLY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    # A fixed date: zip cannot store one before 1980, which some build machines set.
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )
    (path,) = out.glob("earshot-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_packages_and_their_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package in PACKAGES:
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= names
        data = [path for path in (ROOT / package).rglob("*") if path.suffix in {".yaml", ".earshot", ".pub", ".flac"}]
        assert {path.relative_to(ROOT).as_posix() for path in data} <= names
    assert "firmware_models/recipes/lms.yaml" in names
    stray = {name for name in names if name.split("/")[0] not in {*PACKAGES} and ".dist-info/" not in name}
    assert not stray
    assert not [name for name in names if name.endswith((".pyc", ".pem", ".key"))]


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    folder = metadata.rsplit("/", 1)[0]
    text = wheel.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: <3.14,>=3.11" in text
    licence = wheel.read(f"{folder}/licenses/LICENSE").decode()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    scripts = wheel.read(f"{folder}/entry_points.txt").decode()
    assert "earshot = rig.cli.main:main" in scripts
    assert "earshot-device = edge.cli:main" in scripts
