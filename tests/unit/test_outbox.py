from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.errors import UnavailableError
from edge.messages import Prediction, parse
from edge.outbox import outbox as module
from edge.outbox.outbox import Outbox


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
    monkeypatch.setattr(module, "LONGEST_REPEAT_S", 0.05)
    monkeypatch.setattr(module, "REPEAT_ROWS", 3)
    outbox = Outbox(tmp_path / "o")
    outbox.store([_prediction(seq) for seq in range(8)])
    seen: list[int] = []
    for _ in range(3):
        time.sleep(0.06)
        seen += _seqs(outbox.due())
    assert set(seen) == set(range(8))
    assert len(seen) == 9


def test_repeats_become_rare_while_nobody_acknowledges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock_s[0])
    outbox = Outbox(tmp_path / "o")
    outbox.store([_prediction(0), _prediction(1)])

    def repeated_at(until_s: float) -> list[float]:
        start_s, times = clock_s[0], []
        while clock_s[0] < start_s + until_s:
            clock_s[0] += 0.25
            if outbox.due():
                times.append(clock_s[0] - start_s)
        return times

    assert repeated_at(130) == [2, 4, 8, 16, 32, 62, 92, 122]
    outbox.acknowledge([("boot", 0)])
    assert repeated_at(7)[0] <= 2
    assert outbox.due(everything=True)
    assert repeated_at(7)[0] <= 2


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
from edge.outbox.outbox import Outbox
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


def _asked(seq: int, **more: object) -> Prediction:
    return _prediction(seq, trial_id=f"t{seq}").model_copy(update=more)


def test_benign_predictions_give_way_first_and_kinds_are_counted_over_restarts(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", limit_rows=4)
    outbox.store([_asked(0), _prediction(1), _prediction(2).model_copy(update={"trigger": "yes"}), _prediction(3)])
    outbox.store([_asked(4), _asked(5), _asked(6)])
    assert _seqs(outbox.due(everything=True)) == [2, 4, 5, 6]
    assert (outbox.dropped_benign, outbox.dropped_others, outbox.dropped) == (2, 1, 3)
    (published,) = outbox.store([_prediction(7)])
    assert parse(Prediction, published.payload).seq == 7, "it is said once all the same"
    assert _seqs(outbox.due(everything=True)) == [2, 4, 5, 6]
    outbox.close()
    again = Outbox(tmp_path / "o", limit_rows=4)
    assert (again.dropped_benign, again.dropped_others) == (3, 1)


def test_bytes_are_a_limit_too(tmp_path: Path) -> None:
    size = len(_asked(10).to_json())
    outbox = Outbox(tmp_path / "o", limit_bytes=5 * size + size // 2)
    for seq in range(10, 30):
        outbox.store([_asked(seq)])
    assert _seqs(outbox.due(everything=True)) == [25, 26, 27, 28, 29]
    outbox.store([_asked(30, scores=(0.25,) * (size // 2))])
    assert len(outbox) < 5
    outbox.close()
    again = Outbox(tmp_path / "o", limit_bytes=3 * size)
    again.store([_asked(31)])
    assert _seqs(again.due(everything=True))[-1] == 31
    assert len(again) <= 3


def test_a_batch_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEAT_BYTES", 3 * len(_asked(10).to_json()) + 10)
    outbox = Outbox(tmp_path / "o")
    outbox.store([_asked(seq) for seq in range(10, 15)])
    assert _seqs(outbox.due(everything=True)) == [10, 11, 12]
    outbox.acknowledge([("boot", seq) for seq in (10, 11, 12)])
    assert len(outbox) == 2


def test_a_file_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "o")
    database.executescript(
        "CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, boot_id TEXT NOT NULL, seq INTEGER NOT NULL,"
        " session_id TEXT, trial_id TEXT, attempt INTEGER, payload BLOB NOT NULL, UNIQUE (boot_id, seq)) STRICT;"
    )
    kept = _asked(3)
    database.execute(
        "INSERT INTO outbox (boot_id, seq, session_id, trial_id, attempt, payload) VALUES ('boot', 3, 's', 't3', 0, ?)",
        (kept.to_json(),),
    )
    database.commit()
    database.close()
    outbox = Outbox(tmp_path / "o")
    outbox.store([_prediction(4)])
    assert _seqs(outbox.due(everything=True)) == [3, 4]


def test_a_payload_that_the_disk_changed_is_dropped_not_repeated_for_ever(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o")
    outbox.store([_asked(seq) for seq in range(3)])
    outbox.close()
    database = sqlite3.connect(tmp_path / "o")
    database.execute("UPDATE outbox SET payload = CAST(replace(payload, 'yes', 'yas') AS BLOB) WHERE seq = 1")
    database.commit()
    database.close()
    again = Outbox(tmp_path / "o")
    assert _seqs(again.due(everything=True)) == [0, 2]
    assert (len(again), again.dropped_others) == (2, 1)


def test_a_file_that_breaks_while_it_is_used_is_replaced_and_salvaged(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o")
    outbox.store([_asked(seq) for seq in range(2000)])
    outbox._file._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray((tmp_path / "o").read_bytes())
    for page in range(60, 64):
        content[page * 4096 : (page + 1) * 4096] = os.urandom(4096)
    with (tmp_path / "o").open("r+b") as file:
        file.write(content)
    outbox._file._database.execute("PRAGMA cache_size = 0")
    seen: set[int] = set()
    for _ in range(30):
        batch = _seqs(outbox.due(everything=False)) or _seqs(outbox.due(everything=True))
        seen |= set(batch)
        outbox.acknowledge([("boot", seq) for seq in batch])
    assert outbox.set_aside is not None
    assert len(outbox) == 0
    assert len(seen) > 1900
    assert 0 < outbox.dropped_others <= 2000
    outbox.store([_asked(5000)])
    assert _seqs(outbox.due(everything=True)) == [5000]


_FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from edge.outbox.outbox import Outbox
from edge.messages import Prediction, parse

def prediction(seq):
    return Prediction(device="d", boot_id="boot", seq=seq, session_id="s", trial_id=f"t{seq}", attempt=0, stream_id="x",
        sample_index=0, t_monotonic_ns=0, t_utc_ns=0, label="yes", scores=(0.5,) * 200, latency_ms=1.0,
        bundle_sha256="0" * 64, pcm_sha256="0" * 64, xruns=0)

outbox = Outbox(Path(sys.argv[1]))
outbox.store([prediction(seq) for seq in range(20)])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
for seq in range(20, 40):
    assert len(outbox.store([prediction(seq)])) == 1
assert outbox.problem and len(outbox) == 40 and outbox.dropped == 0, (outbox.problem, len(outbox))
assert outbox.find("s", "t30", 0) is not None and outbox.find("s", "t3", 0) is not None
assert outbox.acknowledge([("boot", 5), ("boot", 25)]) == 2
due = [parse(Prediction, row.payload).seq for row in outbox.due(everything=True)]
assert sorted(due) == [seq for seq in range(40) if seq not in (5, 25)], due
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
outbox._retry_s = 0
outbox.due()
assert not outbox.problem and len(outbox) == 38, (outbox.problem, len(outbox))
outbox.close()
again = Outbox(Path(sys.argv[1]))
print(sorted(parse(Prediction, row.payload).seq for row in again.due(everything=True)))
"""


def test_a_disk_that_takes_nothing_costs_nothing(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path / "o"), root]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == str([seq for seq in range(40) if seq not in {5, 25}]).split()


def test_memory_is_bounded_while_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.outbox import overflow

    monkeypatch.setattr(overflow, "LIMIT_ROWS", 3)
    outbox = Outbox(tmp_path / "o")
    outbox._file._database.execute("PRAGMA max_page_count = 1")
    outbox._file._database.execute("PRAGMA query_only = 1")
    outbox.store([_asked(0), _prediction(1), _asked(2), _asked(3), _asked(4)])
    assert _seqs(outbox.due(everything=True)) == [4, 3, 2]
    assert (outbox.dropped_benign, outbox.dropped_others) == (1, 1)
    outbox._file._database.execute("PRAGMA query_only = 0")
    outbox._retry_s = 0
    outbox.due()
    outbox.close()
    again = Outbox(tmp_path / "o")
    assert (again.dropped_benign, again.dropped_others, len(again)) == (1, 1, 3)
