"""The device itself: sound and commands in, predictions out.

Three threads: the recorder copies sound into the current stream, paho's network thread judges commands, and
the thread that calls :meth:`Device.run` does everything else (inference, outbox, publishing).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from pathlib import Path

from edge.agent.answers import Answers
from edge.agent.commands import Commands
from edge.agent.outbox import Outbox
from edge.agent.prediction import Predictor
from edge.agent.recogniser import Model, Recogniser
from edge.agent.reports import Reports
from edge.agent.trials import Heard, Trials
from edge.errors import DataError, UnavailableError
from edge.messages import Acknowledge, Listen, Reply
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.link import Link
from edge.sound.microphones.protocol import Microphone
from edge.sound.recorder import Recorder
from edge.sound.streams import Streams

log = logging.getLogger(__name__)

OUTBOX_FILE = "outbox.sqlite"
_TICK_S = 0.25
# Windows that are ready together share one commit; more would make the first of them wait.
_GROUP = 8


class Device:
    """One microphone, one model, one broker.

    Args:
        name: the device's name in topics.
        bundle: the verified bundle, or who else recognises.
        classifier: runs the bundle's model, or asks that other.
        microphone: delivers the bundle's sample rate.
        url: the broker.
        state_dir: existing folder for the outbox; this process alone uses it.
        hop_ms: without being asked, classify a window every ``hop_ms``; None listens only on command.
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
        hop_ms: float | None = None,
        publish_noise_seed: bool = False,
    ) -> None:
        rate_hz = bundle.manifest.rate_hz
        self.name = name
        self.boot_id = secrets.token_hex(8)
        self._microphone = microphone
        self._wake = threading.Event()
        self._connected_anew = threading.Event()
        self._streams = streams = Streams(rate_hz, bundle.manifest.window_samples, self._wake.set)
        self._trials = Trials(streams)
        self._predictor = Predictor(name, self.boot_id, bundle, classifier, publish_noise_seed=publish_noise_seed)
        self._commands = Commands(name, complain=self._complain, on_command=self._wake.set)
        self._link = link = Link(url, name, self.boot_id, on_command=self._commands.receive, on_ready=self._on_ready)
        self._outbox = Outbox(state_dir / OUTBOX_FILE)
        self._answers = Answers(predictor=self._predictor, streams=streams, outbox=self._outbox, link=link)
        self._reports = Reports(
            device=name,
            boot_id=self.boot_id,
            bundle=bundle,
            providers=classifier.providers,
            members=classifier.members,
            microphone=microphone,
            streams=streams,
            link=link,
        )
        self._hop_samples = None if hop_ms is None else max(1, round(hop_ms * rate_hz / 1000))
        self._hop_next = ("", 0)

    def run(self, stop: threading.Event, *, connect_timeout_s: float = 0.0) -> None:
        """Work until ``stop`` is set; call :meth:`wake` after setting it.

        Args:
            stop: ends it, from another thread or a signal handler.
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
        try:
            while not stop.is_set():
                busy = self._work()
                waited_s = time.monotonic() - start_s
                if connect_timeout_s and not self._link.ever_connected and waited_s > connect_timeout_s:
                    raise UnavailableError(f"broker {self._link.url}: {self._link.problem} ({waited_s:.0f} s)")
                if not busy:
                    self._wake.wait(_TICK_S)
                    self._wake.clear()
        finally:
            stop.set()
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

    def _work(self) -> bool:
        """One round; true when another one should follow without waiting."""
        self._take_commands()
        heard, refused = self._trials.take(time.monotonic(), _GROUP)
        for each in refused:
            self._answers.refuse(each)
        self._answers.answer(heard)
        self._tell_recorder(heard)
        hopped = self._listen_on()
        if self._link.connected:
            anew = self._connected_anew.is_set()
            self._connected_anew.clear()
            self._reports.tell_info(anew=anew)
            self._answers.repeat(everything=anew)
        self._reports.tell_level()
        return bool(heard) or hopped

    def _take_commands(self) -> None:
        acknowledged: list[tuple[str, int]] = []
        while (command := self._commands.take()) is not None:
            if isinstance(command, Acknowledge):
                acknowledged.extend((command.boot_id, seq) for seq in command.seqs)
            else:
                self._take_listen(command)
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
        answered = [each.command.sample_index for each in heard if each.command.stream_id == stream.stream_id]
        needed_from = self._trials.needed_from(stream.stream_id)
        stream.release(needed_from=needed_from, released=max(answered, default=0))

    def _listen_on(self) -> bool:
        """Classify the next window of continuous listening; nobody acknowledges it, so it is not kept."""
        stream = self._streams.current
        if self._hop_samples is None or stream is None or stream.ended:
            return False
        stream_id, index = self._hop_next if self._hop_next[0] == stream.stream_id else (stream.stream_id, 0)
        late = stream.ring.end - self._streams.window_samples - index
        if late < 0:
            return False
        # A slow machine leaves windows out rather than fall behind.
        index += late // self._hop_samples * self._hop_samples
        self._hop_next = (stream_id, index + self._hop_samples)
        try:
            pcm = stream.ring.read(index, self._streams.window_samples)
            xruns = self._streams.xruns
            prediction = self._predictor.predict(pcm, stream_id=stream_id, sample_index=index, xruns=xruns)
        except DataError as error:
            log.warning("no prediction at sample %d: %s", index, error)
            return True
        self._link.publish(prediction, "prediction")
        return True
