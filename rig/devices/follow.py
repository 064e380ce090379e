"""Follow devices: store what they predict, and only then let them forget it."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from edge.errors import UnavailableError
from edge.messages import Acknowledge, Prediction
from rig.devices.collection import Collection
from rig.devices.events import Event, Events, Received
from rig.devices.link import Link

# A device repeats after 2 s what is not acknowledged by then; a signature for each prediction would cost more than the
# prediction.
ACKNOWLEDGE_S = 1.0
MAX_SEQS = 1024
# A commit is a wait for the disk: under load one serves all that came meanwhile.
COMMIT_S = 0.2
# Under load many small steps would make the network's thread wait for this one at each of its messages.
BUSY_EVENTS = 4
GATHER_S = 0.004
_POLL_S = 0.05

OnPredictions = Callable[[Sequence[Prediction]], None]


class Acknowledger:
    """Tells each device, a second after the first of them, which predictions are stored; one thread."""

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

    def send(self, now_s: float) -> None:
        """Acknowledge what has waited long enough; ``math.inf`` sends everything."""
        while self._due:
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
        self.stored = 0
        self.duplicates = 0
        self._events = events
        self._collection = collection
        self._sessions = sessions
        self._on_predictions = on_predictions
        self._acknowledger = Acknowledger(link)
        self._unstored: list[Prediction] = []
        self._committed_s = 0.0

    @property
    def acknowledgements(self) -> int:
        """How many messages acknowledged them."""
        return self._acknowledger.sent

    def run(self, stop: threading.Event) -> None:
        """Follow until ``stop`` is set; what came by then is stored and acknowledged.

        Raises:
            sqlite3.Error: the disk does not take what was predicted.
        """
        events = 0
        while not stop.is_set():
            if events > BUSY_EVENTS:
                time.sleep(GATHER_S)
            events = self.step()
        self._commit(time.monotonic())
        self._acknowledger.send(float("inf"))

    def step(self) -> int:
        """Take what has come, waiting 50 ms for it at most; returns how many events there were."""
        batch = _drain(self._events, _POLL_S)
        predictions = [event.report for event in batch if isinstance(event, Received)]
        wanted = [each for each in predictions if isinstance(each, Prediction) and self._wants(each)]
        if wanted and self._on_predictions is not None:
            self._on_predictions(wanted)
        self._unstored += wanted
        now_s = time.monotonic()
        if self._unstored and now_s - self._committed_s >= COMMIT_S:
            self._commit(now_s)
        self._acknowledger.send(now_s)
        return len(batch)

    def _wants(self, prediction: Prediction) -> bool:
        return self._sessions or prediction.session_id is None

    def _commit(self, now_s: float) -> None:
        if not self._unstored:
            return
        new = self._collection.store(self._unstored)
        self.stored += len(new)
        self.duplicates += len(self._unstored) - len(new)
        self._acknowledger.note(self._unstored, now_s)
        self._unstored = []
        self._committed_s = now_s


def _drain(events: Events, timeout_s: float) -> list[Event]:
    batch: list[Event] = []
    try:
        batch.append(events.get(timeout=timeout_s))
        while True:
            batch.append(events.get_nowait())
    except queue.Empty:
        return batch
