"""Compound scaling: the published family, equal costs, the two phases, and runs that outlive their base."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nas.search_spaces import zoo
from nas.search_spaces.mobile import mobile
from nas.strategies.random import Random
from nas.strategies.scaled import ScaledSpace, adapted
from nas.strategies.scaling import Scaling, grid
from toys import Toy

from nas import testing
from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, InvertedResidual
from nas.choices import Repeat
from nas.errors import ConfigError, NasError
from nas.evaluator import Task
from nas.executors.local import Local
from nas.ops import Shape
from nas.plugins import make_space, make_strategy
from nas.search import Plan, Search
from nas.space import Space
from nas.store import Run
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS, SpaceConformance, StrategyConformance, answer
from nas.trial import Limit, Objective, Proposal, State, Trial

IMAGENET: tuple[Shape, int] = ((3, 224, 224), 1000)
SMALL: tuple[Shape, int] = ((3, 16, 16), 10)


def small() -> Architecture:
    """A network for 16x16 images with two stages to deepen."""
    stages = {f"stage{i}": Repeat(InvertedResidual(24 * i, expansion=2), 2, first={"stride": 2}) for i in (1, 2)}
    return Architecture(Chain(stem=Conv(24), **stages, head=Head(10)), *SMALL, name="small")


BASE = small().to_json()
BOTH = (ACCURACY, FLOPS)


def given(shape: Shape = SMALL[0], classes: int = SMALL[1]) -> Space:
    """What `--space` names: it says what the task is, and is not searched."""
    return mobile(shape, classes)


def scaling(objectives: Sequence[Objective] = BOTH, limits: Sequence[Limit] = (), **options: Any) -> Scaling:
    return Scaling(given(), objectives, limits, **{"base": BASE, **options})


def told(strategy: Scaling, proposal: Proposal, state: State = "ok", **metrics: float) -> None:
    """Tell what became of a proposal; its accuracy is 0.5 unless given."""
    architecture = strategy.space.architecture(proposal.genotype)
    values = {**architecture.metrics(), "accuracy": 0.5, **metrics} if state == "ok" else {}
    broken = {limit.metric: v for limit in strategy.limits if (v := limit.violation(values)) > 0}
    strategy.tell(Trial(0, proposal.genotype, architecture.key(), state, values, violations=broken))


def ask(strategy: Scaling, n: int, pending: Sequence[Proposal] = ()) -> list[Proposal]:
    return strategy.ask(n, np.random.default_rng(0), pending)


def flops(strategy: Scaling, proposal: Proposal) -> int:
    return strategy.space.architecture(proposal.genotype).analysis.flops


def compare(strategy: Scaling, winner: Mapping[str, float] | None = None) -> list[Proposal]:
    """Phase 1 with one winner (by default the first point); the base is asked for as well."""
    probes = ask(strategy, 100)
    for probe in probes:
        wins = all(probe.note[name] == value for name, value in (winner or probes[0].note).items())
        told(strategy, probe, accuracy=0.9 if wins else 0.5)
    return probes


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# -- the published networks ------------------------------------------------------------------------------------


def test_the_table_gives_the_published_efficientnets_exactly(shared: Path) -> None:
    rows = table(shared / "reference-models/efficientnet_scaling.csv")
    exact = {(row["name"], row["resolution"]): row for row in table(shared / "reference-models/exact.csv")}
    strategy = Scaling(given(*IMAGENET), [ACCURACY, FLOPS], base="efficientnet_b0", table="efficientnet")
    proposals = ask(strategy, 100)
    assert len(proposals) == 9  # B0 to B8
    for row, proposal in zip(rows, proposals, strict=False):
        assert proposal.genotype["width"] == float(row["width"])
        assert proposal.genotype["depth"] == float(row["depth"])
        name, pixels = row["model"].replace("-", "_"), row["resolution"]
        published = exact.get((f"tv.{name}", pixels)) or exact[f"timm.tf_{name}", pixels]
        architecture = strategy.space.architecture(proposal.genotype)
        assert architecture.input_shape == (3, int(pixels), int(pixels))
        assert architecture.analysis.params == int(published["params"])
        assert architecture.analysis.flops == int(published["macs"])


def test_coefficients_are_powers_in_the_formula() -> None:
    options = {"coefficients": [1.2, 1.1, 1.15], "equal": "formula", "phi": 3}
    strategy = Scaling(given(*IMAGENET), [ACCURACY], **options)  # type: ignore[arg-type]
    proposals = ask(strategy, 100)
    assert [p.note["phi"] for p in proposals] == [0, 1, 2, 3]
    for proposal in proposals:
        phi = proposal.note["phi"]
        powers = {"depth": 1.2**phi, "width": 1.1**phi, "resolution": 1.15**phi}
        assert proposal.genotype == pytest.approx(powers, abs=1e-4)
        own = zoo.get("efficientnet_b0").scale(width=1.1**phi, depth=1.2**phi, resolution=1.15**phi)
        assert strategy.space.architecture(proposal.genotype).key() == own.key()


def test_the_grid_keeps_the_constraint() -> None:
    points = grid("depth,width,resolution", 4)
    assert len(set(points)) == 15
    for alpha, beta, gamma in points:
        assert alpha * beta**2 * gamma**2 == pytest.approx(2)
    assert {point[:2] for point in grid(["width"], 3)} == {(1, 2**0.5)}
    assert set(points[-3:]) == {(2, 1, 1), (1, 2**0.5, 1), (1, 1, 2**0.5)}  # single axes last


def test_networks_that_are_compared_have_equal_flops() -> None:
    """The formula alone compares unequal ones; with FLOPs counted, single axes and compounds start level."""
    spread = {}
    for equal in ("formula", "flops"):
        strategy = Scaling(given(*IMAGENET), [ACCURACY], equal=equal, phi=1)
        costs = [flops(strategy, p) for p in ask(strategy, 15)]
        spread[equal] = max(costs) / min(costs)
        ratio = np.array(costs) / zoo.get("efficientnet_b0").analysis.flops
        assert len(costs) == 15
        assert 1.5 < ratio.min() <= ratio.max() < 3
    assert spread["formula"] == pytest.approx(1.46, abs=0.01)
    assert spread["flops"] < 1.1


def test_one_axis_leaves_the_others_alone() -> None:
    for axis in ("depth", "width", "resolution"):
        proposals = ask(scaling(axes=axis, phi=3), 100)
        assert [p.note["phi"] for p in proposals] == [0, 1, 2, 3]
        for other in {"depth", "width", "resolution"} - {axis}:
            assert {p.genotype[other] for p in proposals} == {1.0}
        assert len({p.genotype[axis] for p in proposals}) == 4


def test_multipliers_shrink_as_well() -> None:
    costs = [flops(s, p) for s in [scaling(axes="width,resolution", steps=1, phi=[-2, -1, 0, 1])] for p in ask(s, 9)]
    assert len(costs) == 3  # each axis at phi = 1, the base
    strategy = scaling(axes="resolution", phi=[-2, -1, 0])
    assert [flops(strategy, p) for p in ask(strategy, 9)] == sorted(flops(strategy, p) for p in ask(strategy, 9))
    assert ask(strategy, 1)[0].genotype["resolution"] < 0.6
    table = ask(scaling(table="mobilenet"), 100)
    assert len(table) == 16
    assert {p.genotype["width"] for p in table} == {0.25, 0.5, 0.75, 1.0}
    assert table[-1].genotype == {"resolution": 1.0, "width": 1.0, "depth": 1.0}


# -- the two phases --------------------------------------------------------------------------------------------


def test_phase_2_grows_the_winner_of_phase_1() -> None:
    strategy = scaling(phi=3)
    winner = {"alpha": 1.4142, "beta": 1.1892, "gamma": 1.0}
    probes = compare(strategy, winner)
    assert [p.note["phi"] for p in probes] == [1] * 15 + [0]
    grown = ask(strategy, 100)
    assert [p.note for p in grown] == [{**winner, "phi": phi} for phi in (2, 3)]
    base = flops(strategy, probes[-1])
    assert [flops(strategy, p) / base for p in grown] == pytest.approx([4, 8], rel=0.1)
    for proposal in grown:
        told(strategy, proposal)
    assert ask(strategy, 100) == []


def test_the_first_objective_that_is_measured_decides() -> None:
    strategy = scaling([FLOPS, ACCURACY], phi=2)
    winner = {"alpha": 2.0}
    compare(strategy, winner)
    assert ask(strategy, 1)[0].note["alpha"] == 2.0


def test_it_waits_at_the_end_of_phase_1_and_only_there() -> None:
    """The same networks whatever the number of workers."""
    strategy = scaling(phi=2)
    probes = ask(strategy, 100)
    for probe in probes[:-2]:
        told(strategy, probe, accuracy=0.4)
    assert ask(strategy, 4) == probes[-2:]  # the last point, and the base
    assert ask(strategy, 4, probes[-2:]) == []
    told(strategy, probes[-1])
    assert ask(strategy, 4, probes[-2:-1]) == []
    told(strategy, probes[-2], accuracy=0.6)
    assert [p.note for p in ask(strategy, 4)] == [{**probes[-2].note, "phi": 2}]


def test_a_failed_point_does_not_win_and_does_not_block() -> None:
    strategy = scaling(phi=2)
    probes = ask(strategy, 100)
    for probe, state in zip(probes, ["failed", "diverged"] + ["ok"] * 14, strict=True):
        told(strategy, probe, state)  # type: ignore[arg-type]
    assert ask(strategy, 1)[0].note == {**probes[2].note, "phi": 2}
    nothing = scaling(phi=2)
    for probe in ask(nothing, 100):
        told(nothing, probe, "failed")
    assert ask(nothing, 1) == []


def test_no_network_outside_a_limit_known_beforehand_is_proposed() -> None:
    limit = Limit("flops", small().analysis.flops * 5, exact=True)
    strategy = scaling(limits=[limit], phi=4)
    probes = compare(strategy)
    grown = ask(strategy, 100)
    assert [p.note["phi"] for p in grown] == [2]
    assert all(flops(strategy, p) <= limit.bound for p in [*probes, *grown])
    with pytest.raises(
        ConfigError, match=r"no small scaled to begin with keeps flops <= .* \(the base has .*\); loosen the limits"
    ):
        scaling(limits=[replace(limit, bound=small().analysis.flops * 1.2)])


def test_growth_ends_at_a_network_that_is_too_large() -> None:
    for state, metrics in (("ok", {"latency": 30.0}), ("out_of_memory", {}), ("timed_out", {})):
        strategy = scaling(axes="width", limits=[Limit("latency", 20.0)], phi=4)
        smaller, larger = ask(strategy, 2)
        told(strategy, smaller, latency=10.0)
        told(strategy, larger, state, **metrics)  # type: ignore[arg-type]
        assert ask(strategy, 4) == []
    strategy = scaling(axes="width", limits=[Limit("speed", 20.0, at_least=True)], phi=4)
    told(strategy, ask(strategy, 1)[0], speed=10.0)  # too slow, but that is no matter of size
    assert [p.note["phi"] for p in ask(strategy, 9)] == [1, 2, 3, 4]


# -- the base --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18", "vgg16", "googlenet", "squeezenet1_0", "densenet121"])
def test_a_network_of_the_zoo_is_adapted_to_the_task(name: str) -> None:
    assert adapted(name, (1, 64, 64), 7).key() == zoo.get(name, classes=7, input_shape=(1, 64, 64)).key()


def test_a_base_keeps_its_resolution_relative_to_the_data() -> None:
    space = testing.toy_space()
    genotype = dict(space.sample(np.random.default_rng(0))) | {"resolution": 0.5}
    found = space.architecture(genotype)
    strategy = scaling(base=found.to_json(), phi=1)
    first = ask(strategy, 100)[-1]
    assert first.genotype["resolution"] == 0.5
    assert strategy.space.architecture(first.genotype).key() == found.key()
    assert adapted(found.to_json(), (1, 32, 48), 3).input_shape == (1, 16, 24)


def test_every_kind_of_base_is_read(tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    file.write_text(json.dumps(BASE))
    assert adapted(str(file), *SMALL).key() == small().key()
    earlier = tmp_path / "run"
    loop(Run.create(earlier, CONFIG), given(), Random(given(), BOTH), trials=3).run()
    best = max(Run.open(earlier).trials, key=lambda trial: trial.metrics["accuracy"])
    strategy = scaling(base=str(earlier), axes="depth", phi=0)
    assert strategy.space.architecture(ask(strategy, 1)[0].genotype).key() == best.key


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"base": "efficientnet_b9"}, "did you mean"),
        ({"base": "runs/none"}, "'runs/none' is no run folder"),
        ({"base": "none.json"}, "none.json cannot be read"),
        ({"base": {"format": 1}}, "architecture JSON"),
        ({"base": 5}, "architecture JSON"),
        ({"axes": "width,height"}, "strategy.axes: expected some of depth,width,resolution"),
        ({"axes": ""}, "strategy.axes"),
        ({"steps": 0}, "strategy.steps: expected a whole number, 1 to 10, got 0"),
        ({"phi": "a"}, "strategy.phi: expected a whole number up to 10"),
        ({"phi": [0, 2]}, "with the 1 at which coefficients are compared"),
        ({"phi": 40}, "strategy.phi"),
        ({"phi": -1}, "strategy.phi"),
        ({"coefficients": [1.2, 1.1]}, "strategy.coefficients"),
        ({"coefficients": [1, 1, 1]}, "strategy.coefficients"),
        ({"coefficients": "1.2"}, "strategy.coefficients"),
        ({"table": "efficientnets"}, "or one of efficientnet, mobilenet, got"),
        ({"table": [[1, 1]]}, "strategy.table: expected rows of width, depth, resolution"),
        ({"table": 3}, "strategy.table"),
        ({"table": "mobilenet", "coefficients": [1.2, 1.1, 1.15]}, "give one of the two"),
        ({"equal": "params"}, "strategy.equal: expected flops or formula, got 'params'"),
    ],
)  # fmt: skip
def test_a_bad_option_is_one_line(options: dict[str, Any], match: str) -> None:
    with pytest.raises(NasError, match=match) as caught:
        scaling(**options)
    assert "\n" not in str(caught.value)


# -- conformance -----------------------------------------------------------------------------------------------


class TestScaledSpace(SpaceConformance):
    inputs = (((1, 8, 8), 10), ((3, 32, 48), 3), ((3, 224, 224), 1000))
    samples = 8

    def make(self, input_shape: Shape, classes: int) -> Space:
        return ScaledSpace(input_shape, classes)


class TestScaling(StrategyConformance):
    """On the space that it brings, with a grid of 66 points: more than the suite asks for."""

    @pytest.fixture(autouse=True)
    def _brought(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(testing, "toy_space", lambda: self.make(given(), [ACCURACY], ()).space)
        monkeypatch.setattr("nas.testing.toy_space", testing.toy_space)

    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        loose = [replace(limit, bound=1e9) for limit in limits]
        return Scaling(space, objectives, loose, base=BASE, steps=10, phi=1, equal="formula")

    def test_the_seed_governs_everything(self) -> None:
        """There is no randomness: every seed proposes the same."""
        for (_, _, a), (_, _, b) in zip(self.runs(), self.runs(), strict=True):
            assert [t.genotype for t in a] == [t.genotype for t in b]


# -- runs ------------------------------------------------------------------------------------------------------


CONFIG = {
    "config": {"space": "mobile", "strategy": "scaling", "evaluator": "toys:Toy"},
    "task": {"input_shape": list(SMALL[0]), "classes": SMALL[1]},
}


def loop(run: Run, space: Space, strategy: Strategy, trials: int) -> Search:
    judge, task = Toy(), Task(None, *SMALL)
    made = Search(
        run, space, strategy, judge, Plan(BOTH, trials=trials),
        lambda report: Local(judge, task, device="cpu", threads=1, on_report=report),
    )  # fmt: skip
    made.prepare(task, device="cpu")
    return made


def search(folder: Path, *, options: Mapping[str, Any], trials: int) -> Search:
    """What a session does: the space is the strategy's, and `run.json` says how to make it again."""
    resumed = (folder / "run.json").exists()
    run = Run.open(folder, write=True) if resumed else Run.create(folder, CONFIG)
    name, made_with = run.config.get("space", ("mobile", {}))
    space = make_space(name, *SMALL, made_with)
    strategy = make_strategy("nas.strategies.scaling:Scaling", space, BOTH, (), options=options)
    if strategy.space is not space:
        run.configure({**CONFIG, "space": strategy.space.recipe})  # type: ignore[attr-defined]
    return loop(run, strategy.space, strategy, trials)


def keys(folder: Path) -> list[str]:
    return [trial.key for trial in Run.open(folder).trials if trial.evaluated]


def architectures(folder: Path) -> Iterator[Architecture]:
    """What `nas show` and `nas export` do: the space again from the run folder alone."""
    run = Run.open(folder)
    name, options = run.config["space"]
    space = make_space(name, *SMALL, options)
    for trial in run.trials:
        yield space.architecture(trial.genotype)


def test_a_run_goes_on_and_is_read_when_its_base_has_gone(tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    file.write_text(json.dumps(BASE))
    options = {"base": str(file), "steps": 2, "phi": 3}
    search(tmp_path / "whole", options=options, trials=9).run()
    search(tmp_path / "cut", options=options, trials=4).run()
    file.unlink()
    search(tmp_path / "cut", options=options, trials=9).run()
    assert keys(tmp_path / "cut") == keys(tmp_path / "whole")
    assert len(keys(tmp_path / "whole")) == 9  # 6 points, the base, phi 2 and 3
    assert [a.key() for a in architectures(tmp_path / "cut")] == [t.key for t in Run.open(tmp_path / "cut").trials]


def test_the_space_is_sent_to_workers() -> None:
    strategy = scaling(phi=1)
    genotype = ask(strategy, 1)[0].genotype
    again = pickle.loads(pickle.dumps(strategy.space))
    assert again.architecture(genotype).key() == strategy.space.architecture(genotype).key()
    assert again.paths == strategy.space.paths


def test_the_suite_answers_with_architectures_of_the_own_space() -> None:
    """Proposals belong to `strategy.space`, not to the space that was given."""
    strategy = scaling(phi=1)
    proposal = ask(strategy, 1)[0]
    assert answer(strategy.space, proposal, 0).ok
    with pytest.raises(NasError):
        given().check(proposal.genotype)
