"""Compound scaling: find out how a small network is best enlarged, then enlarge it (EfficientNet, Tan & Le 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import inf, isfinite, log2
from typing import NamedTuple, TypeGuard, cast

import numpy as np

from nas.architecture import Architecture
from nas.choices import Genotype
from nas.errors import ConfigError, GraphError
from nas.space import Space
from nas.strategy import Candidate, Strategy
from nas.trial import Limit, Objective, Proposal, Trial, format_number

from .scaled import Base, ScaledSpace, adapted, relative_resolution

AXES = ("depth", "width", "resolution")

B0_TO_B8 = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 300), (1.4, 1.8, 380), (1.6, 2.2, 456),
            (1.8, 2.6, 528), (2.0, 3.1, 600), (2.2, 3.6, 672))  # fmt: skip

TABLES: Mapping[str, Sequence[Sequence[float]]] = {
    "efficientnet": [(width, depth, pixels / 224) for width, depth, pixels in B0_TO_B8],
    # Howard et al. 2017, from the cheapest to the dearest: FLOPs go with both squares.
    "mobilenet": sorted(
        ((width, 1.0, pixels / 224) for width, pixels in product((0.25, 0.5, 0.75, 1.0), (128, 160, 192, 224))),
        key=lambda row: row[0] * row[2],
    ),
}
"""Published (width, depth, resolution) multipliers. EfficientNet's are rounded by hand, not powers of coefficients."""

CLOSE = 0.01
"""Doublings by which a network may miss its FLOPs: closer is not looked for."""

STEPS = 12
"""Networks that are looked at for one that has the FLOPs wanted."""


MOST = 10
"""Of the largest phi (a network 1,024 times as dear as the base), and of steps (a grid of 66 points)."""


class Multipliers(NamedTuple):
    """A scaled network; `resolution` is relative to the data."""

    width: float
    depth: float
    resolution: float


class Coefficients(NamedTuple):
    """Growth of depth, width and resolution from one phi to the next."""

    alpha: float
    beta: float
    gamma: float

    def at(self, phi: float) -> tuple[float, float, float]:
        """Factors on width, depth and resolution."""
        return self.beta**phi, self.alpha**phi, self.gamma**phi


class Member(NamedTuple):
    """A network of a family, and what the journal says of it."""

    multipliers: Multipliers
    note: Mapping[str, float]


class Scaling(Strategy):
    """Compound scaling, on a space of its own: `ScaledSpace`.

    1. A grid of coefficients (alpha for depth, beta for width, gamma for resolution) with alpha·beta²·gamma² = 2:
       all ways to share a doubling of the FLOPs among the axes. Each is evaluated at phi = 1; the best by the first
       objective that has to be measured wins.
    2. The winner at every other phi, smallest first, as far as the limits go: none that breaks one known beforehand,
       none larger than one that broke a measured one, ran out of memory or out of time.

    Repetitions are rounded up and channels to multiples of 8, so the formula alone compares unequal networks: those
    of B0 at phi = 1 differ by 46 % in FLOPs. By default each network is therefore scaled along its coefficients
    until its FLOPs are 2**phi times the base's. `ask` gives nothing while phase 2 waits for phase 1, and at the end:
    the points that are compared, and so the winner, do not depend on the number of workers.

    Args:
        base: see `ScaledSpace`.
        axes: which of depth, width, resolution may grow. With a single one there is no phase 1.
        steps: parts into which a doubling is divided: 1 compares the single axes, 4 gives 15 points.
        phi: the largest phi, or all of them, such as `[-2, -1, 0, 1]`.
        coefficients: alpha, beta, gamma, such as `[1.2, 1.1, 1.15]`: there is no phase 1.
        table: rows of width, depth and resolution multipliers instead of coefficients, or the published ones of
            `efficientnet` or `mobilenet`.
        equal: `flops`, or `formula`: the coefficients to the power of phi, as in the paper.

    Raises ConfigError for an option out of range, or where no network is within the limits.
    """

    def __init__(
        self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = (), *,
        base: Base = "efficientnet_b0", axes: str | Sequence[str] = AXES, steps: int = 4,
        phi: int | Sequence[float] = 4, coefficients: Sequence[float] = (),
        table: str | Sequence[Sequence[float]] = (), equal: str = "flops",
    ) -> None:  # fmt: skip
        self._base = space.base if isinstance(space, ScaledSpace) else adapted(base, space.input_shape, space.classes)
        self._native = space.input_shape
        if table and coefficients:
            raise ConfigError("strategy.table: a table has no coefficients; give one of the two")
        if equal not in ("flops", "formula"):
            raise ConfigError(f"strategy.equal: expected flops or formula, got {equal!r}")
        if table:
            self._families = [self._rows(table)]
        else:
            points = [_coefficients(coefficients)] if coefficients else grid(axes, steps)
            phis = _phis(phi, len(points) > 1)
            self._families = [self._family(point, phis, equal) for point in points]
        found = {member.multipliers for family in self._families for member in family}
        labels = dict(zip(Multipliers._fields, zip(*found, strict=True), strict=True))
        mine = ScaledSpace(space.input_shape, space.classes, base=self._base.to_json(), **labels)
        mine.prices = space.prices
        super().__init__(mine, objectives, limits)
        self._judge = next((o for o in objectives if not o.exact), objectives[0])
        self._exact = [limit for limit in limits if limit.exact]
        self._fitting: dict[Multipliers, bool] = {}
        self._told: dict[Multipliers, Trial] = {}
        if not any(self._plan()):
            costs = self.space.metrics(self._base)
            bounds = [f"{limit} (the base has {format_number(costs[limit.metric])})" for limit in self._exact]
            raise ConfigError(
                f"strategy scaling: no {self._base.name} scaled to begin with keeps "
                f"{', '.join(bounds) or 'a size that works'}; loosen the limits, choose a smaller base or a smaller phi"
            )

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        taken = {*self._told, *(_multipliers(p.genotype) for p in pending)}
        asked: dict[Multipliers, Proposal] = {}
        for multipliers, note in self._plan():
            if multipliers not in taken and len(asked) < n:
                asked.setdefault(multipliers, Proposal(_genotype(multipliers), note))
        return list(asked.values())

    def tell(self, trial: Trial) -> None:
        self._told[_multipliers(trial.genotype)] = trial

    # -- the plan ----------------------------------------------------------------------------------------------

    def _plan(self) -> Iterator[Member]:
        """What is to be evaluated, in order, as far as is known."""
        if len(self._families) == 1:
            yield from self._growing(self._families[0])
            return
        families = [(family, probe) for family in self._families if self._fits(probe := _at(family, 1))]
        yield from (probe for _, probe in families)
        if families:  # the base belongs to every family, so it need not wait
            yield from (member for member in self._families[0] if member.note["phi"] == 0 and self._fits(member))
        trials = [self._told.get(probe.multipliers) for _, probe in families]
        if None not in trials:
            done = [(trial, family) for trial, (family, _) in zip(trials, families, strict=True) if trial and trial.ok]
            if done:
                yield from self._growing(min(done, key=lambda pair: self._value(pair[0]))[1])

    def _growing(self, family: Sequence[Member]) -> Iterator[Member]:
        for member in filter(self._fits, family):
            yield member
            trial = self._told.get(member.multipliers)
            if trial is not None and self._too_large(trial):
                return

    def _value(self, trial: Trial) -> tuple[float, float]:
        return sum(trial.violations.values()), self._judge.cost(trial.metrics)

    def _too_large(self, trial: Trial) -> bool:
        broken = any(limit.metric in trial.violations for limit in self.limits if not limit.at_least)
        return broken or trial.state in ("out_of_memory", "timed_out")

    def _fits(self, member: Member) -> bool:
        """Whether it can be built and keeps the limits that are known beforehand."""
        known = self._fitting.get(member.multipliers)
        if known is None:
            excess = Candidate(self.space, _genotype(member.multipliers)).excess(self._exact)
            known = self._fitting[member.multipliers] = excess == 0
        return known

    # -- families ----------------------------------------------------------------------------------------------

    def _rows(self, table: str | Sequence[Sequence[float]]) -> tuple[Member, ...]:
        rows = TABLES.get(table) if isinstance(table, str) else table
        if not isinstance(rows, Sequence) or not all(_numbers(row) and len(row) == 3 and min(row) > 0 for row in rows):
            names = ", ".join(TABLES)
            raise ConfigError(
                f"strategy.table: expected rows of width, depth, resolution above 0, or one of {names}, got {table!r}"
            )
        return tuple(Member(self._round(*row), {"row": i}) for i, row in enumerate(rows))

    def _family(self, point: Coefficients, phis: Sequence[float], equal: str) -> tuple[Member, ...]:
        grow = self._equal if equal == "flops" else lambda point, phi: self._round(*point.at(phi))
        growth = {name: round(value, 4) for name, value in point._asdict().items()}
        return tuple(Member(grow(point, phi), {**growth, "phi": phi}) for phi in phis)

    def _equal(self, point: Coefficients, phi: float) -> Multipliers:
        """The network along the coefficients whose FLOPs are nearest to 2**phi times the base's: by bisection."""
        best, missed = self._round(*point.at(phi)), inf
        low, high, power = 0.0, None, phi
        for _ in range(STEPS if phi else 0):
            here = self._round(*point.at(power))
            try:
                doublings = log2(self._flops(here) / self._base.analysis.flops)
            except GraphError:  # shrunk to less than the network can read
                break
            if doublings and abs(phi - doublings) < missed:
                best, missed = here, abs(phi - doublings)
            if missed < CLOSE:
                break
            low, high = (power, high) if abs(doublings) < abs(phi) else (low, power)
            power = 2 * power if high is None else (low + high) / 2
        return best

    def _flops(self, multipliers: Multipliers) -> int:
        c, h, w = self._native
        shape = c, max(1, round(h * multipliers.resolution)), max(1, round(w * multipliers.resolution))
        body = self._base.body.scaled(multipliers.width, multipliers.depth)
        return Architecture(body, shape, self._base.classes).analysis.flops

    def _round(self, width: float, depth: float, resolution: float) -> Multipliers:
        """Labels are short: a difference in the fifth place is no other network."""
        return Multipliers(round(width, 4), round(depth, 4), round(resolution * relative_resolution(self._base), 4))


def _at(family: Sequence[Member], phi: float) -> Member:
    return next(member for member in family if member.note["phi"] == phi)


def grid(axes: str | Sequence[str], steps: int) -> list[Coefficients]:
    """All ways to share a doubling of the FLOPs among the axes in parts of 1/steps, the most even first.

    FLOPs go with the depth and the squares of width and resolution, so alpha·beta²·gamma² = 2. Raises ConfigError.
    """
    chosen = [axis.strip() for axis in (axes.split(",") if isinstance(axes, str) else axes)]
    if not chosen or not set(chosen) <= set(AXES):
        raise ConfigError(f"strategy.axes: expected some of {','.join(AXES)}, got {axes!r}")
    if not isinstance(steps, int) or not 1 <= steps <= MOST:
        raise ConfigError(f"strategy.steps: expected a whole number, 1 to {MOST}, got {steps!r}")
    points = []
    for parts in product(*(range(steps + 1) if axis in chosen else (0,) for axis in AXES)):
        if sum(parts) == steps:
            depth, width, resolution = (part / steps for part in parts)
            point = Coefficients(2**depth, 2 ** (width / 2), 2 ** (resolution / 2))
            points.append((sum(part**2 for part in parts), point))
    return [point for _, point in sorted(points)]


def _coefficients(values: Sequence[float]) -> Coefficients:
    if not _numbers(values) or len(values) != 3 or min(values) < 1 or max(values) == 1:
        raise ConfigError(
            f"strategy.coefficients: expected alpha, beta, gamma of at least 1, one above, such as [1.2, 1.1, 1.15], "
            f"got {values!r}"
        )
    return Coefficients(*values)


def _phis(phi: int | Sequence[float], compared: bool) -> Sequence[float]:
    phis: Sequence[float] = sorted(phi) if _numbers(phi) else range(phi + 1) if isinstance(phi, int) else ()
    if not phis or max(map(abs, phis)) > MOST or (compared and 1 not in phis):
        needed = " with the 1 at which coefficients are compared" if compared else ""
        raise ConfigError(
            f"strategy.phi: expected a whole number up to {MOST}, or a list such as [0, 1, 2]{needed}, got {phi!r}"
        )
    return phis


def _numbers(values: object) -> TypeGuard[Sequence[float]]:
    return isinstance(values, list | tuple) and all(type(v) in (int, float) and isfinite(v) for v in values)


def _genotype(multipliers: Multipliers) -> Genotype:
    return {"resolution": multipliers.resolution, "width": multipliers.width, "depth": multipliers.depth}


def _multipliers(genotype: Genotype) -> Multipliers:
    return Multipliers(*(cast(float, genotype[axis]) for axis in Multipliers._fields))
