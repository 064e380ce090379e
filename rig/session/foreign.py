"""A stranger under test: a recogniser behind a bridge, of which only what it says of itself is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import PlanError, ThresholdError
from edge.messages import Info
from rig.journal import Journal
from rig.plan import BACKGROUND, ForeignRecogniser

if TYPE_CHECKING:
    from rig.session.material import Material
    from rig.session.stage import StagedDevice

# It is asked one window after another, with seconds of silence around each: more would only wait at the bridge, which
# takes up to 50 s for one.
MAX_IN_FLIGHT = 2
PREDICTION_TIMEOUT_S = 120.0
META_KEY = "recogniser_model"


@dataclass(frozen=True)
class ModelIdentity:
    """What a prediction must come from: its hash, and its labels in the order of the scores."""

    sha256: str
    labels: tuple[str, ...]


def model_of(info: Info) -> ModelIdentity:
    """The model that a device says it runs."""
    return ModelIdentity(info.bundle_sha256, info.labels)


def check(info: Info, wanted: ForeignRecogniser, material: Material, known: ModelIdentity | None) -> None:
    """Whether this is the stranger of the plan.

    Raises:
        ThresholdError: it has another name, hears other windows, lacks a word of the plan, or is not the one that the
            session began with.
    """
    name = f"device {info.device}"
    if info.bundle_name != wanted.name:
        raise ThresholdError(f"{name} is {info.bundle_name!r}, the plan tests {wanted.name!r}: start that bridge")
    if (info.rate_hz, info.window_samples) != (material.rate_hz, material.window_samples):
        raise ThresholdError(
            f"{name} hears {info.window_samples} samples at {info.rate_hz} Hz, the plan's bundles"
            f" {material.window_samples} at {material.rate_hz} Hz: start the bridge with that window"
        )
    for word in (*wanted.hears.values(), BACKGROUND):
        if word not in info.labels:
            raise ThresholdError(f"{name} knows {', '.join(map(repr, info.labels[:20]))}, the plan also wants {word!r}")
    if known is not None and known != model_of(info):
        raise ThresholdError(f"{name} is another recogniser than the session began with: start a new session")


def hold(folder: Path, journal: Journal, devices: Iterable[StagedDevice]) -> None:
    """Store at the first start who is tested, and insist on the same one later.

    Raises:
        PlanError: another one was tested when the session began.
    """
    for device in devices:
        model, info = device.model, device.info
        if model is None or info is None or journal.meta().get("recogniser") is None:
            continue
        facts = {"name": info.bundle_name, "sha256": model.sha256, "labels": list(model.labels)}
        if journal.settle(META_KEY, facts) != facts:
            raise PlanError(f"session {folder}: began with another {info.bundle_name}, start a new session")
