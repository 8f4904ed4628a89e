"""The architecture as parameters: logits for a relaxed network, and what is derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.choices import Decision, Genotype
from nas.torch.supernet.parts import weights_of
from nas.torch.supernet.relaxed import Relaxed

if TYPE_CHECKING:
    pass


class Alphas(nn.Module):
    """The architecture as parameters: for each decision a logit of each label, a line over the preference 0 to 1.

    An edge of a cell whose node chooses among its edges has one logit more: for doing nothing.

    Args:
        relaxed: says which decisions there are.
        lines: whether logits depend on the preference at all.
        weighted: whether edges have weights of their own.
    """

    def __init__(self, relaxed: Relaxed, *, lines: bool, weighted: bool, device: torch.device) -> None:
        super().__init__()
        self._decisions = {**relaxed.labels, **relaxed.sampled}
        self.sampled = tuple(relaxed.sampled)
        self.wirings = relaxed.wirings
        self._edges = {p for options in relaxed.wirings.values() for option in options for p in option}
        sizes = {path: len(labels) + (path in self._edges) for path, labels in self._decisions.items()}
        self.wired = {
            path: tuple(dict.fromkeys(p for o in options for p in o)) for path, options in self.wirings.items()
        }
        for path in self.wirings:
            sizes.pop(path, None)
        if weighted:
            sizes |= {weights_of(path): len(edges) for path, edges in self.wired.items()}
        # Random as the paper's, but the same for a seed on every device: the caller has seeded torch.
        rows = 2 if lines else 1
        made = {path: torch.cat([1e-3 * torch.randn(1, n), torch.zeros(rows - 1, n)]) for path, n in sizes.items()}
        self.logits = nn.ParameterDict({_plain(path): nn.Parameter(value.to(device)) for path, value in made.items()})
        self._paths = tuple(sizes)

    def at(self, preference: float) -> dict[str, Tensor]:
        """Logits for a preference, by path."""
        found: dict[str, Tensor] = {}
        for path in self._paths:
            rows = self.logits[_plain(path)]
            found[path] = rows[0] if len(rows) == 1 else rows[0] + (2 * preference - 1) * rows[1]
        return found

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `Relaxed` takes: an edge's probability of doing nothing is left out."""
        found = {path: values.softmax(0) for path, values in logits.items()}
        return {path: p[:-1] if path in self._edges else p for path, p in found.items()}

    def drawn(self, logits: Mapping[str, Tensor], temperature: float, rng: np.random.Generator) -> dict[str, Tensor]:
        """A single option of each decision, with the gradient of a softmax (straight-through)."""
        found: dict[str, Tensor] = {}
        for path, values in logits.items():
            noise = torch.from_numpy(rng.gumbel(size=len(values))).to(values)
            soft = ((values + noise) / temperature).softmax(0)
            hard = functional.one_hot(soft.argmax(), len(soft)).to(soft)
            p = hard + soft - soft.detach()
            found[path] = p[:-1] if path in self._edges else p
        return found

    @torch.no_grad()
    def choose(self, space: Any, preference: float) -> Genotype:
        """The most probable architecture.

        A node that chooses among edges keeps those whose operations are most probable, doing nothing left out
        (the rule of DARTS); all other decisions take their most probable option, one after the other.
        """
        p = {path: values.cpu() for path, values in self.probabilities(self.at(preference)).items()}

        def strength(edge: str) -> float:
            return float(p[edge].max()) if edge in p else 1.0

        def decide(decision: Decision) -> int:
            if decision.path in self.wirings:
                weights = p.get(weights_of(decision.path))
                share = (
                    dict(zip(self.wired[decision.path], weights.tolist(), strict=True)) if weights is not None else {}
                )
                sums = [sum(strength(e) * share.get(e, 1.0) for e in option) for option in self.wirings[decision.path]]
                return int(np.argmax(sums))
            return self._best(decision, p)

        genotype: Genotype = space.walk(decide)
        return genotype

    def _best(self, decision: Decision, p: Mapping[str, Tensor]) -> int:
        if decision.path not in p:
            return 0
        labels = self._decisions[decision.path]
        return max(range(len(decision)), key=lambda i: float(p[decision.path][labels.index(decision.labels[i])]))


def _plain(path: str) -> str:
    """A name that `nn.ParameterDict` takes: without dots, and no attribute of its own."""
    return "/" + path.replace(".", "/")
