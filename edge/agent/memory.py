"""Give back to the system what only the start of the process needed."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

# From mman.h.
_MADV_DONTNEED = 4
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"(?P<begin>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S{4}) \S+ \S+ \S+ +(?P<path>/.*)?")


def give_back_code() -> int:
    """Let go of the pages of libraries that nothing wrote to; those still used come back from the file when touched.

    Loading a model runs megabytes of onnxruntime's code (schemas, graph optimisers) that running it does not.

    Returns:
        bytes of the mappings that were given back, 0 where the system does not tell its mappings.
    """
    try:
        lines = _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    given_back = 0
    begin = size = 0
    for line in lines:
        if found := _MAPPING.match(line):
            unwritable_file = found["path"] is not None and found["rights"] in {"r-xp", "r--p"}
            begin, end = int(found["begin"], 16), int(found["end"], 16)
            size = end - begin if unwritable_file else 0
        # Pages that the loader changed before it took away the right to write are in no file.
        elif size and line.split() == ["Anonymous:", "0", "kB"] and madvise(begin, size, _MADV_DONTNEED) == 0:
            given_back += size
    return given_back
