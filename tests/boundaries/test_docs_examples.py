"""Every command shown in the documents exists and takes the options shown.

A block that begins with ```console holds a session: lines after ``$`` are typed, the rest is output. Of what is
typed, ``earshot``, ``earshot-device`` and ``make`` are checked.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer._click.exceptions import ClickException

from edge.cli import entry as device_cli
from edge.errors import UsageError
from rig.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_ENDS_A_COMMAND = {"|", "||", "&&", ";", "&"}
_REDIRECTS = {">", ">>", "<", "2>", "2>&1"}


def typed_lines(text: str) -> Iterator[tuple[int, str]]:
    """Line number and command of each line after ``$`` in the console blocks; continued lines are joined."""
    inside = False
    pending: tuple[int, str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("```"):
            inside = stripped == "```console"
            pending = None
            continue
        if not inside:
            continue
        if pending:
            pending = (pending[0], pending[1] + " " + stripped.removeprefix("> "))
        elif stripped.startswith("$ "):
            pending = (number, stripped[2:])
        else:
            continue
        if pending[1].endswith("\\"):
            pending = (pending[0], pending[1][:-1])
        else:
            yield pending
            pending = None


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell line, without assignments before it and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    skip = False
    for token in [*lexer, ";"]:
        if token in _ENDS_A_COMMAND:
            while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []
        elif skip:
            skip = False
        elif token in _REDIRECTS:
            skip = True
        else:
            words.append(token)


class _WrongError(Exception):
    """What is shown cannot be typed like that."""


def problem(words: list[str]) -> str | None:
    """Why a command shown cannot be typed like that, or nothing."""
    checks = {"earshot": _check_earshot, "earshot-device": _check_device, "make": _check_make}
    check = checks.get(words[0].rsplit("/", 1)[-1])
    if check is None:
        return None
    try:
        check(words[1:])
    except _WrongError as error:
        return str(error)
    return None


def _check_earshot(words: list[str]) -> None:
    if not words or words[0] in {"--help", "-h", "--version"}:
        return
    if words[0] not in COMMANDS:
        raise _WrongError(f"earshot has no command {words[0]!r}, only {', '.join(COMMANDS)}")
    command = typer.main.get_command(importlib.import_module(COMMANDS[words[0]][0]).app)
    path, rest = f"earshot {words[0]}", words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            raise _WrongError(f"{path} has no command {rest[0]!r}, only {', '.join(command.commands)}")
        path, command, rest = f"{path} {rest[0]}", command.commands[rest[0]], rest[1:]
    if "--help" not in rest and not hasattr(command, "commands"):
        _check_arguments(path, command, rest)


def _check_arguments(path: str, command: Any, words: list[str]) -> None:
    context = command.context_class(command, info_name=path)
    try:
        values, left, _ = command.make_parser(context).parse_args(list(words))
    except ClickException as error:
        raise _WrongError(f"{path}: {error.format_message()}") from None
    if left:
        raise _WrongError(f"{path} takes no further argument {left[0]!r}")
    missing = [each.name for each in command.params if each.required and values.get(each.name) in (None, (), [])]
    if missing:
        raise _WrongError(f"{path} needs {', '.join(missing)}")


def _check_device(words: list[str]) -> None:
    try:
        device_cli.parser().parse_args(words)
    except UsageError as error:
        raise _WrongError(f"earshot-device: {error}") from None
    except SystemExit:  # --help and --version
        return


def _check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for word in words:
        if "=" not in word and not word.startswith("-") and word not in targets:
            raise _WrongError(f"make has no target {word!r}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_shown_can_be_typed(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = [
        f"{document.name}:{number}: {found}"
        for number, line in typed_lines(document.read_text(encoding="utf-8"))
        for words in simple_commands(line)
        if (found := problem(words))
    ]
    capsys.readouterr()  # --help of the device prints
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("earshot destroy everything", "no command 'destroy'"),
        ("earshot session dance", "no command 'dance'"),
        ("earshot demo --dta recordings", "--dta"),
        ("earshot demo --out", "--out"),
        ("earshot demo recordings", "no further argument"),
        ("earshot plan check", "needs"),
        ("OMP_NUM_THREADS=1 earshot demo --json | earshot demo --nonsense > out.json", "--nonsense"),
        ("earshot-device run --threads many", "--threads"),
        ("earshot-device doctor --bundel lms.earshot", "--bund"),
        ("make coffee", "no target 'coffee'"),
    ],
)
def test_a_wrong_command_is_found(line: str, message: str) -> None:
    found = [problem(words) for words in simple_commands(line)]
    assert any(entry and message in entry for entry in found), found


@pytest.mark.parametrize(
    "line",
    [
        "earshot --version",
        "earshot demo --json > summary.json",
        "earshot plan check plan.yaml --air room",
        "cd lab && earshot demo --out here  # and wait",
        "make test ARGS=-x",
        "git clone somewhere",
    ],
)
def test_a_right_command_passes(line: str) -> None:
    assert [problem(words) for words in simple_commands(line)].count(None) >= 1
    assert not [found for words in simple_commands(line) if (found := problem(words))]


def test_console_blocks_are_read_to_the_letter() -> None:
    text = (
        "$ not in a block\n```console\n$ earshot demo \\\n>   --json\noutput $ no\n$ make test\n```\n```sh\n$ no\n```\n"
    )
    assert list(typed_lines(text)) == [(3, "earshot demo    --json"), (6, "make test")]
