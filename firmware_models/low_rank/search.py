"""Find the smallest ranks at which a model still answers nearly as well as before.

First every layer that holds a part worth saving leaves out the same part of its weights' energy, and how much that may
be is found by bisection. Then layer after layer, the largest first, gives up more of its rank for as long as the clips
are answered well enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge.errors import DataError, UsageError
from firmware_models.architectures import FirmwareModel
from firmware_models.data import Clips
from firmware_models.evaluation import check_labels
from firmware_models.low_rank.factorise import Ranks, assemble, largest_rank, split_candidates
from firmware_models.low_rank.factors import Decomposition, Reshape, decompose, matrix
from firmware_models.progress import Progress, silent

MOST_CLIPS = 1000
_BATCH = 50
_BISECTIONS = 8
# A layer first tries to give up this part of its rank, and after each refusal half of that, so often.
_FIRST_PART, _PATIENCE = 0.5, 3
# A layer that holds less than this part of the parameters stays whole: the accuracy lost in it would save nothing.
_WORTH_IT = 0.01


@dataclass(frozen=True, slots=True)
class Trial:
    """Ranks that were tried (a layer that is not named was whole), and how they did; ``kept`` is whether they hold."""

    ranks: dict[str, int]
    parameters: int
    top1: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Search:
    """What :func:`search` found: ``ranks``, their accuracy before any retraining, and everything that was tried."""

    ranks: Ranks
    top1: float
    top1_full: float
    clips: int
    max_drop: float
    trials: tuple[Trial, ...]

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values."""
        return {**asdict(self), "ranks": self.ranks.model_dump()}


def search(
    model: FirmwareModel,
    clips: Clips,
    *,
    max_drop: float,
    reshape: Reshape = "channels",
    most_clips: int = MOST_CLIPS,
    progress: Progress = silent,
) -> Search:
    """The ranks with the fewest parameters that lose at most ``max_drop`` of the accuracy, relative to it.

    Give it clips that the result is not judged by, for example the validation split; at most ``most_clips`` of them
    are used, spread evenly. The accuracy is that without retraining, which usually wins back more than was lost. The
    same model and clips give the same ranks; no random numbers are drawn.

    Raises:
        UsageError: ``max_drop`` is not within [0, 1), the model cannot be split, or no layer can be at this loss.
        DataError: no clips, or clips of other labels.
    """
    if not 0 <= max_drop < 1:
        raise UsageError(f"largest accuracy loss {max_drop:g}: use 0 or more and less than 1, for example 0.02 for 2 %")
    check_labels(model.labels, clips)
    if len(clips) == 0:
        raise DataError(f"{clips.root}: no clips to search ranks with in the split {clips.split!r}")
    tried = _Trials(model, clips, max_drop=max_drop, reshape=reshape, most_clips=most_clips, progress=progress)
    kept = tried.by_energy()
    kept = tried.layer_by_layer(kept)
    if not kept.ranks:
        raise UsageError(
            f"{model.name}: no layer can be split within an accuracy loss of {max_drop:.1%} before retraining; "
            "allow more or give ranks"
        )
    ranks = Ranks(layers=dict(kept.ranks), reshape=reshape)
    return Search(ranks, kept.top1, tried.top1_full, len(tried.truth), max_drop, tuple(tried.trials))


class _Trials:
    """Everything that the trials have in common, computed once."""

    def __init__(
        self,
        model: FirmwareModel,
        clips: Clips,
        *,
        max_drop: float,
        reshape: Reshape,
        most_clips: int,
        progress: Progress,
    ) -> None:
        self.model, self.reshape, self.progress = model, reshape, progress
        candidates, _ = split_candidates(model)
        self.most = {
            name: largest_rank(layer, reshape)
            for name, layer in candidates.items()
            if layer.weight.numel() >= _WORTH_IT * model.parameter_count()
        }
        self.found: dict[str, Decomposition] = {
            name: decompose(layer, reshape) for name, layer in candidates.items() if self.most.get(name)
        }
        self.sides = {name: matrix(candidates[name], reshape).shape for name in self.found}
        rows = np.unique(np.linspace(0, len(clips) - 1, min(most_clips, len(clips))).round().astype(np.intp))
        self.truth = torch.from_numpy(clips.label_index[rows])
        device = next(iter(model.parameters())).device
        with torch.no_grad():
            self.features = [
                model.features(torch.from_numpy(clips.float_pcm(rows[first : first + _BATCH])).to(device))
                for first in range(0, len(rows), _BATCH)
            ]
        self.trials: list[Trial] = []
        self.expected = 1 + _BISECTIONS + len(self.found) * (2 * _PATIENCE + 1)
        self.limit = 0.0
        whole = self.attempt({})
        self.top1_full = whole.top1
        # A clip more or less must not depend on how 1 - 0.02 is rounded.
        self.limit = self.top1_full * (1 - max_drop) - 1e-9

    def by_energy(self) -> Trial:
        """The trial with the fewest parameters whose layers all leave out the same part of their energy."""
        low, high, best = 0.0, 1.0, self.attempt(self._ranks_at(0.0))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            trial = self.attempt(self._ranks_at(middle))
            if trial.kept:
                low, best = middle, min(best, trial, key=_size) if best.kept else trial
            else:
                high = middle
        return best if best.kept else self.trials[0]

    def layer_by_layer(self, best: Trial) -> Trial:
        """Give up rank in one layer after the other, the largest first, until none can."""
        part = dict.fromkeys(self.found, _FIRST_PART)
        refusals = dict.fromkeys(self.found, 0)
        while True:
            open_layers = [name for name in self.found if refusals[name] < _PATIENCE]
            if not open_layers:
                return best
            for name in sorted(open_layers, key=lambda name: -self._parameters(name, best.ranks.get(name))):
                rank = best.ranks.get(name, min(self.most[name], self.found[name].rank) + 1)
                less = min(rank - 1, round(rank * (1 - part[name])))
                if less < 1:
                    refusals[name] = _PATIENCE
                    continue
                trial = self.attempt({**best.ranks, name: less})
                if trial.kept:
                    best = trial
                elif less == rank - 1:
                    refusals[name] = _PATIENCE
                else:
                    refusals[name] += 1
                    part[name] /= 2

    def attempt(self, ranks: Mapping[str, int]) -> Trial:
        """Measure some ranks; the same ranks are measured once."""
        for trial in self.trials:
            if trial.ranks == ranks:
                return trial
        model = assemble(self.model, {name: (rank, self.found[name]) for name, rank in ranks.items()}, self.reshape)
        top1 = _top1(model.eval(), self.features, self.truth)
        trial = Trial(dict(ranks), model.parameter_count(), top1, top1 >= self.limit)
        self.trials.append(trial)
        self.expected = max(self.expected, len(self.trials) + 1)
        self.progress(len(self.trials), self.expected, f"{trial.parameters / 1e6:.2f} M parameters, {top1:.1%}")
        return trial

    def _ranks_at(self, left_out: float) -> dict[str, int]:
        """The rank of each layer that leaves out at most this part of its energy; layers that stay whole are absent."""
        ranks = {}
        for name, found in self.found.items():
            energy = found.s.square()
            kept = torch.cumsum(energy, 0) / energy.sum()
            rank = min(int((kept < 1 - left_out).sum()) + 1, found.rank)
            if 0 < rank <= self.most[name]:
                ranks[name] = rank
        return ranks

    def _parameters(self, name: str, rank: int | None) -> int:
        rows, columns = self.sides[name]
        return rows * columns if rank is None else rank * (rows + columns + 1)


def _top1(model: FirmwareModel, features: Sequence[Tensor], truth: Tensor) -> float:
    with torch.no_grad():
        answers = torch.cat([model.classify(batch).argmax(1).cpu() for batch in features])
    return float((answers == truth).double().mean())


def _size(trial: Trial) -> int:
    return trial.parameters
