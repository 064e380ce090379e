"""The rig's connection to the broker: hears the devices, sends them commands, survives a broker that dies."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from typing import Any, Self

import paho.mqtt.client as mqtt

from edge.errors import UnavailableError, UsageError
from edge.messages import Info, Message, Prediction, Reply, State, parse, topic
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from rig.devices.events import BrokerChanged, Events, Received, Report

log = logging.getLogger(__name__)

REPORTS: dict[str, type[Report]] = {"state": State, "info": Info, "prediction": Prediction, "reply": Reply}
KEEPALIVE_S = 20
# A session stands still without its broker, so the first retry is quick and the longest wait is short.
RECONNECT_MIN_S, RECONNECT_MAX_S = 1, 5


class Link:
    """MQTT 3.1.1 to the devices of a session.

    Args:
        url: the broker.
        devices: whose messages to hear.
        events: gets every valid message and every change of the connection.

    Raises:
        UnavailableError: nobody listens at ``url`` when the link is entered.
    """

    def __init__(self, url: BrokerUrl, devices: Iterable[str], events: Events) -> None:
        self._url = url
        self._devices = tuple(devices)
        self._events = events
        self.malformed = 0
        client = new_client(url, f"earshot-rig-{secrets.token_hex(4)}")
        client.reconnect_delay_set(RECONNECT_MIN_S, RECONNECT_MAX_S)
        client.max_inflight_messages_set(1000)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._client = client

    def __enter__(self) -> Self:
        try:
            self._client.connect(self._url.host, self._url.port, keepalive=KEEPALIVE_S)
        except OSError as error:
            raise UnavailableError(
                f"broker {self._url}: cannot connect ({error.strerror or error}), start it or leave --broker out"
                " for the embedded one"
            ) from None
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, verb: str, command: Message) -> None:
        """Publish a command to the device it names, QoS 1; it waits in memory while the broker is away."""
        self._client.publish(topic(command.device, "command", verb), command.to_json(), qos=1)

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            log.warning("broker %s refuses: %s", self._url, reason)
            return
        client.subscribe([(topic(device, kind), 1) for device in self._devices for kind in REPORTS])
        self._events.put(BrokerChanged(connected=True))

    def _on_disconnect(self, *_: Any) -> None:
        self._events.put(BrokerChanged(connected=False))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        _, _, device, kind = message.topic.split("/")
        try:
            report = _read(device, kind, message.payload)
        except UsageError as error:
            self.malformed += 1
            log.warning("%s: dropped: %s", message.topic, error)
            return
        self._events.put(Received(report))


def _read(device: str, kind: str, payload: bytes | bytearray) -> Report:
    report = parse(REPORTS[kind], payload)
    if report.device != device:
        raise UsageError(f"{kind}: says device {report.device!r} on the topic of {device!r}")
    return report
