"""The run of a session: every open trial is played, heard, predicted and journalled, whatever dies meanwhile."""

from __future__ import annotations

import hashlib
import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.errors import PlanError, UnavailableError
from edge.messages import Acknowledge, Listen, Prediction, Reply
from firmware_models.progress import Progress, silent
from rig.airs.protocol import Rendering
from rig.devices.events import BrokerChanged, Event, ProcessEnded, Received
from rig.journal import Attempt, Journal, Outcome, Trial
from rig.session import foreign
from rig.session.material import Material
from rig.session.prepare import Setup
from rig.session.samples import Samples
from rig.session.stage import Stage, StagedDevice

# Enough to keep a device busy while messages travel, few enough that its 30 s of memory hold every window.
MAX_IN_FLIGHT = 8
PREDICTION_TIMEOUT_S = 10.0
BROKER_TIMEOUT_S = 60.0
DEVICE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class _Flight:
    """An attempt whose sound is on the wire and whose prediction is awaited."""

    trial: Trial
    attempt: int
    rendering: Rendering
    listen: Listen
    pcm_sha256: str
    deadline: float


class _Runner:
    def __init__(
        self, material: Material, journal: Journal, stage: Stage, samples: Samples, progress: Progress
    ) -> None:
        self._material = material
        self._journal = journal
        self._stage = stage
        self._samples = samples
        self._progress = progress
        self._session_id = str(journal.meta()["session_id"])
        self._trials = {trial.trial_id: trial for trial in journal.trials()}
        self._concluded = journal.concluded()
        self._tried = journal.tried()
        # Losses of device or broker are recorded but never use up a trial's attempts.
        self._counted: dict[str, int] = {}
        self._flights: dict[str, _Flight] = {}
        self._open: dict[str, deque[Trial]] = {name: deque() for name in stage.devices}
        by_bundle = {device.bundle: device.name for device in stage.devices.values()}
        for trial in self._trials.values():
            if trial.trial_id not in self._concluded:
                self._open[by_bundle[material.conditions[trial.condition].bundle]].append(trial)
        foreign_one = material.plan.recogniser is not None
        self._max_in_flight = foreign.MAX_IN_FLIGHT if foreign_one else MAX_IN_FLIGHT
        self._prediction_timeout_s = foreign.PREDICTION_TIMEOUT_S if foreign_one else PREDICTION_TIMEOUT_S
        self._finished: list[Attempt] = []
        self._acknowledge: dict[tuple[str, str], list[int]] = {}
        self._broker_lost_at: float | None = None
        self._not_ready_since: dict[str, float] = {}

    def run(self) -> None:
        self._report()
        while len(self._concluded) < len(self._trials):
            for device in self._stage.devices.values():
                self._feed(device)
            self._listen()
            self._expire()
            self._store()
        self._report()

    def _feed(self, device: StagedDevice) -> None:
        waiting = self._open[device.name]
        if not device.is_ready or self._broker_lost_at is not None:
            return
        flying = sum(flight.listen.device == device.name for flight in self._flights.values())
        while waiting and flying < self._max_in_flight:
            trial = waiting.popleft()
            if trial.trial_id in self._concluded:
                continue
            rendering = self._material.render(trial)
            if rendering.reason is not None:
                self._conclude(trial, "abandoned", rendering, reason=rendering.reason)
                continue
            if not self._send(device, trial, rendering):
                waiting.appendleft(trial)
                return
            flying += 1

    def _send(self, device: StagedDevice, trial: Trial, rendering: Rendering) -> bool:
        sent = device.sound.send(rendering.pcm)
        if sent is None:
            return False
        stream_id, first = sent
        listen = Listen(
            device=device.name,
            session_id=self._session_id,
            trial_id=trial.trial_id,
            attempt=self._tried.get(trial.trial_id, 0),
            stream_id=stream_id,
            sample_index=first + rendering.window_start,
            return_audio=self._samples.wants(trial),
        )
        self._flights[trial.trial_id] = _Flight(
            trial,
            listen.attempt,
            rendering,
            listen,
            self._heard_hash(rendering),
            time.monotonic() + self._prediction_timeout_s,
        )
        self._stage.link.send("listen", listen)
        return True

    def _heard_hash(self, rendering: Rendering) -> str:
        window = rendering.pcm[rendering.window_start : rendering.window_start + self._material.window_samples]
        return hashlib.sha256(np.ascontiguousarray(window, dtype="<i2").tobytes()).hexdigest()

    def _listen(self) -> None:
        """Handle what has happened; wait a moment only if nothing has."""
        try:
            self._handle(self._stage.events.get(timeout=0.05))
            while True:
                self._handle(self._stage.events.get_nowait())
        except queue.Empty:
            return

    def _handle(self, event: Event) -> None:
        if isinstance(event, BrokerChanged):
            self._broker_changed(connected=event.connected)
            return
        lost = self._stage.follow(event)
        if lost is not None:
            self._take_back(lost, "device lost")
        if isinstance(event, ProcessEnded):
            self._stage.restart(self._stage.devices[event.device])
        elif isinstance(event, Received) and isinstance(event.report, Prediction):
            self._predicted(event.report)
        elif isinstance(event, Received) and isinstance(event.report, Reply):
            self._replied(event.report)

    def _broker_changed(self, *, connected: bool) -> None:
        if not connected:
            self._broker_lost_at = self._broker_lost_at or time.monotonic()
            return
        if self._broker_lost_at is None:
            return
        self._broker_lost_at = None
        # The broker may have forgotten what we asked; the device answers a repeated question only once.
        for trial_id, flight in list(self._flights.items()):
            self._flights[trial_id] = _Flight(
                flight.trial,
                flight.attempt,
                flight.rendering,
                flight.listen,
                flight.pcm_sha256,
                time.monotonic() + self._prediction_timeout_s,
            )
            self._stage.link.send("listen", flight.listen)

    def _take_back(self, device: StagedDevice, reason: str) -> None:
        """Whatever this device was asked must be asked anew, in the old order."""
        lost = [flight for flight in self._flights.values() if flight.listen.device == device.name]
        for flight in reversed(lost):
            del self._flights[flight.trial.trial_id]
            self._record(flight.trial, "invalid", flight.rendering, reason=reason)
            self._open[device.name].appendleft(flight.trial)

    def _predicted(self, prediction: Prediction) -> None:
        mine = prediction.session_id == self._session_id
        if mine or self._stage.is_local:
            self._acknowledge.setdefault((prediction.device, prediction.boot_id), []).append(prediction.seq)
        trial = self._trials.get(prediction.trial_id or "") if mine else None
        if trial is None or trial.trial_id in self._concluded:
            return
        flight = self._flights.get(trial.trial_id)
        if prediction.attempt != self._tried.get(trial.trial_id, 0):
            return  # an attempt already recorded as lost; its successor decides
        # A prediction from before a restart has no flight, but the trial still sounds the same.
        rendering = flight.rendering if flight else self._material.render(trial)
        expected = flight.pcm_sha256 if flight else self._heard_hash(rendering)
        fault = self._fault(prediction, expected)
        if flight is not None:
            del self._flights[trial.trial_id]
        if fault is not None:
            self._fail(trial, prediction.device, rendering, fault)
            return
        self._conclude(trial, "valid", rendering, prediction=prediction)

    def _fault(self, prediction: Prediction, pcm_sha256: str) -> str | None:
        model = self._stage.devices[prediction.device].model
        if model is None or prediction.bundle_sha256 != model.sha256:
            wanted = "what the plan tests" if model is None else model.sha256[:12]
            return f"predicted by bundle {prediction.bundle_sha256[:12]}, not {wanted}"
        labels = model.labels
        if len(prediction.scores) != len(labels) or prediction.label != labels[int(np.argmax(prediction.scores))]:
            return "label and scores do not belong together"
        if prediction.pcm_sha256 != pcm_sha256:
            return "the device heard other samples than were sent"
        return None

    def _replied(self, reply: Reply) -> None:
        if reply.session_id != self._session_id or reply.trial_id not in self._trials:
            return
        if reply.ok and reply.audio is not None:
            self._samples.keep_heard(self._trials[reply.trial_id], reply.audio)
            return
        flight = self._flights.get(reply.trial_id)
        if not reply.ok and flight is not None and flight.attempt == reply.attempt:
            del self._flights[reply.trial_id]
            self._fail(flight.trial, reply.device, flight.rendering, f"device refused: {reply.detail}")

    def _expire(self) -> None:
        now = time.monotonic()
        if self._broker_lost_at is not None:
            if now - self._broker_lost_at > BROKER_TIMEOUT_S:
                raise UnavailableError(
                    f"broker: gone for {BROKER_TIMEOUT_S:.0f} s, start it and go on with 'earshot session resume'"
                )
            return
        for device in self._stage.devices.values():
            since = self._not_ready_since.setdefault(device.name, now)
            if device.is_ready or not self._open[device.name]:
                del self._not_ready_since[device.name]
            elif now - since > DEVICE_TIMEOUT_S:
                raise UnavailableError(
                    f"device {device.name}: gone for {DEVICE_TIMEOUT_S:.0f} s, bring it back and go on with"
                    " 'earshot session resume'"
                )
        for flight in [flight for flight in self._flights.values() if flight.deadline < now]:
            del self._flights[flight.trial.trial_id]
            reason = f"no prediction within {self._prediction_timeout_s:.0f} s"
            self._fail(flight.trial, flight.listen.device, flight.rendering, reason)

    def _fail(self, trial: Trial, device: str, rendering: Rendering, reason: str) -> None:
        """An attempt that was really made is invalid: try again, up to the plan's limit."""
        self._counted[trial.trial_id] = self._counted.get(trial.trial_id, 0) + 1
        if self._counted[trial.trial_id] >= self._material.plan.max_attempts:
            self._conclude(trial, "abandoned", rendering, reason=reason)
            return
        self._record(trial, "invalid", rendering, reason=reason)
        self._open[device].append(trial)

    def _conclude(
        self,
        trial: Trial,
        outcome: Outcome,
        rendering: Rendering,
        *,
        reason: str | None = None,
        prediction: Prediction | None = None,
    ) -> None:
        self._record(trial, outcome, rendering, reason=reason, prediction=prediction)
        self._concluded.add(trial.trial_id)
        self._samples.keep_played(trial, rendering)

    def _record(
        self,
        trial: Trial,
        outcome: Outcome,
        rendering: Rendering,
        *,
        reason: str | None = None,
        prediction: Prediction | None = None,
    ) -> None:
        number = self._tried.get(trial.trial_id, 0)
        self._tried[trial.trial_id] = number + 1
        self._finished.append(
            Attempt(
                trial.trial_id,
                number,
                outcome,
                reason=reason,
                label=prediction.label if prediction else None,
                snr_db=rendering.snr_db if np.isfinite(rendering.snr_db) else None,
                linf=rendering.linf,
                prediction=prediction,
            )
        )

    def _store(self) -> None:
        """Make durable what was finished, and only then let the devices forget it."""
        if self._finished:
            self._journal.record(self._finished)
            self._finished.clear()
            self._report()
        for (device, boot_id), seqs in self._acknowledge.items():
            for start in range(0, len(seqs), 1024):
                chunk = tuple(seqs[start : start + 1024])
                self._stage.link.send("acknowledge", Acknowledge(device=device, boot_id=boot_id, seqs=chunk))
        self._acknowledge.clear()

    def _report(self) -> None:
        self._progress(len(self._concluded), len(self._trials), f"in the {self._material.air.name} air")


def resume(
    folder: Path,
    load_material: Callable[[], Material],
    *,
    setup: Setup | None = None,
    crafting: Progress = silent,
    playing: Progress = silent,
) -> None:
    """Run every trial of a session folder that has no conclusion yet.

    Args:
        folder: made by :func:`rig.session.prepare.create`.
        load_material: gives the material of the folder's plan and air.
        setup: other station facts than the session began with.
        crafting: progress of making perturbations.
        playing: progress of the trials.

    Raises:
        PlanError: a bundle or clip is not what the session began with.
        UnavailableError: broker or device stay away; the journal is intact and may be resumed.
    """
    with Journal(folder) as journal:
        meta = journal.meta()
        if len(journal.concluded()) == len(journal.trials()):
            return
        material = load_material()
        _check_unchanged(folder, journal, material)
        samples = Samples(folder, material, journal.trials())
        # The stage first: a dead broker is told in a second, not after minutes of crafting.
        with Stage(material, setup or Setup(**meta["setup"]), folder) as stage:
            foreign.hold(folder, journal, stage.devices.values())
            journal.append("clocks", stage.measure_clocks())
            material.crafter.prepare(material.conditions, progress=crafting)
            _Runner(material, journal, stage, samples, playing).run()


def _check_unchanged(folder: Path, journal: Journal, material: Material) -> None:
    meta = journal.meta()
    for name, facts in meta["bundles"].items():
        bundle = material.bundles.get(name)
        if bundle is None or bundle.sha256 != facts["sha256"]:
            raise PlanError(f"session {folder}: bundle {name} changed since the session began, start a new session")
    if journal.clips() != [clip.record for clip in material.clips]:
        raise PlanError(f"session {folder}: the clips changed since the session began, start a new session")
    # None of them stands in a condition, and they decide how a trial sounds and what is right.
    room = material.plan.room.model_dump(mode="json") if material.plan.room else None
    recogniser = material.plan.recogniser.model_dump(mode="json") if material.plan.recogniser else None
    same = (meta["seed"], meta["room"], meta.get("recogniser")) == (material.plan.seed, room, recogniser)
    if not same or journal.conditions() != list(material.conditions):
        raise PlanError(f"session {folder}: {folder / 'plan.yaml'} changed since the session began, undo the change")
