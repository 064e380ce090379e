"""``earshot device list``: who is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.errors import UsageError
from rig.cli.console import print_json, say
from rig.cli.devices.options import BrokerOption, JsonOption, StationOption, access

if TYPE_CHECKING:
    from rig.fleet.presence import Member

app = typer.Typer()
_LONGEST_S = 3600.0


@app.command("list")
def list_devices(
    broker: BrokerOption = None,
    station: StationOption = None,
    seconds: Annotated[float, typer.Option("--seconds", help="How long to listen for signs of life.")] = 1.5,
    as_json: JsonOption = False,
) -> None:
    """Show every device that the broker knows: state, bundle, slot, microphone."""
    from rig.fleet.presence import Fleet

    if not 0 <= seconds <= _LONGEST_S:
        raise UsageError(f"--seconds {seconds:g}: use 0 to {_LONGEST_S:g}")
    with Fleet(access(broker, None, station).url) as fleet:
        fleet.settle()
        fleet.listen(seconds)
        members = sorted(fleet.members.values(), key=lambda member: member.name)
    if as_json:
        print_json({"devices": [as_document(member) for member in members]})
        return
    if not members:
        say("no device has said anything at this broker")
        return
    _print_table(members)


def as_document(member: Member) -> dict[str, Any]:
    """What is known of a device, for ``--json``."""
    info = member.info
    return {
        "name": member.name,
        "status": member.status,
        "bundle": None if info is None else info.bundle_name,
        "bundle_version": None if info is None else info.bundle_version,
        "bundle_sha256": None if info is None else info.bundle_sha256,
        "slot": None if info is None else info.slot,
        "confirmed": None if info is None else info.confirmed,
        "version": None if info is None else info.version,
        "microphone": None if info is None else info.microphone,
        "silent_for_s": member.silent_for_s(),
    }


def last_seen(member: Member) -> str:
    """For people: the broker tells of one that is there within its keepalive, and not since when another is gone."""
    silent_s = member.silent_for_s()
    if silent_s is not None:
        return f"{silent_s:.0f} s ago"
    return "within 30 s" if member.status == "online" else "–"


def _print_table(members: list[Member]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("device", "state", "bundle", "version", "slot", "microphone", "last seen"):
        table.add_column(heading)
    for member in members:
        info = member.info
        if info is None:
            table.add_row(member.name, member.status, "", "", "", "", last_seen(member))
            continue
        slot = "" if info.slot is None else info.slot + ("" if info.confirmed else " (not confirmed)")
        cells = (info.bundle_name, str(info.bundle_version), slot, info.microphone, last_seen(member))
        table.add_row(member.name, member.status, *cells)
    Console().print(table)
