"""The weights of a supernet: of the largest setting of every operation of a space, held once."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from nas import ops
from nas.architecture import Architecture
from nas.choices import Decision, Genotype
from nas.errors import GraphError
from nas.graph import Graph
from nas.torch.build import RULES
from nas.torch.init import initialise
from nas.torch.supernet.channels import Channels, Extents, end, locate
from nas.torch.supernet.names import keyed, marks

if TYPE_CHECKING:
    from nas.space import Space
    from nas.torch.supernet.path import Path

QUIET = 64
"""Networks in a row that ask for nothing new, after which a supernet is taken to hold enough for all."""

MOST = 4000
"""Networks that are looked at for that, at most."""

LEARNED = (ops.Conv, ops.Linear, ops.Norm, ops.PReLU)
"""Operations whose weights are shared in part."""


@dataclass(frozen=True)
class Size:
    """The largest setting of an operation: output and input channels, and kernel of a convolution."""

    kind: str
    rows: int
    columns: int = 0
    kernel: ops.Pair = (0, 0)
    bias: bool = False

    def joined(self, other: Size) -> Size:
        (a, b), (c, d) = self.kernel, other.kernel
        rows, columns = max(self.rows, other.rows), max(self.columns, other.columns)
        return Size(self.kind, rows, columns, (max(a, c), max(b, d)), self.bias or other.bias)


@dataclass(frozen=True)
class Located:
    """A network in the supernet: its graph, and for each node the key of its weights and the channels it computes."""

    graph: Graph
    keys: Sequence[str]
    channels: Sequence[Channels]


class Supernet(nn.Module):
    """Weights for every network of a space.

    The weights of a node are part of the shared ones of its key (`nas.torch.supernet.names`): the leading channels (see
    `nas.torch.supernet.channels`), the centre of the kernel. Options of a choice among blocks share nothing with one
    another. Norms share their scale and shift; statistics belong to each network, see `Path.calibrate`.

    Args:
        space: its template says what there is to share.
        seed: of the initial weights, which depend on nothing else.

    The state dictionary has `KEY|weight` and so on, with "/" for "." in the key.
    """

    def __init__(self, space: Space, *, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self._seed = seed
        self.marks = marks(space)
        self.extents = Extents()
        self.sizes: dict[str, Size] = {}
        self.wrapped = nn.ModuleDict()
        self._measure()
        for key, size in sorted(self.sizes.items()):
            for name, value in _initial(key, size, seed).items():
                self.register_parameter(_mangled(key, name), nn.Parameter(value))

    # -- networks ----------------------------------------------------------------------------------------------

    def path(self, architecture: Architecture) -> Path:
        """A network of the space that runs with borrowed weights. Raises GraphError for one that does not fit."""
        from nas.torch.supernet.path import Path

        return Path(self, self.located(architecture))

    def located(self, architecture: Architecture) -> Located:
        """Where the weights of a network are. Raises GraphError for one that the supernet has no weights for."""
        graph, keys = keyed(architecture, self.marks)
        found = Located(graph, keys, locate(graph, keys, self.extents, fixed=True))
        for i, node in enumerate(graph.nodes):
            if type(node.op) is ops.Module:
                if _mangled(keys[i]) not in self.wrapped:
                    raise GraphError(f"{node.name}: the supernet has no weights for it; is it of another space?")
            elif isinstance(node.op, LEARNED):
                size = self.sizes.get(keys[i])
                if size is None or size.joined(_needed(found, i)) != size:
                    raise GraphError(f"{node.name}: the supernet has no weights of this size; is it of another space?")
        return found

    def holds(self, graph: Graph, keys: Sequence[str], channels: Sequence[Channels]) -> bool:
        """Whether there are weights for every node's channels."""
        for node, key, rows in zip(graph.nodes, keys, channels, strict=True):
            if isinstance(node.op, LEARNED):
                size = self.sizes.get(key)
                if size is None or size.rows < end(rows):
                    return False
        return True

    def tensor(self, key: str, name: str) -> Tensor:
        """Shared weights."""
        found: Tensor = getattr(self, _mangled(key, name))
        return found

    def module_of(self, key: str) -> nn.Module:
        """A wrapped module, which is shared whole."""
        return self.wrapped[_mangled(key)]

    # -- what there is -----------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Look at networks until none needs more: the largest with every option, then any."""
        networks: list[tuple[Graph, list[str]]] = []
        for group in (_largest(self.space), _any(self.space)):
            quiet = 0
            for genotype in group:
                try:
                    graph, keys = keyed(self.space.architecture(genotype), self.marks)
                except GraphError:  # not every combination of a space can be built
                    continue
                if self._learn(graph, keys):
                    networks.append((graph, keys))
                    quiet = 0
                quiet += 1
                if quiet > QUIET:
                    break
        # Where parts are put together, a later network may have moved what stands behind: until nothing moves.
        while any(self._learn(graph, keys) for graph, keys in networks):
            pass
        # An operation may stand where another had more channels: PReLU was perhaps met in narrow networks only.
        self.sizes = {key: replace(size, rows=self.extents.rows[key]) for key, size in self.sizes.items()}

    def _learn(self, graph: Graph, keys: Sequence[str]) -> bool:
        """Make room for a network; whether it needed any."""
        before = dict(self.extents.rows), dict(self.extents.parts)
        located = Located(graph, keys, locate(graph, keys, self.extents, fixed=False))
        changed = before != (self.extents.rows, self.extents.parts)
        for i, node in enumerate(graph.nodes):
            key = keys[i]
            if type(node.op) is ops.Module and _mangled(key) not in self.wrapped:
                self.wrapped[_mangled(key)] = _wrapped(node.op, graph.shapes_into(node), _state(self._seed, key))
                changed = True
            elif isinstance(node.op, LEARNED):
                needed = _needed(located, i)
                size = self.sizes.get(key, needed).joined(needed)
                changed |= self.sizes.get(key) != size
                self.sizes[key] = size
        return changed


def _needed(located: Located, i: int) -> Size:
    """What an operation of one network takes of the shared weights."""
    node, rows = located.graph.nodes[i], max(map(sum, located.channels[i]))
    (first, *_), op = node.inputs, node.op
    if isinstance(op, ops.Conv):
        columns = max(map(sum, located.channels[first])) if op.groups == 1 else _columns(located, i)
        return Size("conv", rows, columns, op.kernel, op.bias)
    if isinstance(op, ops.Linear):
        return Size("linear", rows, max(map(sum, located.channels[first])), bias=op.bias)
    return Size("norm" if isinstance(op, ops.Norm) else "prelu", rows)


def _columns(located: Located, i: int) -> int:
    node = located.graph.nodes[i]
    assert isinstance(node.op, ops.Conv)
    return int(located.graph.shapes[node.inputs[0]][0]) // node.op.groups


def _largest(space: Space) -> Iterator[Genotype]:
    """Numbers at their largest; of all else what was not met yet, alone and beside what its scope decided before."""
    rng = np.random.default_rng(0)
    met: Counter[tuple[Any, ...]] = Counter()

    def decide(decision: Decision) -> int:
        if decision.ordinal:
            return int(np.argmax(decision.labels))  # type: ignore[arg-type]
        path, labels = decision.path, decision.labels
        around = beside[path.rpartition(".")[0]]
        counts = [[met[path, label], *(met[path, label, other] for other in around)] for label in labels]
        order = rng.permutation(len(labels)).tolist()
        index: int = min(order, key=lambda i: (-counts[i].count(0), sum(counts[i])))
        met.update([(path, labels[index]), *((path, labels[index], other) for other in around)])
        around.append((path, labels[index]))
        return index

    for _ in range(MOST):
        beside = defaultdict[str, list[Any]](list)
        yield space.walk(decide)


def _any(space: Space) -> Iterator[Genotype]:
    rng = np.random.default_rng(0)
    return (space.sample(rng) for _ in range(MOST))


def _initial(key: str, size: Size, seed: int) -> dict[str, Tensor]:
    """As `nas.torch.init` draws those of networks with norms, from the seed and the key alone."""
    values: dict[str, Tensor] = {}
    if size.kind == "norm":
        return {"weight": torch.ones(size.rows), "bias": torch.zeros(size.rows)}
    if size.kind == "prelu":
        return {"weight": torch.full((size.rows,), 0.25)}
    generator = torch.Generator().manual_seed(_state(seed, key))
    shape: tuple[int, ...] = size.rows, size.columns
    std = 0.01
    if size.kind == "conv":
        shape = *shape, *size.kernel
        groups = size.rows if key.endswith("/depthwise") else 1
        std = math.sqrt(2 / (size.rows // groups * math.prod(size.kernel)))
    values["weight"] = torch.randn(shape, generator=generator) * std
    if size.bias:
        values["bias"] = torch.zeros(size.rows)
    return values


def _wrapped(op: ops.Module, inputs: Sequence[ops.Shape], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # for what it draws in its constructor
        module = RULES[ops.Module](op, *inputs)
    initialise(module, seed)
    return module


def _state(seed: int, key: str) -> int:
    return int(np.random.SeedSequence((seed, crc32(key.encode()))).generate_state(1, np.uint64)[0])


def _mangled(key: str, name: str = "") -> str:
    return key.replace(".", "/") + (f"|{name}" if name else "")
