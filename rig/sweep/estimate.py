"""What a sweep would take: on this machine, and on a cluster, computed from measured rates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge.bundle.classifier import Classifier
from edge.bundle.reading import Bundle
from rig.sweep.grid import BATCH

# Measured: rows of a sweep in a room, as they lie on the disk in files of 8,192 (smaller files need more).
FILE_BYTES_PER_ROW = 10.0
# Measured: a worker of a sweep with INT8 LMS, interpreter and libraries; and what its renderer may keep.
WORKER_BYTES = 350_000_000 + 96_000_000
# Measured: reading what a chunk plays, sending it, and writing its file durably; one process does it for all workers.
CHUNK_S = 0.012


@dataclass(frozen=True)
class Load:
    """The size of a sweep and of what it moves, all counted per condition, chunk or worker.

    Attributes:
        conditions: in all.
        chunk: conditions per chunk.
        clips_per_chunk: clips that a chunk plays, each with ``perturbations_per_clip``.
        window_samples: of clips and perturbations, 2 bytes each.
        responses: pairs of loudspeaker and microphone.
        taps: of a response, 4 bytes each.
        bundle_bytes: of all bundles.
    """

    conditions: int
    chunk: int = 8192
    clips_per_chunk: int = 2
    perturbations_per_clip: int = 1
    window_samples: int = 16_000
    responses: int = 100
    taps: int = 8000
    bundle_bytes: int = 500_000


@dataclass(frozen=True)
class Need:
    """What a sweep takes on a cluster.

    ``hours`` of the wall; ``bound_by`` the workers, or the one process that writes the files: then larger chunks help.
    """

    hours: float
    bound_by: Literal["workers", "writer"]
    chunks: int
    equipment_bytes: float
    sounds_bytes: float
    rows_bytes: float
    scheduler_bytes_per_s: float
    worker_bytes: float


def cluster_need(
    load: Load,
    *,
    nodes: int,
    workers_per_node: int,
    rate_per_s: float,
    efficiency: float = 0.8,
    file_bytes_per_row: float = FILE_BYTES_PER_ROW,
    worker_bytes: float = WORKER_BYTES,
    chunk_s: float = CHUNK_S,
) -> Need:
    """What ``load`` takes on ``nodes``, each with so many one-thread workers that do ``rate_per_s`` conditions alone.

    Args:
        load: the sweep.
        nodes: machines.
        workers_per_node: processes on each, one per core.
        rate_per_s: conditions that one worker renders and scores in a second.
        efficiency: of many workers against as many times one.
        file_bytes_per_row: on the disk, and on the way there.
        worker_bytes: resident memory of one worker before responses.
        chunk_s: what a chunk costs the process that hands chunks out and writes their files.
    """
    workers = nodes * workers_per_node
    chunks = -(-load.conditions // load.chunk)
    computing_s, writing_s = load.conditions / (workers * rate_per_s * efficiency), chunks * chunk_s
    seconds = max(computing_s, writing_s)
    responses_bytes = load.responses * load.taps * 4
    equipment = float(workers * (responses_bytes + load.bundle_bytes))
    sounds = float(chunks * load.clips_per_chunk * (1 + load.perturbations_per_clip) * load.window_samples * 2)
    rows_bytes = load.conditions * file_bytes_per_row
    return Need(
        hours=seconds / 3600,
        bound_by="workers" if computing_s >= writing_s else "writer",
        chunks=chunks,
        equipment_bytes=equipment,
        sounds_bytes=sounds,
        rows_bytes=rows_bytes,
        scheduler_bytes_per_s=(equipment + sounds + rows_bytes) / seconds,
        worker_bytes=worker_bytes + responses_bytes,
    )


def scoring_s(bundles: Sequence[Bundle], *, seed: int = 0) -> float:
    """Seconds that scoring takes per condition here and now, the mean of the bundles, by a batch of noise each."""
    took = []
    for bundle in bundles:
        classifier = Classifier(bundle, threads=1)
        shape = (BATCH, bundle.manifest.window_samples)
        pcm = np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)
        noise = None if classifier.members is None else classifier.noise(bytes(16))
        classifier.scores(pcm[:2], noise=noise)
        began = time.perf_counter()
        classifier.scores(pcm, noise=noise)
        took.append((time.perf_counter() - began) / BATCH)
    return float(np.mean(took))
