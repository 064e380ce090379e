"""Who may command: every objection alone, replays in every order, and memory that stays bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from edge.bundle.signing import fingerprint, sign
from edge.commands.authority import MAX_ENVELOPE_BYTES, MAX_REMEMBERED, WINDOW_NS, Authority, ReplayWindow
from edge.errors import UsageError
from edge.messages import Acknowledge, Echo, Envelope
from rig.devices.operator import Operator

ECHO = Echo(device="d", nonce="n")
S = 1_000_000_000


@pytest.fixture
def operator() -> Operator:
    return Operator.ephemeral()


@pytest.fixture
def authority(operator: Operator) -> Authority:
    return Authority("d", "boot", [operator.public_key])


def sealed(key: SigningKey, **changes: Any) -> bytes:
    values = {"device": "d", "boot_id": "boot", "verb": "echo", "operator": fingerprint(key.verify_key), "counter": 5}
    unsigned = Envelope(**{**values, "body": ECHO.to_json().decode(), "signature": "0" * 128, **changes})
    signature = sign(key, unsigned.signed_bytes()).hex()
    return unsigned.model_copy(update={"signature": signature}).to_json()


def test_a_signed_command_is_opened_once(operator: Operator, authority: Authority) -> None:
    payload = operator.seal("echo", ECHO, "boot").to_json()
    assert authority.open("echo", payload) == ECHO.to_json()
    with pytest.raises(UsageError, match="it was received before"):
        authority.open("echo", payload)
    assert authority.open("echo", operator.seal("echo", ECHO, "boot").to_json()) == ECHO.to_json()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"device": "e"}, "it is for device 'e', this is 'd'"),
        ({"verb": "listen"}, "it was signed as 'listen' and came as 'echo'"),
        ({"boot_id": "before"}, "it is for boot before, this is boot boot"),
        ({"operator": "0" * 16}, "operator 0000000000000000 is not among those obeyed"),
    ],
)
def test_each_thing_that_is_signed_is_checked(changes: dict[str, Any], complaint: str) -> None:
    key = SigningKey.generate()
    authority = Authority("d", "boot", [key.verify_key])
    with pytest.raises(UsageError) as caught:
        authority.open("echo", sealed(key, **changes))
    assert complaint in str(caught.value)
    # What was refused used nothing up.
    assert authority.open("echo", sealed(key)) == ECHO.to_json()


@pytest.mark.parametrize("field", ["device", "boot_id", "verb", "counter", "body"])
def test_what_was_changed_after_signing_is_refused(operator: Operator, field: str) -> None:
    authority = Authority("x", "x", [operator.public_key])
    envelope = json.loads(operator.seal("listen", ECHO, "boot").to_json())
    envelope |= {"device": "x", "boot_id": "x", "verb": "echo"}
    envelope["counter" if field == "counter" else "body"] = 7 if field == "counter" else "{}"
    with pytest.raises(UsageError, match="the signature is not that of operator"):
        authority.open("echo", json.dumps(envelope).encode())


def test_a_stranger_cannot_sign_in_an_operators_name(operator: Operator, authority: Authority) -> None:
    stranger = SigningKey.generate()
    with pytest.raises(UsageError, match="the signature is not that of operator"):
        authority.open("echo", sealed(stranger, operator=operator.fingerprint))
    with pytest.raises(UsageError, match="is not among those obeyed"):
        authority.open("echo", sealed(stranger))


def test_without_operators_nobody_is_obeyed(operator: Operator) -> None:
    authority = Authority("d", "boot")
    assert authority.operators == ()
    with pytest.raises(UsageError, match=r"obeys nobody: start it with --operator KEY\.pub"):
        authority.open("echo", operator.seal("echo", ECHO, "boot").to_json())


def test_size_is_judged_before_anything_is_read(authority: Authority) -> None:
    with pytest.raises(UsageError, match="exceed the limit"):
        authority.open("echo", b"[" * (MAX_ENVELOPE_BYTES + 1))
    with pytest.raises(UsageError, match="Envelope"):
        authority.open("echo", b"[" * MAX_ENVELOPE_BYTES)


def test_the_largest_command_there_is_fits(operator: Operator, authority: Authority) -> None:
    largest = Acknowledge(device="d", boot_id="b" * 128, seqs=tuple(range((1 << 63) - 1024, (1 << 63) - 0)))
    payload = operator.seal("acknowledge", largest, "boot").to_json()
    assert len(payload) <= MAX_ENVELOPE_BYTES
    assert authority.open("acknowledge", payload) == largest.to_json()


def test_a_key_is_exchanged(operator: Operator, authority: Authority) -> None:
    new = Operator.ephemeral()
    authority.exchange(operator.public_key, new.public_key)
    assert authority.operators == (new.fingerprint,)
    assert authority.open("echo", new.seal("echo", ECHO, "boot").to_json())
    with pytest.raises(UsageError, match="is not among those obeyed"):
        authority.open("echo", operator.seal("echo", ECHO, "boot").to_json())
    authority.exchange(operator.public_key, Operator.ephemeral().public_key)
    assert authority.operators == (new.fingerprint,)


def test_a_key_that_comes_back_keeps_its_memory(operator: Operator, authority: Authority) -> None:
    payload = operator.seal("echo", ECHO, "boot").to_json()
    authority.open("echo", payload)
    new = Operator.ephemeral()
    authority.exchange(operator.public_key, new.public_key)
    authority.exchange(new.public_key, operator.public_key)
    with pytest.raises(UsageError, match="it was received before"):
        authority.open("echo", payload)


def test_counters_grow_while_the_clock_is_set_back(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100, 100, 50, 200])
    monkeypatch.setattr("rig.devices.operator.time.time_ns", lambda: next(times))
    assert [operator.seal("echo", ECHO, "b").counter for _ in range(4)] == [100, 101, 102, 200]


def test_overtaking_within_the_window_and_no_further() -> None:
    window = ReplayWindow()
    for counter in (100 * S, 95 * S, 90 * S + 1):
        assert window.objection(counter) is None
        window.use(counter)
        assert window.objection(counter) == "it was received before"
    assert "10.0 s older" in (window.objection(90 * S) or "")
    window.use(200 * S)
    assert len(window) == 1
    assert "100.0 s older" in (window.objection(100 * S) or "")
    assert window.objection(190 * S + 1) is None


def test_memory_is_bounded_and_forgets_on_the_safe_side() -> None:
    window = ReplayWindow()
    first = 1_000 * S
    for step in range(2 * MAX_REMEMBERED):
        window.use(first + step)
    assert len(window) == MAX_REMEMBERED
    assert window.objection(first) is not None
    assert window.objection(first + MAX_REMEMBERED - 1) is not None
    assert window.objection(first + 2 * MAX_REMEMBERED - 1) == "it was received before"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 12))
def test_no_counter_is_ever_used_twice(counters: list[int], max_remembered: int) -> None:
    window = ReplayWindow(window_ns=WINDOW_NS // S, max_remembered=max_remembered)
    used: list[int] = []
    for counter in counters:
        if window.objection(counter) is None:
            assert counter not in used
            assert counter > max(used, default=-1) - WINDOW_NS // S
            window.use(counter)
            used.append(counter)
        assert len(window) <= max_remembered
    # The newest is always let through.
    assert window.objection(max(used, default=-1) + 1) is None
