"""Starting a session: the folder, the order of the trials, and what it will take to repeat it."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

import edge
from edge import files
from edge.errors import PlanError
from rig import journal
from rig.journal import Trial
from rig.plan import MAX_TRIALS, Plan

if TYPE_CHECKING:  # showing a session must not wait for torch
    from rig.session.material import Material

PLAN, STATION, AUDIO = "plan.yaml", "station.toml", "audio"
RECORDED_PACKAGES = ("numpy", "onnxruntime", "torch", "pyroomacoustics", "scipy")


@dataclass(frozen=True)
class Setup:
    """The station's facts that a simulated air needs: where devices, broker and sound are.

    ``device`` is ``local`` (a process of its own per bundle) or ``mqtt://HOST[:PORT]/NAME``, a device that
    already runs; ``broker`` is ``embedded``, ``embedded:PORT`` or a URL; sound for the device's
    ``socket:`` microphone is served on ``sound_host:sound_port`` (0 = any free port). ``operator`` is the file of the
    private key whose commands a device that already runs obeys; those of the session obey a key of its own.
    """

    device: str = "local"
    broker: str = "embedded"
    sound_host: str = "127.0.0.1"
    sound_port: int = 0
    operator: str | None = None

    def to_toml(self, air: str) -> str:
        """The content of ``station.toml``."""
        # JSON strings and integers are TOML values too.
        facts = {"air": air, **asdict(self)}
        lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items() if value is not None]
        return "\n".join(lines) + "\n"


def order(material: Material, plan: Plan) -> list[Trial]:
    """All trials, shuffled by the plan's seed so that no condition meets a warmer or busier device.

    Where nothing is random, a repeat would be the same trial again and only feign a larger n: it is left out.
    A clip that already says the target of an attack is left out of that attack's conditions.

    Raises:
        PlanError: there are none, or more than :data:`rig.plan.MAX_TRIALS`.
    """
    cells = [
        (condition, clip, repeat)
        for condition, cell in enumerate(material.conditions)
        for clip, sound in enumerate(material.clips)
        if cell.target is None or plan.heard(sound.label) != plan.heard(cell.target)
        for repeat in range(plan.repeats if material.air.is_random else 1)
    ]
    if not 0 < len(cells) <= MAX_TRIALS:
        raise PlanError(f"plan {plan.name}: {len(cells)} trials, allowed 1 to {MAX_TRIALS}; change clips or conditions")
    permutation = np.random.default_rng(plan.seed).permutation(len(cells))
    return [Trial(f"{rank:07d}", *cells[index]) for rank, index in enumerate(permutation)]


def create(folder: Path, material: Material, setup: Setup, command: Sequence[str]) -> int:
    """Write a session folder in which every trial is planned and none has run.

    Args:
        folder: made if absent; must not hold a session.
        material: of the plan in its air.
        setup: how the devices are reached.
        command: what the user typed, for the report.

    Returns:
        the number of trials.

    Raises:
        PlanError: the folder holds a session or cannot be written, or a foreign recogniser has no device.
    """
    plan = material.plan
    if plan.recogniser is not None and setup.device == "local":
        raise PlanError(
            f"plan {plan.name}: tests {plan.recogniser.name}: start 'earshot bridge' and name it, e.g. --device"
            " mqtt://localhost/NAME"
        )
    trials = order(material, plan)
    try:
        (folder / AUDIO).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"session {folder}: cannot be written ({error.strerror}), choose another --out") from None
    text = yaml.safe_dump(plan.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=False)
    meta = {
        "session_id": f"{plan.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{np.random.default_rng().integers(1 << 32):08x}",
        "plan": plan.name,
        "seed": plan.seed,
        "room": plan.room.model_dump(mode="json") if plan.room else None,
        "air": material.air.name,
        "air_facts": material.air.facts(),
        "clips": {"data": plan.clips.data, "split": plan.clips.split, "found": len(material.clips)},
        "recogniser": plan.recogniser.model_dump(mode="json") if plan.recogniser else None,
        "setup": asdict(setup),
        "command": list(command),
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "earshot_version": edge.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in RECORDED_PACKAGES},
        "bundles": {
            name: {
                "sha256": bundle.sha256,
                "version": bundle.manifest.version,
                "bits": bundle.manifest.quantisation.bits,
                "log_floor": bundle.manifest.log_floor,
            }
            for name, bundle in material.bundles.items()
        },
    }
    if not (folder / journal.FILE).exists():
        files.write(folder / PLAN, text.encode())
        files.write(folder / STATION, setup.to_toml(material.air.name).encode())
    journal.create(
        folder,
        meta=meta,
        conditions=material.conditions,
        clips=[clip.record for clip in material.clips],
        trials=trials,
    )
    return len(trials)
