"""Primitive operations: what a graph is made of, each with its shape rule and its cost rule.

Shapes are without the batch dimension: `(channels, height, width)` for feature maps, `(features,)` for
vectors. Costs follow the field's papers: one multiply-add of a convolution or linear layer counts 1,
everything else (norms, activations, pooling, biases) counts 0.

An operation knows nothing of torch: `nas.torch.build` and `nas.export.source` hold one table each that says
what an operation is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nas.errors import GraphError
from nas.ops.base import Op, Pair, Shape
from nas.ops.layers import ACTIVATIONS, NORMS, Activation, Conv, Dropout, DropPath, Input, Linear, Module, Norm, PReLU
from nas.ops.shaping import (
    AdaptivePool,
    Add,
    Concat,
    Flatten,
    Mean,
    Mul,
    PadChannels,
    Pool,
    Shift,
    Shuffle,
    Slice,
    Zero,
)  # fmt: skip

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "AdaptivePool",
    "Add",
    "Concat",
    "Conv",
    "DropPath",
    "Dropout",
    "Flatten",
    "Input",
    "Linear",
    "Mean",
    "Module",
    "Mul",
    "NORMS",
    "Norm",
    "OPS",
    "Op",
    "PReLU",
    "PadChannels",
    "Pair",
    "Pool",
    "Shape",
    "Shift",
    "Shuffle",
    "Slice",
    "Zero",
    "from_json",
    "to_json",
]

OPS: Mapping[str, type[Op]] = {
    cls.__name__: cls
    for cls in (
        Input, Conv, Linear, Norm, Activation, PReLU, Pool, AdaptivePool, Add, Mean, Mul, Concat, Slice, Shuffle,
        Shift, PadChannels, Zero, Flatten, Dropout, DropPath, Module,
    )
}  # fmt: skip


def to_json(op: Op) -> dict[str, Any]:
    """The operation as JSON data: its class name under `op`, then its fields."""
    return {"op": type(op).__name__, **{f.name: getattr(op, f.name) for f in fields(op)}}


def from_json(data: Mapping[str, Any]) -> Op:
    """The inverse of `to_json`; raises GraphError for an unknown operation or field."""
    values = dict(data)
    name = values.pop("op", None)
    if name not in OPS:
        raise GraphError(f"unknown operation {name!r}; known: {', '.join(OPS)}")
    try:
        return OPS[name](**{k: _tuples(v) for k, v in values.items()})
    except TypeError as error:
        raise GraphError(f"operation {name}: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
