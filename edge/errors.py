"""The errors of earshot, one tree for both commands.

::

    EarshotError                  exit code 1, never raised itself
    +-- UsageError                2  wrong argument, file, key or value: the user can mend it
    |   +-- BundleError           2  a bundle that must not be loaded
    |   +-- DataError             2  a data set or clip that cannot be used
    |   +-- PlanError             2  a plan or station that makes no sense
    +-- ThresholdError            3  a limit was missed, or the work is incomplete
    +-- UnavailableError          4  device, broker or sound card cannot be reached
    +-- StoppedError              5  the operator or a safety limit stopped the work

Anything else that reaches the top of a command is a bug and ends with 1 and a traceback.
Each message is one line: the value, what is allowed, and the fix.
"""

from __future__ import annotations

import errno

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 3
EXIT_UNAVAILABLE = 4
EXIT_STOPPED = 5


# What a machine may refuse anywhere: no space, no permission, a file where a folder should be.
_REFUSALS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EMFILE,
        errno.EIO,
    }
)


class EarshotError(Exception):
    """A condition that the user is told in one line; ``exit_code`` is what the command ends with."""

    exit_code = EXIT_BUG


class UsageError(EarshotError):
    """An argument, file, key or value is wrong and the user can mend it."""

    exit_code = EXIT_USAGE


class BundleError(UsageError):
    """A bundle is unsigned, altered, oversized, malformed or not what was asked for."""


class DataError(UsageError):
    """A data set or an audio clip cannot be used."""


class PlanError(UsageError):
    """A plan or a station file is invalid or contradicts itself."""


class ThresholdError(EarshotError):
    """A limit was missed (parity, accuracy, timing) or the work is incomplete."""

    exit_code = EXIT_INCOMPLETE


class UnavailableError(EarshotError):
    """A device, broker or sound card cannot be reached."""

    exit_code = EXIT_UNAVAILABLE


class StoppedError(EarshotError):
    """The operator or a safety limit stopped the work."""

    exit_code = EXIT_STOPPED


def refused(error: OSError) -> UsageError | None:
    """What the machine refused, as an error for the user; None if ``error`` is no such refusal but a bug."""
    if error.errno not in _REFUSALS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return UsageError(f"{where}{error.strerror}: choose another place, or make room or give permission there")
