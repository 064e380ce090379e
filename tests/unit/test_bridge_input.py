"""Whatever an assistant sends, a bridge takes it or says in one printable line why not."""

from __future__ import annotations

import contextlib
import json
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import EarshotError
from rig.bridges import hermes_messages as hermes
from rig.bridges.wyoming_info import read_detection, read_info
from rig.bridges.wyoming_wire import Wire

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("type", "data", "data_length", "payload_length", "name", "timestamp", "wake", "models", "siteId", "text", "id")
DOCUMENTS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6)
TYPES = st.sampled_from(["detection", "info", "not-detected", "\x1b[2J"])
MODELS = st.lists(st.fixed_dictionaries({"name": st.text(max_size=4)}), max_size=2)
WAKE = st.lists(st.fixed_dictionaries({"name": st.just("p"), "models": MODELS}), max_size=2)
DATA = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6) | st.fixed_dictionaries({"wake": WAKE})
EVENTS = st.builds(lambda kind, data: {"type": kind, "data": data}, TYPES, DATA)


@contextlib.contextmanager
def told_in_one_line():
    told = ""
    try:
        yield
    except EarshotError as error:
        told = str(error)
    assert told.isprintable(), told
    assert len(told) < 500


def line(document) -> bytes:
    return json.dumps(document).encode() + b"\n"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200) | (DOCUMENTS | EVENTS).map(line), max_size=4))
def test_wyoming(parts):
    ours, theirs = socket.socketpair()
    with ours, theirs, Wire(ours, "service") as wire, told_in_one_line():
        theirs.sendall(b"".join(parts))
        theirs.shutdown(socket.SHUT_WR)
        # The end of the connection is an error, so this ends.
        while (event := wire.receive(1.0)) is not None:
            with told_in_one_line():
                read_info("service", event).choose("service", ("c",))
            with told_in_one_line():
                read_detection("service", event, ("a", "b"))


KINDS = (hermes.HotwordDetected, hermes.TextCaptured, hermes.Intent, hermes.SessionEvent, hermes.Hotwords)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KINDS), st.text(max_size=30), st.binary(max_size=200) | DOCUMENTS.map(line))
def test_hermes(kind, topic, payload):
    with told_in_one_line():
        assert isinstance(hermes.parse(kind, topic, payload), kind)
