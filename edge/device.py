"""The device itself: sound and commands in, predictions out.

Three threads: the recorder copies sound into the current stream, paho's network thread judges commands, and
the thread that calls :meth:`Device.run` does everything else (inference, outbox, publishing).
"""

from __future__ import annotations

import base64
import logging
import secrets
import sqlite3
import threading
import time
from pathlib import Path

import edge
from edge.broker_url import BrokerUrl
from edge.bundle import Bundle
from edge.classifier import Classifier
from edge.commands import Commands
from edge.errors import DataError, UnavailableError
from edge.level import level_dbfs
from edge.limiter import Limiter
from edge.link import Link
from edge.messages import MAX_PAYLOAD_BYTES, Acknowledge, Info, Level, Listen, Prediction, Reply
from edge.microphones.protocol import Microphone
from edge.outbox import Outbox, Stored
from edge.prediction import Predictor
from edge.recorder import Recorder
from edge.ring import Pcm16
from edge.streams import Streams
from edge.trials import Heard, Refused, Trials

log = logging.getLogger(__name__)

OUTBOX_FILE = "outbox.sqlite"
_TICK_S = 0.25
_LEVEL_S = 1.0
# Windows that are ready together share one commit; more would make the first of them wait.
_GROUP = 8


class Device:
    """One microphone, one model, one broker.

    Args:
        name: the device's name in topics.
        bundle: the verified bundle.
        classifier: runs the bundle's model.
        microphone: delivers the bundle's sample rate.
        url: the broker.
        state_dir: existing folder for the outbox; this process alone uses it.
        hop_ms: without being asked, classify a window every ``hop_ms``; None listens only on command.
    """

    def __init__(
        self,
        *,
        name: str,
        bundle: Bundle,
        classifier: Classifier,
        microphone: Microphone,
        url: BrokerUrl,
        state_dir: Path,
        hop_ms: float | None = None,
    ) -> None:
        manifest = bundle.manifest
        self.name = name
        self.boot_id = secrets.token_hex(8)
        self._bundle = bundle
        self._classifier = classifier
        self._microphone = microphone
        self._wake = threading.Event()
        self._streams = Streams(manifest.rate_hz, manifest.window_samples, self._wake.set)
        self._trials = Trials(self._streams)
        self._predictor = Predictor(name, self.boot_id, bundle, classifier)
        self._commands = Commands(name, complain=self._complain, on_command=self._wake.set)
        self._link = Link(url, name, self.boot_id, on_command=self._commands.receive, on_ready=self._on_ready)
        self._outbox = Outbox(state_dir / OUTBOX_FILE)
        self._disk_limiter = Limiter(per_second=0.2, burst=1)
        self._hop_samples = None if hop_ms is None else max(1, round(hop_ms * manifest.rate_hz / 1000))
        self._hop_next = ("", 0)
        self._announce = threading.Event()
        self._said: tuple[str | None, str] | None = None
        self._level_s = 0.0
        self._level_end = ("", 0)

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
        self._announce.set()
        self._wake.set()

    def _work(self) -> bool:
        """One round; true when another one should follow without waiting."""
        self._take_commands()
        heard, refused = self._trials.take(time.monotonic(), _GROUP)
        for each in refused:
            self._refuse(each)
        self._answer(heard)
        self._tell_recorder(heard)
        hopped = self._listen_on()
        if self._link.connected:
            connected_anew = self._announce.is_set()
            self._announce.clear()
            self._announce_changes(connected_anew=connected_anew)
            self._repeat(everything=connected_anew)
        self._tell_level()
        return bool(heard) or hopped

    # Commands

    def _take_commands(self) -> None:
        acknowledged: list[tuple[str, int]] = []
        while (command := self._commands.take()) is not None:
            if isinstance(command, Acknowledge):
                acknowledged.extend((command.boot_id, seq) for seq in command.seqs)
            else:
                self._take_listen(command)
        if acknowledged:
            try:
                self._outbox.acknowledge(acknowledged)
            except sqlite3.Error as error:
                self._note_disk(error)

    def _take_listen(self, command: Listen) -> None:
        stored = self._find(command)
        if stored is None:
            refusal = self._trials.add(command, time.monotonic())
            if refusal is not None:
                self._refuse(refusal)
            return
        # Asked again for what is answered already: the same answer, with the same seq.
        self._link.publish_bytes(stored.payload, "prediction")
        self._outbox.touch(stored.row_id)
        if command.return_audio:
            self._return_remembered_audio(command)

    def _find(self, command: Listen) -> Stored | None:
        try:
            return self._outbox.find(command.session_id, command.trial_id, command.attempt)
        except sqlite3.Error as error:
            self._note_disk(error)
            return None

    def _return_remembered_audio(self, command: Listen) -> None:
        stream = self._streams.find(command.stream_id)
        if stream is None:
            self._refuse(Refused(command, "the prediction was sent again, but its stream is no longer remembered"))
            return
        try:
            pcm = stream.ring.read(command.sample_index, self._streams.window_samples)
        except DataError as error:
            self._refuse(Refused(command, f"the prediction was sent again, but {error}"))
        else:
            self._return_audio(command, pcm)

    # Answers

    def _answer(self, heard: list[Heard]) -> None:
        predictions: list[Prediction] = []
        for each in heard:
            command = each.command
            try:
                prediction = self._predictor.predict(
                    each.pcm,
                    stream_id=command.stream_id,
                    sample_index=command.sample_index,
                    xruns=self._streams.xruns,
                    command=command,
                )
            except DataError as error:
                self._refuse(Refused(command, str(error)))
                continue
            predictions.append(prediction)
        if not predictions:
            return
        try:
            payloads = [stored.payload for stored in self._outbox.store(predictions)]
        except sqlite3.Error as error:
            # An answer that a power cut may lose is better than none.
            self._note_disk(error)
            payloads = [prediction.to_json() for prediction in predictions]
        for payload in payloads:
            self._link.publish_bytes(payload, "prediction")
        for each in heard:
            if each.command.return_audio:
                self._return_audio(each.command, each.pcm)

    def _return_audio(self, command: Listen, pcm: Pcm16) -> None:
        audio = base64.b64encode(pcm.astype("<i2", copy=False).tobytes()).decode("ascii")
        # The envelope around the audio needs room too.
        if len(audio) > MAX_PAYLOAD_BYTES - 2048:
            self._refuse(Refused(command, f"{len(pcm)} samples are too many to return in one message"))
            return
        self._reply(command, ok=True, audio=audio)

    def _refuse(self, refused: Refused) -> None:
        command = refused.command
        log.warning("refused trial %s attempt %d: %s", command.trial_id, command.attempt, refused.reason)
        self._reply(command, ok=False, detail=refused.reason)

    def _reply(self, command: Listen, *, ok: bool, detail: str = "", audio: str | None = None) -> None:
        reply = Reply(
            device=self.name,
            boot_id=self.boot_id,
            verb="listen",
            ok=ok,
            detail=detail,
            session_id=command.session_id,
            trial_id=command.trial_id,
            attempt=command.attempt,
            audio=audio,
        )
        self._link.publish(reply, "reply")

    def _complain(self, verb: str, detail: str) -> None:
        reply = Reply(device=self.name, boot_id=self.boot_id, verb=verb, ok=False, detail=detail)
        self._link.publish(reply, "reply")

    # What happens without being asked

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

    def _announce_changes(self, *, connected_anew: bool) -> None:
        stream = self._streams.current
        stream_id = None if stream is None or stream.ended else stream.stream_id
        now = (stream_id, self._streams.problem)
        if now == self._said and not connected_anew:
            return
        manifest, problem = self._bundle.manifest, self._streams.problem
        info = Info(
            device=self.name,
            boot_id=self.boot_id,
            version=edge.__version__,
            bundle_name=manifest.name,
            bundle_version=manifest.version,
            bundle_sha256=self._bundle.sha256,
            labels=manifest.labels,
            rate_hz=manifest.rate_hz,
            window_samples=manifest.window_samples,
            microphone=self._microphone.name + (f" [error: {problem}]" if problem else ""),
            stream_id=stream_id,
            providers=self._classifier.providers,
        )
        self._link.publish(info, "info", retain=True)
        self._said = now

    def _repeat(self, *, everything: bool) -> None:
        """Publish again what nobody has acknowledged, all of it after a new connection."""
        try:
            rows = self._outbox.due(everything=everything)
        except sqlite3.Error as error:
            self._note_disk(error)
            return
        for row in rows:
            self._link.publish_bytes(row.payload, "prediction")

    def _tell_level(self) -> None:
        now_s = time.monotonic()
        stream = self._streams.current
        if stream is None or now_s - self._level_s < _LEVEL_S:
            return
        end = stream.ring.end
        if (stream.stream_id, end) == self._level_end:
            return
        self._level_s, self._level_end = now_s, (stream.stream_id, end)
        try:
            begin = max(stream.ring.begin, end - self._streams.rate_hz)
            rms_dbfs, peak_dbfs = level_dbfs(stream.ring.read(begin, end - begin))
        except DataError:
            # The stream went on so fast that this second is overwritten.
            return
        level = Level(
            device=self.name,
            boot_id=self.boot_id,
            rms_dbfs=rms_dbfs,
            peak_dbfs=peak_dbfs,
            xruns=self._streams.xruns,
        )
        self._link.publish(level, "level", qos=0)

    def _note_disk(self, error: sqlite3.Error) -> None:
        if self._disk_limiter.allow():
            log.error("outbox: %s; predictions may be lost", error)
