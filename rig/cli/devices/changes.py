"""``earshot device update`` and ``rollback``: another bundle on devices that run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edge.errors import ThresholdError, UnavailableError, UsageError
from edge.messages import check_name
from rig.cli.console import print_json, progress, say
from rig.cli.devices.options import BrokerOption, JsonOption, OperatorOption, StationOption, access

if TYPE_CHECKING:
    from edge.mqtt.broker_url import BrokerUrl
    from rig.fleet.presence import Fleet
    from rig.fleet.requests import Change, Outcome

app = typer.Typer()

NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Be content when the bundle runs; do not wait the minute in which it proves.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be asked; ask nothing.")]


@app.command()
def update(
    names_and_bundle: Annotated[
        list[str], typer.Argument(metavar="NAME... BUNDLE", help="Devices, and the bundle that they shall run.")
    ],
    broker: BrokerOption = None,
    operator: OperatorOption = None,
    station: StationOption = None,
    serve: Annotated[
        str | None,
        typer.Option(
            "--serve", metavar="HOST[:PORT]", help="Where devices fetch it from (default: this machine, any port)."
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="CERT.pem", help="Serve it by HTTPS, with --key.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="KEY.pem", help="The certificate's private key.")] = None,
    downgrade: Annotated[
        bool, typer.Option("--downgrade", help="Allow a version below the highest that the device has run.")
    ] = False,
    no_wait: NoWaitOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have devices fetch a bundle, try it, run it, and prove it for a minute; what fails goes back by itself."""
    from edge.bundle.reading import describe_untrusted
    from edge.messages import Update
    from rig.devices.bundle_server import BundleServer, address_for

    names, path = _split(names_and_bundle)
    reach = access(broker, operator, station)
    claims = describe_untrusted(path)
    if not claims.intact:
        raise UsageError(f"{path}: altered, its members differ from their hashes: copy or pack it again")
    manifest = claims.manifest
    host, port = _address(serve)
    pair = _certificate(certificate, key)
    with ExitStack() as stack:
        fleet = stack.enter_context(_fleet(names, reach.url, None if dry_run else reach.need_operator()))
        server = BundleServer(path, host=host or address_for(reach.url.host), port=port, certificate=pair)
        stack.enter_context(server)
        command = Update(
            device="any",
            url=server.url,
            bundle_name=manifest.name,
            bundle_version=manifest.version,
            bundle_sha256=claims.sha256,
            size_bytes=server.size_bytes,
            downgrade=downgrade,
        )
        wanted: dict[str, tuple[Change, str]] = {
            name: (command.model_copy(update={"device": name}), claims.sha256) for name in names
        }
        what = f"{manifest.name} version {manifest.version}"
        _carry_out(fleet, wanted, what, no_wait=no_wait, dry_run=dry_run, as_json=as_json)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device.")],
    broker: BrokerOption = None,
    operator: OperatorOption = None,
    station: StationOption = None,
    no_wait: NoWaitOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have a device run the bundle of its other slot."""
    from edge.messages import Rollback

    reach = access(broker, operator, station)
    check_name(name)
    with _fleet([name], reach.url, None if dry_run else reach.need_operator()) as fleet:
        info = fleet.members[name].info
        if info is None or info.slot is None:
            raise ThresholdError(f"device {name}: runs a file it was given and has no slots: nothing to go back to")
        if info.spare is None:
            raise ThresholdError(f"device {name}: its other slot is empty: send an update instead")
        wanted: dict[str, tuple[Change, str]] = {
            name: (Rollback(device=name, bundle_sha256=info.spare.sha256), info.spare.sha256)
        }
        what = f"{info.spare.name} version {info.spare.version}"
        _carry_out(fleet, wanted, what, no_wait=no_wait, dry_run=dry_run, as_json=as_json)


@contextmanager
def _fleet(names: Sequence[str], url: BrokerUrl, operator: Path | None) -> Iterator[Fleet]:
    """Devices that are all online, with an operator where one is given."""
    from rig.devices.operator import Operator
    from rig.fleet.presence import Fleet
    from rig.fleet.requests import need_online

    signer = None if operator is None else Operator.load(operator)
    with Fleet(url, tuple(names), operator=signer) as fleet:
        fleet.settle()
        need_online(fleet, names)
        yield fleet


def _carry_out(
    fleet: Fleet,
    wanted: Mapping[str, tuple[Change, str]],
    what: str,
    *,
    no_wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from rig.fleet.requests import change

    if dry_run:
        _tell_plan(fleet, wanted, what, as_json=as_json)
        return
    until: Literal["running", "confirmed"] = "running" if no_wait else "confirmed"
    with progress(what, enabled=not as_json) as bar:
        outcomes = change(fleet, wanted, until=until, progress=bar)
    if as_json:
        print_json({"bundle": what, "devices": [outcome.as_document() for outcome in outcomes]})
    else:
        for outcome in outcomes:
            slot = f" in slot {outcome.slot}" if outcome.slot else ""
            said = f": {outcome.detail}" if outcome.detail else ""
            say(f"{outcome.device}: {what} {outcome.result}{slot}{said}")
    judge(outcomes)


def judge(outcomes: Sequence[Outcome]) -> None:
    """End as the worst outcome demands.

    Raises:
        ThresholdError: a device refused, or its bundle did not prove itself.
        UnavailableError: all that is wrong is that a device said nothing.
    """
    bad = [outcome for outcome in outcomes if not outcome.good]
    if not bad:
        return
    message = "; ".join(f"device {outcome.device}: {outcome.result}: {outcome.detail}" for outcome in bad)
    if all(outcome.result == "silent" for outcome in bad):
        raise UnavailableError(message)
    raise ThresholdError(message)


def _tell_plan(fleet: Fleet, wanted: Mapping[str, tuple[Change, str]], what: str, *, as_json: bool) -> None:
    plans = []
    for name, (command, sha256) in wanted.items():
        info = fleet.members[name].info
        runs = None if info is None else f"{info.bundle_name} version {info.bundle_version}"
        slots = info is not None and info.slot is not None
        same = info is not None and info.bundle_sha256 == sha256
        plan = {"device": name, "runs": runs, "has_slots": slots, "current": same, "command": command.model_dump()}
        plans.append(plan)
    if as_json:
        print_json({"bundle": what, "dry_run": True, "devices": plans})
        return
    for plan in plans:
        does = "would run" if plan["has_slots"] else "has no slots and would refuse"
        does = "runs already" if plan["current"] else does
        say(f"{plan['device']}: runs {plan['runs'] or 'nothing that it tells'}, {does} {what}")


def _split(words: list[str]) -> tuple[list[str], Path]:
    if len(words) < 2:
        raise UsageError("give the names of devices and then the bundle: earshot device update NAME... BUNDLE")
    *names, bundle = words
    if len(set(names)) < len(names):
        raise UsageError(f"{' '.join(names)}: a device is named twice")
    return [check_name(name) for name in names], Path(bundle)


def _address(serve: str | None) -> tuple[str | None, int]:
    if serve is None:
        return None, 0
    host, colon, port = serve.rpartition(":")
    if serve.endswith("]") or not colon or (":" in host and not host.startswith("[")):
        return serve.strip("[]"), 0
    if not port.isdecimal() or int(port) > 65535 or not host:
        raise UsageError(f"--serve {serve}: use HOST or HOST:PORT, with the address under which devices reach this")
    return host.strip("[]"), int(port)


def _certificate(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("HTTPS needs both --certificate CERT.pem and --key KEY.pem")
    return certificate, key
