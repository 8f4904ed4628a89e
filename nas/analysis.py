"""Exact costs of a network without torch or tensors: parameters, FLOPs, memory, depth, receptive field.

FLOPs are counted as the field's papers do: one multiply-add of a convolution or linear layer is 1. (torch's
`FlopCounterMode` counts 2.) Norms, activations, pooling and biases are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from nas.ops import AdaptivePool, Shape

if TYPE_CHECKING:
    from nas.blocks.base import Block
    from nas.graph import Graph

BYTES = 4  # float32


class Analysis(NamedTuple):
    """Costs of a network, or of a part of one.

    Attributes:
        params: trainable parameters.
        flops: multiply-adds of convolutions and linear layers, one sample.
        memory: peak bytes of live float32 activations in inference at batch 1; norms, activations and dropout work
            in place where nobody else reads their input.
        depth: weight layers (convolutions, linear layers) on the longest path.
        field: receptive field (height, width) in input pixels of the last feature map before global pooling.
        stride: input pixels per output pixel (height, width).
        shape: output shape.
    """

    params: int
    flops: int
    memory: int
    depth: int
    field: tuple[int, int]
    stride: tuple[int, int]
    shape: Shape


def analyse(graph: Graph) -> Analysis:
    """Costs of a lowered graph."""
    nodes, shapes = graph.nodes, graph.shapes
    last = {i: at for at, node in enumerate(nodes) for i in node.inputs}
    last[graph.output] = len(nodes)  # the result outlives everything
    params = flops = live = peak = 0
    depth: list[int] = []
    reach: list[tuple[int, int, int, int]] = []  # receptive field and stride, height then width
    for at, (_, op, inputs, weights) in enumerate(nodes):
        size = prod(shapes[at])
        if not inputs:
            live += size if at in last else 0
            depth.append(0)
            reach.append((1, 1, 1, 1))
            continue
        into = [shapes[i] for i in inputs]
        if op.own and weights is None:
            params += op.params(*into)
        if op.layer:
            flops += op.flops(*into)
        first = inputs[0]
        if op.inplace and last[first] == at:
            depth.append(depth[first])
            reach.append(reach[first])
            continue
        live += size
        peak = max(peak, live)
        for i in set(inputs):
            if last[i] == at:
                live -= prod(shapes[i])
        if at not in last:
            live -= size
        depth.append(max([depth[i] for i in inputs]) + op.layer)
        fh, fw, sh, sw = reach[first]
        for i in inputs[1:]:
            a, b, c, d = reach[i]
            fh, fw, sh, sw = max(fh, a), max(fw, b), max(sh, c), max(sw, d)
        if type(op) is not AdaptivePool:
            (kh, kw), (th, tw) = op.window
            fh, fw, sh, sw = fh + (kh - 1) * sh, fw + (kw - 1) * sw, sh * th, sw * tw
        reach.append((fh, fw, sh, sw))
    fh, fw, sh, sw = reach[graph.output]
    peak = max(peak, live)
    return Analysis(params, flops, peak * BYTES, depth[graph.output], (fh, fw), (sh, sw), shapes[graph.output])


def cost(block: Block, *shapes: Shape) -> Analysis:
    """Costs of a block on inputs of the given shapes, the same as `analyse(block.lower(*shapes))`.

    A block remembers its answer, and containers add up those of their parts, so that a network that differs from
    one seen before in a single block costs a few look-ups.
    """
    known: dict[tuple[Shape, ...], Analysis] = block._memory("costs")
    found = known.get(shapes)
    if found is None:
        steps = block.steps()
        found = analyse(block.lower(*shapes)) if steps is None else total([part for _, part in steps], shapes[0])
        known[shapes] = found
    return found


_NOTHING: dict[Any, Any] = {}


def total(blocks: Iterable[Block], shape: Shape) -> Analysis:
    """Costs of blocks one after the other."""
    parts: list[Analysis] = []
    start = shape
    for block in blocks:
        # The look-up of `cost`, inlined: this loop is the hot path of scoring a neighbour.
        part = block.__dict__.get("_costs_", _NOTHING).get((shape,)) or cost(block, shape)
        parts.append(part)
        shape = part.shape
    return combined(parts, start)


def combined(parts: Iterable[Analysis], shape: Shape) -> Analysis:
    """Costs of the whole from those of its parts one after the other; `shape` is what the first one reads."""
    params = flops = depth = 0
    memory = prod(shape) * BYTES
    fh = fw = sh = sw = 1
    for more, multiplied, peak, layers, (kh, kw), (th, tw), after in parts:
        params += more
        flops += multiplied
        depth += layers
        if peak > memory:
            memory = peak
        fh, fw, sh, sw = fh + (kh - 1) * sh, fw + (kw - 1) * sw, sh * th, sw * tw
        shape = after
    return Analysis(params, flops, memory, depth, (fh, fw), (sh, sw), shape)
