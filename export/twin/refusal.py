"""What a twin says of something that it cannot compute."""

from __future__ import annotations

from edge.errors import UsageError


def refuse(what: str) -> UsageError:
    """The error for ``what``: a twin that guesses is worth nothing."""
    return UsageError(f"the twin does not know {what}: use the operators in export.twin.operators")
