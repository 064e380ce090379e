"""Whatever a message may say survives its way through JSON unchanged; the types themselves say what that is."""

from __future__ import annotations

import types
import typing
from typing import Any

import annotated_types
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edge import messages
from edge.errors import UsageError
from edge.messages import Message, parse

SMALL, FULL = 60, 10_000
KINDS = sorted(
    {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)} - {Message},
    key=lambda kind: kind.__name__,
)


def _of_type(kind: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:  # noqa: C901, PLR0911 - one line per type
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _of_type(arguments[0], [*_flat(arguments[1:]), *metadata])
    if origin in {typing.Union, types.UnionType}:
        return st.one_of([st.none() if each is type(None) else _of_type(each, metadata) for each in arguments])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    limits = _limits(metadata)
    if origin is tuple:
        most = min(limits.get("max_length", 5), 5)
        return st.lists(_of_type(arguments[0], []), min_size=limits.get("min_length", 0), max_size=most).map(tuple)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(limits.get("ge", -(1 << 63)), limits.get("lt", 1 << 63) - 1)
    if kind is float:
        return st.floats(limits.get("ge"), None, allow_nan=False, allow_infinity=False)
    if kind is str and "pattern" in limits:
        # Python's $ also matches before a newline at the end; pydantic's does not.
        return st.from_regex(limits["pattern"].replace("$", r"\Z"))
    if kind is str:
        letters = st.characters(exclude_categories=("Cs",))
        return st.text(letters, min_size=limits.get("min_length", 0), max_size=min(limits.get("max_length", 50), 50))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _of_message(kind)
    raise NotImplementedError(f"no strategy for {kind}")


def _flat(metadata: Any) -> list[Any]:
    found: list[Any] = []
    for each in metadata:
        found += _flat(each.metadata) if isinstance(each, FieldInfo) else [each]
    return found


def _limits(metadata: list[Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for each in metadata:
        for name in ("ge", "lt", "min_length", "max_length", "pattern"):
            if (value := getattr(each, name, None)) is not None:
                limits[name] = value
        if isinstance(each, annotated_types.Gt):
            limits["ge"] = each.gt + 1
    return limits


def _of_message(kind: type[BaseModel]) -> st.SearchStrategy[Any]:
    fields = {
        name: _of_type(field.annotation, list(field.metadata))
        for name, field in kind.model_fields.items()
        if name != "schema_version"
    }
    return st.fixed_dictionaries(fields).map(kind.model_validate)


def _check(kind: type[Message], examples: int) -> None:
    seen = 0

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(_of_message(kind))
    def survives(message: Message) -> None:
        nonlocal seen
        seen += 1
        payload = message.to_json()
        assert b"\n" not in payload
        assert parse(kind, payload) == message

    survives()
    assert seen >= min(examples, 2)


def test_strategies_know_every_kind() -> None:
    assert len(KINDS) >= 15


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(number: str) -> None:
    payload = f'{{"schema":1,"device":"a","boot_id":"b","rms_dbfs":{number},"peak_dbfs":0,"xruns":0}}'
    with pytest.raises(UsageError, match="rms_dbfs"):
        parse(messages.Level, payload.encode())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_round_trip(kind: type[Message]) -> None:
    _check(kind, SMALL)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_ten_thousand_round_trips(kind: type[Message]) -> None:
    _check(kind, FULL)
