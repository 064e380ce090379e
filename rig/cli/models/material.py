"""What commands that measure bundles take in common: verified bundles, and clips that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import UsageError

if TYPE_CHECKING:
    from edge.bundle.reading import Bundle
    from firmware_models.data import Clips
    from firmware_models.progress import Progress


def read_bundles(paths: Sequence[Path], trust: Sequence[Path] | None) -> tuple[list[Bundle], list[Path]]:
    """The bundles, verified with the keys of ``trust`` or the zoo's; and the files of those keys.

    Raises:
        UsageError: a path is there twice, or a key cannot be read.
        BundleError: a bundle that must not be loaded.
    """
    from edge.bundle.reading import read_bundle
    from edge.bundle.signing import load_public_key
    from firmware_models.zoo import PUBLIC_KEY

    twice = sorted({str(path) for path in paths if list(paths).count(path) > 1})
    if twice:
        raise UsageError(f"{twice[0]} is named twice: name every bundle once")
    keys = list(trust or [PUBLIC_KEY])
    trusted = [load_public_key(key) for key in keys]
    return [read_bundle(path, trusted=trusted) for path in paths], keys


def load_clips(data: Path, split: str, bundles: Sequence[Bundle], progress: Progress) -> dict[int, Clips]:
    """The clips of a split, by the number of samples that the bundles listen to.

    Raises:
        DataError: not a data set, no such split, or recordings at another rate than a bundle takes.
    """
    from edge.errors import DataError
    from firmware_models.data import RATE_HZ, load

    for bundle in bundles:
        if bundle.manifest.rate_hz != RATE_HZ:
            raise DataError(f"{bundle.path} takes {bundle.manifest.rate_hz} Hz, data sets are read at {RATE_HZ} Hz")
    windows = dict.fromkeys(bundle.manifest.window_samples for bundle in bundles)
    return {samples: load(data, split, window_samples=samples, progress=progress) for samples in windows}
