"""From a plan to a sweep that can be computed: axes, clips, perturbations, responses, all written into its folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml

import edge
from edge import files
from edge.errors import PlanError
from firmware_models.progress import Progress, silent
from rig.craft import Crafter
from rig.plan import GRADIENT_ATTACKS, AttackChoice, Condition, Plan
from rig.rooms.responses import Responses
from rig.scenes.placement import attacker_key, device_key, talker_key
from rig.session import material as loading
from rig.session.material import Material
from rig.sweep import job as jobs
from rig.sweep.grid import MAX_CONDITIONS, Axes, Block, Clip, Grid, chunk_size
from rig.sweep.job import Description, Job
from rig.sweep.settings import SweepChoice

# Grows when the same plan would give other rows.
FORMAT = 1
# The perturbation of these is a pattern times eps, so that one is crafted and scaled.
SCALED = ("random-sign", "fgsm")


@dataclass(frozen=True)
class Outline:
    """A plan that can be swept, before anything long is computed.

    ``crafted`` has, in the order of the perturbations' rows, the attack that makes each family.
    """

    plan: Plan
    loaded: Material
    grid: Grid
    crafted: tuple[Condition, ...]
    device: Literal["cpu", "cuda"]
    digest: str


def outline(plan: Plan, *, chunk: int | None = None, device: str = "cpu", progress: Progress = silent) -> Outline:
    """Verify what a plan names and span its grid.

    Raises:
        PlanError: the plan cannot be swept, or is too large.
        BundleError: a bundle is not signed by a trusted key.
        DataError: the clips cannot be read.
    """
    if plan.recogniser is not None:
        raise PlanError(f"plan {plan.name}: a sweep scores bundles itself, leave out recogniser (or run a session)")
    kind: Literal["cpu", "cuda"] = "cuda" if device.startswith("cuda") else "cpu"
    # Positions and delays are the grid's; listed, they could be millions.
    bare = plan.model_copy(update={"room": None, "delays_ms": (0.0,)})
    loaded = loading.load(bare, "digital", progress=progress)
    axes = _axes(plan, loaded)
    blocks, crafted = _blocks(plan, loaded)
    grid = Grid(axes=axes, blocks=blocks, chunk=chunk_size(chunk, 0))
    if not 0 < grid.total <= MAX_CONDITIONS:
        raise PlanError(f"plan {plan.name}: {grid.total} conditions, allowed 1 to {MAX_CONDITIONS}")
    grid = grid.model_copy(update={"chunk": chunk_size(chunk, grid.total)})
    grid = Grid.model_validate(grid.model_dump())  # without what was computed of the other chunk size
    return Outline(plan, loaded, grid, crafted, kind, _digest(plan, loaded, kind))


def begin(found: Outline, folder: Path, *, chunk: int | None = None, progress: Progress = silent) -> Job:
    """Write the sweep's folder, or take up the one that is there.

    Raises:
        PlanError: the folder holds another sweep or cannot be written, or the room cannot be built.
    """
    if (folder / jobs.DESCRIPTION).exists():
        there = jobs.read_description(folder)
        if there.digest != found.digest:
            raise PlanError(
                f"sweep {folder}: holds the sweep of another plan ({there.name}, {there.digest[:12]}; this one is"
                f" {found.plan.name}, {found.digest[:12]}): choose another --out"
            )
        if chunk is not None and chunk_size(chunk, 0) != there.grid.chunk:
            raise PlanError(
                f"--chunk {chunk}: the sweep in {folder} has chunks of {there.grid.chunk}, leave --chunk out"
            )
        return jobs.read_job(folder)
    if (folder / jobs.SUMMARY).exists() or (folder / "journal.sqlite").exists():
        raise PlanError(f"sweep {folder}: holds something else, choose another --out")
    try:
        files.make_folder(folder / jobs.MATERIAL)
    except OSError as error:
        raise PlanError(f"sweep {folder}: cannot be written ({error.strerror}), choose another --out") from None
    rooms = _write_responses(found, folder / jobs.MATERIAL, progress)
    _write_sounds(found, folder / jobs.MATERIAL, progress)
    _describe(found, folder, rooms)
    return jobs.read_job(folder)


def _axes(plan: Plan, loaded: Material) -> Axes:
    scene, choice = plan.room, plan.sweep or SweepChoice()
    if choice.rt60_s and (scene is None or scene.rt60_s is None):
        raise PlanError(f"plan {plan.name}: sweep.rt60_s needs a simulated room with rt60_s")
    places = scene.placements if scene is not None else None
    here: dict[str, Any] = {"here": None}
    return Axes(
        clips=tuple(Clip(path=c.path, label=c.label, sha256=c.record.sha256) for c in loaded.clips),
        rt60_s=choice.rt60_s or (None,),
        talkers={name: each.position_m for name, each in places.talkers.items()} if places else here,
        devices={name: each.position_m for name, each in places.devices.items()} if places else here,
        attackers={name: each.position_m for name, each in places.attackers.items()} if places else here,
        delays_ms=plan.delays_ms,
        levels_db=choice.levels_db,
        talker_levels_db=choice.talker_levels_db,
        # Where nothing is random a repeat would only feign a larger n.
        repeats=plan.repeats if scene is not None or _is_random(loaded) else 1,
    )


def _is_random(loaded: Material) -> bool:
    return any(bundle.manifest.ensemble is not None for bundle in loaded.bundles.values())


def _blocks(plan: Plan, loaded: Material) -> tuple[tuple[Block, ...], tuple[Condition, ...]]:
    """The blocks of the grid, and what must be crafted, one entry per family of perturbations."""
    blocks: list[Block] = []
    crafted: list[Condition] = []
    families: dict[tuple[Any, ...], int] = {}
    for bundle in loaded.bundles:
        for attack in plan.attacks:
            on = (attack.on or bundle) if attack.name in GRADIENT_ATTACKS else None
            family = None
            if attack.eps:
                # The control follows no model and no target: one pattern serves all.
                aims = (on, attack.target) if on else ()
                key = (attack.title, *aims, attack.eps)
                if key not in families:
                    families[key] = len(crafted)
                    crafted += _families(attack, bundle, on)
                family = families[key]
            played = [i for i, clip in enumerate(loaded.clips) if clip.label != attack.target]
            if not played:
                raise PlanError(f"plan {plan.name}: attacks: every clip says the target {attack.target!r} already")
            blocks.append(
                Block(
                    bundle=bundle,
                    attack=attack.title,
                    on=on,
                    target=attack.target,
                    steps={"fgsm": 1, "pgd": attack.steps}.get(attack.name, 0),
                    eps=attack.eps or (0.0,),
                    scaled=attack.name in SCALED,
                    family=family,
                    clips=tuple(played),
                )
            )
    return tuple(blocks), tuple(crafted)


def _families(attack: AttackChoice, bundle: str, on: str | None) -> list[Condition]:
    steps = {"fgsm": 1, "pgd": attack.steps}.get(attack.name, 0)
    budgets = (max(attack.eps),) if attack.name in SCALED else attack.eps
    target = attack.target if on else None
    return [
        Condition(bundle=bundle, attack=attack.title, on=on, eps=eps, steps=steps, target=target) for eps in budgets
    ]


def _digest(plan: Plan, loaded: Material, device: str) -> str:
    """Stands for everything that decides the rows. Paths are left out where what they lead to is hashed itself."""
    content = plan.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude={"bundles", "trust", "max_attempts"}
    )
    content["clips"].pop("data")
    facts = {
        "format": FORMAT,
        "version": edge.__version__,
        "device": device,
        "plan": content,
        "bundles": {name: bundle.sha256 for name, bundle in loaded.bundles.items()},
        "clips": [(clip.record.sha256, clip.label) for clip in loaded.clips],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _write_responses(found: Outline, folder: Path, progress: Progress) -> tuple[dict[str, Any], ...]:
    scene = found.plan.room
    if scene is None:
        # Talker and attacker stand in one place, which is the device's.
        _save(folder / jobs.RESPONSES, np.ones((2, 1), np.float32))
        _save(folder / jobs.ONSETS, np.zeros((1, 1, 2), np.float64))
        return ({},)
    from rig.scenes.respond import respond  # noqa: PLC0415 - not for a plan without a room

    axes = found.grid.axes
    heard = []
    for rt60_s in axes.rt60_s:
        room = scene if rt60_s is None else scene.model_copy(update={"rt60_s": rt60_s})
        heard.append(respond(room, found.loaded.rate_hz, progress=progress))
    sources = [talker_key(name) for name in axes.talkers] + [attacker_key(name) for name in axes.attackers]
    devices = [device_key(name) for name in axes.devices]
    ordered = [_ordered(each.wire, devices, sources) for each in heard]
    taps = max(array.shape[2] for array, _ in ordered)
    table = np.zeros((len(ordered), len(devices), len(sources), taps), np.float32)
    for into, (array, _) in zip(table, ordered, strict=True):
        into[:, :, : array.shape[2]] = array
    _save(folder / jobs.RESPONSES, table.reshape(-1, taps))
    _save(folder / jobs.ONSETS, np.stack([onset for _, onset in ordered]))
    return tuple(each.facts for each in heard)


def _ordered(
    wire: Responses, devices: list[str], sources: list[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    pick = np.ix_([wire.devices.index(name) for name in devices], [wire.sources.index(name) for name in sources])
    return wire.array[pick], wire.onset_sample[pick]


def _write_sounds(found: Outline, folder: Path, progress: Progress) -> None:
    clips = found.loaded.clips
    _save(folder / jobs.CLIPS, np.stack([clip.pcm for clip in clips]))
    crafter = Crafter(found.loaded.bundles, clips, seed=found.plan.seed)
    window = found.loaded.window_samples
    unfinished = folder / f".{jobs.PERTURBATIONS}"
    shape = (max(len(found.crafted), 1) * len(clips), window)
    rows = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.int16, shape=shape)
    at = 0
    for condition in found.crafted:
        for made in crafter.chunks(condition):
            rows[at : at + len(made)] = made
            at += len(made)
            progress(at, shape[0], f"crafting {condition.attack} eps {condition.eps:g}")
    rows.flush()
    del rows
    files.replace(unfinished, folder / jobs.PERTURBATIONS)
    for name, bundle in found.loaded.bundles.items():
        _finish(folder / f"{name}.earshot", partial(shutil.copyfile, bundle.path))


def _describe(found: Outline, folder: Path, rooms: tuple[dict[str, Any], ...]) -> None:
    text = yaml.safe_dump(found.plan.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=False)
    files.write(folder / jobs.PLAN, text.encode())
    material = folder / jobs.MATERIAL
    names = (jobs.CLIPS, jobs.PERTURBATIONS, jobs.RESPONSES, jobs.ONSETS)
    first = next(iter(found.loaded.bundles.values())).manifest
    description = Description(
        name=found.plan.name,
        digest=found.digest,
        earshot_version=edge.__version__,
        device=found.device,
        seed=found.plan.seed,
        rate_hz=first.rate_hz,
        window_samples=first.window_samples,
        labels=first.labels,
        bundles={
            name: {
                "sha256": bundle.sha256,
                "version": bundle.manifest.version,
                "bits": bundle.manifest.quantisation.bits,
                "log_floor": bundle.manifest.log_floor,
            }
            for name, bundle in found.loaded.bundles.items()
        },
        grid=found.grid,
        rooms=json.loads(json.dumps(rooms)),
        files={name: str(jobs.sha256_of(material / name)) for name in names},
    )
    files.write(folder / jobs.DESCRIPTION, (description.model_dump_json(indent=1, by_alias=True) + "\n").encode())


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as file:  # by its name numpy would change the suffix
            np.save(file, array, allow_pickle=False)

    _finish(path, write)


def _finish(path: Path, write: Callable[[Path], object]) -> None:
    unfinished = path.with_name(f".{path.name}")
    write(unfinished)
    files.replace(unfinished, path)
