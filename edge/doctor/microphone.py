"""The microphone: it records, neither silence nor clipped sound, at the rate it claims, and loses nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from edge.doctor.finding import Finding, well, wrong
from edge.errors import UnavailableError
from edge.sound.level import loudness
from edge.sound.microphones.opening import microphone as open_microphone
from edge.sound.microphones.portaudio import INSTALL_HINT, import_sounddevice
from edge.sound.microphones.protocol import Microphone
from edge.sound.ring import Pcm16

RECORD_S = 5.0
# Opening a card drops a block or two on many; what counts is what is lost while it runs.
_SETTLE_S = 0.5
_CLIPPED_SHARE = 1e-4
_QUIET_DBFS = -75.0
_RATE_ERROR = 0.02
# A shorter recording says little of a card's rate.
_MEASURABLE_S = 2.0
_LIST = "python3 -m sounddevice"


def portaudio() -> Finding:
    """The library and what it can record from.

    Raises:
        UnavailableError: it is not installed.
    """
    sounddevice = import_sounddevice()
    version = sounddevice.get_portaudio_version()[1].split(",")[0]
    inputs = [device["name"] for device in sounddevice.query_devices() if device["max_input_channels"] > 0]
    if not inputs:
        fix = "plug a microphone in, then: arecord -l (is the user in group audio? sudo usermod -aG audio $USER)"
        return wrong("PortAudio", f"{version}, no input device", fix)
    return well("PortAudio", f"{version}, inputs: {', '.join(inputs)}")


PORTAUDIO_FIX = INSTALL_HINT.rpartition(": ")[2]


@dataclass(frozen=True)
class Recording:
    """What came: samples (n,), the times sound was lost meanwhile, and a card's own rate, None where it cannot tell."""

    name: str
    pcm: Pcm16
    xruns: int = 0
    measured_hz: float | None = None


def microphone(spec: str, rate_hz: int, record_s: float = RECORD_S) -> Finding:
    """Record for ``record_s`` and look at what came.

    Raises:
        UnavailableError: it cannot be opened, or no sound comes.
        UsageError: ``spec`` makes no sense.
    """
    source = open_microphone(spec, rate_hz)
    recording = _record(source, rate_hz, record_s)
    if not len(recording.pcm):
        raise UnavailableError(f"{source.name}: no sound came within {record_s + _SETTLE_S:.0f} s")
    return judge(recording, rate_hz)


def judge(recording: Recording, rate_hz: int) -> Finding:
    """Whether what came can be worked with."""
    pcm, xruns, measured_hz = recording.pcm, recording.xruns, recording.measured_hz
    rms_dbfs, peak_dbfs, clipped = loudness(pcm)
    seconds = len(pcm) / rate_hz
    values = {
        "seconds": seconds,
        "rms_dbfs": rms_dbfs,
        "peak_dbfs": peak_dbfs,
        "clipped_samples": float(clipped),
        "xruns": float(xruns),
    }
    seen = f"{recording.name}: {seconds:.1f} s, {rms_dbfs:.1f} dBFS, peak {peak_dbfs:.1f} dBFS"
    seen += f", {clipped} samples clipped, {xruns} xruns"
    if measured_hz is not None:
        values["rate_hz"] = measured_hz
        seen += f", {measured_hz:.0f} Hz"
    problem = fix = ""
    if np.ptp(pcm) == 0:
        problem, fix = "digital silence", f"unmute it: amixer sset Capture cap; {_LIST}"
    elif peak_dbfs < _QUIET_DBFS:
        problem, fix = "next to nothing", f"is this the right input? {_LIST}; raise its gain: alsamixer (F4)"
    elif clipped > _CLIPPED_SHARE * len(pcm):
        problem, fix = "too loud", "lower its gain: alsamixer (F4)"
    elif xruns:
        problem, fix = "sound is lost", "take load off this machine (uptime), or use another USB port"
    elif measured_hz is not None and abs(measured_hz / rate_hz - 1) > _RATE_ERROR:
        problem = f"not the {rate_hz} Hz it claims"
        fix = f"name the card itself instead of a virtual device: {_LIST}"
    if problem:
        return wrong("microphone", f"{seen}: {problem}", fix, values)
    return well("microphone", seen, values)


def _record(source: Microphone, rate_hz: int, record_s: float) -> Recording:
    blocks: list[Pcm16] = []
    count = xruns_before = 0
    began_s = ended_s = 0.0
    source.open()
    try:
        opened_s = time.monotonic()
        while count < record_s * rate_hz and time.monotonic() - opened_s < record_s + 2 * _SETTLE_S:
            pcm = source.read()
            if pcm is None:
                break
            now_s = time.monotonic()
            if now_s - opened_s < _SETTLE_S and not source.can_wait:
                xruns_before, began_s = source.xruns, now_s
                continue
            blocks.append(pcm.copy())
            count += len(pcm)
            ended_s = now_s
    finally:
        source.close()
    elapsed_s = ended_s - began_s
    measurable = not source.can_wait and began_s and elapsed_s >= _MEASURABLE_S
    return Recording(
        name=source.name,
        pcm=np.concatenate([np.zeros(0, np.int16), *blocks]),
        xruns=source.xruns - xruns_before,
        measured_hz=count / elapsed_s if measurable else None,
    )
