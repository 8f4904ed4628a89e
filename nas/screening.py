"""Screening: many architectures are scored cheaply, and the search begins with the most promising of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from nas.choices import Genotype
from nas.errors import ConfigError, RunError
from nas.evaluator import Evaluator, Task
from nas.scoring import Scorer
from nas.space import Space
from nas.strategy import Candidate
from nas.trial import Limit, Objective, Proposal

FILE, PART = "screened.json", "scores.jsonl"

PATIENCE = 200
"""Attempts at a new architecture within the limits, for each that is scored."""


@dataclass(frozen=True)
class Screening:
    """`proxy:200:20`: the evaluator `proxy` scores 200 architectures, 20 are trained; by default a tenth."""

    evaluator: str
    scored: int
    trained: int

    @classmethod
    def parse(cls, text: str) -> Screening:
        """Raises ConfigError."""
        parts = text.split(":")
        count = sum(part.isdecimal() for part in parts[-2:]) if parts[-1].isdecimal() else 0
        name, numbers = ":".join(parts[: len(parts) - count]), [int(part) for part in parts[len(parts) - count :]]
        if not name or not numbers:
            raise ConfigError(
                f"screen: expected EVALUATOR:SCORED or EVALUATOR:SCORED:TRAINED, such as proxy:200, got {text!r}"
            )
        scored, trained = numbers[0], numbers[1] if len(numbers) > 1 else max(1, numbers[0] // 10)
        if not 1 <= trained <= scored:
            raise ConfigError(f"screen: {text!r} trains {trained} of {scored}; expected at least one, and not more")
        return cls(name, scored, trained)


class Screen:
    """Scores random architectures within the exact limits, and picks the one of each band of costs that scores best.

    Bands are of the first objective that is known without evaluation (FLOPs, say), with equally many architectures in
    each, and as many as are to be trained: most scores rise with FLOPs, so that of a wide band only the end would be
    picked. Without such an objective, those that score best are. What counts is the evaluator's metric `score`, or
    its first one.

    `evaluator` is that of the plan. `prepare` is a long job as `Strategy` says; interrupted, it goes on with the scores
    that it has.
    """

    unit = "network"

    def __init__(
        self, plan: Screening, evaluator: Evaluator, space: Space, objectives: Sequence[Objective],
        limits: Sequence[Limit],
    ) -> None:  # fmt: skip
        self.plan, self.evaluator, self.space = plan, evaluator, space
        self.prepared: list[Proposal] | None = None
        self.limits = [limit for limit in limits if limit.exact]
        self.cost = next((o for o in objectives if o.exact), None)
        self.metric = next((m for m in self.evaluator.metrics if m.name == "score"), self.evaluator.metrics[0])

    def recall(self, workdir: Path) -> list[Proposal] | None:
        """What was picked before. Raises RunError for a damaged file."""
        file = workdir / FILE
        if not file.exists():
            return None
        try:
            return [Proposal(**entry) for entry in json.loads(file.read_text())]
        except (ValueError, TypeError) as error:
            raise RunError(f"{file}: expected what was screened ({type(error).__name__}: {error}); delete it") from None

    def keep(self, prepared: Sequence[Proposal], workdir: Path) -> None:
        (workdir / FILE).write_text(json.dumps([vars(proposal) for proposal in prepared]))
        (workdir / PART).unlink(missing_ok=True)

    def prepare(
        self, task: Task, workdir: Path, *, seed: int, device: str, report: Callable[..., None]
    ) -> list[Proposal]:
        """Score and pick."""
        workdir.mkdir(parents=True, exist_ok=True)  # on a machine that does not see the run folder
        scorer = Scorer(self.evaluator, self.space, task, workdir, seed=seed, device=device, report=report)
        known = _known(workdir / PART)
        scored: list[tuple[Candidate, float]] = []
        with (workdir / PART).open("a") as file:
            for done, candidate in enumerate(self._candidates(np.random.default_rng([seed, 2])), 1):
                key = str(candidate.key)
                if key not in known:
                    known[key] = scorer.partly(candidate.architecture).get(self.metric.name)
                    file.write(f"{json.dumps([key, known[key]])}\n")
                    file.flush()
                score = known[key]
                if score is not None and isfinite(score):
                    scored.append((candidate, score if self.metric.direction == "max" else -score))
                report(done, {}, self.plan.scored)
        return self._picked(scored)

    def _candidates(self, rng: np.random.Generator) -> Iterator[Candidate]:
        """Different networks within the limits, always the same ones."""
        seen: set[str | None] = set()
        for _ in range(PATIENCE * self.plan.scored):
            candidate = Candidate(self.space, self._within(rng))
            if not candidate.excess(self.limits) and candidate.key not in seen:
                seen.add(candidate.key)
                yield candidate
                if len(seen) == self.plan.scored:
                    return
        if not seen:
            kept = ", ".join(map(str, self.limits)) or "what can be built"
            raise ConfigError(f"screen: no random architecture of {self.space.name!r} keeps {kept}; loosen the limits")

    def _within(self, rng: np.random.Generator) -> Genotype:
        """A random genotype, mutated while it is outside the limits and that brings it no farther from them."""
        candidate = Candidate(self.space, self.space.sample(rng))
        excess = candidate.excess(self.limits)
        for _ in range(PATIENCE):
            if not excess:
                break
            step = Candidate(self.space, self.space.mutate(candidate.genotype, rng))
            if (less := step.excess(self.limits)) <= excess:
                candidate, excess = step, less
        return candidate.genotype

    def _picked(self, scored: list[tuple[Candidate, float]]) -> list[Proposal]:
        if not scored:
            raise ConfigError(f"screen: {self.plan.evaluator!r} gave no architecture a {self.metric.name}; use another")
        trained = min(self.plan.trained, len(scored))
        if self.cost is None:
            best = sorted(scored, key=lambda one: -one[1])[:trained]
        else:
            cost = self.cost
            scored = sorted(scored, key=lambda one: cost.cost(one[0].costs))
            bands = np.array_split(np.arange(len(scored)), trained)
            best = [max((scored[i] for i in bands[k]), key=lambda one: one[1]) for k in _spread(trained)]
        return [Proposal(dict(one.genotype), {"screened": score}) for one, score in best]


def _spread(n: int) -> list[int]:
    """0 to n - 1, each far from those before (van der Corput): a search cut short has trained some of everywhere."""
    digits = max(1, (n - 1).bit_length())
    order = [int(f"{i:0{digits}b}"[::-1], 2) for i in range(2**digits)]
    return [i for i in order if i < n]


def _known(path: Path) -> dict[str, float | None]:
    """Scores by key that an interrupted screening left; what follows a torn line is computed again."""
    known: dict[str, float | None] = {}
    with suppress(ValueError, TypeError):
        for line in path.read_text().splitlines() if path.exists() else []:
            key, score = json.loads(line)
            known[key] = score
    path.write_text("".join(f"{json.dumps([key, score])}\n" for key, score in known.items()))
    return known
