"""What every command shares: errors in one line, progress with the time left, JSON for machines."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from firmware_models.progress import Progress, silent

# Work that is done sooner needs no progress.
QUIET_S = 3.0


def open_streams() -> None:
    """Make sure that output never fails for a closed stream or a character that the terminal's encoding lacks."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as above
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def print_json(value: Any) -> None:
    """Print ``value`` as one JSON document on standard output, for ``--json``."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_error(message: str) -> None:
    """Print one line on standard error."""
    sys.stderr.write("earshot: " + " ".join(message.split()) + "\n")


def say(text: str = "") -> None:
    """Print one line for people on standard output."""
    sys.stdout.write(text + "\n")


@contextmanager
def progress(title: str, *, enabled: bool = True) -> Iterator[Progress]:
    """A progress bar on standard error with elapsed time and time left; plain lines where there is no terminal.

    Yields:
        a :class:`Progress` to hand to library code. It may be called often; drawing is throttled.
    """
    if not enabled:
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, note="")

        def report(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield report


def _plain_lines(title: str, every_s: float = 10.0) -> Progress:
    began = shown = time.monotonic()
    phase_total, phase_done, phase_told = 0, 0, -1

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal began, shown, phase_total, phase_done, phase_told
        now = time.monotonic()
        if total != phase_total or done < phase_done:
            # Another part of the work begins; the pace of the last one says nothing about it.
            began, phase_total, phase_done, phase_told = now, total, done, -1
        soon = now - shown < every_s and done < total
        told = done == phase_told
        if soon or told or now - began < QUIET_S:
            return
        shown, phase_told = now, done
        left_s = (now - began) / max(done - phase_done, 1) * (total - done)
        sys.stderr.write(f"{title}: {done}/{total}, {now - began:.0f} s, {left_s:.0f} s left {note}".rstrip() + "\n")

    return report
