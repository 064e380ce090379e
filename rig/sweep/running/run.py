"""The run of a sweep: chunks that are not there yet are computed, by whom does not matter; then they are counted."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge import files
from edge.errors import PlanError, UnavailableError, UsageError
from firmware_models.progress import Progress, silent
from rig.sweep import rows
from rig.sweep.job import Job
from rig.sweep.running import local
from rig.sweep.summary import Summary, write_summary

LOCK = ".lock"


@dataclass(frozen=True)
class Outcome:
    """What a run did: ``computed`` chunks now, ``found`` whole from before, ``replaced`` because they were damaged."""

    summary: Summary
    computed: int
    found: int
    replaced: int


def run(
    job: Job,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Outcome:
    """Compute every chunk of a sweep that its folder lacks, and write the summary.

    Args:
        job: prepared in its folder.
        workers: processes on this machine, one thread each.
        scheduler: address of a Dask scheduler, instead of this machine.
        device: ``cpu`` or ``cuda``.
        progress: conditions done of all.

    Raises:
        PlanError: somebody else computes this sweep at the moment, or the disk refuses.
        UnavailableError: the scheduler cannot be reached, workers died too often, there is no GPU.
    """
    check_machinery(workers=workers, scheduler=scheduler, device=device)
    if device.partition(":")[0] != job.description.device:
        raise UsageError(f"--device {device}: the sweep in {job.folder} was begun for {job.description.device}")
    with _locked(job.folder):
        rows.clear_unfinished(job.folder)
        wanted, replaced = _open_chunks(job, progress)
        done = job.grid.total - sum(job.grid.span(number).stop - job.grid.span(number).start for number in wanted)
        for number, partly in _computed(job, wanted, workers, scheduler, device):
            span = job.grid.span(number)
            done += 0 if partly else span.stop - span.start
            progress(done + partly, job.grid.total, job.grid.blocks[span.block].attack)
        summary = write_summary(job, progress=progress)
    return Outcome(summary, computed=len(wanted), found=job.grid.chunks - len(wanted), replaced=replaced)


def check_machinery(*, workers: int, scheduler: str | None, device: str) -> None:
    """Refuse what cannot compute anything, before anything long is prepared for it.

    Raises:
        UsageError: no workers, two kinds of them, a device that is none.
        UnavailableError: there is no GPU here, and the GPU of no other machine is meant.
    """
    if workers < 1:
        raise UsageError(f"--workers {workers}: at least 1")
    if workers > 1 and scheduler is not None:
        raise UsageError(
            f"--workers {workers}: those of a cluster are started there; leave --workers or --scheduler out"
        )
    if device.partition(":")[0] not in {"cpu", "cuda"}:
        raise UsageError(f"--device {device!r}: use cpu, cuda or cuda:NUMBER")
    if device == "cpu" or scheduler is not None:
        return
    if workers > 1:
        raise UsageError(f"--workers {workers}: a GPU has one; leave --workers or --device out")
    import torch  # noqa: PLC0415 - takes seconds, and processors do without

    if not torch.cuda.is_available():
        raise UnavailableError(f"--device {device}: torch sees no GPU here, leave --device out")


def _computed(
    job: Job, wanted: Sequence[int], workers: int, scheduler: str | None, device: str
) -> Iterator[tuple[int, int]]:
    if not wanted:
        return iter(())
    if scheduler is not None:
        from rig.sweep.running import cluster  # noqa: PLC0415 - distributed is an extra of its own

        return cluster.compute(job, wanted, scheduler, device=device)
    if workers == 1:
        return local.compute_here(job, wanted, device=device)
    return local.compute_beside(job, wanted, workers)


def _open_chunks(job: Job, progress: Progress) -> tuple[list[int], int]:
    wanted, replaced = [], 0
    for number in range(job.grid.chunks):
        path = rows.path(job.folder, number)
        if path.exists():
            if rows.is_whole(job.folder, job.grid, number, job.description.digest):
                continue
            replaced += 1
            path.unlink()
        wanted.append(number)
        progress(number + 1, job.grid.chunks, "checking what is there")
    return wanted, replaced


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    files.make_folder(folder / rows.FOLDER)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PlanError(f"sweep {folder}: is being computed by another process, wait for it or stop it") from None
        yield
