"""Run the model of a verified bundle with onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge.bundle.manifest import Manifest
from edge.bundle.reading import Bundle, Floats
from edge.errors import BundleError, ThresholdError, UnavailableError, UsageError

MAX_BATCH = 64
DEFAULT_PROVIDERS = ("CPUExecutionProvider",)


class Classifier:
    """PCM in, scores out: the bundle's graph in an onnxruntime session.

    Raises:
        BundleError: onnxruntime cannot load the graph, or its input and output are not those of the manifest.
        UnavailableError: a provider that onnxruntime does not have here.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1, providers: Sequence[str] = DEFAULT_PROVIDERS) -> None:
        import onnxruntime as ort  # noqa: PLC0415 - it takes half a second and 30 MB; reading a bundle must not

        available = ort.get_available_providers()
        for provider in providers:
            if provider not in available:
                raise UnavailableError(f"provider {provider!r}: onnxruntime has {', '.join(available)} here")
        try:
            self._session = ort.InferenceSession(
                bundle.model, _options(ort, bundle.manifest, threads), providers=list(providers)
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

    def scores(self, pcm: Floats) -> Floats:
        """Scores of each clip.

        Args:
            pcm: float32 (batch, window_samples) in [-1, 1], mono at ``manifest.rate_hz``. Any batch size.

        Returns:
            float32 (batch, classes): logits or probabilities, see ``manifest.score_kind``.

        Raises:
            UsageError: another shape or dtype.
        """
        samples = self.manifest.window_samples
        if pcm.dtype != np.float32 or pcm.ndim != 2 or pcm.shape[1] != samples:
            raise UsageError(f"pcm is {pcm.dtype} {pcm.shape}: the model takes float32 (batch, {samples})")
        step = self._batch or MAX_BATCH
        parts = [self._run(pcm[start : start + step]) for start in range(0, len(pcm), step)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.labels)), np.float32)

    def check_golden(self) -> float:
        """Compare this machine's scores on the golden vectors with those stored when the bundle was packed.

        Returns:
            the largest absolute difference.

        Raises:
            ThresholdError: it exceeds the bundle's tolerance: this machine computes something else.
        """
        # One clip at a time, as a device listens; onnxruntime never gives back the memory of a larger batch.
        scores = np.concatenate([self.scores(clip[np.newaxis]) for clip in self._bundle.golden_pcm])
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

    def _run(self, pcm: Floats) -> Floats:
        count = len(pcm)
        if self._batch and count < self._batch:
            pcm = np.concatenate([pcm, np.zeros((self._batch - count, pcm.shape[1]), np.float32)])
        feed = {self.manifest.input_name: np.ascontiguousarray(pcm)}
        result: Floats = self._session.run([self.manifest.output_name], feed)[0]
        return result[:count]


def _options(ort: Any, manifest: Manifest, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The wire check read these bytes as ONNX; onnxruntime must not see another format in them.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Spinning threads cost a Pi its battery and save microseconds.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if manifest.quantisation.profile == "storage":
        # Quantised storage only: fusing Q/DQ would pick kernels that do not exist for these widths.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _fixed_batch(session: Any, bundle: Bundle) -> int | None:
    """The batch size the graph insists on, None when it takes any; checks names, types and shapes on the way."""
    manifest = bundle.manifest
    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = ([each.name for each in inputs], [each.name for each in outputs])
    if names != ([manifest.input_name], [manifest.output_name]):
        raise BundleError(
            f"{bundle.path}: the graph takes {names[0]} and gives {names[1]}, the manifest says otherwise"
        )
    for value, width in ((inputs[0], manifest.window_samples), (outputs[0], len(manifest.labels))):
        shape = list(value.shape)
        if value.type != "tensor(float)" or len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != width):
            raise BundleError(f"{bundle.path}: {value.name} is {value.type} {shape} instead of float (batch, {width})")
    batch = inputs[0].shape[0]
    return batch if isinstance(batch, int) and batch > 0 else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
