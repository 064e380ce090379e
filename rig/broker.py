"""The broker inside the process, for whoever has none: amqtt on a loopback port."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import Self

from edge.errors import UnavailableError
from edge.mqtt.broker_url import BrokerUrl

START_TIMEOUT_S = 10.0


class EmbeddedBroker:
    """An MQTT 3.1.1 broker in a thread of this process; it keeps nothing and ends with the process.

    Args:
        host: address to listen on; everybody who reaches it may use it, so it is the loopback by default.
        port: 0 takes a free one.

    Raises:
        UnavailableError: the port is in use or cannot be bound.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        try:
            with socket.create_server((host, port)) as probe:
                port = probe.getsockname()[1]
        except (OSError, OverflowError) as error:
            raise UnavailableError(
                f"broker: cannot listen on {host}:{port} ({getattr(error, 'strerror', error)}), choose another port"
            ) from None
        self.url = BrokerUrl(host=host, port=port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="broker", daemon=True)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S) or self._failure:
            raise UnavailableError(f"broker: did not start on {self.url} ({self._failure or 'no answer'})")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_TIMEOUT_S)

    def _serve(self) -> None:
        from amqtt.broker import Broker  # noqa: PLC0415 - takes 0.4 s and is not needed with a broker by URL

        # amqtt reports every client that leaves without DISCONNECT as a warning; a killed device is our daily bread.
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        asyncio.set_event_loop(self._loop)
        configuration = {
            "listeners": {"default": {"type": "tcp", "bind": f"{self.url.host}:{self.url.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }

        async def serve() -> None:
            broker = Broker(configuration)
            await broker.start()
            self._started.set()
            await self._stop.wait()
            await broker.shutdown()

        try:
            self._loop.run_until_complete(serve())
        except Exception as error:  # noqa: BLE001 - reported by the thread that waits for the start
            self._failure = error
            self._started.set()
        finally:
            self._loop.close()
