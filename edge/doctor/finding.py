"""One line of the doctor's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edge.errors import EXIT_INCOMPLETE, EXIT_OK, EXIT_UNAVAILABLE, EarshotError


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is well, what was seen, and where it is not, what mends it.

    ``exit_code`` counts where it is not well; ``values`` are the numbers in ``detail``, for machines.
    """

    check: str
    ok: bool
    detail: str
    fix: str = ""
    exit_code: int = EXIT_OK
    values: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """For people."""
        fix = f"; fix: {self.fix}" if self.fix else ""
        return f"{'OK  ' if self.ok else 'FAIL'} {self.check}: {self.detail}{fix}"

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def well(check: str, detail: str, values: dict[str, float] | None = None) -> Finding:
    """A line that is OK."""
    return Finding(check, ok=True, detail=detail, values=values or {})


def wrong(
    check: str,
    detail: str,
    fix: str,
    values: dict[str, float] | None = None,
    *,
    exit_code: int = EXIT_INCOMPLETE,
) -> Finding:
    """A line that is not OK, with what mends it."""
    return Finding(check, ok=False, detail=detail, fix=fix, exit_code=exit_code, values=values or {})


def attempt(check: str, look: Callable[[], Finding], fix: str = "") -> Finding:
    """What ``look`` finds; an error for the user is a finding too."""
    try:
        return look()
    except EarshotError as error:
        return wrong(check, " ".join(str(error).split()), fix, exit_code=error.exit_code)


def exit_code(findings: Sequence[Finding]) -> int:
    """0 when all is well, 4 when something cannot be reached, otherwise 3."""
    codes = {finding.exit_code for finding in findings if not finding.ok}
    if not codes:
        return EXIT_OK
    return EXIT_UNAVAILABLE if EXIT_UNAVAILABLE in codes else EXIT_INCOMPLETE
