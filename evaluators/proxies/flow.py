"""The pass of synflow: what flows through a network whose weights are all positive, whatever its depth.

Weights are taken by their absolute values, the input is ones, norms do nothing, and gates (squeeze-and-excitation) are
open. In the paper's ReLU networks activations then do nothing either, since nothing is negative; here none does,
whichever it is: a bounded one such as ReLU6 or tanh would cut off every deeper gradient.

The flow reaches 1e42 in common networks. Values are divided by their largest one after each layer, and the logarithm of
what they were divided by goes with them, so that float32 serves for any depth.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas import ops
from nas.torch.build import RULES

from .network import Network

NEUTRAL = (ops.Norm, ops.Activation, ops.PReLU, ops.Dropout, ops.DropPath)
JOINS = (ops.Add, ops.Mean, ops.Concat)


class Flow(NamedTuple):
    """Absolute weights |w|, and dR/d|w| divided by e^scale, R being the sum of all outputs; by name."""

    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    scale: Tensor


def flow(network: Network) -> Flow:
    """The flow through a network (whose own weights stay as they are)."""
    graph = network.graph
    weights = {name: w.detach().abs().requires_grad_() for name, w in network.weights.items()}
    values: list[Any] = [torch.ones(1, *graph.shapes[0], dtype=network.dtype, device=network.device)]
    values[0] = values[0].contiguous(memory_format=torch.channels_last)
    scales: list[Tensor] = [torch.zeros((), dtype=network.dtype, device=network.device)]
    with torch.enable_grad():
        for node in graph.nodes[1:]:
            op, reads = node.op, [values[i] for i in node.inputs]
            scale = scales[node.inputs[0]]
            if type(op) in NEUTRAL:
                value = reads[0]
            elif type(op) is ops.Mul:
                positions = [prod(graph.shapes[i][1:]) for i in node.inputs]
                kept = positions.index(max(positions))
                value, scale = reads[kept], scales[node.inputs[kept]]
            elif op.layer:
                owner = node.weights or node.name
                value, scale = _scaled(_layer(op, owner, network, weights, reads), scale)
            else:
                if type(op) in JOINS:
                    every = [scales[i] for i in node.inputs]
                    scale = torch.stack(every).amax()
                    reads = [x * (s - scale).exp() for x, s in zip(reads, every, strict=True)]
                value = RULES[type(op)](op, *graph.shapes_into(node))(*reads)
            values.append(value)
            scales.append(scale)
        total = values[graph.output].sum()
    found: Any = [None] * len(weights)
    if total.requires_grad:
        found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(w) if g is None else g for (name, w), g in zip(weights.items(), found, strict=True)
    }
    return Flow({name: w.detach() for name, w in weights.items()}, gradients, scales[graph.output])


def _layer(op: ops.Op, owner: str, network: Network, weights: dict[str, Tensor], reads: list[Tensor]) -> Tensor:
    if type(op) is ops.Conv:
        return F.conv2d(reads[0], weights[owner], None, op.stride, op.padding, op.dilation, op.groups)
    if type(op) is ops.Linear:
        return F.linear(reads[0], weights[owner])
    module = network.modules[owner]
    absolute = {name: p.detach().abs() for name, p in module.named_parameters()}
    absolute |= {name: weights[f"{owner}.{name}"] for name in absolute if f"{owner}.{name}" in weights}
    training = module.training
    module.eval()  # its batch norms have the statistics of the start, 0 and 1: they do nothing
    value: Tensor = functional_call(module, absolute, tuple(reads))
    module.train(training)
    return value


def _scaled(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    largest = x.detach().amax()
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    return x / largest, scale + largest.log()
