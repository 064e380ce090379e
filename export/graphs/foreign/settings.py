"""What a log-mel front end of somebody else does, as settings.

What usual programs do, in our settings (those that are not named here stay as the program was told):

=========================================  ==========================================================================
program                                    settings
=========================================  ==========================================================================
earshot                                    the defaults
librosa ``melspectrogram``,                ``padding: zero`` (before 0.10: ``reflect``), ``scaling: none``,
``power_to_db``                            ``mel_scale: slaney``, ``filter_norm: area``, ``log: db``, ``floor: clip``,
                                           ``log_floor: 1e-10``, ``range_db: 80``, ``low_hz: 0``,
                                           ``high_hz`` half the rate
torchaudio ``MelSpectrogram``,             ``padding: reflect``, ``scaling: none``, ``log: db``, ``floor: clip``,
``AmplitudeToDB``                          ``log_floor: 1e-10``, ``low_hz: 0``, ``high_hz`` half the rate
TensorFlow ``linear_to_mel_weight_matrix`` ``window_at: start``, ``spectrum: magnitude``, ``scaling: none``,
                                           ``triangles_over: mel``, ``log: ln``
=========================================  ==========================================================================

Not offered: dither, pre-emphasis, and mean or deviation taken over a clip.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.errors import UsageError

Numbers = float | tuple[float, ...]


class FrontEndSettings(BaseModel):
    """How features are made from sound: frames, spectrum, mel bands, logarithm, constants; in this order.

    Frames: ``frame_samples`` under ``window`` every ``hop_samples``. Where ``dft_samples`` is larger, the window lies
    in its ``centre`` or at its ``start``. ``padding`` adds half a DFT of silence or reflection at both ends.

    Spectrum: squared or plain magnitudes of samples in +-``full_scale``; ``scaling`` divides the squares by nothing,
    by the DFT's length (``dft``), by the window's energy (``window``), or turns them into mean squares.

    Bands: ``htk`` is 2595 log10(1 + f / 700), ``slaney`` is linear below 1 kHz; triangles of height 1 (``peak``) or
    of area 1 in Hz (``area``), straight over Hz or over mel.

    Logarithm: ``ln1p`` is ln(1 + x / log_floor). ``ln``, ``log10`` and ``db`` (10 log10 of a power, 20 log10 of a
    magnitude) add the floor or ``clip`` at it. In dB, ``range_db`` cuts what is so far below the clip's peak, and
    ``relative_to_peak`` makes that peak 0.

    Last, the first ``cepstra`` of an orthonormal DCT-II where asked for, then (x - mean) / deviation, one number or
    one for each band.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bands: int = Field(default=40, ge=1, le=512)
    frame_samples: int = Field(default=400, ge=16, le=16384)
    hop_samples: int = Field(default=160, ge=1, le=16384)
    dft_samples: int | None = Field(default=None, ge=16, le=32768)
    window: Literal["hann", "hann_symmetric", "hamming", "hamming_symmetric", "rectangular"] = "hann"
    window_at: Literal["centre", "start"] = "centre"
    padding: Literal["none", "zero", "reflect"] = "none"
    full_scale: float = Field(default=1.0, gt=0, le=1e6)
    spectrum: Literal["power", "magnitude"] = "power"
    scaling: Literal["mean_square", "none", "dft", "window"] = "mean_square"
    low_hz: float = Field(default=20.0, ge=0)
    high_hz: float | None = Field(default=None, gt=0)
    mel_scale: Literal["htk", "slaney"] = "htk"
    filter_norm: Literal["peak", "area"] = "peak"
    triangles_over: Literal["hz", "mel"] = "hz"
    log: Literal["ln1p", "ln", "log10", "db", "none"] = "ln1p"
    log_floor: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    floor: Literal["add", "clip"] = "add"
    range_db: float | None = Field(default=None, gt=0)
    relative_to_peak: bool = False
    cepstra: int | None = Field(default=None, ge=1, le=512)
    mean: Numbers = 0.0
    deviation: Numbers = 1.0

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.dft < self.frame_samples:
            raise ValueError(f"dft_samples {self.dft} is less than frame_samples {self.frame_samples}")
        if self.window_at == "start" and self.padding != "none":
            raise ValueError("window_at start goes with padding none")
        if self.log != "db" and (self.range_db is not None or self.relative_to_peak):
            raise ValueError("range_db and relative_to_peak go with log db")
        if self.cepstra is not None and self.cepstra > self.bands:
            raise ValueError(f"cepstra {self.cepstra} exceed bands {self.bands}")
        for name in ("mean", "deviation"):
            numbers = np.atleast_1d(getattr(self, name))
            if numbers.size not in {1, self.width} or not np.isfinite(numbers).all():
                raise ValueError(
                    f"{name} has {numbers.size} numbers: give one, or one for each of {self.width}, finite"
                )
        if not np.all(np.atleast_1d(self.deviation) > 0):
            raise ValueError("deviation must be larger than 0")
        return self

    @property
    def dft(self) -> int:
        """The length of the DFT in samples."""
        return self.dft_samples or self.frame_samples

    @property
    def width(self) -> int:
        """The numbers per frame."""
        return self.cepstra or self.bands

    @property
    def span_samples(self) -> int:
        """How much (padded) sound the first frame needs."""
        return self.dft if self.window_at == "centre" else self.frame_samples

    def frames(self, samples: int) -> int:
        """The number of frames that ``samples`` give; 0 or less where there is no whole frame."""
        padded = samples + (2 * (self.dft // 2) if self.padding != "none" else 0)
        return (padded - self.span_samples) // self.hop_samples + 1

    def samples(self, frames: int) -> int:
        """The smallest number of samples that gives ``frames``."""
        padded = (frames - 1) * self.hop_samples + self.span_samples
        return padded - (2 * (self.dft // 2) if self.padding != "none" else 0)

    def top_hz(self, rate_hz: int) -> float:
        """The upper end of the bands; 7600 Hz or half the rate where ``high_hz`` is not given.

        Raises:
            UsageError: there is nothing between the lower and the upper end.
        """
        top_hz = min(7600.0, rate_hz / 2) if self.high_hz is None else self.high_hz
        if not self.low_hz < top_hz <= rate_hz / 2:
            raise UsageError(f"mel bands {self.low_hz:g}..{top_hz:g} Hz: use 0 <= low < high <= {rate_hz / 2:g} Hz")
        return top_hz


def load_front_end(path: Path) -> FrontEndSettings:
    """Read the settings of a front end from a YAML file.

    Raises:
        UsageError: no such file, not YAML, an unknown key or a value that is not allowed; one line.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected keys and values such as 'bands: 40'")
    return front_end(content, where=str(path))


def front_end(content: dict[str, Any], *, where: str = "front end") -> FrontEndSettings:
    """Settings from plain values, as a file or a command line gives them.

    Raises:
        UsageError: an unknown key or a value that is not allowed; one line that begins with ``where``.
    """
    try:
        return FrontEndSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:1])
        got = f" (got {first['input']!r})" if isinstance(first["input"], str | int | float) else ""
        known = f"; allowed: {', '.join(FrontEndSettings.model_fields)}" if first["type"] == "extra_forbidden" else ""
        said = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {key + ': ' if key else ''}{said}{got}{known}") from None


def front_end_from_ms(
    rate_hz: int, *, bands: int = 40, frame_ms: float = 25.0, hop_ms: float = 10.0, log_floor: float = 1e-6
) -> FrontEndSettings:
    """Our own front end with other numbers.

    Raises:
        UsageError: a value out of range, or a time that is no whole number of samples at ``rate_hz``.
    """
    samples = {}
    for key, time_ms in (("frame", frame_ms), ("hop", hop_ms)):
        exact = time_ms * rate_hz / 1000
        if not math.isfinite(exact) or exact < 1 or abs(exact - round(exact)) > 1e-6:
            raise UsageError(
                f"--{key}-ms {time_ms:g} is {exact:g} samples at {rate_hz} Hz: give a whole number of them"
            )
        samples[f"{key}_samples"] = round(exact)
    return front_end({"bands": bands, **samples, "log_floor": log_floor})
