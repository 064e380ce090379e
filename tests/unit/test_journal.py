import sqlite3

import pytest

from edge.errors import PlanError, UnavailableError
from rig import journal
from rig.journal import Attempt, ClipRecord, Journal, Trial
from rig.plan import Condition


@pytest.fixture
def folder(tmp_path):
    journal.create(
        tmp_path,
        meta={"session_id": "s", "n": 2},
        conditions=[Condition(bundle="m", attack="benign"), Condition(bundle="m", attack="fgsm", on="m", eps=0.1)],
        clips=[ClipRecord("yes/a.wav", "yes", "0" * 64)],
        trials=[Trial("0000000", 1, 0, 0), Trial("0000001", 0, 0, 0)],
    )
    return tmp_path


def test_everything_planned_reads_back(folder):
    with Journal(folder) as opened:
        assert opened.meta() == {"session_id": "s", "n": 2}
        assert [trial.trial_id for trial in opened.trials()] == ["0000000", "0000001"]
        assert opened.conditions()[1].eps == 0.1
        assert opened.clips()[0].label == "yes"
        assert opened.concluded() == set()


def test_a_trial_is_concluded_once(folder):
    with Journal(folder) as opened:
        opened.record([Attempt("0000000", 0, "invalid", reason="device lost")])
        assert opened.concluded() == set()
        opened.record([Attempt("0000000", 1, "valid", label="yes"), Attempt("0000000", 2, "valid", label="no")])
        opened.record([Attempt("0000000", 1, "valid", label="no"), Attempt("0000000", 3, "abandoned", reason="x")])
        assert opened.concluded() == {"0000000"}
        assert opened.tried() == {"0000000": 2}
        assert [attempt.label for attempt in opened.attempts()] == [None, "yes"]


def test_an_attempt_of_an_unplanned_trial_is_refused_whole(folder):
    with Journal(folder) as opened:
        with pytest.raises(sqlite3.IntegrityError):
            opened.record([Attempt("0000000", 0, "valid"), Attempt("9", 0, "valid")])
        assert opened.concluded() == set()


def test_a_second_writer_waits_outside(folder):
    with Journal(folder), pytest.raises(UnavailableError, match="another rig"):
        Journal(folder)
    with Journal(folder), Journal(folder, read_only=True) as reader:
        assert len(reader.trials()) == 2


def test_a_folder_holds_one_session(folder):
    with pytest.raises(PlanError, match="session resume"):
        journal.create(folder, meta={}, conditions=[], clips=[], trials=[])


def test_a_journal_cut_short_while_being_made_does_not_count(tmp_path):
    (tmp_path / "journal.sqlite.new").write_bytes(b"half a database")
    journal.create(tmp_path, meta={"k": 1}, conditions=[], clips=[], trials=[])
    with Journal(tmp_path) as opened:
        assert opened.meta() == {"k": 1}


def test_no_journal_is_one_line(tmp_path):
    with pytest.raises(PlanError, match="session run"):
        Journal(tmp_path)


def test_a_list_of_facts_grows(folder):
    with Journal(folder) as opened:
        opened.append("clocks", [{"device": "a"}])
        opened.append("clocks", [{"device": "a"}, {"device": "b"}])
        assert opened.meta()["clocks"] == [{"device": "a"}, {"device": "a"}, {"device": "b"}]
