"""The microphone: it records, neither silence nor clipped sound, at the rate it claims, and loses nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from edge.doctor.finding import Finding, well, wrong
from edge.errors import UnavailableError
from edge.sound.level import level_dbfs
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
_FULL_SCALE = 32767
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


@dataclass
class _Recording:
    blocks: list[Pcm16] = field(default_factory=list)
    count: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0
    settled: int = 0
    xruns_settled: int = 0


def microphone(spec: str, rate_hz: int, record_s: float = RECORD_S) -> Finding:
    """Record for ``record_s`` and look at what came.

    Raises:
        UnavailableError: it cannot be opened, or no sound comes.
        UsageError: ``spec`` makes no sense.
    """
    source = open_microphone(spec, rate_hz)
    recording = _record(source, rate_hz, record_s)
    if not recording.count:
        raise UnavailableError(f"{source.name}: no sound came within {record_s + _SETTLE_S:.0f} s")
    pcm = np.concatenate(recording.blocks)
    rms_dbfs, peak_dbfs = level_dbfs(pcm)
    clipped = int(np.count_nonzero((pcm >= _FULL_SCALE) | (pcm <= -_FULL_SCALE)))
    xruns = source.xruns - recording.xruns_settled
    seconds = len(pcm) / rate_hz
    measured_hz = _measured_rate_hz(recording)
    values = {
        "seconds": seconds,
        "rms_dbfs": rms_dbfs,
        "peak_dbfs": peak_dbfs,
        "clipped_samples": float(clipped),
        "xruns": float(xruns),
    }
    seen = f"{source.name}: {seconds:.1f} s, {rms_dbfs:.1f} dBFS, peak {peak_dbfs:.1f} dBFS, {clipped} samples clipped"
    seen += f", {xruns} xruns"
    if measured_hz is not None and not source.can_wait:
        values["rate_hz"] = measured_hz
        seen += f", {measured_hz:.0f} Hz"
    if not pcm.any():
        return wrong("microphone", f"{seen}: digital silence", f"unmute it: amixer sset Capture cap; {_LIST}", values)
    if peak_dbfs < _QUIET_DBFS:
        fix = f"is this the right input? {_LIST}; raise its gain: alsamixer (F4)"
        return wrong("microphone", f"{seen}: next to nothing", fix, values)
    if clipped > _CLIPPED_SHARE * len(pcm):
        return wrong("microphone", f"{seen}: too loud", "lower its gain: alsamixer (F4)", values)
    if xruns:
        fix = "take load off this machine (uptime), or use another USB port"
        return wrong("microphone", f"{seen}: sound is lost", fix, values)
    if not source.can_wait and measured_hz is not None and abs(measured_hz / rate_hz - 1) > _RATE_ERROR:
        fix = f"name the card itself instead of a virtual device: {_LIST}"
        return wrong("microphone", f"{seen}: not the {rate_hz} Hz it claims", fix, values)
    return well("microphone", seen, values)


def _record(source: Microphone, rate_hz: int, record_s: float) -> _Recording:
    recording = _Recording()
    source.open()
    try:
        opened_s = time.monotonic()
        while time.monotonic() - opened_s < record_s + _SETTLE_S:
            pcm = source.read()
            if pcm is None:
                break
            if not len(pcm):
                continue
            now_s = time.monotonic()
            if now_s - opened_s < _SETTLE_S and not source.can_wait:
                # The first block ends the wait for the card; the rate is measured from the end of the settling.
                recording.xruns_settled, recording.began_s = source.xruns, now_s
                continue
            recording.blocks.append(pcm)
            recording.count += len(pcm)
            recording.ended_s = now_s
            if recording.count >= record_s * rate_hz:
                break
    finally:
        source.close()
    return recording


def _measured_rate_hz(recording: _Recording) -> float | None:
    """Samples per second of a card, None where the recording is too short to tell."""
    elapsed_s = recording.ended_s - recording.began_s
    return recording.count / elapsed_s if recording.began_s and elapsed_s >= 2 else None
