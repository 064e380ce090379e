"""Wrong input ends in one line on standard error and the right exit code, never in a traceback."""

import contextlib
import io
import socket
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rig.cli.main import main


@pytest.fixture
def earshot(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["earshot", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        lines = [line for line in output.err.splitlines() if line.startswith("earshot:")]
        assert "Traceback" not in output.err
        return caught.value.code, lines

    return run


def check(result, code, *words):
    returned, lines = result
    assert returned == code, lines
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def test_missing_plan(earshot, tmp_path):
    check(earshot("plan", "check", tmp_path / "no.yaml"), 2, "no.yaml", "No such file")


def test_wrong_key_in_a_plan(earshot, write_plan):
    check(earshot("plan", "check", write_plan(clip={"count": 3})), 2, "clip: unknown key")


def test_unknown_label(earshot, write_plan, recordings):
    plan = write_plan(clips={"data": str(recordings), "split": "all", "count": 2, "labels": ["open"]})
    check(earshot("plan", "check", plan), 2, "'open'", "allowed: yes")


def test_unknown_target(earshot, write_plan):
    plan = write_plan(attacks=[{"name": "fgsm", "eps": [0.1], "target": "open"}])
    check(earshot("plan", "check", plan), 2, "'open'", "allowed: yes")


def test_more_clips_than_there_are(earshot, write_plan, recordings):
    plan = write_plan(clips={"data": str(recordings), "split": "all", "count": 500})
    check(earshot("plan", "check", plan), 2, "500 wanted, 24 found")


def test_unknown_air(earshot, write_plan):
    check(earshot("plan", "check", write_plan(), "--air", "lab"), 2, "'lab'", "digital, room")


def test_a_room_that_is_not_there(earshot, write_plan):
    check(earshot("session", "run", write_plan(), "--air", "room", "--dry-run"), 2, "needs 'room'")


def test_a_label_that_stands_twice(earshot, write_plan, recordings):
    plan = write_plan(clips={"data": str(recordings), "split": "all", "count": 12, "labels": ["yes", "yes"]})
    check(earshot("plan", "check", plan), 2, "clips.labels", "twice")


@pytest.mark.parametrize(
    ("more", "word"), [("seed: 2", "'seed' stands twice"), ("? [a]\n: 2", "unhashable"), ("x: " + "[" * 5000, "deeply")]
)
def test_yaml_that_is_no_plan(earshot, write_plan, more, word):
    plan = write_plan()
    plan.write_text(plan.read_text() + more + "\n")
    check(earshot("plan", "check", plan), 2, str(plan), word)


def test_a_room_too_large_for_its_reverberation(earshot, write_plan):
    room = {
        "size_m": [10, 10, 10],
        "rt60_s": 0.02,
        "talker_m": [2, 2, 2],
        "attackers_m": {"a": [3, 3, 3]},
        "devices_m": {"d": [4, 4, 4]},
    }
    check(earshot("plan", "check", write_plan(room=room), "--air", "room"), 2, "rt60_s = 0.02", "longer")


def test_clips_at_8_khz(earshot, write_plan, tmp_path):
    for word in ("yes", "no"):
        (tmp_path / "slow" / word).mkdir(parents=True)
        soundfile.write(tmp_path / "slow" / word / "0a_nohash_0.wav", np.zeros(8000), 8000)
    plan = write_plan(clips={"data": str(tmp_path / "slow"), "split": "all", "count": 2})
    check(earshot("plan", "check", plan), 2, "8000 Hz")


def test_a_folder_without_words(earshot, write_plan, tmp_path):
    plan = write_plan(clips={"data": str(tmp_path / "nowhere"), "split": "all", "count": 2})
    check(earshot("plan", "check", plan), 2, "nowhere")


def test_wrong_key(earshot, write_plan, other_keys):
    check(earshot("plan", "check", write_plan(trust=[str(other_keys.public)])), 2, "lms-fp32.earshot", "key")


def test_unsigned_bundle(earshot, write_plan, fp32_bundle, tmp_path):
    path = tmp_path / "unsigned.earshot"
    with zipfile.ZipFile(fp32_bundle) as signed, zipfile.ZipFile(path, "w") as unsigned:
        for name in signed.namelist():
            if name != "manifest.sig":
                unsigned.writestr(name, signed.read(name))
    check(earshot("plan", "check", write_plan(bundles=[str(path)])), 2, "unsigned.earshot")


@pytest.mark.parametrize("where", [0.01, 0.5, 0.9, 0.999])
def test_one_flipped_byte(earshot, write_plan, fp32_bundle, tmp_path, where):
    data = bytearray(fp32_bundle.read_bytes())
    data[int(len(data) * where)] ^= 1
    path = tmp_path / "flipped.earshot"
    path.write_bytes(data)
    check(earshot("session", "run", write_plan(bundles=[str(path)]), "--out", tmp_path / "o"), 2, "flipped.earshot")
    assert not (tmp_path / "o").exists()


def test_no_bundle(earshot, write_plan):
    check(earshot("plan", "check", write_plan(bundles=["zoo:nothing"])), 2, "zoo:nothing")


def test_dead_broker(earshot, write_plan, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{unused.getsockname()[1]}"
        check(
            earshot("session", "run", write_plan(), "--broker", url, "--out", tmp_path / "o"), 4, url, "cannot connect"
        )


def test_port_in_use(earshot, write_plan, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ("session", "run", write_plan(), "--broker", f"embedded:{port}", "--out", tmp_path / "o")
        check(earshot(*arguments), 4, str(port), "choose another port")


@pytest.mark.parametrize("broker", ["embedded:x", "embedded:²", "embedded:99999", "http://h", "mqtt://"])
def test_broker_that_is_none(earshot, write_plan, tmp_path, broker):
    check(earshot("session", "run", write_plan(), "--broker", broker, "--out", tmp_path / "o"), 2, broker)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "device", ["kitchen", "mqtt://host", "mqtt://host/Not A Name", "mqtt://[::1/x", "http://host/name"]
)
def test_device_that_is_none(earshot, write_plan, tmp_path, device):
    check(earshot("session", "run", write_plan(), "--device", device, "--out", tmp_path / "o"), 2)


@pytest.mark.parametrize("listen", ["7000", "host:", "host:x", "host:70000"])
def test_listen_that_is_none(earshot, write_plan, tmp_path, listen):
    check(earshot("session", "run", write_plan(), "--listen", listen, "--out", tmp_path / "o"), 2, "HOST:PORT")


def test_a_second_session_in_a_folder(earshot, write_plan, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "journal.sqlite").touch()
    check(earshot("session", "run", write_plan(), "--out", tmp_path / "o"), 2, "session resume")


@pytest.mark.parametrize("command", ["resume", "show"])
def test_no_session(earshot, tmp_path, command):
    check(earshot("session", command, tmp_path), 2, "session run")


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to look at" * 9])
def test_a_journal_that_is_none(earshot, tmp_path, content):
    (tmp_path / "journal.sqlite").write_bytes(content)
    for command in ("show", "resume"):
        check(earshot("session", command, tmp_path), 2, "no journal of a session")


def test_a_report_that_names_a_session_twice(earshot, write_plan, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{unused.getsockname()[1]}"
        assert earshot("session", "run", write_plan(), "--broker", url, "--out", tmp_path / "o")[0] == 4
    check(earshot("report", tmp_path / "o", tmp_path / "o", "--out", tmp_path / "r"), 2, "twice")
    assert not (tmp_path / "r").exists()


def test_an_output_folder_that_is_a_file(earshot, write_plan, recordings, tmp_path):
    path = tmp_path / "file"
    path.touch()
    check(earshot("train", "lms", "--data", recordings, "--out", path / "run"), 2, str(path), "Not a directory")
    check(earshot("keys", "new", "--out", path / "key"), 2, str(path))
    check(earshot("keys", "new", "--out", ""), 2, "no name")


def test_no_space_left(earshot, fp32_bundle, monkeypatch):
    # What could not be written is tried once more when the file is closed.
    with contextlib.suppress(OSError), Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        result = earshot("bundle", "show", fp32_bundle)
    check(result, 2, "No space left")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream(earshot, fp32_bundle, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, stream, None)
    assert earshot("bundle", "show", fp32_bundle)[0] == 0
    assert earshot("bundle", "show", tmp_path)[0] == 2


def test_a_terminal_without_unicode(earshot, write_plan, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert earshot("data", "check", tmp_path / "ü")[0] == 2
    assert sys.stdout.errors == "replace"


def test_a_demo_that_is_only_told_leaves_nothing_behind(earshot, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    earshot("demo", "--data", recordings, "--dry-run")
    assert not list(tmp_path.glob("earshot-*"))


def test_a_folder_called_like_the_recipe(earshot, recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lms").mkdir()
    assert earshot("train", "lms", "--data", recordings, "--out", "lms", "--dry-run")[0] == 0


def test_a_bundle_name_is_refused_before_the_work(earshot, keys, recordings, tmp_path):
    out = tmp_path / "Not a name.earshot"
    check(
        earshot("export", tmp_path, "--calibration", recordings, "--key", keys.private, "--out", out), 2, "Not a name"
    )


def test_unknown_command(earshot):
    check(earshot("sesion"), 2, "sesion")


def test_demo_without_data(earshot, tmp_path):
    check(earshot("demo", "--data", tmp_path / "none", "--out", tmp_path / "o"), 2, "none", "no such folder")
