from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge.errors import DataError, EarshotError, UnavailableError, UsageError
from edge.sound.audio_stream import AudioHeader
from edge.sound.microphones.file import FileMicrophone
from edge.sound.microphones.opening import microphone
from edge.sound.microphones.protocol import Microphone
from edge.sound.microphones.resampling import Resampler, to_pcm16
from edge.sound.microphones.socket import SocketMicrophone

RATE_HZ = 16_000
ROOT = Path(__file__).resolve().parents[2]


def _all(source: Microphone, *, limit: int = 1 << 30) -> np.ndarray:
    source.open()
    blocks = [np.zeros(0, np.int16)]
    while sum(map(len, blocks)) < limit and (pcm := source.read()) is not None:
        assert pcm.dtype == np.int16
        blocks.append(pcm)
    source.close()
    return np.concatenate(blocks)


@pytest.fixture
def rig() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


def _serve(rig: socket.socket, *parts: bytes, pause_s: float = 0.0) -> SocketMicrophone:
    def send() -> None:
        connection, _ = rig.accept()
        with connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)

    threading.Thread(target=send, daemon=True).start()
    host, port = rig.getsockname()
    return SocketMicrophone(f"{host}:{port}", RATE_HZ)


HEADER = AudioHeader(rate_hz=RATE_HZ, stream_id="s1").to_line()


def test_a_socket_delivers_every_sample(rig: socket.socket) -> None:
    pcm = np.random.default_rng(0).integers(-32768, 32767, 500_001).astype("<i2")
    assert np.array_equal(_all(_serve(rig, HEADER, pcm.tobytes())), pcm)


def test_samples_split_anywhere_arrive_whole(rig: socket.socket) -> None:
    pcm = np.arange(1000, dtype="<i2")
    data = HEADER + pcm.tobytes()
    parts = [data[:50], data[50 : len(HEADER) + 3], data[len(HEADER) + 3 : 1001], data[1001:]]
    assert np.array_equal(_all(_serve(rig, *parts, pause_s=0.03)), pcm)


def test_what_comes_with_the_header_is_not_kept_waiting(rig: socket.socket) -> None:
    source = _serve(rig, HEADER + np.arange(10, dtype="<i2").tobytes(), pause_s=2.0)
    assert source.open() == "s1"
    start_s = time.monotonic()
    pcm = source.read()
    assert pcm is not None
    assert pcm.tolist() == list(range(10))
    assert time.monotonic() - start_s < 1
    source.close()


def test_half_a_sample_at_the_end_is_left_out(rig: socket.socket) -> None:
    assert _all(_serve(rig, HEADER, b"\x01\x00\x02")).tolist() == [1]


def test_a_silent_socket_does_not_block(rig: socket.socket) -> None:
    source = _serve(rig, HEADER, pause_s=3.0)
    source.open()
    start_s = time.monotonic()
    pcm = source.read()
    assert pcm is not None
    assert len(pcm) == 0
    assert time.monotonic() - start_s < 2
    source.close()


@pytest.mark.parametrize(
    ("parts", "error", "complaint"),
    [
        ((b"RIFF" + b"x" * 2000,), DataError, "no end of the audio header within 512 bytes"),
        ((b'{"rate":1}\n',), DataError, "audio header"),
        ((HEADER[:20],), UnavailableError, "closed before"),
        ((AudioHeader(rate_hz=8000, stream_id="s").to_line(),), DataError, "sends 8000 Hz, the model hears 16000 Hz"),
    ],
)
def test_a_wrong_header_is_one_line(
    rig: socket.socket, parts: tuple[bytes, ...], error: type[EarshotError], complaint: str
) -> None:
    source = _serve(rig, *parts)
    with pytest.raises(error, match=complaint):
        source.open()


def test_a_unix_socket_works_too(tmp_path: Path) -> None:
    path = tmp_path / "sound"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def send() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(HEADER + b"\x05\x00")

        threading.Thread(target=send, daemon=True).start()
        assert _all(microphone(f"socket:unix:{path}", RATE_HZ)).tolist() == [5]
    with pytest.raises(UnavailableError, match="socket:unix"):
        microphone(f"socket:unix:{tmp_path}/absent", RATE_HZ).open()


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_file_is_heard_sample_for_sample(tmp_path: Path, suffix: str, subtype: str) -> None:
    if (suffix, subtype) == (".flac", "FLOAT"):
        pytest.skip("FLAC holds integers only")
    path = tmp_path / f"clip{suffix}"
    pcm = np.random.default_rng(0).integers(-32768, 32767, 4321).astype(np.int16)
    soundfile.write(path, pcm if subtype == "PCM_16" else pcm / 32768, RATE_HZ, subtype=subtype)
    source = FileMicrophone(str(path), RATE_HZ)
    assert source.name == f"file:{path}"
    assert not source.reopens
    assert np.array_equal(_all(source), pcm)


def test_a_file_plays_in_real_time(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.zeros(RATE_HZ // 2), RATE_HZ)
    start_s = time.monotonic()
    _all(FileMicrophone(str(path), RATE_HZ))
    assert 0.4 < time.monotonic() - start_s < 2


def test_an_8_khz_file_is_resampled_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    t_s = np.arange(4000) / 8000
    soundfile.write(path, np.stack((0.5 * np.sin(2 * np.pi * 440 * t_s), np.zeros(4000)), axis=1), 8000)
    source = FileMicrophone(str(path), RATE_HZ)
    assert source.name == f"file:{path} (resampled from 8000 Hz, first of 2 channels)"
    heard = _all(source)
    assert abs(len(heard) - 8000) <= 2
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(heard)) / RATE_HZ)
    middle = slice(1000, 7000)
    assert np.abs(heard[middle] / 32768 - expected[middle]).max() < 1e-3


def test_a_looped_file_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    pcm = np.arange(1000, dtype=np.int16)
    soundfile.write(path, pcm, RATE_HZ)
    heard = _all(microphone(f"file:{path}?loop", RATE_HZ), limit=2500)
    assert np.array_equal(heard[:2500], np.tile(pcm, 3)[:2500])


def test_wrong_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE_HZ)
    for name, complaint in (("absent.wav", "no such"), ("text.wav", "not a readable"), ("empty.wav", "no sound")):
        with pytest.raises(DataError, match=complaint):
            FileMicrophone(str(tmp_path / name), RATE_HZ)


@pytest.mark.parametrize(
    "spec", ["", "file:", "file:x?speed", "socket:", "socket:host", "socket:host:0", "socket:host:70000",
             "socket:unix:", "alsa:hw0", "socket:unix:" + "x" * 200]
)  # fmt: skip
def test_a_wrong_spec_is_one_line(spec: str) -> None:
    with pytest.raises(UsageError):
        microphone(spec, RATE_HZ)


def test_resampling_in_pieces_is_resampling_at_once() -> None:
    sound = np.random.default_rng(0).uniform(-0.9, 0.9, 44_100).astype(np.float32)
    whole = Resampler(44_100, RATE_HZ).feed(sound, last=True)
    pieces = Resampler(44_100, RATE_HZ)
    heard = [pieces.feed(part, last=number == 99) for number, part in enumerate(np.array_split(sound, 100))]
    assert np.array_equal(np.concatenate(heard), whole)
    assert abs(len(whole) - RATE_HZ) <= 1


def test_rounding_clips() -> None:
    assert to_pcm16(np.array([np.nan, -2, -1, 0, 0.99999, 1, 2], np.float32)).tolist() == [
        0,
        -32768,
        -32768,
        0,
        32767,
        32767,
        32767,
    ]


def test_missing_portaudio_is_one_line_with_the_fix() -> None:
    code = (
        "import ctypes.util, sys; sys.path.insert(0, sys.argv[1]); ctypes.util.find_library = lambda name: None\n"
        "from edge.sound.microphones.opening import microphone\n"
        "from edge.errors import UnavailableError\n"
        "try: microphone('sounddevice', 16000)\n"
        "except UnavailableError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=True)
    assert done.stdout == "PortAudio is missing: apt-get install libportaudio2\n"


def test_a_card_that_is_not_there_is_one_line() -> None:
    try:
        import sounddevice  # noqa: F401
    except OSError:
        pytest.skip("PortAudio is missing: apt-get install libportaudio2")
    with pytest.raises(UnavailableError, match="no such input device"):
        microphone("sounddevice:no card has this name", RATE_HZ)


ALSA_CARD = """
pcm.earshot_null { type null hint { show on description "null" } }
pcm.earshot { type file slave.pcm "earshot_null" file "/dev/null" infile "%s" format "raw" hint { show on } }
"""
RECORD = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from edge.sound.microphones.opening import microphone
source = microphone("sounddevice:earshot", 16000)
source.open()
pcm = source.read()
time.sleep(1)
while source.xruns == 0: source.read()
source.close()
source.close()
print(json.dumps({"name": source.name, "pcm": pcm.tolist(), "dtype": str(pcm.dtype), "xruns": source.xruns}))
"""


def test_portaudio_delivers_what_the_card_records_and_counts_what_was_lost(tmp_path: Path) -> None:
    """ALSA's file plug-in is a card that runs as fast as it can, so a reader that sleeps must see overruns."""
    system = Path("/usr/share/alsa/alsa.conf")
    if not system.is_file():
        pytest.skip("PortAudio is missing: apt-get install libportaudio2")
    pcm = np.random.default_rng(0).integers(-32768, 32767, 100_000).astype(np.int16)
    (tmp_path / "clip.raw").write_bytes(pcm.tobytes())
    (tmp_path / "alsa.conf").write_text(ALSA_CARD % (tmp_path / "clip.raw"))
    environment = {**os.environ, "ALSA_CONFIG_PATH": f"{system}:{tmp_path / 'alsa.conf'}"}
    done = subprocess.run(
        [sys.executable, "-c", RECORD, str(ROOT)],
        capture_output=True, text=True, check=False, env=environment, timeout=60,
    )  # fmt: skip
    if "PortAudio is missing" in done.stderr:
        pytest.skip("PortAudio is missing: apt-get install libportaudio2")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["name"], seen["dtype"]) == ("sounddevice:earshot", "int16")
    assert len(seen["pcm"]) > 0
    assert seen["pcm"] == pcm[: len(seen["pcm"])].tolist()
    assert seen["xruns"] > 0
