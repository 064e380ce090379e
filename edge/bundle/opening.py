"""From a verified bundle to a classifier on the providers that its profile was made for."""

from __future__ import annotations

import logging
from pathlib import Path

from edge.bundle.classifier import Classifier
from edge.bundle.providers import named, providers_for
from edge.bundle.reading import Bundle
from edge.errors import BundleError, ThresholdError, UnavailableError

log = logging.getLogger(__name__)


def open_classifier(
    bundle: Bundle,
    *,
    threads: int = 1,
    members: int | None = None,
    provider: str | None = None,
    cache: Path | None = None,
) -> tuple[Classifier, float]:
    """The bundle on the best provider that computes its golden vectors, and how far from them it lies.

    Providers that do not come up or compute something else are left aside, with one line in the log for each.

    Args:
        bundle: the verified bundle.
        threads: threads inside one operator.
        members: as for :class:`Classifier`.
        provider: this one or none at all: a short name (``cpu``, ``xnnpack``, ``cuda``, ``tensorrt``) or onnxruntime's;
            None or ``auto`` chooses by the profile.
        cache: a folder for the engines TensorRT builds, see :func:`edge.bundle.providers.engine_cache`.

    Raises:
        BundleError: onnxruntime cannot load the graph.
        ThresholdError: not even the CPU, or not the provider that was asked for, computes the golden vectors.
        UnavailableError: the provider that was asked for is not here.
        UsageError: there is no such provider, or a wrong number of ``members``.
    """
    import onnxruntime as ort  # noqa: PLC0415 - it takes half a second and 30 MB; wrong arguments must not

    available = ort.get_available_providers()
    if provider is not None and provider != "auto":
        names = named(provider, available)
        classifier = Classifier(bundle, threads=threads, members=members, providers=names, cache=cache)
        if classifier.providers[0] != names[0]:
            raise UnavailableError(f"provider {provider!r}: onnxruntime has it, but it does not start on this machine")
        return classifier, classifier.check_golden()
    width = bundle.manifest.quantisation
    names = tuple(each.name for each in providers_for(width.profile, available, bits=width.bits))
    while len(names) > 1:
        try:
            classifier = Classifier(bundle, threads=threads, members=members, providers=names, cache=cache)
            if classifier.providers[0] == names[0]:
                return classifier, classifier.check_golden()
            reason = "it does not start on this machine"
        except (BundleError, ThresholdError) as error:
            reason = str(error)
        log.warning("%s is left aside for %s: %s", names[0], names[1], reason)
        names = names[1:]
    classifier = Classifier(bundle, threads=threads, members=members)
    return classifier, classifier.check_golden()
