"""``earshot device status``: all that is known of one device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.errors import EarshotError, UnavailableError
from edge.messages import check_name
from rig.cli.console import print_json, progress, say
from rig.cli.devices.options import BrokerOption, JsonOption, OperatorOption, StationOption, access

if TYPE_CHECKING:
    from rig.fleet.presence import Fleet, Member

app = typer.Typer()
# A device tells its health every 10 s.
_HEALTH_S = 11


@app.command()
def status(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device.")],
    broker: BrokerOption = None,
    operator: OperatorOption = None,
    station: StationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show state, bundle, slots, the last update, sound, health and, with an operator's key, the clock's offset."""
    from rig.devices.operator import Operator
    from rig.fleet.presence import Fleet

    reach = access(broker, operator, station)
    check_name(name)
    signer = None if reach.operator is None else Operator.load(reach.operator)
    with Fleet(reach.url, (name,), operator=signer) as fleet:
        fleet.settle()
        if name not in fleet.members:
            raise UnavailableError(f"device {name}: never seen at {reach.url}: see earshot device list")
        clock: dict[str, Any] | str = "not measured: give --operator KEY.pem"
        if fleet.members[name].status == "online":
            if signer is not None:
                clock = _measured(fleet, name)
            with progress(f"waiting for {name} to tell its health", enabled=not as_json) as bar:
                _hear_health(fleet, name, bar)
        member = fleet.members[name]
    if as_json:
        print_json(_document(member, clock))
    else:
        for line in _lines(member, clock):
            say(line)


def _measured(fleet: Fleet, name: str) -> dict[str, Any] | str:
    try:
        return fleet.link.measure_clock(name).as_document()
    except EarshotError as error:
        return " ".join(str(error).split())


def _hear_health(fleet: Fleet, name: str, bar: Any) -> None:
    began_s = time.monotonic()
    while (elapsed_s := time.monotonic() - began_s) < _HEALTH_S:
        if fleet.members[name].health is not None or fleet.members[name].status != "online":
            return
        bar(int(elapsed_s), _HEALTH_S)
        fleet.take(0.25)


def _document(member: Member, clock: dict[str, Any] | str) -> dict[str, Any]:
    parts = ("state", "info", "update", "health", "level")
    told = {part: getattr(member, part) for part in parts}
    document: dict[str, Any] = {"name": member.name, "status": member.status}
    document |= {
        part: None if message is None else message.model_dump(mode="json", exclude={"schema_version", "device"})
        for part, message in told.items()
    }
    return document | {"clock": clock}


def _lines(member: Member, clock: dict[str, Any] | str) -> list[str]:
    boot = "" if member.state is None else f", boot {member.state.boot_id}"
    lines = [f"{member.name}: {member.status}{boot}"]
    if (info := member.info) is not None:
        lines += [
            f"  earshot     {info.version}, {', '.join(info.providers)}",
            f"  bundle      {info.bundle_name} version {info.bundle_version}, sha256 {info.bundle_sha256}",
            f"  slots       {_slots(member)}",
            f"  operators   {', '.join(info.operators) or 'none: it obeys no command'}",
            f"  microphone  {info.microphone}",
        ]
    if (last := member.update) is not None:
        detail = f": {last.detail}" if last.detail else ""
        lines.append(f"  update      {last.bundle_name} version {last.bundle_version} {last.stage}{detail}")
    if (level := member.level) is not None:
        silence = f", silent for {level.silent_s:.0f} s" if level.silent_s else ""
        lines.append(
            f"  sound       {level.rms_dbfs:.1f} dBFS, peak {level.peak_dbfs:.1f} dBFS,"
            f" {level.clipped_samples} samples clipped{silence}"
        )
    lines += _health_lines(member)
    lines.append(f"  clock       {clock if isinstance(clock, str) else _clock(clock)}")
    return lines


def _slots(member: Member) -> str:
    info = member.info
    if info is None or info.slot is None:
        return "none: it runs a file it was given"
    proved = "confirmed" if info.confirmed else "not confirmed yet"
    spare = "empty" if info.spare is None else f"{info.spare.name} version {info.spare.version}"
    return f"{info.slot} runs, {proved}; {'b' if info.slot == 'a' else 'a'}: {spare}"


def _health_lines(member: Member) -> list[str]:
    health = member.health
    if health is None:
        return ["  health      not told"]
    lines = [
        (
            f"  windows     {health.windows}, latency p50 {_or_dash(health.latency_p50_ms)} ms,"
            f" p95 {_or_dash(health.latency_p95_ms)} ms, p99 {_or_dash(health.latency_p99_ms)} ms"
        ),
        f"  lost sound  {health.xruns} xruns, {health.overruns} overruns, microphone reopened {health.reopened} times",
        f"  outbox      {health.outbox_depth} waiting, {health.outbox_dropped} dropped",
        f"  commands    {health.rejected_commands} rejected",
        f"  up          {_duration(health.uptime_s)}, load {_or_dash(health.load_1min)}",
        f"  memory      {_or_dash(health.memory_rss_mb, 0)} MB, {_or_dash(health.memory_available_mb, 0)} MB available",
        f"  disk        {_or_dash(health.disk_free_mb, 0)} MB free",
    ]
    celsius = health.cpu_temperature_c
    warmth = "temperature not told" if celsius is None else f"{celsius:.0f} °C"
    held = "throttling not told" if health.throttled is None else ", ".join(health.throttled) or "not throttled"
    lines.append(f"  processor   {warmth}, {held}")
    return lines


def _clock(offset: dict[str, Any]) -> str:
    return f"{offset['utc_ns'] / 1e6:+.2f} ms to this machine's, within {offset['uncertainty_ns'] / 1e6:.2f} ms"


def _or_dash(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86_400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock
