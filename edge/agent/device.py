"""The device itself: sound and commands in, predictions out.

Three threads: the recorder copies sound into the current stream, paho's network thread judges commands and tells the
time, and the thread that calls :meth:`Device.run` does everything else (inference, outbox, publishing, updates).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from nacl.signing import VerifyKey

from edge.agent.answers import Answers
from edge.agent.management import Management
from edge.agent.notify import Notifier
from edge.agent.prediction import Predictor
from edge.agent.recogniser import Model, Recogniser
from edge.agent.reports import Reports
from edge.agent.trials import Heard, Trials
from edge.agent.updates import NoUpdates, Updates
from edge.agent.vitality import Vitality
from edge.bridges.home_assistant import announcements
from edge.commands.authority import Authority
from edge.commands.inbox import Inbox
from edge.errors import UnavailableError
from edge.health.sampler import HealthSampler
from edge.listening.listening import Listening
from edge.listening.trigger import ListeningSettings
from edge.messages import Acknowledge, Clock, Listen, Reply
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.link import Link
from edge.outbox.outbox import Outbox
from edge.sound.microphones.protocol import Microphone
from edge.sound.recorder import Recorder
from edge.sound.streams import Stream, Streams

log = logging.getLogger(__name__)

OUTBOX_FILE = "outbox.sqlite"
HOME_ASSISTANT_FILE = "home-assistant"
_TICK_S = 0.25
# Windows that are ready together share one commit; more would make the first of them wait.
_GROUP = 8
# How often health is looked at: often enough for a confirmation, rare enough to cost nothing.
_OBSERVE_S = 0.5
# The same for what is told now and then; a new stream and a new connection are told at once.
_REPORT_S = 0.2
_NEVER = 1 << 63


class Device:
    """One microphone, one model, one broker.

    Args:
        name: the device's name in topics.
        bundle: the verified bundle, or who else recognises.
        classifier: runs the bundle's model, or asks that other.
        microphone: delivers the bundle's sample rate.
        url: the broker.
        state_dir: existing folder for the outbox; this process alone uses it.
        operators: keys whose commands are obeyed; without any, no command is.
        listening: how to listen without being asked; None listens only on command.
        updates: exchanges bundles and keys; None refuses to.
        home_assistant: topic prefix of Home Assistant's discovery; None takes the device away where it was before.
        publish_noise_seed: tell with every prediction of a stochastic ensemble what its noise was drawn from.

    Raises:
        UnavailableError: ``state_dir`` cannot be written.
        UsageError: a file with the broker's password or certificates cannot be used.
    """

    def __init__(
        self,
        *,
        name: str,
        bundle: Model,
        classifier: Recogniser,
        microphone: Microphone,
        url: BrokerUrl,
        state_dir: Path,
        operators: Sequence[VerifyKey] = (),
        listening: ListeningSettings | None = None,
        updates: Updates | None = None,
        home_assistant: str | None = None,
        publish_noise_seed: bool = False,
    ) -> None:
        manifest = bundle.manifest
        self.name = name
        self.boot_id = secrets.token_hex(8)
        self._microphone = microphone
        self._wake = threading.Event()
        self._connected_anew = threading.Event()
        self._updates = updates or NoUpdates()
        self._notifier = Notifier()
        self._authority = authority = Authority(name, self.boot_id, operators)
        self._streams = streams = Streams(manifest.rate_hz, manifest.window_samples, self._wake.set)
        self._trials = Trials(streams)
        health = HealthSampler(name, self.boot_id, state_dir)
        self._predictor = Predictor(
            name,
            self.boot_id,
            bundle,
            classifier,
            publish_noise_seed=publish_noise_seed,
            on_window=health.note_window,
        )
        self._commands = Inbox(
            name,
            self.boot_id,
            authority,
            complain=self._complain,
            tell_time=self._tell_time,
            on_command=self._wake.set,
        )
        self._link = link = Link(url, name, self.boot_id, on_command=self._commands.receive, on_ready=self._on_ready)
        self._outbox = Outbox(state_dir / OUTBOX_FILE)
        self._answers = Answers(predictor=self._predictor, streams=streams, outbox=self._outbox, link=link)
        self._management = Management(boot_id=self.boot_id, updates=self._updates, authority=authority, link=link)
        self._reports = Reports(
            device=name,
            boot_id=self.boot_id,
            bundle=bundle,
            providers=classifier.providers,
            members=classifier.members,
            microphone=microphone,
            streams=streams,
            link=link,
            authority=authority,
            updates=self._updates,
            health=health,
        )
        self._listening = None
        if listening is not None:
            self._listening = Listening(
                listening,
                manifest=manifest,
                predictor=self._predictor,
                streams=streams,
                can_wait=microphone.can_wait,
                keep=self._answers.keep,
                say=self._answers.say,
            )
        hop_samples = None if listening is None else listening.hop_samples(manifest.rate_hz)
        self._vitality = Vitality(streams, self._predictor, hop_samples=hop_samples)
        self._announcements = announcements(
            state_dir / HOME_ASSISTANT_FILE,
            name,
            prefix=home_assistant,
            bundle_name=manifest.name,
            bundle_version=manifest.version,
        )
        self._observed_s = self._fed_s = self._reported_s = 0.0
        self._reported_stream: Stream | None = None

    def run(self, stop: threading.Event, *, connect_timeout_s: float = 0.0) -> None:
        """Work until ``stop`` is set, or another bundle is to run (``updates.wants_restart``).

        Args:
            stop: ends it, from another thread or a signal handler; call :meth:`wake` after setting it.
            connect_timeout_s: give up when the broker is not reached within this time at the start; 0 tries for ever.

        Raises:
            UnavailableError: the broker was not reached in time.
        """
        if self._outbox.set_aside is not None:
            log.warning("the outbox was damaged: put aside as %s", self._outbox.set_aside)
        if len(self._outbox):
            log.info("%d predictions of earlier runs wait to be acknowledged", len(self._outbox))
        recorder = Recorder(self._microphone, self._streams, stop)
        start_s = time.monotonic()
        log.info("waiting for broker %s", self._link.url)
        self._link.start()
        recorder.start()
        self._notifier.ready()
        try:
            while not stop.is_set() and not self._updates.wants_restart:
                busy = self._work()
                waited_s = time.monotonic() - start_s
                if connect_timeout_s and not self._link.ever_connected and waited_s > connect_timeout_s:
                    raise UnavailableError(f"broker {self._link.url}: {self._link.problem} ({waited_s:.0f} s)")
                if not busy:
                    self._wake.wait(_TICK_S)
                    self._wake.clear()
        finally:
            if not self._updates.wants_restart:
                self._notifier.stopping()
            stop.set()
            self._updates.close()
            self._link.stop()
            recorder.join(2.0)
            self._outbox.close()

    def wake(self) -> None:
        """Let :meth:`run` look at once whether it shall stop; safe in a signal handler."""
        self._wake.set()

    def _on_ready(self) -> None:
        self._connected_anew.set()
        self._wake.set()

    def _complain(self, verb: str, detail: str) -> None:
        reply = Reply(device=self.name, boot_id=self.boot_id, verb=verb, ok=False, detail=detail)
        self._link.publish(reply, "reply")

    def _tell_time(self, clock: Clock) -> None:
        self._link.publish(clock, "clock", qos=0)

    def _work(self) -> bool:
        """One round; true when another one should follow without waiting."""
        self._take_commands()
        heard, refused = self._trials.take(time.monotonic(), _GROUP)
        for each in refused:
            self._answers.refuse(each)
        self._answers.answer(heard)
        hopped = self._listening is not None and self._listening.step()
        self._tell_recorder(heard)
        anew = self._link.connected and self._connected_anew.is_set()
        if anew:
            self._connected_anew.clear()
        self._observe()
        now_s, stream = time.monotonic(), self._streams.current
        if anew or stream is not self._reported_stream or now_s - self._reported_s >= _REPORT_S:
            self._reported_s, self._reported_stream = now_s, stream
            self._report(anew=anew)
        return bool(heard) or hopped

    def _take_commands(self) -> None:
        acknowledged: list[tuple[str, int]] = []
        while (command := self._commands.take()) is not None:
            if isinstance(command, Acknowledge):
                acknowledged.extend((command.boot_id, seq) for seq in command.seqs)
            elif isinstance(command, Listen):
                self._take_listen(command)
            else:
                self._management.carry_out(command)
        if acknowledged:
            self._answers.acknowledge(acknowledged)

    def _take_listen(self, command: Listen) -> None:
        if self._answers.repeat_answer(command):
            return
        refusal = self._trials.add(command, time.monotonic())
        if refusal is not None:
            self._answers.refuse(refusal)

    def _tell_recorder(self, heard: list[Heard]) -> None:
        stream = self._streams.current
        if stream is None:
            return
        needed_from, due_at = self._trials.needed_from(stream.stream_id), self._trials.due_at(stream.stream_id)
        released = 0
        for each in heard:
            if each.command.stream_id == stream.stream_id:
                released = max(released, each.command.sample_index)
        if self._listening is not None:
            listens_from = self._listening.needed_from(stream.stream_id)
            # Where nobody may ask for a window, what was listened to is done with.
            if listens_from is not None and not self._authority.operators:
                released = max(released, listens_from)
            needed_from = _lower(needed_from, listens_from)
            due_at = _lower(due_at, self._listening.due_at(stream.stream_id))
        due_at = _NEVER if due_at is None else due_at
        stream.release(needed_from=needed_from, released=released, due_at=due_at)
        # It may have come so far just before the recorder was told.
        if stream.ring.end >= due_at and not stream.ended:
            self._wake.set()

    def _observe(self) -> None:
        """Look now and then whether all is well: for the bundle that must prove itself, and for systemd."""
        now_s = time.monotonic()
        if now_s - self._observed_s < _OBSERVE_S:
            return
        self._observed_s = now_s
        if self._updates.confirmed is False:
            self._updates.observe(healthy=self._vitality.is_healthy())
        watchdog_s = self._notifier.watchdog_s
        alive = self._vitality.is_alive
        if watchdog_s is not None and alive and now_s - self._fed_s >= watchdog_s / 4:
            self._fed_s = now_s
            self._notifier.alive()
        self._notifier.status(self._in_one_line(alive=alive))

    def _in_one_line(self, *, alive: bool) -> str:
        broker = "connected" if self._link.connected else f"broker {self._link.problem}"
        sound = self._streams.problem or ("sound comes" if alive else "sound is not classified")
        return f"{broker}; {sound}"

    def _report(self, *, anew: bool) -> None:
        for whole_topic, payload in self._announcements if anew else ():
            self._link.publish_at(whole_topic, payload, retain=True)
        self._reports.tell_updates(anew=anew)
        if not self._link.connected:
            return
        self._reports.tell_info(anew=anew)
        self._answers.repeat(everything=anew)
        self._reports.tell_level()
        self._reports.tell_health(
            outbox_depth=len(self._outbox),
            outbox_dropped=self._outbox.dropped,
            rejected_commands=self._commands.rejected,
        )


def _lower(one: int | None, other: int | None) -> int | None:
    """The lower of two numbers that may be absent."""
    return one if other is None else other if one is None else min(one, other)
