"""Wrong input ends in one line on standard error and the right exit code, never in a traceback."""

import socket
import sys
import zipfile

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


@pytest.mark.parametrize("broker", ["embedded:x", "embedded:99999", "http://h", "mqtt://"])
def test_broker_that_is_none(earshot, write_plan, tmp_path, broker):
    check(earshot("session", "run", write_plan(), "--broker", broker, "--out", tmp_path / "o"), 2, broker)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("device", ["kitchen", "mqtt://host", "mqtt://host/Not A Name", "http://host/name"])
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


def test_unknown_command(earshot):
    check(earshot("sesion"), 2, "sesion")


def test_demo_without_data(earshot, tmp_path):
    check(earshot("demo", "--data", tmp_path / "none", "--out", tmp_path / "o"), 2, "none", "no such folder")
