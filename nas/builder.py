"""The builder that blocks wire their nodes with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nas import ops
from nas.errors import GraphError
from nas.graph import Graph, Node, Scope
from nas.ops import Op, Shape

if TYPE_CHECKING:
    from nas.blocks.base import Block

Ref = int  # a value inside a builder: the index of the node that computes it


class GraphBuilder:
    """Collects nodes; the methods are what a block's `wire` is written with. Each returns a `Ref`.

    `name` is relative to the current scope and must be unique in it. Shapes are checked at once: an impossible
    operation raises GraphError with the full name of the node.
    """

    def __init__(self, *input_shapes: Shape) -> None:
        self._nodes: list[Node] = []
        self._shapes: list[Shape] = []
        self._names: set[str] = set()
        self._scopes: list[Scope] = []
        self._prefix = ""
        for i, shape in enumerate(input_shapes):
            self.op("input" if i == 0 else f"input{i}", ops.Input(shape))

    # -- structure ---------------------------------------------------------------------------------------------

    def shape(self, x: Ref) -> Shape:
        """Shape of a value."""
        return self._shapes[x]

    def channels(self, x: Ref) -> int:
        """Number of channels (or features) of a value."""
        return self._shapes[x][0]

    @contextmanager
    def scope(self, name: str, kind: str = "") -> Iterator[None]:
        """Put a prefix before the names of everything built inside. `kind` says which block it is, if it is one."""
        before = self._prefix
        if kind:
            self._scopes.append(Scope(before + name, kind))
        self._prefix = f"{before}{name}."
        try:
            yield
        finally:
            self._prefix = before

    def op(self, name: str, op: Op, *inputs: Ref, weights: str | None = None) -> Ref:
        """Add a node. `weights`: full name of an earlier node whose weights it shares."""
        full = self._prefix + name
        if full in self._names:
            raise GraphError(f"two nodes are called {full!r}; a block gives each of its nodes a name of its own")
        self._names.add(full)
        try:
            shape = op.shape(*[self._shapes[i] for i in inputs])
        except GraphError as error:
            raise GraphError(f"{full}: {error}") from None
        self._nodes.append(Node(full, op, inputs, weights))
        self._shapes.append(shape)
        return len(self._nodes) - 1

    def block(self, name: str, block: Block, *inputs: Ref) -> Ref:
        """Wire another block under a scope of its own (its lowered form is remembered by the block)."""
        full = self._prefix + name
        start, at = len(self._nodes), len(self._scopes)
        steps = block.steps()
        output = self._copy(full, block, inputs) if steps is None else self._chain(full, steps, inputs)
        if len(self._nodes) > start:
            self._scopes.insert(at, Scope(full, block.label))
        return output

    def _chain(self, full: str, steps: tuple[tuple[str, Block], ...], inputs: tuple[Ref, ...]) -> Ref:
        before, self._prefix = self._prefix, full + "."
        try:
            for name, block in steps:
                inputs = (self.block(name, block, *inputs),)
        finally:
            self._prefix = before
        return inputs[0]

    def _copy(self, full: str, block: Block, inputs: tuple[Ref, ...]) -> Ref:
        try:
            part = block.lower(*[self._shapes[i] for i in inputs])
        except GraphError as error:
            raise GraphError(f"{full}.{error}") from None
        prefix, start, n = full + ".", len(self._nodes), len(inputs)
        new = part.nodes[n:]
        refs: list[Ref] = [*inputs, *range(start, start + len(new))]
        self._nodes += [
            Node(prefix + name, op, tuple([refs[i] for i in read]), None if weights is None else prefix + weights)
            for name, op, read, weights in new
        ]
        self._shapes += part.shapes[n:]
        self._names.update([node.name for node in self._nodes[start:]])
        if len(self._names) != len(self._nodes):
            raise GraphError(f"two nodes are called alike under {full!r}; give the blocks different names")
        self._scopes += [Scope(prefix + scope.name, scope.kind) for scope in part.scopes]
        return refs[part.output]

    def graph(self, output: Ref) -> Graph:
        """The finished graph; nodes that do not reach the output are left out, but for the inputs."""
        nodes, shapes, scopes = self._nodes, self._shapes, tuple(self._scopes)
        live = [type(node.op) is ops.Input for node in nodes]
        live[output] = True
        for i in range(len(nodes) - 1, -1, -1):
            if live[i]:
                for j in nodes[i].inputs:
                    live[j] = True
        if not all(live):
            kept = [i for i, alive in enumerate(live) if alive]
            place = {old: new for new, old in enumerate(kept)}
            unused = {node.name for node, alive in zip(nodes, live, strict=True) if not alive}
            heirs: dict[str, str] = {}
            pruned = []
            for node in [nodes[i] for i in kept]:
                weights = node.weights
                if weights in unused:  # the first that borrows the weights of an unused node owns them
                    heir = heirs.setdefault(weights, node.name)
                    weights = None if heir == node.name else heir
                pruned.append(Node(node.name, node.op, tuple([place[j] for j in node.inputs]), weights))
            nodes, shapes, output = pruned, [shapes[i] for i in kept], place[output]
            scopes = tuple(s for s in scopes if any(node.name.startswith(s.name + ".") for node in nodes))
        return Graph(tuple(nodes), tuple(shapes), output, scopes)

    # -- operations --------------------------------------------------------------------------------------------

    def conv(
        self, name: str, x: Ref, width: int, kernel: int | ops.Pair = 3, *, stride: int | ops.Pair = 1,
        padding: int | ops.Pair | None = None, dilation: int = 1, groups: int = 1, bias: bool = False,
        weights: str | None = None,
    ) -> Ref:  # fmt: skip
        """Convolution; `padding=None` keeps the size at stride 1."""
        kh, kw = kernel = _pair(kernel)
        pad = (dilation * (kh - 1) // 2, dilation * (kw - 1) // 2) if padding is None else _pair(padding)
        op = _conv(width, kernel, _pair(stride), pad, (dilation, dilation), groups, bias)
        return self.op(name, op, x, weights=weights)

    def linear(self, name: str, x: Ref, width: int, *, bias: bool = True, weights: str | None = None) -> Ref:
        """Fully connected layer."""
        return self.op(name, ops.Linear(width, bias), x, weights=weights)

    def norm(self, name: str, x: Ref, kind: str = "batch", *, eps: float = 1e-5, momentum: float = 0.1) -> Ref:
        """Normalisation, one of `nas.ops.NORMS`; `none` adds nothing. Group norm takes about 16 channels a group."""
        if kind == "none":
            return x
        if kind not in ops.NORMS:
            raise GraphError(f"{self._prefix}{name}: unknown norm {kind!r}; expected one of {', '.join(ops.NORMS)}")
        groups = 1
        if kind == "group":
            width = self.channels(x)
            groups = max(g for g in range(1, max(1, width // 16) + 1) if width % g == 0)
        return self.op(name, _norm(kind, groups, eps, momentum), x)

    def activation(self, name: str, x: Ref, kind: str = "relu") -> Ref:
        """Non-linearity, one of `nas.ops.ACTIVATIONS`; `identity` adds nothing."""
        if kind == "identity":
            return x
        if kind not in ops.ACTIVATIONS:
            known = ", ".join(ops.ACTIVATIONS)
            raise GraphError(f"{self._prefix}{name}: unknown activation {kind!r}; expected one of {known}")
        return self.op(name, _ACTIVATIONS[kind], x)

    def conv_norm_act(
        self, name: str, x: Ref, width: int, kernel: int | ops.Pair = 3, *, stride: int | ops.Pair = 1,
        padding: int | ops.Pair | None = None, dilation: int = 1, groups: int = 1, norm: str = "batch",
        activation: str = "relu", eps: float = 1e-5, momentum: float = 0.1,
    ) -> Ref:  # fmt: skip
        """Convolution, norm, activation as `name.conv`, `name.norm`, `name.act`; a bias only where no norm follows."""
        bias = norm == "none"
        x = self.conv(
            f"{name}.conv",
            x,
            width,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        x = self.norm(f"{name}.norm", x, norm, eps=eps, momentum=momentum)
        return self.activation(f"{name}.act", x, activation)

    def max_pool(
        self, name: str, x: Ref, kernel: int = 2, stride: int | None = None, padding: int = 0, ceil: bool = False
    ) -> Ref:
        """Max pooling; the stride is the kernel unless given."""
        return self.op(name, ops.Pool("max", _pair(kernel), _pair(stride or kernel), _pair(padding), ceil), x)

    def avg_pool(
        self, name: str, x: Ref, kernel: int | ops.Pair = 2, stride: int | None = None, padding: int = 0,
        ceil: bool = False, count_padding: bool = True,
    ) -> Ref:  # fmt: skip
        """Average pooling; the stride is the kernel unless given."""
        step = _pair(kernel if stride is None else stride)
        return self.op(name, ops.Pool("avg", _pair(kernel), step, _pair(padding), ceil, count_padding), x)

    def global_pool(self, name: str, x: Ref, size: int = 1) -> Ref:
        """Average pooling to `size` x `size`."""
        return self.op(name, ops.AdaptivePool((size, size)), x)

    def add(self, name: str, *x: Ref) -> Ref:
        """Sum."""
        return self.op(name, ops.Add(), *x)

    def mean(self, name: str, *x: Ref) -> Ref:
        """Average."""
        return self.op(name, ops.Mean(), *x)

    def mul(self, name: str, x: Ref, gate: Ref) -> Ref:
        """Product with a gate per channel or per position."""
        return self.op(name, ops.Mul(), x, gate)

    def concat(self, name: str, *x: Ref) -> Ref:
        """Channels of all inputs, one after the other."""
        return x[0] if len(x) == 1 else self.op(name, ops.Concat(), *x)

    def slice(self, name: str, x: Ref, start: int, stop: int) -> Ref:
        """Channels `start` to `stop`."""
        return self.op(name, ops.Slice(start, stop), x)

    def shuffle(self, name: str, x: Ref, groups: int) -> Ref:
        """Channel shuffle."""
        return self.op(name, ops.Shuffle(groups), x)

    def shift(self, name: str, x: Ref) -> Ref:
        """The map moved up and left by one position."""
        return self.op(name, ops.Shift(), x)

    def zero(self, name: str, x: Ref) -> Ref:
        """Zeros in the shape of `x`."""
        return self.op(name, ops.Zero(), x)

    def flatten(self, name: str, x: Ref) -> Ref:
        """Feature map to vector."""
        return self.op(name, ops.Flatten(), x)

    def dropout(self, name: str, x: Ref, rate: float) -> Ref:
        """Dropout; rate 0 adds nothing."""
        return self.op(name, ops.Dropout(rate), x) if rate else x

    def drop_path(self, name: str, x: Ref, rate: float) -> Ref:
        """Stochastic depth; rate 0 adds nothing."""
        return self.op(name, ops.DropPath(rate), x) if rate else x

    def module(self, name: str, target: str | type, *x: Ref, **options: Any) -> Ref:
        """Any `nn.Module` class, given itself or as `package.module:Class`, built with `options`."""
        if isinstance(target, type):
            target = f"{target.__module__}:{target.__qualname__}"
        return self.op(name, ops.Module(target, tuple(sorted(options.items()))), *x)


def _pair(value: int | Sequence[int]) -> ops.Pair:
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


# The same operations stand in many blocks.
_conv = lru_cache(4096)(ops.Conv)
_norm = lru_cache(256)(ops.Norm)
_ACTIVATIONS: Mapping[str, Op] = {
    kind: ops.PReLU() if kind == "prelu" else ops.Activation(kind) for kind in ops.ACTIVATIONS
}
