"""A device that already runs elsewhere: its own broker, its microphone on the rig's socket."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def kitchen(fp32_bundle, keys, operator_keys, mosquitto, tmp_path, free_port):
    """A device process that the rig did not start and does not stop."""
    sound = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "edge.cli", "run", "--name", "kitchen", "--bundle", fp32_bundle]
    command += [
        "--trust",
        keys.public,
        "--operator",
        operator_keys.public,
        "--broker",
        mosquitto.url,
        "--microphone",
        f"socket:{sound}",
    ]
    with (tmp_path / "kitchen.log").open("wb") as log:
        process = subprocess.Popen([*command, "--state-dir", tmp_path / "kitchen"], stdout=log, stderr=log)
    yield f"{mosquitto.url}/kitchen", sound, operator_keys.private
    assert process.poll() is None, (tmp_path / "kitchen.log").read_text()
    process.terminate()
    assert process.wait(10) == 0


def test_two_sessions_on_one_device(rig, write_plan, tmp_path, concluded, kitchen):
    device, sound, key = kitchen
    for name in ("first", "second"):
        arguments = ("--device", device, "--listen", sound, "--operator", key, "--out", tmp_path / name)
        done = rig.run("session", "run", write_plan(), *arguments)
        assert done.returncode == 0, done.stderr
        assert len(concluded(tmp_path / name)) == 60


def test_the_device_outlives_a_killed_rig(rig, write_plan, tmp_path, concluded, wait_until, kitchen):
    device, sound, key = kitchen
    out = tmp_path / "out"
    arguments = (
        "session",
        "run",
        write_plan(delays_ms=list(range(25))),
        "--device",
        device,
        "--listen",
        sound,
        "--operator",
        key,
        "--out",
        out,
    )
    process = rig.start(*arguments)
    wait_until(lambda: len(concluded(out)) > 20 or process.poll() is not None, 60)
    process.kill()
    process.communicate()
    assert 20 < len(concluded(out)) < 612
    done = rig.run("session", "resume", out)
    assert done.returncode == 0, done.stderr
    assert len(concluded(out)) == len(set(concluded(out))) == 612
    assert json.loads((out / "summary.json").read_text())["complete"]


def test_a_device_with_another_bundle_is_refused(rig, write_plan, tmp_path, int8_bundle, kitchen):
    device, sound, key = kitchen
    plan = write_plan(bundles=[str(int8_bundle)])
    arguments = ("--device", device, "--listen", sound, "--operator", key, "--out", tmp_path / "out")
    done = rig.run("session", "run", plan, *arguments)
    assert done.returncode == 3
    assert "the plan wants lms-int8" in done.stderr


def test_several_bundles_need_several_sessions(rig, write_plan, tmp_path, fp32_bundle, int8_bundle, kitchen):
    device, sound, key = kitchen
    plan = write_plan(bundles=[str(fp32_bundle), str(int8_bundle)])
    arguments = ("--device", device, "--listen", sound, "--operator", key, "--out", tmp_path / "out")
    done = rig.run("session", "run", plan, *arguments)
    assert done.returncode == 2
    assert "one bundle" in done.stderr


def test_a_device_obeys_only_its_operator(rig, write_plan, tmp_path, other_keys, mosquitto, kitchen, concluded):
    device, sound, key = kitchen
    given = ("session", "run", write_plan(attacks=[{"name": "benign"}]), "--device", device, "--listen", sound)

    done = rig.run(*given, "--operator", other_keys.private, "--out", tmp_path / "other")
    assert done.returncode == 4
    assert "device kitchen: 3 echoes and no answer: is it online, and obeys this operator?" in done.stderr
    assert concluded(tmp_path / "other") == []

    # What was begun in vain is gone on with under the right key, named by the station.
    station = tmp_path / "station.toml"
    station.write_text(f'broker = "{mosquitto.url}"\noperator = "{key}"\n')
    done = rig.run("session", "resume", tmp_path / "other", "--station", station)
    assert done.returncode == 0, done.stderr
    (session,) = json.loads((tmp_path / "other" / "summary.json").read_text())["sessions"]
    (clock,) = session["clocks"]
    assert (clock["device"], clock["round_trips"]) == ("kitchen", 16)
    # Both processes read the clocks of this machine.
    assert abs(clock["monotonic_ns"]) <= clock["uncertainty_ns"]
    assert f'operator = "{other_keys.private}"' in (tmp_path / "other" / "station.toml").read_text()


def test_the_operators_key_is_checked_before_anything_else(tmp_path, operator_keys):
    from edge.errors import UsageError
    from rig.cli.sessions.session import make_setup

    device, listen = "mqtt://lab/kitchen", "127.0.0.1:0"
    with pytest.raises(UsageError, match=r"no key signs the command: give --operator KEY\.pem"):
        make_setup(device, "embedded", listen)
    loose = tmp_path / "loose.pem"
    loose.write_bytes(operator_keys.private.read_bytes())
    loose.chmod(0o644)
    with pytest.raises(UsageError, match=f"chmod 600 {loose}"):
        make_setup(device, "embedded", listen, operator=loose)
    station = tmp_path / "station.toml"
    station.write_text('broker = "mqtt://lab"\noperator = "loose.pem"\n')
    with pytest.raises(UsageError, match=f"chmod 600 {loose}"):
        make_setup(device, "embedded", listen, station=station)
    loose.chmod(0o600)
    assert make_setup(device, "embedded", listen, station=station).operator == str(loose)
    assert make_setup("local", "embedded", listen).operator is None
