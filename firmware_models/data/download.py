"""Download a large file over a bad line: what has arrived is kept, and the rest is asked for."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from edge.errors import DataError, UnavailableError
from firmware_models.progress import Progress, silent

_BLOCK_BYTES = 1 << 18
_TIMEOUT_S = 30.0
# Seconds between attempts; an attempt that brought anything starts the list anew.
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
_TRY_LATER = {408, 425, 429, 500, 502, 503, 504}


class ResumingDownloader:
    """A downloader for pooch: HTTP Range, retries with growing pauses, a limit of size.

    What has arrived lies in ``part`` until it is complete, also across runs. It is only continued if the server says
    that the file is still the same (ETag or Last-Modified), otherwise it is begun anew.
    """

    def __init__(
        self,
        part: Path,
        *,
        limit_bytes: int,
        progress: Progress = silent,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._part = part
        self._about = part.with_name(part.name + ".json")
        self._limit_bytes = limit_bytes
        self._progress = progress
        self._sleep = sleep

    def __call__(self, url: str, output_file: str | Path | IO[bytes], pooch: object) -> None:
        """Fetch ``url`` into ``output_file``; the third argument is pooch's and not needed.

        Raises:
            UnavailableError: the server cannot be reached, refuses, or breaks off again and again.
            DataError: the file is larger than the limit.
        """
        self._part.parent.mkdir(parents=True, exist_ok=True)
        failures = 0
        while True:
            before = self._size()
            try:
                if self._attempt(url):
                    break
                reason = "the connection broke off"
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                error.close()
                if error.code == 416:
                    self.forget()
                elif error.code not in _TRY_LATER:
                    raise UnavailableError(f"{url}: {reason}") from None
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            failures = 0 if self._size() > before else failures + 1
            if failures >= len(_PAUSES_S):
                kept = f"; {self._size()} bytes are kept, the same command goes on" if self._size() else ""
                raise UnavailableError(f"{url}: {reason}, given up after {failures} attempts{kept}")
            self._sleep(_PAUSES_S[failures])
        self._part.replace(str(output_file))
        self.forget()

    def forget(self) -> None:
        """Remove what has arrived so far."""
        for path in (self._part, self._about):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _attempt(self, url: str) -> bool:
        """Ask for what is missing; True when the file is complete."""
        have, about = self._size(), self._read_about()
        request = urllib.request.Request(url, headers={"User-Agent": "earshot", "Accept-Encoding": "identity"})  # noqa: S310 - the command checks the scheme
        if have and about.get("url") == url and about.get("validator"):
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", about["validator"])
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            start = _range_start(answer.headers.get("Content-Range")) if answer.status == 206 else 0
            if start not in {0, have}:
                self.forget()
                return False
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            if (total or 0) > self._limit_bytes:
                raise DataError(f"{url}: {total} bytes are more than the {self._limit_bytes} allowed")
            validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            # A weak ETag may not be used with If-Range.
            validator = None if validator and validator.startswith("W/") else validator
            self._about.write_text(json.dumps({"url": url, "validator": validator}))
            with self._part.open("ab" if start else "wb") as file:
                return self._receive(answer, file, start, total, url)

    def _receive(self, answer: Any, file: IO[bytes], start: int, total: int | None, url: str) -> bool:
        done = start
        while block := answer.read1(_BLOCK_BYTES):
            file.write(block)
            done += len(block)
            if done > self._limit_bytes:
                raise DataError(f"{url}: more than the {self._limit_bytes} bytes allowed")
            self._progress(done, total or done, "downloading")
        return total is None or done == total

    def _read_about(self) -> dict[str, str]:
        try:
            found = json.loads(self._about.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _range_start(content_range: str | None) -> int:
    """The first byte that a 206 answer carries; -1 if it does not say."""
    try:
        return int((content_range or "").removeprefix("bytes ").split("-", 1)[0])
    except ValueError:
        return -1
