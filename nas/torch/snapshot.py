"""What one batch says about every layer of a network: gradients, dead units, sizes of signals, the field of view."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas import ops
from nas.graph import Graph
from nas.torch.build import module_paths
from nas.torch.field import Field, field, without_dropout
from nas.torch.train import own_randomness, trial_errors

FLAT = 1e-3
"""Slope of an activation below which it is taken for flat; the steepest slope of all but two is about 1."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A network at one moment. Layers, activations and values go by the names of their nodes.

    Attributes:
        loss: cross entropy on the batch.
        gradients: of each layer with weights of its own (convolution, linear layer, wrapped module) the norm of the
            loss's gradient.
        sensitivities: the same times the norm of the weights: by how much the loss changes, to first order and at most,
            where the weights change by as much as they are. Unlike the gradient's norm it can be compared between
            layers: it does not depend on the scale of weights that a norm follows, and where ReLUs follow, scaling one
            layer up and another down changes neither's.
        dead: of each activation the share of units that are dead: channels (or features) whose activation is flat for
            every image at every position, so that no gradient passes.
        units: how many channels or features each activation has.
        means, sizes: of what each layer and activation puts out, over everything; the size is the root mean square.
        spreads: of the same, the standard deviation over the images (root mean square over channels and positions):
            what tells one image from another.
        field: the effective receptive field.
    """

    loss: float
    gradients: Mapping[str, float]
    sensitivities: Mapping[str, float]
    dead: Mapping[str, float]
    units: Mapping[str, int]
    means: Mapping[str, float]
    sizes: Mapping[str, float]
    spreads: Mapping[str, float]
    field: Field

    @property
    def dead_share(self) -> float:
        """Share of all units that are dead; 0 without activations."""
        total = sum(self.units.values())
        return sum(share * self.units[name] for name, share in self.dead.items()) / total if total else 0.0


@trial_errors
def snapshot(module: nn.Module, graph: Graph, x: Tensor, y: Tensor, *, seed: int) -> Snapshot:
    """Look at `module`, which `graph` was built into, with the images x (N, C, H, W) and labels y (N,), N at least 2.

    Norms see the batch as in training; nothing is dropped. Only running statistics are changed.

    Raises OutOfMemory, and EvaluationError where the module raises.
    """
    looked_at: Any = without_dropout(module)
    with own_randomness((seed, 0), x.device), torch.enable_grad():
        values = looked_at.values(x)
        loss = functional.cross_entropy(values[graph.output].float(), y)
        gradients, weights = _norms(module, graph, loss)
        seen = field(module, graph, x, torch.Generator().manual_seed(seed))
    paths = module_paths(graph)
    dead, units, means, sizes, spreads = {}, {}, {}, {}, {}
    for at, node in enumerate(graph.nodes):
        is_activation = isinstance(node.op, ops.Activation | ops.PReLU)
        if is_activation or node.op.layer:
            value = values[at].detach().float()
            means[node.name] = float(value.mean())
            sizes[node.name] = math.sqrt(float(value.square().mean()))
            spreads[node.name] = math.sqrt(float((value - value.mean(0)).square().mean()))
        if is_activation:
            layer = module.get_submodule(paths[graph.owners[node.name]])
            flat = _slopes(layer, values[node.inputs[0]]).abs() < FLAT
            dead[node.name] = float(flat.transpose(0, 1).flatten(1).all(1).float().mean())
            units[node.name] = value.shape[1]
    sensitivities = {name: norm * weights[name] for name, norm in gradients.items()}
    return Snapshot(float(loss.detach()), gradients, sensitivities, dead, units, means, sizes, spreads, seen)


def _norms(module: nn.Module, graph: Graph, loss: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Norm of the gradient and of the weights of each layer; biases, which start at 0, are left out of both."""
    paths = module_paths(graph)
    weights: dict[str, list[Tensor]] = {}
    for node in graph.nodes:
        if node.op.layer and node.weights is None:
            named = module.get_submodule(paths[node.name]).named_parameters()
            own: list[Tensor] = [p for name, p in named if p.requires_grad and name.rpartition(".")[2] != "bias"]
            if own:
                weights[node.name] = own
    gradients = iter(torch.autograd.grad(loss, [w for own in weights.values() for w in own], materialize_grads=True))
    found = {name: _norm([next(gradients) for _ in own]) for name, own in weights.items()}
    return found, {name: _norm(own) for name, own in weights.items()}


def _norm(tensors: list[Tensor]) -> float:
    """Euclidean norm of all of them together, in double precision: squares of small gradients are no float32."""
    return math.hypot(*[float(torch.linalg.vector_norm(t.detach().double())) for t in tensors])


def _slopes(activation: nn.Module, x: Tensor) -> Tensor:
    """Derivative of an elementwise activation at x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (slopes,) = torch.autograd.grad(activation(x).sum(), x)
    return slopes
