"""The bridge itself: an agent as on any device, with an assistant where its model would be."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.agent.device import Device
from edge.agent.state_folder import claimed, default_state_dir
from edge.bundle.signing import fingerprint, load_public_key
from edge.cli.process import end_on_bugs_in_threads
from edge.errors import EXIT_BUG, EXIT_OK, UsageError
from edge.messages import check_name
from edge.mqtt.broker_url import BrokerUrl
from edge.sound.microphones.opening import microphone
from rig.bridges.assistant import RATE_HZ, Assistant, Bridged, ForeignModel, GuardedMicrophone

log = logging.getLogger(__name__)

MIN_WINDOW_MS, MAX_WINDOW_MS = 100, 10_000


@dataclass(frozen=True)
class BridgeSettings:
    """The earshot side of a bridge.

    ``operators`` are public key files of who may command it; ``connect_timeout_s`` of 0 tries the broker for ever.

    Raises:
        UsageError: a value makes no sense.
    """

    name: str
    broker: BrokerUrl
    microphone: str
    operators: Sequence[Path]
    state_dir: Path | None = None
    window_ms: int = 1000
    connect_timeout_s: float = 0.0

    def __post_init__(self) -> None:
        check_name(self.name)
        if not MIN_WINDOW_MS <= self.window_ms <= MAX_WINDOW_MS:
            raise UsageError(f"--window-ms {self.window_ms}: use {MIN_WINDOW_MS} to {MAX_WINDOW_MS}")
        if not 0 <= self.connect_timeout_s <= 86_400:
            raise UsageError(f"--connect-timeout {self.connect_timeout_s:g}: use 0 to 86400 seconds")

    @property
    def window_samples(self) -> int:
        """How many samples a trial gives the assistant."""
        return self.window_ms * RATE_HZ // 1000


def outline(assistant: Assistant, settings: BridgeSettings) -> dict[str, Any]:
    """What the bridge says of itself to a session.

    Raises:
        UsageError: a key or the microphone makes no sense.
    """
    for path in settings.operators:
        load_public_key(path)
    microphone(settings.microphone, RATE_HZ)
    description = assistant.description
    model = ForeignModel.of(description, settings.window_samples)
    return {
        "device": settings.name,
        "bundle_name": model.manifest.name,
        "bundle_sha256": model.sha256,
        "labels": list(model.manifest.labels),
        "rate_hz": model.manifest.rate_hz,
        "window_samples": model.manifest.window_samples,
        "facts": dict(description.facts),
    }


def run_bridge(assistant: Assistant, settings: BridgeSettings, stop: threading.Event) -> int:
    """Be a device until ``stop`` is set or a signal comes.

    Returns:
        the exit code.

    Raises:
        UnavailableError: the state folder is used by another, or the broker was not reached in time.
        UsageError: a key or the microphone makes no sense.
    """
    operators = [load_public_key(path) for path in settings.operators]
    for key in operators:
        log.info("obeys operator %s", fingerprint(key))
    if not operators:
        log.warning("no --operator: this bridge obeys no command, so no session can use it")
    model = ForeignModel.of(assistant.description, settings.window_samples)
    bridged = Bridged(assistant, model)
    source = GuardedMicrophone(microphone(settings.microphone, RATE_HZ), assistant, bridged.presence)
    with claimed(settings.state_dir or default_state_dir(), settings.name) as folder:
        device = Device(
            name=settings.name,
            bundle=model,
            classifier=bridged,
            microphone=source,
            url=settings.broker,
            state_dir=folder,
            operators=operators,
        )
        log.info("bridge %s to %s %s, boot %s", settings.name, model.manifest.name, model.sha256[:12], device.boot_id)

        def end(*_: object) -> None:
            stop.set()
            device.wake()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        broken = end_on_bugs_in_threads(stop)
        device.run(stop, connect_timeout_s=settings.connect_timeout_s)
    return EXIT_BUG if broken else EXIT_OK
