"""The rig's connection to the broker: hears the devices, sends them signed commands, survives a broker that dies."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import paho.mqtt.client as mqtt

from edge.errors import UnavailableError, UsageError
from edge.messages import (
    Clock,
    Echo,
    Health,
    Info,
    Level,
    Message,
    Prediction,
    Reply,
    State,
    UpdateStatus,
    check_name,
    parse,
    topic,
)
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from edge.mqtt.problems import LastError, explain, explain_alert
from rig.devices.clock import ROUND_TRIPS, ClockOffset, Clocks, Instant
from rig.devices.events import BrokerChanged, Events, Received, Report
from rig.devices.operator import Operator
from rig.devices.receiving import ReceivingClient

log = logging.getLogger(__name__)

REPORTS: dict[str, type[Report]] = {
    "state": State,
    "info": Info,
    "prediction": Prediction,
    "reply": Reply,
    "level": Level,
    "health": Health,
    "update": UpdateStatus,
}
# What a session needs; who shows devices to people wants all of them.
SESSION_REPORTS = ("state", "info", "prediction", "reply")
KEEPALIVE_S = 20
# A session stands still without its broker, so the first retry is quick and the longest wait is short.
RECONNECT_MIN_S, RECONNECT_MAX_S = 1, 5
# Commands that wait for a device whose boot is not known yet; a session asks for eight windows at a time.
MAX_WAITING = 1000
# What the broker retained arrives at once, in any order.
PRESENCE_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class _Sent:
    """A command that the broker has not taken yet."""

    verb: str
    command: Message
    publication: mqtt.MQTTMessageInfo


class Link:
    """MQTT 3.1.1 to devices.

    Every command is put under the operator's signature for the boot of the device. One to a device that is not there,
    or while the broker is away, waits unsigned until the device announces itself; one that the broker has not taken
    when the device announces another boot is signed again.

    Args:
        url: the broker.
        devices: whose messages to hear; ``+`` is everybody's.
        events: gets every valid message and every change of the connection.
        operator: signs the commands; None can only listen.
        reports: which messages to hear, keys of :data:`REPORTS`.

    Raises:
        UnavailableError: nobody listens at ``url`` when the link is entered.
    """

    def __init__(
        self,
        url: BrokerUrl,
        devices: Iterable[str],
        events: Events,
        *,
        operator: Operator | None = None,
        reports: Sequence[str] = SESSION_REPORTS,
    ) -> None:
        self.malformed = 0
        self._url = url
        self._devices = tuple(devices)
        self._events = events
        self._operator = operator
        self._reports = tuple(reports)
        self._clocks = Clocks()
        self._lock = threading.Condition()
        # The boots that devices announced last, and which of them are there as far as we know now.
        self._boots: dict[str, str] = {}
        self._present: set[str] = set()
        self._waiting: dict[str, deque[tuple[str, Message]]] = {}
        self._sent: dict[str, deque[_Sent]] = {}
        client = new_client(url, f"earshot-rig-{secrets.token_hex(4)}", kind=ReceivingClient)
        client.reconnect_delay_set(RECONNECT_MIN_S, RECONNECT_MAX_S)
        client.max_inflight_messages_set(1000)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._client = client
        self._refusal = ""
        self._ever_connected = False
        self._last_error = LastError()
        client.enable_logger(self._last_error)

    def __enter__(self) -> Self:
        try:
            self._client.connect(self._url.host, self._url.port, keepalive=KEEPALIVE_S)
        except OSError as error:
            raise UnavailableError(f"broker {self._url}: cannot connect: {explain(error)}") from None
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def problem(self) -> str:
        """Why the broker does not let us in, empty while nothing is known against it."""
        alert = self._last_error.text
        return self._refusal or (explain_alert(alert) if alert else "")

    def boot_id(self, device: str) -> str | None:
        """The boot of a device that is there, else None."""
        with self._lock:
            return self._boots[device] if device in self._present else None

    def send(self, verb: str, command: Message) -> None:
        """Sign a command and publish it to the device it names, QoS 1; it waits while device or broker are away.

        Raises:
            UsageError: this link has no operator.
            UnavailableError: 1,000 commands wait for this device already.
        """
        operator = self._need_operator()
        with self._lock:
            if command.device in self._present:
                self._publish(operator, verb, command, self._boots[command.device])
                return
            waiting = self._waiting.setdefault(command.device, deque())
            if len(waiting) >= MAX_WAITING:
                raise UnavailableError(f"device {command.device}: {MAX_WAITING} commands wait for it already, start it")
            waiting.append((verb, command))

    def measure_clock(self, device: str, *, round_trips: int = ROUND_TRIPS) -> ClockOffset:
        """The offset of a device's clocks to the rig's; takes ``round_trips`` round trips, one after the other.

        Raises:
            UsageError: this link has no operator, or ``round_trips`` is out of range.
            UnavailableError: the device announced no boot, or answers no echo.
        """
        operator = self._need_operator()

        def echo(nonce: str) -> Instant:
            with self._lock:
                if not self._lock.wait_for(lambda: device in self._present, PRESENCE_TIMEOUT_S):
                    raise UnavailableError(f"device {device}: is not online at {self._url}, start it")
                boot_id = self._boots[device]
            payload = operator.seal("echo", Echo(device=device, nonce=nonce), boot_id).to_json()
            sent = Instant.now()
            self._client.publish(topic(device, "command", "echo"), payload, qos=0)
            return sent

        check_name(device)
        return self._clocks.measure(device, echo, round_trips=round_trips)

    def _need_operator(self) -> Operator:
        if self._operator is None:
            raise UsageError("no key signs the command: give --operator KEY.pem, or 'operator' in the --station file")
        return self._operator

    def _publish(self, operator: Operator, verb: str, command: Message, boot_id: str) -> None:
        payload = operator.seal(verb, command, boot_id).to_json()
        publication = self._client.publish(topic(command.device, "command", verb), payload, qos=1)
        sent = self._sent.setdefault(command.device, deque(maxlen=MAX_WAITING))
        while sent and _is_out(sent[0]):
            sent.popleft()
        sent.append(_Sent(verb, command, publication))

    def _note_state(self, state: State) -> None:
        """A device is there: what waited for it can be signed, and what an earlier boot never got is signed anew."""
        if self._operator is None:
            return
        with self._lock:
            before = self._boots.get(state.device)
            if state.status != "online":
                # The will of an earlier boot may come late.
                if before == state.boot_id:
                    self._present.discard(state.device)
                return
            self._boots[state.device] = state.boot_id
            self._present.add(state.device)
            self._lock.notify_all()
            sent = self._sent.pop(state.device, ()) if before != state.boot_id else ()
            again = [(each.verb, each.command) for each in sent if not _is_out(each)]
            for verb, command in (*again, *self._waiting.pop(state.device, ())):
                self._publish(self._operator, verb, command, state.boot_id)

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            user = self._url.user_name()
            who = "a user is missing" if user is None else f"check user {user!r} and its password"
            self._refusal = f"refused: {reason}: {who}"
            if self._ever_connected:
                log.warning("broker %s: %s", self._url, self._refusal)
            return
        self._refusal = ""
        self._ever_connected = True
        kinds = {*self._reports, "state"} if self._operator is not None else set(self._reports)
        topics = [(topic(device, kind), 1) for device in self._devices for kind in sorted(kinds)]
        if self._operator is not None:
            topics += [(topic(device, "clock"), 0) for device in self._devices]
        client.subscribe(topics)
        self._events.put(BrokerChanged(connected=True))

    def _on_disconnect(self, *_: Any) -> None:
        with self._lock:
            # Who is there now, the broker tells again.
            self._present.clear()
        self._events.put(BrokerChanged(connected=False))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        received = Instant.now()
        _, _, device, kind = message.topic.split("/")
        try:
            report = _read(device, kind, message.payload)
        except UsageError as error:
            self.malformed += 1
            log.warning("%s: dropped: %s", message.topic, error)
            return
        if isinstance(report, Clock):
            self._clocks.take(report, received)
            return
        if isinstance(report, State):
            self._note_state(report)
        self._events.put(Received(report))


def _is_out(sent: _Sent) -> bool:
    """Whether the broker has taken a command; paho says nothing of one that it kept while there was no connection."""
    try:
        return sent.publication.is_published()
    except (ValueError, RuntimeError):
        return False


def _read(device: str, kind: str, payload: bytes | bytearray) -> Report | Clock:
    report: Report | Clock = parse(Clock, payload) if kind == "clock" else parse(REPORTS[kind], payload)
    if report.device != device:
        raise UsageError(f"{kind}: says device {report.device!r} on the topic of {device!r}")
    return report
