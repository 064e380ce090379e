"""Whatever comes from the network: it is judged, counted, and never more than one bounded line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.agent.commands import MAX_WAITING, Commands
from edge.agent.limiter import Limiter
from edge.messages import Acknowledge, Listen

LISTEN = Listen(device="d", session_id="s", trial_id="t", attempt=0, stream_id="a", sample_index=0)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


class _Door:
    def __init__(self) -> None:
        self.complaints: list[tuple[str, str]] = []
        self.woken = 0
        self.commands = Commands("d", complain=lambda *c: self.complaints.append(c), on_command=self._wake)

    def _wake(self) -> None:
        self.woken += 1


def test_a_good_command_comes_through() -> None:
    door = _Door()
    acknowledge = Acknowledge(device="d", boot_id="b", seqs=(1, 2))
    door.commands.receive("listen", LISTEN.to_json())
    door.commands.receive("acknowledge", acknowledge.to_json())
    assert door.commands.take() == LISTEN
    assert door.commands.take() == acknowledge
    assert door.commands.take() is None
    assert (door.woken, door.commands.rejected, door.complaints) == (2, 0, [])


@pytest.mark.parametrize(
    ("verb", "payload", "complaint"),
    [
        ("listen", b"", "Listen"),
        ("listen", b"\xff\xfe", "Listen"),
        ("listen", b"[" * 200_000, "Listen"),
        ("listen", b" " * (2 << 20), "exceed the limit"),
        ("listen", LISTEN.to_json().replace(b'"d"', b'"other"'), "it is for device 'other', this is 'd'"),
        ("listen", LISTEN.to_json().replace(b'"attempt":0', b'"attempt":-1'), "attempt"),
        ("listen", LISTEN.to_json().replace(b'"attempt":0', b'"attempt":' + b"9" * 40), "attempt"),
        ("listen", LISTEN.to_json()[:-1] + b',"extra":1}', "extra"),
        ("acknowledge", json.dumps({"device": "d", "boot_id": "b", "seqs": [1] * 1025}).encode(), "seqs"),
        ("reboot", b"{}", "unknown command 'reboot'"),
    ],
)
def test_a_bad_command_is_one_complaint(verb: str, payload: bytes, complaint: str) -> None:
    door = _Door()
    door.commands.receive(verb, payload)
    assert door.commands.take() is None
    assert door.commands.rejected == 1
    [(said_verb, detail)] = door.complaints
    assert said_verb == verb
    assert complaint in detail
    assert len(detail) <= 300
    assert "\n" not in detail


def test_a_verb_that_cannot_stand_in_a_reply_gets_none() -> None:
    door = _Door()
    door.commands.receive("Ünfug\n\x1b[31m" * 50, b"{}")
    assert door.commands.rejected == 1
    assert door.complaints == []


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["listen", "acknowledge", "x"]) | st.text(max_size=30),
    st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_no_payload_breaks_the_door(verb: str, payload: bytes) -> None:
    door = _Door()
    door.commands.receive(verb, payload)
    assert door.commands.rejected == 1
    assert door.commands.take() is None


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(LISTEN.model_dump(by_alias=True))), JSON)
def test_no_value_of_a_key_breaks_the_door(key: str, value: object) -> None:
    door = _Door()
    payload = {**LISTEN.model_dump(by_alias=True), key: value}
    door.commands.receive("listen", json.dumps(payload).encode())
    assert (door.commands.rejected == 1) == (door.commands.take() is None)


def test_a_flood_is_bounded_in_memory_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    door = _Door()
    for _ in range(MAX_WAITING + 500):
        door.commands.receive("listen", LISTEN.to_json())
    assert door.commands.overflowed == 500
    for _ in range(500):
        door.commands.receive("listen", b"?")
    assert door.commands.rejected == 500
    assert len(caplog.records) < 30
    assert len(door.complaints) < 30


def test_the_limiter_counts_what_it_holds_back() -> None:
    limiter = Limiter(per_second=0.001, burst=3)
    assert [limiter.allow() for _ in range(5)] == [True, True, True, False, False]
    assert limiter.suppressed == 2
