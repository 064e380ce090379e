"""Where the broker is: ``mqtt://[user@]host[:port]``, or ``mqtts://`` for TLS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from edge.errors import UsageError

USER_VARIABLE = "EARSHOT_MQTT_USER"
PASSWORD_VARIABLE = "EARSHOT_MQTT_PASSWORD"  # noqa: S105 - the name of a variable
PASSWORD_FILE_VARIABLE = "EARSHOT_MQTT_PASSWORD_FILE"  # noqa: S105 - the name of a variable
CA_FILE_VARIABLE = "EARSHOT_MQTT_CA_FILE"
MAX_PASSWORD_BYTES = 4096
DEFAULT_PORTS: dict[str, int] = {"mqtt": 1883, "mqtts": 8883}


class BrokerUrl(BaseModel):
    """A broker's address without its password, which never stands in a URL, a plan or a log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Literal["mqtt", "mqtts"] = "mqtt"
    host: Annotated[str, Field(min_length=1, max_length=253)]
    port: Annotated[int, Field(ge=1, le=65535)]
    user: str | None = None

    @classmethod
    def parse(cls, text: str) -> BrokerUrl:
        """Read ``mqtt://[user@]host[:port]``; the port is 1883, or 8883 for ``mqtts``, when absent.

        Raises:
            UsageError: it is not such a URL, or carries a password.
        """
        form = "use mqtt://[USER@]HOST[:PORT] or mqtts://..."
        try:
            parts = urlsplit(text)
            scheme, host, port, user, password = (
                parts.scheme,
                parts.hostname,
                parts.port,
                parts.username,
                parts.password,
            )
        except ValueError as error:
            raise UsageError(f"broker URL is malformed ({error}): {form}") from None
        if password is not None:
            raise UsageError(f"broker URL carries a password: leave it out and set {PASSWORD_VARIABLE}")
        if scheme not in DEFAULT_PORTS:
            raise UsageError(f"broker URL {text!r} has no scheme mqtt or mqtts: {form}")
        if not host or not _is_host(host):
            raise UsageError(f"broker URL {text!r} has no usable host: {form}")
        if port == 0:
            raise UsageError(f"broker URL {text!r} has port 0: use 1 to 65535")
        if parts.path not in {"", "/"} or parts.query or parts.fragment:
            raise UsageError(f"broker URL {text!r} goes on after the port: {form}")
        secure = scheme == "mqtts"
        return cls(
            scheme="mqtts" if secure else "mqtt", host=host, port=port or DEFAULT_PORTS[scheme], user=user or None
        )

    def user_name(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The user of the URL, else the one in ``EARSHOT_MQTT_USER``."""
        return self.user or environment.get(USER_VARIABLE) or None

    def password(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The password from ``EARSHOT_MQTT_PASSWORD`` or the file named by ``EARSHOT_MQTT_PASSWORD_FILE``.

        Raises:
            UsageError: the file cannot be read, or holds no password.
        """
        if PASSWORD_VARIABLE in environment:
            return environment[PASSWORD_VARIABLE]
        if name := environment.get(PASSWORD_FILE_VARIABLE):
            try:
                with Path(name).open("rb") as file:
                    content = file.read(MAX_PASSWORD_BYTES + 1)
                password = content.decode().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{PASSWORD_FILE_VARIABLE}={name}: cannot read the password: {error}") from None
            if len(content) > MAX_PASSWORD_BYTES:
                raise UsageError(f"{PASSWORD_FILE_VARIABLE}={name}: more than {MAX_PASSWORD_BYTES} bytes: no password")
            return password
        return None

    def ca_file(self, environment: Mapping[str, str] = os.environ) -> Path | None:
        """The certificate authority's PEM file named by ``EARSHOT_MQTT_CA_FILE``; None means the system's.

        Raises:
            UsageError: there is no such file.
        """
        if not (name := environment.get(CA_FILE_VARIABLE)):
            return None
        if not Path(name).is_file():
            raise UsageError(f"{CA_FILE_VARIABLE}={name}: no such file")
        return Path(name)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}:{self.port}"


def _is_host(host: str) -> bool:
    if any(character.isspace() or not character.isprintable() for character in host):
        return False
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
