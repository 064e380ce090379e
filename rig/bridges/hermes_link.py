"""The connection to a Hermes assistant's broker: its messages one after the other, its dialogues kept in mind."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import paho.mqtt.client as mqtt

from edge.errors import DataError, UnavailableError
from edge.mqtt.broker_url import PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE, BrokerUrl
from edge.mqtt.client import new_client
from edge.mqtt.problems import explain
from rig.bridges import hermes_messages as hermes

log = logging.getLogger(__name__)

SERVICE_USER_VARIABLE = "EARSHOT_HERMES_USER"
SERVICE_PASSWORD_VARIABLE = "EARSHOT_HERMES_PASSWORD"  # noqa: S105 - the name of a variable
SERVICE_PASSWORD_FILE_VARIABLE = "EARSHOT_HERMES_PASSWORD_FILE"  # noqa: S105 - the name of a variable

CONNECT_TIMEOUT_S = 5.0
_KEEPALIVE_S = 20
_RECONNECT_MIN_S, _RECONNECT_MAX_S = 1, 5
_POLL_S = 0.2
_MAX_WAITING = 1000


class HermesLink:
    """Messages of one site, connected again for ever; as a context it is connected to begin with.

    ``dialogues`` are the open ones of the site. Used by one thread.

    Args:
        url: the assistant's broker.
        site: whose microphone this is.
        topics: what to listen to, besides the dialogues.
        stop: set when the bridge shall end.

    Raises:
        UsageError: a file with the password or certificates cannot be used.
        UnavailableError: the broker cannot be reached, when the context is entered.
    """

    def __init__(self, url: BrokerUrl, site: str, topics: Sequence[str], stop: threading.Event) -> None:
        self.url = url
        self.dialogues: set[str] = set()
        self._site = site
        self._topics = (*topics, hermes.SESSION_STARTED, hermes.SESSION_ENDED)
        self._stop = stop
        self._messages: queue.Queue[tuple[str, bytes]] = queue.Queue(_MAX_WAITING)
        self._refusal = ""
        self._lost = threading.Event()
        self._subscribed = threading.Event()
        self._client = client = new_client(url, f"earshot-bridge-{secrets.token_hex(4)}")
        if user := url.user or os.environ.get(SERVICE_USER_VARIABLE):
            client.username_pw_set(user, url.password(_environment()))
        client.reconnect_delay_set(_RECONNECT_MIN_S, _RECONNECT_MAX_S)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message

    def __enter__(self) -> Self:
        try:
            self._client.connect(self.url.host, self.url.port, keepalive=_KEEPALIVE_S)
        except (OSError, ValueError) as error:
            raise UnavailableError(f"--service {self.url}: {explain(error)}") from None
        self._client.loop_start()
        if not self._subscribed.wait(CONNECT_TIMEOUT_S):
            self.__exit__()
            raise UnavailableError(f"--service {self.url}: {self._refusal or 'does not answer'}")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait(self, timeout_s: float) -> None:
        """Wait for the connection.

        Raises:
            UnavailableError: it does not come.
        """
        if not self._subscribed.wait(timeout_s):
            raise UnavailableError(f"{self.url}: no connection to the assistant's broker")

    def begin(self) -> None:
        """Forget what came before, all but the beginnings and ends of dialogues."""
        self.wait(0.0)
        self._lost.clear()
        while True:
            try:
                self._follow_dialogue(*self._messages.get_nowait())
            except queue.Empty:
                return
            except DataError as error:
                log.warning("ignored: %s", error)

    def publish(self, topic: str, payload: bytes, qos: int = 1) -> None:
        """Publish.

        Raises:
            UnavailableError: there is no connection.
        """
        if self._client.publish(topic, payload, qos=qos).rc != mqtt.MQTT_ERR_SUCCESS:
            raise UnavailableError(f"{self.url}: the connection to the assistant's broker was lost")

    def until(self, deadline_s: float) -> Iterator[tuple[str, bytes]]:
        """Topic and payload of what has come, and of what comes until ``deadline_s`` on the monotonic clock.

        Raises:
            UnavailableError: the connection was lost, or the bridge shall end.
            DataError: a malformed message about a dialogue.
        """
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                topic, payload = self._messages.get(timeout=max(0.0, min(left_s, _POLL_S)))
            except queue.Empty:
                if self._lost.is_set():
                    raise UnavailableError(f"{self.url}: the connection to the assistant's broker was lost") from None
                if self._stop.is_set():
                    raise UnavailableError("the bridge was told to end") from None
                if left_s <= 0:
                    return
                continue
            self._follow_dialogue(topic, payload)
            yield topic, payload

    def end_dialogues(self, timeout_s: float) -> None:
        """End the open dialogues of the site: as long as one is open, no wake word is heard.

        Raises:
            UnavailableError: one stays open.
        """
        asked: set[str] = set()
        deadline_s = time.monotonic() + timeout_s
        while self.dialogues:
            for dialogue in self.dialogues - asked:
                self.publish(hermes.END_SESSION, hermes.encode(sessionId=dialogue))
                asked.add(dialogue)
            if next(self.until(deadline_s), None) is None:
                raise UnavailableError(f"{self.url}: a dialogue at site {self._site} does not end")

    def _follow_dialogue(self, topic: str, payload: bytes) -> None:
        if topic not in {hermes.SESSION_STARTED, hermes.SESSION_ENDED}:
            return
        event = hermes.parse(hermes.SessionEvent, topic, payload)
        if event.session is None or event.site != self._site:
            return
        if topic == hermes.SESSION_ENDED:
            self.dialogues.discard(event.session)
        else:
            self.dialogues.add(event.session)

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refusal = f"refused: {reason}: check {SERVICE_USER_VARIABLE} and {SERVICE_PASSWORD_FILE_VARIABLE}"
            log.warning("broker %s: %s", self.url, self._refusal)
            return
        client.subscribe([(topic, 1) for topic in self._topics])

    def _on_subscribe(self, *_: Any) -> None:
        self._subscribed.set()

    def _on_disconnect(self, *_: Any) -> None:
        self._subscribed.clear()
        self._lost.set()

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        if message.retain:
            return
        try:
            self._messages.put_nowait((message.topic, bytes(message.payload)))
        except queue.Full:
            # Nobody waits for so many, and the one that counts may be among those that find no place.
            log.warning("broker %s: over %d messages at once", self.url, _MAX_WAITING)
            self._lost.set()


def _environment() -> dict[str, str]:
    """The password of the assistant's broker, which is not that of earshot's."""
    names = {SERVICE_PASSWORD_VARIABLE: PASSWORD_VARIABLE, SERVICE_PASSWORD_FILE_VARIABLE: PASSWORD_FILE_VARIABLE}
    return {known: os.environ[given] for given, known in names.items() if given in os.environ}
