"""Who may command this device: operators whose signatures are fresh and were never seen before.

A signature names the device, its boot, the verb, the body and a counter, the operator's UTC clock in nanoseconds.
Several machines may share an operator's key, and their messages may overtake each other: like RFC 6479, a window of
the last 10 s before the highest counter is remembered, and what lies before it is refused. A new boot has a new id, so
that nothing needs to be remembered across it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from nacl.signing import VerifyKey

from edge.bundle.signing import fingerprint, verify
from edge.errors import UsageError
from edge.messages import Envelope, parse

# A body of 64 KiB whose every second character is escaped in JSON, and what stands around it.
MAX_ENVELOPE_BYTES = (128 << 10) + 2048
WINDOW_NS = 10_000_000_000
# Of one operator; 400 commands a second for the whole window, 0.6 MB.
MAX_REMEMBERED = 4096


class ReplayWindow:
    """Which counters of one operator are used up."""

    def __init__(self, *, window_ns: int = WINDOW_NS, max_remembered: int = MAX_REMEMBERED) -> None:
        self._window_ns = window_ns
        self._max_remembered = max_remembered
        self._highest = -1
        # Everything up to here is refused: too old, or forgotten to bound the memory.
        self._floor = -1
        self._seen: set[int] = set()
        self._oldest: list[int] = []

    def __len__(self) -> int:
        return len(self._seen)

    def objection(self, counter: int) -> str | None:
        """Why ``counter`` is refused, None if it may be used."""
        if counter in self._seen:
            return "it was received before"
        if counter <= self._floor:
            behind_s = (self._highest - counter) / 1e9
            return (
                f"it is {behind_s:.1f} s older than the newest of its operator: do the operator's clocks agree?"
                " set them right, then restart this device"
            )
        return None

    def use(self, counter: int) -> None:
        """Use up a counter that nothing is objected to."""
        self._highest = max(self._highest, counter)
        self._floor = max(self._floor, self._highest - self._window_ns)
        self._seen.add(counter)
        heapq.heappush(self._oldest, counter)
        while self._oldest and (self._oldest[0] <= self._floor or len(self._oldest) > self._max_remembered):
            forgotten = heapq.heappop(self._oldest)
            self._seen.discard(forgotten)
            self._floor = max(self._floor, forgotten)


class Authority:
    """Judges envelopes; one thread opens them, another may exchange a key.

    Args:
        device: this device's name.
        boot_id: of this boot; commands for any other are refused.
        operators: the keys that may command; with none, nobody may.
    """

    def __init__(self, device: str, boot_id: str, operators: Sequence[VerifyKey] = ()) -> None:
        self._device = device
        self._boot_id = boot_id
        self._keys = {fingerprint(key): key for key in operators}
        self._windows = {name: ReplayWindow() for name in self._keys}

    @property
    def operators(self) -> tuple[str, ...]:
        """Fingerprints of the keys that may command."""
        return tuple(self._keys)

    def exchange(self, old: VerifyKey, new: VerifyKey) -> None:
        """Obey ``new`` instead of ``old`` from now on; nothing changes when ``old`` was not obeyed."""
        keys = dict(self._keys)
        if keys.pop(fingerprint(old), None) is None:
            return
        self._windows.setdefault(fingerprint(new), ReplayWindow())
        keys[fingerprint(new)] = new
        # One assignment: the thread that opens sees the keys before or after.
        self._keys = keys

    def open(self, verb: str, payload: bytes) -> bytes:
        """The body of an envelope that came on ``command/<verb>``; its counter is used up.

        Raises:
            UsageError: in one line, why it is not obeyed.
        """
        keys = self._keys
        if not keys:
            raise UsageError("this device obeys nobody: start it with --operator KEY.pub")
        if len(payload) > MAX_ENVELOPE_BYTES:
            raise UsageError(f"{len(payload)} bytes exceed the limit of {MAX_ENVELOPE_BYTES} for a command")
        envelope = parse(Envelope, payload)
        if envelope.device != self._device:
            raise UsageError(f"it is for device {envelope.device!r}, this is {self._device!r}")
        if envelope.verb != verb:
            raise UsageError(f"it was signed as {envelope.verb!r} and came as {verb[:40]!r}")
        if envelope.boot_id != self._boot_id:
            raise UsageError(f"it is for boot {envelope.boot_id}, this is boot {self._boot_id}")
        key = keys.get(envelope.operator)
        if key is None:
            raise UsageError(f"operator {envelope.operator} is not among those obeyed ({', '.join(keys)})")
        # Before the window: nobody else may learn from the answer which counters were used, or use one up.
        if verify(envelope.signed_bytes(), bytes.fromhex(envelope.signature), [key]) is None:
            raise UsageError(f"the signature is not that of operator {envelope.operator}")
        window = self._windows[envelope.operator]
        objection = window.objection(envelope.counter)
        if objection is not None:
            raise UsageError(f"{verb} refused: {objection}")
        window.use(envelope.counter)
        return envelope.body.encode()
