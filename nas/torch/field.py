"""Which pixels a network looks at: its effective receptive field (Luo et al. 2016)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from nas import ops
from nas.analysis import analyse
from nas.graph import Graph
from nas.torch.modules import DropPath

SHARE = 0.9545
"""Of the gradient that the field holds: two standard deviations, as in the paper."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, DropPath)


@dataclass(frozen=True, eq=False)
class Field:
    """How the middle of a feature map depends on the input.

    Attributes:
        node: whose output the feature map is.
        size: side in pixels of a square as large as the smallest area that holds `SHARE` of the gradient.
        theory: receptive field (height, width) by kernels and strides alone, which may be larger than the input.
        centre: (row, column) around which the gradient lies, in pixels from the corner.
        map: (height, width) of the input; size of the gradient, sums to 1 (all 0 where nothing depends on the input).
    """

    node: str
    size: float
    theory: tuple[int, int]
    centre: tuple[float, float]
    map: Tensor


def last_map(graph: Graph) -> int:
    """The node that gives the last feature map before global pooling, else before what turns maps into vectors."""
    at = graph.output
    while True:
        node, shape = graph.nodes[at], graph.shapes[at]
        if type(node.op) is ops.AdaptivePool:
            return node.inputs[0]
        if not node.inputs or (len(shape) == 3 and shape[1] * shape[2] > 1):
            return at
        at = node.inputs[0]


def field(module: nn.Module, graph: Graph, x: Tensor, generator: torch.Generator) -> Field:
    """The effective receptive field of the last feature map.

    The paper averages the gradient of the middle unit over channels and weights; here it is its root mean square over
    the images and over random directions in the channels. In place of the pixels above 4.55 % of the middle's gradient
    the smallest set counts that holds 95.45 % of it, which for a Gaussian field is the same, and is defined where
    strides leave holes.

    Args:
        module: of `graph`; it is not changed. Batch norms use the statistics of `x`: with those of a batch the images
            would depend on each other.
        x: images (N, C, H, W).
        generator: on the CPU, for the directions.
    """
    at = last_map(graph)
    _, rows, columns = graph.shapes[at] if len(graph.shapes[at]) == 3 else (0, 1, 1)
    probe: Any = _settled(deepcopy(module), x)
    x = x.detach().requires_grad_()
    values = probe.values(x)[at]
    middle = values[:, :, rows // 2, columns // 2] if values.dim() == 4 else values
    direction = torch.randn(middle.shape, generator=generator).to(middle)
    (gradient,) = torch.autograd.grad((middle * direction).sum(), x, materialize_grads=True)
    size = gradient.double().square().mean((0, 1)).sqrt().cpu()  # squares of small gradients are no float32
    height, width = size.shape
    total = float(size.sum())
    shares = size / total if total > 0 else torch.zeros_like(size)
    held = shares.flatten().sort(descending=True).values.cumsum(0)
    area = int((held < SHARE).sum()) + 1 if total > 0 else 0
    theory = analyse(Graph(graph.nodes[: at + 1], graph.shapes[: at + 1], at)).field
    row, column = (
        float(shares.sum(1 - d) @ (torch.arange(n, dtype=shares.dtype) + 0.5)) for d, n in enumerate((height, width))
    )
    return Field(graph.nodes[at].name, sqrt(min(area, height * width)), theory, (row, column), shares)


def without_dropout(module: nn.Module) -> nn.Module:
    """In training mode but for what drops at random."""
    module.train()
    for layer in module.modules():
        if isinstance(layer, DROPOUTS):
            layer.eval()
    return module


def _settled(module: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation mode, with the statistics of `x` in the batch norms, and nothing to learn."""
    without_dropout(module).requires_grad_(False)
    for layer in module.modules():
        if isinstance(layer, BATCH_NORMS):
            layer.reset_running_stats()
            layer.momentum = None  # what is seen is averaged, and only `x` is seen
    with torch.no_grad():
        module(x)
    return module.eval()
