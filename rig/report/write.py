"""Writing a report: three files that need nothing else to be read."""

from __future__ import annotations

import base64
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from pyarrow import Table, parquet, table

from edge import files
from rig.journal import Journal
from rig.report import figures
from rig.report.summary import Summary, TrialRecord, headlines, read_attempts, summarise
from rig.session.prepare import AUDIO
from rig.session.samples import choose
from rig.sweep.session import gap

SUMMARY, RESULTS, PAGE = "summary.json", "results.parquet", "report.html"
SAMPLE_KINDS = ("clean", "mixed", "heard")


def write_report(folders: Sequence[Path], out: Path, *, name: str | None = None) -> Summary:
    """Write ``summary.json``, ``results.parquet`` and ``report.html`` of sessions into ``out``.

    The page is self-contained: pictures and sounds are inside it.

    Raises:
        PlanError: a folder holds no session.
    """
    summary = summarise(folders, name=name)
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / SUMMARY, (summary.model_dump_json(indent=2) + "\n").encode())
    _write_results([record for folder in folders for record in read_attempts(folder)], out / RESULTS)
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            summary=summary,
            headlines=headlines(summary.rows),
            eps_figure=figures.error_over_eps(summary.rows),
            delay_figure=figures.error_over_delay(summary.rows),
            gaps=[found for folder in folders if (found := gap.read(folder / gap.FILE)) is not None],
            samples=[sample for folder in folders for sample in _samples(folder)],
            commands=[shlex.join(session["command"]) for session in summary.sessions],
        )
    )
    files.write(out / PAGE, page.encode())
    return summary


def _write_results(records: list[TrialRecord], path: Path) -> None:
    lines = [
        {
            "session_id": record.session_id,
            "air": record.air,
            **record.condition.model_dump(),
            "trial_id": record.trial_id,
            "clip": record.clip,
            "true_label": record.label,
            "expected_label": record.expected,
            **{
                field.name: getattr(record.attempt, field.name)
                for field in dataclasses.fields(record.attempt)
                if field.name not in {"trial_id", "prediction"}
            },
            "scores": list(record.attempt.prediction.scores) if record.attempt.prediction else None,
            "latency_ms": record.attempt.prediction.latency_ms if record.attempt.prediction else None,
            "device": record.attempt.prediction.device if record.attempt.prediction else None,
        }
        for record in records
    ]
    unfinished = path.with_suffix(".new")
    parquet.write_table(Table.from_pylist(lines) if lines else table({}), unfinished)
    files.replace(unfinished, path)


def _samples(folder: Path) -> list[dict[str, Any]]:
    with Journal(folder, read_only=True) as journal:
        cells, clips, air = journal.conditions(), journal.clips(), journal.meta()["air"]
        chosen = choose(journal.trials(), cells)
        said = {attempt.trial_id: attempt.label for attempt in journal.attempts() if attempt.outcome == "valid"}
    found = []
    for trial in sorted(chosen, key=lambda trial: trial.condition):
        sounds = {
            kind: base64.b64encode(path.read_bytes()).decode()
            for kind in SAMPLE_KINDS
            if (path := folder / AUDIO / f"{trial.trial_id}-{kind}.flac").is_file()
        }
        if sounds:
            cell = cells[trial.condition]
            found.append(
                {
                    "air": air,
                    "bundle": cell.bundle,
                    "attack": cell.attack,
                    "eps": cell.eps,
                    "label": clips[trial.clip].label,
                    "said": said.get(trial.trial_id),
                    "sounds": sounds,
                }
            )
    return found


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rig.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    return environment
