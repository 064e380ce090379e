from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edge.errors import DataError, EarshotError, UnavailableError, UsageError
from edge.sound.audio_stream import AudioHeader
from edge.sound.microphones.file import FileMicrophone
from edge.sound.microphones.opening import microphone
from edge.sound.microphones.protocol import Microphone
from edge.sound.microphones.resampling import Resampler, amplify, factor, to_pcm16
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


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("file:x?speed=2", "unknown option 'speed=2': use loop, channel=1 to 64, gain_db=-40 to 40, joined by &"),
        ("file:x?loop=1", "unknown option 'loop=1'"),
        ("file:x?channel", "unknown option 'channel'"),
        ("file:x?loop&loop", "unknown option 'loop'"),
        ("file:x?channel=0", "channel=0: use channel=1 to 64"),
        ("sounddevice?channel=two", "channel=two: use channel=1 to 64"),
        ("sounddevice:card?gain_db=41", "gain_db=41: use gain_db=-40 to 40"),
        ("sounddevice:card?gain_db=nan", "gain_db=nan: use gain_db=-40 to 40"),
        ("sounddevice:card?loop", "unknown option 'loop': use channel=1 to 64, gain_db=-40 to 40"),
        ("sounddevice?", "unknown option ''"),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_is_allowed(spec: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        microphone(spec, RATE_HZ)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_channel_of_a_file_with_gain(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    pcm = np.array([[1, 100], [2, -200], [3, 20_000], [4, -20_000], [5, 0]], np.int16)
    soundfile.write(path, pcm, RATE_HZ)
    assert _all(microphone(f"file:{path}", RATE_HZ)).tolist() == [1, 2, 3, 4, 5]
    second = microphone(f"file:{path}?channel=2&gain_db=20", RATE_HZ)
    assert second.name == f"file:{path} (channel 2 of 2, gain +20 dB)"
    assert _all(second).tolist() == [1000, -2000, 32767, -32768, 0]
    assert _all(microphone(f"file:{path}?gain_db=-20&channel=2", RATE_HZ)).tolist() == [10, -20, 2000, -2000, 0]
    looped = microphone(f"file:{path}?channel=2&loop", RATE_HZ)
    assert _all(looped, limit=12)[:12].tolist() == [100, -200, 20_000, -20_000, 0] * 2 + [100, -200]
    with pytest.raises(DataError, match="channel 3: the file has 2"):
        microphone(f"file:{path}?channel=3", RATE_HZ)


def test_gain_rounds_and_clips() -> None:
    pcm = np.array([-32768, -20_000, -3, 0, 3, 20_000, 32767], np.int16)
    assert amplify(pcm, factor(6)).tolist() == [-32768, -32768, -6, 0, 6, 32767, 32767]
    assert amplify(pcm, factor(0)).tolist() == pcm.tolist()


def test_resampling_in_pieces_is_resampling_at_once() -> None:
    sound = np.random.default_rng(0).uniform(-0.9, 0.9, 44_100).astype(np.float32)
    whole = Resampler(44_100, RATE_HZ).feed(sound, last=True)
    pieces = Resampler(44_100, RATE_HZ)
    heard = [pieces.feed(part, last=number == 99) for number, part in enumerate(np.array_split(sound, 100))]
    assert np.array_equal(np.concatenate(heard), whole)
    assert abs(len(whole) - RATE_HZ) <= 1


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
@pytest.mark.parametrize("seconds", [120, pytest.param(3600, marks=pytest.mark.soak)])
def test_a_long_stream_does_not_drift(rate_hz: int, seconds: int) -> None:
    """Blocks as a card delivers them: after an hour the sample at time t is still the one with index t x rate."""
    block, tone_hz = 1117, 440
    second = (0.5 * np.sin(2 * np.pi * tone_hz * np.arange(rate_hz) / rate_hz)).astype(np.float32)
    sound = np.concatenate((second, second[:block]))
    resampler, heard, tail, end = Resampler(rate_hz, RATE_HZ), 0, [np.zeros(0, np.int16)], seconds * rate_hz
    for start in range(0, end, block):
        count = min(block, end - start)
        pcm = resampler.feed(sound[start % rate_hz :][:count], last=start + count == end)
        heard += len(pcm)
        tail = [*tail[-100:], pcm]
    assert abs(heard - seconds * RATE_HZ) <= 1
    # But for the very end, where the filter meets silence.
    last = np.concatenate(tail)[:-1000]
    index = np.arange(heard - 1000 - len(last), heard - 1000)
    expected = 0.5 * np.sin(2 * np.pi * tone_hz * index / RATE_HZ)
    assert len(last) > RATE_HZ
    assert np.abs(last / 32768 - expected).max() < 2e-4


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
START = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
clip = Path(sys.argv[2])
from edge.sound.microphones.opening import microphone
"""
RECORD = """
source = microphone("sounddevice:earshot", 16000)
stream_id = source.open()
pcm = source.read()
time.sleep(1)
while source.xruns == 0: source.read()
left = source.stream_id
while source.stream_id == left: after = source.read()
source.close()
source.close()
print(json.dumps({"name": source.name, "pcm": pcm.tolist(), "dtype": str(pcm.dtype), "xruns": source.xruns,
                  "overruns": source.overruns, "streams": [stream_id, left, source.stream_id], "after": len(after)}))
"""


@pytest.fixture
def card(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a script in a process that has one sound card: ALSA's file plug-in, which reads ``clip`` (int16)."""
    system = Path("/usr/share/alsa/alsa.conf")
    if not system.is_file():
        pytest.skip("PortAudio is missing: apt-get install libportaudio2")
    clip = tmp_path / "clip.raw"

    def run(script: str, pcm: np.ndarray | None = None) -> dict[str, Any]:
        if pcm is not None:
            clip.write_bytes(pcm.astype("<i2").tobytes())
        (tmp_path / "alsa.conf").write_text(ALSA_CARD % clip)
        environment = {**os.environ, "ALSA_CONFIG_PATH": f"{system}:{tmp_path / 'alsa.conf'}"}
        done = subprocess.run(
            [sys.executable, "-c", START + script, str(ROOT), str(clip)],
            capture_output=True, text=True, check=False, env=environment, timeout=60,
        )  # fmt: skip
        if "PortAudio is missing" in done.stderr:
            pytest.skip("PortAudio is missing: apt-get install libportaudio2")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    return run


def test_portaudio_delivers_what_the_card_records_and_counts_what_was_lost(card: Callable[..., dict[str, Any]]) -> None:
    """The card runs as fast as it can, so a reader that sleeps must see overruns, and a new stream after them."""
    pcm = np.random.default_rng(0).integers(-32768, 32767, 100_000).astype(np.int16)
    seen = card(RECORD, pcm)
    assert (seen["name"], seen["dtype"]) == ("sounddevice:earshot", "int16")
    assert len(seen["pcm"]) > 0
    assert seen["pcm"] == pcm[: len(seen["pcm"])].tolist()
    assert seen["xruns"] >= seen["overruns"] > 0
    assert seen["streams"][0] == seen["streams"][1] != seen["streams"][2]
    assert seen["after"] >= 0.2 * RATE_HZ


CHANNEL = """
source = microphone("sounddevice:earshot?channel=3&gain_db=20", 16000)
source.open()
pcm = source.read()
source.close()
refused = ""
try: microphone("sounddevice:earshot?channel=64", 16000)
except Exception as error: refused = str(error)
print(json.dumps({"name": source.name, "pcm": pcm.tolist(), "refused": refused}))
"""


def test_portaudio_takes_one_channel_with_gain(card: Callable[..., dict[str, Any]]) -> None:
    sound = np.random.default_rng(0).integers(-100, 100, (30_000, 3))
    sound[:50, 2] = 20_000
    seen = card(CHANNEL, sound)
    assert seen["name"].startswith("sounddevice:earshot (channel 3 of ")
    assert seen["name"].endswith(", gain +20 dB)")
    expected = np.clip(sound[:, 2] * 10, -32768, 32767)
    assert len(seen["pcm"]) > 50
    assert seen["pcm"] == expected[: len(seen["pcm"])].tolist()


LATE = """
from edge.errors import UnavailableError
import edge.sound.microphones.portaudio as portaudio
source = microphone("sounddevice:earshot", 16000)
source.open()
source.close()
away = clip.with_suffix(".away")
clip.rename(away)
refused = []
for _ in range(2):
    try: source.open()
    except UnavailableError as error: refused.append(str(error))
away.rename(clip)
source.open()
pcm = source.read()
source.close()
print(json.dumps({"refused": refused, "pcm": pcm.tolist()}))
"""


def test_a_card_that_was_unplugged_is_found_again(card: Callable[..., dict[str, Any]]) -> None:
    pcm = np.random.default_rng(0).integers(-32768, 32767, 30_000).astype(np.int16)
    seen = card(LATE, pcm)
    assert len(seen["refused"]) == 2
    assert seen["refused"][1].startswith("sounddevice:earshot: ")
    assert seen["pcm"] == pcm[: len(seen["pcm"])].tolist()
    assert len(seen["pcm"]) > 0


STUCK = """
import threading, queue
os.mkfifo(clip)
pipe = os.open(clip, os.O_RDWR)
import edge.sound.microphones.portaudio as portaudio
portaudio._SILENT_CARD_S = 1.0
portaudio._CLOSE_TIMEOUT_S = 0.5
from edge.sound.recorder import Recorder
from edge.sound.streams import Streams
plugged = threading.Event()
plugged.set()
def feed():
    while True:
        plugged.wait()
        os.write(pipe, bytes(320))
        time.sleep(0.01)
threading.Thread(target=feed, daemon=True).start()
streams = Streams(16000, 16000, lambda: None)
stop = threading.Event()
recorder = Recorder(microphone("sounddevice:earshot", 16000), streams, stop)
recorder.start()
def wait(holds):
    end = time.monotonic() + 20
    while not holds():
        if time.monotonic() > end: sys.exit("waited in vain")
        time.sleep(0.01)
wait(lambda: streams.current and streams.current.ring.end > 8000)
first = streams.current
plugged.clear()
wait(lambda: streams.problem)
problem = streams.problem
before = streams.reopened
plugged.set()
wait(lambda: streams.reopened and streams.current.ring.end > 1600)
stop.set()
recorder.join(20)
print(json.dumps({"problem": problem, "before": before, "reopened": streams.reopened, "ended": first.ended,
                  "new": streams.current is not first, "silent_s": streams.silent_s, "alive": recorder.is_alive()}))
"""


def test_a_card_whose_driver_hangs_is_reported_and_heard_again(card: Callable[..., dict[str, Any]]) -> None:
    """The card is a pipe that nobody fills: its driver sits in a read that does not return, as some do."""
    seen = card(STUCK)
    assert seen["problem"] == "sounddevice:earshot: the card has been silent for 1 s"
    assert (seen["before"], seen["reopened"]) == (0, 1)
    assert seen["ended"]
    assert seen["new"]
    assert not seen["alive"]
    assert seen["silent_s"] > 0.5
