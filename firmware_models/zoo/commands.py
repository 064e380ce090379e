"""The exact commands that make a bundle, from what the bundle says of itself, and for those of the zoo not shipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge.bundle.manifest import Manifest

ARCHITECTURES = ("lms", "lm", "ete")
WIDTHS = (32, 16, 8, 4)
# Low rank as in the paper: 16 for fully connected layers, 64 for convolutions.
RANKS = {"fc": 16, "conv": 64}
# The recipe that retrains the factors of an architecture.
RETRAINING = {"ete": "low-rank-ete", "lms": "low-rank-lms"}
_OTHERS_RETRAINING = "low-rank"

_COMMAND = re.compile(r"^Command: `(?P<command>earshot [^`]+)`", re.MULTILINE)
_EXPORT = re.compile(r"^Export: `(?P<command>earshot [^`]+)`", re.MULTILINE)
_RESHAPE = re.compile(r"\breshape (?P<reshape>channels|spatial)\b")
_SIGMA = re.compile(r"\bsigma (?P<sigma>[0-9.e-]+)\b")


@dataclass(frozen=True)
class Planned:
    """A bundle of the zoo's grid: an architecture in a number format, at full or at low rank."""

    architecture: str
    bits: int
    low_rank: bool

    @property
    def name(self) -> str:
        """The name under which it is or would be released."""
        kind = "fp32" if self.bits == 32 else f"int{self.bits}"
        return f"{self.architecture}-{'low-rank-' if self.low_rank else ''}{kind}"

    @property
    def commands(self) -> tuple[str, ...]:
        """What makes it from recordings."""
        ranks = RANKS if self.low_rank else {}
        form = () if self.bits == 32 else (f"--bits {self.bits}",)
        return (
            f"earshot train {self.architecture} --data DIR --out runs/{self.architecture}",
            _export(
                f"runs/{self.architecture}",
                self.name,
                ranks,
                form,
                retrained=_recipe(self.architecture, retrained=self.low_rank),
            ),
        )


def grid() -> Iterator[Planned]:
    """All bundles of the zoo, shipped or not."""
    for architecture in ARCHITECTURES:
        for low_rank in (False, True):
            for bits in WIDTHS:
                yield Planned(architecture, bits, low_rank)


def ranks_of(metrics: Mapping[str, float]) -> dict[str, int]:
    """The largest rank of each kind of layer, e.g. ``{"conv": 64, "fc": 16}``; empty at full rank."""
    found: dict[str, int] = {}
    for key, value in metrics.items():
        if match := re.fullmatch(r"rank_(?:.*\.)?([a-z]+)[0-9_]*", key):
            kind = match[1]
            found[kind] = max(found.get(kind, 0), round(value))
    return dict(sorted(found.items()))


def commands_of(manifest: Manifest, card: str) -> tuple[str, ...]:
    """What made a bundle: as its card says, or else what its manifest amounts to.

    Paths are placeholders; a foreign model has no command.
    """
    trained, exported = _COMMAND.search(card), _EXPORT.search(card)
    if trained is None:
        return ()
    if exported is not None:
        return trained["command"], exported["command"]
    quantisation, extra = manifest.quantisation, []
    if quantisation.bits != 32:
        extra.append(f"--bits {quantisation.bits}")
    if quantisation.activation_bits not in {None, quantisation.bits}:
        extra.append(f"--activation-bits {quantisation.activation_bits}")
    usual = "storage" if quantisation.bits in {4, 16} else "cpu"
    if quantisation.profile != usual:
        extra.append(f"--profile {quantisation.profile}")
    extra += ["--per-tensor"] if "per tensor" in quantisation.scheme else []
    extra += ["--power-of-two"] if "power-of-two" in quantisation.scheme else []
    ranks = ranks_of(manifest.metrics)
    if ranks and (reshape := _RESHAPE.search(card)) is not None and reshape["reshape"] != "channels":
        extra.append(f"--reshape {reshape['reshape']}")
    if manifest.ensemble is not None:
        extra.append(f"--ensemble {manifest.ensemble.members}")
        extra += [f"--sigma {found['sigma']}"] if (found := _SIGMA.search(card)) else []
    retrained = _recipe(manifest.architecture, retrained="retrained minutes" in card)
    return trained["command"], _export("RUN", manifest.name, ranks, tuple(extra), retrained=retrained)


def _recipe(architecture: str, *, retrained: bool) -> str | None:
    return RETRAINING.get(architecture, _OTHERS_RETRAINING) if retrained else None


def _export(run: str, name: str, ranks: Mapping[str, int], extra: tuple[str, ...], *, retrained: str | None) -> str:
    parts = [f"earshot export {run} --calibration DIR --key KEY.pem --out {name}.earshot"]
    parts += [f"--rank-{kind} {rank}" for kind, rank in sorted(ranks.items(), reverse=True) if kind in RANKS]
    parts += [f"--retrain {retrained} --run {run}-{retrained}"] if retrained else []
    return " ".join([*parts, *extra])
