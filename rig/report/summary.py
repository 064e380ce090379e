"""The rows of ``summary.json``: one per condition, rates with n and a Wilson interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge.errors import PlanError
from firmware_models.statistics import wilson
from rig.journal import Attempt, Journal
from rig.plan import Condition, ForeignRecogniser

# What an attack is compared with: noise of its budget.
CONTROL = "random-sign"


class Row(BaseModel):
    """One condition of one session.

    ``n`` trials were planned and begun or finished; ``valid`` of them count, ``invalid`` were given up, the rest is
    still open. ``invalid_attempts`` were repeated or given up, each with a reason. ``errors`` and the rates are
    over ``valid``. ``snr_db`` is the mean at the device, ``linf`` the largest perturbation sample delivered there,
    full scale = 1.
    """

    model_config = ConfigDict(frozen=True)

    bundle: str
    bits: int | None
    log_floor: float | None
    air: str
    attack: str
    crafted_on: str | None
    target: str | None
    norm: str | None
    eps: float
    linf: float
    snr_db: float | None
    delay_ms: float
    attacker_position: str | None
    device_position: str | None
    n: int
    valid: int
    invalid: int
    invalid_attempts: int
    errors: int
    error_rate: float | None
    ci_low: float | None
    ci_high: float | None
    targeted_success: float | None
    latency_ms: float | None


class Excluded(BaseModel):
    """Attempts that do not count, by reason."""

    model_config = ConfigDict(frozen=True)

    air: str
    reason: str
    attempts: int
    trials_given_up: int


class Summary(BaseModel):
    """``summary.json``."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    name: str
    complete: bool
    trials: int
    concluded: int
    rows: list[Row]
    excluded: list[Excluded]
    sessions: list[dict[str, Any]]


@dataclass(frozen=True)
class TrialRecord:
    """One attempt with all that is known of it: a line of ``results.parquet``."""

    session_id: str
    air: str
    condition: Condition
    trial_id: str
    clip: str
    label: str
    expected: str
    attempt: Attempt


def read_attempts(folder: Path) -> list[TrialRecord]:
    """Every attempt of a session."""
    with Journal(folder, read_only=True) as journal:
        meta, cells, clips = journal.meta(), journal.conditions(), journal.clips()
        trials = {trial.trial_id: trial for trial in journal.trials()}
        expected = {clip.label: _expected(meta, clip.label) or clip.label for clip in clips}
        return [
            TrialRecord(
                session_id=meta["session_id"],
                air=meta["air"],
                condition=cells[trials[attempt.trial_id].condition],
                trial_id=attempt.trial_id,
                clip=clips[trials[attempt.trial_id].clip].path,
                label=clips[trials[attempt.trial_id].clip].label,
                expected=expected[clips[trials[attempt.trial_id].clip].label],
                attempt=attempt,
            )
            for attempt in journal.attempts()
        ]


def summarise(folders: Sequence[Path], *, name: str | None = None) -> Summary:
    """Count the sessions of one or more folders.

    Args:
        folders: session folders; their rows follow each other.
        name: of the whole; the first session's plan by default.

    Raises:
        PlanError: a folder holds no session, or two hold the same.
    """
    rows: list[Row] = []
    excluded: list[Excluded] = []
    sessions: list[dict[str, Any]] = []
    planned = concluded = 0
    for folder in folders:
        with Journal(folder, read_only=True) as journal:
            if any(journal.meta()["session_id"] == session["session_id"] for session in sessions):
                raise PlanError(f"session {folder}: is named twice, and its trials would count twice; name it once")
            meta, cells, trials = journal.meta(), journal.conditions(), journal.trials()
            concluded += len(journal.concluded())
        planned += len(trials)
        attempts = read_attempts(folder)
        by_cell: dict[Condition, list[TrialRecord]] = {cell: [] for cell in cells}
        for record in attempts:
            by_cell[record.condition].append(record)
        sizes = Counter(trial.condition for trial in trials)
        rows += [_row(cell, by_cell[cell], sizes[index], meta) for index, cell in enumerate(cells)]
        excluded += _excluded(attempts, meta["air"])
        sessions.append({"folder": str(folder), "trials": len(trials), **meta})
    return Summary(
        name=name or sessions[0]["plan"],
        complete=planned == concluded,
        trials=planned,
        concluded=concluded,
        rows=rows,
        excluded=excluded,
        sessions=sessions,
    )


def headlines(rows: Sequence[Row]) -> list[Row]:
    """For each bundle in each air: benign, the most harmful attack, and the control of the same budget."""
    chosen: list[Row] = []
    for air, bundle in dict.fromkeys((row.air, row.bundle) for row in rows):
        here = [row for row in rows if (row.air, row.bundle) == (air, bundle) and row.error_rate is not None]
        chosen += [row for row in here if row.attack == "benign"]
        attacked = [row for row in here if row.attack not in {"benign", CONTROL}]
        if not attacked:
            continue
        worst = max(attacked, key=lambda row: (row.error_rate or 0.0, -row.eps))
        chosen += [row for row in here if row.attack == CONTROL and _circumstances(row) == _circumstances(worst)]
        chosen.append(worst)
    return chosen


def _circumstances(row: Row) -> tuple[object, ...]:
    return row.eps, row.delay_ms, row.attacker_position, row.device_position


def _row(cell: Condition, records: list[TrialRecord], planned: int, meta: dict[str, Any]) -> Row:
    valid = [record for record in records if record.attempt.outcome == "valid"]
    errors = sum(record.attempt.label != record.expected for record in valid)
    rate = wilson(errors, len(valid))
    hits = sum(record.attempt.label == _expected(meta, cell.target) for record in valid)
    levels = [record.attempt.snr_db for record in valid if record.attempt.snr_db is not None]
    latencies = [record.attempt.prediction.latency_ms for record in valid if record.attempt.prediction]
    # Of a foreign recogniser nothing is known but its name.
    facts = meta["bundles"].get(cell.bundle, {})
    return Row(
        bundle=cell.bundle,
        bits=facts.get("bits"),
        log_floor=facts.get("log_floor"),
        air=meta["air"],
        attack=cell.attack,
        crafted_on=cell.on,
        target=cell.target,
        norm=cell.norm,
        eps=cell.eps,
        linf=max((record.attempt.linf or 0.0 for record in valid), default=0.0),
        snr_db=round(fmean(levels), 2) if levels else None,
        delay_ms=cell.delay_ms,
        attacker_position=cell.attacker_position,
        device_position=cell.device_position,
        n=planned,
        valid=len(valid),
        invalid=sum(record.attempt.outcome == "abandoned" for record in records),
        invalid_attempts=sum(record.attempt.outcome != "valid" for record in records),
        errors=errors,
        error_rate=_number(rate.rate),
        ci_low=_number(rate.low),
        ci_high=_number(rate.high),
        targeted_success=hits / len(valid) if cell.target and valid else None,
        latency_ms=round(fmean(latencies), 3) if latencies else None,
    )


def _expected(meta: dict[str, Any], label: str | None) -> str | None:
    """As what a label must be heard in this session."""
    recogniser = meta.get("recogniser")
    if recogniser is None or label is None:
        return label
    return ForeignRecogniser.model_validate(recogniser).heard(label)


def _excluded(records: list[TrialRecord], air: str) -> list[Excluded]:
    # Reasons carry a figure in brackets; the table groups them without it.
    dropped = [
        ((record.attempt.reason or "").split(" (")[0], record.attempt.outcome == "abandoned")
        for record in records
        if record.attempt.outcome != "valid"
    ]
    attempts = Counter(reason for reason, _ in dropped)
    final = Counter(reason for reason, given_up in dropped if given_up)
    return [
        Excluded(air=air, reason=reason, attempts=count, trials_given_up=final[reason])
        for reason, count in attempts.most_common()
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
