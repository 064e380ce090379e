"""A device has no workstation library: checked where it counts, in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "torch", "onnx", "onnxscript", "scipy", "pyroomacoustics", "matplotlib", "typer", "rich", "amqtt", "pyarrow",
    "cryptography", "rig", "export", "firmware_models",
}  # fmt: skip
HEAVY = {"numpy", "onnxruntime", "pydantic", "paho", "nacl", "soundfile", "sounddevice", "soxr"}
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "edge").rglob("*.py")
)


def _loaded_by(code: str) -> set[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nimport json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_no_module_of_the_device_loads_a_forbidden_one() -> None:
    assert "edge.agent.device" in MODULES
    assert "edge.sound.microphones.socket" in MODULES
    assert _loaded_by("import " + ", ".join(MODULES)) & FORBIDDEN == set()


def test_the_check_itself_can_fail() -> None:
    assert _loaded_by("import firmware_models.progress") & FORBIDDEN == {"firmware_models"}


@pytest.mark.parametrize("module", ["edge", "edge.cli"])
def test_help_waits_for_nothing_heavy(module: str) -> None:
    allowed = {"edge": set(), "edge.cli": {"pydantic"}}[module]
    assert _loaded_by(f"import {module}") & HEAVY <= allowed


def test_reading_words_of_the_bench_needs_no_inference_library() -> None:
    loaded = _loaded_by("import edge.messages, edge.sound.audio_stream, edge.mqtt.broker_url, edge.bundle.reading")
    assert not loaded & {"onnxruntime", "nacl", "paho", "sounddevice", "soundfile"}
