"""One bundle computed in every way there is, held against what onnxruntime computes here.

=====================  ==============================================  ===========================================
way                    what it is                                      gate
=====================  ==============================================  ===========================================
``torch``              the checkpoint's network in FP32                FP32: scores within 1e-4; quantised: none
``twin``               the torch module that attacks are crafted on    FP32: scores within 1e-4; 16 and 8 bits:
                                                                       99.9 % of labels; 4 bits: 99.5 %
``onnxruntime-         the device's code on an emulated Cortex-A76,    INT8 ``cpu``: bit-identical; FP32: within 1e-4;
aarch64``              the same version of onnxruntime                 else within the bundle's golden tolerance
=====================  ==============================================  ===========================================

A stochastic ensemble is given the noise of its golden vectors everywhere. Clips are scored one at a time by
onnxruntime, as a device does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from edge.bundle.classifier import Classifier
from edge.bundle.manifest import Manifest
from edge.bundle.noise import GOLDEN_SEED
from edge.bundle.reading import Bundle
from edge.errors import DataError, UsageError
from export.measurement.emulation import emulated_scores
from export.measurement.userland import Userland
from export.parity import FP32_MAX_ABS
from export.twin import Twin
from firmware_models.architectures import FirmwareModel
from firmware_models.data import Clips
from firmware_models.progress import Progress, silent
from firmware_models.statistics import wilson

TWIN_LABELS_EQUAL = {16: 0.999, 8: 0.999, 4: 0.995}
EMULATED_CLIPS = 40
_BATCH = 64
_SEED = 20_250_104

Way = Literal["torch", "twin", "onnxruntime-aarch64"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Gate:
    """What is demanded of a pair; exactly one of the fields is set."""

    max_abs: float | None = None
    labels_equal: float | None = None
    bit_identical: bool = False

    def __str__(self) -> str:
        if self.bit_identical:
            return "bit-identical"
        return (
            f"within {self.max_abs:g}" if self.max_abs is not None else f"{100 * (self.labels_equal or 0):g} % labels"
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One way held against onnxruntime here, over ``n`` clips.

    ``max_abs`` is the largest difference of any score (infinite where one is no number), ``labels_equal`` the number
    of clips with the same label, ``top1`` this way's share of right answers, None where the data has other labels.
    """

    way: Way
    n: int
    max_abs: float
    labels_equal: int
    bit_identical: bool
    top1: float | None
    gate: Gate | None

    @property
    def passed(self) -> bool | None:
        """Whether the gate holds; None without a gate."""
        if self.gate is None:
            return None
        if self.gate.bit_identical:
            return self.bit_identical
        if self.gate.max_abs is not None:
            return self.max_abs <= self.gate.max_abs
        return self.labels_equal >= (self.gate.labels_equal or 0) * self.n

    def to_json(self) -> dict[str, Any]:
        """The fields, the share of equal labels with its Wilson 95 % interval, and the verdict."""
        rate = wilson(self.labels_equal, self.n)
        share = {"labels_equal_rate": rate.rate, "labels_equal_ci_low": rate.low, "labels_equal_ci_high": rate.high}
        gate = None if self.gate is None else str(self.gate)
        return {**asdict(self), **share, "gate": gate, "passed": self.passed}


@dataclass(frozen=True)
class Report:
    """All comparisons of one bundle; ``not_measured`` tells of the other ways why they are missing."""

    path: Path
    manifest: Manifest
    sha256: str
    clips: int
    top1: float | None
    comparisons: tuple[Comparison, ...]
    not_measured: dict[Way, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no gate was missed."""
        return all(each.passed is not False for each in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": str(self.path),
            "name": self.manifest.name,
            "version": self.manifest.version,
            "sha256": self.sha256,
            "quantisation": self.manifest.quantisation.model_dump(mode="json"),
            "n": self.clips,
            "top1": self.top1,
            "comparisons": [each.to_json() for each in self.comparisons],
            "not_measured": self.not_measured,
            "passed": self.passed,
        }


def gate_of(manifest: Manifest, way: Way) -> Gate | None:
    """What is demanded of a way to compute a bundle, see the table above."""
    quantisation = manifest.quantisation
    bits = min(quantisation.bits, quantisation.activation_bits or quantisation.bits)
    if bits == 32:
        return Gate(max_abs=FP32_MAX_ABS)
    if way == "torch":
        return None
    if way == "twin":
        return Gate(labels_equal=TWIN_LABELS_EQUAL[bits])
    if bits == 8 and quantisation.profile == "cpu":
        return Gate(bit_identical=True)
    return Gate(max_abs=manifest.golden_tolerance.max_abs)


def check_fits(manifest: Manifest, clips: Clips, checkpoint: FirmwareModel | None) -> None:
    """Refuse clips and checkpoints that the bundle cannot be compared on.

    Raises:
        DataError: the clips have another length or rate.
        UsageError: the checkpoint has other labels or another window.
    """
    wanted = (manifest.window_samples, manifest.rate_hz)
    if (clips.pcm.shape[1], clips.rate_hz) != wanted:
        raise DataError(
            f"{clips.root}: clips of {clips.pcm.shape[1]} samples at {clips.rate_hz} Hz, {manifest.name} takes "
            f"{wanted[0]} at {wanted[1]} Hz"
        )
    if checkpoint is None:
        return
    if checkpoint.labels != manifest.labels or (checkpoint.window_samples, checkpoint.rate_hz) != wanted:
        raise UsageError(
            f"--checkpoint: a {checkpoint.name} with {len(checkpoint.labels)} labels and {checkpoint.window_samples} "
            f"samples is not what {manifest.name} was made from ({len(manifest.labels)} labels, {wanted[0]} samples, "
            f"or the labels differ): name its run, or leave it out"
        )


def compare(
    bundle: Bundle,
    clips: Clips,
    *,
    checkpoint: FirmwareModel | None = None,
    userland: Userland | None = None,
    keys: Sequence[Path] = (),
    emulated_clips: int = EMULATED_CLIPS,
    progress: Progress = silent,
) -> Report:
    """Compute ``clips`` in every way that is at hand and compare.

    Args:
        bundle: verified.
        clips: of the bundle's window and rate; their labels are used where they are the bundle's.
        checkpoint: the network it was exported from, in FP32; None leaves ``torch`` out.
        userland: where aarch64 is emulated; None leaves it out.
        keys: files of public keys, one of which signed the bundle; for the emulated device.
        emulated_clips: how many of the clips are given to it, chosen evenly at random, always the same.
        progress: told per batch here, and then, from the beginning again, per clip that is emulated.

    Raises:
        DataError, UsageError: see :func:`check_fits`.
        UnavailableError: the emulated process ended without scores.
    """
    check_fits(bundle.manifest, clips, checkpoint)
    classifier = Classifier(bundle)
    noise = None if classifier.members is None else classifier.noise(GOLDEN_SEED)
    truth = clips.label_index if clips.labels == bundle.manifest.labels else None
    ways: dict[Way, torch.nn.Module] = {}
    not_measured: dict[Way, str] = {}
    try:
        ways["twin"] = Twin.from_bundle(bundle)
    except UsageError as error:  # a foreign model may do what the twin does not know
        not_measured["twin"] = str(error)
    if checkpoint is not None and noise is None:
        ways["torch"] = checkpoint.eval()
    elif checkpoint is not None:
        not_measured["torch"] = "a stochastic ensemble is not what its checkpoint computes"
    scores: dict[Way | Literal["here"], list[Floats]] = {"here": [], **{way: [] for way in ways}}
    for rows in _batches(len(clips)):
        pcm = clips.float_pcm(rows)
        scores["here"] += [classifier.scores(clip[np.newaxis], noise=noise) for clip in pcm]
        for way, module in ways.items():
            scores[way].append(_by_torch(module, pcm, noise if way == "twin" else None))
        progress(rows.stop, len(clips), bundle.manifest.name)
    here = np.concatenate(scores["here"])
    comparisons = [
        _comparison(way, here, np.concatenate(scores[way]), truth, bundle.manifest)
        for way in ("torch", "twin")
        if way in ways
    ]
    if userland is not None:
        chosen = np.sort(np.random.default_rng(_SEED).permutation(len(clips))[:emulated_clips])

        emulated = emulated_scores(userland, bundle.path, keys, clips.float_pcm(chosen), progress=progress)
        known = None if truth is None else truth[chosen]
        comparisons.append(_comparison("onnxruntime-aarch64", here[chosen], emulated, known, bundle.manifest))
    return Report(
        path=bundle.path,
        manifest=bundle.manifest,
        sha256=bundle.sha256,
        clips=len(clips),
        top1=_top1(here, truth),
        comparisons=tuple(comparisons),
        not_measured=not_measured,
    )


def _batches(n: int) -> Iterator[slice]:
    for start in range(0, n, _BATCH):
        yield slice(start, min(start + _BATCH, n))


def _by_torch(module: torch.nn.Module, pcm: Floats, noise: Floats | None) -> Floats:
    with torch.inference_mode():
        given = (torch.from_numpy(pcm), *(() if noise is None else (torch.from_numpy(noise),)))
        scores: Floats = module(*given).float().numpy()
    return scores


def _comparison(
    way: Way, here: Floats, there: Floats, truth: npt.NDArray[np.int64] | None, manifest: Manifest
) -> Comparison:
    difference = np.abs(here - there)
    return Comparison(
        way=way,
        n=len(here),
        max_abs=float(difference.max()) if np.isfinite(difference).all() else float("inf"),
        labels_equal=int(np.sum(here.argmax(1) == there.argmax(1))),
        bit_identical=here.tobytes() == there.tobytes(),
        top1=_top1(there, truth),
        gate=gate_of(manifest, way),
    )


def _top1(scores: Floats, truth: npt.NDArray[np.int64] | None) -> float | None:
    return None if truth is None else float(np.mean(scores.argmax(1) == truth))
