"""``earshot device install`` and ``uninstall``: a machine becomes a device over ssh, and stops being one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.errors import ThresholdError, UsageError
from edge.mqtt.broker_url import USER_VARIABLE, BrokerUrl
from rig.cli.console import print_json, progress, say

if TYPE_CHECKING:
    from firmware_models.progress import Progress
    from rig.deploy.install import AskPassword, Report

app = typer.Typer(add_completion=False)

_Machine = Annotated[str, typer.Argument(metavar="[USER@]HOST", help="The machine, as ssh knows it.")]
_Port = Annotated[int | None, typer.Option("--port", help="ssh's port (default: as configured for ssh).")]
_Identity = Annotated[Path | None, typer.Option("--identity", help="ssh's private key file.")]
_SshConfig = Annotated[Path | None, typer.Option("--ssh-config", help="Instead of ~/.ssh/config.")]
_Root = Annotated[
    str, typer.Option("--root", metavar="DIR", help="Work on the system in this folder of the machine, e.g. a card.")
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Show every step and what it would run; change nothing.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def install(
    machine: _Machine,
    name: Annotated[str, typer.Option("--name", help="The device's name: a-z 0-9 . _ -")],
    bundle: Annotated[Path, typer.Option("--bundle", metavar="X.earshot", help="Its first model.")],
    trust: Annotated[list[Path], typer.Option("--trust", metavar="KEY.pub", help="Key that signs its bundles.")],
    broker: Annotated[str, typer.Option("--broker", metavar="URL", help="mqtts://USER@HOST or mqtt://...")],
    operator: Annotated[
        list[Path] | None, typer.Option("--operator", metavar="KEY.pub", help="Key whose commands it obeys.")
    ] = None,
    microphone: Annotated[
        str, typer.Option("--microphone", metavar="SPEC", help="As for earshot-device run.")
    ] = "sounddevice",
    ca: Annotated[Path | None, typer.Option("--ca", metavar="CRT", help="Who signed the broker's certificate.")] = None,
    cert: Annotated[Path | None, typer.Option("--cert", metavar="CRT", help="Client certificate.")] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="KEY", help="Its private key.")] = None,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="The broker's password (or EARSHOT_MQTT_PASSWORD).")
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(
            "--credentials",
            metavar="DIR",
            help="Instead of the four: what earshot broker config made for it, e.g. broker/devices/kitchen.",
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", metavar="TOML", help="More settings of the device: listening, threads and so on."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Send all wheels; the machine needs no network.")] = False,
    no_start: Annotated[bool, typer.Option("--no-start", help="Install only; it starts with the system.")] = False,
    root: _Root = "",
    port: _Port = None,
    identity: _Identity = None,
    ssh_config: _SshConfig = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Make a machine a device: program, keys, settings and a hardened systemd unit; again: only what is missing."""
    from rig.deploy.install import install as carry_out
    from rig.deploy.settings import check
    from rig.deploy.target import Target

    target = Target.parse(machine, port=port, identity=identity, config=ssh_config)
    broker, ca, cert, key, password_file = _credentials(
        credentials, name, broker, ca=ca, cert=cert, key=key, password_file=password_file
    )
    wanted = check(
        name=name,
        bundle=bundle,
        trust=tuple(trust),
        operators=tuple(operator or ()),
        broker=broker,
        microphone=microphone,
        ca=ca,
        certificate=cert,
        key=key,
        password_file=password_file,
        settings=settings,
    )
    with _progress(f"installing {name}", enabled=not as_json) as report_progress:
        report = carry_out(
            target,
            wanted,
            root=root,
            start=not no_start,
            offline=offline,
            dry_run=dry_run,
            ask_password=_ask_password(),
            progress=report_progress,
        )
    _tell(report, as_json=as_json)
    if not report.healthy:
        raise ThresholdError(f"{name} is installed, but its doctor found something: see FAIL above")


@app.command()
def uninstall(
    machine: _Machine,
    name: Annotated[str, typer.Option("--name", help="The device (default: all of the machine).")] = "",
    purge: Annotated[bool, typer.Option("--purge", help="Its bundles, keys and kept predictions, too.")] = False,
    root: _Root = "",
    port: _Port = None,
    identity: _Identity = None,
    ssh_config: _SshConfig = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Remove unit, program and settings; what the device knows stays, but with --purge."""
    from rig.deploy.install import uninstall as carry_out
    from rig.deploy.target import Target

    target = Target.parse(machine, port=port, identity=identity, config=ssh_config)
    with _progress("uninstalling", enabled=not as_json) as report_progress:
        report = carry_out(
            target,
            name=name,
            purge=purge,
            root=root,
            dry_run=dry_run,
            ask_password=_ask_password(),
            progress=report_progress,
        )
    _tell(report, as_json=as_json)


def _credentials(
    folder: Path | None,
    name: str,
    broker: str,
    *,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    password_file: Path | None,
) -> tuple[str, Path | None, Path | None, Path | None, Path | None]:
    """Broker's URL, authority, certificate, key and password file: as given, or from the folder that was made."""
    if folder is None:
        return broker, ca, cert, key, password_file
    if any(each is not None for each in (ca, cert, key, password_file)):
        raise UsageError("--credentials stands for --ca, --cert, --key and --password-file: leave those out")
    files = [folder / file for file in ("ca.crt", "client.crt", "client.key", "password")]
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path}: no such file: give the folder broker/devices/{name} of earshot broker config")
    url = BrokerUrl.parse(broker)
    user = _user_of(folder) or name
    if name != user or url.user not in {None, user}:
        raise UsageError(
            f"{folder} is for device {user}, not for {url.user or name}: the broker would hear nothing of it"
        )
    if url.user is None:
        # The broker knows a device by its name.
        broker = str(url.model_copy(update={"user": name}))
    return broker, files[0], files[1], files[2], files[3]


def _user_of(folder: Path) -> str | None:
    """Whose credentials these are, where the folder says so."""
    try:
        lines = (folder / "earshot.env").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    mark = f"{USER_VARIABLE}="
    return next((line.removeprefix(mark) for line in lines if line.startswith(mark)), None)


@contextmanager
def _progress(title: str, *, enabled: bool) -> Iterator[Progress]:
    """Draws nothing before there is progress: until then ssh and sudo may ask for passwords on the same lines."""
    with ExitStack() as stack:
        drawn: list[Progress] = []

        def report(done: int, total: int, note: str = "") -> None:
            if not drawn:
                drawn.append(stack.enter_context(progress(title, enabled=enabled)))
            drawn[0](done, total, note)

        yield report


def _ask_password() -> AskPassword:
    if not sys.stdin.isatty():
        return None
    from getpass import getpass

    return getpass


def _tell(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    facts = report.facts
    say(f"{report.target}: {facts.os or facts.system}, {facts.machine}, {facts.program_free_mb} MB free")
    for number, step in enumerate(report.steps):
        took = f", {step.duration_s:.1f} s" if step.duration_s >= 1 else ""
        say(f"{step.status:8}{step.title}{took}{f' ({step.detail})' if step.detail else ''}")
        for line in () if step.title == "doctor" else step.output.splitlines():
            say(f"        {line}")
        if report.dry_run and step.status == "would":
            _show(report.scripts[number])
    for finding in report.doctor or ():
        say(f"{'OK  ' if finding.get('ok') is True else 'FAIL'} {finding.get('check')}: {finding.get('detail')}")
    if not report.changed:
        say("nothing to do")


def _show(script: dict[str, object]) -> None:
    upload = script["upload"]
    if isinstance(upload, list) and upload:
        say(f"    sends {', '.join(map(str, upload))}")
    for line in str(script["script"]).splitlines():
        say(f"    | {line}")
