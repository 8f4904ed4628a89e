"""What the activations are in PyTorch, and the gain of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import nn

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "selu": nn.SELU, "silu": nn.SiLU,
    "hard_swish": nn.Hardswish, "gelu": nn.GELU, "mish": nn.Mish, "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid, "tanh": nn.Tanh,
}  # fmt: skip

REACH, POINTS = 12.0, 24_001
"""The integral over z goes from -REACH to REACH; the kinks of all activations fall on the grid."""


@cache
def gain(kind: str) -> float:
    """1 / sqrt(E f(z)^2), z ~ N(0, 1): what keeps the second moment of a signal through the activation f.

    `kind` is one of `nas.ops.ACTIVATIONS`; a PReLU counts with the slope that it starts with. By the trapezoidal rule
    in double precision.
    """
    z = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    with torch.no_grad():
        if kind == "identity":
            f = z
        else:
            f = nn.PReLU(dtype=z.dtype, device=z.device)(z) if kind == "prelu" else ACTIVATIONS[kind]()(z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return 1 / math.sqrt(float(torch.trapezoid(f.square() * density, z)))
