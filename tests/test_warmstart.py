"""Known architectures: found in a space, nearest to it, and at the beginning of a search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nas.strategies.evolution import Evolution
from test_search import TASK, same
from toys import Toy

import nas
from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, InvertedResidual, Separable, Skip
from nas.choices import OneOf, Repeat
from nas.errors import ConfigError, NasError, SpaceError
from nas.executors.local import Local
from nas.locate import locate, nearest
from nas.plugins import make_space, reference
from nas.search import Plan, Search
from nas.space import Space
from nas.store import Run
from nas.testing import ACCURACY, FLOPS, toy_space
from nas.trial import Proposal
from nas.warmstart import describe, starts

IMAGENET = ((3, 224, 224), 1000)
SMALL = ((3, 32, 32), 10)


def mobile(shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> Space:
    return make_space("mobile", shape, classes, {})


# -- finding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_the_mobile_space_has_the_published_networks(name: str) -> None:
    space, wanted = mobile(*IMAGENET), reference(name)
    found = locate(space, wanted)
    assert found is not None
    architecture = space.architecture(found)
    assert architecture.analysis == wanted.analysis
    # Dropout is all that differs.
    assert replace(wanted, body=wanted.body.with_children({"head": Head(1000)})).key() == architecture.key()
    match = nearest(space, wanted)
    assert match.exact
    assert match.differs == ("head.dropout 0 instead of 0.2",)


@pytest.mark.parametrize(
    ("name", "task"),
    [("toy", SMALL), ("mobile", SMALL), ("mobile", IMAGENET), ("lecture", SMALL), ("nasbench-macro", SMALL),
     ("nasbench201", SMALL)],
)  # fmt: skip
def test_every_architecture_of_a_space_is_found_in_it(name: str, task: tuple[tuple[int, int, int], int]) -> None:
    space = toy_space() if name == "toy" else make_space(name, *task, {})
    rng = np.random.default_rng(0)
    for _ in range(50):
        architecture = space.architecture(space.sample(rng))
        plain = Architecture.from_json({**architecture.to_json(), "genotype": {}})
        found = locate(space, plain)
        assert found is not None
        assert space.architecture(found).key() == architecture.key()


def test_what_is_shared_and_nested_is_found() -> None:
    width, kernel = OneOf(8, 16, name="width"), OneOf(3, 5, name="kernel")
    layer = OneOf(Conv(width, kernel), Chain(Conv(width, 1), Conv(width, kernel)), labels=("one", "two"))
    space = Space(
        Chain(
            stem=Conv(width), a=Repeat(layer, OneOf(1, 2, 3), shared=True), b=Repeat(layer, 2, first={}),
            head=Head(10),
        ), input_shape=(3, 8, 8), classes=10, resolution=OneOf(1.0, 2.0),
    )  # fmt: skip
    for genotype in space.enumerate():
        architecture = space.architecture(genotype)
        found = locate(space, replace(architecture, genotype={}))
        assert found is not None
        assert space.architecture(found).key() == architecture.key()


def test_another_spelling_of_a_block_is_found() -> None:
    plain = Separable(16, residual=True, linear=True, activation="relu6")
    expanded = InvertedResidual(16, expansion=1)
    for block, option in ((plain, expanded), (expanded, plain)):
        space = Space(
            Chain(a=OneOf(Skip(), option), head=Head(10)), input_shape=(3, 8, 8), classes=10
        )  # fmt: skip
        wanted = Architecture(Chain(a=block, head=Head(10)), (3, 8, 8), 10)
        assert locate(space, wanted) == {"a": option.label}


def test_what_a_space_does_not_have_is_not_found() -> None:
    space = mobile(*IMAGENET)
    for name in ("mobilenet_v2_050", "mobilenet_v3_large", "resnet50", "alexnet"):
        assert locate(space, reference(name)) is None
    genotype = space.sample(np.random.default_rng(0))
    architecture = space.architecture({**genotype, "resolution": 1.0})
    assert locate(mobile((3, 240, 240), 1000), architecture) is None
    assert locate(mobile((3, 224, 224), 10), architecture) is None


# -- the nearest -------------------------------------------------------------------------------------------------------


def test_a_smaller_image_gets_the_first_stages() -> None:
    space = mobile()
    match = nearest(space, reference("mobilenet_v2"))
    assert not match.exact
    assert match.differs == (
        "stem.stride 1 instead of 2",
        "its stage6 left out",
        "its stage7 left out",
        "features.width 512 instead of 1280",
        "head.dropout 0 instead of 0.2",
    )
    found = match.genotype
    assert [(found[f"stage{i}.times"], found[f"stage{i}.width"]) for i in range(1, 6)] == [
        (1, 16), (2, 24), (3, 32), (4, 64), (3, 96),
    ]  # fmt: skip
    assert {v for k, v in found.items() if k.endswith("expansion")} == {6}
    assert {v for k, v in found.items() if k.endswith("activation")} == {"relu6"}


def test_a_larger_image_repeats_the_last_layer() -> None:
    small, large = mobile(), mobile(*IMAGENET)
    match = nearest(large, small.architecture(nearest(small, reference("mobilenet_v2")).genotype))
    assert {"stage6 added", "stage7 added"} < set(match.differs)
    assert match.genotype["stage7.0.block"] == "inverted_residual"
    assert match.genotype["stage7.0.expansion"] == 6


def test_numbers_go_to_the_nearest_option() -> None:
    match = nearest(mobile(*IMAGENET), reference("efficientnet_b4"))
    assert "stage2.times 3 instead of 4" in match.differs
    assert "stage3.width 48 instead of 56" in match.differs
    assert match.genotype["stage3.0.kernel"] == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", r"resnet50 is too far .*: stage1\.0 is 'bottleneck', which the space does not have"),
        ("efficientnet_v2_s", r"stage1\.0 is 'fused_inverted_residual'"),
        ("alexnet", r"nothing in it fits stage1"),
    ],
)
def test_too_far_is_one_clear_error(name: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        nearest(mobile(), reference(name))
    assert "\n" not in str(caught.value)


# -- names -------------------------------------------------------------------------------------------------------------


def search(folder: Path, first: list[Proposal], **plan: object) -> Search:
    """Like `test_search.make`, with a warm start."""
    settings = Plan(**{"objectives": (ACCURACY, FLOPS), "trials": 12, **plan})  # type: ignore[arg-type]
    run = Run.open(folder, write=True) if (folder / "run.json").exists() else Run.create(folder, {})
    judge, space = Toy(), toy_space()
    return Search(
        run, space, Evolution(space, settings.objectives, settings.limits, population=4), judge, settings,
        lambda report: Local(judge, TASK, device="cpu", threads=1, on_report=report), starts=first,
    )  # fmt: skip


def known(n: int = 3) -> list[Proposal]:
    rng = np.random.default_rng(8)
    return [Proposal(toy_space().sample(rng), {"start": f"known{i}", "match": "exact"}) for i in range(n)]


def test_files_of_architectures_and_genotypes(tmp_path: Path) -> None:
    space = toy_space()
    genotypes = [space.sample(np.random.default_rng(seed)) for seed in range(2)]
    architectures = [space.architecture(genotype) for genotype in genotypes]
    (tmp_path / "a.json").write_text(json.dumps(architectures[0].to_json()))
    (tmp_path / "g.json").write_text(json.dumps(genotypes[1]))
    front = [{"number": i, "architecture": a.to_json()} for i, a in enumerate(architectures)]
    (tmp_path / "front.json").write_text(json.dumps({"format": 1, "front": front}))
    names = [str(tmp_path / name) for name in ("a.json", "g.json", "front.json")]
    found = starts(names, space)
    assert [space.architecture(p.genotype).key() for p in found] == [a.key() for a in architectures]
    assert [p.note["match"] for p in found] == ["exact", "exact"]
    assert [describe(p) for p in starts(names[2:], space)] == ["front.json:0 (exact)", "front.json:1 (exact)"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nowhere/run", None, "is no run folder"),
        ("nowhere.json", None, "cannot be read"),
        ("text.json", "{", "cannot be read"),
        ("list.json", "[]", "holds a list, expected an architecture"),
        ("front.json", '{"front": [1]}', "has no architecture in entry 0"),
        ("genotype.json", '{"stage9": 1}', "no genotype of this space"),
        ("label.json", '{"stem": [1]}', "no genotype of this space"),
        ("body.json", '{"format": 1, "body": {"label": "magic"}, "input_shape": [3, 8, 8]}', "unknown block 'magic'"),
        ("mobilenet_v22", None, "mobilenet_v2"),
        ("resnet50", None, "too far"),
    ],
)
def test_what_cannot_be_started_from(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(NasError, match=message) as caught:
        starts([str(path) if text is not None or "nowhere" in name else name], toy_space())
    assert "\n" not in str(caught.value)


# -- the search --------------------------------------------------------------------------------------------------------


def test_known_architectures_come_first_and_count(tmp_path: Path) -> None:
    first = known()
    made = search(tmp_path / "run", first)
    made.run()
    trials = made.store.trials
    assert [t.genotype for t in trials[:3]] == [p.genotype for p in first]
    assert [t.note["start"] for t in trials[:3]] == ["known0", "known1", "known2"]
    assert not any("start" in t.note for t in trials[3:])
    assert sum(t.evaluated for t in trials) == 12
    few = search(tmp_path / "few", first, trials=2)
    few.run()
    assert [t.genotype for t in few.store.trials] == [p.genotype for p in first[:2]]


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_run_that_is_cut_goes_on_as_if_it_had_not_been(cut: int, tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", known())
    whole.run()
    short = search(tmp_path / "cut", known(), trials=cut)
    short.run()
    again = search(tmp_path / "cut", known())
    again.run()
    assert same(again.store.trials, whole.store.trials)


def config(out: Path, **more: object) -> nas.Config:
    values = {"space": "toys:toy_space", "evaluator": "toys:Toy", "trials": 6, "out": str(out), **more}
    return nas.Config(**values)  # type: ignore[arg-type]


def test_an_earlier_run_gives_its_front_and_is_not_needed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas.start(config(tmp_path / "earlier")).run()
    front = nas.load(tmp_path / "earlier").front
    monkeypatch.chdir(tmp_path)
    made = nas.start(config(tmp_path / "later", start="earlier", trials=len(front) + 2))
    made.stop("here")
    made.run()
    (tmp_path / "earlier").rename(tmp_path / "gone")
    again = nas.resume(tmp_path / "later")
    again.run()
    trials = nas.load(tmp_path / "later").trials
    assert [t.genotype for t in trials[: len(front)]] == [t.genotype for t in front]
    assert [t.note["start"] for t in trials[: len(front)]] == [f"earlier:{t.number}" for t in front]
    assert {t.note["match"] for t in trials[: len(front)]} == {"exact"}


def test_a_run_of_another_space_is_matched_by_its_layers(tmp_path: Path) -> None:
    nas.start(nas.Config(space="nasbench-macro", evaluator="table", trials=5, out=str(tmp_path / "run"))).run()
    found = starts([str(tmp_path / "run")], mobile())
    assert found
    assert {p.note["match"] for p in found} == {"nearest"}
    for proposal in found:
        assert mobile().check(proposal.genotype)
        assert len(proposal.note["differs"]) <= 5


def test_a_space_of_its_own_has_no_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="searches a space of its own"):
        nas.start(config(tmp_path / "run", space="mobile", strategy="scaling", start="mobilenet_v2"))
    assert not (tmp_path / "run").exists()


def test_names_are_separated_by_commas() -> None:
    assert nas.Config(start=("a,b", "c")).start == nas.Config(start="a, b,c").start == ("a", "b", "c")  # type: ignore[arg-type]
