"""The plan that a sweep proposes for a physical session: where an attack does most beyond noise of its budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from edge.errors import PlanError, UsageError
from firmware_models.progress import Progress, silent
from firmware_models.statistics import newcombe
from rig import plan as plans
from rig.plan import AttackChoice, Plan
from rig.sweep import job as jobs
from rig.sweep.grid import Grid
from rig.sweep.job import Description, read_description
from rig.sweep.pictures.charts import BENIGN, CONTROL
from rig.sweep.pictures.tally import BUDGET, CELL, Counts, interval, tally
from rig.sweep.session.scene import with_places

# Benign, the control, and an attack.
LEAST = 3
MAX_TOP = 10_000
_AXES = ("arm", "device", "attacker", "delay", "bundle")
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """One attack's condition of the proposed plan, with what the sweep says of it and of its control."""

    bundle: str
    attack: str
    crafted_on: str | None
    target: str | None
    eps: float
    delay_ms: float
    attacker_position: str | None
    device_position: str | None
    n: int
    error_rate: float
    control_n: int
    control_rate: float
    effect: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Proposal:
    """A plan, the attack conditions in it, most effective first, and how many conditions it has in all."""

    plan: Plan
    sweep: str
    digest: str
    conditions: int
    rt60_s: float | None
    talker: str
    chosen: tuple[Chosen, ...]


@dataclass(frozen=True)
class _Arm:
    """An attack of the plan at one budget."""

    attack: int
    eps: float


@dataclass(frozen=True)
class _Picked:
    """Places along the axes that a session's plan multiplies."""

    bundle: tuple[int, ...]
    arm: tuple[_Arm, ...]
    device: tuple[int, ...]
    attacker: tuple[int, ...]
    delay: tuple[int, ...]

    def with_(self, axis: str, value: Any) -> _Picked:
        return replace(self, **{axis: (*getattr(self, axis), value)})


@dataclass(frozen=True)
class _Effects:
    """Effect over the control per bundle and arm, float64 (room, talker, device, attacker, delay); NaN for unknown."""

    plan: Plan
    bundles: tuple[str, ...]
    difference: Mapping[tuple[int, _Arm], Doubles]
    low: Mapping[tuple[int, _Arm], Doubles]
    arms: tuple[_Arm, ...] = field(default=())


def propose(folder: Path, *, top: int = 20, progress: Progress = silent) -> Proposal:
    """Choose at most ``top`` conditions of a sweep for a session, benign and controls among them.

    A session plays every attack from every place at every delay, so what is chosen is such a product: it begins with
    the cell whose effect over the random-sign control is surely largest (the lower end of its interval), takes in
    another position and another delay, and goes on with whatever adds the largest effects.

    Raises:
        UsageError: ``top`` has no room for an attack with its control and benign.
        PlanError: the sweep has no control, no level of 0 dB, or nothing counts.
    """
    if not LEAST <= top <= MAX_TOP:
        raise UsageError(f"--top {top}: allowed {LEAST} (benign, control, attack) to {MAX_TOP}")
    description = read_description(folder)
    plan = plans.load(folder / jobs.PLAN)
    counts = tally(folder, description.grid, {"cell": CELL}, progress=progress)["cell"]
    effects = _effects(plan, description.grid, counts)
    (bundle, arm), room, talker, device, attacker, delay = _best(effects)
    picked = _Picked((bundle,), (arm,), (device,), (attacker,), (delay,))
    picked = _grown(effects, picked, room, talker, top)
    proposed = _plan(folder, description, plan, effects, picked, room=room, talker=talker)
    chosen = sorted(
        _told(description.grid, counts, effects, picked, room=room, talker=talker),
        key=lambda each: (-each.ci_low, -each.effect),
    )
    axes = description.grid.axes
    return Proposal(
        plan=proposed,
        sweep=description.name,
        digest=description.digest,
        conditions=_size(plan, effects.bundles, picked),
        rt60_s=axes.rt60_s[room],
        talker=list(axes.talkers)[talker],
        chosen=tuple(chosen),
    )


def to_yaml(proposal: Proposal) -> str:
    """The plan as a file, with what speaks for it as comments."""
    lines = [
        f"# Proposed by the sweep {proposal.sweep} ({proposal.digest[:12]}): {proposal.conditions} conditions.",
        "# Error rate beyond the random-sign control of the same place, delay and eps, with its 95 % interval:",
    ]
    for each in proposal.chosen:
        where = f" from {each.attacker_position} at {each.device_position}" if each.attacker_position else ""
        aim = f" to {each.target}" if each.target else ""
        lines.append(
            f"#   {each.bundle}, {each.attack}{aim} eps {each.eps:g}{where}, {each.delay_ms:g} ms:"
            f" {each.effect:+.2f} ({each.ci_low:+.2f} to {each.ci_high:+.2f}), n {each.n} and {each.control_n}"
        )
    document = proposal.plan.model_dump(mode="json", by_alias=True, exclude_none=True)
    return "\n".join(lines) + "\n" + yaml.safe_dump(document, sort_keys=False)


def _effects(plan: Plan, grid: Grid, counts: list[Counts]) -> _Effects:
    axes = grid.axes
    for name, levels in (("levels_db", axes.levels_db), ("talker_levels_db", axes.talker_levels_db)):
        if 0.0 not in levels:
            raise PlanError(f"plan {plan.name}: sweep.{name} lacks 0, at which a session plays; add it and sweep again")
    bundles = tuple(dict.fromkeys(block.bundle for block in grid.blocks))
    if len(grid.blocks) != len(bundles) * len(plan.attacks):
        raise PlanError(f"plan {plan.name}: is not the one of the sweep beside it")
    difference: dict[tuple[int, _Arm], Doubles] = {}
    low: dict[tuple[int, _Arm], Doubles] = {}
    for number, block in enumerate(grid.blocks):
        if block.family is None or block.attack == CONTROL:
            continue
        bundle, attack = divmod(number, len(plan.attacks))
        for budget, eps in enumerate(block.eps):
            control = _control(grid, block.bundle, eps)
            if control is None:
                continue
            attacked, noise = _at(grid, counts[number], budget), _at(grid, counts[control[0]], control[1])
            key = (bundle, _Arm(attack, eps))
            difference[key], low[key] = _compared(attacked, noise)
    if not any(block.family is not None and block.attack != CONTROL for block in grid.blocks):
        raise PlanError(f"plan {plan.name}: attacks: holds no attack, so nothing can be proposed")
    if not difference:
        raise PlanError(
            f"plan {plan.name}: attacks: no attack has a {CONTROL} of its eps to be told from noise by; add one and"
            " sweep again"
        )
    return _Effects(plan, bundles, difference, low, tuple(dict.fromkeys(arm for _, arm in difference)))


def _control(grid: Grid, bundle: str, eps: float) -> tuple[int, int] | None:
    """Block and place of eps of the control on a bundle."""
    for number, block in enumerate(grid.blocks):
        if block.bundle == bundle and block.attack == CONTROL and eps in block.eps:
            return number, block.eps.index(eps)
    return None


def _at(grid: Grid, counts: Counts, budget: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Valid conditions and errors at one budget as a session plays it, (room, talker, device, attacker, delay)."""
    fixed = {
        BUDGET: budget,
        "level": grid.axes.levels_db.index(0.0),
        "talker_level": grid.axes.talker_levels_db.index(0.0),
    }
    chosen = tuple(fixed.get(axis, slice(None)) for axis in counts.axes)
    return counts.valid[chosen], counts.errors[chosen]


def _compared(attacked: Any, noise: Any) -> tuple[Doubles, Doubles]:
    # Few pairs of counts come up again and again.
    pairs = np.stack([*attacked, *noise]).reshape(4, -1).T
    kinds, kind_of = np.unique(pairs, axis=0, return_inverse=True)
    found = [
        newcombe(interval(valid, errors, valid), interval(control_valid, control_errors, control_valid))
        for valid, errors, control_valid, control_errors in kinds.tolist()
    ]
    shape = attacked[0].shape
    table = np.array([(each.rate, each.low) for each in found])[kind_of.reshape(-1)]
    return table[:, 0].reshape(shape), table[:, 1].reshape(shape)


def _best(effects: _Effects) -> tuple[tuple[int, _Arm], int, int, int, int, int]:
    best: tuple[Any, ...] | None = None
    for key, low in effects.low.items():
        if np.isnan(low).all():
            continue
        # Of equal lower ends the larger effect, of equal effects the smaller budget.
        score = low + 1e-6 * effects.difference[key]
        place = np.unravel_index(int(np.nanargmax(score)), score.shape)
        rank = (float(score[place]), -key[1].eps)
        if best is None or rank > best[0]:
            best = (rank, key, *(int(each) for each in place))
    if best is None:
        raise PlanError(f"plan {effects.plan.name}: no attack and control of one place both count, nothing to propose")
    return best[1:]


def _grown(effects: _Effects, picked: _Picked, room: int, talker: int, top: int) -> _Picked:
    plan, bundles = effects.plan, effects.bundles
    for axis in ("attacker", "delay"):
        options = [each for each in _extended(effects, picked) if each[0] == axis]
        found = _most_effective(effects, picked, room, talker, options, top=top)
        picked = found or picked
    while _size(plan, bundles, picked) < top:
        found = _most_effective(effects, picked, room, talker, list(_extended(effects, picked)), top=top, least=0.0)
        if found is None:
            break
        picked = found
    return picked


def _extended(effects: _Effects, picked: _Picked) -> Iterator[tuple[str, Any]]:
    shape = next(iter(effects.low.values())).shape
    every: dict[str, Any] = {
        "bundle": range(len(effects.bundles)),
        "arm": effects.arms,
        "device": range(shape[2]),
        "attacker": range(shape[3]),
        "delay": range(shape[4]),
    }
    for axis in _AXES:
        for value in every[axis]:
            if value not in getattr(picked, axis):
                yield axis, value


def _most_effective(
    effects: _Effects,
    picked: _Picked,
    room: int,
    talker: int,
    options: list[tuple[str, Any]],
    *,
    top: int,
    least: float = -math.inf,
) -> _Picked | None:
    """The extension that adds the largest effects and fits; None if none does."""
    best: tuple[float, _Picked] | None = None
    for axis, value in options:
        grown = picked.with_(axis, value)
        if _size(effects.plan, effects.bundles, grown) > top:
            continue
        added = replace(picked, **{axis: (value,)})
        lows = [effects.low[key][room, talker][place] for key, place in _cells(effects, added)]
        differences = [effects.difference[key][room, talker][place] for key, place in _cells(effects, added)]
        if not lows or np.isnan(lows).any() or float(np.mean(differences)) <= least:
            continue
        score = float(np.mean(lows))
        if best is None or score > best[0]:
            best = score, grown
    return best[1] if best is not None else None


def _cells(effects: _Effects, picked: _Picked) -> Iterator[tuple[tuple[int, _Arm], tuple[int, int, int]]]:
    for bundle in picked.bundle:
        for arm in picked.arm:
            if (bundle, arm) in effects.low:
                for device in picked.device:
                    for attacker in picked.attacker:
                        for delay in picked.delay:
                            yield (bundle, arm), (device, attacker, delay)


def _names(plan: Plan, bundles: tuple[str, ...], picked: _Picked) -> list[str]:
    """The bundles of the plan: those tested, and those on which an attack is crafted, which are tested with them."""
    followed = {plan.attacks[arm.attack].on for arm in picked.arm} - {None}
    return [name for number, name in enumerate(bundles) if number in picked.bundle or name in followed]


def _size(plan: Plan, bundles: tuple[str, ...], picked: _Picked) -> int:
    arms = len(picked.arm) + len({arm.eps for arm in picked.arm})
    each = 1 + arms * len(picked.attacker) * len(picked.delay)
    return len(_names(plan, bundles, picked)) * len(picked.device) * each


def _told(
    grid: Grid, counts: list[Counts], effects: _Effects, picked: _Picked, *, room: int, talker: int
) -> Iterator[Chosen]:
    axes = grid.axes
    for (bundle, arm), (device, attacker, delay) in _cells(effects, picked):
        number = bundle * len(effects.plan.attacks) + arm.attack
        block = grid.blocks[number]
        control = _control(grid, block.bundle, arm.eps)
        if control is None:
            continue
        place = (room, talker, device, attacker, delay)
        valid, errors = (each[place] for each in _at(grid, counts[number], block.eps.index(arm.eps)))
        control_valid, control_errors = (each[place] for each in _at(grid, counts[control[0]], control[1]))
        first = interval(int(valid), int(errors), int(valid))
        second = interval(int(control_valid), int(control_errors), int(control_valid))
        found = newcombe(first, second)
        name = list(axes.attackers)[attacker]
        yield Chosen(
            bundle=block.bundle,
            attack=block.attack,
            crafted_on=block.on,
            target=block.target,
            eps=arm.eps,
            delay_ms=axes.delays_ms[delay],
            attacker_position=name if axes.attackers[name] is not None else None,
            device_position=list(axes.devices)[device] if axes.attackers[name] is not None else None,
            n=int(valid),
            error_rate=first.rate,
            control_n=int(control_valid),
            control_rate=second.rate,
            effect=found.rate,
            ci_low=found.low,
            ci_high=found.high,
        )


def _plan(
    folder: Path,
    description: Description,
    plan: Plan,
    effects: _Effects,
    picked: _Picked,
    *,
    room: int,
    talker: int,
) -> Plan:
    axes = description.grid.axes
    names = _names(plan, effects.bundles, picked)
    scene = None
    if plan.room is not None:
        kept = {
            "talker_m": [list(axes.talkers)[talker]],
            "attackers_m": [list(axes.attackers)[each] for each in sorted(picked.attacker)],
            "devices_m": [list(axes.devices)[each] for each in sorted(picked.device)],
        }
        scene = with_places(plan.room, kept, axes.rt60_s[room], description.rate_hz)
    budgets = sorted({arm.eps for arm in picked.arm})
    attacks = [AttackChoice(name=BENIGN), AttackChoice(name=CONTROL, eps=tuple(budgets))]
    for number, attack in enumerate(plan.attacks):
        eps = tuple(sorted(arm.eps for arm in picked.arm if arm.attack == number))
        if eps:
            attacks.append(attack.model_copy(update={"eps": eps}))
    document = plan.model_copy(
        update={
            "name": f"{plan.name[:55]}-session",
            "bundles": tuple(entry for entry, name in zip(plan.bundles, effects.bundles, strict=True) if name in names),
            "attacks": tuple(attacks),
            "delays_ms": tuple(sorted(axes.delays_ms[each] for each in picked.delay)),
            "room": scene,
            "sweep": None,
        }
    ).model_dump(mode="json", by_alias=True, exclude_none=True)
    return plans.parse(document, f"proposed by {folder}", folder)
