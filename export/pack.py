"""Pack and sign a bundle: complete, checked as a device would check it, and only then under its final name."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from nacl.signing import SigningKey
from onnx import ModelProto
from pydantic import ValidationError

import edge
from edge import files
from edge.bundle import container, signing
from edge.bundle.classifier import Classifier
from edge.bundle.manifest import (
    CARD,
    GOLDEN,
    MANIFEST,
    MODEL,
    SIGNATURE,
    Ensemble,
    Manifest,
    Member,
    Quantisation,
    Tolerance,
)
from edge.bundle.noise import golden_noise
from edge.bundle.onnx_wire import check_self_contained
from edge.bundle.reading import Bundle, describe_untrusted, read_bundle
from edge.errors import BundleError, UsageError
from edge.messages import NAME_PATTERN
from edge.validation import describe
from export import card
from export.card import Facts
from export.fixed_point.number_format import NumberFormat
from export.golden import golden_pcm
from export.parity import graph_scores

ScoreKind = Literal["logits", "probabilities"]
# The last bits of FP32 differ between CPUs; with rounded activations they can move a value to the next step.
TOLERANCES = {32: 1e-3, 16: 1e-2, 8: 0.1, 4: 0.5}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a bundle is: copied from the model and chosen by whoever exports it."""

    name: str
    version: int
    architecture: str
    labels: Sequence[str]
    rate_hz: int
    window_samples: int
    log_floor: float | None
    parameters: int
    form: NumberFormat
    score_kind: ScoreKind = "logits"
    ensemble: Ensemble | None = None


def pack(
    out: Path,
    graph: ModelProto,
    identity: Identity,
    *,
    key: SigningKey,
    facts: Facts | None = None,
    golden: npt.NDArray[np.int16] | None = None,
) -> Bundle:
    """Write ``out`` and return it as a device reads it.

    The same graph, identity, facts and key give the same bytes when ``SOURCE_DATE_EPOCH`` is set; otherwise
    the time of packing differs. ``golden`` are 16-bit clips (n, window_samples) for the golden vectors, synthetic
    sounds by default: what is given is published with the bundle.

    Raises:
        UsageError: name, version or folder cannot be used.
        BundleError: the graph is not self-contained.
        ThresholdError: the packed bundle does not reproduce its own golden vectors.
    """
    facts = facts or Facts()
    pcm = golden_pcm(identity.window_samples, identity.rate_hz) if golden is None else golden
    model = graph.SerializeToString(deterministic=True)
    check_self_contained(model)
    scores = graph_scores(
        graph,
        pcm.astype(np.float32) / np.float32(32768),
        storage=identity.form.profile == "storage",
        noise=None if (e := identity.ensemble) is None else golden_noise(e.members, e.noise_values),
    )
    members = {MODEL: model, GOLDEN: _npz(pcm, scores)}
    members[CARD] = _card(facts, identity, len(model)).encode()
    members[MANIFEST] = (_manifest(facts, identity, members).model_dump_json(indent=1) + "\n").encode()
    members[SIGNATURE] = signing.sign(key, members[MANIFEST])
    with _replacing(out) as unfinished:
        _write(unfinished, container.chunks(members))
        bundle = read_bundle(unfinished, trusted=[key.verify_key])
        Classifier(bundle).check_golden()
    return read_bundle(out, trusted=[key.verify_key])


def next_version(out: Path, name: str, wanted: int | None) -> int:
    """The version for a bundle that is to be written to ``out``: it only grows.

    Raises:
        UsageError: ``name`` is none, or ``wanted`` is not larger than that of the bundle of this name that is there.
    """
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise UsageError(f"bundle name {name!r}: use a-z 0-9 . _ -, at most 63 of them, and none of . _ - first")
    if not out.exists():
        return wanted or 1
    try:
        there = describe_untrusted(out).manifest
    except BundleError:
        raise UsageError(f"{out} exists and is no bundle: it is not overwritten, choose another name") from None
    if there.name != name:
        raise UsageError(f"{out} holds the bundle {there.name!r}: choose another file for {name!r}")
    if wanted is not None and wanted <= there.version:
        raise UsageError(f"{out} holds version {there.version}: versions only grow, use --version {there.version + 1}")
    return wanted or there.version + 1


def _manifest(facts: Facts, identity: Identity, members: dict[str, bytes]) -> Manifest:
    form = identity.form
    try:
        return Manifest(
            name=identity.name,
            version=identity.version,
            architecture=identity.architecture,
            labels=tuple(identity.labels),
            rate_hz=identity.rate_hz,
            window_samples=identity.window_samples,
            log_floor=identity.log_floor,
            score_kind=identity.score_kind,
            quantisation=Quantisation(
                bits=form.bits, activation_bits=form.activation_bits, profile=form.profile, scheme=form.scheme
            ),
            ensemble=identity.ensemble,
            golden_tolerance=Tolerance(max_abs=TOLERANCES[form.activation_bits]),
            members={
                name: Member(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
                for name, data in members.items()
            },
            training_data=facts.training_data,
            licence=facts.licence,
            metrics=dict(facts.metrics),
            created_utc=_now(),
            earshot_version=edge.__version__,
        )
    except ValidationError as error:
        raise UsageError(f"bundle: {describe(error)}") from None


def _now() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = dt.datetime.fromtimestamp(int(epoch), tz=dt.UTC) if epoch.isdecimal() else dt.datetime.now(tz=dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _card(facts: Facts, identity: Identity, model_bytes: int) -> str:
    return card.render(
        facts,
        name=identity.name,
        version=identity.version,
        architecture=identity.architecture,
        form=identity.form,
        score_kind=identity.score_kind,
        labels=identity.labels,
        rate_hz=identity.rate_hz,
        window_samples=identity.window_samples,
        log_floor=identity.log_floor,
        parameters=identity.parameters,
        model_bytes=model_bytes,
    )


def _npz(pcm: npt.NDArray[np.int16], scores: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, pcm=pcm.astype("<i2"), scores=scores.astype("<f4"))
    return buffer.getvalue()


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A file beside ``out`` that takes its name when the block ends well, and vanishes when it does not."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    except OSError as error:
        raise UsageError(f"{out.parent}: {error.strerror}") from None
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(0o644)
        files.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
