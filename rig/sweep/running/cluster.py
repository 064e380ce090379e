"""Chunks on a Dask cluster: what all chunks need goes to every worker once, what a chunk plays goes with it.

Workers need no common disk: rows come back as the bytes of their file and are written here. A worker that dies loses
the chunk it computes, which another one gets; one that joins later is given what it needs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import edge
from edge.errors import UnavailableError, UsageError
from rig.sweep import rows
from rig.sweep.engine import Engine
from rig.sweep.grid import Span
from rig.sweep.job import Job, Sounds

try:
    from distributed import Client, Security, WorkerPlugin, as_completed, get_worker
    from distributed.scheduler import KilledWorker
except ImportError:
    raise UnavailableError("--scheduler: dask is not installed here; pip install 'earshot[cluster]'") from None

SCHEMES = ("tcp://", "tls://")
TIMEOUT_S = 20
# A chunk is tried again so often when its worker fails.
RETRIES = 5
# Chunks on their way per thread of the cluster: one computed, the others waiting so that none waits for us.
AHEAD = 3


class Equipment(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """What a worker needs for every chunk of a sweep."""

    def __init__(self, job: Job, device: str) -> None:
        self.name = _plugin_name(job.description.digest)
        self._job, self._device = job, device

    def setup(self, worker: Any) -> None:
        """Called by every worker, also by one that joins later."""
        del worker
        if edge.__version__ != self._job.description.earshot_version:
            raise RuntimeError(f"earshot {edge.__version__} instead of {self._job.description.earshot_version}")
        # A worker may have several threads, and sessions of onnxruntime and renderers belong to one.
        self._local = threading.local()

    def teardown(self, worker: Any) -> None:
        """Called when the sweep is over."""
        del worker
        del self._local

    @property
    def engine(self) -> Engine:
        """The engine of this thread."""
        if not hasattr(self._local, "engine"):
            self._local.engine = Engine(self._job, device=self._device)
        engine: Engine = self._local.engine
        return engine


def compute(job: Job, wanted: Sequence[int], scheduler: str, *, device: str) -> Iterator[tuple[int, int]]:
    """Compute chunks on a cluster; yields their numbers, with 0, as they are stored.

    Raises:
        UsageError: an address that is none.
        UnavailableError: nobody answers there, there is no worker, or one chunk kills every worker that has it.
    """
    if not scheduler.startswith(SCHEMES):
        raise UsageError(f"--scheduler {scheduler!r}: give tcp://HOST:PORT or tls://HOST:PORT")
    with _quiet():
        yield from _compute_on(job, wanted, scheduler, device)


def _compute_on(job: Job, wanted: Sequence[int], scheduler: str, device: str) -> Iterator[tuple[int, int]]:
    try:
        security = Security(require_encryption=True) if scheduler.startswith("tls://") else None
        client = Client(scheduler, timeout=TIMEOUT_S, security=security, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UnavailableError(f"--scheduler {scheduler}: cannot be reached ({_line(error)})") from None
    # ``folder`` means nothing elsewhere.
    equipment = Equipment(replace(job, folder=Path()), device)
    try:
        threads = sum(client.nthreads().values())
        if not threads:
            raise UnavailableError(
                f"--scheduler {scheduler}: has no workers; start some with 'dask worker {scheduler}'"
            )
        _equip(client, equipment, scheduler)
        yield from _follow(client, job, wanted, threads * AHEAD)
    except KilledWorker as error:
        raise UnavailableError(
            f"--scheduler {scheduler}: {_line(error)}; what is finished is kept, run the same command again"
        ) from None
    except (OSError, CancelledError) as error:
        raise UnavailableError(
            f"--scheduler {scheduler}: lost ({_line(error)}); what is finished is kept, run the same command again"
        ) from None
    finally:
        _leave(client, equipment.name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep distributed from writing tracebacks of what is told in one line here."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _equip(client: Any, equipment: Equipment, scheduler: str) -> None:
    try:
        client.register_plugin(equipment)
    except Exception as error:  # noqa: BLE001 - whatever a worker raises, an import that fails among others
        raise UnavailableError(
            f"--scheduler {scheduler}: workers cannot be equipped ({_line(error)}); they need the same earshot as here"
        ) from None


def _follow(client: Any, job: Job, wanted: Sequence[int], ahead: int) -> Iterator[tuple[int, int]]:
    def submit(number: int) -> Any:
        span = job.grid.span(number)
        digest = job.description.digest
        key = f"earshot-{digest[:16]}-{number}"
        return client.submit(_compute, digest, span, job.sounds(span), key=key, retries=RETRIES, pure=False)

    waiting = iter(wanted)
    running = as_completed([submit(number) for _, number in zip(range(ahead), waiting, strict=False)], loop=client.loop)
    for future in running:
        number, content = future.result()
        future.release()
        rows.store(job.folder, number, content)
        yield number, 0
        following = next(waiting, None)
        if following is not None:
            running.add(submit(following))


def _compute(digest: str, span: Span, sounds: Sounds) -> tuple[int, bytes]:
    equipment = get_worker().plugins[_plugin_name(digest)]
    return span.number, equipment.engine.run(span, sounds)


def _leave(client: Any, plugin: str) -> None:
    # The scheduler may be gone or never have come; then there is nothing to take back.
    with suppress(Exception):
        if client.status != "running":
            raise ConnectionError(client.status)
        client.unregister_worker_plugin(plugin)
    client.close(timeout=5)


def _plugin_name(digest: str) -> str:
    return f"earshot-{digest[:16]}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
