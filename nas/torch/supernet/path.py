"""A network that runs with weights borrowed from a supernet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (as everywhere)
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nas import ops
from nas.graph import Node
from nas.torch.build import RULES, module_paths
from nas.torch.supernet.channels import Channels

if TYPE_CHECKING:
    from nas.torch.supernet.store import Located, Supernet

Run = Callable[..., Tensor]


class Path(nn.Module):
    """One network of a supernet's space; made by `Supernet.path`.

    It has no weights of its own, and gradients reach the supernet's. While training, batch norms use the statistics of
    the batch and keep none; for `eval`, `calibrate` measures them first. A wrapped module is trained with its buffers;
    `calibrate` measures those of its batch norms on a copy of them.

    Args:
        supernet: lends the weights.
        located: the network.

    Attributes:
        regularised: whether dropout and stochastic depth act while training.
    """

    def __init__(self, supernet: Supernet, located: Located) -> None:
        super().__init__()
        self.regularised = True
        self._lent = (supernet,)  # in a tuple: a module's parameters are not to be this one's as well
        self._located = located
        self._statistics: dict[str, tuple[Tensor, Tensor]] = {}  # mean and variance by owner of the weights
        self._measured: Counter[str] = Counter()  # how many batches they are the mean of
        self._copies: dict[str, nn.Module] = {}  # wrapped modules with buffers of this network's own, by key
        self._calibrating = False
        graph = located.graph
        last = {i: at for at, node in enumerate(graph.nodes) for i in node.inputs}
        last[graph.output] = len(graph.nodes)
        self._steps: list[tuple[Run, tuple[int, ...], int, tuple[int, ...]]] = []
        for at, node in enumerate(graph.nodes):
            if node.inputs:
                free = tuple([i for i in set(node.inputs) if last[i] == at])
                self._steps.append((self._runner(at, node), node.inputs, at, free))

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images that the network reads."""
        _, height, width = self._located.graph.shapes[0]
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W)."""
        values: list[Any] = [None] * len(self._located.graph.nodes)
        values[0] = x
        for run, reads, output, free in self._steps:
            values[output] = run(*[values[i] for i in reads])
            for i in free:
                values[i] = None
        result: Tensor = values[self._located.graph.output]
        return result

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Measure the statistics of batch norms: their mean over batches of images (N, C, H, W)."""
        self._statistics.clear()
        self._measured.clear()
        self._copies = {key: _forgetful(self._supernet.module_of(key)) for key in self._wrapped()}
        with self._measuring():
            for x in batches:
                self(x)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        before = self.training
        self.eval()
        self._calibrating = True
        try:
            yield
        finally:
            self._calibrating = False
            self.train(before)

    def weights(self) -> dict[str, Tensor]:
        """A copy of what is borrowed, and the measured statistics: the state dictionary of the network's module."""
        graph, found = self._located.graph, dict[str, Tensor]()
        paths = module_paths(graph)
        for i, node in enumerate(graph.nodes):
            if node.weights is not None or not node.inputs:
                continue
            prefix = paths[node.name]
            if type(node.op) is ops.Module:
                key = self._located.keys[i]
                state = self._copies.get(key, self._supernet.module_of(key)).state_dict()
                found |= {f"{prefix}.{name}": value.detach().clone() for name, value in state.items()}
            for name, value in self._borrowed(i, node).items():
                found[f"{prefix}.{name}"] = value.detach().clone(memory_format=torch.contiguous_format)
            if isinstance(node.op, ops.Norm) and node.op.kind == "batch":
                mean, variance = self._statistics_of(node.name, found[f"{prefix}.weight"])
                found |= {f"{prefix}.running_mean": mean.clone(), f"{prefix}.running_var": variance.clone(),
                          f"{prefix}.num_batches_tracked": torch.tensor(self._measured[node.name])}  # fmt: skip
        return found

    # -- what is borrowed --------------------------------------------------------------------------------------

    @property
    def _supernet(self) -> Supernet:
        return self._lent[0]

    def _borrowed(self, i: int, node: Node) -> dict[str, Tensor]:
        """The part of the shared weights that a node uses, by the names of its module's parameters."""
        op, rows = node.op, self._located.channels[i]
        if isinstance(op, ops.Norm | ops.PReLU):
            names = ("weight", "bias") if isinstance(op, ops.Norm) else ("weight",)
            return {name: taken(self._shared(i, name), rows, 0) for name in names}
        if not isinstance(op, ops.Conv | ops.Linear):
            return {}
        weight = taken(self._shared(i, "weight"), rows, 0)
        if isinstance(op, ops.Conv) and op.groups > 1:
            weight = weight[:, : self._located.graph.shapes[node.inputs[0]][0] // op.groups]
        else:
            weight = taken(weight, self._located.channels[node.inputs[0]], 1)
        if isinstance(op, ops.Conv):
            weight = centre(weight, op.kernel)
        return {"weight": weight, "bias": taken(self._shared(i, "bias"), rows, 0)} if op.bias else {"weight": weight}

    def _shared(self, i: int, name: str) -> Tensor:
        return self._supernet.tensor(self._located.keys[i], name)

    def _wrapped(self) -> list[str]:
        """Keys of the wrapped modules."""
        nodes = self._located.graph.nodes
        return [key for node, key in zip(nodes, self._located.keys, strict=True) if type(node.op) is ops.Module]

    def _module(self, key: str) -> nn.Module:
        """A wrapped module, in the mode that this network is in."""
        shared = self._supernet.module_of(key)
        module = shared if self.training else self._copies.get(key, shared)
        module.train(self.training)
        for part in module.modules():
            if isinstance(part, _BatchNorm) and self._calibrating:
                part.train()
            elif isinstance(part, _DropoutNd) and not self.regularised:
                part.eval()
        return module

    # -- running -----------------------------------------------------------------------------------------------

    def _runner(self, i: int, node: Node) -> Run:
        op, into = node.op, self._located.graph.shapes_into(node)
        match op:
            case ops.Conv():
                return lambda x: F.conv2d(
                    x, **self._borrowed(i, node), stride=op.stride, padding=op.padding, dilation=op.dilation,
                    groups=op.groups,
                )  # fmt: skip
            case ops.Linear():
                return lambda x: F.linear(x, **self._borrowed(i, node))
            case ops.Norm(kind="batch"):
                return lambda x: self._batch_norm(x, i, node, op)
            case ops.Norm(kind="instance"):
                return lambda x: F.instance_norm(x, None, None, *self._pair(i, node), eps=op.eps)
            case ops.Norm():
                return lambda x: F.group_norm(x, op.groups, *self._pair(i, node), op.eps)
            case ops.PReLU():
                return lambda x: F.prelu(x, **self._borrowed(i, node))
            case ops.Module():
                return lambda *x: self._module(self._located.keys[i])(*x)
            case ops.Dropout() | ops.DropPath():
                module = RULES[type(op)](op, *into)
                return lambda x: module(x) if self.training and self.regularised else x
            case _:
                return RULES[type(op)](op, *into)

    def _batch_norm(self, x: Tensor, i: int, node: Node, op: ops.Norm) -> Tensor:
        weight, bias = self._pair(i, node)
        if self.training:
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=op.eps)
        owner = node.weights or node.name
        mean, variance = self._statistics_of(owner, weight)
        if not self._calibrating:
            return F.batch_norm(x, mean, variance, weight, bias, eps=op.eps)
        # A momentum of one over the number of batches so far makes the mean over all of them.
        self._statistics[owner] = mean, variance
        self._measured[owner] += 1
        return F.batch_norm(x, mean, variance, weight, bias, True, 1 / self._measured[owner], op.eps)

    def _pair(self, i: int, node: Node) -> tuple[Tensor, Tensor]:
        borrowed = self._borrowed(i, node)
        return borrowed["weight"], borrowed["bias"]

    def _statistics_of(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        return self._statistics.get(name) or (torch.zeros_like(like), torch.ones_like(like))


def _forgetful(module: nn.Module) -> nn.Module:
    """A wrapped module with the same parameters, but buffers of its own; its batch norms average from now on."""
    # What the memo has is not copied.
    copied = deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})
    for part in copied.modules():
        if isinstance(part, _BatchNorm):
            part.reset_running_stats()
            part.momentum = None
    return copied


def taken(tensor: Tensor, channels: Channels, dim: int) -> Tensor:
    """The given channels along an axis; a view where they are one stretch, the tensor itself where they are all."""
    if channels == ((0, tensor.shape[dim]),):  # a view's gradient is a copy
        return tensor
    parts = [tensor.narrow(dim, first, n) for first, n in channels]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def centre(weight: Tensor, kernel: ops.Pair) -> Tensor:
    """The middle of a convolution's kernel."""
    if weight.shape[2:] == kernel:
        return weight
    top, left = ((weight.shape[axis] - size) // 2 for axis, size in zip((2, 3), kernel, strict=True))
    return weight[:, :, top : top + kernel[0], left : left + kernel[1]]
