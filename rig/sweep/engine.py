"""One chunk of a sweep: from indices to rows. Every worker has one of these."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from edge.bundle.classifier import Classifier
from edge.bundle.reading import Bundle
from firmware_models.progress import Progress, silent
from rig.render import SILENT, Conditions, Levels, Material, Stage, open_renderer
from rig.scenes.capture import Clipping, Quantisation, clipped_share
from rig.scenes.scene import Scene
from rig.sweep import rows
from rig.sweep.grid import BATCH, Block, Integers, Span
from rig.sweep.job import Job, Sounds

FULL_SCALE = np.float32(32768)
# Share of samples at full scale above which the capture counts as clipped: single peaks do not change a decision.
MAX_CLIPPED_SHARE = 0.001
# Spectra and convolved sounds; a chunk's neighbours need no more.
CACHE_BYTES = 96_000_000
_Column = npt.NDArray[Any]
Scorer = Callable[[npt.NDArray[np.float32], Integers], npt.NDArray[np.float32]]


class Engine:
    """Renders and scores the chunks of a job, in any order.

    Args:
        job: the sweep.
        device: ``cpu``, or ``cuda`` for rendering there and scoring with the bundle's torch twin.
    """

    def __init__(self, job: Job, *, device: str = "cpu") -> None:
        self._job, self._device = job, device
        self._scorers: dict[str, Scorer] = {}
        self._talker_rms = np.zeros(0)

    def run(self, span: Span, sounds: Sounds, *, progress: Progress = silent) -> bytes:
        """The file of a chunk, see :mod:`rig.sweep.rows`."""
        return rows.encode(self.table(span, sounds, progress=progress), span, self._job.description.digest)

    def table(self, span: Span, sounds: Sounds, *, progress: Progress = silent) -> pa.Table:
        """The rows of a chunk."""
        grid = self._job.grid
        block = grid.blocks[span.block]
        places = grid.places(span.block, np.arange(span.start, span.stop, dtype=np.int64))
        clip = np.array(block.clips, np.int64)[places["clip"]]
        score = self._scorer(block.bundle)
        labels = self._job.description.labels
        truth = np.array([labels.index(each.label) for each in grid.axes.clips], np.int64)[clip]
        count = span.stop - span.start
        heard, margin = np.empty(count, np.int64), np.empty(count, np.float32)
        clipped, finite = np.empty(count, np.float32), np.empty(count, bool)
        linf, snr_db, talker_rms = np.empty(count), np.empty(count), np.empty(count)
        for part, pcm, levels in self._rendered(span, sounds, places):
            indices = np.arange(span.first + part.start, span.first + part.stop, dtype=np.int64)
            self._talker_rms = levels.talker_rms
            clipped[part] = clipped_share(self._stages, pcm, indices)
            scores = score(pcm, indices)
            finite[part] = np.isfinite(scores).all(axis=1)
            heard[part], margin[part] = _decide(scores, truth[part])
            linf[part], snr_db[part], talker_rms[part] = levels.linf, levels.snr_db, levels.talker_rms
            progress(part.stop, count, block.attack)
        reason = np.where(clipped > MAX_CLIPPED_SHARE, rows.REASONS.index(rows.CLIPPED), -1)
        reason[~finite] = rows.REASONS.index(rows.SPEECHLESS)
        with np.errstate(divide="ignore"):
            talker_dbfs = 20 * np.log10(talker_rms)
        measured = {
            "heard": _words(heard, labels),
            "correct": heard == truth,
            "targeted": self._targeted(block, heard),
            "margin": margin,
            "linf": linf.astype(np.float32),
            "snr_db": snr_db.astype(np.float32),
            "talker_dbfs": talker_dbfs.astype(np.float32),
            "clipped": clipped,
            "reason": _words(reason, rows.REASONS),
        }
        said = {
            "clip": clip.astype(np.int32),
            "repeat": places["repeat"].astype(np.int32),
            "label": _words(truth, labels),
        }
        index = {"index": np.arange(span.first, span.first + count, dtype=np.int64)}
        return pa.table(index | self._condition(span.block, places) | said | measured)

    def heard(self, span: Span, sounds: Sounds, rendered: slice) -> npt.NDArray[np.float32]:
        """What the device hears in some conditions of a chunk, float32 (conditions, window): to be listened to."""
        places = self._job.grid.places(span.block, np.arange(span.start, span.stop, dtype=np.int64))
        parts = []
        for part, pcm, levels in self._rendered(span, sounds, places):
            low, high = max(part.start, rendered.start), min(part.stop, rendered.stop)
            if low >= high:
                continue
            self._talker_rms = levels.talker_rms
            clipped_share(self._stages, pcm, np.arange(span.first + part.start, span.first + part.stop, dtype=np.int64))
            parts.append(pcm[low - part.start : high - part.start].copy())
        return np.concatenate(parts)

    def _rendered(self, span: Span, sounds: Sounds, places: dict[str, Integers]) -> Any:
        """Batches of a chunk before the device's stages: rows, PCM (overwritten by the next batch), levels."""
        window = self._job.description.window_samples
        material = Material(_floats(sounds.clips), _floats(sounds.perturbations), self._job.responses)
        conditions = self._conditions(span, places, len(sounds.clips))
        renderer = open_renderer(material, device=self._device, window=window, block=BATCH, cache_bytes=CACHE_BYTES)
        buffer = np.empty((BATCH, window), np.float32)
        for start in range(0, len(conditions), BATCH):
            part = slice(start, min(start + BATCH, len(conditions)))
            pcm = buffer[: part.stop - start]
            levels: Levels
            _, levels = renderer.render(conditions[part], out=pcm)
            yield part, pcm, levels

    def _conditions(self, span: Span, places: dict[str, Integers], clips: int) -> Conditions:
        grid, onsets = self._job.grid, self._job.onsets
        block, axes = grid.blocks[span.block], grid.axes
        _, devices, sources = onsets.shape
        response = (places["room"] * devices + places["device"]) * sources
        played = places["clip"] - places["clip"][0]
        level, attacker, perturbation = np.ones(1), places["talker"], np.full(len(played), SILENT, np.int64)
        if block.family is not None:
            attacker = len(axes.talkers) + places["attacker"]
            perturbation = places["eps"] * clips + played
            scale = np.array(block.eps) / max(block.eps) if block.scaled else np.ones(1)
            level = _factor(axes.levels_db)[places["level"]] * scale[places["scale"]]
        delay = np.rint(np.array(axes.delays_ms) / 1000 * self._job.description.rate_hz)
        onset = np.rint(onsets).astype(np.int64)
        return Conditions(
            clip=played,
            talker=response + places["talker"],
            talker_gain=_factor(axes.talker_levels_db)[places["talker_level"]].astype(np.float32),
            perturbation=perturbation,
            attacker=response + attacker,
            attacker_gain=np.broadcast_to(level, played.shape).astype(np.float32),
            delay=delay[places["delay"]],
            # The device's window begins when the talker's direct sound arrives.
            start=onset[places["room"], places["device"], places["talker"]],
        )

    def _condition(self, number: int, places: dict[str, Integers]) -> dict[str, Any]:
        """The columns that say which condition a row is of."""
        grid = self._job.grid
        block, axes = grid.blocks[number], grid.axes
        count, attacked = len(places["clip"]), block.family is not None
        zeros = np.zeros(count)
        rt60_s = np.array([np.nan if value is None else value for value in axes.rt60_s])[places["room"]]
        same = np.zeros(count, np.int64)
        bundles = tuple(self._job.bundles)
        return {
            "bundle": _words(same + bundles.index(block.bundle), bundles),
            "attack": _words(same, (block.attack,)),
            "crafted_on": _words(same if block.on else same - 1, (block.on or "",)),
            "target": _words(same if block.target else same - 1, (block.target or "",)),
            "eps": np.array(block.eps)[places["scale" if block.scaled else "eps"]],
            "delay_ms": np.array(axes.delays_ms)[places["delay"]] if attacked else zeros,
            "level_db": np.array(axes.levels_db)[places["level"]] if attacked else zeros,
            "talker_level_db": np.array(axes.talker_levels_db)[places["talker_level"]],
            "rt60_s": pa.array(rt60_s, mask=np.isnan(rt60_s)),
            "talker_position": _words(places["talker"], tuple(axes.talkers)),
            "attacker_position": _words(places["attacker"] if attacked else same - 1, tuple(axes.attackers)),
            "device_position": _words(places["device"], tuple(axes.devices)),
        }

    def _targeted(self, block: Block, heard: Integers) -> Any:
        if block.target is None:
            return pa.nulls(len(heard), pa.bool_())
        return heard == self._job.description.labels.index(block.target)

    @cached_property
    def _stages(self) -> tuple[Stage, ...]:
        return stages_of(self._job.scene, self._job.description.rate_hz, self._job.description.seed, self._rms_here)

    def _rms_here(self, indices: Integers) -> npt.NDArray[np.float64]:
        if len(indices) != len(self._talker_rms):
            raise ValueError(f"{len(indices)} conditions asked for, {len(self._talker_rms)} at hand")
        return self._talker_rms

    def _scorer(self, bundle: str) -> Scorer:
        if bundle not in self._scorers:
            make = _by_onnxruntime if self._device == "cpu" else _by_twin
            self._scorers[bundle] = make(self._job.bundles[bundle], self._job.description.seed, self._device)
        return self._scorers[bundle]


def stages_of(
    scene: Scene | None, rate_hz: int, seed: int, talker_rms: Callable[[Integers], npt.NDArray[np.float64]]
) -> tuple[Stage, ...]:
    """What happens after the sum: the scene's capture, or 16 bits where there is no room."""
    if scene is None:
        return (Clipping(limit=1.0), Quantisation(bits=16))
    from rig.scenes.respond import capture_chain  # noqa: PLC0415 - not for a plan without a room

    return capture_chain(scene, rate_hz, seed=seed, talker_rms=talker_rms)


def noise_seed(seed: int, index: int) -> bytes:
    """16 bytes that seed the members of a stochastic ensemble in one condition."""
    return hashlib.sha256(f"{seed}/ensemble/{index}".encode()).digest()[:16]


def _by_onnxruntime(bundle: Bundle, seed: int, device: str) -> Scorer:
    del device
    classifier = Classifier(bundle, threads=1)
    if classifier.members is None:
        return lambda pcm, indices: classifier.scores(pcm)

    def score(pcm: npt.NDArray[np.float32], indices: Integers) -> npt.NDArray[np.float32]:
        each = zip(pcm, indices.tolist(), strict=True)
        return np.concatenate(
            [classifier.scores(row[np.newaxis], noise=classifier.noise(noise_seed(seed, i))) for row, i in each]
        )

    return score


def _by_twin(bundle: Bundle, seed: int, device: str) -> Scorer:
    import torch  # noqa: PLC0415 - takes seconds, and workers on processors do without

    from edge.bundle.noise import standard_normal  # noqa: PLC0415 - for the twin alone
    from export.twin import Twin  # noqa: PLC0415 - imports torch

    twin = Twin.from_bundle(bundle).to(device)
    members, values = twin.members, twin.noise_values

    def score(pcm: npt.NDArray[np.float32], indices: Integers) -> npt.NDArray[np.float32]:
        noise = None
        if members is not None and values is not None:
            drawn = [standard_normal(noise_seed(seed, i), members, values) for i in indices.tolist()]
            noise = torch.from_numpy(np.stack(drawn)).to(device)
        with torch.inference_mode():
            result: npt.NDArray[np.float32] = twin(torch.from_numpy(pcm).to(device), noise).cpu().numpy()
        return result

    return score


def _decide(scores: npt.NDArray[np.float32], truth: Integers) -> tuple[Integers, npt.NDArray[np.float32]]:
    """The class heard, and the score of the true class minus the highest of the others."""
    every = np.arange(len(scores))
    others = scores.copy()
    others[every, truth] = -np.inf
    return scores.argmax(axis=1), scores[every, truth] - others.max(axis=1)


def _words(numbers: _Column, words: tuple[str, ...]) -> pa.DictionaryArray:
    """Words by number; null below zero."""
    missing = numbers < 0
    indices = pa.array(np.where(missing, 0, numbers).astype(np.int32), mask=missing if missing.any() else None)
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string()))


def _factor(levels_db: tuple[float, ...]) -> npt.NDArray[np.float64]:
    return 10 ** (np.array(levels_db, np.float64) / 20)


def _floats(pcm: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    return pcm.astype(np.float32) / FULL_SCALE
