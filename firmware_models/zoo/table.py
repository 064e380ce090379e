"""One row for each bundle, made from its verified manifest and card: what it is, what it costs, how well it hears."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.bundle import signing
from edge.bundle.manifest import MODEL, Manifest
from edge.bundle.reading import Bundle, read_bundle
from edge.errors import BundleError, UsageError
from firmware_models import zoo
from firmware_models.statistics import wilson
from firmware_models.zoo.commands import ARCHITECTURES, commands_of, ranks_of

if TYPE_CHECKING:
    from nacl.signing import VerifyKey

SUFFIX = ".earshot"
_PARAMETERS = re.compile(r"^\| parameters \| (?P<count>[0-9,]+) \|$", re.MULTILINE)
_MINUTES = re.compile(r"\b(?:(?P<kind>teacher|retrained) )?minutes (?P<minutes>[0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A bundle in figures; None where it does not say, and nothing but path and reason where it is not verified.

    ``top1`` and its 95 % interval are of the ``n`` clips of the test list. ``drop_points`` is what the number format
    cost against FP32 of the same network, ``rank_drop_points`` what low rank cost in FP32, in points of top-1.
    ``minutes`` of training hold those of a teacher and of retraining.
    """

    path: str
    verified: bool
    reason: str | None = None
    shipped: bool = False
    size_bytes: int | None = None
    key: str | None = None
    sha256: str | None = None
    name: str | None = None
    version: int | None = None
    architecture: str | None = None
    classes: int | None = None
    window_s: float | None = None
    ranks: dict[str, int] | None = None
    members: int | None = None
    bits: int | None = None
    activation_bits: int | None = None
    profile: str | None = None
    scheme: str | None = None
    computes_in: str | None = None
    graph_bytes: int | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    top1: float | None = None
    top1_low: float | None = None
    top1_high: float | None = None
    balanced: float | None = None
    n: int | None = None
    drop_points: float | None = None
    full_rank_top1: float | None = None
    rank_drop_points: float | None = None
    twin_labels_equal: float | None = None
    log_floor: float | None = None
    minutes: float | None = None
    commands: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def find_bundles(paths: Iterable[Path]) -> list[Path]:
    """The bundles of the zoo and those named or in the folders named, each once.

    Raises:
        UsageError: a path that is not there, or a folder without a bundle.
    """
    found: dict[Path, Path] = {path.resolve(): path for path in sorted(zoo.FOLDER.glob(f"*{SUFFIX}"))}
    for path in paths:
        inside = [path] if not path.is_dir() else sorted(path.rglob(f"*{SUFFIX}"))
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        if not inside:
            raise UsageError(f"{path}: no {SUFFIX} file in this folder: name another one")
        for each in inside:
            found.setdefault(each.resolve(), each)
    return list(found.values())


def read_rows(paths: Sequence[Path], *, trusted: Sequence[VerifyKey]) -> list[Row]:
    """A row for each bundle, by architecture, rank and width; those that cannot be verified come last."""
    zoo_key = signing.fingerprint(signing.load_public_key(zoo.PUBLIC_KEY))
    rows = [_read(path, trusted, zoo_key) for path in paths]
    references = {_family(row): row for row in rows if row.verified and row.bits == 32 and row.profile == "cpu"}
    rows = [_with_reference(row, references.get(_family(row))) for row in rows]
    return sorted(rows, key=_order)


def _read(path: Path, trusted: Sequence[VerifyKey], zoo_key: str) -> Row:
    try:
        bundle = read_bundle(path, trusted=trusted)
    except BundleError as error:
        return Row(path=str(path), verified=False, reason=str(error).removeprefix(f"{path}: "))
    return _row(bundle, zoo_key)


def _row(bundle: Bundle, zoo_key: str) -> Row:
    manifest, metrics = bundle.manifest, bundle.manifest.metrics
    quantisation = manifest.quantisation
    n = round(metrics["test_n"]) if "test_n" in metrics and "test_top1" in metrics else None
    rate = None if n is None else wilson(round(metrics["test_top1"] * n), n)
    full = metrics.get("full_test_top1")
    fp32 = metrics.get("fp32_test_top1", metrics.get("test_top1") if quantisation.bits == 32 else None)
    return Row(
        path=str(bundle.path),
        verified=True,
        shipped=bundle.key == zoo_key and bundle.path.resolve().parent == zoo.FOLDER.resolve(),
        size_bytes=bundle.path.stat().st_size,
        key=bundle.key,
        sha256=bundle.sha256,
        name=manifest.name,
        version=manifest.version,
        architecture=manifest.architecture,
        classes=len(manifest.labels),
        window_s=manifest.window_samples / manifest.rate_hz,
        ranks=ranks_of(metrics),
        members=None if manifest.ensemble is None else manifest.ensemble.members,
        bits=quantisation.bits,
        activation_bits=quantisation.activation_bits or quantisation.bits,
        profile=quantisation.profile,
        scheme=quantisation.scheme,
        computes_in=_computes_in(manifest),
        graph_bytes=manifest.members[MODEL].size_bytes,
        parameters=_parameters(bundle),
        multiply_adds=None if "multiply_adds" not in metrics else round(metrics["multiply_adds"]),
        top1=None if rate is None else rate.rate,
        top1_low=None if rate is None else rate.low,
        top1_high=None if rate is None else rate.high,
        balanced=metrics.get("test_balanced"),
        n=n,
        drop_points=_points(metrics.get("fp32_test_top1"), metrics.get("test_top1")),
        full_rank_top1=full,
        rank_drop_points=_points(full, fp32),
        twin_labels_equal=metrics.get("twin_labels_equal"),
        log_floor=manifest.log_floor,
        minutes=_minutes(bundle.card),
        commands=commands_of(manifest, bundle.card),
    )


def _computes_in(manifest: Manifest) -> str:
    """The width of the arithmetic: INT16 and INT4 are numbers that no CPU kernel computes with."""
    narrow = manifest.quantisation.bits == 8 and manifest.quantisation.profile != "storage"
    return "8-bit integers" if narrow else "32-bit float"


def _parameters(bundle: Bundle) -> int | None:
    if "parameters" in bundle.manifest.metrics:
        return round(bundle.manifest.metrics["parameters"])
    found = _PARAMETERS.search(bundle.card)
    return None if found is None else int(found["count"].replace(",", ""))


def _minutes(card: str) -> float | None:
    """All minutes of training that the card's command line names, each kind once."""
    line = next((line for line in card.splitlines() if line.startswith("Command: ")), "")
    found = {match["kind"]: float(match["minutes"]) for match in _MINUTES.finditer(line)}
    return sum(found.values()) if found else None


def _family(row: Row) -> tuple[Any, ...]:
    ranks = tuple(sorted((row.ranks or {}).items()))
    return row.architecture, row.classes, row.window_s, ranks, row.members, row.n, row.log_floor


def _with_reference(row: Row, fp32: Row | None) -> Row:
    """The drop against the FP32 bundle beside it, where the bundle does not state its own."""
    if row.drop_points is not None or fp32 is None or row.bits == 32:
        return row
    return replace(row, drop_points=_points(fp32.top1, row.top1))


def _points(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else 100 * (before - after)


def _order(row: Row) -> tuple[Any, ...]:
    known = row.architecture in ARCHITECTURES
    place = ARCHITECTURES.index(row.architecture) if known and row.architecture else len(ARCHITECTURES)
    return not row.verified, place, row.architecture or "", bool(row.ranks), -(row.bits or 0), row.name or "", row.path
