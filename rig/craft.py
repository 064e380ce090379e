"""Making the perturbations of a plan, once: by attack, budget, model and clip, kept by content."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edge import files
from edge.bundle.reading import Bundle
from export.twin import Twin
from firmware_models.data.cache import cache_folder
from firmware_models.progress import Progress, silent
from rig import attacks
from rig.airs.protocol import FULL_SCALE, Pcm
from rig.clips import Clip
from rig.plan import Condition

CHUNK_CLIPS = 32
# Grows when an attack changes what it makes, so that no stale perturbation is ever played.
RECIPE_VERSION = 1
_TINY = 1e-12


@dataclass(frozen=True)
class _Recipe:
    """What a perturbation depends on, besides the clip. ``on`` is None where no model is followed."""

    attack: str
    on: str | None
    eps: float
    steps: int
    target: str | None


class Crafter:
    """Perturbations for the conditions of a session.

    They are int16, rounded towards zero: what a 16-bit converter plays, still within the budget.

    Args:
        bundles: by name in the manifest.
        clips: what the talker speaks.
        seed: of the random-sign control.
        cache: folder that keeps them; the user's cache by default.
    """

    def __init__(
        self, bundles: Mapping[str, Bundle], clips: Sequence[Clip], *, seed: int, cache: Path | None = None
    ) -> None:
        self._bundles = bundles
        self._clips = clips
        self._hashes = [clip.record.sha256 for clip in clips]
        self._seed = seed
        self._cache = (cache or cache_folder()) / "perturbations"
        self._twins: dict[str, Twin] = {}
        self._ready: dict[_Recipe, list[Pcm]] = {}

    def prepare(self, conditions: Iterable[Condition], *, progress: Progress = silent) -> None:
        """Make every perturbation that ``conditions`` need and the cache lacks."""
        wanted = list(dict.fromkeys(_recipe(condition) for condition in conditions if condition.eps))
        total = len(wanted) * len(self._clips)
        for index, recipe in enumerate(wanted):
            made: list[Pcm] = []
            for start in range(0, len(self._clips), CHUNK_CLIPS):
                made.extend(self._chunk(recipe, start, min(start + CHUNK_CLIPS, len(self._clips))))
                progress(index * len(self._clips) + len(made), total, f"{recipe.attack} eps {recipe.eps:g}")
            self._ready[recipe] = made

    def chunks(self, condition: Condition) -> Iterator[Pcm]:
        """The perturbations of all clips in an attacked condition, int16 (at most 32, window) at a time."""
        for start in range(0, len(self._clips), CHUNK_CLIPS):
            yield self._chunk(_recipe(condition), start, min(start + CHUNK_CLIPS, len(self._clips)))

    def perturbation(self, condition: Condition, clip: int) -> Pcm | None:
        """The perturbation for a clip in a prepared condition, int16 (window,); None in the benign one."""
        return self._ready[_recipe(condition)][clip] if condition.eps else None

    def _chunk(self, recipe: _Recipe, start: int, stop: int) -> Pcm:
        path = self._cache / f"{self._key(recipe, start, stop)}.npy"
        try:
            stored = np.load(path, allow_pickle=False)
            if stored.dtype == np.int16 and stored.shape == (stop - start, len(self._clips[start].pcm)):
                return np.asarray(stored)
        except (OSError, ValueError):
            pass  # absent or torn: make it
        made = self._make(recipe, start, stop)
        buffer = io.BytesIO()
        np.save(buffer, made, allow_pickle=False)
        files.write(path, buffer.getvalue())
        return made

    def _key(self, recipe: _Recipe, start: int, stop: int) -> str:
        facts = {
            "version": RECIPE_VERSION,
            "recipe": [recipe.attack, recipe.eps, recipe.steps, recipe.target],
            "model": self._bundles[recipe.on].sha256 if recipe.on else None,
            "seed": None if recipe.on else self._seed,
            "clips": [[self._hashes[i], self._clips[i].label] for i in range(start, stop)],
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _make(self, recipe: _Recipe, start: int, stop: int) -> Pcm:
        name = recipe.on or next(iter(self._bundles))
        labels = list(self._bundles[name].manifest.labels)
        chosen = self._clips[start:stop]
        pcm = torch.from_numpy(np.stack([clip.pcm for clip in chosen]).astype(np.float32) / FULL_SCALE)
        label = torch.tensor([labels.index(clip.label) for clip in chosen])
        target = None
        if recipe.target is not None:
            target = torch.full_like(label, labels.index(recipe.target))
        result = self._attack(recipe, self._scores(name, start), start, stop)(pcm, label, target)
        return np.trunc(result.perturbation.numpy().astype(np.float64) * FULL_SCALE).astype(np.int16)

    def _attack(
        self, recipe: _Recipe, model: attacks.Model, start: int, stop: int
    ) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], attacks.AttackResult]:
        if recipe.attack == "random-sign":
            generators = [
                np.random.default_rng([self._seed, int(self._hashes[i][:16], 16)]) for i in range(start, stop)
            ]
            return lambda pcm, label, target: attacks.random_sign(
                model, pcm, label, eps=recipe.eps, generators=generators, target=target
            )
        if recipe.attack == "fgsm":
            return lambda pcm, label, target: attacks.fgsm(model, pcm, label, eps=recipe.eps, target=target)
        return lambda pcm, label, target: attacks.pgd(
            model, pcm, label, eps=recipe.eps, steps=recipe.steps, target=target
        )

    def _scores(self, name: str, start: int) -> attacks.Model:
        """The twin as attacks take it: logits, and fresh members of an ensemble at every step."""
        twin = self._twin(name)
        if twin.noise_values is not None:
            twin.generator = torch.Generator().manual_seed(int(self._hashes[start][:15], 16) ^ self._seed)
        if self._bundles[name].manifest.score_kind == "logits":
            return twin
        # The softmax of the logarithm of probabilities is those probabilities again.
        return lambda pcm: twin(pcm).clamp_min(_TINY).log()

    def _twin(self, name: str) -> Twin:
        if name not in self._twins:
            self._twins[name] = Twin.from_bundle(self._bundles[name])
        return self._twins[name]


def _recipe(condition: Condition) -> _Recipe:
    return _Recipe(
        attack=condition.attack.split("-", maxsplit=1)[0] if condition.steps else condition.attack,
        on=condition.on,
        eps=condition.eps,
        steps=condition.steps,
        target=condition.target,
    )
