"""Where to install: ``[user@]host`` as ssh takes it, checked so that no part can pass for an option or a command."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edge.errors import UsageError

_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,31}")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")
_FORM = "use USER@HOST, e.g. pi@kitchen.local or pi@192.168.1.20"


class Target(BaseModel):
    """A machine and how ssh reaches it; what is None is left to the user's ssh configuration.

    ``config`` is used instead of ``~/.ssh/config``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    config: Path | None = None

    @classmethod
    def parse(
        cls, text: str, *, port: int | None = None, identity: Path | None = None, config: Path | None = None
    ) -> Target:
        """Read ``[user@]host``, where the host is a name, an alias of ssh's configuration or an IP address.

        Raises:
            UsageError: a part is malformed, or a file is missing.
        """
        user, mark, host = text.rpartition("@")
        if mark and not _USER.fullmatch(user):
            raise UsageError(f"{text!r}: {user!r} is no user name: {_FORM}")
        if not _is_host(host):
            raise UsageError(f"{text!r}: {host!r} is no host name or IP address: {_FORM}")
        if port is not None and not 1 <= port <= 65535:
            raise UsageError(f"--port {port}: use 1 to 65535")
        for option, path in (("--identity", identity), ("--ssh-config", config)):
            if path is not None and not path.is_file():
                raise UsageError(f"{option} {path}: no such file")
        return cls(host=host.strip("[]"), user=user or None, port=port, identity=identity, config=config)

    def options(self) -> list[str]:
        """For ssh's command line, before ``--``."""
        options = []
        if self.config is not None:
            options += ["-F", str(self.config)]
        if self.port is not None:
            options += ["-p", str(self.port)]
        if self.identity is not None:
            options += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"]
        return options

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host


def _is_host(host: str) -> bool:
    if _HOST.fullmatch(host):
        return True
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    address, mark, zone = bare.partition("%")
    try:
        return ipaddress.ip_address(address).version == 6 and (not mark or zone.isalnum())
    except ValueError:
        return False
