from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.agent import outbox as module
from edge.agent.outbox import Outbox
from edge.errors import UnavailableError
from edge.messages import Prediction, parse


def _prediction(seq: int, *, boot_id: str = "boot", trial_id: str | None = None) -> Prediction:
    return Prediction(
        device="d",
        boot_id=boot_id,
        seq=seq,
        session_id="s" if trial_id else None,
        trial_id=trial_id,
        attempt=0 if trial_id else None,
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


def _seqs(rows: list[module.Stored]) -> list[int]:
    return [parse(Prediction, row.payload).seq for row in rows]


def test_what_is_not_acknowledged_survives_and_is_due_at_once(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o")
    outbox.store([_prediction(seq) for seq in range(5)])
    assert outbox.acknowledge([("boot", 1), ("boot", 3), ("other", 0), ("boot", 99)]) == 2
    assert outbox.due() == []
    outbox.close()
    again = Outbox(tmp_path / "o")
    assert len(again) == 3
    assert _seqs(again.due()) == [0, 2, 4]
    assert again.due() == []


def test_rows_repeat_after_their_time_and_at_once_after_a_new_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPEAT_S", 0.1)
    outbox = Outbox(tmp_path / "o")
    outbox.store([_prediction(0)])
    assert outbox.due() == []
    assert _seqs(outbox.due(everything=True)) == [0]
    assert outbox.due() == []
    time.sleep(0.12)
    assert _seqs(outbox.due()) == [0]


def test_no_row_starves_behind_others_that_nobody_acknowledges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEAT_S", 0.05)
    monkeypatch.setattr(module, "REPEAT_ROWS", 3)
    outbox = Outbox(tmp_path / "o")
    outbox.store([_prediction(seq) for seq in range(8)])
    seen: list[int] = []
    for _ in range(3):
        time.sleep(0.06)
        seen += _seqs(outbox.due())
    assert set(seen) == set(range(8))
    assert len(seen) == 9


def test_the_next_batch_comes_as_soon_as_the_last_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPEAT_ROWS", 3)
    outbox = Outbox(tmp_path / "o")
    outbox.store([_prediction(seq) for seq in range(5)])
    assert _seqs(outbox.due(everything=True)) == [0, 1, 2]
    assert outbox.due() == []
    outbox.acknowledge([("boot", seq) for seq in (0, 1, 2)])
    assert _seqs(outbox.due()) == [3, 4]


def test_the_oldest_give_way_and_are_counted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", limit_rows=4)
    outbox.store([_prediction(seq) for seq in range(3)])
    outbox.store([_prediction(seq) for seq in range(3, 7)])
    assert outbox.dropped == 3
    assert len(outbox) == 4
    assert _seqs(outbox.due(everything=True)) == [3, 4, 5, 6]


def test_a_kept_answer_is_found_by_its_trial(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o")
    outbox.store([_prediction(0, trial_id="t"), _prediction(1, trial_id="u"), _prediction(2)])
    stored = outbox.find("s", "u", 0)
    assert stored is not None
    assert parse(Prediction, stored.payload).seq == 1
    assert outbox.find("s", "u", 1) is None
    outbox.acknowledge([("boot", 1)])
    assert outbox.find("s", "u", 0) is None


def test_the_same_number_is_refused_by_the_disk_and_changes_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o")
    outbox.store([_prediction(0)])
    with pytest.raises(sqlite3.IntegrityError):
        outbox.store([_prediction(1), _prediction(0)])
    assert len(outbox) == 1
    outbox.store([_prediction(1)])
    assert len(outbox) == 2


@pytest.mark.parametrize("content", [b"no database at all " * 300, os.urandom(20_000)])
def test_a_damaged_file_is_put_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "o").write_bytes(content)
    outbox = Outbox(tmp_path / "o")
    assert outbox.set_aside is not None
    assert outbox.set_aside.read_bytes() == content
    outbox.store([_prediction(0)])
    assert len(outbox) == 1


def test_a_place_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="--state-dir"):
        Outbox(tmp_path / "file" / "o")


def test_what_was_stored_survives_a_kill(tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from edge.agent.outbox import Outbox
from edge.messages import Prediction
outbox = Outbox(Path(sys.argv[1]))
for seq in range(100_000):
    outbox.store([Prediction(device="d", boot_id="boot", seq=seq, stream_id="x", sample_index=0, t_monotonic_ns=0,
        t_utc_ns=0, label="yes", scores=(0.5,), latency_ms=1.0, bundle_sha256="0" * 64, pcm_sha256="0" * 64, xruns=0)])
    print(seq, flush=True)
"""
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "o"), root], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(50):
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    said = process.stdout.read().split()
    process.wait()
    last = int(said[-1]) if said else last
    assert len(Outbox(tmp_path / "o")) >= last + 1
