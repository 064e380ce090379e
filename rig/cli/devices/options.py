"""Options of all commands about devices: where the broker is, and whose key signs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edge.errors import UsageError
from edge.mqtt.broker_url import CA_FILE_VARIABLE, PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE, BrokerUrl
from edge.mqtt.tls import CERTIFICATE_FILE_VARIABLE, KEY_FILE_VARIABLE
from rig import station as stations

STATION_VARIABLE = "EARSHOT_STATION"

BrokerOption = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URL",
        help=f"mqtt://[USER@]HOST[:PORT] or mqtts://...; password in {PASSWORD_VARIABLE} or {PASSWORD_FILE_VARIABLE}.",
    ),
]
OperatorOption = Annotated[
    Path | None, typer.Option("--operator", metavar="KEY.pem", help="The private key that signs the command.")
]
StationOption = Annotated[
    Path | None,
    typer.Option(
        "--station", metavar="station.toml", envvar=STATION_VARIABLE, help="Says broker, password file, CA, operator."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class Access:
    """How one comes to the devices."""

    url: BrokerUrl
    operator: Path | None

    def need_operator(self) -> Path:
        """The operator's private key file.

        Raises:
            UsageError: none was given.
        """
        if self.operator is None:
            raise UsageError("no key signs the command: give --operator KEY.pem, or 'operator' in the --station file")
        return self.operator


def access(broker: str | None, operator: Path | None, station: Path | None) -> Access:
    """Join the options: what is given by name wins over the station file.

    A station's password, CA and certificate files are what this process uses unless its environment names others.

    Raises:
        UsageError: no broker is given, or one of the values is wrong.
    """
    if station is None:
        if broker is None:
            raise UsageError(f"no broker: give --broker URL or --station FILE (or set {STATION_VARIABLE})")
        return Access(BrokerUrl.parse(broker), operator)
    facts = stations.load(station)
    if facts.password_file is not None and PASSWORD_VARIABLE not in os.environ:
        os.environ.setdefault(PASSWORD_FILE_VARIABLE, str(facts.password_file))
    for variable, path in (
        (CA_FILE_VARIABLE, facts.ca_file),
        (CERTIFICATE_FILE_VARIABLE, facts.certificate_file),
        (KEY_FILE_VARIABLE, facts.key_file),
    ):
        if path is not None:
            os.environ.setdefault(variable, str(path))
    url = facts.url if broker is None else BrokerUrl.parse(broker)
    return Access(url, operator or facts.operator)
