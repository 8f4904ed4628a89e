"""The pieces of a relaxed network, as they run: blocks, mixtures, repetitions, cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas.errors import SpaceError
from nas.ops import Shape
from nas.torch.supernet.channels import Channels, leading
from nas.torch.supernet.mixing import weighted_sum
from nas.torch.supernet.running import Run, padded
from nas.torch.supernet.tables import (
    LARGEST,
    Beliefs,
    Table,
    Variable,
    combined,
    entries,
)
from nas.torch.supernet.union import Union, Unmixable


@dataclass(frozen=True)
class Wire:
    """A value between two blocks: its shape in the supernet, and which channels there are."""

    shape: Shape
    channels: Table[Channels]

    def given(self, variable: Variable, only: Sequence[int]) -> Wire:
        """The same where a decision takes one of these options."""
        return replace(self, channels=self.channels.given(variable, only))


def weights_of(path: str) -> str:
    """What the weights of a cell node's edges are called among probabilities, by the path of the choice of edges."""
    return f"{path}|edges"


@dataclass(frozen=True)
class Step:
    """What a run needs."""

    beliefs: Beliefs
    affine: bool
    training: bool


class Part(ABC):
    """A piece of the relaxed network; `out` is what comes out of it."""

    out: Wire

    @abstractmethod
    def run(self, step: Step, x: Tensor) -> Tensor:
        """What it makes of the input (N, C, H, W)."""

    @abstractmethod
    def flops(self, beliefs: Beliefs) -> Tensor:
        """Expected multiply-adds."""


class Identity(Part):
    def __init__(self, wire: Wire) -> None:
        self.out = wire

    def run(self, step: Step, x: Tensor) -> Tensor:
        return x

    def flops(self, beliefs: Beliefs) -> Tensor:
        return torch.zeros((), dtype=torch.float64)


class Leaf(Part):
    def __init__(self, union: Union) -> None:
        self._union = union
        # Where no setting can be built there is nothing: the first channels that there can be stand for it.
        known = [c for c in union.channels.values if c is not None]
        values = [known[0] if c is None else c for c in union.channels.values]
        table = Table(union.channels.variables, union.channels.entries, values)
        self.out = Wire(union.shape, table)

    def run(self, step: Step, x: Tensor) -> Tensor:
        return Run(self._union, step.beliefs, step.affine, step.training)(x)

    def flops(self, beliefs: Beliefs) -> Tensor:
        table = self._union.flops
        p = beliefs.over(table)
        return p @ torch.tensor(table.values, dtype=torch.float64, device=p.device)


class Compact(Part):
    """Only the channels in use, which lie apart where a concatenation has room for more."""

    def __init__(self, part: Part) -> None:
        self._part = part
        channels, *others = part.out.channels.values
        if others:
            raise SpaceError("edges with open widths cannot be partial; use partial=1")
        self._channels, n = channels, sum(n for _, n in channels)
        self.out = Wire((n, *part.out.shape[1:]), Table.certain(leading(n)))

    def run(self, step: Step, x: Tensor) -> Tensor:
        y = self._part.run(step, x)
        parts = [y.narrow(1, first, n) for first, n in self._channels]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def flops(self, beliefs: Beliefs) -> Tensor:
        return self._part.flops(beliefs)


class InOrder(Part):
    def __init__(self, parts: Sequence[Part], wire: Wire) -> None:
        self._parts = parts
        self.out = parts[-1].out if parts else wire

    def run(self, step: Step, x: Tensor) -> Tensor:
        for part in self._parts:
            x = part.run(step, x)
        return x

    def flops(self, beliefs: Beliefs) -> Tensor:
        return sum((part.flops(beliefs) for part in self._parts), torch.zeros((), dtype=torch.float64))


class Mixture(Part):
    """One of several blocks, by the option; nothing where an option has none."""

    def __init__(self, variable: Variable, parts: Mapping[int, Part], missing: Sequence[int]) -> None:
        self.variable, self._parts = variable, parts
        self._missing = list(missing)  # options that cannot be built: there is no network with them
        self.out = either(variable, {i: part.out for i, part in parts.items()})

    def run(self, step: Step, x: Tensor) -> Tensor:
        p = self._shares(step.beliefs).to(x.dtype).unbind()
        parts = [(i, self._parts[i]) for i in step.beliefs.likely(self.variable) if i in self._parts]
        if not parts:
            return x.new_zeros(x.shape[0], *self.out.shape)
        return _sum([(part.run(step, x), p[i]) for i, part in parts], self.out)

    def flops(self, beliefs: Beliefs) -> Tensor:
        p = self._shares(beliefs)
        return torch.stack([p[i] * part.flops(beliefs) for i, part in self._parts.items()]).sum()

    def _shares(self, beliefs: Beliefs) -> Tensor:
        p = beliefs.of(self.variable)
        return p / (1 - p[self._missing].sum()).clamp_min(1e-30) if self._missing else p


class Repeated(Part):
    """Repetitions, of which the first so many are there."""

    def __init__(self, times: Variable, counts: Sequence[int], parts: Sequence[Part], wire: Wire) -> None:
        self._times, self._counts, self._parts = times, counts, parts
        outs = [wire, *(part.out for part in parts)]
        self.out = either(times, {k: outs[n] for k, n in enumerate(counts)})

    def run(self, step: Step, x: Tensor) -> Tensor:
        p = step.beliefs.of(self._times).to(x.dtype).unbind()
        likely = step.beliefs.likely(self._times)
        after = [x]
        for part in self._parts[: max(self._counts[k] for k in likely)]:
            after.append(part.run(step, after[-1]))
        return _sum([(after[self._counts[k]], p[k]) for k in likely], self.out)

    def flops(self, beliefs: Beliefs) -> Tensor:
        p = beliefs.of(self._times)
        total = torch.zeros((), dtype=torch.float64)
        for i, part in enumerate(self._parts):
            there = p[[k for k, n in enumerate(self._counts) if n > i]].sum()
            total = total + there * part.flops(beliefs)
        return total


@dataclass(frozen=True)
class CellEdge:
    """An edge of a cell: the value it reads, what it does, and the options of its node's choice with which it is there.

    `idle`: options of its own choice with which it does nothing.
    """

    source: int
    part: Part
    node: tuple[Variable, tuple[int, ...]] | None
    idle: tuple[Variable, tuple[int, ...]] | None
    partial: int = 1
    number: int = 0

    def run(self, step: Step, x: Tensor) -> Tensor:
        """What the edge adds to its node."""
        if self.partial > 1:
            some, others = x[:, : x.shape[1] // self.partial], x[:, x.shape[1] // self.partial :]
            y = self.part.run(step, some)
            if y.shape[2:] != others.shape[2:]:
                others = F.max_pool2d(others, 2, 2, ceil_mode=True)
            y = F.channel_shuffle(torch.cat([y, others], 1), self.partial)
        else:
            y = self.part.run(step, x)
        return y * self.there(step.beliefs).to(x.dtype)

    def there(self, beliefs: Beliefs) -> Tensor:
        """How probable it is that the node has this edge; 1 where nothing is said of the node's choice."""
        if self.node is None:
            return torch.ones((), dtype=torch.float64)
        weights = beliefs.given(weights_of(self.node[0].path))
        if weights is not None:
            return weights[self.number].double()
        if not beliefs.knows(self.node[0]):
            return torch.ones((), dtype=torch.float64)
        return beliefs.of(self.node[0])[list(self.node[1])].sum()

    def busy(self, beliefs: Beliefs) -> Tensor:
        """How probable it is that the edge does something."""
        there = self.there(beliefs)
        return there if self.idle is None else there * (1 - beliefs.of(self.idle[0])[list(self.idle[1])].sum())


class CellPart(Part):
    """A cell; with probabilities between 0 and 1 all edges are there, each as much as it is probable."""

    def __init__(
        self,
        inputs: Sequence[Part],
        nodes: Sequence[Sequence[CellEdge]],
        wanted: Sequence[int],
        room: Sequence[int],
        out: Wire,
    ) -> None:
        self._inputs, self._nodes, self._wanted, self._room, self.out = inputs, nodes, wanted, room, out

    def run(self, step: Step, x: Tensor) -> Tensor:
        return self.join(step, [x])

    def join(self, step: Step, xs: Sequence[Tensor]) -> Tensor:
        """The output, from all inputs."""
        values: list[Tensor | None] = [part.run(step, x) for part, x in zip(self._inputs, xs, strict=True)]
        alive = self._alive(step.beliefs)
        like: Tensor | None = None
        for edges in self._nodes:
            total: Tensor | None = None
            for edge in edges:
                x = values[edge.source]
                if step.beliefs.single and float(edge.there(step.beliefs).detach()) == 0:
                    continue
                # What reads nothing is nothing, though a norm would make its shift of it.
                if x is not None and float(alive[edge.source].detach()) > 0:
                    y = edge.run(step, x)
                    total = y if total is None else total + y
            values.append(total)
            like = total if like is None else like
        if like is None:
            return xs[-1].new_zeros(len(xs[-1]), *self.out.shape)
        found = [torch.zeros_like(like) if (x := values[i]) is None else x for i in self._wanted]
        found = [padded(x, extent) for x, extent in zip(found, self._room, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def flops(self, beliefs: Beliefs) -> Tensor:
        return self.costs(beliefs)[0]

    def costs(self, beliefs: Beliefs) -> tuple[Tensor, list[Tensor]]:
        """FLOPs, and how probable it is that each input makes a difference."""
        alive, one = self._alive(beliefs), torch.ones((), dtype=torch.float64)
        unused = [one] * len(alive)
        total = torch.zeros((), dtype=torch.float64)
        for i in reversed(range(len(self._inputs), len(alive))):
            wanted = one if i in self._wanted else 1 - unused[i]
            for edge in self._nodes[i - len(self._inputs)]:
                total = total + alive[edge.source] * wanted * edge.there(beliefs) * edge.part.flops(beliefs)
                unused[edge.source] = unused[edge.source] * (1 - wanted * edge.busy(beliefs))
        for i, part in enumerate(self._inputs):
            total = total + (1 - unused[i]) * part.flops(beliefs)
        nothing = one  # then the output is as many zeros as the last input has
        for i in self._wanted:
            nothing = nothing * (1 - alive[i])
        *others, last = [1 - p for p in unused[: len(self._inputs)]]
        return total, [*others, 1 - (1 - last) * (1 - nothing)]

    def _alive(self, beliefs: Beliefs) -> list[Tensor]:
        """How probable it is that a value reads an input by some way."""
        found = [torch.ones((), dtype=torch.float64) for _ in self._inputs]
        for edges in self._nodes:
            dead = torch.ones((), dtype=torch.float64)
            for edge in edges:
                dead = dead * (1 - edge.busy(beliefs) * found[edge.source])
            found.append(1 - dead)
        return found


class Cells(Part):
    """Cells one after the other, each of which reads the two before it."""

    def __init__(self, entry: Part | None, cells: Sequence[CellPart]) -> None:
        self._entry, self._cells = entry, cells
        self.out = cells[-1].out

    def run(self, step: Step, x: Tensor) -> Tensor:
        before, last = x, x if self._entry is None else self._entry.run(step, x)
        for cell in self._cells:
            before, last = last, cell.join(step, [before, last])
        return last

    def flops(self, beliefs: Beliefs) -> Tensor:
        one = torch.ones((), dtype=torch.float64)
        # What is not read by the next cell, nor by the one after it: before the first two there are two more.
        unused = [one] * (len(self._cells) + 1) + [torch.zeros((), dtype=torch.float64)]
        total = torch.zeros((), dtype=torch.float64)
        for i in reversed(range(len(self._cells))):
            flops, (before, last) = self._cells[i].costs(beliefs)
            wanted = 1 - unused[i + 2]
            total = total + wanted * flops
            unused[i] = unused[i] * (1 - wanted * before)
            unused[i + 1] = unused[i + 1] * (1 - wanted * last)
        return total if self._entry is None else total + (1 - unused[1]) * self._entry.flops(beliefs)


def either(variable: Variable, wires: Mapping[int, Wire]) -> Wire:
    """One of several values, by the option of a variable; an option that has none is like the first."""
    sizes = {wire.shape[1:] for wire in wires.values()}
    if len(sizes) != 1:
        raise Unmixable(f"{variable.path} changes the size of the map", [variable])
    tables = {i: wire.channels for i, wire in wires.items()}
    if entries(list(tables.values()), [variable]) > 64 * LARGEST:
        tables = {i: table.alone if table.variables else table for i, table in tables.items()}
    first = next(iter(tables.values()))
    found = list(tables.values())
    table = combined(found, [variable], lambda taken: tables.get(taken[variable], first).at(taken))
    return Wire((max(wire.shape[0] for wire in wires.values()), *sizes.pop()), table.limited())


def _sum(parts: Sequence[tuple[Tensor, Tensor]], wire: Wire) -> Tensor:
    return weighted_sum(torch.stack([weight for _, weight in parts]), [padded(x, wire.shape[0]) for x, _ in parts])
