"""The updating process as it really runs, with the manager that starts it and the server it pulls from."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.errors import UsageError
from edge.messages import Rollback, Rotate, Update, UpdateStatus
from edge.update.job import Job, Patience
from edge.update.manager import SlotUpdates, latency_budget_ms
from edge.update.provisioning import provision
from edge.update.slots import Slots
from rig.devices.bundle_server import BundleServer

QUICK = Patience(timeout_s=2.0, attempts=2, backoff_s=0.05, reserve_bytes=0)
TIMEOUT_S = 30.0


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def update_to(bundle: Path, url: str, **changes) -> Update:
    name, _, version = bundle.stem.rpartition("-")
    fields = {
        "device": "kitchen",
        "url": url,
        "bundle_name": name,
        "bundle_version": int(version),
        "bundle_sha256": sha256(bundle),
        "size_bytes": bundle.stat().st_size,
    }
    return Update(**(fields | changes))


class Device:
    """What an agent does with its updates, without the agent."""

    def __init__(self, folder: Path, bundle: Path, key: Path) -> None:
        provision(folder, bundle, bundle_keys=[key])
        self.slots = Slots(folder)
        self.told: list[UpdateStatus] = []
        self.boot()
        self.updates.confirm()
        self.poll()
        self.told.clear()

    def boot(self, **settings) -> None:
        self.choice = self.slots.choose()
        how = {"budget_ms": 500.0, "healthy_s": 0.05, "runs": 20, "patience": QUICK} | settings
        self.updates = SlotUpdates(device="kitchen", folder=self.slots.folder, pointer=self.choice.pointer, **how)

    def poll(self) -> list[str]:
        self.told += self.updates.poll("boot")
        return [status.stage for status in self.told]

    def until_over(self) -> UpdateStatus:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not set(self.poll()) & {"installed", "failed"}:
            assert time.monotonic() < deadline_s, self.told
            time.sleep(0.01)
        return self.told[-1]

    def update(self, bundle: Path, **changes) -> UpdateStatus:
        self.told.clear()
        with BundleServer(bundle, host="127.0.0.1") as server:
            self.updates.start(update_to(bundle, changes.pop("url", server.url), **changes))
            return self.until_over()


@pytest.fixture
def device(tmp_path, make_tiny_bundle, keys):
    made = Device(tmp_path / "kitchen", make_tiny_bundle(version=1), keys.public)
    yield made
    made.updates.close()


@pytest.fixture
def unharmed(device) -> Callable[[], None]:
    """Checks that the slot that runs is as it was."""
    before, content = device.slots.pointer(), device.slots.path("a").read_bytes()

    def check() -> None:
        now = device.slots.pointer()
        assert (now.active, now.confirmed, now.slots, now.highest) == ("a", True, before.slots, before.highest)
        assert device.slots.path("a").read_bytes() == content
        assert not device.updates.wants_restart
        assert device.slots.choose().bundle.manifest.version == 1

    return check


def test_an_update_from_command_to_confirmation(device, make_tiny_bundle):
    two = make_tiny_bundle(version=2)
    last = device.update(two)
    stages = list(dict.fromkeys(status.stage for status in device.told))
    assert stages == ["downloading", "verifying", "testing", "installed"]
    assert (last.slot, last.bundle_version, last.bundle_sha256) == ("b", 2, sha256(two))
    assert "p99" in last.detail
    size = two.stat().st_size
    assert [s.done_bytes for s in device.told if s.stage == "downloading"][-1] == size
    assert device.updates.wants_restart
    with pytest.raises(UsageError, match="about to restart"):
        device.updates.start(update_to(two, "http://127.0.0.1/"))

    device.boot()
    assert (device.updates.slot, device.updates.confirmed, device.updates.wants_restart) == ("b", False, False)
    assert device.choice.bundle.manifest.version == 2
    device.told.clear()
    assert device.poll() == ["running"]
    with pytest.raises(UsageError, match="has not proved itself"):
        device.updates.start(update_to(make_tiny_bundle(version=3), "http://127.0.0.1/"))
    device.updates.observe(healthy=True)
    device.updates.observe(healthy=False)
    time.sleep(0.06)
    device.updates.observe(healthy=True)
    assert not device.updates.confirmed
    time.sleep(0.06)
    device.updates.observe(healthy=True)
    assert device.updates.confirmed
    assert device.poll() == ["running", "confirmed"]

    device.boot()
    device.told.clear()
    assert device.poll() == ["confirmed"]
    assert device.poll() == ["confirmed"]


def test_a_bundle_that_crashes_thrice_is_left(device, make_tiny_bundle):
    device.update(make_tiny_bundle(version=2))
    for _ in range(3):
        device.boot()
        assert device.updates.slot == "b"
    device.boot()
    assert (device.updates.slot, device.updates.confirmed) == ("a", True)
    device.told.clear()
    assert device.poll() == ["reverted"]
    assert (device.told[0].bundle_version, device.told[0].slot) == (2, "b")


def test_rollback_and_its_limits(device, make_tiny_bundle):
    one, two = device.slots.read("a"), make_tiny_bundle(version=2)
    with pytest.raises(UsageError, match="other slot is empty"):
        device.updates.rollback(Rollback(device="kitchen", bundle_sha256=sha256(two)))
    device.update(two)
    device.boot()
    device.updates.confirm()
    with pytest.raises(UsageError, match="slot a holds level version 1"):
        device.updates.rollback(Rollback(device="kitchen", bundle_sha256=sha256(two)))
    device.told.clear()
    device.updates.rollback(Rollback(device="kitchen", bundle_sha256=one.sha256))
    last = device.until_over()
    assert list(dict.fromkeys(s.stage for s in device.told)) == [
        *(["running", "confirmed"]),
        *(["verifying", "testing", "installed"]),
    ]
    assert (last.slot, last.bundle_version) == ("a", 1)
    device.boot()
    assert device.choice.bundle.manifest.version == 1
    device.updates.confirm()
    # Below the highest that ran: only on purpose.
    three = make_tiny_bundle(version=1, card=b"other")
    with pytest.raises(UsageError, match="known here with other bytes"):
        device.updates.start(update_to(three, "http://127.0.0.1/", downgrade=True))


def test_a_downgrade_is_said_to_be_one(device, make_tiny_bundle):
    five, four = make_tiny_bundle(version=5), make_tiny_bundle(version=4)
    device.update(five)
    device.boot()
    device.updates.confirm()
    with pytest.raises(UsageError, match="version 4 is below 5"):
        device.updates.start(update_to(four, "http://127.0.0.1/"))
    assert device.update(four, downgrade=True).stage == "installed"


def test_the_same_bundle_again_is_no_update(device, make_tiny_bundle):
    with pytest.raises(UsageError, match="it is what runs here"):
        device.updates.start(update_to(make_tiny_bundle(version=1), "http://127.0.0.1/"))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("stranger", {}, "signed by another key"),
        ("altered", {}, "altered"),
        ("no bundle", {}, "not a bundle"),
        ("wrong scores", {}, "golden vectors differ"),
        ("good", {"bundle_version": 3}, "the bundle says level version 2, the command level version 3"),
        ("good", {"bundle_name": "other"}, "the bundle says level version 2, the command other version 2"),
        ("good", {"bundle_sha256": "0" * 64}, "has a file with SHA-256"),
        ("good", {"size_bytes": 1000}, "bytes for it, 1000 were announced"),
        ("good", {"url": "http://127.0.0.1:9/x"}, "Connection refused"),
    ],
)
def test_what_is_refused_leaves_the_device_as_it_was(
    device, unharmed, make_tiny_bundle, other_keys, tmp_path, kind, changes, message
):
    bundle = make_tiny_bundle(version=2, bias=0.01 if kind == "wrong scores" else 0.0)
    if kind == "stranger":
        bundle = make_tiny_bundle(version=2, key=other_keys)
    elif kind in {"altered", "no bundle"}:
        content = bytearray(bundle.read_bytes())
        content[40_000] ^= 1
        bundle = tmp_path / "level-2.earshot"
        bundle.write_bytes(content if kind == "altered" else b"x" * 5000)
    last = device.update(bundle, **changes)
    assert (last.stage, last.slot) == ("failed", None)
    assert message in last.detail
    assert device.slots.pointer().last_update.stage == "failed"
    unharmed()
    device.boot()
    device.told.clear()
    assert device.poll() == ["failed"]
    if kind == "wrong scores":
        assert device.update(make_tiny_bundle(version=3)).stage == "installed", "a failure must not stand in the way"


def test_a_bundle_too_slow_for_this_device_is_refused(device, unharmed, make_tiny_bundle):
    device.boot(budget_ms=1e-4)
    last = device.update(make_tiny_bundle(version=2))
    assert last.stage == "failed"
    assert "more than the 0.0 ms that this device has" in last.detail
    unharmed()
    assert latency_budget_ms(100) == 50
    assert latency_budget_ms(None) == 500


def test_a_slow_model_is_not_run_to_the_end(make_tiny_bundle, keys, monkeypatch):
    from edge.bundle.classifier import Classifier
    from edge.bundle.reading import read_bundle
    from edge.bundle.signing import load_public_key
    from edge.errors import ThresholdError
    from edge.update.trial import try_out

    runs: list[int] = []
    scores = Classifier.scores

    def counted(self, pcm, **how):
        runs.append(len(pcm))
        return scores(self, pcm, **how)

    monkeypatch.setattr(Classifier, "scores", counted)
    bundle = read_bundle(make_tiny_bundle(version=2), trusted=[load_public_key(keys.public)])
    with pytest.raises(ThresholdError, match="one window in a hundred takes"):
        try_out(bundle, runs=1000, latency_budget_ms=1e-4)
    assert len(runs) < 30


def test_a_trial_that_hangs_is_broken_off(device, unharmed, make_tiny_bundle):
    device.boot(runs=10_000, trial_s=0.02)
    last = device.update(make_tiny_bundle(version=2))
    assert last.stage == "failed"
    assert "took more than 0.02 s and was broken off" in last.detail
    unharmed()
    device.boot()
    device.poll()
    assert device.update(make_tiny_bundle(version=2)).stage == "installed"


def test_a_download_goes_on_after_the_process_was_killed(device, unharmed, make_tiny_bundle):
    bundle = make_tiny_bundle(version=2)
    part = device.slots.folder / f"download/{sha256(bundle)}.part"
    part.parent.mkdir()
    part.write_bytes(bundle.read_bytes()[:30_000])
    process_ids = []
    with BundleServer(bundle, host="127.0.0.1") as server:
        device.updates.start(update_to(bundle, server.url))
        process_ids.append(device.updates._process._process.pid)
        os.kill(process_ids[0], signal.SIGKILL)
        last = device.until_over()
        assert (last.stage, last.detail) == ("failed", "the updating process ended with code -9")
        unharmed()
        assert part.stat().st_size >= 30_000
        device.told.clear()
        device.updates.start(update_to(bundle, server.url))
        assert device.until_over().stage == "installed"


def test_a_download_gives_way_to_a_newer_command(device, make_tiny_bundle, free_port):
    two, three = make_tiny_bundle(version=2), make_tiny_bundle(version=3)
    device.boot(patience=Patience(timeout_s=5, attempts=50, backoff_s=1))
    device.updates.start(update_to(two, f"http://127.0.0.1:{free_port()}/x"))
    first = device.updates._process._process
    with pytest.raises(UsageError, match="an update is on its way"):
        device.updates.rotate(
            Rotate(device="kitchen", role="bundle", old_key="0" * 64, new_key="1" * 64, signature="0" * 128)
        )
    assert device.update(three).bundle_version == 3
    assert first.poll() is not None
    assert device.slots.choose().bundle.manifest.version == 3


def test_close_ends_the_process(device, make_tiny_bundle):
    device.updates.start(update_to(make_tiny_bundle(version=2), "http://127.0.0.1:9/x"))
    process = device.updates._process._process
    device.updates.close()
    assert process.returncode == -signal.SIGKILL
    assert device.poll() == []


def test_rotation_leaves_what_runs_and_refuses_the_old_key(device, make_tiny_bundle, keys, other_keys):
    unsigned = Rotate(
        device="kitchen",
        role="bundle",
        old_key=bytes(keys.signer.verify_key).hex(),
        new_key=bytes(other_keys.signer.verify_key).hex(),
        signature="0" * 128,
    )
    signature = keys.signer.sign(unsigned.signed_bytes()).signature.hex()
    with pytest.raises(UsageError, match="did not sign"):
        device.updates.rotate(unsigned)
    device.updates.rotate(unsigned.model_copy(update={"signature": signature}))
    device.boot()
    assert device.choice.bundle.manifest.version == 1
    assert "another key" in device.update(make_tiny_bundle(version=2)).detail
    assert device.update(make_tiny_bundle(version=2, key=other_keys)).stage == "installed"
    device.boot()
    device.updates.confirm()
    one = device.slots.read("a")
    device.updates.rollback(Rollback(device="kitchen", bundle_sha256=one.sha256))
    device.told.clear()
    assert device.until_over().stage == "installed", "a retired key vouches for the bundle that was there"


def run_worker(line: bytes) -> tuple[int, list[dict], str]:
    command = [sys.executable, "-m", "edge.update.worker"]
    done = subprocess.run(command, input=line, capture_output=True, timeout=60, check=False)
    return done.returncode, [json.loads(each) for each in done.stdout.splitlines()], done.stderr.decode()


@pytest.mark.parametrize("line", [b"", b"\n", b"{}", b"\xff\xfe\n", b"[" * 100_000, b'{"task": 1, "folder": "/"}'])
def test_a_malformed_job_is_one_line(line):
    code, stages, errors = run_worker(line)
    assert code == 2
    assert [stage["stage"] for stage in stages] == ["failed"]
    assert "\n" not in stages[0]["detail"]
    assert "Traceback" not in errors


def test_the_process_ends_with_its_parent(device, make_tiny_bundle, wait_until, tmp_path):
    job = Job(
        task=update_to(make_tiny_bundle(version=2), "http://127.0.0.1:9/x"),
        folder=device.slots.folder,
        parent_pid=os.getpid(),
        patience=Patience(attempts=1000, backoff_s=1),
    )
    code, stages, _ = run_worker(job.model_copy(update={"parent_pid": 1}).model_dump_json().encode() + b"\n")
    assert (code, stages) == (1, []), "a process whose parent is gone does nothing"
    script = """
import os, sys, time
from edge.update.job import Job
from edge.update.process import UpdatingProcess
job = Job.model_validate_json(sys.stdin.read()).model_copy(update={"parent_pid": os.getpid()})
process = UpdatingProcess(job)
while not process.stages():
    time.sleep(0.01)
print(process._process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    parent.stdin.write(job.model_dump_json().encode())
    parent.stdin.close()
    worker = int(parent.stdout.readline())
    assert Path(f"/proc/{worker}/cmdline").read_bytes().split(b"\0")[2] == b"edge.update.worker"
    niceness = int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[16])
    assert niceness >= 15
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{worker}/exe").exists(), 5, "the updating process outlived its parent")


def test_no_secret_and_no_job_on_the_command_line(device, make_tiny_bundle):
    device.updates.start(update_to(make_tiny_bundle(version=2), "http://127.0.0.1:9/secret-path"))
    process = device.updates._process._process
    assert process.args[1:] == ["-m", "edge.update.worker"]


def test_the_bundle_never_meets_onnxruntime_before_it_is_verified(device, make_tiny_bundle, other_keys):
    bundle = make_tiny_bundle(version=2, key=other_keys)
    with BundleServer(bundle, host="127.0.0.1") as server:
        job = Job(
            task=update_to(bundle, server.url), folder=device.slots.folder, parent_pid=os.getpid(), patience=QUICK
        )
        script = (
            "import sys, runpy, atexit\n"
            "atexit.register(lambda: sys.stderr.write(f'loaded={\"onnxruntime\" in sys.modules}'))\n"
            "runpy.run_module('edge.update.worker', run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=job.model_dump_json().encode() + b"\n",
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert b"signed by another key" in done.stdout
    assert done.stderr.endswith(b"loaded=False")


def test_restart_re_executes_with_the_same_arguments(tmp_path):
    script = tmp_path / "again.py"
    script.write_text(
        "import os, sys\n"
        "from edge.update.process import restart\n"
        "print(os.getpid(), sys.argv[1:], flush=True)\n"
        "if 'AGAIN' not in os.environ:\n"
        "    os.environ['AGAIN'] = '1'\n"
        "    restart()\n"
    )
    done = subprocess.run([sys.executable, script, "--name", "a b"], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.endswith("['--name', 'a b']")


def test_an_agent_without_slots_refuses_in_one_line():
    from edge.agent.updates import NoUpdates

    none = NoUpdates()
    for refused, command in (
        (
            none.start,
            Update(
                device="d", url="http://h/x", bundle_name="m", bundle_version=1, bundle_sha256="0" * 64, size_bytes=1
            ),
        ),
        (none.rollback, Rollback(device="d", bundle_sha256="0" * 64)),
        (none.rotate, Rotate(device="d", role="bundle", old_key="0" * 64, new_key="0" * 64, signature="0" * 128)),
    ):
        with pytest.raises(UsageError, match="--bundle"):
            refused(command)
    assert none.poll("boot") == []
