"""Proxies as they are usually written: modules, hooks, a pass for each. What `proxies.py speed` compares with.

Each function takes a fresh module in training mode, images, labels, and does what the papers' code does, without its
mistakes. Where that is needlessly slow (the full `eig` of a symmetric matrix), the better call stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from nas.evaluators.proxies.blocks import block_outputs
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas.graph import Graph
from nas.torch.build import ACTIVATIONS, module_paths

ACTIVATED = (*ACTIVATIONS.values(), nn.PReLU)
WEIGHTED = (nn.Conv2d, nn.Linear)
Module, Plain = Any, Callable[[Any, Tensor, Tensor, Graph], Any]


@contextmanager
def hooked(modules: list[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    yield
    for handle in handles:
        handle.remove()


def of(module: Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, kinds)]


def weights(module: Module) -> list[Tensor]:
    found: list[Any] = of(module, *WEIGHTED)
    return [layer.weight for layer in found]


def nwot(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    kernel = torch.zeros(len(x), len(x))

    def hook(part: nn.Module, reads: tuple[Tensor, ...], value: Tensor) -> None:
        nonlocal kernel
        codes = (reads[0].flatten(1) > 0).float()
        kernel = kernel + codes @ codes.T + (1 - codes) @ (1 - codes).T

    with torch.no_grad(), hooked(of(module, *ACTIVATED), hook):
        module(x)
    return float(torch.linalg.slogdet(kernel)[1])


def swap(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    signs: list[Tensor] = []
    with (
        torch.no_grad(),
        hooked(
            of(module, *ACTIVATED), lambda part, reads, value: signs.append((reads[0].flatten(1) > 0).to(torch.int8))
        ),
    ):
        module(x)
    return float(len(torch.unique(torch.cat(signs, 1).T, dim=0)))


def _absolute(module: Module, x: Tensor) -> Module:
    module = module.double()
    for part in of(module, nn.BatchNorm2d, nn.BatchNorm1d):
        part.forward = lambda x: x  # type: ignore[method-assign]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()
    module(torch.ones_like(x[:1]).double()).sum().backward()
    return module


def synflow(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    return sum(float((w * w.grad).detach().sum()) for w in weights(_absolute(module, x)) if w.grad is not None)


def logsynflow(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    return sum(float((w * w.grad.log1p()).detach().sum()) for w in weights(_absolute(module, x)) if w.grad is not None)


def snip(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    F.cross_entropy(module(x), y).backward()
    return sum(float((w * w.grad).detach().abs().sum()) for w in weights(module) if w.grad is not None)


def grad_norm(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    F.cross_entropy(module(x), y).backward()
    return sum(float(w.grad.norm()) for w in weights(module) if w.grad is not None)


def fisher(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    values: list[Tensor] = []

    def hook(part: nn.Module, reads: tuple[Tensor, ...], value: Tensor) -> None:
        value.retain_grad()
        values.append(value)

    with hooked(of(module, *WEIGHTED), hook):
        F.cross_entropy(module(x), y).backward()
    total = 0.0
    for a in values:
        assert a.grad is not None
        each = (a * a.grad).flatten(2).sum(2) if a.dim() > 2 else a * a.grad
        total += float(each.detach().square().mean(0).sum() / 2)
    return total


def grasp(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    parameters = weights(module)
    first = torch.autograd.grad(F.cross_entropy(module(x), y), parameters)
    second = torch.autograd.grad(F.cross_entropy(module(x), y), parameters, create_graph=True)
    sum((f * s).sum() for f, s in zip(first, second, strict=True)).backward()  # type: ignore[union-attr]
    return sum(float(-(w.data * w.grad).sum()) for w in parameters if w.grad is not None)


def jacob_cov(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(torch.ones_like(out))
    assert x.grad is not None
    v = torch.linalg.eigvalsh(torch.corrcoef(x.grad.flatten(1)))
    return float(-((v + 1e-5).log() + 1 / (v + 1e-5)).sum())


def zen(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    for w in weights(module):
        nn.init.normal_(w)
    norms: Any = of(module, nn.BatchNorm2d)
    values: list[Tensor] = []
    pools = of(module, nn.AdaptiveAvgPool2d)
    with torch.no_grad(), hooked(pools[-1:], lambda part, reads, value: values.append(reads[0])):
        x = torch.randn_like(x)
        module(x)
        module(x + 0.01 * torch.randn_like(x))
    change = (values[0] - values[1]).abs().sum((1, 2, 3)).mean().log()
    return float(change + sum(norm.running_var.mean().sqrt().log() for norm in norms))


def zico(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    batches = []
    for images, labels in zip(x.chunk(2), y.chunk(2), strict=True):
        module.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        batches.append([w.grad.clone() for w in weights(module) if w.grad is not None])
    total = 0.0
    for layer in zip(*batches, strict=True):
        g = torch.stack(layer).flatten(1)
        deviation = g.std(0, correction=0)
        ratio = (g.abs().mean(0) / deviation)[deviation > 0].sum()
        total += float(ratio.log()) if ratio > 0 else 0.0
    return total


def meco(module: Module, x: Tensor, y: Tensor, graph: Graph) -> float:
    total = 0.0

    def hook(part: nn.Module, reads: tuple[Tensor, ...], value: Tensor) -> None:
        nonlocal total
        correlation = torch.nan_to_num(torch.corrcoef(value[0].flatten(1)))
        total += float(torch.linalg.eigvalsh(correlation)[0])

    with torch.no_grad(), hooked(of(module, nn.Conv2d), hook):
        module(x[:1])
    return total


def az_nas(module: Module, x: Tensor, y: Tensor, graph: Graph) -> tuple[float, ...]:
    paths, blocks = module_paths(graph), dict[int, Tensor]()
    handles = [
        module.get_submodule(paths[graph.nodes[at].name]).register_forward_hook(
            lambda part, reads, value, at=at: blocks.__setitem__(at, value)
        )
        for at in block_outputs(graph)
    ]
    module(x)
    for handle in handles:
        handle.remove()
    features = [blocks[at] for at in sorted(blocks)]
    entropies = []
    for feature in features:
        rows = feature.detach().permute(0, 2, 3, 1).reshape(-1, feature.shape[1])
        rows = rows - rows.mean(0, keepdim=True)
        v = torch.linalg.eigvalsh(rows.T @ rows / len(rows))
        share = v / v.sum()
        entropies.append(float((-share * (share + 1e-8).log()).nansum()))
    scores = []
    for i in reversed(range(1, len(features))):
        signs = (torch.bernoulli(torch.full_like(features[i], 0.5)) - 0.5) * 2
        g = torch.autograd.grad(features[i], features[i - 1], signs, retain_graph=True)[0]
        if g.shape[2:] != signs.shape[2:]:
            g = F.pixel_unshuffle(g, g.shape[2] // signs.shape[2])
        out = signs.permute(0, 2, 3, 1).reshape(-1, signs.shape[1])
        s = torch.linalg.svdvals(g.permute(0, 2, 3, 1).reshape(-1, g.shape[1]).T @ out / len(out)).max()
        scores.append(float(2 - s - 1 / (s + 1e-6)))
    steps = [b - a for a, b in pairwise(entropies)]
    return sum(entropies), min(steps), sum(scores) / len(scores)


PLAIN: dict[str, Plain] = {
    "nwot": nwot, "synflow": synflow, "logsynflow": logsynflow, "snip": snip, "grad_norm": grad_norm, "fisher": fisher,
    "grasp": grasp, "jacob_cov": jacob_cov, "zen": zen, "zico": zico, "meco": meco, "swap": swap, "az_nas": az_nas,
}  # fmt: skip
