"""Sweeps whose processes are killed, and sweeps on a Dask cluster whose workers are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

PLAN = {
    "schema": 1,
    "name": "killed",
    "seed": 3,
    "bundles": ["zoo:lms-int8"],
    "clips": {"data": "zoo", "split": "all", "count": 16},
    "attacks": [{"name": "benign"}, {"name": "random-sign", "eps": [0.002, 0.01]}],
    "delays_ms": [0, 20, 50, 100],
    "room": {
        "size_m": [4.5, 3.6, 2.6],
        "walls": 0.7,
        "talker_m": [2.2, 1.8, 1.5],
        "attackers_m": {"shelf": [3.4, 2.9, 1.6], "door": [0.5, 0.5, 1.2]},
        "devices_m": {"table": [2.9, 1.5, 0.9], "floor": [1.0, 1.5, 0.4]},
    },
    "sweep": {"levels_db": [-6, 0, 6]},
}
TOTAL = 16 * 2 + 16 * 2 * 2 * 4 * 2 * 3
CHUNK = 64
CHUNKS = 1 + 16 * 2 * 2 * 4 * 2 * 3 // CHUNK


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(plan: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "rig.cli.main", "sweep", "run", str(plan), "--out", str(out), "--json", *more]


def rows_of(out: Path) -> list[dict]:
    return [row for file in sorted((out / "rows").glob("chunk-*")) for row in pq.read_table(file).to_pylist()]


def finished(out: Path) -> int:
    return len(list((out / "rows").glob("chunk-*")))


def finish(plan: Path, out: Path, *more: str) -> dict:
    done = subprocess.run(
        command(plan, out, *more), env=environment(), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN))
    return path


@pytest.fixture(scope="module")
def undisturbed(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], dict]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    told = finish(plan, out, "--chunk", "512")
    assert told["complete"]
    assert told["total"] == TOTAL
    return rows_of(out), told


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_sweep_goes_on_where_it_was(plan, undisturbed, tmp_path, wait_until, workers):
    out = tmp_path / "out"
    arguments = command(plan, out, "--chunk", str(CHUNK), "--workers", str(workers))
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: finished(out) >= 3 or process.poll() is not None, timeout_s=120)
        assert process.poll() is None, "it was done before it could be killed"
        helpers = psutil.Process(process.pid).children(recursive=True)
        assert len(helpers) >= (workers if workers > 1 else 0)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        wait_until(lambda: not any(alive(each) for each in helpers), timeout_s=30, complaint="workers linger")
    finally:
        kill_group(process)
    kept = {file.name: file.stat().st_mtime_ns for file in (out / "rows").glob("chunk-*")}
    assert 3 <= len(kept) < CHUNKS
    assert not (out / "summary.json").exists()
    # Half a file of a process that was killed while it wrote.
    (out / "rows" / ".chunk-0000000.parquet.1").write_bytes(b"PAR1")
    told = finish(plan, out)
    assert told["chunks_found"] >= 3
    assert told["chunks_computed"] == CHUNKS - told["chunks_found"]
    for name, time_ns in kept.items():
        assert (out / "rows" / name).stat().st_mtime_ns == time_ns
    assert not list((out / "rows").glob(".*"))
    assert rows_of(out) == undisturbed[0]
    assert told["overall"] == undisturbed[1]["overall"]


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_group(process: subprocess.Popen) -> None:
    """Its workers too; they hold nothing that anybody misses."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture
def cluster(tmp_path, free_port):
    """A scheduler and two workers, each a process of its own; the workers have no nanny that would start them anew."""
    pytest.importorskip("distributed", reason="not installed: pip install 'earshot[cluster]'")
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    # The commands `dask scheduler` and `dask worker` with the interpreter of the tests.
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1"]
    worker += ["--no-dashboard", "--memory-limit", "0", "--death-timeout", "60"]
    processes = [subprocess.Popen([*scheduler, "--no-dashboard"], env=environment(), stderr=subprocess.DEVNULL)]
    for number in (1, 2):
        folder = tmp_path / f"worker-{number}"
        folder.mkdir()
        arguments = [*worker, "--name", f"w{number}", "--local-directory", str(folder)]
        processes.append(subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL, cwd=folder))
    yield address, processes
    for process in processes:
        process.kill()
        process.wait(timeout=30)


def wait_for_workers(address: str, count: int) -> None:
    from distributed import Client

    with Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


def test_a_cluster_gives_the_same_rows_and_survives_the_death_of_a_worker(
    plan, undisturbed, tmp_path, cluster, wait_until
):
    address, (_, victim, _) = cluster
    wait_for_workers(address, 2)
    out = tmp_path / "out"
    arguments = command(plan, out, "--chunk", str(CHUNK), "--scheduler", address)
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: finished(out) >= 4 or process.poll() is not None, timeout_s=120)
        assert process.poll() is None, process.communicate()
        victim.kill()
        before = finished(out)
        stdout, stderr = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert before < CHUNKS
    told = json.loads(stdout)
    assert (told["complete"], told["chunks_computed"]) == (True, CHUNKS)
    assert rows_of(out) == undisturbed[0]
    assert told["overall"] == undisturbed[1]["overall"]


def test_a_cluster_that_dies_leaves_what_is_finished(plan, undisturbed, tmp_path, cluster, wait_until):
    address, processes = cluster
    wait_for_workers(address, 2)
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(plan, out, "--chunk", str(CHUNK), "--scheduler", address),
        env=environment() | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: finished(out) >= 2 or process.poll() is not None, timeout_s=120)
        for each in processes:
            each.kill()
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 4, stderr
    assert "what is finished is kept, run the same command again" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    kept = finished(out)
    assert 2 <= kept < CHUNKS
    told = finish(plan, out)
    assert told["chunks_found"] == kept
    assert rows_of(out) == undisturbed[0]


@pytest.mark.parametrize(
    "clips",
    [1, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])],
    ids=["ten-thousand", "million"],
)
def test_memory_stays_flat(tmp_path, clips):
    """Peak resident memory of one process that renders and scores 10,000 conditions per clip, under 1.5 GB."""
    clips = min(clips, int(os.environ.get("EARSHOT_SWEEP_CLIPS", "100")))
    document = PLAN | {
        "clips": {"data": "zoo", "split": "all", "count": clips},
        "attacks": [{"name": "random-sign", "eps": [0.001, 0.002, 0.005, 0.01, 0.02]}],
        "delays_ms": [float(i) for i in range(100)],
        "sweep": {"levels_db": [-6, -3, 0, 3, 6]},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(document))
    out = tmp_path / "out"
    process = subprocess.Popen(command(path, out), env=environment(), stdout=subprocess.PIPE, text=True)
    early = last = 0
    while process.poll() is None:
        last = max(last, peak_kib(process.pid))
        if finished(out) <= 4:  # of 20 or more
            early = last
        time.sleep(0.2)
    told = json.loads(process.stdout.read() if process.stdout else "")
    assert process.returncode == 0
    assert told["total"] == clips * 10_000
    print(f"{told['total']} conditions in {told['seconds']} s")
    print(f"peak {last / 1024:.0f} MiB, {early / 1024:.0f} MiB after the first chunks")
    assert last * 1024 < 1.5e9
    assert last < 1.15 * early + 50_000


def peak_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")), 0)
