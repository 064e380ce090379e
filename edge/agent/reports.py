"""What a device says without being asked: what runs on it, and how loud it is."""

from __future__ import annotations

import time
from collections.abc import Sequence

import edge
from edge.agent.recogniser import Model
from edge.errors import DataError
from edge.messages import Info, Level
from edge.mqtt.link import Link
from edge.sound.level import level_dbfs
from edge.sound.microphones.protocol import Microphone
from edge.sound.streams import Streams

_LEVEL_S = 1.0


class Reports:
    """Sends info when it changes and a level each second while sound comes; used by one thread."""

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
    ) -> None:
        self._device = device
        self._boot_id = boot_id
        self._bundle = bundle
        self._providers = tuple(providers)
        self._members = members
        self._microphone = microphone
        self._streams = streams
        self._link = link
        self._said: tuple[str | None, str] | None = None
        self._level_s = 0.0
        self._level_end = ("", 0)

    def tell_info(self, *, anew: bool) -> None:
        """Publish info if the stream or its trouble changed, or ``anew`` in any case."""
        stream, problem = self._streams.current, self._streams.problem
        stream_id = None if stream is None or stream.ended else stream.stream_id
        if (stream_id, problem) == self._said and not anew:
            return
        self._said = (stream_id, problem)
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
            rms_dbfs, peak_dbfs = level_dbfs(stream.ring.read(begin, end - begin))
        except DataError:
            # The stream went on so fast that this second is overwritten.
            return
        level = Level(
            device=self._device,
            boot_id=self._boot_id,
            rms_dbfs=rms_dbfs,
            peak_dbfs=peak_dbfs,
            xruns=self._streams.xruns,
        )
        self._link.publish(level, "level", qos=0)
