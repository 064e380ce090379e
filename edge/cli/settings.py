"""What a device is told: options of the command line over a settings file, checked together.

``device.toml`` holds paths to secrets, never a secret::

    name = "kitchen"
    broker = "mqtts://kitchen@lab.local"
    ca_file = "/etc/earshot/ca.crt"
    password_file = "/etc/earshot/password"
    microphone = "sounddevice"
    state_dir = "/var/lib/earshot"

    [listening]
    hop_ms = 100
    threshold = 0.8

Relative paths begin at the file's own folder.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.bundle.manifest import MAX_MEMBERS
from edge.errors import UsageError
from edge.listening.trigger import ListeningSettings
from edge.messages import check_name
from edge.mqtt.broker_url import (
    CA_FILE_VARIABLE,
    PASSWORD_FILE_VARIABLE,
    PASSWORD_VARIABLE,
    USER_VARIABLE,
    BrokerUrl,
)
from edge.mqtt.tls import CERTIFICATE_FILE_VARIABLE, KEY_FILE_VARIABLE
from edge.validation import describe

MAX_BYTES = 64 << 10
_LIMITS = {
    "threads": (1, 64),
    "members": (1, MAX_MEMBERS),
    "connect_timeout_s": (0, 86_400),
    "confirm_after_s": (0.1, 3600),
}
_PATHS = ("state_dir", "bundle", "ca_file", "password_file", "certificate_file", "key_file")
_PATH_LISTS = ("trust", "operator")
_VARIABLES = {
    "user": USER_VARIABLE,
    "password_file": PASSWORD_FILE_VARIABLE,
    "ca_file": CA_FILE_VARIABLE,
    "certificate_file": CERTIFICATE_FILE_VARIABLE,
    "key_file": KEY_FILE_VARIABLE,
}
T = TypeVar("T")


class DeviceSettings(BaseModel):
    """All that can be said of a device; unknown keys are rejected.

    Without ``bundle`` the device runs the slots of its state folder. Without ``listening`` it listens on command, or,
    where no operator may command it, continuously with the default settings. A bundle that was healthy for
    ``confirm_after_s`` without a break is confirmed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    broker: str | None = None
    microphone: str | None = None
    state_dir: Path | None = None
    bundle: Path | None = None
    trust: tuple[Path, ...] = ()
    operator: tuple[Path, ...] = ()
    threads: Annotated[int, Field(ge=_LIMITS["threads"][0], le=_LIMITS["threads"][1])] = 1
    members: Annotated[int, Field(ge=_LIMITS["members"][0], le=_LIMITS["members"][1])] | None = None
    provider: str | None = None
    listening: ListeningSettings | None = None
    home_assistant: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_/-]{0,62}$")] | None = None
    connect_timeout_s: Annotated[float, Field(ge=0, le=_LIMITS["connect_timeout_s"][1])] = 0.0
    confirm_after_s: Annotated[float, Field(ge=_LIMITS["confirm_after_s"][0], le=_LIMITS["confirm_after_s"][1])] = 60.0
    log_noise_seed: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    user: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @property
    def url(self) -> BrokerUrl:
        """The broker.

        Raises:
            UsageError: none is given, or it is none.
        """
        return BrokerUrl.parse(self.need("broker", self.broker))

    @staticmethod
    def need(key: str, value: T | None) -> T:
        """``value``, which must be there.

        Raises:
            UsageError: it is not.
        """
        if value is None:
            raise UsageError(f"--{key.replace('_', '-')} is missing: give it, or {key} in the file of --config")
        return value

    def set_environment(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Tell the broker's client where its secrets lie; what the environment says already is left alone."""
        for key, variable in _VARIABLES.items():
            value = getattr(self, key)
            if value is None or (key == "password_file" and PASSWORD_VARIABLE in environment):
                continue
            environment.setdefault(variable, str(value))


def from_options(options: argparse.Namespace) -> DeviceSettings:
    """Join the options with the file of ``--config``; options win.

    Raises:
        UsageError: the file or a value is wrong; the message names the option, or file and key.
    """
    file: Path | None = options.config
    said = {} if file is None else _read(file)
    given = {key: value for key, value in vars(options).items() if value is not None}
    listening = {key: given[key] for key in ListeningSettings.model_fields if key in given}
    chosen = {key: given[key] for key in DeviceSettings.model_fields if key in given}
    try:
        whole = DeviceSettings.model_validate({**said, **chosen})
    except ValidationError as error:
        raise _complaint(error, file, chosen) from None
    if listening:
        before = {} if whole.listening is None else whole.listening.model_dump(exclude_unset=True)
        whole = whole.model_copy(update={"listening": ListeningSettings.checked(**{**before, **listening})})
    if whole.name is not None:
        check_name(whole.name)
    if whole.bundle is not None and not whole.trust:
        raise UsageError(f"--bundle {whole.bundle}: whose signature counts? give --trust KEY.pub")
    if whole.bundle is None and whole.trust:
        raise UsageError("--trust goes with --bundle: the slots have keys of their own in the state folder")
    return whole


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES} bytes, this is no settings file")
        document = tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: name the settings file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    return _below(document, path.absolute().parent)


def _below(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same with relative paths made absolute; values of a wrong type are left for the check."""
    placed = dict(document)
    for key in _PATHS:
        if isinstance(document.get(key), str):
            placed[key] = folder / document[key]
    for key in _PATH_LISTS:
        if isinstance(document.get(key), list):
            placed[key] = [folder / each if isinstance(each, str) else each for each in document[key]]
    return placed


def _complaint(error: ValidationError, file: Path | None, chosen: Mapping[str, Any]) -> UsageError:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if key in chosen:
        option = "--" + key.removesuffix("_s").replace("_", "-")
        if (limits := _LIMITS.get(key)) is not None:
            return UsageError(f"{option} {chosen[key]}: use {limits[0]} to {limits[1]}")
        message = first["msg"].removeprefix("Value error, ")
        return UsageError(f"{option} {chosen[key]}: {message[0].lower()}{message[1:]}")
    known = f": a device knows {', '.join(DeviceSettings.model_fields)}" if first["type"] == "extra_forbidden" else ""
    return UsageError(f"{file}: {describe(error)}{known}")
