"""A block with open decisions as one computation: what its settings have in common is computed once.

The graphs that a block has in all its settings are laid over each other. A node that is there in several is one node;
where settings differ, it reads a mixture of what they read, and its kernel is a mixture of theirs. Channels that only
some settings have are computed, and weighed by how probable they are after the last norm and activation that works on
each channel by itself: a norm would cancel a weight put before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas import ops
from nas.graph import Graph
from nas.ops import Op, Shape
from nas.torch.build import RULES
from nas.torch.supernet.channels import KEEPS, Channels, end
from nas.torch.supernet.mixing import mixed_activation, weighted_sum
from nas.torch.supernet.path import centre, taken
from nas.torch.supernet.store import Supernet
from nas.torch.supernet.tables import Beliefs, Table, Unknown

ABSENT = None
"""The value of a table where the node is not there."""

INPUT = 0
"""The block's input among its nodes."""

_NOT_ZERO_AT_ZERO = ("sigmoid", "hard_sigmoid")
_LOOKS_AT_ALL = (ops.Slice, ops.Shuffle, ops.Module)
"""Operations for which it matters how many channels there are, or in which order."""


class Unmixable(Exception):
    """Settings that cannot be laid over each other; `variables`: those that make the difference."""

    def __init__(self, reason: str, variables: Sequence[Unknown]) -> None:
        super().__init__(reason)
        self.variables = tuple(variables)


@dataclass(frozen=True)
class Setting:
    """One setting of a block: its graph, the key and owner of each node's weights, channels, and multiply-adds."""

    graph: Graph
    names: tuple[str, ...]
    keys: tuple[str, ...]
    channels: tuple[Channels, ...]
    flops: int


@dataclass
class Node:
    """A node of the union.

    Attributes:
        key: of its weights.
        ops: what it is in each setting, `ABSENT` where it is not there.
        sources: for each input, which node it reads.
        channels: which of its channels there are.
        reads: for each input, which channels it has.
        moves: for each input whose channels are to be others, from which to which.
        ordered: whether it looks at all channels, in the order that the network has them.
        shape: its output without the batch dimension; channels are those of all settings.
    """

    key: str
    ops: Table[Any]
    sources: list[Table[Any]]
    channels: Table[Any]
    reads: list[Table[Any]]
    moves: dict[int, tuple[Channels, Channels]]
    ordered: bool
    shape: Shape = ()
    modules: dict[int, nn.Module] = field(default_factory=dict)


Shares: TypeAlias = list[tuple[Any, Tensor | None]]
"""Values of a table and how probable each is where the node is there; None: certain."""

Value: TypeAlias = tuple[Tensor, bool]
"""A tensor, and whether its channels are weighed by how probable they are."""


class Union:
    """A block in all its settings.

    Args:
        supernet: holds the weights.
        variables: the open decisions.
        settings: that there are; None stands for those that cannot be built.
        which: position among them for each combination of options, the last variable changing fastest.
        extent: channels of the input in the supernet.

    Raises Unmixable for settings that differ in more than numbers, options and wiring.
    """

    def __init__(
        self, supernet: Supernet, variables: Sequence[Unknown], settings: Sequence[Setting | None], which: np.ndarray,
        extent: int,
    ) -> None:  # fmt: skip
        self._supernet, self._variables, self._settings, self._which = supernet, list(variables), settings, which
        self.flops: Table[int] = self._table([0 if s is None else s.flops for s in settings])
        self._places: list[dict[str, int]] = [
            {} if s is None else {name: i for i, name in enumerate(s.names)} for s in settings
        ]
        order = self._order()
        self._index = {name: i for i, name in enumerate(order)}
        self.nodes = [self._node(name) for name in order]
        self.nodes[INPUT].shape = (extent, *self.nodes[INPUT].shape)
        for node in self.nodes[1:]:
            node.shape = (self._extent(node), *node.shape)
            self._check(node)
        self.output: Table[Any] = self._of(lambda s: self._index[s.names[s.graph.output]])
        self.channels: Table[Any] = self._of(lambda s: s.channels[s.graph.output])
        size: Shape = self._only(self._of(lambda s: s.graph.shapes[s.graph.output][1:]), "output sizes")
        self.shape: Shape = (max(end(c) for c in self.channels.values if c is not None), *size)

    # -- laying over each other --------------------------------------------------------------------------------

    def _table(self, found: Sequence[Any]) -> Table[Any]:
        return Table.of(self._variables, found, self._which)

    def _of(self, what: Callable[[Setting], Any]) -> Table[Any]:
        return self._table([None if s is None else what(s) for s in self._settings])

    def _only(self, table: Table[Any], what: str) -> Any:
        """The one value that a table has where the node is there."""
        values = [value for value in table.values if value is not None]
        if len(values) != 1:
            raise Unmixable(f"its settings have different {what}: {values[:3]}", table.variables)
        return values[0]

    def _order(self) -> list[str]:
        """All nodes, each after all that it reads in any setting."""
        reads: dict[str, dict[str, None]] = {}
        for setting in self._settings:
            if setting is not None:
                for name, node in zip(setting.names, setting.graph.nodes, strict=True):
                    reads.setdefault(name, {}).update(dict.fromkeys(setting.names[i] for i in node.inputs))
        order: list[str] = []
        done: set[str] = set()

        def visit(name: str, above: frozenset[str]) -> None:
            if name in above:
                raise Unmixable(f"{name} stands before and behind others", self._variables)
            if name not in done:
                for other in reads[name]:
                    visit(other, above | {name})
                done.add(name)
                order.append(name)

        for name in reads:
            visit(name, frozenset())
        return order

    def _node(self, name: str) -> Node:
        found = [
            None if name not in places else (s, places[name])
            for s, places in zip(self._settings, self._places, strict=True)
        ]

        def table(what: Any) -> Table[Any]:
            return self._table([None if at is None else what(*at) for at in found])

        key: str = self._only(table(lambda s, i: s.keys[i]), "weights")
        arity = self._only(table(lambda s, i: len(s.graph.nodes[i].inputs)), "numbers of inputs")
        sources = [table(lambda s, i, k=k: self._index[s.names[s.graph.nodes[i].inputs[k]]]) for k in range(arity)]
        operations = table(lambda s, i: _plain(s.graph.nodes[i].op, s.graph.shapes_into(s.graph.nodes[i])))
        channels = table(lambda s, i: s.channels[i])
        size = self._only(table(lambda s, i: s.graph.shapes[i][1:]), "sizes of the map")
        reads = [table(lambda s, i, k=k: s.channels[s.graph.nodes[i].inputs[k]]) for k in range(arity)]
        moves: dict[int, tuple[Channels, Channels]] = {}
        kinds = [op for op in operations.values if op is not None]
        ordered = any(map(_looks_at_all, kinds))
        if not ordered and all(isinstance(op, KEEPS) or _by_channel(op) for op in kinds):
            for k in range(arity):
                pairs = table(lambda s, i, k=k: (s.channels[s.graph.nodes[i].inputs[k]], s.channels[i]))
                if any(pair and pair[0] != pair[1] for pair in pairs.values):
                    moves[k] = self._only(pairs, "orders of channels")
        return Node(key, operations, sources, channels, reads, moves, ordered, size)

    def _check(self, node: Node) -> None:
        kinds = [op for op in node.ops.values if op is not None]
        convs = [op for op in kinds if isinstance(op, ops.Conv)]
        for axis in (0, 1):
            # Smaller kernels are the middle of the largest one: where they read must not shift.
            margins = {2 * op.padding[axis] - op.dilation[axis] * (op.kernel[axis] - 1) for op in convs}
            if len(margins) > 1 or len({op.kernel[axis] % 2 for op in convs}) > 1:
                raise Unmixable("its convolutions are padded differently", node.ops.variables)
        if convs:
            alike = len(convs) == len(kinds) and len({replace(op, kernel=(0, 0), padding=(0, 0)) for op in convs}) == 1
        else:
            # What computes other channels cannot be mixed, nor a product, which is weighed in another way.
            alike = len(kinds) == 1 or all(isinstance(op, KEEPS) and not isinstance(op, ops.Mul) for op in kinds)
            alike |= all(isinstance(op, ops.PadChannels) for op in kinds)
        if not alike:
            raise Unmixable(f"its {_named(kinds[0])} differs in more than kernel and width", node.ops.variables)
        if node.ordered:
            for table in (*node.reads, node.channels):
                if len({c for c in table.values if c is not None}) > 1:
                    raise Unmixable(f"its {_named(kinds[0])} works on different numbers of channels", table.variables)

    def _extent(self, node: Node) -> int:
        """Channels in the supernet."""
        if any(isinstance(op, ops.Concat) for op in node.ops.values):
            return sum(self._part(node, k) for k in range(len(node.sources)))
        return max(end(c) for c in node.channels.values if c is not None)

    def _part(self, node: Node, k: int) -> int:
        known = self._supernet.extents.parts.get((node.key, k))
        return known or max(self.nodes[i].shape[0] for i in node.sources[k].values if i is not None)

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, beliefs: Beliefs, x: Tensor, *, affine: bool, training: bool) -> Tensor:
        """The block's output, channels weighed; x: (N, extent, H, W), weighed too."""
        run = _Run(self, self._supernet, beliefs, affine, training)
        return run(x)


class _Run:
    def __init__(self, union: Union, supernet: Supernet, beliefs: Beliefs, affine: bool, training: bool) -> None:
        self.union, self.supernet, self.beliefs, self.affine, self.training = union, supernet, beliefs, affine, training
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
        needed = {i for i, _ in self._shares(self.union.output)}
        for at in reversed(range(len(nodes))):
            if at in needed:
                needed |= {i for table in nodes[at].sources for i, _ in self._shares(table)}
        return needed

    def _shares(self, table: Table[Any]) -> Shares:
        there = [(i, value) for i, value in enumerate(table.values) if value is not None]
        if len(there) == 1:
            return [(there[0][1], None)]
        p = self.beliefs.over(table)
        if self.beliefs.single:
            best, value = max(there, key=lambda at: float(p[at[0]].detach()))
            return [(value, p[best] / p[best].detach().clamp_min(1e-30))]  # 1, with a gradient
        total = p[[i for i, _ in there]].sum().clamp_min(1e-30)
        return [(value, p[i] / total) for i, value in there]

    def _read(self, table: Table[Any]) -> tuple[Tensor, bool, int]:
        """What a node reads: one value, or the mixture of several; and of which node it is, -1 for a mixture."""
        shares = self._shares(table)
        if shares[0][1] is None:
            i = shares[0][0]
            return *self.values[i], i
        extent = max(self.values[i][0].shape[1] for i, _ in shares)
        xs = [padded(self._weighed((*self.values[i], i))[0], extent) for i, _ in shares]
        return weighted_sum([share for _, share in shares if share is not None], xs), True, -1

    def _gate(self, i: int, like: Tensor) -> Tensor | None:
        """How probable each channel of a node's is; None where all are certain."""
        node = self.union.nodes[i]
        extent = like.shape[1]
        shares = self._shares(node.channels)
        if len(shares) == 1 and shares[0][0] == ((0, extent),):
            return None
        gate = torch.zeros(extent, dtype=torch.float64, device=like.device)
        for channels, share in shares:
            mask = torch.zeros(extent, dtype=torch.float64, device=like.device)
            for first, n in channels:
                mask[first : first + n] = 1
            gate = gate + (mask if share is None else mask * share)
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
                return torch.cat([padded(x, self.union._part(node, k)) for k, x in enumerate(xs)], 1), True
            xs = [padded(x, node.shape[0]) for x in xs]
            return self._mixed(shares, xs, node), True
        xs = [x if isinstance(op, ops.Flatten) else padded(x, node.shape[0]) for x, _, _ in read]
        weighed = any(done for _, done, _ in read)
        if any(isinstance(o, ops.Norm) for o, _ in shares):
            weighed = False
        else:
            weighed &= not any(isinstance(o, ops.Activation) and o.kind in _NOT_ZERO_AT_ZERO for o, _ in shares)
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
        xs = [_picked(self._weighed(value)[0], _certain(node.reads[k])) for k, value in enumerate(read)]
        if isinstance(shares[0][0], ops.Conv):
            return self._grouped(node, shares, xs[0])
        y = self._mixed(shares, xs, node)
        weighed = isinstance(shares[0][0], ops.Slice | ops.Shuffle)
        return placed(y, _certain(node.channels), node.shape[0]), weighed

    def _mixed(self, shares: Shares, xs: Sequence[Tensor], node: Node) -> Tensor:
        """The outputs of all that an operation can be."""
        if shares[0][1] is None:
            return self._apply(shares[0][0], xs, node)
        weights = [share for _, share in shares if share is not None]
        kinds = [op.kind for op, _ in shares if isinstance(op, ops.Activation)]
        if len(kinds) == len(shares):
            return mixed_activation(xs[0], kinds, weights)
        if len(kinds) > 1:
            plain = [w for (op, _), w in zip(shares, weights, strict=True) if isinstance(op, ops.Activation)]
            rest = [(op, w) for (op, _), w in zip(shares, weights, strict=True) if not isinstance(op, ops.Activation)]
            ys = [mixed_activation(xs[0], kinds, plain), *(self._apply(op, xs, node) for op, _ in rest)]
            return weighted_sum([torch.ones_like(plain[0]), *(w for _, w in rest)], ys)
        return weighted_sum(weights, [self._apply(op, xs, node) for op, _ in shares])

    def _apply(self, op: Op, xs: Sequence[Tensor], node: Node) -> Tensor:
        x = xs[0]
        if isinstance(op, ops.Norm):
            weight, bias = None, None
            if self.affine:
                weight, bias = (self._tensor(node, name) for name in ("weight", "bias"))
                rows: Channels = _certain(node.channels) if node.ordered else ((0, x.shape[1]),)
                weight, bias = taken(weight, rows, 0), taken(bias, rows, 0)
            if op.kind == "batch":
                return F.batch_norm(x, None, None, weight, bias, training=True, eps=op.eps)
            if op.kind == "instance":
                return F.instance_norm(x, None, None, weight, bias, eps=op.eps)
            return F.group_norm(x, op.groups, weight, bias, op.eps)
        if isinstance(op, ops.PReLU):
            above = F.relu(x)  # the gradient of torch's own takes several times as long
            return above + self._tensor(node, "weight")[: x.shape[1]].view(1, -1, *[1] * (x.dim() - 2)) * (x - above)
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

    def _convolved(self, node: Node, shares: Shares, read: tuple[Tensor, bool, int]) -> Value:
        x, weighed, source = read
        op = shares[0][0]
        weight = self._tensor(node, "weight")
        bias = self._tensor(node, "bias")[: node.shape[0]] if op.bias else None
        by_channel = _by_channel(op)
        if by_channel:
            x, weight = padded(x, node.shape[0]), weight[: node.shape[0]]
        else:
            x, weight = padded(x, weight.shape[1]), weight[: node.shape[0]]
            gate = None if weighed else self._gate(source, x)
            if gate is not None:  # as good as weighing the input, and cheaper
                weight = weight * gate.view(1, -1, *[1] * (weight.dim() - 2))
        if isinstance(op, ops.Linear):
            return F.linear(x, weight, bias), False
        weight, padding = _mixed_kernel(weight, shares)
        groups = x.shape[1] if by_channel else op.groups
        y = F.conv2d(x, weight, bias, op.stride, padding, op.dilation, groups)
        return y, weighed and by_channel and bias is None

    def _grouped(self, node: Node, shares: Shares, x: Tensor) -> Value:
        op, rows = shares[0][0], _certain(node.channels)
        weight = taken(self._tensor(node, "weight"), rows, 0)[:, : x.shape[1] // op.groups]
        bias = taken(self._tensor(node, "bias"), rows, 0) if op.bias else None
        weight, padding = _mixed_kernel(weight, shares)
        y = F.conv2d(x, weight, bias, op.stride, padding, op.dilation, op.groups)
        return placed(y, rows, node.shape[0]), False


def _plain(op: Op, into: Sequence[Shape]) -> Op:
    """An operation without what only says how many channels there are."""
    if isinstance(op, ops.Conv):
        return replace(op, width=0, groups=-1 if op.groups == op.width == into[0][0] and op.groups > 1 else op.groups)
    if isinstance(op, ops.Linear):
        return replace(op, width=0)
    return op


def _looks_at_all(op: Op) -> bool:
    grouped = isinstance(op, ops.Conv) and op.groups > 1
    return grouped or isinstance(op, _LOOKS_AT_ALL) or (isinstance(op, ops.Norm) and op.kind in ("layer", "group"))


def _named(op: Op) -> str:
    return type(op).__name__.lower()


def _certain(table: Table[Any]) -> Any:
    """The one value of a table where the node is there."""
    return next(value for value in table.values if value is not None)


def _by_channel(op: Op) -> bool:
    return isinstance(op, ops.Conv) and op.groups == -1


def _mixed_kernel(weight: Tensor, shares: Shares) -> tuple[Tensor, ops.Pair]:
    """The mixture of a convolution's kernels, and its padding: smaller ones are the middle of the largest."""
    height, width = (max(op.kernel[axis] for op, _ in shares) for axis in (0, 1))
    weight = centre(weight, (height, width))
    padding: ops.Pair = max((op.padding for op, _ in shares), key=sum)
    if shares[0][1] is None:
        return weight, padding
    mask = torch.zeros(height, width, dtype=torch.float64, device=weight.device)
    for op, share in shares:
        assert share is not None
        top, left = (height - op.kernel[0]) // 2, (width - op.kernel[1]) // 2
        mask = mask + F.pad(share.expand(op.kernel), (left, left, top, top))
    return weight * mask.to(weight.dtype), padding


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
