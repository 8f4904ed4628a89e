"""Weights and architecture of a relaxed network learned in turns: differentiable architecture search.

DARTS (Liu et al. 2019), and what keeps it from collapsing to skip connections: the dominant eigenvalue of the Hessian
(RobustDARTS, Zela et al. 2020), perturbation (SDARTS, Chen & Hsieh 2020), beta decay (Ye et al. 2022), partial
channels (PC-DARTS, Xu et al. 2020), and single paths (GDAS, Dong & Yang 2019).

Everything random about epoch e depends on (seed, e) alone, so a search continued from a checkpoint is the
uninterrupted one, on the same device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.choices import Genotype, Label
from nas.errors import EvaluationError
from nas.torch.checkpoint import Checkpoint
from nas.torch.supernet.alphas import Alphas
from nas.torch.supernet.relaxed import Relaxed
from nas.torch.supernet.settings import Settings
from nas.torch.supernet.training import resized
from nas.torch.train import finite, own_randomness, trial_errors

if TYPE_CHECKING:
    from nas.torch.loader import Batches

SPREAD = 0.05
"""Share of the steps in which a decision that cannot be mixed is drawn uniformly, so that none is given up."""

TRIES = 100
"""Draws of decisions that cannot be mixed, until there is a network with them."""

POWER = 8
"""Multiplications with the Hessian that its dominant eigenvalue is found with."""


@dataclass(frozen=True)
class Derived:
    """What a search found: an architecture for each preference, and how probable each label is there."""

    preference: float
    genotype: dict[str, Label]
    probabilities: dict[str, list[float]]


class Bilevel:
    """The search.

    Args:
        relaxed: the network; its supernet's weights are learned in place.
        weights, architecture: batches of the two halves of the training images, at the data's own size.
        settings: how it goes.
        seed: of everything random.
        device: where.
    """

    @trial_errors
    def __init__(
        self, relaxed: Relaxed, weights: Batches, architecture: Batches, settings: Settings, *, seed: int,
        device: str | torch.device,
    ) -> None:  # fmt: skip
        self.relaxed, self.settings, self.seed, self.device = relaxed, settings, seed, torch.device(device)
        self.halves = weights, architecture
        self.supernet = relaxed.supernet.to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.alphas = Alphas(relaxed, lines=settings.points > 1, weighted=settings.partial > 1, device=self.device)
        self.optimizer = torch.optim.SGD(self.supernet.parameters(), lr=settings.lr, momentum=0.9, weight_decay=3e-4)
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas.parameters(), lr=settings.alpha_lr, betas=(0.5, 0.999), weight_decay=1e-3
        )
        self.history: list[dict[str, float]] = []
        self._past: list[dict[str, Tensor]] = []  # the architecture after each epoch, where the search may end early
        self._baseline: float | None = None
        self._scale = self._largest_flops()

    # -- the whole ---------------------------------------------------------------------------------------------

    def run(
        self, *, checkpoint: File | None = None, report: Callable[[float, Mapping[str, float]], None] | None = None
    ) -> list[Derived]:
        """Search to the end, from the checkpoint if there is one.

        `report` is called with (epochs done, metrics) after each epoch: `train_loss` and `loss` of the two halves,
        expected `flops` at the middle preference, and the dominant `eigenvalue` of the Hessian of the architecture.
        Raises Diverged or OutOfMemory; EvaluationError if the checkpoint belongs to another search.
        """
        steps = len(self.halves[0])
        identity = {"seed": self.seed, "steps per epoch": steps, **asdict(self.settings)}
        file = Checkpoint(checkpoint, identity)
        file.load(self.restore)
        for epoch in range(self.settings.epochs):
            if epoch == len(self.history):
                self.history.append(self.epoch(epoch))
                if self.settings.stop:
                    self._past.append({k: v.clone() for k, v in self.alphas.state_dict().items()})
                last = epoch + 1 == self.settings.epochs or self._collapses(epoch + 1) is not None
                file.save(len(self.history), self.state, now=last)
            if report:
                report(epoch + 1.0, self.history[epoch])
            end = self._collapses(epoch + 1)
            if end is not None:
                self.alphas.load_state_dict(self._past[end])
                break
        return self.derived()

    def derived(self) -> list[Derived]:
        """Architectures for preferences from 0 (accuracy alone) to 1, with as many as `points`."""
        count = self.settings.points
        preferences = [i / (count - 1) for i in range(count)] if count > 1 else [1.0]
        found = []
        for r in preferences:
            p = self.alphas.probabilities(self.alphas.at(r))
            shares = {path: values.tolist() for path, values in p.items()}
            found.append(Derived(r, dict(self.alphas.choose(self.supernet.space, r)), shares))
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; the architecture's parameters are part of it."""
        return {
            "supernet": self.supernet.state_dict(), "alphas": self.alphas.state_dict(),
            "optimizer": self.optimizer.state_dict(), "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "history": self.history, "past": self._past, "baseline": self._baseline,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up where `state` was."""
        self.supernet.load_state_dict(state["supernet"])
        self.alphas.load_state_dict(state["alphas"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.history, self._past = list(state["history"]), list(state["past"])
        self._baseline = state["baseline"]

    def _collapses(self, epochs: int) -> int | None:
        """The epoch whose architecture is kept if after so many the eigenvalue has grown too much, else None.

        Compared are averages over five epochs, with the one four epochs before, from the tenth epoch on (RobustDARTS).
        """
        values = [metrics["eigenvalue"] for metrics in self.history[:epochs] if "eigenvalue" in metrics]
        if not self.settings.stop or len(values) < 10:
            return None
        now, before = np.mean(values[-5:]), np.mean(values[-9:-4])
        return epochs - 5 if now > self.settings.stop * before else None

    # -- an epoch ----------------------------------------------------------------------------------------------

    @trial_errors
    def epoch(self, epoch: int) -> dict[str, float]:
        """Learn for one epoch, counted from 0."""
        s = self.settings
        rate = 0.04 * s.lr + 0.96 * s.lr * 0.5 * (1 + math.cos(math.pi * epoch / s.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals, steps = torch.zeros(2, device=self.device), 0
        with own_randomness((self.seed, epoch), self.device):
            others = self._endless(self.halves[1], epoch)
            for index, (x, y) in enumerate(self.halves[0].epoch(epoch)):
                if len(y) == 1:
                    continue  # batch norm cannot take the variance of one image
                rng = np.random.default_rng([self.seed, epoch, index])
                preference = float(rng.random()) if s.points > 1 else 1.0
                sampled = self._sample(preference, rng)
                if epoch >= s.warmup:
                    totals[1] += self._learn_architecture((x, y), next(others), preference, sampled, rng, epoch)
                totals[0] += self._learn_weights(x, y, preference, sampled, rng, epoch)
                steps += 1
        if steps == 0:
            raise EvaluationError("nothing to train on: expected batches of at least two images")
        metrics = {"train_loss": finite(totals[0] / steps, "training loss")}
        if epoch >= s.warmup:
            metrics["loss"] = finite(totals[1] / steps, "loss of the architecture")
            metrics["eigenvalue"] = self.eigenvalue(epoch)
        with torch.no_grad():
            metrics["flops"] = float(self.relaxed.flops(self._mixture(0.5), self._likely(0.5)))
        return metrics

    @staticmethod
    def _endless(batches: Batches, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        again, some = 0, True
        while some:
            some = False
            for x, y in batches.epoch(epoch * 1000 + again):
                if len(y) > 1:
                    yield x, y
                    some = True
            again += 1
        raise EvaluationError("nothing to learn the architecture from: expected batches of at least two images")

    def _learn_weights(
        self, x: Tensor, y: Tensor, preference: float, sampled: Genotype, rng: np.random.Generator, epoch: int
    ) -> Tensor:
        with torch.no_grad():
            logits = self.alphas.at(preference)
            if self.settings.perturb:
                most = self.settings.perturb * (epoch + 1) / self.settings.epochs
                logits = {k: v + torch.from_numpy(rng.uniform(-most, most, len(v))).to(v) for k, v in logits.items()}
            p = self._probabilities(logits, rng, epoch)
        loss = self._loss(x, y, p, sampled, single=self.settings.gumbel)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        synchronise(self.supernet.parameters())
        nn.utils.clip_grad_norm_(self.supernet.parameters(), 5.0)
        self.optimizer.step()
        return loss.detach()

    def _learn_architecture(
        self, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], preference: float, sampled: Genotype,
        rng: np.random.Generator, epoch: int,
    ) -> Tensor:  # fmt: skip
        draw = rng.integers(1 << 62)  # every term of the gradient is that of the same single path

        def probabilities() -> dict[str, Tensor]:
            return self._probabilities(self.alphas.at(preference), np.random.default_rng(draw), epoch)

        self.alpha_optimizer.zero_grad()
        loss = self._loss(*validation, probabilities(), sampled, single=self.settings.gumbel)
        if self.settings.order == 1:
            gradients = list[Tensor | None](torch.autograd.grad(loss, self._parameters, allow_unused=True))
        else:
            gradients = self.unrolled(train, validation, probabilities, sampled)
        extra = self._price(preference, sampled) + self._decay(preference, epoch)
        extra = extra + self._credit(loss.detach() + extra.detach(), preference, sampled)
        more: Sequence[Tensor | None] = [None] * len(self._parameters)
        if extra.requires_grad:  # there may be no penalty, and nothing that is not mixed
            more = torch.autograd.grad(extra, self._parameters, allow_unused=True)
        for parameter, one, other in zip(self._parameters, gradients, more, strict=True):
            parts = [g for g in (one, other) if g is not None]
            parameter.grad = sum(parts[1:], parts[0].clone()) if parts else None
        synchronise(self.alphas.parameters())
        self.alpha_optimizer.step()
        return loss.detach()

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.alphas.parameters())

    def unrolled(
        self, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor],
        probabilities: Callable[[], dict[str, Tensor]], sampled: Genotype,
    ) -> list[Tensor | None]:  # fmt: skip
        """Gradient of the validation loss after one step of the weights, with respect to the architecture.

        theta' = theta - eta (mu buffer + gradient + decay theta); then the gradient at theta', minus eta times the
        mixed derivative times that of the weights there, by central differences (Liu et al. 2019, equation 8).
        """
        single = self.settings.gumbel
        thetas = list(self.supernet.parameters())
        group = self.optimizer.param_groups[0]
        eta = group["lr"]
        before = [theta.detach().clone() for theta in thetas]
        loss = self._same_loss(*train, {k: v.detach() for k, v in probabilities().items()}, sampled, single=single)
        gradients = torch.autograd.grad(loss, thetas, allow_unused=True)
        with torch.no_grad():
            for theta, g in zip(thetas, gradients, strict=True):
                if g is not None:
                    buffer = self.optimizer.state.get(theta, {}).get("momentum_buffer")
                    step = g + group["weight_decay"] * theta
                    theta.sub_(eta * (step if buffer is None else step + group["momentum"] * buffer))
        loss = self._same_loss(*validation, probabilities(), sampled, single=single)
        found = torch.autograd.grad(loss, [*self._parameters, *thetas], allow_unused=True)
        direct, v = found[: len(self._parameters)], found[len(self._parameters) :]
        norm = torch.sqrt(sum((g.double().square().sum() for g in v if g is not None), torch.zeros(()).double()))
        radius = 0.01 / float(norm.clamp_min(1e-12))
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for theta, start, g in zip(thetas, before, v, strict=True):
                    theta.copy_(start if g is None else start + sign * radius * g)
            loss = self._same_loss(*train, probabilities(), sampled, single=single)
            sides.append(torch.autograd.grad(loss, self._parameters, allow_unused=True))
        with torch.no_grad():
            for theta, start in zip(thetas, before, strict=True):
                theta.copy_(start)
        result: list[Tensor | None] = []
        for d, plus, minus in zip(direct, *sides, strict=True):
            if plus is None or minus is None:
                result.append(d)
            else:
                implicit = eta * (plus - minus) / (2 * radius)
                result.append(-implicit if d is None else d - implicit)
        return result

    # -- what is minimised -------------------------------------------------------------------------------------

    def _loss(
        self, x: Tensor, y: Tensor, probabilities: Mapping[str, Tensor], sampled: Genotype, *, single: bool
    ) -> Tensor:
        x = resized(x, self.relaxed.resolution(sampled))
        scores = self.relaxed(x, probabilities, sampled, single=single)
        return functional.cross_entropy(scores.float() if scores.dtype != torch.float64 else scores, y)

    def _same_loss(
        self, x: Tensor, y: Tensor, probabilities: Mapping[str, Tensor], sampled: Genotype, *, single: bool
    ) -> Tensor:
        """The loss with the dropout that the next one will have as well."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            return self._loss(x, y, probabilities, sampled, single=single)

    def _price(self, preference: float, sampled: Genotype) -> Tensor:
        """The penalty for FLOPs."""
        weight = preference * self.settings.penalty
        if not weight:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        return weight * torch.log(self.relaxed.flops(self._mixture(preference), sampled) / self._scale)

    def _decay(self, preference: float, epoch: int) -> Tensor:
        """Beta decay: the mean of logsumexp, which keeps the logits of an edge from growing apart."""
        if not self.settings.beta:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        weight = self.settings.beta * (epoch + 1) / self.settings.epochs
        values = [v.logsumexp(0) for v in self.alphas.at(preference).values()]
        return weight * torch.stack(values).mean().double()

    def _credit(self, cost: Tensor, preference: float, sampled: Genotype) -> Tensor:
        """What makes decisions that cannot be mixed learn: the gradient of their expected cost (REINFORCE)."""
        value = float(cost)
        advantage = 0.0 if self._baseline is None else value - self._baseline
        self._baseline = value if self._baseline is None else 0.95 * self._baseline + 0.05 * value
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        logits = self.alphas.at(preference)
        for path, labels in self.relaxed.sampled.items():
            total = total + advantage * logits[path].double().log_softmax(0)[labels.index(sampled[path])]
        return total

    def _mixture(self, preference: float) -> dict[str, Tensor]:
        return self.alphas.probabilities(self.alphas.at(preference))

    def _probabilities(self, logits: Mapping[str, Tensor], rng: np.random.Generator, epoch: int) -> dict[str, Tensor]:
        if not self.settings.gumbel:
            return self.alphas.probabilities(logits)
        share = epoch / max(1, self.settings.epochs - 1)
        return self.alphas.drawn(logits, 10 + share * (0.1 - 10), rng)

    @torch.no_grad()
    def _sample(self, preference: float, rng: np.random.Generator) -> dict[str, Label]:
        """Options of the decisions that cannot be mixed, with which there is a network."""
        logits = self.alphas.at(preference)
        for _ in range(TRIES):
            found: dict[str, Label] = {}
            for path, labels in self.relaxed.sampled.items():
                p = logits[path].double().softmax(0).cpu().numpy()
                p = (1 - SPREAD) * p / p.sum() + SPREAD / len(p)
                found[path] = labels[int(rng.choice(len(labels), p=p))]
            if self.relaxed.fits(found):
                return found
        return dict(self.relaxed.default)

    @torch.no_grad()
    def _likely(self, preference: float) -> dict[str, Label]:
        """The most probable options of the decisions that cannot be mixed, with which there is a network."""
        logits = self.alphas.at(preference)
        found = {path: labels[int(logits[path].argmax())] for path, labels in self.relaxed.sampled.items()}
        return found if self.relaxed.fits(found) else dict(self.relaxed.default)

    @torch.no_grad()
    def _largest_flops(self) -> float:
        return max(1.0, float(self.relaxed.flops(self._mixture(0.5), self._likely(0.5))))

    # -- collapse ----------------------------------------------------------------------------------------------

    @trial_errors
    def eigenvalue(self, epoch: int) -> float:
        """The dominant eigenvalue of the Hessian of the validation loss in the architecture, on one batch.

        By power iteration; products with the Hessian are central differences of the gradient.
        """
        with own_randomness((self.seed, epoch), self.device):
            return self._eigenvalue(*next(self._endless(self.halves[1], epoch)))

    def _eigenvalue(self, x: Tensor, y: Tensor) -> float:
        sampled = self._likely(0.5)
        parameters = [p for p in self._parameters if p.numel()]
        generator = torch.Generator().manual_seed(self.seed)

        def gradient() -> list[Tensor]:
            loss = self._same_loss(x, y, self._mixture(0.5), sampled, single=False)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            return averaged([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)])

        v = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
        before = [p.detach().clone() for p in parameters]
        value = 0.0
        for _ in range(POWER):
            length = math.sqrt(sum(float(part.square().sum()) for part in v))
            if length == 0 or not math.isfinite(length):
                break
            v = [part / length for part in v]
            sides = []
            step = 0.05  # large enough for single precision: logits are of order 1
            for sign in (1, -1):
                with torch.no_grad():
                    for p, start, part in zip(parameters, before, v, strict=True):
                        p.copy_(start + sign * step * part)
                sides.append(gradient())
            product = [(a - b) / (2 * step) for a, b in zip(*sides, strict=True)]
            value = sum(float((a * b).sum()) for a, b in zip(product, v, strict=True))
            v = product
        with torch.no_grad():
            for p, start in zip(parameters, before, strict=True):
                p.copy_(start)
        return value


def synchronise(parameters: Iterable[Tensor]) -> None:
    """Average the gradients over all processes of a `torch.distributed` group, if there is one."""
    if not _is_distributed():
        return
    listed = list(parameters)
    gradients = averaged([torch.zeros_like(p) if p.grad is None else p.grad for p in listed])
    for parameter, gradient in zip(listed, gradients, strict=True):
        parameter.grad = gradient


def averaged(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors averaged over all processes of a `torch.distributed` group, if there is one."""
    if not _is_distributed():
        return tensors
    size = torch.distributed.get_world_size()
    for tensor in tensors:
        torch.distributed.all_reduce(tensor)
    return [tensor / size for tensor in tensors]


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
