"""A device's connection to the broker: MQTT 3.1.1 through paho, connected again for ever.

Callbacks run in paho's network thread. They hand on what they got and return.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt

from edge.messages import Message, State, topic
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from edge.mqtt.problems import LastError, explain, explain_alert

log = logging.getLogger(__name__)

CommandHandler = Callable[[str, bytes], None]

_KEEPALIVE_S = 20
# The first retry is quick, since a broker is usually restarted, not gone; a fleet must not come back all at once.
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 15.0
_IN_FLIGHT = 100
# Replies with sound are 43 kB each; predictions that find no place are published again from the outbox.
_QUEUED = 500
NO_ANSWER = "no answer yet: is it an MQTT broker, and does it speak TLS where mqtts:// is said?"
_NO_SESSION = "ends the connection before it begins: is it an MQTT broker, or does its port want mqtts://?"


class Link:
    """Publishes for one device and receives its commands.

    ``on_command(verb, payload)`` and ``on_ready()`` (subscribed and announced as online, after every
    connection) are called in the network thread.
    """

    def __init__(
        self, url: BrokerUrl, device: str, boot_id: str, *, on_command: CommandHandler, on_ready: Callable[[], None]
    ) -> None:
        self.url = url
        self.connected = False
        self.ever_connected = False
        self.problem = NO_ANSWER
        self._device = device
        self._boot_id = boot_id
        self._on_command = on_command
        self._on_ready = on_ready
        self._failures = 0
        self._command_topic = topic(device, "command", "+")
        # Its id is the same for every boot: a broker that still holds the connection of a device that lost its power
        # ends it now, and does not publish that one's will after this one is online.
        self._client = client = new_client(url, f"earshot-{device}")
        self._last_error = LastError()
        client.enable_logger(self._last_error)
        client.max_inflight_messages_set(_IN_FLIGHT)
        client.max_queued_messages_set(_QUEUED)
        client.will_set(topic(device, "state"), self._state("lost").to_json(), qos=1, retain=True)
        client.on_connect = self._connected
        client.on_connect_fail = self._not_reached
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_message = self._received

    def _state(self, status: str) -> State:
        return State.model_validate({"device": self._device, "boot_id": self._boot_id, "status": status})

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._set_delay()
        self._client.connect_async(self.url.host, self.url.port, keepalive=_KEEPALIVE_S)
        self._client.loop_start()

    def publish(self, message: Message, *parts: str, qos: int = 1, retain: bool = False) -> None:
        """Publish below the device's topic; dropped while there is no connection."""
        self.publish_bytes(message.to_json(), *parts, qos=qos, retain=retain)

    def publish_bytes(self, payload: bytes, *parts: str, qos: int = 1, retain: bool = False) -> None:
        """Publish an encoded message below the device's topic; dropped while there is no connection."""
        self.publish_at(topic(self._device, *parts), payload, qos=qos, retain=retain)

    def publish_at(self, whole_topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish at a topic that is not the device's own; dropped while there is no connection."""
        if self.connected:
            self._client.publish(whole_topic, payload, qos=qos, retain=retain)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Say ``stopped`` if the broker is there, and disconnect."""
        if self.connected:
            info = self._client.publish(topic(self._device, "state"), self._state("stopped").to_json(), 1, retain=True)
            deadline_s = time.monotonic() + timeout_s
            try:
                # A connection that breaks meanwhile brings no receipt.
                while self.connected and not info.is_published() and time.monotonic() < deadline_s:
                    info.wait_for_publish(0.05)
            except (RuntimeError, ValueError):
                log.debug("the broker went away before it heard that this device stopped")
            self._client.disconnect()
            self._client.loop_stop()
        else:
            # Its thread may be in the middle of an attempt to connect: it is not waited for, and does not try again.
            self._client.disconnect()

    def _set_delay(self) -> None:
        longest_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(self._failures, 10))
        delay_s = longest_s * random.uniform(0.5, 1.0)
        # paho doubles its delay itself, but without chance in it: it is told the delay anew each time.
        self._client.reconnect_delay_set(delay_s, delay_s)

    def _connected(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            user = self.url.user_name()
            who = "a user is missing" if user is None else f"check user {user!r} and its password"
            self._note_problem(f"refused: {reason}: {who}")
            return
        client.subscribe(self._command_topic, qos=1)

    def _subscribed(self, client: mqtt.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._note_problem(f"the broker does not let this device subscribe to {self._command_topic}")
            return
        # Only now: who reads "online" may send a command at once.
        self.connected = self.ever_connected = True
        self._failures = 0
        self.problem = ""
        self._set_delay()
        log.info("connected to %s", self.url)
        self.publish(self._state("online"), "state", retain=True)
        self._on_ready()

    def _not_reached(self, client: mqtt.Client, userdata: Any) -> None:
        # paho calls this while it handles the exception, and does not hand it over.
        error = sys.exc_info()[1]
        self._note_problem("cannot be reached" if error is None else explain(error))

    def _disconnected(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        was_connected, self.connected = self.connected, False
        if not reason.is_failure:
            return
        alert = self._last_error.take()
        if alert and not was_connected:
            # A broker judges a client's certificate only after the client holds the connection for made.
            self._note_problem(explain_alert(alert))
        elif was_connected:
            self._note_problem(f"connection lost ({reason})")
        else:
            self._note_problem(self.problem if self.problem.startswith("refused") else _NO_SESSION)

    def _note_problem(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("broker %s: %s; trying again", self.url, problem)
        self.problem = problem
        self._failures += 1
        self._set_delay()

    def _received(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        if message.retain:
            # A retained command would be carried out again after every connection.
            log.warning("ignored a retained command; clear it at the broker")
            return
        self._on_command(message.topic.rsplit("/", 1)[-1], bytes(message.payload))
