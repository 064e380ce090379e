"""Whatever comes from the network: it is judged, counted, and never more than one bounded line."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.commands.authority import Authority
from edge.commands.inbox import MAX_WAITING, Inbox
from edge.commands.limiter import Limiter
from edge.messages import (
    NAME_PATTERN,
    Acknowledge,
    Clock,
    Echo,
    Envelope,
    Listen,
    Message,
    Rollback,
    Rotate,
    Update,
)
from rig.devices.operator import Operator

LISTEN = Listen(device="d", session_id="s", trial_id="t", attempt=0, stream_id="a", sample_index=0)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


class _Door:
    def __init__(self) -> None:
        self.complaints: list[tuple[str, str]] = []
        self.clocks: list[Clock] = []
        self.woken = 0
        self.operator = Operator.ephemeral()
        self.commands = Inbox(
            "d",
            "boot",
            Authority("d", "boot", [self.operator.public_key]),
            complain=lambda *c: self.complaints.append(c),
            tell_time=self.clocks.append,
            on_command=self._wake,
        )

    def _wake(self) -> None:
        self.woken += 1

    def receive(self, verb: str, body: bytes) -> None:
        """Knock with what an operator has signed."""
        envelope = self.operator.seal(verb if len(verb) < 40 else "x", LISTEN, "boot")
        unsigned = envelope.model_copy(update={"body": body.decode("utf-8", "replace")})
        signature = self.operator._key.sign(unsigned.signed_bytes()).signature.hex()
        self.commands.receive(verb, unsigned.model_copy(update={"signature": signature}).to_json())


def test_a_good_command_comes_through() -> None:
    door = _Door()
    acknowledge = Acknowledge(device="d", boot_id="b", seqs=(1, 2))
    door.receive("listen", LISTEN.to_json())
    door.receive("acknowledge", acknowledge.to_json())
    assert door.commands.take() == LISTEN
    assert door.commands.take() == acknowledge
    assert door.commands.take() is None
    assert (door.woken, door.commands.rejected, door.complaints) == (2, 0, [])


def test_every_verb_is_known_and_the_time_is_told_at_once() -> None:
    door = _Door()
    digest, key = "0" * 64, "1" * 64
    update = Update(
        device="d", url="http://rig/b", bundle_name="b", bundle_version=1, bundle_sha256=digest, size_bytes=1
    )
    rotate = Rotate(device="d", role="bundle", old_key=key, new_key=digest, signature="2" * 128)
    commands: dict[str, Message] = {
        "update": update, "rollback": Rollback(device="d", bundle_sha256=digest), "rotate": rotate
    }  # fmt: skip
    for verb, command in commands.items():
        door.receive(verb, command.to_json())
        assert door.commands.take() == command
    before_ns, before_utc_ns = time.monotonic_ns(), time.time_ns()
    door.receive("echo", Echo(device="d", nonce="n1").to_json())
    [clock] = door.clocks
    assert (clock.device, clock.boot_id, clock.nonce) == ("d", "boot", "n1")
    assert before_ns <= clock.received_monotonic_ns <= clock.sent_monotonic_ns <= time.monotonic_ns()
    assert before_utc_ns <= clock.received_utc_ns <= clock.sent_utc_ns <= time.time_ns()
    assert door.commands.take() is None
    assert (door.woken, door.commands.rejected) == (3, 0)


def test_what_is_not_signed_or_came_before_is_refused() -> None:
    door = _Door()
    door.commands.receive("listen", LISTEN.to_json())
    assert "Envelope" in door.complaints[0][1]
    payload = door.operator.seal("listen", LISTEN, "boot").to_json()
    door.commands.receive("listen", payload)
    door.commands.receive("listen", payload)
    assert door.complaints[1] == ("listen", "listen refused: it was received before")
    door.commands.receive("listen", door.operator.seal("listen", LISTEN, "other").to_json())
    door.commands.receive("listen", Operator.ephemeral().seal("listen", LISTEN, "boot").to_json())
    assert door.commands.rejected == 4
    assert door.commands.take() == LISTEN
    assert door.commands.take() is None


@pytest.mark.parametrize(
    ("verb", "payload", "complaint"),
    [
        ("listen", b"", "Listen"),
        ("listen", b"\xff\xfe", "Listen"),
        ("listen", b"[" * 65_536, "Listen"),
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
    door.receive(verb, payload)
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


@pytest.mark.parametrize("payload", [b"", b"[" * 200_000, b" " * (2 << 20), b"\xff" * 9, b"{}", b"null"])
def test_a_bad_envelope_is_one_complaint(payload: bytes) -> None:
    door = _Door()
    door.commands.receive("listen", payload)
    assert (door.commands.take(), door.commands.rejected, len(door.complaints)) == (None, 1, 1)
    assert "\n" not in door.complaints[0][1]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["listen", "acknowledge", "x"]) | st.text(max_size=30),
    st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_no_payload_breaks_the_door(verb: str, payload: bytes) -> None:
    door = _Door()
    door.commands.receive(verb, payload)
    assert door.commands.rejected == 1
    if re.fullmatch(NAME_PATTERN, verb):
        door.receive(verb, payload)
        assert door.commands.rejected == 2
    assert door.commands.take() is None


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(LISTEN.model_dump(by_alias=True))), JSON)
def test_no_value_of_a_key_breaks_the_door(key: str, value: object) -> None:
    door = _Door()
    payload = {**LISTEN.model_dump(by_alias=True), key: value}
    door.receive("listen", json.dumps(payload).encode())
    assert (door.commands.rejected == 1) == (door.commands.take() is None)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(Envelope.model_fields)), JSON)
def test_no_value_of_an_envelopes_key_breaks_the_door(key: str, value: object) -> None:
    door = _Door()
    payload = {**door.operator.seal("listen", LISTEN, "boot").model_dump(by_alias=True), key: value}
    door.commands.receive("listen", json.dumps(payload).encode())
    assert (door.commands.rejected == 1) == (door.commands.take() is None)


def test_a_flood_is_bounded_in_memory_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    door = _Door()
    for _ in range(MAX_WAITING + 500):
        door.receive("listen", LISTEN.to_json())
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
