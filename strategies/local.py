"""Local search: climb from neighbour to neighbour, or push a whole front of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas import pareto
from nas.choices import Genotype
from nas.errors import ConfigError, SpaceError
from nas.space import Space
from nas.strategy import Candidate, Seen, Strategy, informs, tier
from nas.trial import Limit, Objective, Proposal, Trial

WORK = 400
"""Architectures that are looked at for a start that is new and within the limits, at most."""

Move = tuple[str, int]
"""A decision's path, and the position of the option that it changes to."""


@dataclass
class _Member:
    """A trial whose neighbours are looked at.

    `row`: objective values, to be minimised. `climb`: the trial where it began. `left`: positions of the moves that may
    lead to a neighbour that is new and within the limits.
    """

    number: int
    genotype: Genotype
    row: pareto.Array
    tier: float
    climb: int
    moves: list[Move]
    left: list[int]

    def beats(self, other: _Member, *, equal: bool = False) -> bool:
        """Whether it dominates the other one, or is as good where `equal`."""
        if self.tier != other.tier:
            return self.tier < other.tier
        return bool((self.row <= other.row).all() and (equal or (self.row < other.row).any()))


class LocalSearch(Strategy):
    """Local search: evaluate a trial's neighbours, which differ from it in one decision, and go on from better ones.

    One objective: hill climbing. Moves to the first neighbour that is better (White et al. 2021: a strong baseline for
    architectures), or to the best one of all; starts again at random when no neighbour is left.
    Several objectives: Pareto local search (Paquete et al. 2004) from all non-dominated trials. First improvement
    takes the next neighbour of the member that has been explored least, of those the one with most room around it;
    best improvement stays with a member until no neighbour is left. When none of any is left, members are changed in
    two decisions, and in more where that is known.

    Neighbours come in random order, but changes that were tried anywhere stand behind those that were not, and recent
    ones last: what did not help a moment ago hardly helps now. None is a duplicate, or outside a limit known
    beforehand. With one decision, others may become active: these are drawn at random, once for each neighbour.

    Args:
        improvement: `first` or `best`.
        starts: random trials before the first neighbour.

    Raises ConfigError for an option out of range.
    """

    def __init__(
        self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = (), *,
        improvement: str = "first", starts: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(space, objectives, limits)
        if improvement not in ("first", "best"):
            raise ConfigError(f"strategy.improvement: expected first or best, got {improvement!r}")
        if not isinstance(starts, int) or isinstance(starts, bool) or starts < 1:
            raise ConfigError(f"strategy.starts: expected a whole number of at least 1, got {starts!r}")
        self.improvement, self.starts = improvement, starts
        self._limits = [limit for limit in limits if limit.exact]
        self._told, self._out = Seen(space), Seen(space)
        self._started = 0
        self._members: dict[int, _Member] = {}  # where each climb stands; with several objectives, the front
        self._next: dict[int, _Member] = {}  # the best neighbour of where a climb stands
        self._tried: dict[Move, int] = {}  # the last trial that made this change
        self._explored: Counter[int] = Counter()  # neighbours told, by the number of the trial

    def tell(self, trial: Trial) -> None:
        self._told.tell(trial)
        note = trial.note
        if "move" in note:
            path, index = note["move"]
            self._tried[path, index] = trial.number
            self._explored[note["from"]] += 1
            for member in (self._members.get(note["from"]), self._members.get(note["climb"])):
                if member is not None and member.number == note["from"]:
                    member.left = [i for i in member.left if member.moves[i] != (path, index)]
        if not informs(trial, self.objectives) or trial.duplicate_of is not None:
            return
        # One that breaks a measured limit is worse than all that do not, and better the less it breaks it.
        row = pareto.costs([trial], self.objectives)[0] + 1e9 * sum(trial.violations.values())
        member = _Member(trial.number, trial.genotype, row, tier(trial), note.get("climb", trial.number), [], [])
        self._started += "move" not in note
        if len(self.objectives) > 1:
            self._enter_front(member)
        else:
            self._climb(member, note.get("from"))

    def _enter_front(self, member: _Member) -> None:
        if not any(other.beats(member, equal=True) for other in self._members.values()):
            self._members = {n: other for n, other in self._members.items() if not member.beats(other)}
            self._stand(member.number, member)

    def _climb(self, member: _Member, parent: int | None) -> None:
        climb = member.climb
        if climb in self._next and self._next[climb].number == parent:
            self._stand(climb, self._next.pop(climb))  # it has moved on, or this would not have been proposed
        here = self._members.get(climb)
        if here is None or (self.improvement == "first" and member.beats(here)):
            self._stand(climb, member)
        elif member.beats(self._next.get(climb, here)):
            self._next[climb] = member

    def _stand(self, key: int, member: _Member) -> None:
        for decision in self.space.decisions(member.genotype):
            here = decision.index_in(member.genotype)
            member.moves += [(decision.path, index) for index in range(len(decision)) if index != here]
        member.left = list(range(len(member.moves)))
        self._members[key] = member

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        self._out.follow(pending)
        for _ in range(n):
            self._out.add(self._propose(rng))
        return self._out.pending[-n:]

    def _propose(self, rng: np.random.Generator) -> Proposal:
        waiting = sum("move" not in proposal.note for proposal in self._out.pending)
        if self._started + waiting >= self.starts:
            # What is drawn must not depend on which neighbours were looked at before: that is not told again.
            seed = int(rng.integers(2**32))
            for member in self._in_turn(seed):
                found = self._neighbour(member, seed)
                if found is not None:
                    return found
        return Proposal(self._start(rng))

    def _in_turn(self, seed: int) -> Iterable[_Member]:
        """Members that may have a neighbour left; the one to explore first."""
        if len(self.objectives) == 1:
            for member in sorted(self._members.values(), key=lambda m: (m.tier, m.row[0])):
                yield member
                if not member.left and member.climb in self._next:
                    self._stand(member.climb, self._next.pop(member.climb))
                    yield self._members[member.climb]
            return
        out = Counter(proposal.note["from"] for proposal in self._out.pending if "from" in proposal.note)
        sign = 1 if self.improvement == "first" else -1
        members = list(self._members.values())
        explored = [sign * (self._explored[member.number] + out[member.number]) for member in members]
        lonely = -pareto.crowding(
            np.array([member.row for member in members]).reshape(len(members), len(self.objectives))
        )
        ties = np.random.default_rng(seed).random(len(members))
        order = sorted(range(len(members)), key=lambda i: (explored[i], lonely[i], ties[i]))
        yield from [members[i] for i in order if members[i].left]

    def _neighbour(self, member: _Member, seed: int) -> Proposal | None:
        """The next neighbour that is new and within the limits; drops those that never will be."""
        if not member.left:
            return None
        ties = np.random.default_rng([seed, member.number]).random(len(member.moves))
        order = sorted(member.left, key=lambda i: (self._tried.get(member.moves[i], -1), ties[i]))
        found, gone = None, set[int]()
        for i in order:
            path, index = member.moves[i]
            candidate = Candidate(self.space, self._moved(member, path, index))
            if candidate.excess(self._limits) or candidate in self._told:
                gone.add(i)
            elif candidate not in self._out:
                note: dict[str, Any] = {"move": [path, index], "from": member.number, "climb": member.climb}
                found = Proposal(candidate.genotype, note)
                break
        if gone:
            member.left = [i for i in member.left if i not in gone]
        return found

    def _moved(self, member: _Member, path: str, index: int) -> Genotype:
        drawn: list[np.random.Generator] = []

        def fill(n: int) -> int:
            if not drawn:  # always the same for the same neighbour
                drawn.append(np.random.default_rng([member.number, index, *path.encode()]))
            return int(drawn[0].integers(n))

        return self.space.change(member.genotype, path, index, fill)

    def _start(self, rng: np.random.Generator) -> Genotype:
        """A random architecture, or a changed member of the front; mutated until it is new and within the limits."""
        candidate = Candidate(self.space, self.space.sample(rng))
        if len(self.objectives) > 1 and self._started >= self.starts and self._members:
            members = list(self._members.values())
            member = members[int(rng.integers(len(members)))]
            candidate = Candidate(self.space, self.space.mutate(member.genotype, rng, decisions=2))
        excess = candidate.excess(self._limits)
        for _ in range(WORK):
            if not excess and candidate not in self._told and candidate not in self._out:
                break
            try:
                step = Candidate(self.space, self.space.mutate(candidate.genotype, rng))
            except SpaceError:  # the space is a single architecture
                break
            less = step.excess(self._limits)
            if less <= excess:
                candidate, excess = step, less
        return candidate.genotype
