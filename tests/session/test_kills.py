"""Whatever is killed, a session of 60 trials ends with exactly 60, none twice."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

TRIALS = 60
SMALL, FULL = 2, 25
PER_SESSION = 3


def sizes():
    return [
        pytest.param(SMALL, id="small"),
        pytest.param(FULL, id="full", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ]


def check_exactly_once(folder, concluded):
    done = concluded(folder)
    assert len(done) == len(set(done)) == TRIALS
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["complete"]
    assert sum(row["valid"] for row in summary["rows"]) == TRIALS
    assert sum(row["errors"] for row in summary["rows"]) <= TRIALS


def processes_of(parent: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:
        return []


def reach(process, folder, trials: int, concluded) -> None:
    """Wait until a running session has concluded so many trials."""
    while process.poll() is None and not (folder / "journal.sqlite").exists():
        time.sleep(0.001)
    while process.poll() is None and len(concluded(folder)) < trials:
        time.sleep(0.001)


@pytest.mark.parametrize("kills", sizes())
def test_killing_the_rig(rig, write_plan, tmp_path, concluded, kills):
    plan = write_plan()
    moments = random.Random(4)
    hit = 0
    for round_ in range(kills):
        out = tmp_path / f"out{round_}"
        process = rig.start("session", "run", plan, "--out", out)
        devices: list[int] = []
        moment = moments.randrange(TRIALS)
        while process.poll() is None and not (out / "journal.sqlite").exists():
            time.sleep(0.001)
        while process.poll() is None and len(concluded(out)) < moment:
            devices = processes_of(process.pid) or devices
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.communicate()
        hit += 0 < len(concluded(out)) < TRIALS
        resumed = rig.run("session", "resume", out)
        assert resumed.returncode == 0, resumed.stderr
        check_exactly_once(out, concluded)
        for device in devices:
            assert not Path(f"/proc/{device}/exe").exists(), "a device outlived its rig"
    print(f"{kills} rigs killed, {hit} of them between the first and the last trial")
    assert hit or kills == SMALL


@pytest.mark.parametrize("kills", sizes())
def test_killing_the_device(rig, write_plan, tmp_path, concluded, kills):
    moments = random.Random(5)
    killed = sessions = 0
    while killed < kills:
        out = tmp_path / f"out{sessions}"
        sessions += 1
        process = rig.start("session", "run", write_plan(), "--out", out)
        for target in sorted(moments.randrange(TRIALS) for _ in range(PER_SESSION)):
            reach(process, out, target, concluded)
            time.sleep(moments.uniform(0, 0.02))
            for device in processes_of(process.pid):
                os.kill(device, signal.SIGKILL)
                killed += process.poll() is None
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        check_exactly_once(out, concluded)
    print(f"{killed} devices killed in {sessions} sessions")


@pytest.mark.parametrize("kills", sizes())
def test_killing_the_broker(rig, write_plan, tmp_path, concluded, mosquitto, kills):
    moments = random.Random(6)
    killed = sessions = 0
    while killed < kills:
        out = tmp_path / f"out{sessions}"
        sessions += 1
        process = rig.start("session", "run", write_plan(), "--broker", mosquitto.url, "--out", out)
        for target in sorted(moments.randrange(TRIALS) for _ in range(PER_SESSION)):
            reach(process, out, target, concluded)
            time.sleep(moments.uniform(0, 0.02))
            killed += process.poll() is None
            mosquitto.kill()
            time.sleep(moments.uniform(0, 0.5))
            mosquitto.start()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        check_exactly_once(out, concluded)
    print(f"{killed} brokers killed in {sessions} sessions")
