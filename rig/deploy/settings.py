"""What shall be installed: checked here, before anything travels."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from edge.cli.settings import DeviceSettings
from edge.errors import UsageError
from edge.messages import check_name
from edge.mqtt.broker_url import CA_FILE_VARIABLE, PASSWORD_VARIABLE, BrokerUrl
from edge.mqtt.tls import CERTIFICATE_FILE_VARIABLE, KEY_FILE_VARIABLE, tls_context
from edge.validation import describe

ACCOUNT = "earshot-device"
STATE_DIR = "/var/lib/earshot"
CONFIG_DIR = "/etc/earshot"
_MICROPHONES = ("sounddevice", "file", "socket")
_MAX_BYTES = 64 << 10
# What a file of --settings may say; the rest is told by options, or belongs to the machine.
_FREE = (
    "threads",
    "members",
    "provider",
    "listening",
    "home_assistant",
    "connect_timeout_s",
    "log_noise_seed",
    "log_level",
)


class Placed(BaseModel):
    """A file of the machine: where, whose, and what is in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")]
    owner: str
    content: bytes
    secret: bool = False


class Installation(BaseModel):
    """A device that shall be installed, with the content of its files; made by :func:`check`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    microphone: str
    bundle: Path
    bundle_label: str
    trust: tuple[Path, ...]
    operators: tuple[Path, ...]
    files: tuple[Placed, ...]

    @property
    def needs_portaudio(self) -> bool:
        """Whether it listens to a sound card."""
        return self.microphone.startswith("sounddevice")


def check(
    *,
    name: str,
    bundle: Path,
    trust: tuple[Path, ...],
    operators: tuple[Path, ...],
    broker: str,
    microphone: str,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    password_file: Path | None = None,
    settings: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Installation:
    """Read and check everything that was given.

    Args:
        name: the device's name in topics.
        bundle: its first model.
        trust: public keys that may sign its bundles.
        operators: public keys whose commands it obeys.
        broker: URL without a password.
        microphone: as for ``earshot-device run``.
        ca: certificate authority of the broker, instead of the machine's own.
        certificate: client certificate, and ``key`` its private key.
        key: see ``certificate``.
        password_file: the broker's password; otherwise ``EARSHOT_MQTT_PASSWORD``, or none.
        settings: a TOML file with further settings of the device (listening, threads and so on).
        environment: instead of the process's own.

    Raises:
        UsageError: something cannot be used; the message names it.
        BundleError: the bundle is not signed by one of ``trust``, or altered.
    """
    check_name(name)
    if not trust:
        raise UsageError("no key signs the device's bundles: give --trust KEY.pub, the one that signed --bundle")
    read = read_bundle(bundle, trusted=[load_public_key(path) for path in trust])
    for path in operators:
        load_public_key(path)
    kind = microphone.partition(":")[0].partition("?")[0]
    if kind not in _MICROPHONES or not microphone.isprintable():
        raise UsageError(
            f"microphone {microphone!r}: begin with {', '.join(_MICROPHONES)}, see earshot-device run --help"
        )
    url = BrokerUrl.parse(broker)
    secured = {CA_FILE_VARIABLE: ca, CERTIFICATE_FILE_VARIABLE: certificate, KEY_FILE_VARIABLE: key}
    named = {variable: str(path) for variable, path in secured.items() if path is not None}
    if url.scheme == "mqtts":
        tls_context(url, named)
    elif named:
        raise UsageError(f"broker {url}: certificates are for mqtts://: use that, or leave --ca, --cert and --key out")
    password = _password(password_file, environment)
    if password is not None and url.user is None and "EARSHOT_MQTT_USER" not in environment:
        raise UsageError(f"broker {url}: a password needs a user: write {url.scheme}://USER@{url.host}")
    placed: list[Placed] = []
    said = {"name": name, "broker": str(url), "microphone": microphone, "state_dir": STATE_DIR}
    for setting, file, content, mode in (
        ("password_file", "password", password, "0600"),
        ("ca_file", "ca.crt", _read(ca), "0644"),
        ("certificate_file", "client.crt", _read(certificate), "0644"),
        ("key_file", "client.key", _read(key), "0600"),
    ):
        if content is not None:
            place = f"{CONFIG_DIR}/{name}/{file}"
            secret = mode == "0600"
            owner = ACCOUNT if secret else "root"
            said[setting] = f"{name}/{file}"
            placed.append(Placed(path=place, mode=mode, owner=owner, content=content, secret=secret))
    config = Placed(path=f"{CONFIG_DIR}/{name}.toml", mode="0644", owner="root", content=_toml(said, settings))
    return Installation(
        name=name,
        microphone=microphone,
        bundle=bundle,
        bundle_label=f"{read.manifest.name} version {read.manifest.version}",
        trust=trust,
        operators=operators,
        files=(config, *placed),
    )


def _password(path: Path | None, environment: Mapping[str, str]) -> bytes | None:
    if path is None:
        given = environment.get(PASSWORD_VARIABLE)
        content = None if given is None else given.encode()
    else:
        content = _read(path)
    if content is None:
        return None
    content = content.rstrip(b"\r\n")
    if not content:
        raise UsageError(f"{path or PASSWORD_VARIABLE}: the password is empty: leave it out, or give one")
    return content + b"\n"


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise UsageError(f"{path} is larger than {_MAX_BYTES} bytes: is it the right file?")
    return content


def _toml(said: Mapping[str, str], settings: Path | None) -> bytes:
    """The device's settings file: what the options said, then the lines of the user's file as they are."""
    # A string of JSON is one of TOML too, but for DEL.
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f") for key, value in said.items()
    ]
    text = "".join(lines)
    if settings is not None:
        try:
            more = (_read(settings) or b"").decode()
            _check_free(settings, tomllib.loads(more))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{settings}: not TOML: {error}") from None
        text += "\n" + more
    return text.encode()


def _check_free(path: Path, document: dict[str, Any]) -> None:
    for key in document:
        if key not in _FREE:
            raise UsageError(f"{path}: {key!r} cannot be set here: use {', '.join(_FREE)}, or the option for it")
    try:
        DeviceSettings.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{path}: {describe(error)}") from None
