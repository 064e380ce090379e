"""Run the model of a verified bundle with onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle.manifest import MAX_MEMBERS, Manifest
from edge.bundle.noise import fresh_seed, golden_noise, standard_normal
from edge.bundle.providers import CPU, Provider, providers_for
from edge.bundle.reading import Bundle, Floats
from edge.bundle.session import open_session
from edge.errors import BundleError, ThresholdError, UnavailableError, UsageError

MAX_BATCH = 64
DEFAULT_PROVIDERS = (CPU,)


class Classifier:
    """PCM in, scores out: the bundle's graph in an onnxruntime session.

    ``members`` is how many members a stochastic ensemble has, None for as many as its manifest says; ``providers`` are
    onnxruntime's names, the preferred one first, with the options that the profile gives them; ``cache`` is a folder
    for their engines.

    Raises:
        BundleError: onnxruntime cannot load the graph, or its inputs and output are not those of the manifest.
        UnavailableError: a provider that onnxruntime does not have here.
        UsageError: ``members`` for a bundle that is no ensemble, or a number that it cannot have.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
        members: int | None = None,
        cache: Path | None = None,
    ) -> None:
        import onnxruntime as ort  # noqa: PLC0415 - it takes half a second and 30 MB; reading a bundle must not

        self._members = _members(bundle, members)
        available = ort.get_available_providers()
        for provider in providers:
            if provider not in available:
                raise UnavailableError(f"provider {provider!r}: onnxruntime has {', '.join(available)} here")
        try:
            self._session = open_session(
                bundle.model,
                profile=bundle.manifest.quantisation.profile,
                threads=threads,
                providers=_with_options(bundle.manifest, providers, threads=threads, cache=cache),
            )
        except Exception as error:  # noqa: BLE001 - onnxruntime has a dozen exception classes without a public base
            raise BundleError(f"{bundle.path}: onnxruntime cannot load the model: {_one_line(error)}") from None
        self._batch = _fixed_batch(self._session, bundle)
        # The session has made its own of the graph; a device has no megabytes to keep both.
        self._bundle = replace(bundle, model=b"")

    @property
    def manifest(self) -> Manifest:
        """The signed statement of the bundle."""
        return self._bundle.manifest

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the scores."""
        return self._bundle.manifest.labels

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers in use, the preferred one first."""
        return tuple(self._session.get_providers())

    @property
    def members(self) -> int | None:
        """The number of members of a stochastic ensemble, None for any other model."""
        return self._members

    def noise(self, seed: bytes) -> Floats:
        """The noise that ``seed`` (16 bytes) stands for, float32 (members, noise_values).

        Raises:
            UsageError: the bundle is no stochastic ensemble, or the seed has another length.
        """
        if self.manifest.ensemble is None or self._members is None:
            raise UsageError(f"noise: {self.manifest.name} is no stochastic ensemble, it takes none")
        return standard_normal(seed, self._members, self.manifest.ensemble.noise_values)

    def scores(self, pcm: Floats, *, noise: Floats | None = None) -> Floats:
        """Scores of each clip.

        Args:
            pcm: float32 (batch, window_samples) in [-1, 1], mono at ``manifest.rate_hz``. Any batch size.
            noise: for a stochastic ensemble, float32 (members, noise_values) of any number of members, the same for
                every clip; what :meth:`noise` makes of a seed replays a trial. None draws fresh noise for each clip
                from the operating system.

        Returns:
            float32 (batch, classes): logits or probabilities, see ``manifest.score_kind``.

        Raises:
            UsageError: another shape or dtype, or noise for a model that takes none.
        """
        samples = self.manifest.window_samples
        if pcm.dtype != np.float32 or pcm.ndim != 2 or pcm.shape[1] != samples:
            raise UsageError(f"pcm is {pcm.dtype} {pcm.shape}: the model takes float32 (batch, {samples})")
        if noise is not None:
            self._check_noise(noise)
        # Members are a batch of their own: one window at a time, as a device listens.
        step = self._batch or (MAX_BATCH if self._members is None else 1)
        if 0 < len(pcm) <= step:
            return self._run(pcm, noise)
        parts = [self._run(pcm[start : start + step], noise) for start in range(0, len(pcm), step)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.labels)), np.float32)

    def check_golden(self) -> float:
        """Compare this machine's scores on the golden vectors with those stored when the bundle was packed.

        Returns:
            the largest absolute difference.

        Raises:
            ThresholdError: it exceeds the bundle's tolerance: this machine computes something else.
        """
        ensemble = self.manifest.ensemble
        noise = None if ensemble is None else golden_noise(ensemble.members, ensemble.noise_values)
        # One clip at a time, as a device listens; onnxruntime never gives back the memory of a larger batch.
        scores = np.concatenate([self.scores(clip[np.newaxis], noise=noise) for clip in self._bundle.golden_pcm])
        difference = np.abs(scores - self._bundle.golden_scores)
        # A NaN must not pass as "not larger".
        worst = float(np.max(difference)) if np.isfinite(difference).all() else float("inf")
        limit = self.manifest.golden_tolerance.max_abs
        if worst > limit:
            raise ThresholdError(
                f"{self._bundle.path}: scores on the golden vectors differ by {worst:.3g}, the limit is {limit:.3g}: "
                f"this machine does not compute what the bundle was tested for"
            )
        return worst

    def _check_noise(self, noise: Floats) -> None:
        ensemble = self.manifest.ensemble
        if ensemble is None:
            raise UsageError(f"noise: {self.manifest.name} is no stochastic ensemble, it takes none")
        if noise.dtype != np.float32 or noise.ndim != 2 or noise.shape[1] != ensemble.noise_values or not len(noise):
            raise UsageError(
                f"noise is {noise.dtype} {noise.shape}: the model takes float32 (members, {ensemble.noise_values})"
            )

    def _run(self, pcm: Floats, noise: Floats | None) -> Floats:
        count = len(pcm)
        if self._batch and count < self._batch:
            pcm = np.concatenate([pcm, np.zeros((self._batch - count, pcm.shape[1]), np.float32)])
        feed = {self.manifest.input_name: np.ascontiguousarray(pcm)}
        if self.manifest.ensemble is not None:
            rows = [self.noise(fresh_seed()) if noise is None else noise for _ in pcm]
            feed[self.manifest.ensemble.noise_name] = np.concatenate(rows)
        result: Floats = self._session.run([self.manifest.output_name], feed)[0]
        return result[:count]


def _with_options(manifest: Manifest, names: Sequence[str], *, threads: int, cache: Path | None) -> list[Provider]:
    """Providers by name, each with the options that the bundle's profile gives it."""
    width = manifest.quantisation
    usual = providers_for(width.profile, names, bits=width.bits, threads=threads, cache=cache)
    options = {each.name: each.options for each in usual}
    return [Provider(name, options.get(name, {})) for name in names]


def _members(bundle: Bundle, wanted: int | None) -> int | None:
    """How many members the ensemble has; None for a bundle that is none."""
    ensemble = bundle.manifest.ensemble
    if wanted is None:
        return None if ensemble is None else ensemble.members
    if ensemble is None:
        raise UsageError(f"members {wanted}: {bundle.manifest.name} is no stochastic ensemble, leave --members out")
    if not 1 <= wanted <= MAX_MEMBERS:
        raise UsageError(f"members {wanted}: use 1 to {MAX_MEMBERS}")
    return wanted


def _fixed_batch(session: Any, bundle: Bundle) -> int | None:
    """The batch size the graph insists on, None when it takes any; checks names, types and shapes on the way."""
    manifest = bundle.manifest
    inputs, outputs = session.get_inputs(), session.get_outputs()
    widths = {manifest.input_name: manifest.window_samples}
    if manifest.ensemble is not None:
        widths[manifest.ensemble.noise_name] = manifest.ensemble.noise_values
    names = (sorted(each.name for each in inputs), [each.name for each in outputs])
    if names != (sorted(widths), [manifest.output_name]):
        raise BundleError(
            f"{bundle.path}: the graph takes {names[0]} and gives {names[1]}, the manifest says otherwise"
        )
    widths[manifest.output_name] = len(manifest.labels)
    for value in (*inputs, *outputs):
        shape, width = list(value.shape), widths[value.name]
        if value.type != "tensor(float)" or len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != width):
            raise BundleError(f"{bundle.path}: {value.name} is {value.type} {shape} instead of float (batch, {width})")
    rows = {each.name: each.shape[0] for each in inputs}
    if manifest.ensemble is not None and isinstance(rows[manifest.ensemble.noise_name], int):
        raise BundleError(f"{bundle.path}: {manifest.ensemble.noise_name} has a fixed number of rows, it must be free")
    batch = rows[manifest.input_name]
    return batch if isinstance(batch, int) and batch > 0 else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
