"""A graph as a function of plain weight tensors: built in microseconds, with nothing in it that a pass could change.

Norms have no running statistics, neither scale nor shift (they start as 1 and 0), convolutions no bias (it starts as
0), and nothing is dropped: what a network computes depends on the weights and the batch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas import ops
from nas.graph import Graph, Node
from nas.ops import Shape
from nas.torch.build import RULES
from nas.torch.init import initialise

Tap = Callable[[int, Sequence[Tensor], Tensor], None]
"""Called after each node with its index, what it read, and what it gave."""

Call = Callable[..., Tensor]

SLOPE = 0.25
"""Of a PReLU at the start."""


def he(fan_in: int) -> float:
    """Standard deviation of He et al. (2015)."""
    return sqrt(2 / fan_in)


class Network:
    """A graph with weights of its own.

    Args:
        seed: the weights depend on it and on nothing else.
        std: standard deviation of a layer's weights, given how many inputs each of its outputs has.
        dtype: of weights and values.

    Attributes:
        weights: by the name of the node; `node.parameter` for those of a wrapped module. Vectors are not among them.
        same: for each node the first one that computes the same value: the same operation, without weights, on the
            same inputs.

    Raises PluginError where a wrapped module cannot be built.
    """

    def __init__(
        self, graph: Graph, *, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        std: Callable[[int], float] = he,
    ) -> None:  # fmt: skip
        self.graph, self.device, self.dtype = graph, torch.device(device), dtype
        self.same = _same(graph)
        self.modules: dict[str, nn.Module] = {}
        self.weights = self._draw(seed, std)
        self._calls = [self._call(node) for node in graph.nodes]
        self._reads = [[self.same[i] for i in node.inputs] for node in graph.nodes]
        last: dict[int, int] = {}
        for at, reads in enumerate(self._reads):
            last |= dict.fromkeys(reads, at)
            if self.same[at] != at:
                last[self.same[at]] = at
        self._free: list[list[int]] = [[] for _ in graph.nodes]
        for i, at in last.items():
            if i != self.same[graph.output]:
                self._free[at].append(i)

    def _draw(self, seed: int, std: Callable[[int], float]) -> dict[str, Tensor]:
        """All weights from one draw; on the CPU, so that they are the same on every device."""
        shapes: dict[str, Shape] = {}
        for node in self.graph.nodes:
            if node.weights is not None:
                continue
            into = self.graph.shapes_into(node)
            if type(node.op) is ops.Conv:
                shapes[node.name] = (node.op.width, into[0][0] // node.op.groups, *node.op.kernel)
            elif type(node.op) is ops.Linear:
                shapes[node.name] = (node.op.width, into[0][0])
            elif type(node.op) is ops.Module:
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(seed)  # for what its constructor draws
                    module = RULES[ops.Module](node.op, *into)
                initialise(module, seed)
                self.modules[node.name] = _still(module).to(self.device, self.dtype)
        sizes = [prod(shape) for shape in shapes.values()]
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(sum(sizes), generator=generator).to(self.device, self.dtype)
        weights: dict[str, Tensor] = {}
        for (name, shape), draw in zip(shapes.items(), torch.split(draws, sizes), strict=True):
            weight = draw.view(shape) * std(prod(shape[1:]))
            weights[name] = weight.to(memory_format=torch.channels_last) if len(shape) == 4 else weight
        for name, module in self.modules.items():
            weights |= {f"{name}.{part}": p for part, p in module.named_parameters() if p.dim() > 1}
        return weights

    def _call(self, node: Node) -> Call:
        op, weight = node.op, self.weights.get(node.weights or node.name)
        if type(op) is ops.Conv:
            assert weight is not None
            stride, padding, dilation, groups = op.stride, op.padding, op.dilation, op.groups
            return lambda x: F.conv2d(x, weight, None, stride, padding, dilation, groups)
        if type(op) is ops.Linear:
            assert weight is not None
            return lambda x: F.linear(x, weight)
        if type(op) is ops.Norm:
            return _normaliser(op)
        if type(op) is ops.PReLU:
            return lambda x: F.leaky_relu(x, SLOPE)
        if type(op) in (ops.Dropout, ops.DropPath, ops.Input):
            return lambda x: x
        if type(op) is ops.Module:
            return self.modules[node.weights or node.name]
        if op == ops.Activation("hard_sigmoid"):
            return lambda x: F.relu6(x + 3) / 6  # torch's own has no second derivative
        module: Call = RULES[type(op)](op, *self.graph.shapes_into(node))
        return module

    def learn(self) -> None:
        """From now on gradients with respect to the weights can be asked for."""
        for weight in self.weights.values():
            weight.requires_grad_()

    def run(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """Class scores (N, classes) of a batch (N, C, H, W). Norms use the statistics of the batch."""
        values: list[Any] = [None] * len(self._calls)
        values[0] = x
        for at in range(1, len(self._calls)):
            reads, source = [values[i] for i in self._reads[at]], self.same[at]
            value = self._calls[at](*reads) if source == at else values[source]
            if tap is not None:
                tap(at, reads, value)
            if source == at:
                values[at] = value
            for i in self._free[at]:
                values[i] = None
        result: Tensor = values[self.same[self.graph.output]]
        return result


def _normaliser(op: ops.Norm) -> Call:
    """What a norm does at the start, on the statistics of its input."""
    if op.kind == "batch":
        return lambda x: F.batch_norm(x, None, None, training=True, eps=op.eps)
    if op.kind == "instance":
        return lambda x: F.instance_norm(x, eps=op.eps)
    return lambda x: F.group_norm(x, op.groups, eps=op.eps)


def _same(graph: Graph) -> list[int]:
    known: dict[Any, int] = {}
    same: list[int] = []
    for at, node in enumerate(graph.nodes):
        what = at if node.op.own else (node.op, tuple([same[i] for i in node.inputs]))
        same.append(known.setdefault(what, at))
    return same


def _still(module: nn.Module) -> nn.Module:
    """A wrapped module that drops nothing, and whose batch norms keep the running statistics they have."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        elif isinstance(part, nn.modules.batchnorm._NormBase):
            part.momentum = 0.0
    return module.requires_grad_(False)
