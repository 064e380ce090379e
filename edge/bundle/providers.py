"""Which execution providers of onnxruntime compute a bundle: those that its profile was made for, where they are."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edge.errors import UnavailableError, UsageError

CPU = "CPUExecutionProvider"
XNNPACK = "XnnpackExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
SHORT_NAMES = {"cpu": CPU, "xnnpack": XNNPACK, "cuda": CUDA, "tensorrt": TENSORRT}

# The bundle that runs and the one of the other slot.
_KEPT_CACHES = 2


class Provider(NamedTuple):
    """An execution provider by onnxruntime's name, and its options."""

    name: str
    options: dict[str, str]


def providers_for(
    profile: str, available: Sequence[str], *, bits: int = 8, threads: int = 1, cache: Path | None = None
) -> tuple[Provider, ...]:
    """The providers for a bundle, the preferred one first and the CPU last, of those that are ``available``.

    ===========  ======  ====================================================================================
    profile      bits    providers
    ===========  ======  ====================================================================================
    ``cpu``      32      XNNPACK, a library of floating-point kernels, where onnxruntime was built with it
    ``cpu``      others  CPU alone: these graphs carry its own 8-bit operators, and give the same bits on every CPU
    ``portable`` any     TensorRT, CUDA
    ``storage``  any     CPU alone: the widths have no kernels anywhere
    ===========  ======  ====================================================================================

    Args:
        profile: the manifest's.
        available: what onnxruntime has here.
        bits: the manifest's width of weights.
        threads: threads inside one operator.
        cache: a folder that nobody else can write, for the engines TensorRT builds in minutes; None builds anew.
    """
    wanted: list[Provider] = []
    if profile == "cpu" and bits == 32:
        # Its threads are its own: https://onnxruntime.ai/docs/execution-providers/Xnnpack-ExecutionProvider.html
        wanted = [Provider(XNNPACK, {"intra_op_num_threads": str(threads)})]
    elif profile == "portable":
        wanted = [Provider(TENSORRT, _tensorrt_options(bits, cache)), Provider(CUDA, _cuda_options())]
    return (*(each for each in wanted if each.name in available), Provider(CPU, {}))


def _tensorrt_options(bits: int, cache: Path | None) -> dict[str, str]:
    # Ranges come with the graph's Q and DQ; half precision is no width that a bundle was tested in.
    options = {"trt_int8_enable": str(bits == 8), "trt_fp16_enable": "False"}
    if cache is not None:
        options |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        }
    return options


def _cuda_options() -> dict[str, str]:
    # 10 bits of mantissa would not give the golden scores; memory is shared with all else on a Jetson.
    return {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}


def named(name: str, available: Sequence[str]) -> tuple[str, ...]:
    """The provider that a user asked for by its short or full name, and the CPU for what it leaves over.

    Raises:
        UsageError: nothing has this name.
        UnavailableError: onnxruntime does not have it here.
    """
    full = SHORT_NAMES.get(name.lower(), name)
    if full not in available:
        there = ", ".join(available)
        if full in SHORT_NAMES.values():
            raise UnavailableError(f"provider {name!r}: onnxruntime has {there} here")
        raise UsageError(f"provider {name!r}: use {', '.join(SHORT_NAMES)}, or one of {there}")
    return (full,) if full == CPU else (full, CPU)


def engine_cache(state_dir: Path, bundle_sha256: str) -> Path:
    """The folder for one bundle's engines below ``state_dir``; those of all but the last two bundles are removed.

    An engine is code that TensorRT runs as it is: the folder belongs to this user alone.
    """
    root = state_dir / "engines"
    folder = root / bundle_sha256[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    root.chmod(0o700)
    folder.touch()
    others = sorted((each for each in root.iterdir() if each != folder), key=lambda each: each.stat().st_mtime)
    for old in others[: max(0, len(others) - _KEPT_CACHES + 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
