"""What a device says without being asked: what runs on it, how loud it is, how it is, how an update goes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import edge
from edge.agent.recogniser import Model
from edge.agent.updates import Updates
from edge.commands.authority import Authority
from edge.errors import DataError
from edge.health.sampler import EVERY_S, HealthSampler
from edge.messages import Info, Level, UpdateStatus
from edge.mqtt.link import Link
from edge.sound.level import loudness
from edge.sound.microphones.protocol import Microphone
from edge.sound.streams import Streams

_LEVEL_S = 1.0


class Reports:
    """Sends info when it changes, a level each second while sound comes, health every 10 s; used by one thread."""

    def __init__(
        self,
        *,
        device: str,
        boot_id: str,
        bundle: Model,
        providers: Sequence[str],
        members: int | None,
        microphone: Microphone,
        streams: Streams,
        link: Link,
        authority: Authority,
        updates: Updates,
        health: HealthSampler,
    ) -> None:
        self._device = device
        self._boot_id = boot_id
        self._bundle = bundle
        self._providers = tuple(providers)
        self._members = members
        self._microphone = microphone
        self._streams = streams
        self._link = link
        self._authority = authority
        self._updates = updates
        self._health = health
        self._said: tuple[object, ...] | None = None
        self._update_status: UpdateStatus | None = None
        self._health_s = -EVERY_S
        self._level_s = 0.0
        self._level_end = ("", 0)

    def tell_info(self, *, anew: bool) -> None:
        """Publish info if the stream, its trouble, the slot or the operators changed, or ``anew`` in any case."""
        stream, problem = self._streams.current, self._streams.problem
        stream_id = None if stream is None or stream.ended else stream.stream_id
        updates, operators = self._updates, self._authority.operators
        says = (stream_id, problem, updates.slot, updates.confirmed, updates.spare, operators)
        if says == self._said and not anew:
            return
        self._said = says
        manifest = self._bundle.manifest
        info = Info(
            device=self._device,
            boot_id=self._boot_id,
            version=edge.__version__,
            bundle_name=manifest.name,
            bundle_version=manifest.version,
            bundle_sha256=self._bundle.sha256,
            labels=manifest.labels,
            rate_hz=manifest.rate_hz,
            window_samples=manifest.window_samples,
            microphone=self._microphone.name + (f" [error: {problem}]" if problem else ""),
            stream_id=stream_id,
            providers=self._providers,
            members=self._members,
            slot=updates.slot,
            confirmed=updates.confirmed,
            spare=updates.spare,
            operators=operators,
        )
        self._link.publish(info, "info", retain=True)

    def tell_level(self) -> None:
        """Publish the level of the last second, once a second and only if something was heard since."""
        now_s = time.monotonic()
        stream = self._streams.current
        if stream is None or now_s - self._level_s < _LEVEL_S:
            return
        end = stream.ring.end
        if (stream.stream_id, end) == self._level_end:
            return
        self._level_s, self._level_end = now_s, (stream.stream_id, end)
        begin = max(stream.ring.begin, end - self._streams.rate_hz)
        try:
            rms_dbfs, peak_dbfs, clipped_samples = loudness(stream.ring.read(begin, end - begin))
        except DataError:
            # The stream went on so fast that this second is overwritten.
            return
        level = Level(
            device=self._device,
            boot_id=self._boot_id,
            rms_dbfs=rms_dbfs,
            peak_dbfs=peak_dbfs,
            xruns=self._streams.xruns,
            clipped_samples=clipped_samples,
            silent_s=self._streams.silent_s,
        )
        self._link.publish(level, "level", qos=0)

    def tell_health(self, *, outbox_depth: int, outbox_dropped: int, rejected_commands: int) -> None:
        """Publish how the device is, every 10 s."""
        now_s = time.monotonic()
        if now_s - self._health_s < EVERY_S:
            return
        self._health_s = now_s
        health = self._health.sample(
            xruns=self._streams.xruns,
            overruns=self._streams.overruns,
            reopened=self._streams.reopened,
            outbox_depth=outbox_depth,
            outbox_dropped=outbox_dropped,
            rejected_commands=rejected_commands,
        )
        self._link.publish(health, "health", qos=0)

    def tell_updates(self, *, anew: bool) -> None:
        """Publish each stage of an update, and the last one ``anew`` in any case: the broker may not have it."""
        statuses = self._updates.poll(self._boot_id)
        if not statuses and anew and self._update_status is not None:
            statuses = [self._update_status]
        for status in statuses:
            self._link.publish(status, "update", retain=True)
            self._update_status = status
