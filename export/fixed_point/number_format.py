"""Number formats: how wide the weights and activations of a graph are, and for whom the graph was made.

============  ===============  ==============================================================================
profile       weights x        what it is
              activations
============  ===============  ==============================================================================
``cpu``       32x32, 8x8       for onnxruntime on a CPU: U8S8, the only width below 32 that a CPU computes in
``portable``  32x32, 8x8       for TensorRT and others: S8S8 symmetric, float biases, fixed batch, no contrib op
``storage``   16, 8, 4 x       16 and 4 bits as numbers, 32 bits as arithmetic: small files and the study of
              32, 16, 8, 4     narrow fixed point, never speed; loaded with ``session.disable_quant_qdq=1``
============  ===============  ==============================================================================

Source: dynamic fixed point, one bit depth for the network and a scale per layer (Countering acoustic adversarial
attacks, section 2.3.2).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from edge.errors import UsageError

Bits = Literal[4, 8, 16, 32]
Profile = Literal["cpu", "portable", "storage"]


class NumberFormat(BaseModel):
    """Widths, profile and the form of the scales.

    ``per_channel``: a scale per output channel of a weight instead of one per tensor. ``power_of_two``: scales are
    powers of two, as fixed-point hardware without multipliers wants them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: Bits = 32
    activation_bits: Bits = 32
    profile: Profile = "cpu"
    per_channel: bool = True
    power_of_two: bool = False

    @model_validator(mode="after")
    def _exists(self) -> Self:
        pair = (self.bits, self.activation_bits)
        if self.profile == "storage":
            if self.bits == 32:
                raise ValueError("profile storage is for weights of 16, 8 or 4 bits; 32 bits go with cpu or portable")
        elif pair not in {(32, 32), (8, 8)}:
            raise ValueError(
                f"profile {self.profile} computes in 32 or in 8 bits, not with weights of {self.bits} and activations "
                f"of {self.activation_bits}: use storage"
            )
        return self

    @property
    def quantised(self) -> bool:
        """Whether anything is rounded."""
        return self.bits != 32

    @property
    def scheme(self) -> str:
        """One line for manifest and card, e.g. ``U8S8 per channel, static, Q/DQ``."""
        if not self.quantised:
            return "FP32"
        scales = "per channel" if self.per_channel else "per tensor"
        powers = ", power-of-two scales" if self.power_of_two else ""
        if self.activation_bits == 32:
            return f"W{self.bits} {scales}, weights only{powers}"
        if self.profile == "storage":
            return f"W{self.bits}A{self.activation_bits} {scales}, static, Q/DQ{powers}"
        kind = "U8S8" if self.profile == "cpu" else "S8S8 symmetric"
        return f"{kind} {scales}, static, Q/DQ{powers}"


def number_format(
    bits: int,
    *,
    activation_bits: int | None = None,
    profile: str | None = None,
    per_channel: bool = True,
    power_of_two: bool = False,
) -> NumberFormat:
    """The format that a person asked for: activations as wide as the weights, 16 and 4 bits in profile ``storage``.

    Raises:
        UsageError: there is no such format; the message names those there are.
    """
    chosen = profile or ("storage" if bits in {4, 16} or activation_bits not in {None, bits} else "cpu")
    try:
        return NumberFormat.model_validate(
            {
                "bits": bits,
                "activation_bits": bits if activation_bits is None else activation_bits,
                "profile": chosen,
                "per_channel": per_channel,
                "power_of_two": power_of_two,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(f"--{str(part).replace('_', '-')} {first['input']!r}:" for part in first["loc"])
        raise UsageError(f"{where} {first['msg'].removeprefix('Value error, ')}".strip()) from None
