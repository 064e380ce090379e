"""What one broker's folder is made for, and mosquitto's configuration file for it."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.errors import UsageError
from edge.messages import MAX_PAYLOAD_BYTES
from rig.deploy.broker.access import RIG_USER
from rig.deploy.broker.certificates import check_host, is_host

DEVICE_PORT = 8883
RIG_PORT = 8884
USER_PATTERN = r"[a-z_][a-z0-9_-]{0,31}"

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseModel):
    """Kept beside the configuration, so that a device can be added later without saying it all again.

    ``path`` is where the folder lies on the broker's machine; ``run_as`` the account that mosquitto takes when root
    starts it, None where nobody but its user starts it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    hosts: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)]
    device_port: Port = DEVICE_PORT
    rig_port: Port = RIG_PORT
    home_assistant: bool = False
    path: Path
    run_as: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for host in self.hosts:
            check_host(host)
        if self.device_port == self.rig_port:
            raise UsageError(f"port {self.rig_port} for devices and for the rig: they need two")
        if not self.path.is_absolute() or re.search(r"[\s\x00-\x1f]", str(self.path)):
            raise UsageError(f"path {str(self.path)!r}: use an absolute path without spaces, mosquitto reads no others")
        if self.run_as is not None and not re.fullmatch(USER_PATTERN, self.run_as):
            raise UsageError(f"--run-as {self.run_as!r}: use the name of an account on the broker's machine")
        return self

    @property
    def address(self) -> str:
        """The first of the hosts as it stands in a URL."""
        return f"[{self.hosts[0]}]" if ":" in self.hosts[0] else self.hosts[0]


def default_hosts() -> tuple[str, ...]:
    """What this machine is called by others and by itself."""
    name = socket.gethostname().lower()
    names = (name, *(() if "." in name else (f"{name}.local",)), "localhost", "127.0.0.1", "::1")
    return tuple(dict.fromkeys(host for host in names if is_host(host)))


def configuration(settings: Settings) -> str:
    """The text of ``mosquitto.conf``."""
    path = settings.path
    run_as = "" if settings.run_as is None else f"user {settings.run_as}\n"
    return f"""\
# Written by "earshot broker config", which writes it again: change its options, not this file.
per_listener_settings true
{run_as}
# A small message must not wait for the acknowledgement of the one before.
set_tcp_nodelay true

# What each device said last survives a restart; everything else the devices keep themselves.
persistence true
persistence_location {path}/data/
autosave_interval 60
persistent_client_expiration 7d

# One device can neither fill the broker's memory nor stall it.
max_packet_size {MAX_PAYLOAD_BYTES + (1 << 16)}
max_inflight_messages 1000
max_queued_messages 20000
max_queued_bytes 67108864
queue_qos0_messages false
allow_zero_length_clientid true

log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true

# Devices. The user is the client id: nobody ends another's connection by taking its id.
listener {settings.device_port}
use_username_as_clientid true
{_security(path, "devices")}
# The rig. Several of its programs connect at once under one user.
listener {settings.rig_port}
{_security(path, "rig")}"""


def _security(path: Path, who: str) -> str:
    return f"""\
allow_anonymous false
password_file {path}/broker/passwords-{who}
acl_file {path}/broker/access-{who}
cafile {path}/broker/ca.crt
certfile {path}/broker/server.crt
keyfile {path}/broker/server.key
require_certificate true
tls_version tlsv1.2
"""


def rig_url(settings: Settings) -> str:
    """The broker's address for the rig."""
    return f"mqtts://{RIG_USER}@{settings.address}:{settings.rig_port}"


def station(settings: Settings) -> str:
    """The text of the rig's ``station.toml``; the operator's key is added by hand."""
    return f"""\
broker = "{rig_url(settings)}"
ca_file = "ca.crt"
password_file = "password"
certificate_file = "client.crt"
key_file = "client.key"
# operator = "../../operator.pem"    # signs commands; earshot keys new
"""


def read_me(settings: Settings) -> str:
    """The text of ``README.md``."""
    path, host = settings.path, settings.address
    owner = settings.run_as or "the account that runs mosquitto"
    return f"""\
# A broker for earshot

Start it with mosquitto 2.0 or newer:

    mosquitto -c {path}/mosquitto.conf

To start it with the machine, let mosquitto's service read this file instead of its own (`systemctl edit mosquitto`):

    [Service]
    ExecStart=
    ExecStart=/usr/sbin/mosquitto -c {path}/mosquitto.conf

| folder | what | who may have it |
|---|---|---|
| `broker/` | what mosquitto reads | {owner} |
| `data/` | what mosquitto keeps | {owner} |
| `authority/` | signs certificates | you alone; the broker does not need it |
| `rig/` | certificate, key and password of the rig | the workstation |
| `devices/NAME/` | certificate, key and password of one device | that device alone |

The rig (port {settings.rig_port}) is told where its files are by a station file; `rig/earshot.env` says the same as
environment variables:

    earshot device list --station {path}/rig/station.toml

A device (port {settings.device_port}) gets its folder's files when it is installed:

    earshot device install USER@MACHINE --name NAME --broker mqtts://{host}:{settings.device_port} \\
        --credentials {path}/devices/NAME ...

Add a device, or renew what expires within 60 days: run `earshot broker config --out {path} --device NAME` again, then
`systemctl reload mosquitto` (or send it SIGHUP). A new certificate of the broker itself needs a restart.

A stolen device: `earshot broker config --out {path} --remove NAME`, then reload. Its password is gone, and its
certificate alone opens nothing.
"""
