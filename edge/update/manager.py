"""The agent's side of updates: judge the command, start the updating process, tell its stages, confirm."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from edge.errors import UsageError
from edge.messages import Rollback, Rotate, Slot, SlotContent, Update, UpdateStatus
from edge.update.job import Job, Patience, Stage
from edge.update.pointer import Content, Outcome, Pointer, one_line
from edge.update.process import UpdatingProcess
from edge.update.slots import Slots
from edge.update.store import other

log = logging.getLogger(__name__)

HEALTHY_S = 60.0
DEFAULT_BUDGET_MS = 500.0
# TensorRT builds its engines for minutes; what takes longer hangs.
TRIAL_S = 1200.0


def latency_budget_ms(hop_ms: float | None) -> float:
    """What one window may take: half of the hop; half a second where the device only listens on command."""
    return DEFAULT_BUDGET_MS if hop_ms is None else hop_ms / 2


class SlotUpdates:
    """Implements :class:`edge.agent.updates.Updates` for a device with slots.

    Args:
        device: its name, for the statuses.
        folder: its state folder.
        pointer: as :meth:`edge.update.slots.Slots.choose` left it.
        budget_ms: what one window of a new bundle may take, see :func:`latency_budget_ms`; None: any time.
        threads, members, provider: how the agent runs a bundle, see :func:`edge.bundle.opening.open_classifier`.
        healthy_s: a new bundle is confirmed when it was healthy for so long without a break.
        runs: windows by which a new bundle's latency is measured.
        patience: of the download.
        trial_s: so long a bundle is verified and tried before it is given up.
    """

    def __init__(
        self,
        *,
        device: str,
        folder: Path,
        pointer: Pointer,
        budget_ms: float | None,
        threads: int = 1,
        members: int | None = None,
        provider: str | None = None,
        healthy_s: float = HEALTHY_S,
        runs: int = 200,
        patience: Patience | None = None,
        trial_s: float = TRIAL_S,
    ) -> None:
        self._device = device
        self._slots = Slots(folder)
        self._running = pointer.active
        self._pointer = pointer
        self._healthy_s = healthy_s
        self._healthy_since_s: float | None = None
        self._patience = patience or Patience()
        self._trial_s = trial_s
        self._trial_since_s: float | None = None
        self._how = {
            "latency_budget_ms": budget_ms,
            "runs": runs,
            "threads": threads,
            "members": members,
            "provider": provider,
        }
        self._process: UpdatingProcess | None = None
        self._goal: Content | None = None
        self._last_stage: str | None = None
        self._waiting: list[Outcome] = [pointer.last_update] if pointer.last_update else []

    @property
    def slot(self) -> Slot:
        """The slot that runs."""
        return self._running

    @property
    def confirmed(self) -> bool:
        """Whether its bundle proved itself."""
        return self._pointer.confirmed and not self.wants_restart

    @property
    def spare(self) -> SlotContent | None:
        """What the other slot holds."""
        there = self._pointer.slots.get(other(self._running))
        return None if there is None else SlotContent(name=there.name, version=there.version, sha256=there.sha256)

    @property
    def wants_restart(self) -> bool:
        """True when the pointer names another slot than the running one."""
        return self._pointer.active != self._running

    def start(self, update: Update) -> None:
        """Begin an update; one that is still downloading gives way to it.

        Raises:
            UsageError: the reason, in one line, why this device does not begin it.
        """
        what = f"update to {update.bundle_name} version {update.bundle_version}"
        pointer = self._free(what)
        runs = pointer.slots.get(pointer.active)
        if runs is not None and runs.sha256 == update.bundle_sha256:
            raise UsageError(f"{what}: it is what runs here")
        pointer.check_version(
            update.bundle_name, update.bundle_version, update.bundle_sha256, downgrade=update.downgrade
        )
        goal = Content(
            sha256=update.bundle_sha256, name=update.bundle_name, version=update.bundle_version, key="0" * 16
        )
        self._begin(update, goal)

    def rollback(self, rollback: Rollback) -> None:
        """Begin to go back to the bundle of the other slot.

        Raises:
            UsageError: the reason why this device does not.
        """
        what = f"rollback to {rollback.bundle_sha256[:12]}"
        pointer = self._free(what)
        there = pointer.slots.get(other(pointer.active))
        if there is None:
            raise UsageError(f"{what}: the other slot is empty, send an update")
        if there.sha256 != rollback.bundle_sha256:
            raise UsageError(
                f"{what}: slot {other(pointer.active)} holds {there.name} version {there.version}"
                f" ({there.sha256[:12]}): roll back to that one, or send an update"
            )
        self._begin(rollback, there)

    def rotate(self, rotate: Rotate) -> None:
        """Trust the new key instead of the old one, durably.

        Raises:
            UsageError: the reason why this device does not.
        """
        if self._process is not None:
            raise UsageError(f"rotation of the {rotate.role} key: an update is on its way, try again when it is done")
        try:
            self._slots.rotate(rotate)
        except OSError as error:
            raise UsageError(
                f"rotation of the {rotate.role} key: {error}: see to the disk, then say it again"
            ) from None
        log.info("the %s key was rotated", rotate.role)

    def observe(self, *, healthy: bool) -> None:
        """Confirm the running bundle when it was healthy for long enough without a break."""
        if self._pointer.confirmed or self.wants_restart:
            return
        now_s = time.monotonic()
        if not healthy:
            self._healthy_since_s = None
        elif self._healthy_since_s is None:
            self._healthy_since_s = now_s
        elif now_s - self._healthy_since_s >= self._healthy_s:
            self._healthy_since_s = None
            self.confirm()

    def confirm(self) -> None:
        """Confirm the running bundle now; a disk that does not take it is tried again after the next healthy time."""
        before = self._pointer.last_update
        try:
            self._pointer = self._slots.confirm()
        except (UsageError, OSError) as error:
            log.warning("cannot confirm slot %s: %s", self._running, error)
            return
        log.info("slot %s is confirmed", self._running)
        if self._pointer.last_update is not None and self._pointer.last_update != before:
            self._waiting.append(self._pointer.last_update)

    def poll(self, boot_id: str) -> list[UpdateStatus]:
        """What to publish, retained, since the last call; the first call tells the outcome of the last update."""
        statuses = [_of_outcome(outcome, self._device, boot_id) for outcome in self._waiting]
        self._waiting.clear()
        if self._process is None or self._goal is None:
            return statuses
        for stage in self._stages(self._process):
            self._last_stage = stage.stage
            statuses.append(_of_stage(stage, self._goal, self._device, boot_id))
            if stage.stage == "failed":
                self._note_failure(self._goal, stage)
        if self._process.over:
            self._process = None
            self._pointer = self._slots.pointer() or self._pointer
        return statuses

    def _stages(self, process: UpdatingProcess) -> list[Stage]:
        """What the process has said, and that it failed when it has been trying for too long."""
        stages = process.stages()
        now_s = time.monotonic()
        if self._trial_since_s is None and any(stage.stage in {"verifying", "testing"} for stage in stages):
            self._trial_since_s = now_s
        if not process.over and self._trial_since_s is not None and now_s - self._trial_since_s > self._trial_s:
            process.end()
            detail = f"its trial took more than {self._trial_s:g} s and was broken off: the slot that runs is as it was"
            stages.append(Stage(stage="failed", detail=detail))
        return stages

    def close(self) -> None:
        """End the updating process, if any; what it has downloaded is kept."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _free(self, what: str) -> Pointer:
        if self.wants_restart:
            raise UsageError(f"{what}: this device is about to restart into another bundle, try again then")
        if self._process is not None and self._last_stage not in {None, "downloading"}:
            raise UsageError(f"{what}: another bundle is being tried, try again when that is done")
        try:
            return self._slots.confirmed_pointer()
        except UsageError as error:
            raise UsageError(f"{what}: {error}") from None

    def _begin(self, task: Update | Rollback, goal: Content) -> None:
        self.close()
        job = Job.model_validate(
            {
                "task": task,
                "folder": self._slots.folder.resolve(),
                "parent_pid": os.getpid(),
                "patience": self._patience,
                **self._how,
            }
        )
        self._goal, self._last_stage, self._trial_since_s = goal, None, None
        try:
            self._process = UpdatingProcess(job)
        except OSError as error:
            raise UsageError(f"the updating process does not start ({error}): see to the device") from None
        log.info("began: %s version %d (%s)", goal.name, goal.version, goal.sha256[:12])

    def _note_failure(self, goal: Content, stage: Stage) -> None:
        log.warning("%s version %d was not installed: %s", goal.name, goal.version, stage.detail)
        outcome = Outcome(
            stage="failed",
            bundle_name=goal.name,
            bundle_version=goal.version,
            bundle_sha256=goal.sha256,
            detail=one_line(stage.detail),
        )
        try:
            self._slots.note(outcome)
        except (UsageError, OSError) as error:
            log.warning("cannot keep how the update ended: %s", error)


def _of_stage(stage: Stage, goal: Content, device: str, boot_id: str) -> UpdateStatus:
    return UpdateStatus(
        device=device,
        boot_id=boot_id,
        stage=stage.stage,
        bundle_name=goal.name,
        bundle_version=goal.version,
        bundle_sha256=goal.sha256,
        slot=stage.slot,
        done_bytes=stage.done_bytes,
        total_bytes=stage.total_bytes,
        detail=one_line(stage.detail),
    )


def _of_outcome(outcome: Outcome, device: str, boot_id: str) -> UpdateStatus:
    return UpdateStatus(device=device, boot_id=boot_id, **outcome.model_dump())
