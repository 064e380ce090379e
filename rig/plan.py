"""The plan: which models, clips, attacks, positions, delays and repeats a session runs.

A plan names no fact of a laboratory (those are the station's), so the same file runs in every air. It is
YAML; unknown keys are refused. Example: ``rig/plans/demo.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edge.errors import PlanError
from edge.messages import Name
from edge.validation import describe
from rig.scenes import Scene, expand
from rig.sweep.settings import SweepChoice

Eps = Annotated[float, Field(gt=0, le=1)]
MAX_TRIALS = 1_000_000
GRADIENT_ATTACKS = ("fgsm", "pgd")
# What a foreign recogniser says when it recognised none of its words.
BACKGROUND = "_background_"


class _Loader(yaml.SafeLoader):
    """YAML in which ``yes``, ``no``, ``on`` and ``off`` are words, for they are labels; true and false are boolean.

    A key that stands twice in a mapping is refused: of two values one would silently not count.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if any(key.value == other.value for other in keys[:place]):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
        return super().construct_mapping(node, deep=deep)


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|false)$"), list("tf"))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClipChoice(_Frozen):
    """Which recordings the talker speaks: ``count`` clips of ``split``, the same number per label.

    ``data`` is a folder in the Speech Commands layout, or ``zoo`` for the synthetic clips that ship with
    earshot. Without ``labels`` every label of the model but ``_unknown_`` and ``_silence_`` is spoken.
    """

    data: str = "zoo"
    split: Literal["train", "validation", "test", "all"] = "test"
    count: Annotated[int, Field(ge=1, le=100_000)] = 60
    labels: tuple[str, ...] = ()

    @field_validator("labels")
    @classmethod
    def _differ(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        # A label that stood twice would play the same clips twice and pretend to more of them.
        if len(set(values)) != len(values):
            raise ValueError("a label stands twice")
        return values


class AttackChoice(_Frozen):
    """One attack at some budgets.

    ``on`` is the bundle whose gradient is followed; without it each bundle is attacked through its own.
    ``target`` is the label to be heard; without it any error counts.
    """

    name: Literal["benign", "random-sign", "fgsm", "pgd"]
    eps: tuple[Eps, ...] = ()
    steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    on: Name | None = None
    target: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name == "benign" and (self.eps or self.on or self.target):
            raise ValueError("benign takes neither eps nor on nor target")
        if self.name != "benign" and not self.eps:
            raise ValueError(f"{self.name} needs eps, e.g. eps: [0.001, 0.005]")
        if self.name == "random-sign" and self.on:
            raise ValueError("random-sign follows no gradient, so 'on' means nothing")
        return self

    @property
    def title(self) -> str:
        """The attack as tables name it, e.g. ``pgd-20``."""
        return f"pgd-{self.steps}" if self.name == "pgd" else self.name


class ForeignRecogniser(_Frozen):
    """What is tested instead of the plan's bundles: an assistant behind a bridge. The attacks are made on the bundles.

    ``name`` is the ``bundle_name`` that the bridge reports. ``hears`` says as what a clip's label, and an attack's
    target, must be heard; every label that it does not name must not be heard as anything.
    """

    name: Name
    hears: Annotated[dict[str, str], Field(min_length=1, max_length=1000)]

    @field_validator("hears")
    @classmethod
    def _are_words(cls, values: dict[str, str]) -> dict[str, str]:
        if BACKGROUND in values.values():
            raise ValueError(f"leave out the labels that are {BACKGROUND}")
        return values

    def heard(self, label: str) -> str:
        """As what a label must be heard."""
        return self.hears.get(label, BACKGROUND)


class Plan(_Frozen):
    """Everything a session does, in whichever air."""

    # The key is "schema", as in every document of earshot; pydantic reserves the word as an attribute.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    name: Name
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    bundles: Annotated[tuple[str, ...], Field(min_length=1)]
    trust: tuple[str, ...] = ("zoo",)
    recogniser: ForeignRecogniser | None = None
    clips: ClipChoice = ClipChoice()
    attacks: Annotated[tuple[AttackChoice, ...], Field(min_length=1)]
    delays_ms: Annotated[tuple[Annotated[float, Field(ge=-1000, le=1000)], ...], Field(min_length=1)] = (0.0,)
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    room: Scene | None = None
    sweep: SweepChoice | None = None

    def heard(self, label: str) -> str:
        """As what the model under test must hear a label: as itself, unless a stranger is tested."""
        return label if self.recogniser is None else self.recogniser.heard(label)

    @field_validator("delays_ms", "bundles")
    @classmethod
    def _differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError("an entry stands twice")
        return values

    @model_validator(mode="after")
    def _attacks_differ(self) -> Self:
        cells = [(a.title, a.on, a.target, eps) for a in self.attacks for eps in a.eps or (0.0,)]
        if len(set(cells)) != len(cells):
            raise ValueError("attacks: the same attack at the same eps stands twice")
        return self


class Condition(_Frozen):
    """One cell of the plan; every clip of the plan is played in it, ``repeats`` times where the air is random."""

    bundle: str
    attack: str
    on: str | None = None
    eps: float = 0.0
    steps: int = 0
    target: str | None = None
    delay_ms: float = 0.0
    attacker_position: str | None = None
    device_position: str | None = None

    @property
    def norm(self) -> str | None:
        """The norm that ``eps`` bounds."""
        return "linf" if self.eps else None


def load(path: Path) -> Plan:
    """Read a plan; paths in it are taken relative to the file and made absolute.

    Raises:
        PlanError: the file is missing, not YAML, or not a valid plan; the message names key and value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"plan {path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise PlanError(f"plan {path}: nested too deeply to be a plan") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, " if mark else ""
        raise PlanError(f"plan {path}: {where}not YAML: {getattr(error, 'problem', 'unreadable')}") from None
    return parse(document, str(path), path.resolve().parent)


def parse(document: Any, origin: str, folder: Path) -> Plan:
    """Validate a decoded plan.

    Raises:
        PlanError: it is not a mapping or breaks a rule; ``origin`` and the key stand in the message.
    """
    if not isinstance(document, dict):
        raise PlanError(f"plan {origin}: must be a mapping with name, bundles, clips, attacks ...")
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        raise PlanError(f"plan {origin}: {describe(error)}") from None
    try:
        room = plan.room.absolute(folder) if plan.room is not None else None
    except PlanError as error:
        raise PlanError(f"plan {origin}: {error}") from None
    return plan.model_copy(
        update={
            "room": room,
            "bundles": tuple(_absolute(entry, folder) for entry in plan.bundles),
            "trust": tuple(_absolute(entry, folder) for entry in plan.trust),
            "clips": plan.clips.model_copy(update={"data": _absolute(plan.clips.data, folder)}),
        }
    )


def list_conditions(plan: Plan, bundles: list[str], air: str) -> list[Condition]:
    """The cells of the plan in the order they are written.

    Args:
        plan: the plan.
        bundles: the names in the bundles' manifests, in the plan's order.
        air: in the digital air positions mean nothing and do not multiply the cells.

    Raises:
        PlanError: the air needs a room the plan lacks, or an attack is crafted on a bundle the plan lacks, or a foreign
            recogniser has the name of a bundle.
    """
    if air == "room" and plan.room is None:
        raise PlanError(f"plan {plan.name}: the room air needs 'room' with size_m, rt60_s and positions")
    for attack in plan.attacks:
        if attack.on is not None and attack.on not in bundles:
            raise PlanError(f"plan {plan.name}: attacks.on: {attack.on!r} is not one of {', '.join(bundles)}")
    tested = bundles if plan.recogniser is None else [plan.recogniser.name]
    if plan.recogniser is not None and plan.recogniser.name in bundles:
        raise PlanError(f"plan {plan.name}: recogniser.name: {plan.recogniser.name!r} is one of the bundles")
    placed = plan.room if air == "room" else None
    if placed is not None and len(expand(placed).talkers) > 1:
        raise PlanError(
            f"plan {plan.name}: room.talker_m: {len(expand(placed).talkers)} places; a session has one talker, a sweep"
            " takes them all"
        )
    devices = list(expand(placed).devices) if placed else [None]
    attackers = list(expand(placed).attackers) if placed else [None]
    cells: list[Condition] = []
    for bundle, device, attack in product(tested, devices, plan.attacks):
        if attack.name == "benign":
            cells.append(Condition(bundle=bundle, attack=attack.title, device_position=device))
            continue
        # A stranger has no gradient to follow: its attacks come from every bundle of the plan.
        own = [bundle] if plan.recogniser is None else bundles
        followed = ([attack.on] if attack.on else own) if attack.name in GRADIENT_ATTACKS else [None]
        for on, eps, attacker, delay_ms in product(followed, attack.eps, attackers, plan.delays_ms):
            cell = Condition(
                bundle=bundle,
                attack=attack.title,
                on=on,
                eps=eps,
                steps={"fgsm": 1, "pgd": attack.steps}.get(attack.name, 0),
                target=attack.target,
                delay_ms=delay_ms,
                attacker_position=attacker,
                device_position=device,
            )
            cells.append(cell)
    return cells


def _absolute(entry: str, folder: Path) -> str:
    if entry == "zoo" or entry.startswith("zoo:"):
        return entry
    return str((folder / Path(entry).expanduser()).resolve())
