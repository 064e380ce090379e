"""``earshot device rotate``: a new key instead of an old one on devices that run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edge.errors import UsageError
from edge.messages import check_name
from rig.cli.console import print_json, say
from rig.cli.devices.changes import judge
from rig.cli.devices.options import BrokerOption, JsonOption, OperatorOption, StationOption, access

if TYPE_CHECKING:
    from edge.messages import Rotate

app = typer.Typer()


_MAX_STATEMENT_BYTES = 4096
_PARTS = {"role", "old_key", "new_key", "signature"}


@app.command()
def rotate(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The devices.")],
    old: Annotated[
        Path | None, typer.Option("--old", metavar="OLD.pem", help="Private key that the devices trust now.")
    ] = None,
    new: Annotated[
        Path | None, typer.Option("--new", metavar="NEW.pub", help="Public key that they shall trust instead.")
    ] = None,
    role: Annotated[
        Literal["bundle", "operator"] | None, typer.Option("--role", help="Whose key: of bundles, or of commands.")
    ] = None,
    statement: Annotated[
        Path | None,
        typer.Option("--statement", metavar="FILE.json", help="Instead of the three: send what --save kept."),
    ] = None,
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
    from rig.devices.operator import Operator
    from rig.fleet.presence import Fleet
    from rig.fleet.requests import Outcome, need_online
    from rig.fleet.requests import rotate as send

    for name in names:
        check_name(name)
    if len(set(names)) < len(names):
        raise UsageError(f"{' '.join(names)}: a device is named twice")
    made = _made(names[0], old, new, role) if statement is None else _kept(names[0], statement, (old, new, role, save))
    said = made.model_dump(mode="json", include=_PARTS)
    if save is not None:
        _save(save, said)
    outcomes: list[Outcome] = []
    if not dry_run:
        reach = access(broker, operator or (old if made.role == "operator" else None), station)
        with Fleet(reach.url, tuple(names), operator=Operator.load(reach.need_operator())) as fleet:
            fleet.settle()
            need_online(fleet, names)
            outcomes = send(fleet, {name: made.model_copy(update={"device": name}) for name in names})
    if as_json:
        devices = [outcome.as_document() for outcome in outcomes]
        print_json({"statement": said, "dry_run": dry_run, "devices": devices})
    else:
        for key, value in said.items():
            say(f"{key:<10} {value}")
        what = f"{made.role} key {_fingerprint(made.new_key)} instead of {_fingerprint(made.old_key)}"
        for outcome in outcomes:
            said_by = f": {outcome.detail}" if outcome.detail else ""
            say(f"{outcome.device}: {what}: {outcome.result}{said_by}")
    judge(outcomes)


def _made(device: str, old: Path | None, new: Path | None, role: Literal["bundle", "operator"] | None) -> Rotate:
    from edge.bundle.signing import load_private_key, load_public_key, sign
    from edge.messages import Rotate

    if old is None or new is None or role is None:
        raise UsageError("give --role, --old OLD.pem and --new NEW.pub, or --statement FILE.json that --save kept")
    old_key, new_key = load_private_key(old), load_public_key(new)
    if bytes(old_key.verify_key) == bytes(new_key):
        raise UsageError(f"{new} is the public half of {old}: make a new pair with earshot keys new")
    unsigned = Rotate(
        device=device,
        role=role,
        old_key=bytes(old_key.verify_key).hex(),
        new_key=bytes(new_key).hex(),
        signature="0" * 128,
    )
    return unsigned.model_copy(update={"signature": sign(old_key, unsigned.signed_bytes()).hex()})


def _kept(device: str, path: Path, instead: tuple[object, ...]) -> Rotate:
    """The statement in a file; whether its signature is that of the old key is seen here, before devices refuse it."""
    import json

    from nacl.signing import VerifyKey
    from pydantic import ValidationError

    from edge.bundle.signing import verify
    from edge.messages import Rotate
    from edge.validation import describe

    if any(each is not None for each in instead):
        raise UsageError("--statement stands for --role, --old, --new and --save: leave those out")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_STATEMENT_BYTES + 1)
        document = json.loads(content[:_MAX_STATEMENT_BYTES])
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: give a file that --save kept") from None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or set(document) != _PARTS:
        raise UsageError(f"{path}: no statement: give a file that --save kept")
    try:
        statement = Rotate.model_validate({**document, "device": device})
    except ValidationError as error:
        raise UsageError(f"{path}: {describe(error)}: give a file that --save kept") from None
    old_key = VerifyKey(bytes.fromhex(statement.old_key))
    if verify(statement.signed_bytes(), bytes.fromhex(statement.signature), [old_key]) is None:
        raise UsageError(f"{path}: altered, its old key did not sign it: make it again with --save")
    return statement


def _save(path: Path, said: dict[str, str]) -> None:
    import json

    from edge.files import write

    if path.exists() and not path.is_file():
        raise UsageError(f"--save {path}: there is something else than a file: choose another name")
    write(path, (json.dumps(said, indent=2) + "\n").encode())


def _fingerprint(key: str) -> str:
    from nacl.signing import VerifyKey

    from edge.bundle.signing import fingerprint

    return fingerprint(VerifyKey(bytes.fromhex(key)))
