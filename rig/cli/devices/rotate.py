"""``earshot device rotate``: a new key instead of an old one on devices that run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edge.errors import UsageError
from edge.messages import check_name
from rig.cli.console import print_json, say
from rig.cli.devices.changes import judge
from rig.cli.devices.options import BrokerOption, JsonOption, OperatorOption, StationOption, access

app = typer.Typer()


@app.command()
def rotate(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The devices.")],
    old: Annotated[Path, typer.Option("--old", metavar="OLD.pem", help="Private key that the devices trust now.")],
    new: Annotated[Path, typer.Option("--new", metavar="NEW.pub", help="Public key that they shall trust instead.")],
    role: Annotated[
        Literal["bundle", "operator"], typer.Option("--role", help="Whose key: of bundles, or of commands.")
    ],
    broker: BrokerOption = None,
    operator: OperatorOption = None,
    station: StationOption = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.json", help="Keep the statement, for devices not there now.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make and show the statement; send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Sign with the old key that the new one counts instead, and tell devices so.

    The statement names no device: one serves a fleet. For the operators' key the old one signs the command as well.
    """
    from edge.bundle.signing import fingerprint, load_private_key, load_public_key, sign
    from edge.files import write
    from edge.messages import Rotate
    from rig.devices.fleet import Fleet
    from rig.devices.operator import Operator
    from rig.devices.requests import Outcome, need_online
    from rig.devices.requests import rotate as send

    for name in names:
        check_name(name)
    if len(set(names)) < len(names):
        raise UsageError(f"{' '.join(names)}: a device is named twice")
    old_key, new_key = load_private_key(old), load_public_key(new)
    if bytes(old_key.verify_key) == bytes(new_key):
        raise UsageError(f"{new} is the public half of {old}: make a new pair with earshot keys new")
    unsigned = Rotate(
        device=names[0],
        role=role,
        old_key=bytes(old_key.verify_key).hex(),
        new_key=bytes(new_key).hex(),
        signature="0" * 128,
    )
    statement = unsigned.model_copy(update={"signature": sign(old_key, unsigned.signed_bytes()).hex()})
    said = statement.model_dump(mode="json", include={"role", "old_key", "new_key", "signature"})
    if save is not None:
        from json import dumps

        write(save, (dumps(said, indent=2) + "\n").encode())
    what = f"{role} key {fingerprint(new_key)} instead of {fingerprint(old_key.verify_key)}"
    outcomes: list[Outcome] = []
    if not dry_run:
        reach = access(broker, operator or (old if role == "operator" else None), station)
        with Fleet(reach.url, tuple(names), operator=Operator.load(reach.need_operator())) as fleet:
            fleet.settle()
            need_online(fleet, names)
            outcomes = send(fleet, {name: statement.model_copy(update={"device": name}) for name in names})
    if as_json:
        devices = [outcome.as_document() for outcome in outcomes]
        print_json({"statement": said, "dry_run": dry_run, "devices": devices})
    else:
        for key, value in said.items():
            say(f"{key:<10} {value}")
        for outcome in outcomes:
            said_by = f": {outcome.detail}" if outcome.detail else ""
            say(f"{outcome.device}: {what}: {outcome.result}{said_by}")
    judge(outcomes)
