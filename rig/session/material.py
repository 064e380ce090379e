"""What a session works with, loaded and verified: plan, bundles, clips, perturbations, air."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.bundle.reading import Bundle, read_bundle
from edge.bundle.signing import load_public_key
from edge.errors import PlanError, UsageError
from firmware_models import zoo
from firmware_models.data import RATE_HZ
from firmware_models.progress import Progress, silent
from rig import clips as clip_choice
from rig.airs import Air, Rendering, open_air
from rig.clips import Clip
from rig.craft import Crafter
from rig.journal import Trial
from rig.plan import ClipChoice, Condition, Plan, list_conditions


@dataclass(frozen=True)
class Material:
    """Everything that decides how a trial sounds; the same plan always gives the same material."""

    plan: Plan
    trust: Sequence[Path]
    bundles: Mapping[str, Bundle]
    clips: Sequence[Clip]
    conditions: Sequence[Condition]
    air: Air
    crafter: Crafter

    @property
    def tested(self) -> tuple[str, ...]:
        """The names of what is tested: the bundles, or a foreign recogniser."""
        recogniser = self.plan.recogniser
        return tuple(self.bundles) if recogniser is None else (recogniser.name,)

    @property
    def rate_hz(self) -> int:
        """Sample rate of every model of the plan."""
        return next(iter(self.bundles.values())).manifest.rate_hz

    @property
    def window_samples(self) -> int:
        """Length of the window that every model of the plan hears."""
        return next(iter(self.bundles.values())).manifest.window_samples

    def render(self, trial: Trial) -> Rendering:
        """What the device hears in this trial; the same each time it is asked."""
        condition = self.conditions[trial.condition]
        clip = self.clips[trial.clip]
        return self.air.render(trial.trial_id, clip.pcm, self.crafter.perturbation(condition, trial.clip), condition)


def load(plan: Plan, air: str, *, progress: Progress = silent) -> Material:
    """Read and verify all that a plan names.

    Raises:
        PlanError: models do not fit together, a label or a number of clips cannot be had.
        BundleError: a bundle is not signed by a trusted key or was altered.
        DataError: the clips cannot be read.
    """
    trust = [zoo.PUBLIC_KEY if entry == "zoo" else Path(entry) for entry in plan.trust]
    keys = [load_public_key(path) for path in trust]
    bundles: dict[str, Bundle] = {}
    for entry in plan.bundles:
        bundle = read_bundle(bundle_path(entry), trusted=keys)
        if bundle.manifest.name in bundles:
            raise PlanError(f"plan {plan.name}: bundles: two have the name {bundle.manifest.name!r}")
        bundles[bundle.manifest.name] = bundle
    _check_alike(plan, bundles)
    first = next(iter(bundles.values())).manifest
    _check_targets(plan, first.labels)
    conditions = list_conditions(plan, list(bundles), air)
    if first.rate_hz != RATE_HZ:
        raise PlanError(f"plan {plan.name}: the models hear {first.rate_hz} Hz, data sets are read at {RATE_HZ} Hz")
    _check_heard(plan, first.labels)
    clips = clip_choice.choose(
        _spoken(plan), first.labels, seed=plan.seed, window_samples=first.window_samples, progress=progress
    )
    return Material(
        plan=plan,
        trust=trust,
        bundles=bundles,
        clips=clips,
        conditions=conditions,
        air=open_air(air, plan, rate_hz=first.rate_hz, window_samples=first.window_samples),
        crafter=Crafter(bundles, clips, seed=plan.seed),
    )


def bundle_path(entry: str) -> Path:
    """The file behind a plan's entry: ``zoo:NAME`` or a path."""
    return zoo.bundle(entry.removeprefix("zoo:")) if entry.startswith("zoo:") else Path(entry)


def _check_alike(plan: Plan, bundles: Mapping[str, Bundle]) -> None:
    manifests = [bundle.manifest for bundle in bundles.values()]
    first = manifests[0]
    for other in manifests[1:]:
        for fact in ("rate_hz", "window_samples", "labels"):
            if getattr(other, fact) != getattr(first, fact):
                raise PlanError(
                    f"plan {plan.name}: bundles {first.name} and {other.name} differ in {fact}, give each its own plan"
                )


def _spoken(plan: Plan) -> ClipChoice:
    """The plan's clips; for a foreign recogniser those of its words, unless the plan says otherwise."""
    if plan.recogniser is None or plan.clips.labels:
        return plan.clips
    return plan.clips.model_copy(update={"labels": tuple(plan.recogniser.hears)})


def _check_heard(plan: Plan, labels: tuple[str, ...]) -> None:
    for label in plan.recogniser.hears if plan.recogniser else ():
        if label not in labels:
            raise PlanError(f"plan {plan.name}: recogniser.hears: {label!r} is unknown, allowed: {', '.join(labels)}")


def _check_targets(plan: Plan, labels: tuple[str, ...]) -> None:
    for attack in plan.attacks:
        if attack.target is not None and attack.target not in labels:
            raise UsageError(
                f"plan {plan.name}: attacks.target: {attack.target!r} is unknown, allowed: {', '.join(labels)}"
            )
