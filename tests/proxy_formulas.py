"""Proxies written from their formulas, in float64, one sample, unit or weight at a time. Slow on purpose.

They share the initial weights with the code under test and nothing else: the network is the module that is trained,
run node by node, and every value is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import torch
from nas.evaluators.proxies.blocks import block_outputs
from nas.evaluators.proxies.network import Network
from nas.evaluators.proxies.passes import Passes
from torch import Tensor, nn

from nas import ops
from nas.architecture import Architecture
from nas.graph import Node
from nas.torch.build import build, module_paths
from nas.torch.modules import DropPath

WEIGHTED = (nn.Conv2d, nn.Linear)


class Reference:
    """One network with its initial weights and a batch. A method for each proxy, called as it is."""

    def __init__(self, arch: Architecture, x: Tensor, y: Tensor, seed: int) -> None:
        self.arch, self.graph, self.x, self.y = arch, arch.graph(), x.double(), y
        self.seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self.module = self.build(lambda fan_in: (2 / fan_in) ** 0.5)

    def build(self, std: Callable[[int], float]) -> nn.Module:
        module = build(self.graph, seed=0).double().train()
        weights = Network(self.graph, seed=self.seed, dtype=torch.float64, std=std).weights
        paths = module_paths(self.graph)
        with torch.no_grad():
            for node in self.graph.nodes:
                if type(node.op) in (ops.Conv, ops.Linear) and node.weights is None:
                    layer: Any = module.get_submodule(paths[node.name])
                    layer.weight.copy_(weights[node.name])
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            elif isinstance(part, DropPath):
                part.rate = 0.0
        return module

    def values(self, module: nn.Module, x: Tensor, neutral: Callable[[Node], bool] = lambda node: False) -> list[Any]:
        """The value of every node."""
        paths = module_paths(self.graph)
        found: list[Any] = []
        for node in self.graph.nodes:
            if type(node.op) is ops.Input:
                found.append(x)
            elif neutral(node):
                found.append(found[node.inputs[0]])
            else:
                layer = module.get_submodule(paths[node.weights or node.name])
                found.append(layer(*[found[i] for i in node.inputs]))
        return found

    def nodes(self, *kinds: type[ops.Op]) -> list[int]:
        return [at for at, node in enumerate(self.graph.nodes) if type(node.op) in kinds]

    def signs(self) -> list[np.ndarray[Any, Any]]:
        """For each activation (samples, units)."""
        values = self.values(self.module, self.x)
        return [
            (values[self.graph.nodes[at].inputs[0]] > 0).flatten(1).numpy()
            for at in self.nodes(ops.Activation, ops.PReLU)
        ]

    def weights(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self.module.modules() if isinstance(layer, WEIGHTED)]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self.values(self.module, x)[self.graph.output]
        return torch.stack([-torch.log_softmax(row, 0)[label] for row, label in zip(logits, y, strict=True)]).mean()

    def gradient(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(self.loss(x, y), self.weights()))

    # -- proxies -------------------------------------------------------------------------------------------------

    def nwot(self) -> float:
        n = len(self.x)
        k = [[sum(int((s[i] == s[j]).sum()) for s in self.signs()) for j in range(n)] for i in range(n)]
        return float(np.linalg.slogdet(np.array(k, float))[1])

    def swap(self) -> float:
        return len({tuple(unit) for s in self.signs() for unit in s.T})

    def snip(self) -> float:
        return sum(
            float((w * g).detach().abs().sum())
            for w, g in zip(self.weights(), self.gradient(self.x, self.y), strict=True)
        )

    def grad_norm(self) -> float:
        return sum(float((g**2).sum()) ** 0.5 for g in self.gradient(self.x, self.y))

    def grasp(self) -> float:
        """H g by central differences along g."""
        gradient, step = self.gradient(self.x, self.y), 1e-6
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for w, g in zip(self.weights(), gradient, strict=True):
                    w.add_(sign * step * g)
            ends.append(self.gradient(self.x, self.y))
            with torch.no_grad():
                for w, g in zip(self.weights(), gradient, strict=True):
                    w.sub_(sign * step * g)
        return sum(
            float((-w.detach() * (up - down) / (2 * step)).sum())
            for w, up, down in zip(self.weights(), *ends, strict=True)
        )

    def fisher(self) -> float:
        values = self.values(self.module, self.x)
        layers = [values[at] for at in self.nodes(ops.Conv, ops.Linear)]
        logits = values[self.graph.output]
        loss = torch.nn.functional.cross_entropy(logits, self.y)
        total = 0.0
        for a, g in zip(layers, torch.autograd.grad(loss, layers), strict=True):
            for channel in range(a.shape[1]):
                samples = [float((a[i, channel] * g[i, channel]).detach().sum()) for i in range(len(a))]
                total += 0.5 * float(np.mean(np.square(samples)))
        return total

    def jacob_cov(self) -> float:
        x = self.x.clone().requires_grad_()
        generator = Passes(self.arch, self.x, self.y, seed=self.seed, uses=frozenset()).generator(3)
        signs = torch.randint(2, (len(x), 1), generator=generator) * 2 - 1
        (signs * self.values(self.module, x)[self.graph.output]).sum().backward()
        assert x.grad is not None
        v = np.linalg.eigvalsh(np.corrcoef(x.grad.flatten(1).numpy()))
        return -sum(log(one + 1e-5) + 1 / (one + 1e-5) for one in v)

    def _flow(self) -> list[tuple[Tensor, Tensor]]:
        def neutral(node: Node) -> bool:  # the feature map is what Mul reads first
            return type(node.op) in (ops.Norm, ops.Activation, ops.PReLU, ops.Dropout, ops.DropPath, ops.Mul)

        with torch.no_grad():
            for w in self.weights():
                w.abs_()
        total = self.values(self.module, torch.ones_like(self.x[:1]), neutral)[self.graph.output].sum()
        found = torch.autograd.grad(total, self.weights(), allow_unused=True)
        return [(w, torch.zeros_like(w) if g is None else g) for w, g in zip(self.weights(), found, strict=True)]

    def synflow(self) -> float:
        return log(1 + sum(float((w * g).detach().sum()) for w, g in self._flow()))

    def logsynflow(self) -> float:
        return sum(float((w * (1 + g).log()).detach().sum()) for w, g in self._flow())

    def zen(self) -> float:
        module = self.build(lambda fan_in: 1.0)
        generator = Passes(self.arch, self.x, self.y, seed=self.seed, uses=frozenset()).generator(1)
        x, e = (torch.randn(self.x.shape, generator=generator).double() for _ in range(2))
        end = self.graph.nodes[self.nodes(ops.AdaptivePool)[-1]].inputs[0]
        here, there = self.values(module, x), self.values(module, x + 0.01 * e)
        total = log(np.mean([float((a - b).detach().abs().sum()) for a, b in zip(here[end], there[end], strict=True)]))
        for at in self.nodes(ops.Norm):
            op, read = self.graph.nodes[at].op, here[self.graph.nodes[at].inputs[0]].detach().numpy()
            assert isinstance(op, ops.Norm)
            if op.kind == "batch":
                variances = [read[:, channel].var() for channel in range(read.shape[1])]
            else:
                groups = read.shape[1] if op.kind == "instance" else op.groups
                variances = [group.var() for sample in read for group in np.split(sample, groups)]
            total += log(np.sqrt(np.mean(variances)))
        return total

    def zico(self) -> float:
        half = len(self.x) // 2
        batches = [self.gradient(x, y) for x, y in zip(self.x.split(half), self.y.split(half), strict=True)]
        total = 0.0
        for layer in zip(*batches, strict=True):
            g = np.array([one.flatten().numpy() for one in layer])
            ratios = [np.abs(g[:, k]).mean() / g[:, k].std() for k in range(g.shape[1]) if g[:, k].std() > 0]
            total += log(sum(ratios)) if sum(ratios) > 0 else 0
        return total

    def meco(self) -> float:
        values, total = self.values(self.module, self.x), 0.0
        for at in self.nodes(ops.Conv):
            if values[at][0, 0].numel() == 1:  # constant channels
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                correlation = np.corrcoef(values[at][0].detach().flatten(1).numpy())
            total += np.linalg.eigvalsh(np.nan_to_num(np.atleast_2d(correlation))).min()
        return total

    def _blocks(self) -> list[Tensor]:
        values = self.values(self.module, self.x.requires_grad_())
        return [values[at] for at in block_outputs(self.graph)]

    def _entropies(self) -> list[float]:
        found = []
        for block in self._blocks():
            samples = [
                block[i, :, r, c]
                for i in range(len(block))
                for r in range(block.shape[2])
                for c in range(block.shape[3])
            ]
            v = np.linalg.eigvalsh(np.atleast_2d(np.cov(torch.stack(samples).detach().numpy().T)))
            share = v[v > 1e-14 * v.sum()] / v.sum()
            found.append(-sum(p * log(p) for p in share))
        return found

    def expressivity(self) -> float:
        return sum(self._entropies())

    def progressivity(self) -> float:
        found = self._entropies()
        return min(found[i + 1] - found[i] for i in range(len(found) - 1))

    def trainability(self) -> float:
        blocks, scores = self._blocks(), []
        generator = Passes(self.arch, self.x, self.y, seed=self.seed, uses=frozenset()).generator(2)
        for f_in, f_out in pairwise(blocks):
            v = (torch.randint(2, f_out.shape, generator=generator) * 2 - 1).double()
            (g,) = torch.autograd.grad(f_out, f_in, v, retain_graph=True)
            stride, (n, _, height, width) = f_in.shape[2] // f_out.shape[2], f_out.shape
            jacobian = np.zeros((f_in.shape[1] * stride**2, f_out.shape[1]))
            for i in range(n):
                for r in range(height):
                    for c in range(width):
                        patch = g[i, :, r * stride : (r + 1) * stride, c * stride : (c + 1) * stride]
                        jacobian += np.outer(patch.flatten().numpy(), v[i, :, r, c].numpy()) / (n * height * width)
            s = np.linalg.svd(jacobian, compute_uv=False)[0]
            scores.append(2 - s - 1 / (s + 1e-6))
        return float(np.mean(scores))

    # -- counts --------------------------------------------------------------------------------------------------

    def params(self) -> float:
        return sum(p.numel() for p in self.module.parameters())

    def layers(self) -> float:
        return sum(isinstance(layer, WEIGHTED) for layer in self.module.modules())

    def flops(self) -> float:
        total, found = 0, self.values(self.module, self.x)
        for at in self.nodes(ops.Conv, ops.Linear):
            layer: Any = self.module.get_submodule(
                module_paths(self.graph)[self.graph.owners[self.graph.nodes[at].name]]
            )
            total += layer.weight[0].numel() * found[at][0].numel()
        return total
