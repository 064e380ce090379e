"""What a sweep gains: against the loop that convolves and scores one condition at a time, and by a second worker."""

from __future__ import annotations

import os
import subprocess
import sys
from time import perf_counter, thread_time

import numpy as np
import pytest
import yaml
from scipy.signal import oaconvolve

ROUNDS = 5
ROWS = 384
# Scoring alone takes a quarter to a third of the plain loop, which no rendering can make less.
LEAST_GAIN = 2.5


def document(**changes):
    return {
        "schema": 1,
        "name": "bench",
        "seed": 1,
        "bundles": ["zoo:lms-int8"],
        "clips": {"data": "zoo", "split": "all", "count": 20},
        "attacks": [{"name": "random-sign", "eps": [0.001, 0.002, 0.005, 0.01, 0.02]}],
        "delays_ms": [float(10 * i) for i in range(10)],
        "room": {
            "size_m": [5, 4, 2.7],
            "rt60_s": 0.6,
            "talker_m": [1.5, 1.5, 1.5],
            "attackers_m": {"ring": {"circle": {"centre_m": [2.5, 2.0, 1.2], "radius_m": 1.4, "count": 10}}},
            "devices_m": {"desk": [2.5, 2.0, 0.8]},
        },
        **changes,
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    from rig.plan import load
    from rig.sweep.prepare import begin, outline

    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(document()))
    return begin(outline(load(path)), folder / "out")


def test_end_to_end_against_the_plain_loop(job):
    """20 clips x 10 positions x 10 delays x 5 budgets = 10,000 conditions with INT8 scoring; a share of them here."""
    from edge.bundle.classifier import Classifier
    from rig.sweep.engine import Engine

    assert job.grid.total == 10_000
    engine, classifier = Engine(job), Classifier(job.bundles["lms-int8"])
    clips = np.load(job.folder / "material/clips.npy").astype(float) / 32768
    made = np.load(job.folder / "material/perturbations.npy").astype(float) / 32768
    responses = job.responses.astype(float)
    rng = np.random.default_rng(1)
    start = round(float(job.onsets[0, 0, 0]))

    def plain(indices):
        for index in indices:
            places = {axis: int(place[0]) for axis, place in job.grid.places(0, np.array([index])).items()}
            told = job.grid.describe(0, places)
            heard = oaconvolve(clips[places["clip"]], responses[0])[start : start + 16_000]
            played = oaconvolve(made[places["clip"]] * (told["eps"] / 0.02), responses[1 + places["attacker"]])
            late = np.concatenate([np.zeros(round(told["delay_ms"] * 16)), played])[start : start + 16_000]
            heard = heard + late + rng.standard_normal(16_000) * 10**-3.5
            pcm = np.clip(np.rint(heard * 32768), -32768, 32767) / 32768
            classifier.scores(pcm[np.newaxis].astype(np.float32))

    span = job.grid.span(0)._replace(stop=ROWS)
    sounds = job.sounds(span)
    engine.table(span, sounds)
    plain(range(4))
    loop_s, sweep_s = [], []
    for number in range(ROUNDS):
        began = thread_time()
        plain(range(number * 40, number * 40 + 40))
        loop_s.append((thread_time() - began) / 40)
        began = thread_time()
        engine.table(span, sounds)
        sweep_s.append((thread_time() - began) / ROWS)
    loop, sweep = float(np.median(loop_s)), float(np.median(sweep_s))
    print(f"\nplain loop {loop * 1e3:.2f} ms, sweep {sweep * 1e3:.3f} ms per condition: {loop / sweep:.1f}x", end="")
    print(f" ({1 / sweep:.0f} conditions/s per core; {job.responses.shape[1]} taps, load {os.getloadavg()[0]:.1f})")
    assert loop / sweep > LEAST_GAIN


def test_bytes_of_a_row(job):
    from rig.sweep.engine import Engine

    span = job.grid.span(0)
    content = Engine(job).run(span, job.sounds(span))
    rows = span.stop - span.start
    print(f"\n{len(content) / rows:.1f} bytes per row in a file of {rows} rows")
    assert len(content) / rows < 40


def both_processors() -> float:
    """What two loops that share nothing get at once of the processor that one of them gets alone."""
    loop = "import time\nt = time.perf_counter()\nwhile time.perf_counter() - t < 1: pass\nprint(time.process_time())"

    def got_s(count: int) -> float:
        loops = [
            subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        return sum(float(each.communicate()[0]) for each in loops)

    return got_s(2) / got_s(1) / 2


def test_a_second_dask_worker(job, tmp_path, free_port):
    """Conditions per second of the wall, and per second of processor, which a busy machine does not change."""
    pytest.importorskip("distributed", reason="not installed: pip install 'earshot[cluster]'")
    import psutil
    from distributed import Client

    from rig.sweep import rows
    from rig.sweep.running import cluster

    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(*arguments):
        line = [sys.executable, "-m", *arguments]
        return subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL, cwd=tmp_path)

    def worker():
        return start(
            *("distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"),
            *("--memory-limit", "0", "--local-directory", str(tmp_path)),
        )

    processes = [start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")]
    (job.folder / rows.FOLDER).mkdir(exist_ok=True)
    walls, rates, per_cpu = {}, {}, {}
    try:
        with Client(address, timeout=60, set_as_default=False) as client:
            for count in (1, 2):
                processes.append(worker())
                client.wait_for_workers(count, timeout=60)
                list(cluster.compute(job, list(range(2 * count)), address, device="cpu"))  # libraries, compiled code
                busy = [psutil.Process(each.pid) for each in processes[1:]]
                used_s = -sum(sum(each.cpu_times()[:2]) for each in busy)
                wanted = list(range(4, 4 + 6 * count))
                done = sum(job.grid.span(n).stop - job.grid.span(n).start for n in wanted)
                walls[count] = []
                for _ in range(ROUNDS):
                    began = perf_counter()
                    list(cluster.compute(job, wanted, address, device="cpu"))
                    walls[count].append(perf_counter() - began)
                used_s += sum(sum(each.cpu_times()[:2]) for each in busy)
                # The quickest round is the one in which nobody else wanted the processors.
                rates[count], per_cpu[count] = done / min(walls[count]), ROUNDS * done / used_s
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=30)
    efficiency = per_cpu[2] / per_cpu[1]
    told = f"one worker {rates[1]:.0f}/s, two {rates[2]:.0f}/s ({rates[2] / rates[1] / 2:.0%} of twice)"
    print(f"\n{told}; per second of processor {per_cpu[1]:.0f} and {per_cpu[2]:.0f} ({efficiency:.0%})", end="")
    print(f"; two empty loops get {both_processors():.0%} of twice now, load {os.getloadavg()[0]:.1f}")
    assert efficiency > 0.8
