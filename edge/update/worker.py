"""The updating process, ``python -m edge.update.worker``: download, verify, try, install.

It is a process of its own so that neither its memory nor a crash of onnxruntime touches the agent. The job is one line
of JSON on standard input, see :class:`edge.update.job.Job`; each line on standard output is a
:class:`edge.update.job.Stage`. Before the last step the slot that runs is only read.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

from pydantic import ValidationError

from edge.bundle.providers import engine_cache
from edge.bundle.reading import Bundle
from edge.errors import EXIT_BUG, EXIT_OK, BundleError, EarshotError, UsageError, refused
from edge.messages import Rollback, Update
from edge.update.job import MAX_LINE_BYTES, Job, Stage
from edge.update.pull.download import download
from edge.update.pull.request import Wanted
from edge.update.slots import Slots
from edge.update.store import other

_NICENESS = 15
_TELL_EVERY_S = 1.0
# From sys/prctl.h.
_PR_SET_PDEATHSIG = 1

Tell = Callable[[Stage], None]


def work(job: Job, tell: Tell) -> None:
    """Do the job.

    Raises:
        EarshotError: why the bundle is not installed; the slot that runs is as it was.
    """
    slots = Slots(job.folder)
    pointer = slots.confirmed_pointer()
    if isinstance(job.task, Rollback):
        tell(Stage(stage="verifying"))
        bundle = slots.read(other(pointer.active))
        if bundle.sha256 != job.task.bundle_sha256:
            raise UsageError(
                f"slot {other(pointer.active)} holds {bundle.sha256[:12]}, not {job.task.bundle_sha256[:12]}:"
                " roll back to what is there, or send an update"
            )
        detail = _test(bundle, job, tell)
        tell(Stage(stage="installed", slot=slots.switch(bundle), detail=detail))
        return
    update = job.task
    pointer.check_version(update.bundle_name, update.bundle_version, update.bundle_sha256, downgrade=update.downgrade)
    wanted = Wanted(update.url, update.bundle_sha256, update.size_bytes)
    folder = job.folder / "download"
    part = download(wanted, folder, patience=job.patience, progress=_progress(wanted.size_bytes, tell))
    tell(Stage(stage="verifying", done_bytes=update.size_bytes, total_bytes=update.size_bytes))
    try:
        bundle = slots.verify(part)
        _check_announced(bundle, update)
        detail = _test(bundle, job, tell)
    except EarshotError:
        # It is whole and it is wrong: nothing of it is worth keeping.
        part.unlink(missing_ok=True)
        raise
    slot = slots.install(part, bundle)
    tell(
        Stage(stage="installed", slot=slot, done_bytes=wanted.size_bytes, total_bytes=wanted.size_bytes, detail=detail)
    )


def _progress(total_bytes: int, tell: Tell) -> Callable[[int], None]:
    told_s = 0.0

    def progress(done_bytes: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _TELL_EVERY_S or done_bytes == total_bytes:
            told_s = time.monotonic()
            tell(Stage(stage="downloading", done_bytes=done_bytes, total_bytes=total_bytes))

    tell(Stage(stage="downloading", total_bytes=total_bytes))
    return progress


def _check_announced(bundle: Bundle, update: Update) -> None:
    manifest = bundle.manifest
    found = (manifest.name, manifest.version, bundle.sha256)
    announced = (update.bundle_name, update.bundle_version, update.bundle_sha256)
    if found != announced:
        raise BundleError(
            f"the bundle says {found[0]} version {found[1]}, the command {announced[0]} version {announced[1]}:"
            " send the update again"
        )


def _test(bundle: Bundle, job: Job, tell: Tell) -> str:
    tell(Stage(stage="testing"))
    from edge.update.trial import try_out  # noqa: PLC0415 - nothing unverified is near onnxruntime before

    tried = try_out(
        bundle,
        runs=job.runs,
        latency_budget_ms=job.latency_budget_ms,
        threads=job.threads,
        members=job.members,
        provider=job.provider,
        cache=engine_cache(job.folder, bundle.sha256) if bundle.manifest.quantisation.profile == "portable" else None,
    )
    return (
        f"p50 {tried.p50_ms:.2f} ms, p99 {tried.p99_ms:.2f} ms on {tried.provider}, golden vectors within"
        f" {tried.difference:.2g}"
    )


def main() -> int:
    """Read a job, do it, and return the exit code."""
    os.nice(_NICENESS)
    logging.basicConfig(level="INFO", format="earshot-update: %(levelname)s %(message)s", stream=sys.stderr)
    try:
        job = _read_job()
        if not _die_with(job.parent_pid):
            return EXIT_BUG
        work(job, _tell)
    except EarshotError as error:
        return _fail(error)
    except OSError as error:
        told = refused(error)
        if told is None:
            raise
        return _fail(told)
    return EXIT_OK


def _fail(error: EarshotError) -> int:
    _tell(Stage(stage="failed", detail=" ".join(str(error).split())))
    return error.exit_code


def _read_job() -> Job:
    line = sys.stdin.buffer.readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES:
        raise UsageError(f"the job has more than {MAX_LINE_BYTES} bytes")
    try:
        return Job.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"job: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def _die_with(parent_pid: int) -> bool:
    """Never outlive the agent, a second one may be updating soon; false where it is gone already."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent_pid


def _tell(stage: Stage) -> None:
    sys.stdout.write(stage.model_dump_json(exclude_none=True) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
