"""What a bundle says of itself: the schema of ``manifest.json``.

A bundle ``NAME.earshot`` is an uncompressed zip with exactly these members:

=================  ======================================================  ==============
member             content                                                 limit
=================  ======================================================  ==============
``manifest.json``  :class:`Manifest`                                       256 KiB
``model.onnx``     the graph: PCM in, scores out; no external data         256 MiB
``golden.npz``     ``pcm`` (n, samples) int16, ``scores`` (n, classes)     16 MiB
``README.md``      the model card                                          256 KiB
``manifest.sig``   Ed25519 signature over the bytes of ``manifest.json``   64 bytes
=================  ======================================================  ==============
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.messages import Name, Sha256

SCHEMA: Literal[1] = 1
MAX_VERSION = (1 << 31) - 1
MAX_MEMBERS = 256
MANIFEST, MODEL, GOLDEN, CARD, SIGNATURE = "manifest.json", "model.onnx", "golden.npz", "README.md", "manifest.sig"
MEMBER_LIMITS_BYTES = {
    MANIFEST: 256 << 10,
    MODEL: 256 << 20,
    GOLDEN: 16 << 20,
    CARD: 256 << 10,
    SIGNATURE: 64,
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, serialize_by_alias=True)


class Quantisation(_Frozen):
    """The number format of weights (``bits``) and activations (None: as wide), and for whom the graph was made.

    Profile ``storage`` is loaded with the session option ``session.disable_quant_qdq=1``: its widths have no
    kernels, the CPU computes in 32-bit floating point.
    """

    bits: Literal[4, 8, 16, 32]
    activation_bits: Literal[4, 8, 16, 32] | None = None
    profile: Literal["cpu", "portable", "storage"] = "cpu"
    scheme: str = "none"


class Ensemble(_Frozen):
    """A stochastic ensemble: the graph takes noise as a second input and gives the mean of its members' softmax.

    The device feeds independent standard normal numbers, float32 (members, noise_values), fresh for every window;
    the graph scales them (mean and deviation of every layer are constants in it). ``members`` is how many the device
    takes unless it is told another number: the graph takes any. A batch of windows has one row of noise for every
    member of every window, float32 (batch * members, noise_values), window by window. Golden scores are those under
    :func:`edge.bundle.noise.golden_noise` with ``members`` rows.
    """

    members: Annotated[int, Field(ge=1, le=MAX_MEMBERS)]
    noise_values: Annotated[int, Field(ge=1, le=1 << 20)]
    noise_name: str = "noise"


class Member(_Frozen):
    """Size and hash of one member of the zip."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class Tolerance(_Frozen):
    """How far a device's scores on the golden vectors may lie from those stored."""

    max_abs: Annotated[float, Field(gt=0)]


class Manifest(_Frozen):
    """The signed statement about a bundle; everything else in the file is bound to it by hash.

    ``version`` only grows. ``log_floor`` is the mean square per mel band below which the front end
    cannot see (absent for models without a log-mel front end): robustness depends strongly on it, so it is
    stated with every result.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    name: Name
    version: Annotated[int, Field(ge=1, le=MAX_VERSION)]
    architecture: str
    labels: Annotated[tuple[str, ...], Field(min_length=2, max_length=4096)]
    rate_hz: Annotated[int, Field(gt=0, le=192_000)]
    window_samples: Annotated[int, Field(gt=0, le=192_000 * 60)]
    input_name: str = "pcm"
    output_name: str = "scores"
    score_kind: Literal["logits", "probabilities"] = "logits"
    log_floor: float | None = None
    quantisation: Quantisation
    ensemble: Ensemble | None = None
    golden_tolerance: Tolerance
    members: dict[str, Member]
    training_data: str
    licence: str
    metrics: dict[str, float] = {}
    created_utc: str
    earshot_version: str

    @model_validator(mode="after")
    def _members_are_complete(self) -> Manifest:
        expected = {MODEL, GOLDEN, CARD}
        if set(self.members) != expected:
            raise ValueError(f"members must be {sorted(expected)}, not {sorted(self.members)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        if self.ensemble is not None and self.score_kind != "probabilities":
            raise ValueError("an ensemble gives probabilities, the mean of its members'; score_kind says logits")
        return self
