"""Home Assistant's MQTT discovery: the retained message that makes a device show up there by itself.

One message per device, in the form that Home Assistant 2024.12 and newer read
(https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload); an empty one takes the device away again.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import edge
from edge import files
from edge.errors import UsageError
from edge.messages import topic

DEFAULT_PREFIX = "homeassistant"
_PREFIX_PATTERN = r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,3}"
# Health comes every 10 s and a level every second: what stays away this long is unknown, not unchanged.
_HEALTH_EXPIRES_S = 60
_LEVEL_EXPIRES_S = 30


def config_topic(device: str, prefix: str = DEFAULT_PREFIX) -> str:
    """Where the device's discovery message is retained.

    Raises:
        UsageError: the prefix has other characters than a-z A-Z 0-9 _ - and at most three slashes.
    """
    if not re.fullmatch(_PREFIX_PATTERN, prefix):
        raise UsageError(f"Home Assistant prefix {prefix!r}: use a-z A-Z 0-9 _ - and /, as in {DEFAULT_PREFIX}")
    return f"{prefix}/device/{_object_id(device)}/config"


def discovery(
    device: str, *, bundle_name: str = "", bundle_version: int = 0, prefix: str = DEFAULT_PREFIX
) -> tuple[str, bytes]:
    """Topic and payload to publish retained once the device is connected, and again when its bundle changes.

    Args:
        device: its name in topics.
        bundle_name: what it runs, shown as its model.
        bundle_version: shown with it.
        prefix: where Home Assistant looks.
    """
    object_id = _object_id(device)
    payload = {
        "device": {
            "identifiers": [object_id],
            "name": f"earshot {device}",
            "manufacturer": "earshot",
            "model": f"{bundle_name} version {bundle_version}" if bundle_name else "earshot device",
            "sw_version": edge.__version__,
        },
        "origin": {"name": "earshot", "sw_version": edge.__version__},
        "components": {key: _component(device, object_id, key, **rest) for key, rest in _COMPONENTS.items()},
        "qos": 1,
    }
    return config_topic(device, prefix), json.dumps(payload, separators=(",", ":")).encode()


def removal(device: str, *, prefix: str = DEFAULT_PREFIX) -> tuple[str, bytes]:
    """Topic and empty payload that, retained, make Home Assistant forget the device."""
    return config_topic(device, prefix), b""


def announcements(
    memory: Path, device: str, *, prefix: str | None, bundle_name: str = "", bundle_version: int = 0
) -> list[tuple[str, bytes]]:
    """What to publish retained after every connection: discovery where it is wanted, removal where it was before.

    Args:
        memory: a file that remembers every prefix under which this device was ever announced.
        device: its name in topics.
        prefix: where Home Assistant looks; None takes the device away from there.
        bundle_name: what it runs.
        bundle_version: shown with it.

    Raises:
        UsageError: the prefix cannot stand in a topic.
    """
    wanted = (
        []
        if prefix is None
        else [discovery(device, bundle_name=bundle_name, bundle_version=bundle_version, prefix=prefix)]
    )
    before = _remembered(memory)
    if prefix is not None and prefix not in before:
        # Where nothing can be written there is nothing to remember either.
        with contextlib.suppress(OSError):
            files.write(memory, "".join(f"{each}\n" for each in [*before, prefix]).encode())
    return [removal(device, prefix=each) for each in before if each != prefix] + wanted


def _remembered(memory: Path) -> list[str]:
    try:
        lines = memory.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []
    return [line for line in lines if re.fullmatch(_PREFIX_PATTERN, line)]


def _object_id(device: str) -> str:
    # Home Assistant's ids know no dot; names have no capital letter, so no two names share an id.
    return "earshot-" + device.replace(".", "P")


def _component(device: str, object_id: str, key: str, *, kind: str, **settings: Any) -> dict[str, Any]:
    component = {"unique_id": f"{object_id}-{key}", "state_topic": topic(device, kind), **settings}
    if "json_attributes_template" in settings:
        component["json_attributes_topic"] = topic(device, kind)
    if key != "connectivity":
        component["availability"] = [
            {
                "topic": topic(device, "state"),
                "value_template": "{{ 'online' if value_json.status == 'online' else 'offline' }}",
            }
        ]
    return component


def _sensor(name: str, kind: str, template: str, **more: Any) -> dict[str, Any]:
    return {"platform": "sensor", "name": name, "kind": kind, "value_template": template, **more}


# Most predictions are no trigger; and one that nobody acknowledges is published again, older than what is shown.
_LAST = "(this.attributes.t_utc_ns | default(0))"
_IS_NEWER_TRIGGER = f"value_json.trigger is defined and value_json.t_utc_ns >= {_LAST}"
_MEASURED = {"state_class": "measurement"}
_DIAGNOSTIC = {"entity_category": "diagnostic"}
_COMPONENTS: dict[str, dict[str, Any]] = {
    "connectivity": {
        "platform": "binary_sensor",
        "name": "Connectivity",
        "kind": "state",
        "device_class": "connectivity",
        "value_template": "{{ 'ON' if value_json.status == 'online' else 'OFF' }}",
        **_DIAGNOSTIC,
    },
    "trigger": _sensor(
        "Last trigger",
        "prediction",
        f"{{{{ value_json.trigger if {_IS_NEWER_TRIGGER} else this.state }}}}",
        json_attributes_template=(
            f"{{{{ {{'t_utc_ns': value_json.t_utc_ns if {_IS_NEWER_TRIGGER} else {_LAST}}} | tojson }}}}"
        ),
    ),
    "level": _sensor(
        "Level",
        "level",
        "{{ value_json.rms_dbfs | round(1) }}",
        unit_of_measurement="dBFS",
        expire_after=_LEVEL_EXPIRES_S,
        **_MEASURED,
    ),
    # A machine that does not tell its temperature leaves it unknown.
    "temperature": _sensor(
        "Processor temperature",
        "health",
        "{{ value_json.cpu_temperature_c | default(none) }}",
        device_class="temperature",
        unit_of_measurement="°C",
        expire_after=_HEALTH_EXPIRES_S,
        **_MEASURED,
        **_DIAGNOSTIC,
    ),
    "outbox": _sensor(
        "Outbox",
        "health",
        "{{ value_json.outbox_depth }}",
        unit_of_measurement="predictions",
        expire_after=_HEALTH_EXPIRES_S,
        **_MEASURED,
        **_DIAGNOSTIC,
    ),
}
