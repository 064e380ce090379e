"""The folder of a broker: what must be in it, given what is in it already."""

from __future__ import annotations

import datetime as dt
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from edge.errors import UsageError
from rig.deploy.broker import access, changes
from rig.deploy.broker.certificates import Pair, is_current, new_authority, new_client, new_server
from rig.deploy.broker.changes import SECRET, Change
from rig.deploy.broker.passwords import matches, new_password, password_line
from rig.deploy.broker.settings import Settings, configuration, read_me, rig_url, station

SETTINGS_FILE = "earshot-broker.json"
MAX_DEVICES = 100_000


@dataclass
class Plan:
    """What is to be done: the settings, the devices that the broker will know, the changes in their order."""

    settings: Settings
    devices: list[str]
    changes: list[Change] = field(default_factory=list)

    def carry_out(self) -> None:
        """Do it.

        Raises:
            OSError: the disk or the rights do not allow it.
        """
        changes.carry_out(self.changes)


def existing_settings(out: Path) -> Settings | None:
    """The settings of a folder that was made before; None where there is nothing yet.

    Raises:
        UsageError: there is something else, or its settings are malformed.
    """
    try:
        content = (out / SETTINGS_FILE).read_bytes()
    except FileNotFoundError:
        if out.is_dir() and any(out.iterdir()):
            raise UsageError(f"{out}: holds other files: choose a new folder, or one of an earlier run") from None
        return None
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}: choose another folder") from None
    try:
        return Settings.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{out / SETTINGS_FILE}: {where}: {first['msg']}: correct it or begin a new folder") from None


def plan(
    out: Path,
    settings: Settings,
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    now: dt.datetime | None = None,
) -> Plan:
    """Compare the folder with what it shall be; nothing is written.

    What is there and good stays: the authority, passwords, certificates that are valid for 60 days more.

    Args:
        out: the folder, absent or made by an earlier run.
        settings: what it is for.
        add: names of devices, new or known.
        remove: names of devices that shall lose their access.
        now: what certificates are judged by; the machine's clock where it is absent.

    Raises:
        UsageError: a name cannot be used or is unknown, or a file in the folder is malformed.
        OSError: the folder cannot be read.
    """
    devices = _devices(out, add, remove)
    owner = _owner(settings)
    now = now or dt.datetime.now(dt.UTC)
    made = Plan(settings, devices)
    done = made.changes
    done.append(changes.folder(out, mode=changes.PUBLIC_FOLDER))
    done.append(changes.file(out / SETTINGS_FILE, settings.model_dump_json(indent=2).encode() + b"\n"))
    done.extend(changes.removal(out / "devices" / name) for name in remove)
    authority = _pair(out / "authority", "ca") or new_authority(now)
    done += [changes.folder(out / "authority"), *_files(out / "authority", "ca", authority)]
    broker = out / "broker"
    server = _pair(broker, "server")
    if server is None or not is_current(server, authority, now, settings.hosts):
        server = new_server(authority, settings.hosts, now)
    done += [changes.folder(broker, owner=owner), *_files(broker, "server", server, owner)]
    done.append(changes.file(broker / "ca.crt", authority.certificate, owner=owner))
    done.append(changes.folder(out / "data", owner=owner))

    rig = _client(made, out / "rig", access.RIG_USER, authority, now=now, path=settings.path / "rig")
    done.append(changes.file(out / "rig/station.toml", _station(out, settings)))
    done.append(changes.folder(out / "devices"))
    users = {
        name: _client(made, out / "devices" / name, name, authority, now=now, path=settings.path / "devices" / name)
        for name in devices
    }
    if settings.home_assistant:
        name = access.HOME_ASSISTANT_USER
        users[name] = _client(made, out / name, name, authority, now=now, path=settings.path / name)
    elif (out / access.HOME_ASSISTANT_USER).is_dir():
        done.append(changes.removal(out / access.HOME_ASSISTANT_USER))
    _lists(made, broker, "rig", users={access.RIG_USER: rig}, rules=access.rig_list(), owner=owner)
    rules = access.devices_list(devices, home_assistant=settings.home_assistant)
    _lists(made, broker, "devices", users=users, rules=rules, owner=owner)
    done.append(changes.file(out / "mosquitto.conf", configuration(settings).encode()))
    done.append(changes.file(out / "README.md", read_me(settings).encode()))
    return made


def _station(out: Path, settings: Settings) -> bytes:
    """The rig's station file; one that is there is the user's, but for an address that is no longer true."""
    before = existing_settings(out)
    try:
        there = (out / "rig/station.toml").read_bytes()
    except FileNotFoundError:
        return station(settings).encode()
    return there if before is None else there.replace(rig_url(before).encode(), rig_url(settings).encode(), 1)


def _devices(out: Path, add: Sequence[str], remove: Sequence[str]) -> list[str]:
    folder = out / "devices"
    known = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    for name in remove:
        if name not in known:
            raise UsageError(
                f"--remove {name!r}: the broker knows no such device ({', '.join(sorted(known)) or 'none'})"
            )
        if name in add:
            raise UsageError(f"device {name!r} is both added and removed: say one of them")
    devices = sorted((known | {access.check_device(name) for name in add}) - set(remove))
    if len(devices) > MAX_DEVICES:
        raise UsageError(f"{len(devices)} devices: one broker's folder holds at most {MAX_DEVICES}")
    return devices


def _owner(settings: Settings) -> str | None:
    if settings.run_as is None or os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(settings.run_as)
    except KeyError:
        # The folder may be for another machine.
        return None
    return settings.run_as


def _pair(folder: Path, name: str) -> Pair | None:
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    if not certificate.exists() or not key.exists():
        return None
    return Pair(certificate.read_bytes(), key.read_bytes())


def _files(folder: Path, name: str, pair: Pair, owner: str | None = None) -> list[Change]:
    return [
        changes.file(folder / f"{name}.crt", pair.certificate, owner=owner),
        changes.file(folder / f"{name}.key", pair.key, mode=SECRET, owner=owner),
    ]


def _client(made: Plan, folder: Path, user: str, authority: Pair, *, now: dt.datetime, path: Path) -> str:
    """Certificate, key, password and environment of one user; returns the password."""
    pair = _pair(folder, "client")
    if pair is None or not is_current(pair, authority, now):
        pair = new_client(authority, user, now)
    password_file = folder / "password"
    password = password_file.read_text(encoding="ascii").strip() if password_file.exists() else new_password()
    environment = (
        f"EARSHOT_MQTT_USER={user}\n"
        f"EARSHOT_MQTT_PASSWORD_FILE={path}/password\n"
        f"EARSHOT_MQTT_CA_FILE={path}/ca.crt\n"
        f"EARSHOT_MQTT_CERT_FILE={path}/client.crt\n"
        f"EARSHOT_MQTT_KEY_FILE={path}/client.key\n"
    )
    made.changes += [
        changes.folder(folder),
        changes.file(folder / "ca.crt", authority.certificate),
        *_files(folder, "client", pair),
        changes.file(password_file, f"{password}\n".encode("ascii"), mode=SECRET),
        changes.file(folder / "earshot.env", environment.encode()),
    ]
    return password


def _lists(made: Plan, broker: Path, who: str, *, users: dict[str, str], rules: str, owner: str | None) -> None:
    path = broker / f"passwords-{who}"
    known = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    present = {line.partition(":")[0]: line for line in known}
    lines = [
        present[user] if matches(present.get(user, ""), user, password) else password_line(user, password)
        for user, password in sorted(users.items())
    ]
    content = "".join(f"{line}\n" for line in lines).encode("ascii")
    made.changes.append(changes.file(path, content, mode=SECRET, owner=owner))
    made.changes.append(changes.file(broker / f"access-{who}", rules.encode(), mode=SECRET, owner=owner))
