"""What every worker of a sweep needs, as a folder and in memory.

::

    OUT/plan.yaml               the plan, with absolute paths
    OUT/sweep.json              axes, blocks, clips, rooms; written last, so that a folder with it is complete
    OUT/material/*.npy          clips, perturbations, responses, onsets
    OUT/material/NAME.earshot   the bundles
    OUT/rows/chunk-*.parquet    the results, see :mod:`rig.sweep.rows`
    OUT/summary.json            rates, see :mod:`rig.sweep.summary`
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import edge
from edge.bundle.reading import Bundle, read_bundle
from edge.bundle.signing import load_public_key
from edge.errors import PlanError
from edge.validation import describe
from firmware_models import zoo
from rig import plan as plans
from rig.plan import Plan
from rig.scenes.scene import Scene
from rig.sweep.grid import Grid, Span

PLAN, DESCRIPTION, MATERIAL, SUMMARY = "plan.yaml", "sweep.json", "material", "summary.json"
CLIPS, PERTURBATIONS, RESPONSES, ONSETS = "clips.npy", "perturbations.npy", "responses.npy", "onsets.npy"
Pcm = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]


class Description(BaseModel):
    """``sweep.json``.

    ``digest`` stands for everything that decides what the rows say; ``files`` has the SHA-256 of what is in
    ``material``; ``rooms`` what was found out of each room, in the order of ``grid.axes.rt60_s``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    name: str
    digest: str
    earshot_version: str
    device: Literal["cpu", "cuda"]
    seed: int
    rate_hz: int
    window_samples: int
    labels: tuple[str, ...]
    bundles: dict[str, dict[str, Any]]
    grid: Grid
    rooms: tuple[dict[str, Any], ...]
    files: dict[str, str]


@dataclass(frozen=True)
class Sounds:
    """The clips and perturbations of one chunk, int16 (sounds, window); clips first, then a group per crafted eps."""

    clips: Pcm
    perturbations: Pcm


@dataclass(frozen=True)
class Job:
    """A sweep ready to be computed.

    ``responses`` float32 (rooms x devices x sources, taps) with talkers first among the sources; ``onsets`` float64
    (rooms, devices, sources) in samples. It can be sent to another machine, where ``folder`` means nothing.
    """

    folder: Path
    description: Description
    plan: Plan
    bundles: Mapping[str, Bundle]
    responses: Floats
    onsets: npt.NDArray[np.float64]

    @property
    def grid(self) -> Grid:
        """The conditions."""
        return self.description.grid

    @property
    def scene(self) -> Scene | None:
        """The room; None where sound is only added."""
        return self.plan.room

    def sounds(self, span: Span) -> Sounds:
        """What the chunk plays, read from the folder."""
        block = self.grid.blocks[span.block]
        per_clip = self.grid.size(span.block) // len(block.clips)
        rows = np.array(block.clips[span.start // per_clip : (span.stop - 1) // per_clip + 1], np.int64)
        clips = np.load(self.folder / MATERIAL / CLIPS, mmap_mode="r", allow_pickle=False)
        window = clips.shape[1]
        if block.family is None:
            return Sounds(clips[rows], np.empty((0, window), np.int16))
        made = np.load(self.folder / MATERIAL / PERTURBATIONS, mmap_mode="r", allow_pickle=False)
        families = block.family + np.arange(1 if block.scaled else len(block.eps))
        return Sounds(clips[rows], made[(families[:, np.newaxis] * len(clips) + rows).ravel()])


def read_description(folder: Path) -> Description:
    """``sweep.json`` of a sweep.

    Raises:
        PlanError: the folder holds no sweep, or one of another version.
    """
    try:
        text = (folder / DESCRIPTION).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise PlanError(
            f"sweep {folder}: holds no {DESCRIPTION}; 'earshot sweep run PLAN --out DIR' makes it"
        ) from None
    try:
        found = Description.model_validate_json(text)
    except ValidationError as error:
        raise PlanError(f"sweep {folder}: {DESCRIPTION}: {describe(error)}") from None
    if found.earshot_version != edge.__version__:
        raise PlanError(
            f"sweep {folder}: was begun with earshot {found.earshot_version}, this is {edge.__version__}, whose rows"
            " might differ: go on with the old one, or choose another --out"
        )
    return found


def read_job(folder: Path, *, check: bool = True) -> Job:
    """A prepared sweep from its folder.

    Args:
        folder: of the sweep.
        check: compare the hashes of the material, which reads all of it.

    Raises:
        PlanError: there is no sweep, or a file of it is missing or damaged.
        BundleError: a bundle is not signed by a key that the plan trusts.
    """
    found = read_description(folder)
    material = folder / MATERIAL
    for name, expected in found.files.items() if check else ():
        if sha256_of(material / name) != expected:
            raise PlanError(f"sweep {folder}: {MATERIAL}/{name} is missing or damaged, choose another --out")
    plan = plans.load(folder / PLAN)
    keys = [load_public_key(zoo.PUBLIC_KEY if entry == "zoo" else Path(entry)) for entry in plan.trust]
    bundles = {name: read_bundle(material / f"{name}.earshot", trusted=keys) for name in found.bundles}
    for name, bundle in bundles.items():
        if bundle.sha256 != found.bundles[name]["sha256"]:
            raise PlanError(f"sweep {folder}: bundle {name} is another than the sweep began with")
    return Job(
        folder=folder,
        description=found,
        plan=plan,
        bundles=bundles,
        responses=_load(material / RESPONSES, np.float32, 2),
        onsets=_load(material / ONSETS, np.float64, 3),
    )


def sha256_of(path: Path) -> str | None:
    """The hash of a file's content; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _load(path: Path, kind: type, dimensions: int) -> Any:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise PlanError(f"sweep: {path} cannot be read ({error}), choose another --out") from None
    if array.dtype != kind or array.ndim != dimensions:
        raise PlanError(f"sweep: {path} holds {array.dtype} {array.shape}, choose another --out")
    return array
