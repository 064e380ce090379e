"""Do a piece of work in a child process, so that what it needed is gone when it is done."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from edge.errors import EXIT_BUG, EarshotError

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """Call ``work`` in a forked child and return its result, or raise its error.

    The libraries it imports and the memory it touches are the child's: checking a signature alone costs 8 MB that a
    device needs for one moment only. The calling process must have one thread; result and error are pickled.

    Raises:
        EarshotError: ``work`` raised it.
        RuntimeError: the child ended by a bug, which it reported on standard error, or by a signal.
    """
    reader, writer = os.pipe()
    sys.stderr.flush()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work_in_child(work, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError(f"a child process ended with code {os.waitstatus_to_exitcode(status)}")
    # The bytes come from our own fork through a pipe that nobody else holds.
    result = pickle.loads(answer)  # noqa: S301
    if isinstance(result, EarshotError):
        raise result
    return result  # type: ignore[no-any-return]


def _work_in_child(work: Callable[[], object], writer: int) -> None:
    code = EXIT_BUG
    try:
        result: object
        try:
            result = work()
        except EarshotError as error:
            result = error
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(result, pipe, protocol=5)
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
    finally:
        os._exit(code)
