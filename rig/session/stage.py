"""The stage of a session: broker, sound and devices, set up in order and always taken down."""

from __future__ import annotations

import queue
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from edge import files
from edge.bundle.signing import public_pem
from edge.errors import PlanError, ThresholdError, UnavailableError, UsageError
from edge.messages import Info, State, check_name
from edge.mqtt.broker_url import BrokerUrl
from rig.broker import EmbeddedBroker
from rig.devices.audio_server import AudioServer
from rig.devices.events import Event, Events, ProcessEnded, Received, StreamChanged
from rig.devices.link import Link
from rig.devices.local import LocalDevice
from rig.devices.operator import Operator
from rig.session import foreign
from rig.session.foreign import ModelIdentity
from rig.session.material import Material, bundle_path
from rig.session.prepare import Setup

READY_TIMEOUT_S = 30.0
MAX_RESTARTS = 50
RESTART_PAUSE_S = 0.2
OPERATOR_KEY = "operator.pub"


@dataclass
class StagedDevice:
    """One device of the session: what it runs, and whether it can be given a trial right now.

    ``model`` is what its predictions must come from; of a foreign recogniser that is known when it has said so.
    """

    name: str
    bundle: str
    sound: AudioServer
    process: LocalDevice | None = None
    online: bool = False
    boot_id: str | None = None
    stream_id: str | None = None
    info: Info | None = None
    model: ModelIdentity | None = None
    restarts: int = 0

    @property
    def is_ready(self) -> bool:
        """It answers, runs the right bundle and listens to our sound."""
        return self.online and self.info is not None and self.stream_id is not None


class Stage:
    """Broker, link, sound servers and devices of one session, as a context.

    Raises:
        UnavailableError: a port is in use, the broker cannot be reached, or a device does not come up.
        UsageError: the device's URL makes no sense.
    """

    def __init__(self, material: Material, setup: Setup, folder: Path) -> None:
        self._material = material
        self._setup = setup
        self._folder = folder
        self._stack = ExitStack()
        self.events: Events = queue.SimpleQueue()
        self.devices: dict[str, StagedDevice] = {}

    @property
    def is_local(self) -> bool:
        """Whether the devices are processes that this session started."""
        return self._setup.device == "local"

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _set_up(self) -> None:
        recogniser = self._material.plan.recogniser
        if self.is_local:
            if recogniser is not None:
                raise PlanError(
                    f"the plan tests {recogniser.name}: start its bridge ('earshot bridge') and name it with --device"
                )
            broker = self._open_broker()
            names = {f"local-{bundle}"[:63]: bundle for bundle in self._material.bundles}
        else:
            broker, name = parse_device(self._setup.device)
            if len(self._material.tested) > 1:
                raise PlanError("a device runs one bundle: give each bundle of the plan its own plan and session")
            names = {name: self._material.tested[0]}
        operator = self._operator()
        self.link = self._stack.enter_context(Link(broker, names, self.events, operator=operator))
        for name, bundle in names.items():
            sound = self._stack.enter_context(
                AudioServer(
                    name,
                    rate_hz=self._material.rate_hz,
                    events=self.events,
                    host=self._setup.sound_host,
                    port=self._setup.sound_port if not self.is_local else 0,
                )
            )
            tested = self._material.bundles.get(bundle)
            model = ModelIdentity(tested.sha256, tested.manifest.labels) if tested else None
            self.devices[name] = StagedDevice(name, bundle, sound, model=model)
        if self.is_local:
            folder = self._folder / "devices"
            files.write(folder / OPERATOR_KEY, public_pem(operator.public_key))
            for device in self.devices.values():
                entry = self._material.plan.bundles[list(self._material.bundles).index(device.bundle)]
                process = LocalDevice(
                    device.name,
                    bundle=bundle_path(entry),
                    trust=list(self._material.trust),
                    operator=folder / OPERATOR_KEY,
                    broker=broker,
                    sound=device.sound.address,
                    folder=folder,
                    events=self.events,
                )
                device.process = self._stack.enter_context(process)
        self._wait_until_ready()

    def _operator(self) -> Operator:
        """Who commands: a key of this run alone for the devices it starts, else the station's."""
        if self.is_local:
            return Operator.ephemeral()
        if self._setup.operator is None:
            raise UsageError(
                f"device {self._setup.device} obeys signed commands only: give --operator KEY.pem, or 'operator' in"
                " the --station file"
            )
        return Operator.load(Path(self._setup.operator))

    def measure_clocks(self) -> list[dict[str, Any]]:
        """How far each device's clocks are from ours now, for the journal.

        Raises:
            UnavailableError: a device does not answer.
        """
        measured_utc = datetime.now(UTC).isoformat(timespec="seconds")
        offsets = [self.link.measure_clock(name) for name in self.devices]
        return [{**offset.as_document(), "measured_utc": measured_utc} for offset in offsets]

    def _open_broker(self) -> BrokerUrl:
        wanted = parse_broker(self._setup.broker)
        if isinstance(wanted, int):
            return self._stack.enter_context(EmbeddedBroker(port=wanted)).url
        return wanted

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not all(device.is_ready for device in self.devices.values()):
            try:
                event = self.events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise UnavailableError(self._why_not_ready()) from None
            if self.link.problem:
                raise UnavailableError(f"broker: {self.link.problem}")
            if isinstance(event, ProcessEnded):
                device = self.devices[event.device]
                words = device.process.last_words() if device.process else ""
                raise UnavailableError(f"device {event.device}: ended with {event.exit_code} at start: {words}")
            self.follow(event)

    def _why_not_ready(self) -> str:
        device = next(device for device in self.devices.values() if not device.is_ready)
        missing = [
            word
            for word, there in (
                ("state 'online'", device.online),
                ("info", device.info is not None),
                (f"its microphone at socket:{device.sound.address}", device.stream_id is not None),
            )
            if not there
        ]
        words = f"; its log ends: {device.process.last_words()}" if device.process else ""
        return f"device {device.name}: after {READY_TIMEOUT_S:.0f} s still without {' and '.join(missing)}{words}"

    def follow(self, event: Event) -> StagedDevice | None:
        """Keep the devices' state up to date.

        Returns:
            the device if this event took away its ability to answer what it was asked, else None.

        Raises:
            ThresholdError: the device runs another bundle than the plan's.
        """
        if isinstance(event, StreamChanged):
            device = self.devices[event.device]
            if event.opened:
                lost = device.stream_id is not None
                device.stream_id = event.stream_id
                return device if lost else None
            if device.stream_id == event.stream_id:
                device.stream_id = None
                return device
        elif isinstance(event, ProcessEnded):
            device = self.devices[event.device]
            device.online, device.info = False, None
            return device
        elif isinstance(event, Received) and isinstance(event.report, State):
            return self._follow_state(event.report)
        elif isinstance(event, Received) and isinstance(event.report, Info):
            self._follow_info(event.report)
        return None

    def _follow_state(self, state: State) -> StagedDevice | None:
        device = self.devices[state.device]
        if state.status == "online":
            new_boot = device.boot_id not in {None, state.boot_id}
            device.online, device.boot_id = True, state.boot_id
            return device if new_boot else None
        # A late will of a boot that is already replaced takes nothing away.
        if device.boot_id not in {None, state.boot_id}:
            return None
        device.online = False
        return device

    def _follow_info(self, info: Info) -> None:
        device = self.devices[info.device]
        recogniser = self._material.plan.recogniser
        if recogniser is not None:
            foreign.check(info, recogniser, self._material, device.model)
            device.info = info
            device.model = device.model or foreign.model_of(info)
            return
        wanted = self._material.bundles[device.bundle].sha256
        if info.bundle_sha256 != wanted:
            raise ThresholdError(
                f"device {info.device} runs bundle {info.bundle_name} {info.bundle_sha256[:12]}, the plan wants"
                f" {device.bundle} {wanted[:12]}: start it with that bundle"
            )
        device.info = info

    def restart(self, device: StagedDevice) -> None:
        """Start a local device whose process ended.

        Raises:
            UnavailableError: it ended too often.
        """
        if device.process is None:
            return
        device.restarts += 1
        if device.restarts > MAX_RESTARTS:
            raise UnavailableError(
                f"device {device.name}: ended {device.restarts} times, last words: {device.process.last_words()}"
            )
        time.sleep(RESTART_PAUSE_S)
        device.process.start()


def parse_broker(text: str) -> BrokerUrl | int:
    """Read ``embedded``, ``embedded:PORT`` or a broker's URL.

    Returns:
        the URL, or the port for the embedded broker (0 = any free one).

    Raises:
        UsageError: it is none of these.
    """
    if text != "embedded" and not text.startswith("embedded:"):
        return BrokerUrl.parse(text)
    port = text.removeprefix("embedded").removeprefix(":") or "0"
    if not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"broker {text!r}: use embedded, embedded:PORT (1 to 65535) or mqtt://HOST:PORT")
    return int(port)


def parse_device(text: str) -> tuple[BrokerUrl, str]:
    """Split ``mqtt://HOST[:PORT]/NAME`` into broker and device name.

    Raises:
        UsageError: it is not of that form.
    """
    try:
        path = urlsplit(text).path if "://" in text else ""
    except ValueError:
        path = ""
    name = path.lstrip("/")
    if not name:
        raise UsageError(f"device {text!r}: use local, or mqtt://HOST[:PORT]/NAME for a device that runs elsewhere")
    return BrokerUrl.parse(text.removesuffix(path)), check_name(name)
