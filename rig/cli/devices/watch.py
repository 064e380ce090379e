"""``earshot device watch``: all devices as they are now, again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.errors import UsageError
from edge.messages import check_name
from rig.cli.console import say
from rig.cli.devices.options import BrokerOption, StationOption, access

if TYPE_CHECKING:
    from edge.messages import Message
    from rig.fleet.presence import Fleet, Member

app = typer.Typer()

_LONGEST_S = 30 * 86_400.0
_REDRAW_S = 0.25
_LINES_EVERY_S = 1.0
# A bar from here to full scale.
_QUIET_DBFS = -60.0
_BAR = 16
_HEADINGS = ("device", "state", "bundle", "hears", "trigger", "level", "p95 ms", "°C", "outbox", "xruns", "said")


@dataclass
class _Triggers:
    """The word that each device recognised last, and when."""

    last: dict[str, tuple[str, float]] = field(default_factory=dict)

    def note(self, said: Message) -> None:
        from edge.messages import Prediction

        if isinstance(said, Prediction) and said.trigger is not None:
            self.last[said.device] = (said.trigger, time.monotonic())

    def tell(self, device: str) -> str:
        if device not in self.last:
            return ""
        label, when_s = self.last[device]
        return f"{label} {time.monotonic() - when_s:.0f} s ago"


@app.command()
def watch(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Devices (default: all).")] = None,
    broker: BrokerOption = None,
    station: StationOption = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="End after so long.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what devices say as it comes, one JSON object per line.")
    ] = False,
) -> None:
    """Show a live table of devices: what they hear and recognise, level, latency, temperature, outbox, losses.

    Without a terminal it prints a line per device and second. Ctrl-C ends it.
    """
    from rig.devices.link import REPORTS
    from rig.fleet.presence import ANYBODY, Fleet

    if seconds is not None and not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"--seconds {seconds:g}: use more than 0 and at most {_LONGEST_S:.0f}")
    wanted = tuple(check_name(name) for name in names) if names else (ANYBODY,)
    url = access(broker, None, station).url
    try:
        with Fleet(url, wanted, reports=tuple(REPORTS)) as fleet:
            end_s = None if seconds is None else time.monotonic() + seconds
            if as_json:
                _print_messages(fleet, end_s)
            elif sys.stdout.isatty():
                _draw(fleet, end_s)
            else:
                _print_lines(fleet, end_s)
    except KeyboardInterrupt:
        return


def _said(fleet: Fleet, end_s: float | None, wait_s: float) -> Iterator[Message | None]:
    """What devices say, and None after each ``wait_s`` of silence, until ``end_s``."""
    while end_s is None or time.monotonic() < end_s:
        left_s = wait_s if end_s is None else min(wait_s, end_s - time.monotonic())
        yield fleet.take(max(0.0, left_s))


def _print_messages(fleet: Fleet, end_s: float | None) -> None:
    from rig.devices.link import REPORTS

    kinds: dict[type[Message], str] = {report: kind for kind, report in REPORTS.items()}
    for said in _said(fleet, end_s, 1.0):
        if said is None:
            continue
        # The message as it came, with what it is in front.
        sys.stdout.write(f'{{"kind":"{kinds[type(said)]}",{said.to_json().decode()[1:]}\n')
        sys.stdout.flush()


def _print_lines(fleet: Fleet, end_s: float | None) -> None:
    triggers = _Triggers()
    due_s = time.monotonic() + _LINES_EVERY_S
    for said in _said(fleet, end_s, 0.2):
        if said is not None:
            triggers.note(said)
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + _LINES_EVERY_S
            _print_round(fleet, triggers)
    _print_round(fleet, triggers)


def _print_round(fleet: Fleet, triggers: _Triggers) -> None:
    for _, member in sorted(fleet.members.items()):
        cells = _cells(member, triggers, bar=False)
        facts = [f"{heading} {cell}" for heading, cell in zip(_HEADINGS[2:], cells[2:], strict=True) if cell]
        say(f"{time.strftime('%H:%M:%S')} {member.name} {member.status} {', '.join(facts)}".rstrip())
    sys.stdout.flush()


def _draw(fleet: Fleet, end_s: float | None) -> None:
    from rich.console import Console
    from rich.live import Live

    triggers = _Triggers()
    console = Console()
    with Live(console=console, screen=False, auto_refresh=False, vertical_overflow="crop") as live:
        due_s = 0.0
        for said in _said(fleet, end_s, _REDRAW_S):
            if said is not None:
                triggers.note(said)
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + _REDRAW_S
                live.update(_table(fleet, triggers, rows=max(1, console.height - 6)), refresh=True)


def _table(fleet: Fleet, triggers: _Triggers, rows: int) -> Any:
    from rich.table import Table

    members = sorted(fleet.members.values(), key=lambda member: (member.status == "stopped", member.name))
    hidden = len(members) - rows
    table = Table(caption=f"and {hidden} more" if hidden > 0 else "Ctrl-C ends it", caption_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in {"p95 ms", "°C", "outbox", "xruns"} else "left")
    for member in members[:rows]:
        style = {"online": "", "lost": "red"}.get(member.status, "dim")
        table.add_row(*_cells(member, triggers, bar=True), style=style)
    return table


def _cells(member: Member, triggers: _Triggers, *, bar: bool) -> list[str]:
    info, health, level, prediction = member.info, member.health, member.level, member.prediction
    held = ", ".join(health.throttled) if health is not None and health.throttled else ""
    latency = None if health is None else health.latency_p95_ms
    if latency is None and prediction is not None:
        latency = prediction.latency_ms
    celsius = None if health is None else health.cpu_temperature_c
    silent_s = member.silent_for_s()
    return [
        member.name,
        _state(member),
        "" if info is None else f"{info.bundle_name} {info.bundle_version}",
        "" if prediction is None else prediction.label,
        triggers.tell(member.name),
        "" if level is None else _level(level.rms_dbfs, clipped=level.clipped_samples, bar=bar),
        "" if latency is None else f"{latency:.2f}",
        ("" if celsius is None else f"{celsius:.0f}") + (f" {held}" if held else ""),
        "" if health is None else str(health.outbox_depth),
        _xruns(member),
        "" if silent_s is None else f"{silent_s:.0f} s ago",
    ]


def _xruns(member: Member) -> str:
    # A level comes ten times as often as health.
    counted = member.level or member.health
    return "" if counted is None else str(counted.xruns)


def _state(member: Member) -> str:
    update = member.update
    if member.status == "online" and update is not None and update.stage in {"downloading", "verifying", "testing"}:
        share = f" {100 * update.done_bytes // update.total_bytes} %" if update.total_bytes else ""
        return f"{update.stage}{share}"
    if member.info is not None and member.info.confirmed is False and member.status == "online":
        return "proving"
    return member.status


def _level(rms_dbfs: float, *, clipped: int, bar: bool) -> str:
    number = f"{rms_dbfs:.0f} dBFS"
    mark = " clipped" if clipped else ""
    if not bar:
        return number + mark
    filled = round(_BAR * min(1.0, max(0.0, 1 - rms_dbfs / _QUIET_DBFS)))
    return f"{'█' * filled}{'·' * (_BAR - filled)} {number}{mark}"
