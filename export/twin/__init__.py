"""The twin of a bundle: the very graph that a device runs, as a torch module with a gradient.

Attacks are crafted on it. It is made from the ONNX graph, not from the checkpoint, so that it cannot drift from
what ships: weights and scales are those of the file, and a pair of QuantizeLinear and DequantizeLinear rounds as
onnxruntime does. Rounding has no useful gradient; the twin passes it straight through inside the representable range
and stops it outside (see :mod:`export.twin.rounding`).
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import torch
from onnx import GraphProto, ModelProto
from torch import Tensor, nn

from edge.bundle.reading import Bundle
from edge.errors import UsageError
from export.twin.compiler import Compiler, with_last_uses

_CLOSE = 0.05


class Twin(nn.Module):
    """A frozen module: ``pcm`` float32 (batch, samples) in [-1, 1] to scores float32 (batch, classes).

    Everything that does not depend on ``pcm`` is computed once, when the twin is made. ``quantised`` is true when
    the graph rounds anything on the way. A graph that takes one batch size only has a twin that takes any.

    A stochastic ensemble has a second input, ``noise``. Where it is not given, each call draws it anew, independently
    for every clip, from ``generator``: an attack that averages gradients over calls attacks the expectation.
    ``members`` is how many are drawn, ``noise_values`` how many numbers each of them takes; None for other models.

    ``simulated`` says that the graph is of profile ``storage``: onnxruntime computes Q and DQ as they stand. Otherwise
    it rounds the float biases of 8-bit layers too, and so does the twin.
    """

    def __init__(
        self,
        model: ModelProto,
        *,
        labels: tuple[str, ...] = (),
        simulated: bool = False,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.labels = labels
        graph = model.graph
        stored = {each.name for each in graph.initializer}
        inputs = [each for each in graph.input if each.name not in stored]
        if len(inputs) not in {1, 2} or len(graph.output) != 1:
            raise UsageError("the twin needs a graph with one output, and with pcm and at most noise as inputs")
        self._names, self._output = [each.name for each in inputs], graph.output[0].name
        self.members, self.noise_values = None, None
        if len(inputs) == 2:
            self.members, self.noise_values = members or 1, _sizes(graph, inputs[1].name)[-1]
        self.generator = generator
        batch, samples = _sizes(graph, inputs[0].name)
        self._pieces: int | None = None
        self._compile(Compiler(model, set(self._names), batch=batch, simulated=simulated))
        if batch and not self._takes_any_batch(batch, samples):
            self._pieces = batch
            self._compile(Compiler(model, set(self._names), batch=None, simulated=simulated))
        self.eval()

    def _compile(self, compiler: Compiler) -> None:
        self.quantised = compiler.quantised
        self._steps = with_last_uses(compiler.steps, keep=self._output)
        used = {name for step in self._steps for name in step.inputs}
        self._constants = {}
        for index, name in enumerate(sorted(used & compiler.constants.keys())):
            self._constants[name] = f"constant_{index}"
            self.register_buffer(f"constant_{index}", compiler.constants[name])

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, generator: torch.Generator | None = None) -> Twin:
        """The twin of a verified bundle.

        Raises:
            UsageError: the graph has an operator that the twin does not know; the message names it.
        """
        ensemble = bundle.manifest.ensemble
        return cls(
            onnx.load_from_string(bundle.model),
            labels=bundle.manifest.labels,
            simulated=bundle.manifest.quantisation.profile == "storage",
            members=None if ensemble is None else ensemble.members,
            generator=generator,
        )

    def forward(self, pcm: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scores (batch, classes) of PCM (batch, samples).

        ``noise``, for a stochastic ensemble only, is (members, noise_values), the same for every clip, or (batch,
        members, noise_values), of any number of members.

        Raises:
            UsageError: noise for a model that takes none, or of another shape.
        """
        if self.noise_values is None:
            if noise is not None:
                raise UsageError("noise: this model takes none, it is no stochastic ensemble")
            return self._whole(pcm)
        return self._run(pcm, self._noise(pcm, noise))

    def trainable(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """Make constants of the graph parameters that can be trained, and give them by their names.

        Those that the twin does not use as they are stored, for example weights of whole numbers, are left out.
        """
        found: dict[str, nn.Parameter] = {}
        for name in names:
            place = self._constants.get(name)
            if place is not None and place in self._buffers:
                parameter = found[name] = nn.Parameter(getattr(self, place).clone())
                del self._buffers[place]
                self.register_parameter(place, parameter)
        return found

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Fresh noise for ``batch`` clips, float32 (batch, members, noise_values): standard normal.

        Drawn from ``generator``, or from the twin's own, or where neither is given from one that is seeded by the
        operating system.

        Raises:
            UsageError: the model takes no noise.
        """
        if self.members is None or self.noise_values is None:
            raise UsageError("noise: this model takes none, it is no stochastic ensemble")
        if generator is None and self.generator is None:
            self.generator = torch.Generator()
            self.generator.seed()
        return torch.randn(batch, self.members, self.noise_values, generator=generator or self.generator)

    def _noise(self, pcm: Tensor, noise: Tensor | None) -> Tensor:
        if noise is None:
            noise = self.draw(len(pcm)).to(pcm)
        if noise.ndim == 2:
            noise = noise.expand(len(pcm), *noise.shape)
        if noise.ndim != 3 or len(noise) != len(pcm) or noise.shape[2] != self.noise_values or not noise.shape[1]:
            raise UsageError(f"noise {tuple(noise.shape)}: use (members, {self.noise_values}) or the same per clip")
        return noise.flatten(0, 1)

    def _whole(self, pcm: Tensor) -> Tensor:
        size = self._pieces
        if size is None:
            return self._run(pcm)
        parts = []
        for start in range(0, len(pcm), size):
            part = pcm[start : start + size]
            missing = size - len(part)
            parts.append(self._run(nn.functional.pad(part, (0, 0, 0, missing)))[: len(part)])
        return torch.cat(parts)

    def _run(self, *inputs: Tensor) -> Tensor:
        values: dict[str, Tensor] = dict(zip(self._names, inputs, strict=True))
        for name, buffer in self._constants.items():
            values[name] = getattr(self, buffer)
        for step in self._steps:
            results = step.compute(*(values[name] for name in step.inputs))
            values.update(zip(step.outputs, results if isinstance(results, tuple) else (results,), strict=False))
            for name in step.last_uses:
                values.pop(name, None)
        return values[self._output]

    @torch.no_grad()
    def _takes_any_batch(self, size: int, samples: int | None) -> bool:
        """Whether clips of a larger batch get the scores that they get in batches of ``size``."""
        if samples is None or self.noise_values is not None:
            return False
        sound = 0.1 * torch.randn(2 * size, samples, generator=torch.Generator().manual_seed(0))
        try:
            together = self._run(sound)
        except RuntimeError:
            return False
        apart = torch.cat([self._run(sound[:size]), self._run(sound[size:])])
        if together.shape != apart.shape:
            return False
        return bool((together - apart).abs().max() <= _CLOSE * (apart.max() - apart.min()))


def _sizes(graph: GraphProto, name: str) -> tuple[int | None, ...]:
    """The two sizes of an input, None where they are free."""
    value = next(each for each in graph.input if each.name == name)
    sizes = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
    if len(sizes) != 2:
        raise UsageError(f"the twin needs inputs of two dimensions, {name} has {len(sizes)}")
    return tuple(sizes)
