from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trainings import RECIPE, Fixed, Scale, batches, images, network, pair, run, same

from nas.errors import ConfigError, Diverged, EvaluationError, OutOfMemory, Stop, TimedOut
from nas.torch import train as training
from nas.torch.data import load
from nas.torch.init import initialise
from nas.torch.loader import Augment, Batches
from nas.torch.recipe import Recipe
from nas.torch.train import clip_gradients, evaluate, fit


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_learns_digits() -> None:
    data = load("digits")
    options = {"mean": data.mean, "std": data.std, "batch": 32, "channels_last": True}
    train = Batches(data.train, **options, augment=Augment(1, False))
    validation = Batches(data.validation, **options)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    initialise(module, 0)
    before = evaluate(module, validation, device="cpu")
    metrics = fit(module, train, validation, Recipe(epochs=4, batch=32, lr=0.2), seed=0, device="cpu")
    assert before["accuracy"] < 0.3
    assert metrics["accuracy"] > 0.8
    assert metrics["loss"] < before["loss"]
    again = evaluate(module, validation, device="cpu")
    assert again == {name: metrics[name] for name in again}


def test_reports_each_epoch_and_returns_the_last() -> None:
    heard: list[tuple[float, dict[str, float]]] = []
    metrics, _ = run(report=lambda epoch, values: heard.append((epoch, dict(values))))
    assert [epoch for epoch, _ in heard] == [1.0, 2.0, 3.0]
    assert heard[-1][1] == metrics
    assert metrics.keys() == {"accuracy", "loss", "train_loss"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 2])
def test_continued_equals_uninterrupted(tmp_path: Path, optimizer: Any, stop: int) -> None:
    recipe = Recipe(epochs=3, batch=16, optimizer=optimizer, lr=0.02)
    whole: list[dict[str, float]] = []
    parts: list[dict[str, float]] = []
    metrics, uninterrupted = run(recipe=recipe, report=lambda _, values: whole.append(dict(values)))
    run(recipe=recipe, checkpoint=tmp_path / "c", epochs=stop)
    continued, module = run(
        network(seed=5), recipe, checkpoint=tmp_path / "c", report=lambda _, values: parts.append(dict(values))
    )
    assert continued == metrics
    assert parts == whole
    assert same(module, uninterrupted)
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_killed_within_an_epoch_continues_to_the_same_end(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Dying(Batches):
        def epoch(self, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for index, batch in enumerate(super().epoch(epoch)):
                if (epoch, index) == (1, 2):
                    raise Killed
                yield batch

    metrics, uninterrupted = run()
    split = images(64)
    dying = Dying(split, mean=[0.3], std=[0.2], batch=16, channels_last=True, augment=Augment(0, False))
    with pytest.raises(Killed):
        run(train=dying, checkpoint=tmp_path / "c")
    continued, module = run(checkpoint=tmp_path / "c")
    assert continued == metrics
    assert same(module, uninterrupted)


def test_stop_leaves_a_checkpoint_of_its_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.torch.checkpoint.LARGEST_SHARE", 1e-9)  # writing is far too dear, but for the first

    def stop_after(last: int) -> Any:
        def report(epoch: float, metrics: Mapping[str, float]) -> None:
            if epoch == last:
                raise Stop

        return report

    with pytest.raises(Stop):
        run(checkpoint=tmp_path / "c", report=stop_after(2))
    with pytest.raises(Stop):  # it hears the second epoch again, and decides again
        run(checkpoint=tmp_path / "c", report=stop_after(2), train=Fixed(*[pair(16)] * 4))
    continued, module = run(checkpoint=tmp_path / "c")
    metrics, uninterrupted = run()
    assert continued == metrics
    assert same(module, uninterrupted)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    metrics, module = run(checkpoint=tmp_path / "c")
    untouched = Fixed(*[pair(16)] * 4)
    again, restored = run(network(seed=5), checkpoint=tmp_path / "c", train=untouched)
    assert untouched.taken == 0
    assert again == metrics
    assert same(module, restored)


def test_refuses_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "c"
    run(checkpoint=path, epochs=2)
    cases = {
        "lr was 0.05 and is 0.1": lambda: run(recipe=Recipe(epochs=3, batch=16, lr=0.1), checkpoint=path),
        "seed was 0 and is 1": lambda: run(seed=1, checkpoint=path),
        "steps per epoch was 4 and is 1": lambda: run(train=Fixed(pair(16)), checkpoint=path),
        "another architecture": lambda: run(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), checkpoint=path),
        "past 1": lambda: run(epochs=1, checkpoint=path),
    }
    for message, attempt in cases.items():
        with pytest.raises(EvaluationError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(EvaluationError, match="not a checkpoint"):
        run(checkpoint=path)


def test_seed_governs_dropout_and_global_state_is_left_alone() -> None:
    modules = [network() for _ in range(3)]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    _, first = run(modules[0], seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    _, second = run(modules[1], seed=3)
    _, third = run(modules[2], seed=4)
    assert same(first, second)
    assert not same(first, third)


def test_a_report_draws_from_the_callers_generator() -> None:
    module = network()
    torch.manual_seed(7)
    expected = torch.rand(3).tolist()
    torch.manual_seed(7)
    drawn: list[float] = []
    run(module, report=lambda epoch, metrics: drawn.append(float(torch.rand(()))))
    assert drawn == expected


def test_learning_rate_is_planned_over_the_whole_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    original = training._Training._step

    def spy(self: Any, x: Tensor, y: Tensor, lr: float) -> Tensor:
        rates.append(lr)
        return original(self, x, y, lr)

    monkeypatch.setattr(training._Training, "_step", spy)
    run(epochs=2)
    assert len(rates) == 8
    assert rates[:2] == pytest.approx([0.025, 0.05])  # linear over half an epoch of 4 steps
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[6] == pytest.approx(0.05 * (1 + math.cos(math.pi * 1.25 / 2.5)) / 2)
    assert rates[7] > 0
    assert RECIPE.lr_at(3) == pytest.approx(0)


def test_diverged_is_noticed_soon() -> None:
    train = Fixed(*[pair(16)] * 400)
    with pytest.raises(Diverged, match="training loss became"):
        run(network(), Recipe(epochs=1, batch=16, lr=1e30, warmup=0), train=train)
    assert train.taken <= 2 * training.STEPS_PER_LOOK


def test_diverged_in_the_last_step_shows_in_validation() -> None:
    x, y = pair(16)
    with pytest.raises(Diverged, match="validation loss became nan"):
        run(train=Fixed((x, y)), validation=Fixed((x * math.nan, y)))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError("no"), OutOfMemory),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("shapes\ncannot be multiplied"), EvaluationError),
        (ValueError("Expected more than 1 value per channel"), EvaluationError),
    ],
)
def test_what_a_module_raises_becomes_a_trial_state(error: Exception, kind: type[EvaluationError]) -> None:
    class Broken(Scale):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    for attempt in (
        lambda: run(Broken()),
        lambda: evaluate(Broken(), batches(images(8)), device="cpu"),
    ):
        with pytest.raises(EvaluationError) as caught:
            attempt()
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)


def test_real_lack_of_memory() -> None:
    class Greedy(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.empty(1 << 50)[: len(x)]

    with pytest.raises(OutOfMemory, match="a smaller network or batch needs less"):
        run(Greedy())


def test_an_error_of_the_report_passes_unchanged() -> None:
    def report(epoch: float, metrics: Mapping[str, float]) -> None:
        raise BrokenPipeError("the worker has gone")

    with pytest.raises(BrokenPipeError):
        run(report=report)


def test_deadline_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still but for the report, so that time is up in the second epoch's first batch."""
    now = 100.0
    monkeypatch.setattr(training.time, "monotonic", lambda: now)

    def report(epoch: float, metrics: Mapping[str, float]) -> None:
        nonlocal now
        now += 10

    train = Fixed(*[pair(16)] * 4)
    with pytest.raises(TimedOut, match="time for this trial"):
        run(train=train, checkpoint=tmp_path / "c", report=report, deadline=5)
    assert train.taken == 4 + 1
    assert (tmp_path / "c").exists()


def test_no_decay_of_norms_biases_and_prelu() -> None:
    class Ignored(nn.Module):
        """Parameters of every kind, on which the output does not depend: only decay can move them."""

        def __init__(self) -> None:
            super().__init__()
            self.decayed = nn.ModuleList([nn.Conv2d(1, 2, 3, bias=False), nn.Linear(3, 2, bias=False)])
            kept = [nn.BatchNorm2d(3), nn.LayerNorm([2, 3]), nn.GroupNorm(1, 2), nn.PReLU(4)]
            self.kept = nn.ModuleList(kept)
            self.bias = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] + sum(p.sum() for p in self.parameters()) * 0

    for optimizer in ("sgd", "adamw"):
        module = Ignored()
        initialise(module, 0)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        run(module, Recipe(epochs=1, batch=16, optimizer=optimizer, lr=0.1, weight_decay=0.1, warmup=0))
        after = module.state_dict()
        for name, value in before.items():
            if name.startswith("decayed"):
                assert float(after[name].norm()) < float(value.norm())
            else:
                assert torch.equal(after[name], value), name


@pytest.mark.parametrize("largest", [0.5, 50.0])
def test_clipping_is_that_of_torch(largest: float) -> None:
    ours, theirs = (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)) for _ in range(2))
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        own.grad = torch.randn_like(own)
        other.grad = own.grad.clone()
    ours.append(nn.Linear(2, 2))  # has had no gradient
    clip_gradients(ours.parameters(), largest)
    nn.utils.clip_grad_norm_(theirs.parameters(), largest)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=False):
        assert torch.equal(own.grad, other.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_clipping_bounds_the_step(precision: Any) -> None:
    moved = []
    for clip in (None, 0.002):
        module = Scale(3.0)
        recipe = Recipe(
            epochs=1, batch=16, lr=1.0, momentum=0, weight_decay=0, warmup=0, clip=clip, precision=precision
        )
        run(module, recipe, train=Fixed(pair(16), pair(16)))  # the second step has learning rate 0
        moved.append(abs(module.weight.item() - 3.0))
    rate = recipe.lr_at(0.5)
    assert moved[0] > 5 * moved[1]
    assert moved[1] == pytest.approx(0.002 * rate, rel=1e-3)


def test_training_loss_is_the_smoothed_one() -> None:
    x, y = pair(16)
    module = Scale(2.0)
    expected = functional.cross_entropy(module(x), y, label_smoothing=0.3).item()
    metrics, _ = run(module, Recipe(epochs=1, batch=16, label_smoothing=0.3, warmup=0), train=Fixed((x, y)))
    assert metrics["train_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_batch_of_one_image_is_skipped() -> None:
    _, module = run(train=Fixed(pair(16), pair(1)), recipe=RECIPE)
    assert int(module.state_dict()["1.num_batches_tracked"]) == 3  # one step in each of three epochs
    with pytest.raises(EvaluationError, match="at least two images"):
        run(train=batches(images(1), augment=Augment(0, False)))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_reaches_the_module_and_continues(tmp_path: Path, precision: Any) -> None:
    seen: set[torch.dtype] = set()
    recipe = Recipe(epochs=3, batch=16, lr=0.05, precision=precision)
    module = network()
    module[0].register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    metrics, _ = run(module, recipe)
    assert seen == {getattr(torch, precision)}
    run(recipe=recipe, checkpoint=tmp_path / "c", epochs=1)
    continued, restored = run(recipe=recipe, checkpoint=tmp_path / "c")
    assert continued == metrics
    assert same(module, restored)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_scale_of_float16_gradients_is_continued(tmp_path: Path, optimizer: Any) -> None:
    """Bright images overflow the first steps, which are skipped while the scale falls."""
    x, y = pair(16)
    bright = Fixed(*[(x * 1000, y)] * 4)

    def linear() -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        initialise(module, 0)
        return module

    recipe = Recipe(epochs=3, batch=16, optimizer=optimizer, lr=1e-3, precision="float16")
    _, uninterrupted = run(linear(), recipe, train=bright)
    run(linear(), recipe, train=bright, checkpoint=tmp_path / "c", epochs=2)
    _, module = run(linear(), recipe, train=bright, checkpoint=tmp_path / "c")
    assert same(module, uninterrupted)
    assert not same(module, linear())


def test_channels_last_reaches_weights_and_activations() -> None:
    for channels_last in (True, False):
        layouts: set[bool] = set()
        module = network(channels=3)
        module[4].register_forward_hook(
            lambda layer, inputs, output, seen=layouts: seen.add(
                output.is_contiguous(memory_format=torch.channels_last)
            )
        )
        options = {"mean": [0.3] * 3, "std": [0.2] * 3, "batch": 16, "channels_last": channels_last}
        train = Batches(images(32, 3), **options, augment=Augment(0, False))
        recipe = Recipe(epochs=1, batch=16, channels_last=channels_last, warmup=0)
        run(module, recipe, train=train, validation=Batches(images(32, 3), **options))
        assert layouts == {channels_last}


def test_evaluate_by_hand_and_without_a_trace() -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parts = [pair(16), pair(7, seed=2)]
    metrics = evaluate(module, Fixed(*parts), device="cpu")
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    x, y = (torch.cat(values) for values in zip(*parts, strict=True))
    with torch.no_grad():
        logits = module.eval()(x)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
    assert metrics["loss"] == pytest.approx(float(functional.cross_entropy(logits, y)), rel=1e-5)


def test_epochs_out_of_range() -> None:
    for epochs in (0, 4):
        with pytest.raises(ConfigError, match="epochs: expected 1 to the recipe's 3"):
            run(epochs=epochs)


def test_compiled_it_is_trained_and_measured_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []

    def compiled(module: nn.Module) -> Any:
        def forward(x: Tensor) -> Tensor:
            called.append(module.training)
            return module(x)

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    metrics, module = run(recipe=Recipe(epochs=3, batch=16, lr=0.05, warmup=0.5, compile=True))
    plain, other = run()
    assert called == [True] * 12
    assert metrics == plain
    assert same(module, other)


def test_it_is_looked_at_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS_PER_LOOK", 2)
    seen: list[tuple[float, float]] = []
    metrics, _ = run(recipe=RECIPE, on_look=lambda epoch, loss: seen.append((epoch, loss)))
    assert [epoch for epoch, _ in seen] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert seen[-1][1] == pytest.approx(metrics["train_loss"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestGpu:
    """Not run on the machines that the rest of this suite was written on."""

    def test_learns_in_half_precision_and_continues(self, tmp_path: Path) -> None:
        seen: set[torch.dtype] = set()
        module = network()
        module[0].register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
        recipe = Recipe(epochs=6, batch=16, lr=0.1)
        run(module, recipe, device="cuda", checkpoint=tmp_path / "c", epochs=3)
        metrics, _ = run(module, recipe, device="cuda", checkpoint=tmp_path / "c")
        assert seen <= {torch.bfloat16, torch.float16}
        assert metrics["accuracy"] > 0.5

    def test_generator_is_given_back(self) -> None:
        before = torch.cuda.get_rng_state()
        run(device="cuda")
        assert torch.equal(torch.cuda.get_rng_state(), before)

    def test_memory_is_given_back(self) -> None:
        class Greedy(Scale):
            def forward(self, x: Tensor) -> Tensor:
                kept = [torch.empty(1 << 30, device=x.device) for _ in range(1 << 20)]
                return super().forward(x) + kept[0][0]

        with pytest.raises(OutOfMemory):
            run(Greedy(), device="cuda")
        assert torch.cuda.memory_reserved() < 1 << 30
