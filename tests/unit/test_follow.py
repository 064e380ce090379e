"""What the rig keeps of the predictions that it follows."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UnavailableError, UsageError
from edge.messages import Acknowledge, Message, Prediction
from rig.fleet.collection import Collection
from rig.fleet.follow import ACKNOWLEDGE_S, MAX_SEQS, Acknowledger
from rig.fleet.seen import Seen


def prediction(seq: int, *, device: str = "kitchen", boot_id: str = "b") -> Prediction:
    return Prediction(
        device=device,
        boot_id=boot_id,
        seq=seq,
        stream_id="x",
        sample_index=0,
        t_monotonic_ns=0,
        t_utc_ns=0,
        label="yes",
        scores=(0.5,),
        latency_ms=1.0,
        bundle_sha256="0" * 64,
        pcm_sha256="0" * 64,
        xruns=0,
    )


@given(st.lists(st.integers(0, 60)))
def test_seen_is_a_set(numbers: list[int]) -> None:
    seen, plain = Seen(), set()
    for number in numbers:
        assert seen.add(number) == (number not in plain)
        plain.add(number)
        assert len(seen) == len(plain)
    assert [number for number in range(62) if number in seen] == sorted(plain)
    runs = seen.runs
    assert all(first < end for first, end in runs)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(runs)), "runs never touch"


def test_a_month_without_a_gap_is_one_run() -> None:
    seen = Seen()
    for number in range(100_000):
        seen.add(number)
    assert seen.runs == [(0, 100_000)]


def test_a_prediction_is_kept_once_also_after_a_restart(tmp_path: Path) -> None:
    with Collection(tmp_path / "c") as collection:
        assert len(collection.store([prediction(0), prediction(1), prediction(0)])) == 2
        assert collection.store([prediction(1)]) == []
        assert len(collection.store([prediction(1, boot_id="c"), prediction(1, device="hall")])) == 2
        assert len(collection) == 4
    with Collection(tmp_path / "c") as collection:
        assert collection.store([prediction(0), prediction(1), prediction(1, device="hall")]) == []
        assert [each.seq for each in collection.store([prediction(2)])] == [2]
        assert list(collection.runs()) == [
            ("hall", "b", [(1, 2)]),
            ("kitchen", "b", [(0, 3)]),
            ("kitchen", "c", [(1, 2)]),
        ]


def test_only_one_process_follows_into_a_file(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
    code += "from rig.fleet.collection import Collection\nCollection(Path(sys.argv[2]))"
    with Collection(tmp_path / "c") as collection:
        collection.store([prediction(0)])
        command = [sys.executable, "-c", code, root, str(tmp_path / "c")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert UnavailableError.__name__ in done.stderr
    assert "another process writes to it" in done.stderr


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE predictions (x INTEGER)")
    for name in ("text", "other", "absent/c"):
        with pytest.raises(UsageError, match="choose a new file"):
            Collection(tmp_path / name)


class Sent:
    """Stands for the link: remembers what it is asked to send."""

    def __init__(self) -> None:
        self.commands: list[Acknowledge] = []
        self.away: set[str] = set()

    def send(self, verb: str, command: Message) -> None:
        assert verb == "acknowledge"
        assert isinstance(command, Acknowledge)
        if command.device in self.away:
            raise UnavailableError("a thousand commands wait for it already")
        self.commands.append(command)


def test_acknowledgements_wait_for_each_other_and_are_spread() -> None:
    link = Sent()
    acknowledger = Acknowledger(link)  # type: ignore[arg-type]
    acknowledger.note([prediction(0), prediction(1)], 10.0)
    acknowledger.note([prediction(2), prediction(0, device="hall")], 10.5)
    acknowledger.send(10.0 + ACKNOWLEDGE_S / 2)
    assert link.commands == []
    acknowledger.send(10.0 + ACKNOWLEDGE_S)
    assert [(each.device, each.seqs) for each in link.commands] == [("kitchen", (0, 1, 2))]
    acknowledger.note([prediction(seq, device="attic") for seq in range(MAX_SEQS + 1)], 11.0)
    assert acknowledger.is_due(10.5 + ACKNOWLEDGE_S)
    acknowledger.send(99.0, at_most=1)
    assert link.commands[-1].device == "hall"
    acknowledger.send(99.0, at_most=1)
    assert [len(each.seqs) for each in link.commands[2:]] == [MAX_SEQS, 1]
    assert not acknowledger.is_due(99.0)


def test_a_device_that_is_away_does_not_hold_up_the_others() -> None:
    link = Sent()
    link.away = {"attic"}
    acknowledger = Acknowledger(link)  # type: ignore[arg-type]
    acknowledger.note([prediction(0, device="attic"), prediction(0)], 0.0)
    acknowledger.send(float("inf"))
    assert [each.device for each in link.commands] == ["kitchen"]
