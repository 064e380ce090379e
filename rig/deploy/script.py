"""Shell files that run on the machine: fixed text, into which nothing is put but quoted arguments."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge.errors import UsageError

UPLOAD = "/var/tmp/earshot."  # noqa: S108 - mktemp makes it, mode 0700
# Stands for the folder of what was sent, which has a name only when something is sent.
UPLOADED = f"{UPLOAD}XXXXXXXX"
_FOLDER = Path(__file__).resolve().parent / "scripts"


@dataclass(frozen=True)
class Secret:
    """An argument that is sent and never shown."""

    value: str = field(repr=False)


@dataclass(frozen=True)
class Script:
    """One function of a file in ``scripts``, and its arguments; :data:`UPLOADED` among them is filled in later."""

    file: str
    verb: Literal["check", "act", "make", "remove"]
    arguments: tuple[str | Secret, ...] = ()

    def text(self, uploaded: str = UPLOADED, *, shown: bool = False) -> str:
        """What the machine's ``/bin/sh`` reads; with ``shown``, for people and without the secrets.

        It is one function which is called in the last line, so that a line that breaks off half way does nothing, and
        no command of it can swallow the rest.

        Raises:
            UsageError: an argument has a line break or a null character.
        """
        words = []
        for argument in self.arguments:
            word = argument if isinstance(argument, str) else "***" if shown else argument.value
            if any(character in word for character in "\0\r\n"):
                raise UsageError(f"{word!r} has a line break or a null character: use a plain word")
            words.append(shlex.quote(uploaded if word == UPLOADED else word))
        body = (_FOLDER / self.file).read_text(encoding="utf-8")
        call = " ".join(["earshot_step", *words])
        return f'earshot_step() {{\nset -eu\n{body}\n{self.verb} "$@"\n}}\n{call} </dev/null\n'
