"""What the agent needs of updates; a device that runs a file it was given has none of it."""

from __future__ import annotations

from typing import NoReturn, Protocol

from edge.errors import UsageError
from edge.messages import Rollback, Rotate, Slot, SlotContent, Update, UpdateStatus


class Updates(Protocol):
    """Another bundle or key on a running device; no method waits for network or model.

    Used by the thread that calls :meth:`edge.agent.device.Device.run`, which must outlive the updating process.
    """

    @property
    def slot(self) -> Slot | None:
        """The slot that runs, for ``Info``; None without slots."""

    @property
    def confirmed(self) -> bool | None:
        """Whether it proved itself, for ``Info``; None without slots."""

    @property
    def spare(self) -> SlotContent | None:
        """What the other slot holds, for ``Info``; None where it is empty, and without slots."""

    @property
    def wants_restart(self) -> bool:
        """True when the pointer names another bundle than the running one: end in good order and re-execute."""

    def start(self, update: Update) -> None:
        """Begin an update; :meth:`poll` tells how it goes.

        Raises:
            UsageError: the reason, in one line, why this device does not begin it.
        """

    def rollback(self, rollback: Rollback) -> None:
        """Begin to go back to the bundle of the other slot.

        Raises:
            UsageError: the reason why this device does not.
        """

    def rotate(self, rotate: Rotate) -> None:
        """Trust the new key instead of the old one, durably; operator keys must then be read again.

        Raises:
            UsageError: the reason why this device does not.
        """

    def observe(self, *, healthy: bool) -> None:
        """Tell, at least once a second, whether the microphone is open and windows are computed.

        A bundle that is not confirmed yet is confirmed when this was so for a minute without a break.
        """

    def poll(self, boot_id: str) -> list[UpdateStatus]:
        """What to publish, retained, since the last call; the first call tells the outcome of the last update."""

    def close(self) -> None:
        """End the updating process, if any; what it has downloaded is kept."""


class NoUpdates:
    """The updates of a device that runs a file it was given: all are refused."""

    slot: Slot | None = None
    confirmed: bool | None = None
    spare: SlotContent | None = None
    wants_restart = False

    def start(self, update: Update) -> None:
        """Refuse.

        Raises:
            UsageError: always.
        """
        self._refuse(f"update to {update.bundle_name} version {update.bundle_version}")

    def rollback(self, rollback: Rollback) -> None:
        """Refuse.

        Raises:
            UsageError: always.
        """
        self._refuse(f"rollback to {rollback.bundle_sha256[:12]}")

    def rotate(self, rotate: Rotate) -> None:
        """Refuse.

        Raises:
            UsageError: always.
        """
        self._refuse(f"rotation of the {rotate.role} key")

    def observe(self, *, healthy: bool) -> None:
        """Do nothing."""

    def poll(self, boot_id: str) -> list[UpdateStatus]:
        """Nothing, ever."""
        return []

    def close(self) -> None:
        """Do nothing."""

    @staticmethod
    def _refuse(what: str) -> NoReturn:
        raise UsageError(
            f"{what}: this device runs a file given with --bundle and has no slots: install it with earshot device"
            " install, or start it without --bundle"
        )
