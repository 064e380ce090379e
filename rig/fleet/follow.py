"""Follow devices: store what they predict, and only then let them forget it."""

from __future__ import annotations

import gc
import math
import queue
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

from edge.errors import UnavailableError
from edge.messages import Acknowledge, Prediction
from rig.devices.events import Events, Received
from rig.devices.link import Link
from rig.fleet.collection import Collection

# A device repeats after 2 s what is not acknowledged by then; a signature for each prediction would cost more than the
# prediction.
ACKNOWLEDGE_S = 0.7
MAX_SEQS = 1024
# Each costs 0.1 ms of signing and sending: a thousand in a row would keep what comes meanwhile waiting.
MAX_AT_ONCE = 3
# A commit waits for the disk, half a second where the disk is busy: one serves all that came meanwhile.
COMMIT_S = 0.1
# Under load many small steps would make the network's thread wait for this one at each of its messages.
BUSY_EVENTS = 4
GATHER_S = 0.002
_POLL_S = 0.05

T = TypeVar("T")
OnPredictions = Callable[[Sequence[Prediction]], None]


def tune_process() -> None:
    """Set up the interpreter of a process that does nothing but follow a large fleet; call it once all is imported."""
    # At Python's own 5 ms the thread that listens waits so long for the one that writes, at every system call.
    sys.setswitchinterval(0.0005)
    # A full collection walks over everything that was ever imported, 50 ms at a time; none of it goes away.
    gc.collect()
    gc.freeze()


class Acknowledger:
    """Tells each device, 0.7 s after the first of them, which predictions are stored; one thread."""

    def __init__(self, link: Link) -> None:
        self.sent = 0
        self._link = link
        self._due: OrderedDict[tuple[str, str], tuple[float, list[int]]] = OrderedDict()

    def note(self, predictions: Sequence[Prediction], now_s: float) -> None:
        """These are stored, new or not."""
        for prediction in predictions:
            key = (prediction.device, prediction.boot_id)
            due = self._due.get(key)
            if due is None:
                self._due[key] = (now_s + ACKNOWLEDGE_S, [prediction.seq])
            else:
                due[1].append(prediction.seq)

    def is_due(self, now_s: float) -> bool:
        """Whether something has waited long enough."""
        return bool(self._due) and next(iter(self._due.values()))[0] <= now_s

    def send(self, now_s: float, *, at_most: int | None = None) -> None:
        """Acknowledge what has waited long enough, to ``at_most`` devices; ``math.inf`` is long enough for all."""
        for _ in range(len(self._due) if at_most is None else min(at_most, len(self._due))):
            (device, boot_id), (due_s, seqs) = next(iter(self._due.items()))
            if due_s > now_s:
                return
            del self._due[device, boot_id]
            self._acknowledge(device, boot_id, seqs)

    def _acknowledge(self, device: str, boot_id: str, seqs: Sequence[int]) -> None:
        for start in range(0, len(seqs), MAX_SEQS):
            command = Acknowledge(device=device, boot_id=boot_id, seqs=tuple(seqs[start : start + MAX_SEQS]))
            try:
                self._link.send("acknowledge", command)
            except UnavailableError:
                # The device is away and a thousand commands wait for it; it will repeat its predictions.
                return
            self.sent += 1


class _Writer:
    """Stores in a thread of its own: who waits for the disk cannot listen."""

    def __init__(self, collection: Collection) -> None:
        self.new = 0
        self.duplicates = 0
        self.stored: queue.SimpleQueue[Sequence[Prediction]] = queue.SimpleQueue()
        self.failure: Exception | None = None
        self._collection = collection
        self._waiting: queue.SimpleQueue[Sequence[Prediction] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="collection", daemon=True)
        self._thread.start()

    def put(self, predictions: Sequence[Prediction]) -> None:
        self._waiting.put(predictions)

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _write(self) -> None:
        ended = False
        while not ended:
            batches = _drain(self._waiting, None)
            ended = None in batches
            batch = [prediction for each in batches if each is not None for prediction in each]
            try:
                new = len(self._collection.store(batch))
            except Exception as error:  # noqa: BLE001 - raised by the thread that follows
                self.failure = error
                return
            self.new += new
            self.duplicates += len(batch) - new
            self.stored.put(batch)
            if not ended:
                time.sleep(COMMIT_S)


class Follower:
    """Stores predictions of devices in a collection and acknowledges them.

    Args:
        link: connected, with an operator; hears predictions and puts them on ``events``.
        events: the link's queue.
        collection: where they are kept.
        sessions: also store and acknowledge what a session asked for; otherwise that is left to the session.
        on_predictions: called with each batch as it comes, duplicates included, before it is stored.
    """

    def __init__(
        self,
        link: Link,
        events: Events,
        collection: Collection,
        *,
        sessions: bool = False,
        on_predictions: OnPredictions | None = None,
    ) -> None:
        self._events = events
        self._sessions = sessions
        self._on_predictions = on_predictions
        self._acknowledger = Acknowledger(link)
        self._writer = _Writer(collection)

    @property
    def stored(self) -> int:
        """How many predictions are new and on the disk."""
        return self._writer.new

    @property
    def duplicates(self) -> int:
        """How many were there already."""
        return self._writer.duplicates

    @property
    def acknowledgements(self) -> int:
        """How many messages acknowledged them."""
        return self._acknowledger.sent

    def run(self, stop: threading.Event) -> None:
        """Follow until ``stop`` is set; what came by then is stored and acknowledged. Called once.

        Raises:
            sqlite3.Error: the disk does not take what was predicted.
        """
        events = 0
        try:
            while not stop.is_set():
                if events > BUSY_EVENTS:
                    time.sleep(GATHER_S)
                events = self._step()
        finally:
            self._writer.close()
            self._note_stored()
            self._acknowledger.send(math.inf)

    def _step(self) -> int:
        """Take what has come, waiting 50 ms for it at most; returns how many events there were."""
        batch = _drain(self._events, 0 if self._acknowledger.is_due(time.monotonic()) else _POLL_S)
        predictions = [event.report for event in batch if isinstance(event, Received)]
        wanted = [each for each in predictions if isinstance(each, Prediction) and self._wants(each)]
        if wanted:
            if self._on_predictions is not None:
                self._on_predictions(wanted)
            self._writer.put(wanted)
        self._note_stored()
        self._acknowledger.send(time.monotonic(), at_most=MAX_AT_ONCE)
        return len(batch)

    def _wants(self, prediction: Prediction) -> bool:
        return self._sessions or prediction.session_id is None

    def _note_stored(self) -> None:
        if self._writer.failure is not None:
            raise self._writer.failure
        now_s = time.monotonic()
        for predictions in _drain(self._writer.stored, 0):
            self._acknowledger.note(predictions, now_s)


def _drain(source: queue.SimpleQueue[T], timeout_s: float | None) -> list[T]:
    """Everything on a queue, after waiting for the first; None waits for ever."""
    batch: list[T] = []
    try:
        batch.append(source.get(block=timeout_s != 0, timeout=timeout_s or None))
        while True:
            batch.append(source.get_nowait())
    except queue.Empty:
        return batch
