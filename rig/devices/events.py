"""What happens outside while a session runs; every source puts its events on one queue."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from edge.messages import Health, Info, Level, Prediction, Reply, State, UpdateStatus

Report = State | Info | Prediction | Reply | Level | Health | UpdateStatus


@dataclass(frozen=True)
class Received:
    """A device said something."""

    report: Report


@dataclass(frozen=True)
class BrokerChanged:
    """The connection to the broker came up or went down."""

    connected: bool


@dataclass(frozen=True)
class StreamChanged:
    """A device's microphone connected to the rig's sound (or left it)."""

    device: str
    stream_id: str
    opened: bool


@dataclass(frozen=True)
class ProcessEnded:
    """The process of a local device ended."""

    device: str
    exit_code: int


Event = Received | BrokerChanged | StreamChanged | ProcessEnded
Events = queue.SimpleQueue[Event]
