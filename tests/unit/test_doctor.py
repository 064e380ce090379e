"""Each line of the doctor's report, with something broken in each, and the fix that it names."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from edge.bundle.opening import open_classifier
from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from edge.doctor import machine
from edge.doctor import model as models
from edge.doctor.clock import Discipline, clock, discipline
from edge.doctor.examine import Patient, examine
from edge.doctor.finding import Finding, attempt, exit_code, well, wrong
from edge.doctor.microphone import Recording, judge, microphone
from edge.doctor.slots import installed
from edge.errors import ThresholdError, UnavailableError
from edge.health.throttling import Throttling
from edge.update.provisioning import provision

RATE_HZ = 16_000
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def _fails(finding: Finding, what: str, fix: str) -> None:
    assert not finding.ok
    assert what in finding.detail
    assert fix in finding.fix
    assert finding.line() == f"FAIL {finding.check}: {finding.detail}; fix: {finding.fix}"
    assert "\n" not in finding.line()


def test_lines_and_exit_codes() -> None:
    good = well("disk", "much", {"free_mb": 5.0})
    bad, away = wrong("clock", "1970", "set it"), attempt("broker", lambda: _raise(UnavailableError("nobody\nthere")))
    assert good.line() == "OK   disk: much"
    assert away.line() == "FAIL broker: nobody there"
    assert good.as_dict()["values"] == {"free_mb": 5.0}
    assert attempt("model", lambda: _raise(ThresholdError("differs")), "reinstall").fix == "reinstall"
    assert [exit_code(found) for found in ([], [good], [good, bad], [good, bad, away])] == [0, 0, 3, 4]


def _raise(error: Exception) -> Finding:
    raise error


def test_the_system_is_64_bit_and_python_one_with_wheels() -> None:
    assert machine.system().ok
    _fails(machine.system(32, "armv7l"), "armv7l, 32 bit", "64-bit Linux")
    assert machine.python().ok
    for version in ((3, 10), (3, 14)):
        _fails(machine.python(version), "use 3.11, 3.12 or 3.13", "apt-get install python3.11-venv")


def test_the_disk_has_room(tmp_path: Path) -> None:
    assert machine.disk(tmp_path / "not/made/yet").ok
    _fails(machine.disk(tmp_path, needed_mb=1e12), "are needed", "apt-get clean")


def test_heat_and_throttling(tmp_path: Path) -> None:
    assert "tells none" in machine.temperature(tmp_path).detail
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("51200\n")
    assert machine.temperature(tmp_path).detail == "51 °C"
    (zone / "temp").write_text("83400\n")
    _fails(machine.temperature(tmp_path), "83 °C", "heat sink")
    assert machine.throttling(None).ok
    assert machine.throttling(Throttling()).detail == "none"
    assert "since boot: throttled" in machine.throttling(Throttling((), ("throttled",))).detail
    _fails(machine.throttling(Throttling(("throttled",), ("throttled",))), "throttled now", "give it air")
    weak = ("throttled", "under-voltage")
    _fails(machine.throttling(Throttling((), weak)), "under-voltage since boot", "supply made for this board")
    _fails(machine.throttling(Throttling(weak, weak)), "under-voltage now", "supply made for this board")


def test_the_clock_is_steered_and_plausible() -> None:
    now_s = NOON.timestamp()
    fix = "timedatectl set-ntp true"
    assert clock(Discipline(synchronised=True, error_s=0.002), now_s=now_s).detail.endswith(
        "synchronised within 2.0 ms"
    )
    assert clock(None, now_s=now_s).ok
    _fails(clock(Discipline(synchronised=False, error_s=16.0), now_s=now_s), "nobody synchronises it", fix)
    _fails(clock(Discipline(synchronised=True, error_s=3.0), now_s=now_s), "3.0 s uncertain", fix)
    _fails(clock(Discipline(synchronised=True, error_s=0.0), now_s=100.0), "1970-01-01 00:01:40 UTC cannot be", fix)
    packed = datetime(2026, 6, 1, tzinfo=UTC)
    _fails(clock(None, now_s=now_s, not_before=packed), "it is after 2026-06-01", fix)
    inside = clock(Discipline(synchronised=False, error_s=16.0), now_s=now_s, environment="docker")
    _fails(inside, "container of docker: mend it on the host", fix)
    told = discipline()
    assert told is None or told.error_s >= 0


def _sound(level: float, seconds: float = 2.0) -> np.ndarray:
    generator = np.random.default_rng(3)
    return (generator.uniform(-level, level, int(seconds * RATE_HZ)) * 32767).astype(np.int16)


def test_the_microphones_sound_is_judged() -> None:
    good = judge(Recording("card", _sound(0.3), measured_hz=16_010.0), RATE_HZ)
    assert good.ok
    assert good.values["rate_hz"] == 16_010.0
    assert "2.0 s, -15.2 dBFS" in good.detail
    _fails(judge(Recording("card", np.zeros(RATE_HZ, np.int16)), RATE_HZ), "digital silence", "amixer sset Capture cap")
    stuck = np.full(RATE_HZ, -1, np.int16)
    _fails(judge(Recording("card", stuck), RATE_HZ), "digital silence", "amixer")
    _fails(judge(Recording("card", _sound(1e-4)), RATE_HZ), "next to nothing", "raise its gain: alsamixer")
    clipped = np.clip(_sound(0.9).astype(np.int32) * 2, -32768, 32767).astype(np.int16)
    _fails(judge(Recording("card", clipped), RATE_HZ), "too loud", "lower its gain")
    _fails(judge(Recording("card", _sound(0.3), xruns=2), RATE_HZ), "2 xruns: sound is lost", "take load off")
    slow = Recording("card", _sound(0.3), measured_hz=14_700.0)
    _fails(judge(slow, RATE_HZ), "14700 Hz: not the 16000 Hz it claims", "name the card itself")


def test_a_file_is_a_microphone_too(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, _sound(0.3), 48_000)
    found = microphone(f"file:{path}?loop", RATE_HZ, record_s=0.5)
    assert found.ok
    assert "resampled from 48000 Hz" in found.detail
    assert found.values["seconds"] >= 0.5
    assert "rate_hz" not in found.values, "a file waits for its reader and has no clock of its own"
    soundfile.write(path, np.zeros(0), 48_000)
    assert not attempt("microphone", lambda: microphone(f"file:{path}", RATE_HZ)).ok


def test_the_model_must_be_quick_enough(tiny_bundle: Any) -> None:
    bundle = read_bundle(tiny_bundle.path, trusted=[load_public_key(tiny_bundle.key)])
    classifier, difference = open_classifier(bundle)
    found = models.model(classifier, difference, bundle.golden_pcm[:1], 1, 1000)
    assert found.ok
    assert 0 < found.values["latency_p50_ms"] <= found.values["latency_p95_ms"] <= found.values["latency_p99_ms"]
    slow = models.model(classifier, difference, bundle.golden_pcm[:1], 1, 1e-6)
    _fails(slow, "too slow for it", "--hop 10,")
    _fails(models.verdict("p95 70 ms", 70.0, 100.0, {}), "too slow", "--hop 140,")
    assert models.providers(classifier).detail.startswith("CPU (onnxruntime ")


def test_one_broken_thing_does_not_hide_the_next(tiny_bundle: Any, operator_keys: Any, tmp_path: Path) -> None:
    patient = Patient(
        state_dir=tmp_path, bundle=tiny_bundle.path, trust=[operator_keys.public], operators=[tmp_path / "absent.pub"],
        microphone="ear", broker="http://lab",
    )  # fmt: skip
    found = {finding.check: finding for finding in examine(patient)}
    assert [found[check].ok for check in ("system", "Python", "disk")] == [True] * 3
    _fails(found["bundle"], "level.earshot", "earshot bundle verify")
    _fails(found["operators"], "absent.pub", "earshot keys new")
    _fails(found["microphone"], "microphone 'ear'", "python3 -m sounddevice")
    _fails(found["broker"], "no scheme mqtt or mqtts", "systemctl status mosquitto")
    assert not {"model", "providers", "PortAudio"} & found.keys()
    patient = Patient(
        state_dir=tmp_path, bundle=tiny_bundle.path, trust=[tiny_bundle.key], provider="abacus", microphone="file:x"
    )
    found = {finding.check: finding for finding in examine(patient)}
    _fails(found["model"], "provider 'abacus'", "--provider")
    assert found["operators"].detail.startswith("none")


def test_the_slots_of_an_installed_device(make_tiny_bundle: Any, keys: Any, operator_keys: Any, tmp_path: Path) -> None:
    folder = tmp_path / "kitchen"
    bundle, [finding] = installed(folder, [])
    assert bundle is None
    _fails(finding, "no bundle was ever put there", "earshot-device provision BUNDLE")
    given = {"bundle_keys": [keys.public], "operator_keys": [operator_keys.public]}
    folder.mkdir()
    provision(folder, make_tiny_bundle(version=1), **given)
    bundle, findings = installed(folder, ["0" * 16])
    assert bundle is not None
    assert all(finding.ok for finding in findings)
    shown = {finding.check: finding.detail for finding in findings}
    assert shown["slots"] == "a: level version 1 (active, not confirmed after 0 starts), b: empty"
    assert len(shown["operators"].split(", ")) == 2
    provision(folder, make_tiny_bundle(version=2), **given, force=True)
    (folder / "slots/a/bundle.earshot").write_bytes(b"PK")
    bundle, findings = installed(folder, [])
    _fails(findings[1], "nothing to go back to", "earshot device update kitchen BUNDLE")
    (folder / "slots/b/bundle.earshot").unlink()
    bundle, findings = installed(folder, [])
    assert bundle is None
    _fails(findings[0], "slots/b/bundle.earshot", "restart the device")
