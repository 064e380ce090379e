"""Chunks on this machine: in this process, or in several that joblib keeps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from edge.errors import UnavailableError
from rig.sweep import rows
from rig.sweep.engine import Engine
from rig.sweep.job import Job, read_job

PARENT_EVERY_S = 1.0


def compute_here(job: Job, wanted: Sequence[int], *, device: str) -> Iterator[tuple[int, int]]:
    """Compute chunks one after the other in this process; yields their numbers, with 0 once a chunk is stored."""
    engine = Engine(job, device=device)
    for number in wanted:
        span = job.grid.span(number)
        content = engine.run(span, job.sounds(span))
        rows.store(job.folder, number, content)
        yield number, 0


def compute_beside(job: Job, wanted: Sequence[int], workers: int) -> Iterator[tuple[int, int]]:
    """Compute chunks in processes of their own; yields their numbers, with 0, as they are stored.

    Raises:
        UnavailableError: a process was killed, e.g. for want of memory.
    """
    from joblib import Parallel, delayed, parallel_config  # noqa: PLC0415 - not for one process
    from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415 - as above
    from joblib.externals.loky.process_executor import TerminatedWorkerError  # noqa: PLC0415 - as above

    here = (str(job.folder), job.description.digest, os.getpid())
    tasks = (delayed(_compute)(*here, number) for number in wanted)
    try:
        with parallel_config(backend="loky", inner_max_num_threads=1):
            parallel = Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="2*n_jobs", batch_size=1)
            for number in parallel(tasks):
                yield number, 0
    except TerminatedWorkerError:
        raise UnavailableError(
            f"sweep {job.folder}: a worker was killed (memory?); what is finished is kept, run the same command again,"
            " perhaps with fewer --workers"
        ) from None
    finally:
        get_reusable_executor(max_workers=workers).shutdown(wait=False, kill_workers=True)


def _compute(folder: str, digest: str, parent: int, number: int) -> int:
    job, engine = _opened(folder, digest, parent)
    span = job.grid.span(number)
    rows.store(job.folder, number, engine.run(span, job.sounds(span)))
    return number


@lru_cache(maxsize=1)
def _opened(folder: str, digest: str, parent: int) -> tuple[Job, Engine]:
    """Once per worker process; the digest tells sweeps apart that stood in the same folder one after the other."""
    del digest
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    job = read_job(Path(folder), check=False)
    return job, Engine(job)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for minutes for work that never comes."""
    while os.getppid() == parent:
        time.sleep(PARENT_EVERY_S)
    os._exit(1)
