import json
import re
import signal
import socket

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import yaml

ROOM = {
    "size_m": [4.5, 3.6, 2.6],
    "rt60_s": 0.25,
    "talker_m": [2.2, 1.8, 1.5],
    "attackers_m": {"shelf": [3.4, 2.9, 1.6]},
    "devices_m": {"table": [2.9, 1.5, 0.9]},
}


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sessions")


def rows_of(folder):
    return json.loads((folder / "summary.json").read_text())["rows"]


def test_digital_session_from_plan_to_report(rig, write_plan, tmp_path, fp32_bundle, int8_bundle):
    out = tmp_path / "out"
    plan = write_plan(bundles=[str(fp32_bundle), str(int8_bundle)])
    done = rig.run("session", "run", plan, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"summary": str(out / "summary.json"), "complete": True}
    summary = json.loads((out / "summary.json").read_text())
    rows = summary["rows"]
    contract = (
        "bundle air attack norm eps snr_db delay_ms attacker_position device_position n valid invalid errors"
        " error_rate ci_low ci_high targeted_success"
    )
    assert set(contract.split()) <= set(rows[0])
    assert len(rows) == 2 * (1 + 2 + 2)
    assert all(row["n"] == row["valid"] == 12 and row["invalid"] == 0 for row in rows)
    assert all(row["linf"] <= row["eps"] for row in rows if row["eps"])
    assert all(row["errors"] / row["valid"] == pytest.approx(row["error_rate"], abs=1e-6) for row in rows)

    table = pyarrow.parquet.read_table(out / "results.parquet").to_pylist()
    assert len(table) == summary["trials"] == 120
    errors = sum(line["label"] != line["true_label"] for line in table if line["attack"] == "benign")
    assert errors == sum(row["errors"] for row in rows if row["attack"] == "benign")

    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "data:audio/flac;base64," in page
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", ""), (
        "the page needs nothing from elsewhere"
    )
    assert str(plan) in page, "the exact command stands in the page"
    assert yaml.safe_load((out / "plan.yaml").read_text())["seed"] == 1
    assert "operator" not in (out / "station.toml").read_text()
    (session,) = summary["sessions"]
    assert {clock["device"] for clock in session["clocks"]} == {"local-lms-fp32", "local-lms-int8"}
    assert all(abs(clock["monotonic_ns"]) <= clock["uncertainty_ns"] for clock in session["clocks"])
    assert [path.name for path in (out / "devices").glob("*.pub")] == ["operator.pub"]
    assert not list(out.rglob("*.pem")), "the key that commands the session's devices is on no disk"

    mixed = sorted((out / "audio").glob("*-mixed.flac"))
    assert mixed
    for path in mixed:
        heard = soundfile.read(str(path).replace("mixed", "heard"), dtype="int16")[0]
        assert np.array_equal(soundfile.read(path, dtype="int16")[0], heard), "the device heard every sample"


def test_the_device_decides_as_the_bundle_does(rig, write_plan, tmp_path, recordings, fp32_bundle, keys):
    """Labels and scores in the results are those of the graph on the very clip, not of anything between."""
    from edge.bundle.classifier import Classifier
    from edge.bundle.reading import read_bundle
    from edge.bundle.signing import load_public_key
    from firmware_models.data import load

    out = tmp_path / "out"
    assert rig.run("session", "run", write_plan(attacks=[{"name": "benign"}]), "--out", out).returncode == 0
    classifier = Classifier(read_bundle(fp32_bundle, trusted=[load_public_key(keys.public)]))
    clips = load(recordings, "all")
    pcm = {str(path): clips.pcm[i] for i, path in enumerate(clips.path)}
    for line in pyarrow.parquet.read_table(out / "results.parquet").to_pylist():
        scores = classifier.scores(pcm[line["clip"]][None].astype(np.float32) / 32768)[0]
        assert line["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
        assert line["label"] == classifier.labels[int(np.argmax(scores))]


def test_room_session_counts_clipped_trials_apart(rig, write_plan, tmp_path, recordings):
    out = tmp_path / "out"
    plan = write_plan(room={**ROOM, "gain_db": 12})
    done = rig.run("session", "run", plan, "--air", "room", "--out", out)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"]
    assert any(row["invalid"] for row in summary["rows"])
    assert all(row["valid"] + row["invalid"] == row["n"] for row in summary["rows"])
    assert summary["excluded"][0]["reason"] == "microphone clipped"
    assert sum(row["invalid"] for row in summary["rows"]) == summary["excluded"][0]["trials_given_up"]
    assert {row["device_position"] for row in summary["rows"]} == {"table"}
    assert summary["sessions"][0]["air_facts"]["rt60_room_s"] == pytest.approx(0.25, rel=0.05)
    again = rig.run("session", "resume", out)
    assert again.returncode == 0, "a complete session has nothing left to do"
    assert json.loads((out / "summary.json").read_text())["rows"] == summary["rows"]


def test_targets_leave_out_the_clips_that_already_say_them(rig, write_plan, tmp_path):
    out = tmp_path / "out"
    plan = write_plan(attacks=[{"name": "pgd", "steps": 3, "eps": [0.05], "target": "up"}], delays_ms=[0])
    assert rig.run("session", "run", plan, "--out", out).returncode == 0
    (row,) = rows_of(out)
    assert row["n"] == 9
    assert row["targeted_success"] is not None


def test_a_dry_run_touches_nothing(rig, write_plan, tmp_path):
    out = tmp_path / "out"
    done = rig.run("session", "run", write_plan(), "--out", out, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "60 trials" in done.stdout
    assert not out.exists()


def test_interrupt_says_how_to_go_on(rig, write_plan, tmp_path, wait_until, concluded):
    out = tmp_path / "out"
    process = rig.start("session", "run", write_plan(delays_ms=list(range(60))), "--out", out)
    wait_until(lambda: len(concluded(out)) > 5, 60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 5
    assert "Traceback" not in errors
    assert not json.loads((out / "summary.json").read_text())["complete"]
    assert rig.run("session", "resume", out).returncode == 0
    assert len(concluded(out)) == len(set(concluded(out))) == 12 * (1 + 2 * 60)


def test_a_session_whose_clips_changed_is_not_mixed(rig, write_plan, tmp_path, recordings):
    import shutil

    copy = tmp_path / "recordings"
    shutil.copytree(recordings, copy)
    out = tmp_path / "out"
    plan = write_plan(clips={"data": str(copy), "split": "all", "count": 12}, delays_ms=list(range(60)))
    process = rig.start("session", "run", plan, "--out", out)
    while not (out / "journal.sqlite").exists():
        assert process.poll() is None
    process.kill()
    process.communicate()
    for path in copy.glob("*/*.wav"):
        soundfile.write(path, np.full(16000, 0.1), 16000, subtype="PCM_16")
    done = rig.run("session", "resume", out)
    assert done.returncode == 2
    assert "clips changed" in done.stderr


@pytest.mark.parametrize("change", ["seed: 2", "noise_dbfs: -60.0"])
def test_a_session_whose_plan_changed_is_not_mixed(rig, write_plan, tmp_path, change):
    """Neither changes a condition or a clip, and both change what the device would hear."""
    out = tmp_path / "out"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{unused.getsockname()[1]}"
        plan = write_plan(room=ROOM, seed=1, clips={"data": "zoo", "split": "all", "count": 100})
        assert rig.run("session", "run", plan, "--air", "room", "--broker", url, "--out", out).returncode == 4
    stored = out / "plan.yaml"
    key = change.split(":")[0]
    changed = re.sub(rf"{key}: .*", change, stored.read_text())
    assert changed != stored.read_text()
    stored.write_text(changed)
    refused = rig.run("session", "resume", out, "--broker", "embedded")
    assert refused.returncode == 2
    assert "plan.yaml changed" in refused.stderr


def test_repeats_only_where_something_is_random(rig, write_plan):
    plan = write_plan(attacks=[{"name": "benign"}], repeats=3, room=ROOM)
    airs = json.loads(rig.run("plan", "check", plan, "--json").stdout)["airs"]
    assert {air: facts["trials"] for air, facts in airs.items()} == {"digital": 12, "room": 36}
