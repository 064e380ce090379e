"""Answers to the rig: predictions that are stored before they are published, refusals, returned sound."""

from __future__ import annotations

import base64
import logging
import sqlite3
from collections.abc import Sequence

from edge.agent.prediction import Predictor
from edge.agent.trials import Heard, Refused
from edge.commands.limiter import Limiter
from edge.errors import DataError, UnavailableError
from edge.messages import MAX_PAYLOAD_BYTES, Listen, Prediction, Reply, parse
from edge.mqtt.link import Link
from edge.outbox.outbox import Outbox, Stored
from edge.sound.ring import Pcm16
from edge.sound.streams import Streams

log = logging.getLogger(__name__)

# Base64 of the sound and what stands around it must fit into one message.
_MAX_AUDIO_CHARACTERS = MAX_PAYLOAD_BYTES - 2048


class Answers:
    """What goes back to the rig, and what is kept until the rig has it; used by one thread."""

    def __init__(self, *, predictor: Predictor, streams: Streams, outbox: Outbox, link: Link) -> None:
        self._predictor = predictor
        self._streams = streams
        self._outbox = outbox
        self._link = link
        self._dropped = outbox.dropped
        self._disk_limiter = Limiter(per_second=0.2, burst=1)
        self._refusal_limiter = Limiter(per_second=2, burst=20)

    def answer(self, heard: Sequence[Heard]) -> None:
        """Classify each window, store all predictions in one commit, publish them, return sound where asked."""
        answered: list[tuple[Heard, Prediction]] = []
        for each in heard:
            try:
                answered.append((each, self._predict(each)))
            except (DataError, UnavailableError) as error:
                self.refuse(Refused(each.command, str(error)))
        if not answered:
            return
        for payload in self._store([prediction for _, prediction in answered]):
            self._link.publish_bytes(payload, "prediction")
        for each, _ in answered:
            if each.command.return_audio:
                self._return_audio(each.command, each.pcm)

    def keep(self, prediction: Prediction) -> None:
        """Store a prediction that nobody asked for, and publish it."""
        for payload in self._store([prediction]):
            self._link.publish_bytes(payload, "prediction")

    def say(self, prediction: Prediction) -> None:
        """Publish a prediction once: what is not kept needs no receipt either."""
        self._link.publish(prediction, "prediction", qos=0)

    def _predict(self, heard: Heard) -> Prediction:
        command = heard.command
        return self._predictor.predict(
            heard.pcm,
            stream_id=command.stream_id,
            sample_index=command.sample_index,
            xruns=self._streams.xruns,
            command=command,
        )

    def _store(self, predictions: Sequence[Prediction]) -> list[bytes]:
        try:
            payloads = [stored.payload for stored in self._outbox.store(predictions)]
        except sqlite3.Error as error:
            # An answer that a power cut may lose is better than none.
            self._note_disk(error)
            return [prediction.to_json() for prediction in predictions]
        if self._outbox.dropped > self._dropped and self._disk_limiter.allow():
            self._dropped = self._outbox.dropped
            log.warning("the outbox is full: %d predictions that nobody acknowledged were dropped", self._dropped)
        return payloads

    def repeat_answer(self, command: Listen) -> bool:
        """Send a kept answer once more, with its old number; false when there is none."""
        stored = self._kept_answer(command)
        if stored is None:
            return False
        self._link.publish_bytes(stored.payload, "prediction")
        self._outbox.touch(stored.row_id)
        if command.return_audio:
            self._return_remembered_audio(command)
        return True

    def _kept_answer(self, command: Listen) -> Stored | None:
        try:
            stored = self._outbox.find(command.session_id, command.trial_id, command.attempt)
        except sqlite3.Error as error:
            self._note_disk(error)
            return None
        # What another model answered before this one was installed is no answer of this one.
        if stored is None or parse(Prediction, stored.payload).bundle_sha256 != self._predictor.bundle_sha256:
            return None
        return stored

    def _return_remembered_audio(self, command: Listen) -> None:
        stream = self._streams.find(command.stream_id)
        if stream is None:
            self.refuse(Refused(command, "the prediction was sent again, but its stream is no longer remembered"))
            return
        try:
            pcm = stream.ring.read(command.sample_index, self._streams.window_samples)
        except DataError as error:
            self.refuse(Refused(command, f"the prediction was sent again, but {error}"))
        else:
            self._return_audio(command, pcm)

    def _return_audio(self, command: Listen, pcm: Pcm16) -> None:
        audio = base64.b64encode(pcm.astype("<i2", copy=False).tobytes()).decode("ascii")
        if len(audio) > _MAX_AUDIO_CHARACTERS:
            self.refuse(Refused(command, f"{len(pcm)} samples are too many to return in one message"))
            return
        self._reply(command, ok=True, audio=audio)

    def refuse(self, refused: Refused) -> None:
        """Tell the rig that a command is not carried out, and why."""
        command = refused.command
        if self._refusal_limiter.allow():
            log.warning("refused trial %s attempt %d: %s", command.trial_id, command.attempt, refused.reason)
        self._reply(command, ok=False, detail=refused.reason)

    def _reply(self, command: Listen, *, ok: bool, detail: str = "", audio: str | None = None) -> None:
        reply = Reply(
            device=command.device,
            boot_id=self._predictor.boot_id,
            verb="listen",
            ok=ok,
            detail=detail,
            session_id=command.session_id,
            trial_id=command.trial_id,
            attempt=command.attempt,
            audio=audio,
        )
        self._link.publish(reply, "reply")

    def acknowledge(self, acknowledged: Sequence[tuple[str, int]]) -> None:
        """Forget what the rig has stored, by (boot_id, seq)."""
        if not acknowledged:
            return
        try:
            self._outbox.acknowledge(acknowledged)
        except sqlite3.Error as error:
            self._note_disk(error)

    def repeat(self, *, everything: bool) -> None:
        """Publish again what nobody has acknowledged in time, all of it after a new connection."""
        try:
            rows = self._outbox.due(everything=everything)
        except sqlite3.Error as error:
            self._note_disk(error)
            return
        for row in rows:
            self._link.publish_bytes(row.payload, "prediction")

    def _note_disk(self, error: sqlite3.Error) -> None:
        if self._disk_limiter.allow():
            log.error("outbox: %s; predictions may be lost", error)
