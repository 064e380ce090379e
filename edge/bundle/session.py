"""Open an onnxruntime session so that it computes what the graph says, in every profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.bundle.providers import CPU, XNNPACK, Provider

CPU_ALONE = (Provider(CPU, {}),)
# Takes away a Relu in front of QuantizeLinear. Where Q gives 4 bits it does so for any zero point, and the negative
# values that Relu would have cut off pass (onnxruntime 1.31): it is a fusion for 8-bit kernels, which storage has not.
_WRONG_FOR_STORAGE = ["ReluQuantRewrite"]


def open_session(
    model: bytes,
    *,
    profile: str = "cpu",
    threads: int = 1,
    providers: Sequence[Provider] = CPU_ALONE,
    write_optimised: Path | None = None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a graph.

    Args:
        model: the bytes of an ONNX file that was checked to be one.
        profile: that of the manifest. ``storage`` sets ``session.disable_quant_qdq``: Q and DQ are computed as they
            stand, because kernels of its widths do not exist.
        threads: threads inside one operator.
        providers: execution providers, the preferred one first, see :func:`edge.bundle.providers.providers_for`. One
            that does not come up is missing from ``get_providers()`` of the session.
        write_optimised: write the graph here as onnxruntime changed it for this processor.
    """
    import onnxruntime as ort  # noqa: PLC0415 - it takes half a second and 30 MB; reading a bundle must not

    settings = ort.SessionOptions()
    # XNNPACK has threads of its own, and two sets of them would be in each other's way.
    settings.intra_op_num_threads = 1 if providers[0].name == XNNPACK else threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # The wire check read these bytes as ONNX; onnxruntime must not see another format in them.
    settings.add_session_config_entry("session.load_model_format", "ONNX")
    # Spinning threads cost a Pi its battery and save microseconds.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if write_optimised is not None:
        settings.optimized_model_filepath = str(write_optimised)
    disabled: list[str] = []
    if profile == "storage":
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
        disabled = _WRONG_FOR_STORAGE
    # Otherwise, after any failure, onnxruntime goes on with other providers and without the settings above.
    session = ort.InferenceSession(
        model,
        settings,
        providers=[each.name for each in providers],
        provider_options=[each.options for each in providers],
        disabled_optimizers=disabled,
        enable_fallback=0,
    )
    session.disable_fallback()
    # It keeps the bytes for that change alone.
    session._model_bytes = None  # noqa: SLF001
    return session
