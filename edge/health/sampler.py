"""From what the system and the agent know to the message that says how the device is."""

from __future__ import annotations

import time
from pathlib import Path

from edge.health.latencies import Latencies
from edge.health.resources import disk_free_mb, load_1min, memory_available_mb, memory_rss_mb
from edge.health.temperature import cpu_temperature_c
from edge.health.throttling import ThrottlingReader
from edge.messages import Health

EVERY_S = 10.0


class HealthSampler:
    """Notes every window and tells the device's health when asked; used by one thread.

    Args:
        device: the device's name.
        boot_id: this boot's.
        state_dir: the folder whose disk matters.
        root: holds ``sys`` and ``proc``.
        throttling: reads what holds the processor back; the running system's where absent.
    """

    def __init__(
        self,
        device: str,
        boot_id: str,
        state_dir: Path,
        *,
        root: Path = Path("/"),
        throttling: ThrottlingReader | None = None,
    ) -> None:
        self._device = device
        self._boot_id = boot_id
        self._state_dir = state_dir
        self._root = root
        self._throttling = throttling or ThrottlingReader.of_this_machine()
        self._latencies = Latencies()
        self._began_s = time.monotonic()

    def note_window(self, latency_ms: float) -> None:
        """A window was classified in ``latency_ms``."""
        self._latencies.note(latency_ms)

    def sample(
        self,
        *,
        xruns: int = 0,
        overruns: int = 0,
        reopened: int = 0,
        outbox_depth: int = 0,
        outbox_dropped: int = 0,
        rejected_commands: int = 0,
    ) -> Health:
        """The health of this moment; takes about a millisecond, so ask every :data:`EVERY_S`."""
        throttling = self._throttling.read()
        p50_ms, p95_ms, p99_ms = self._latencies.percentiles_ms() or (None, None, None)
        return Health(
            device=self._device,
            boot_id=self._boot_id,
            uptime_s=time.monotonic() - self._began_s,
            cpu_temperature_c=cpu_temperature_c(self._root),
            throttled=None if throttling is None else throttling.now,
            load_1min=load_1min(self._root),
            memory_rss_mb=memory_rss_mb(self._root),
            memory_available_mb=memory_available_mb(self._root),
            disk_free_mb=disk_free_mb(self._state_dir),
            windows=self._latencies.windows,
            latency_p50_ms=p50_ms,
            latency_p95_ms=p95_ms,
            latency_p99_ms=p99_ms,
            xruns=xruns,
            overruns=overruns,
            reopened=reopened,
            outbox_depth=outbox_depth,
            outbox_dropped=outbox_dropped,
            rejected_commands=rejected_commands,
        )
