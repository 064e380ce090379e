"""One line out of what pydantic says about a document that anybody may have written."""

from __future__ import annotations

from pydantic import ValidationError

_LONGEST_PART = 60


def describe(error: ValidationError, *, document: str = "document") -> str:
    """The first fault: key, reason, value. ``document`` names the place where it is the whole that is wrong.

    Keys and values come from the document: what could move a terminal's cursor or begin a line of its own in a log is
    written as an escape sequence, and long ones are cut.
    """
    first = error.errors()[0]
    where = ".".join(_shown(str(part)) for part in first["loc"]) or document
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    value = first["input"]
    plain = first["type"] != "missing" and (isinstance(value, str | int | float | bool) or value is None)
    got = f" (got {_shown(repr(value))})" if plain and first["loc"] else ""
    return f"{where}: {_escaped(first['msg'].removeprefix('Value error, '))}{got}"


def _shown(text: str) -> str:
    text = _escaped(text)
    return text if len(text) <= _LONGEST_PART else text[:_LONGEST_PART] + "..."


def _escaped(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
