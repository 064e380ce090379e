"""docs/architecture.md says what the code does: columns, topics, exit codes, layers."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from edge import errors, messages
from edge.bundle.container import ORDER
from edge.commands.inbox import VERBS
from rig.airs import AIRS
from rig.report.summary import Row

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> list[str]:
    """What stands between backticks in the first column of the table under ``heading``."""
    text = re.split(r"^#+ ", DOCUMENT.split(f"# {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return [cell for row in rows for cell in re.findall(r"`([^`]+)`", row)]


def test_every_column_is_explained() -> None:
    assert sorted(first_cells("Columns of `summary.json`")) == sorted(Row.model_fields)


def test_bundle_members_stand_in_their_order() -> None:
    assert first_cells("Bundle") == list(ORDER)


def test_topics() -> None:
    leaves = {"state", "info", "prediction", "level", "health", "update", "clock", "command/<verb>", "reply"}
    assert set(first_cells("Messages")) == {messages.topic("<device>", leaf) for leaf in leaves} | set(VERBS)


@pytest.mark.parametrize("kind", messages.Message.__subclasses__())
def test_every_message_is_named(kind: type) -> None:
    assert f"| `{kind.__name__}` |" in DOCUMENT


def test_exit_codes() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(code) for code in re.findall(r"^\| (\d) \|", DOCUMENT, flags=re.MULTILINE)} == codes


@pytest.mark.parametrize("air", AIRS)
def test_airs(air: str) -> None:
    assert f"`{air}`" in DOCUMENT


def places_named() -> list[tuple[str, str]]:
    """Files, modules and attributes of ours that documents name between backticks."""
    pattern = r"`((?:edge|export|firmware_models|rig|tests|docs|\.ci)[/.][\w/.]*\w)`"
    found = {(document.name, name) for document in DOCUMENTS for name in re.findall(pattern, document.read_text())}
    return sorted(found)


@pytest.mark.parametrize(("document", "name"), places_named())
def test_what_a_document_names_exists(document: str, name: str) -> None:
    if "/" in name:
        assert (ROOT / name).exists(), f"{document} names {name}"
        return
    assert pkgutil.resolve_name(name) is not None, f"{document} names {name}"
