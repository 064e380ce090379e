"""A user's own architectures: a Python file that is imported only when its user names it, because that runs its code.

Such a file defines one or more subclasses of :class:`FirmwareModel` with a ``name``, a ``Settings`` and the methods
``__init__``, ``features`` and ``classify``, as every file beside this one does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

import torch
from pydantic import BaseModel

from edge.errors import UsageError
from firmware_models.architectures.base import FirmwareModel

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_MODULE = "earshot_architecture_"


def import_file(path: Path) -> list[type[FirmwareModel]]:
    """Run a Python file and find the architectures it defines; a class whose name begins with _ is none.

    Raises:
        UsageError: no such file, it does not run, or what it defines is no architecture; one line.
    """
    module = _run(path)
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, FirmwareModel)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if not kinds:
        raise UsageError(
            f"{path}: defines no architecture; it needs a class that derives from firmware_models.architectures."
            "FirmwareModel"
        )
    for kind in kinds:
        _check_class(kind, path)
    names = [kind.name for kind in kinds]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{path}: defines the architecture {twice[0]!r} twice; give one of them another name")
    return kinds


def origin(kind: type[FirmwareModel]) -> Path | None:
    """The file that :func:`import_file` found an architecture in, or None for a shipped one."""
    if not kind.__module__.startswith(_MODULE):
        return None
    return Path(str(sys.modules[kind.__module__].__file__))


def construct(
    kind: type[FirmwareModel], settings: BaseModel, *, labels: tuple[str, ...], window_samples: int, rate_hz: int
) -> FirmwareModel:
    """Build a model of somebody else's class and try it on silence.

    Raises:
        UsageError: the constructor or the model fails, or its answer has another shape; one line.
    """
    where = f"{origin(kind)}: {kind.__name__}"
    try:
        model = kind(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        described = tuple(model.labels), model.window_samples, model.rate_hz
    except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything
        raise UsageError(f"{where}: cannot be built: {_told(error)}") from None
    if described != (labels, window_samples, rate_hz):
        raise UsageError(f"{where}: hand settings, labels, window_samples and rate_hz to super().__init__ unchanged")
    if not any(True for _ in model.parameters()):
        raise UsageError(f"{where}: has no parameter to train")
    training = model.training
    try:
        # In evaluation mode nothing random is drawn and no statistic moves.
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(2, window_samples))
    except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything
        raise UsageError(f"{where}: fails on PCM of shape (2, {window_samples}): {_told(error)}") from None
    model.train(training)
    wanted = (2, len(labels))
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != wanted:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(f"{where}: gives {got} for PCM of shape (2, {window_samples}) instead of logits {wanted}")
    if logits.dtype != torch.float32:
        raise UsageError(f"{where}: gives {logits.dtype} instead of torch.float32")
    return model


def _run(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"--architecture {path}: no such Python file (.py)")
    path = path.resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise UsageError(f"{path}: line {error.lineno}: {error.msg}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not a Python file ({error})") from None
    name = _MODULE + hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UsageError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    # pydantic looks a class's annotations up in its module.
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)  # noqa: S102 - the user named this file to be run
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise UsageError(f"{path}: {_told(error, path)}") from None
    return module


def _check_class(kind: type[FirmwareModel], path: Path) -> None:
    where = f"{path}: {kind.__name__}"
    name = vars(kind).get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{where}: needs a name of its own in small letters, digits, '_', '-' and '.', e.g. name = 'mine'"
            + ("" if name is None else f" (got {name!r})")
        )
    settings = getattr(kind, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        raise UsageError(f"{where}: needs Settings = a class that derives from pydantic.BaseModel")
    if settings.model_config.get("extra") != "forbid":
        raise UsageError(
            f"{where}: its Settings must refuse unknown keys: model_config = ConfigDict(frozen=True, extra='forbid')"
        )
    for method in ("features", "classify"):
        if getattr(kind, method) is getattr(FirmwareModel, method):
            raise UsageError(f"{where}: needs the method {method}; see firmware_models.architectures.FirmwareModel")


def _told(error: BaseException, path: Path | None = None) -> str:
    """Kind, message and, for an error on the way through ``path``, the line there."""
    message = " ".join(str(error).split())[:200]
    told = f"{type(error).__name__}: {message}" if message else type(error).__name__
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {lines[-1]}: {told}" if lines else told
