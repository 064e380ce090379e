"""Who may read and write what: mosquitto's access lists. What is not allowed here is refused."""

from __future__ import annotations

from collections.abc import Sequence

from edge.bridges.home_assistant import DEFAULT_PREFIX, config_topic
from edge.errors import UsageError
from edge.messages import TOPIC_PREFIX, check_name

RIG_USER = "rig"
HOME_ASSISTANT_USER = "home-assistant"
DEVICE_WRITES = ("state", "info", "prediction", "level", "health", "update", "clock", "reply")
_HOME_ASSISTANT_READS = ("state", "info", "prediction", "level", "health")


def check_device(name: str) -> str:
    """Return ``name`` if a device may be called so.

    Raises:
        UsageError: it cannot stand in a topic, or is the name of another user of the broker.
    """
    check_name(name)
    if name in {RIG_USER, HOME_ASSISTANT_USER}:
        raise UsageError(f"device name {name!r}: the broker has another user of that name, choose another")
    return name


def devices_list(devices: Sequence[str], *, home_assistant: bool) -> str:
    """The access list of the listener for devices, which also serves Home Assistant.

    A device writes below its own name and reads its own commands. ``ping`` is for its doctor's round trip.
    """
    blocks = [_device(name, home_assistant=home_assistant) for name in devices]
    if home_assistant:
        reads = [f"topic read {TOPIC_PREFIX}/+/{kind}" for kind in _HOME_ASSISTANT_READS]
        own = [f"topic read {DEFAULT_PREFIX}/#", f"topic write {DEFAULT_PREFIX}/status"]
        blocks.append([f"user {HOME_ASSISTANT_USER}", *reads, *own])
    return _text(blocks)


def _device(name: str, *, home_assistant: bool) -> list[str]:
    lines = [f"user {name}"]
    lines += [f"topic write {TOPIC_PREFIX}/{name}/{kind}" for kind in DEVICE_WRITES]
    lines += [f"topic read {TOPIC_PREFIX}/{name}/command/#", f"topic readwrite {TOPIC_PREFIX}/{name}/ping"]
    if home_assistant:
        lines.append(f"topic write {config_topic(name)}")
    return lines


def rig_list() -> str:
    """The access list of the listener for the rig: it hears everything and writes nothing but commands."""
    return _text([[f"user {RIG_USER}", f"topic read {TOPIC_PREFIX}/#", f"topic write {TOPIC_PREFIX}/+/command/+"]])


def _text(blocks: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"
