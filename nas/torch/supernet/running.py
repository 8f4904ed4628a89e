"""A union of settings as it runs: what is mixed, and where channels are weighed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas import ops
from nas.ops import Op
from nas.torch.build import RULES
from nas.torch.supernet.activations import mixed_activation
from nas.torch.supernet.channels import Channels, end
from nas.torch.supernet.identities import IDENTITY
from nas.torch.supernet.mixing import weighted_sum
from nas.torch.supernet.path import centre, taken
from nas.torch.supernet.tables import Beliefs, Table
from nas.torch.supernet.union import INPUT, Node, Union, by_channel, certain

_NOT_ZERO_AT_ZERO = ("sigmoid", "hard_sigmoid")


Shares: TypeAlias = tuple[list[Any], Tensor | None]
"""Values of a table, and how probable each is where the node is there; None: there is one, and it is certain."""


Value: TypeAlias = tuple[Tensor, bool]
"""A tensor, and whether its channels are weighed by how probable they are."""


class Run:
    """One run of a union, called with the input, (N, extent, H, W), channels weighed; so is what it returns.

    Args:
        beliefs: how probable everything is.
        affine: whether norms have their scale and shift.
        training: whether dropout acts.
    """

    def __init__(self, union: Union, beliefs: Beliefs, affine: bool, training: bool) -> None:
        self.union, self.beliefs, self.affine, self.training = union, beliefs, affine, training
        self.supernet = union.supernet
        self.values: dict[int, Value] = {}

    def __call__(self, x: Tensor) -> Tensor:
        self.values[INPUT] = x, True
        last = {
            i: at for at, node in enumerate(self.union.nodes) for t in node.sources for i in t.values if i is not None
        }
        kept = set(self.union.output.values)
        needed = self._needed()
        for at, node in enumerate(self.union.nodes):
            if at != INPUT and at in needed:
                self.values[at] = self._compute(node, [self._read(table) for table in node.sources])
            for i in [i for i in self.values if last.get(i, -1) <= at and i not in kept and i != at]:
                del self.values[i]
        result, _ = self._weighed(self._read(self.union.output))
        return padded(result, self.union.shape[0])

    def _needed(self) -> set[int]:
        """The nodes that make a difference: all, or those of the one setting that counts."""
        nodes = self.union.nodes
        if not self.beliefs.single:
            return set(range(len(nodes)))
        needed = set(self._shares(self.union.output)[0])
        for at in reversed(range(len(nodes))):
            if at in needed:
                needed.update(*[self._shares(table)[0] for table in nodes[at].sources])
        return needed

    def _shares(self, table: Table[Any]) -> Shares:
        return self.beliefs.shares(table)

    def _read(self, table: Table[Any]) -> tuple[Tensor, bool, int]:
        """What a node reads: one value, or the mixture of several; and of which node it is, -1 for a mixture."""
        found, p = self._shares(table)
        if p is None:
            return *self.values[found[0]], found[0]
        extent = max(self.values[i][0].shape[1] for i in found)
        xs = [padded(self._weighed((*self.values[i], i))[0], extent) for i in found]
        return weighted_sum(p, xs), True, -1

    def _gate(self, i: int, like: Tensor) -> Tensor | None:
        """How probable each channel of a node's is; None where all are certain."""
        node = self.union.nodes[i]
        extent = like.shape[1]
        found, p = self._shares(node.channels)
        if found == [((0, extent),)]:
            return None
        key = extent, like.device, *found
        masks = node.constants.get(key)
        if masks is None:
            masks = torch.stack([_mask(channels, extent) for channels in found]).to(like.device)
            node.constants[key] = masks
        gate = masks[0] if p is None else p @ masks
        return gate.to(like.dtype)

    def _weighed(self, read: tuple[Tensor, bool, int]) -> Value:
        x, done, i = read
        if done:
            return x, True
        gate = self._gate(i, x)
        return (x if gate is None else x * gate.view(1, -1, *[1] * (x.dim() - 2))), True

    def _compute(self, node: Node, read: list[tuple[Tensor, bool, int]]) -> Value:
        shares = self._shares(node.ops)
        op = shares[0][0]
        if node.ordered:
            return self._in_order(node, shares, read)
        if node.moves:
            read = [(*self._moved(value, node, k), -1) for k, value in enumerate(read)]
        if isinstance(op, ops.Conv | ops.Linear):
            return self._convolved(node, shares, read[0])
        if isinstance(op, ops.PadChannels):
            return padded(self._weighed(read[0])[0], node.shape[0]), True
        if len(read) > 1 and not isinstance(op, ops.Mul):
            xs = [self._weighed(value)[0] for value in read]
            if isinstance(op, ops.Concat):
                return torch.cat([padded(x, self.union.part_extent(node, k)) for k, x in enumerate(xs)], 1), True
            xs = [padded(x, node.shape[0]) for x in xs]
            return self._mixed(shares, xs, node), True
        xs = [x if isinstance(op, ops.Flatten) else padded(x, node.shape[0]) for x, _, _ in read]
        weighed = any(done for _, done, _ in read)
        if any(isinstance(o, ops.Norm) for o in shares[0]):
            weighed = False
        else:
            weighed &= not any(isinstance(o, ops.Activation) and o.kind in _NOT_ZERO_AT_ZERO for o in shares[0])
        return self._mixed(shares, xs, node), weighed

    def _moved(self, read: tuple[Tensor, bool, int], node: Node, k: int) -> Value:
        """An input whose channels are those of the node."""
        x, done = self._weighed(read)
        if k in node.moves:
            before, after = node.moves[k]
            x = placed(_picked(x, before), after, node.shape[0])
        return x, done

    def _in_order(self, node: Node, shares: Shares, read: list[tuple[Tensor, bool, int]]) -> Value:
        """What an operation makes of all channels, in the order that the network has them."""
        xs = [_picked(self._weighed(value)[0], certain(node.reads[k])) for k, value in enumerate(read)]
        if isinstance(shares[0][0], ops.Conv):
            return self._grouped(node, shares, xs[0])
        y = self._mixed(shares, xs, node)
        weighed = isinstance(shares[0][0], ops.Slice | ops.Shuffle)
        return placed(y, certain(node.channels), node.shape[0]), weighed

    def _mixed(self, shares: Shares, xs: Sequence[Tensor], node: Node) -> Tensor:
        """The outputs of all that an operation can be."""
        found, p = shares
        if p is None:
            return self._apply(found[0], xs, node)
        others = [i for i, op in enumerate(found) if not isinstance(op, ops.Activation | ops.PReLU)]
        ys = [self._apply(found[i], xs, node) for i in others]
        if len(others) == len(found):
            return weighted_sum(p, ys)
        activated = self._activated(shares, xs[0], node)
        return weighted_sum(torch.cat([p[others], p.new_ones(1)]), [*ys, activated]) if ys else activated

    def _activated(self, shares: Shares, x: Tensor, node: Node) -> Tensor:
        """The sum of all activations that an operation can be. A PReLU is a ReLU, and a slope below 0."""
        found, p = shares
        assert p is not None
        kinds = [_kind(op) for op in found]
        names = sorted({kind for kind in kinds if kind})
        key = x.device, *found
        is_of = node.constants.get(key)
        if is_of is None:
            is_of = torch.tensor([[float(kind == name) for name in names] for kind in kinds], dtype=torch.float64)
            is_of = node.constants[key] = is_of.to(x.device)
        slope: Tensor | None = None
        for i, op in enumerate(found):
            if isinstance(op, ops.PReLU):
                slope = self._leading(node, "weight", x.shape[1]) * p[i].to(x.dtype)
        return mixed_activation(x, names, p @ is_of, slope)

    def _apply(self, op: Op, xs: Sequence[Tensor], node: Node) -> Tensor:
        x = xs[0]
        if isinstance(op, ops.Norm):
            weight, bias = None, None
            if self.affine:
                weight, bias = (self._tensor(node, name) for name in ("weight", "bias"))
                rows: Channels = certain(node.channels) if node.ordered else ((0, x.shape[1]),)
                weight, bias = taken(weight, rows, 0), taken(bias, rows, 0)
            if op.kind == "batch":
                return F.batch_norm(x, None, None, weight, bias, training=True, eps=op.eps)
            if op.kind == "instance":
                return F.instance_norm(x, None, None, weight, bias, eps=op.eps)
            return F.group_norm(x, op.groups, weight, bias, op.eps)
        if isinstance(op, ops.PReLU):
            above = F.relu(x)  # the gradient of torch's own takes several times as long
            return above + self._leading(node, "weight", x.shape[1]).view(1, -1, *[1] * (x.dim() - 2)) * (x - above)
        if op == IDENTITY:
            return x
        if isinstance(op, ops.Module):
            wrapped: Tensor = self.supernet.module_of(node.key)(*xs)
            return wrapped
        if isinstance(op, ops.Dropout | ops.DropPath) and not self.training:
            return x
        module = node.modules.get(id(op))
        if module is None:
            module = node.modules[id(op)] = RULES[type(op)](op, *[tuple(v.shape[1:]) for v in xs])
        result: Tensor = module(*xs)
        return result

    def _tensor(self, node: Node, name: str) -> Tensor:
        return self.supernet.tensor(node.key, name)

    def _leading(self, node: Node, name: str, channels: int) -> Tensor:
        return taken(self._tensor(node, name), ((0, channels),), 0)

    def _convolved(self, node: Node, shares: Shares, read: tuple[Tensor, bool, int]) -> Value:
        x, weighed, source = read
        op = shares[0][0]
        weight = self._leading(node, "weight", node.shape[0])
        bias = self._leading(node, "bias", node.shape[0]) if op.bias else None
        alone = by_channel(op)
        if alone:
            x = padded(x, node.shape[0])
        else:
            x = padded(x, weight.shape[1])
            gate = None if weighed else self._gate(source, x)
            if gate is not None:  # as good as weighing the input, and cheaper
                weight = weight * gate.view(1, -1, *[1] * (weight.dim() - 2))
        if isinstance(op, ops.Linear):
            return F.linear(x, weight, bias), False
        weight, padding = _mixed_kernel(weight, node, shares)
        groups = x.shape[1] if alone else op.groups
        y = F.conv2d(x, weight, bias, op.stride, padding, op.dilation, groups)
        return y, weighed and alone and bias is None

    def _grouped(self, node: Node, shares: Shares, x: Tensor) -> Value:
        op, rows = shares[0][0], certain(node.channels)
        weight = taken(self._tensor(node, "weight"), rows, 0)[:, : x.shape[1] // op.groups]
        bias = taken(self._tensor(node, "bias"), rows, 0) if op.bias else None
        weight, padding = _mixed_kernel(weight, node, shares)
        y = F.conv2d(x, weight, bias, op.stride, padding, op.dilation, op.groups)
        return placed(y, rows, node.shape[0]), False


def _kind(op: Op) -> str | None:
    """Which activation an operation is at or above 0."""
    if isinstance(op, ops.PReLU):
        return "relu"
    return op.kind if isinstance(op, ops.Activation) else None


def _mixed_kernel(weight: Tensor, node: Node, shares: Shares) -> tuple[Tensor, ops.Pair]:
    """The mixture of a convolution's kernels, and its padding: smaller ones are the middle of the largest."""
    found, p = shares
    height, width = (max(op.kernel[axis] for op in found) for axis in (0, 1))
    weight = centre(weight, (height, width))
    padding: ops.Pair = max((op.padding for op in found), key=sum)
    if p is None:
        return weight, padding
    key = weight.device, *found
    masks = node.constants.get(key)
    if masks is None:
        masks = torch.stack([_middle(op.kernel, (height, width)) for op in found]).to(weight.device)
        node.constants[key] = masks
    mask = torch.tensordot(p, masks, 1)
    return weight * mask.to(weight.dtype), padding


def _middle(inner: ops.Pair, outer: ops.Pair) -> Tensor:
    """1 in the middle of a kernel."""
    top, left = ((b - a) // 2 for a, b in zip(inner, outer, strict=True))
    return F.pad(torch.ones(inner, dtype=torch.float64), (left, left, top, top))


def _mask(channels: Channels, extent: int) -> Tensor:
    """1 for the channels that there are."""
    mask = torch.zeros(extent, dtype=torch.float64)
    for first, n in channels:
        mask[first : first + n] = 1
    return mask


def _picked(x: Tensor, channels: Channels) -> Tensor:
    """The channels that a network has, in its order."""
    return taken(padded(x, max(x.shape[1], end(channels))), channels, 1)


def placed(x: Tensor, channels: Channels, extent: int) -> Tensor:
    """A network's channels at their places among the supernet's, the others zero."""
    if channels == ((0, x.shape[1]),):
        return padded(x, extent)
    at = torch.cat([torch.arange(first, first + n, device=x.device) for first, n in channels])
    return x.new_zeros(x.shape[0], extent, *x.shape[2:]).index_copy(1, at, x)


def padded(x: Tensor, extent: int) -> Tensor:
    """A tensor with zero channels behind its own, or without those that nobody has."""
    if x.shape[1] == extent:
        return x
    if x.shape[1] > extent:
        return x[:, :extent]
    return F.pad(x, [0, 0] * (x.dim() - 2) + [0, extent - x.shape[1]])
