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
    out = tmp_path / "out"
    process = rig.start("session", "run", write_plan(), "--out", out)
    done = 0
    targets = sorted(moments.randrange(TRIALS) for _ in range(kills))
    for target in targets:
        while process.poll() is None and len(concluded(out)) < target:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.3) if kills > SMALL else 0)
        for device in processes_of(process.pid):
            os.kill(device, signal.SIGKILL)
            done += 1
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    check_exactly_once(out, concluded)
    print(f"{done} devices killed")
    assert done


@pytest.mark.parametrize("kills", sizes())
def test_killing_the_broker(rig, write_plan, tmp_path, concluded, mosquitto, kills):
    moments = random.Random(6)
    for round_ in range(max(1, kills // 5)):
        out = tmp_path / f"out{round_}"
        process = rig.start("session", "run", write_plan(), "--broker", mosquitto.url, "--out", out)
        for target in sorted(moments.randrange(TRIALS) for _ in range(kills if kills == SMALL else 5)):
            while process.poll() is None and len(concluded(out)) < target:
                time.sleep(0.001)
            mosquitto.kill()
            time.sleep(moments.uniform(0, 0.5))
            mosquitto.start()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        check_exactly_once(out, concluded)
