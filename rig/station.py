"""This place's own facts: where the broker is, and with which keys and passwords one comes in.

``station.toml`` holds paths to secrets, never a secret::

    broker = "mqtts://rig@lab.local"
    ca_file = "broker/rig/ca.crt"
    password_file = "broker/rig/password"
    certificate_file = "broker/rig/client.crt"
    key_file = "broker/rig/client.key"
    operator = "keys/operator.pem"

Relative paths begin at the file's own folder.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edge.errors import UsageError
from edge.mqtt.broker_url import BrokerUrl
from edge.validation import describe

MAX_STATION_BYTES = 64 << 10


class Station(BaseModel):
    """What ``station.toml`` says; unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    broker: str
    operator: Path | None = None
    ca_file: Path | None = None
    password_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @property
    def url(self) -> BrokerUrl:
        """The broker's address.

        Raises:
            UsageError: ``broker`` is none.
        """
        return BrokerUrl.parse(self.broker)


def load(path: Path) -> Station:
    """Read a station file.

    Raises:
        UsageError: it cannot be read, is no TOML, or says what no station says.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_STATION_BYTES + 1)
        if len(content) > MAX_STATION_BYTES:
            raise UsageError(f"{path}: larger than {MAX_STATION_BYTES} bytes, this is no station file")
        document = tomllib.loads(content.decode())
        station = Station.model_validate(document)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: give the station file with --station, or --broker") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        keys = ", ".join(Station.model_fields)
        raise UsageError(f"{path}: {describe(error)}: a station says {keys}") from None
    folder = path.absolute().parent
    places = {
        name: folder / value
        for name in ("operator", "ca_file", "password_file", "certificate_file", "key_file")
        if (value := getattr(station, name)) is not None
    }
    return station.model_copy(update=places)
