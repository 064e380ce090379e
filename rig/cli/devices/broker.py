"""``earshot broker``: make the folder from which mosquitto serves devices that cannot speak for one another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rig.cli.console import print_json, say

if TYPE_CHECKING:
    from rig.deploy.broker.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Make a broker's configuration.")


@app.callback()
def group() -> None:
    """Make a broker's configuration."""


@app.command()
def config(
    out: Annotated[Path, typer.Option("--out", help="Folder to make, or to bring up to date.")],
    device: Annotated[list[str] | None, typer.Option("--device", help="Name of a device; repeatable.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Device that loses its access.")] = None,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="DNS name or IP address of the broker, as clients write it; repeatable."),
    ] = None,
    device_port: Annotated[int | None, typer.Option("--device-port", help="Port for devices (8883).")] = None,
    rig_port: Annotated[int | None, typer.Option("--rig-port", help="Port for the rig (8884).")] = None,
    home_assistant: Annotated[
        bool | None,
        typer.Option(
            "--home-assistant/--no-home-assistant", help="Let Home Assistant read, and devices show up there."
        ),
    ] = None,
    at: Annotated[
        Path | None, typer.Option("--at", help="Where the folder will lie on the broker's machine (where it is made).")
    ] = None,
    run_as: Annotated[
        str | None, typer.Option("--run-as", help="Account that mosquitto takes when root starts it (mosquitto).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write configuration, certificates, passwords and access lists; what is there and good stays.

    Run again to add a device, to remove one, or to renew what expires within 60 days.
    """
    from rig.deploy.broker.folder import existing_settings, plan

    out = out.absolute()
    given = {
        "hosts": host or None,
        "device_port": device_port,
        "rig_port": rig_port,
        "home_assistant": home_assistant,
        "path": at,
        "run_as": run_as,
    }
    settings = _settings(out, existing_settings(out), {key: value for key, value in given.items() if value is not None})
    made = plan(out, settings, add=device or (), remove=remove or ())
    if not dry_run:
        made.carry_out()
    changed = [change for change in made.changes if change.action != "keep"]
    urls = {
        "devices": f"mqtts://{settings.address}:{settings.device_port}",
        "rig": f"mqtts://{settings.address}:{settings.rig_port}",
    }
    if as_json:
        print_json(
            {
                "folder": str(out),
                "dry_run": dry_run,
                "devices": made.devices,
                "hosts": list(settings.hosts),
                "urls": urls,
                "changes": [change.as_dict() for change in changed],
            }
        )
        return
    for change in changed:
        say(f"{'would ' if dry_run else ''}{change.action} {change.path}")
    say(f"{len(changed)} changes, {len(made.changes) - len(changed)} files and folders stay")
    say(f"devices ({', '.join(made.devices) or 'none'}): {urls['devices']}; rig: {urls['rig']}")
    say(f"start it: mosquitto -c {settings.path}/mosquitto.conf (more in {out}/README.md)")


def _settings(out: Path, before: Settings | None, given: dict[str, object]) -> Settings:
    import os

    from pydantic import ValidationError

    from edge.errors import UsageError
    from rig.deploy.broker.settings import Settings, default_hosts

    if before is None:
        base: dict[str, object] = {"hosts": default_hosts(), "path": out}
        if os.geteuid() == 0:
            base["run_as"] = "mosquitto"
    else:
        base = before.model_dump()
    try:
        return Settings.model_validate(base | given)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if key.endswith("_port") and key in given:
            raise UsageError(f"--{key.replace('_', '-')} {given[key]}: use 1 to 65535") from None
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
