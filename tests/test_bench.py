"""Comparing strategies on tables, and runs with each other."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_cli import nas

from nas import pareto
from nas.bench import cells
from nas.bench.cells import Cell, run
from nas.bench.comparison import Bench, compare
from nas.bench.measure import Measure
from nas.bench.methods import PEERS, Evaluations, fitting
from nas.bench.names import Named, names
from nas.bench.problem import Problem, Source
from nas.blocks import Chain, Conv, Head
from nas.choices import OneOf
from nas.errors import ConfigError
from nas.space import Space
from nas.testing import ACCURACY, FLOPS, toy_metrics, toy_space

MACRO = Source("nas-bench-macro", None, "accuracy,flops")


def small_space() -> Space:
    """27 networks; the third layer is of no use without the second."""
    layers = {name: Conv(width=OneOf(8, 16, 24), kernel=1) for name in ("a", "b", "c")}
    return Space(Chain(**layers, head=Head(4)), input_shape=(3, 8, 8), classes=4, name="small")


def small(input_shape: object = (3, 8, 8), classes: int = 4) -> Space:
    """The same, as a user names it."""
    return small_space()


@pytest.fixture(scope="module")
def macro() -> Problem:
    return MACRO.load()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A user's own table: genotypes as JSON, two trainings, another metric."""
    path, space = tmp_path / "mine.csv", small_space()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["genotype", "accuracy0", "accuracy1", "latency"])
        for genotype in space.enumerate():
            metrics = toy_metrics(space.architecture(genotype))
            accuracy = 50 * metrics["accuracy"]
            writer.writerow([json.dumps(genotype), accuracy - 1, accuracy + 1, 1 + metrics["params"] % 7])
    return path


# -- the measure ---------------------------------------------------------------------------------------------------


def test_the_measure_is_one_for_the_true_front_and_nothing_outside_the_window() -> None:
    everything = np.array([[-0.9, 10.0], [-0.85, 4.0], [-0.5, 2.0], [-0.8, 12.0]])
    measure = Measure([ACCURACY, FLOPS], everything)
    assert measure.hypervolume(everything) == 1
    assert measure.igd_plus(everything) == 0
    assert measure.hypervolume(everything[2:]) == 0  # 40 points below the best; at the end of the FLOPs
    # By hand: accuracy error in units of 10 points, FLOPs from 2 to 12. The front inside is (0, .8) and (.5, .2).
    assert measure.hypervolume(everything[:1]) == pytest.approx(0.2 / (0.2 + 0.5 * 0.6))
    assert measure.igd_plus(everything[:1]) == pytest.approx((0 + 0.6) / 2)
    assert measure.hypervolume(np.full((3, 2), np.inf)) == 0
    assert measure.igd_plus(np.full((3, 2), np.inf)) == np.inf


def test_the_curve_is_the_hypervolume_after_each() -> None:
    rng = np.random.default_rng(0)
    costs = np.column_stack([-rng.uniform(0.8, 0.95, 60), rng.uniform(1, 9, 60)])
    costs[::9] = np.inf
    measure = Measure([ACCURACY, FLOPS], costs[np.isfinite(costs).all(axis=1)])
    assert measure.curve(costs) == pytest.approx([measure.hypervolume(costs[: n + 1]) for n in range(60)])


def test_reached_counts_evaluations_until_a_tenth_of_a_point() -> None:
    measure = Measure([ACCURACY], np.array([[-0.9], [-0.7]]))
    assert measure.reached(np.array([[-0.7], [-0.8989], [-0.899], [-0.9]])) == 3
    assert measure.reached(np.array([[-0.7], [-0.8989]])) is None


# -- tables --------------------------------------------------------------------------------------------------------


def test_the_shipped_table_is_whole(macro: Problem) -> None:
    assert len(macro.metrics) == 3969
    assert max(row["accuracy"] for row in macro.metrics.values()) == pytest.approx(0.9313, abs=1e-4)
    genotype = next(iter(macro.space.enumerate()))
    row = macro.metrics[macro.key(genotype)]
    assert row["flops"] == macro.space.architecture(genotype).analysis.flops


def test_a_table_and_a_space_of_ones_own(table: Path) -> None:
    problem = Source(str(table), "test_bench:small", "accuracy,latency:min,flops").load()
    assert len(problem.metrics) == 27
    genotype = next(iter(small_space().enumerate()))
    expected = toy_metrics(small_space().architecture(genotype))
    found = problem.metrics[problem.key(genotype)]
    assert found["accuracy"] == pytest.approx(expected["accuracy"] / 2)  # the mean of two, in percent
    assert [o.direction for o in problem.objectives] == ["max", "min", "min"]


def test_a_code_may_be_digits_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_text("code,accuracy\n000,0.5\n2 1 0,0.75\n210,0.25\n")
    problem = Source(str(path), "test_bench:small", "accuracy").load()
    space = small_space()
    assert problem.metrics[problem.key(space.decode([0, 0, 0]))]["accuracy"] == 0.5
    assert problem.metrics[problem.key(space.decode([2, 1, 0]))]["accuracy"] == 0.5  # rows of one network: their mean


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("", "expected one column 'code' or 'genotype' in the header, got nothing"),
        ("code,accuracy\n", "there is no row below the header"),
        ("arch,accuracy\n000,0.5\n", "expected one column 'code' or 'genotype' in the header, got arch, accuracy"),
        ("code,flops\n000,3\n", "expected a column per metric"),
        ("code,accuracy,accuracy\n000,1,1\n", "two columns are called 'accuracy'"),
        ("code,accuracy\n000,0.5\n111\n", "line 3: expected 2 cells"),
        ("code,accuracy\n000,0.5,7\n", "line 2: expected 2 cells"),
        ("code,accuracy\n000,good\n", "line 2: accuracy is 'good', expected a number"),
        ("code,accuracy\n000,nan\n", "line 2: accuracy is 'nan', expected a number"),
        ("code,accuracy\n000,101\n", "expected accuracies in 0..1 or in percent, got 101"),
        ("code,accuracy\n00,0.5\n", "line 2: code '00' is no network of space 'small'"),
        ("code,accuracy\n003,0.5\n", "line 2: code '003' is no network of space 'small'"),
        ("code,accuracy\n0x0,0.5\n", "line 2: code '0x0' is no network of space 'small'"),
        ("genotype,accuracy\n[1],0.5\n", "line 2: genotype '[1]' is no network of space 'small'"),
        ("genotype,accuracy\n{,0.5\n", "line 2: genotype '{' is no network of space 'small'"),
        ("code,score\n000,0.5\n", "objectives: 'accuracy' is not a metric"),
        ("code,accuracy\n000,\udcff\n", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "bad.csv").write_bytes(text.encode(errors="surrogateescape"))
    done = nas("bench", "--table=bad.csv", "--space=test_bench:small", "--seeds=1", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table=none"], "no table is called 'none'"),
        (["--table=mine.csv"], "expected one for each --table that is a file (1), or one for all, got 0"),
        (["--space=mobile"], "expected one for each --table that is a file (0)"),
        (["--budgets=50,many"], "expected numbers of evaluations such as 50,100,200"),
        (["--budgets=0"], "expected numbers of evaluations such as 50,100,200"),
        (["--seeds=0"], "--seeds: expected a whole number of at least 1"),
        (["--peers=hyperopt"], "--peers: 'hyperopt' is not one of all, none, optuna-tpe"),
        (["--strategies=scaling"], "scaling cannot be compared here, it brings its own space"),
        (["--strategies=evolutoin"], "did you mean 'evolution'?"),
        (["--strategies=evolution(populaton=3)"], "did you mean strategy.population?"),
        (["--strategies=evolution(3)"], "'3' is not option=value"),
        (["--strategies=evolution,evolution"], "names one twice"),
        (["--objectives=accuracy,speed"], "'speed' is not a metric"),
    ],
)
def test_a_wrong_flag_is_one_line(table: Path, arguments: list[str], message: str) -> None:
    done = nas("bench", "--seeds=1", *arguments, cwd=table.parent)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_names_with_options() -> None:
    assert names("rl, rl(policy=lstm,x=[1, 2]) ,m:N") == ["rl", "rl(policy=lstm,x=[1, 2])", "m:N"]
    assert Named.parse("rl(policy=lstm, x=[1, 2])") == Named("rl", {"policy": "lstm", "x": [1, 2]})
    with pytest.raises(ConfigError, match="is not a name"):
        Named.parse("rl(")


# -- methods -------------------------------------------------------------------------------------------------------


def test_whatever_fits_is_compared(macro: Problem) -> None:
    fit, others = fitting(macro)
    assert {"random", "evolution", "local-search", "tpe"} <= set(fit)
    assert others == {"scaling": "it brings its own space", "darts": "it trains before it proposes"}


@pytest.mark.parametrize("name", PEERS)
def test_peers_search_conditional_spaces(name: str) -> None:
    pytest.importorskip(name.partition("-")[0])
    space = toy_space()
    rng = np.random.default_rng(0)
    architectures = [space.architecture(space.sample(rng)) for _ in range(300)]
    metrics = {a.key(): toy_metrics(a) for a in architectures}
    problem = Problem("toy", space, metrics, "accuracy,flops")
    evaluate = Evaluations(problem, 25, distinct=False)
    PEERS[name].run(evaluate, 0)
    assert len(evaluate.costs) == 25
    known = Counter(np.isfinite(evaluate.costs).all(axis=1).tolist())
    assert len(known) == 2  # the table has only some of the networks, and that stops nobody


def test_duplicates_count_unless_asked(macro: Problem) -> None:
    counted, distinct = (run(Cell(MACRO, "optuna-nsga2", 3, 120, distinct=d), macro) for d in (False, True))
    assert len(counted.costs) == len(distinct.costs) == 120
    assert counted.proposals == 120 < distinct.proposals
    assert len(np.unique(distinct.costs, axis=0)) == 120 > len(np.unique(counted.costs, axis=0))


def test_a_strategy_is_asked_and_told_as_a_search_does_it(tmp_path: Path, macro: Problem) -> None:
    """The same seed gives the same trials as `nas search`."""
    flags = ["--space=nasbench-macro", "--evaluator=table", "--trials=30", "--seed=5", "--out=run"]
    assert nas("search", *flags, cwd=tmp_path).returncode == 0
    shown = json.loads(nas("show", str(tmp_path / "run"), "--all", "--json").stdout)["trials"]
    found = run(Cell(MACRO, "evolution", 5, 30), macro).costs
    expected = [[-trial["metrics"]["accuracy"], trial["metrics"]["flops"]] for trial in shown][:30]
    assert found == pytest.approx(np.array(expected))


# -- the whole comparison ------------------------------------------------------------------------------------------


def bench(table: Path, **changes: object) -> Bench:
    values: dict[str, object] = {
        "tables": (str(table),), "spaces": ("test_bench:small",), "strategies": "random,evolution", "peers": "none",
        "budgets": "5,10", "seeds": 2, "out": table.parent / "out", "workers": 1,
    }  # fmt: skip
    return Bench(**(values | changes))  # type: ignore[arg-type]


def test_an_interrupted_comparison_goes_on(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(bench(table, out=table.parent / "whole"))
    ran: list[Cell] = []

    def interrupted(cell: Cell, problem: Problem) -> cells.Outcome:
        if len(ran) >= 2:
            raise KeyboardInterrupt
        ran.append(cell)
        return run(cell, problem)

    monkeypatch.setattr(cells, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(bench(table))
    assert len(list((table.parent / "out/cells/mine").iterdir())) == 2
    first = list(ran)
    monkeypatch.setattr(cells, "run", lambda cell, problem: (ran.append(cell), run(cell, problem))[1])
    resumed = compare(bench(table))
    assert len(ran) == len(set(ran)) == 4
    assert ran[:2] == first

    def figures(found: object) -> list[tuple[object, ...]]:
        return [(r.method, r.seed, r.budget, r.hypervolume, r.igd_plus) for r in found.rows]  # type: ignore[attr-defined]

    assert figures(resumed) == figures(whole)
    monkeypatch.setattr(cells, "run", interrupted)  # a third call runs nothing, larger budgets run all again
    compare(bench(table, budgets="3"))
    with pytest.raises(KeyboardInterrupt):
        compare(bench(table, budgets="15"))


def test_a_killed_comparison_leaves_nothing_running(table: Path) -> None:
    flags = ["--peers=none", "--strategies=tpe", "--budgets=2000", "--workers=2", f"--out={table.parent / 'killed'}"]
    process = subprocess.Popen([sys.executable, "-m", "nas", "bench", *flags], stderr=subprocess.DEVNULL)
    try:
        while len(children(process.pid)) < 3:  # two, and multiprocessing's own
            assert process.poll() is None
            time.sleep(0.1)
        below = children(process.pid)
    finally:
        process.kill()
        process.wait()
    for _ in range(300):
        if not any(Path(f"/proc/{pid}").exists() for pid in below):
            return
        time.sleep(0.1)
    raise AssertionError("still there after 30 s")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_processes_find_what_one_finds(table: Path) -> None:
    here = compare(bench(table, budgets="6"))
    there = compare(bench(table, budgets="6", workers=2, out=table.parent / "there"))
    assert [(r.method, r.seed, r.hypervolume) for r in here.rows] == [
        (r.method, r.seed, r.hypervolume) for r in there.rows
    ]


def test_the_files_and_the_table_say_the_same(table: Path) -> None:
    flags = ["--table=mine.csv", "--space=test_bench:small", "--strategies=random,local-search", "--seeds=3"]
    more = ["--peers=none", "--budgets=5,27", "--workers=1", "--out=out"]
    done = nas("bench", *flags, *more, cwd=table.parent)
    assert done.returncode == 0, done.stderr
    out = table.parent / "out"
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter((row["method"], row["budget"]) for row in rows) == {
        (method, budget): 3 for method in ("random", "local-search") for budget in ("5", "27")
    }
    again = json.loads(nas("bench", *flags, *more, "--json", cwd=table.parent).stdout)
    assert again == json.loads((out / "summary.json").read_text())
    for entry in again["methods"]:
        mine = [float(r["hypervolume"]) for r in rows if (r["method"], r["budget"]) == (entry["method"], "5")]
        mean, error = entry["budgets"]["5"]["hypervolume"]
        assert mean == pytest.approx(np.mean(mine), rel=1e-4)
        assert error == pytest.approx(np.std(mine, ddof=1) / 3**0.5, rel=1e-3, abs=1e-5)
        assert f"{mean:.4f} ± {error:.4f}" in done.stdout
    assert (out / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_one_objective_counts_evaluations_to_the_best(table: Path) -> None:
    found = compare(bench(table, objectives="accuracy", strategies="local-search,random", budgets="27"))
    best = max(row["accuracy"] for row in found.problems["mine"].metrics.values())
    by_name = {entry["method"]: entry for entry in found.summary}
    local = by_name["local-search"]
    assert local["budgets"]["27"]["best"][0] == pytest.approx(best)
    for row in found.rows:
        assert (row.reached is None) == (row.best is None or row.best < best - 0.001)
    mine = [row.reached for row in found.rows if row.method == "local-search"]
    assert local["reached"][1] == np.median([reached or np.inf for reached in mine])


# -- real runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two toy runs, one of which fails now and then; one with another objective, one of another evaluator."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["search", "--space=toys:toy_space", "--evaluator=toys:Toy", "--trials=12"]
    for name, flags in (
        ("a", []),
        ("b", ["--strategy=random", "--trials=8", "--set=evaluator.fail=ok,ok,ok,failed"]),
        ("one", ["--objectives=accuracy"]),
        ("other", ["--evaluator=toys:Accident", "--set=evaluator.fault=none"]),
    ):
        done = nas(*common, *flags, f"--out={name}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_runs_are_judged_by_what_they_found_together(runs: Path) -> None:
    done = nas("compare", "a", "b", "--budgets=4,8,12", "--json", cwd=runs)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    a, b = found["runs"]
    assert (a["evaluations"], a["states"]["ok"]) == (12, 12)
    assert (b["evaluations"], b["states"]["failed"]) == (8, 2)
    assert list(a["hypervolume"]) == ["4", "8", "12"]
    assert list(b["hypervolume"]) == ["4", "8"]
    assert a["epochs"] == 36
    from nas.session import load

    loaded = [load(runs / name) for name in ("a", "b")]
    assert [a["front"], b["front"]] == [len(results.front) for results in loaded]
    assert a["best"]["accuracy"] == max(t.metrics["accuracy"] for t in loaded[0].front)
    together = pareto.costs([t for r in loaded for t in r.trials if t.ok], loaded[0].objectives)
    measure = Measure(loaded[0].objectives, together)
    mine = pareto.costs(loaded[1].front, loaded[1].objectives)
    assert b["hypervolume_at_end"] == pytest.approx(measure.hypervolume(mine))
    assert (runs / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_of_runs(runs: Path) -> None:
    done = nas("compare", "a", "b", cwd=runs)
    lines = done.stdout.splitlines()
    assert lines[1].split()[:9] == ["run", "strategy", "at", "2", "at", "4", "at", "8", "at"]
    assert {line.split()[0] for line in lines[2:]} == {"a", "b"}
    assert "8, 2 failed" in done.stdout


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "one"], "objectives of a is accuracy:max,flops:min, of one it is accuracy:max"),
        (["a", "other"], "evaluator of a is toys:Toy, of other it is toys:Accident"),
        (["a", "none"], "none is not a run folder"),
        (["a", "b", "--budgets=x"], "expected numbers of evaluations"),
    ],
)
def test_runs_that_cannot_be_compared(runs: Path, names: list[str], message: str) -> None:
    done = nas("compare", *names, cwd=runs)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
