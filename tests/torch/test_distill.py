from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trainings import RECIPE, network, run

from nas.errors import ConfigError
from nas.torch.distill import Teacher, load_teacher

CPU = torch.device("cpu")


def teacher(source: Path, **options: float) -> Teacher:
    return load_teacher(
        str(source), (1, 8, 8), 4, device=CPU, weight=options.get("weight", 0.5), temperature=options.get("t", 4.0)
    )


def test_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 6, 4, generator=generator)
    found = Teacher(nn.Identity(), weight=0.3, temperature=2).loss(torch.tensor(1.5), logits, taught)
    p, q = functional.softmax(taught / 2, 1), functional.softmax(logits / 2, 1)
    divergence = (p * (p / q).log()).sum(1).mean()
    assert float(found) == pytest.approx(float(0.7 * 1.5 + 0.3 * 4 * divergence), rel=1e-5)
    assert float(Teacher(nn.Identity(), weight=1).loss(torch.tensor(9.0), taught, taught)) == pytest.approx(0, abs=1e-6)


def test_the_student_learns_what_no_label_says() -> None:
    """The teacher knows nothing but class 2; learning from it alone, so does the student."""

    def say_two(x: Tensor) -> Tensor:
        return torch.tensor([0.0, 0.0, 30.0, 0.0]).expand(len(x), 4)

    metrics, module = run(teacher=Teacher(say_two, weight=1.0, temperature=4.0))
    with torch.no_grad():
        assert (module.eval()(torch.rand(5, 1, 8, 8)).argmax(1) == 2).all()
    assert metrics["accuracy"] == pytest.approx(0.25)


def test_a_torchscript_file_and_an_exported_program_teach_alike(tmp_path: Path) -> None:
    module = network().eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old
        torch.jit.trace(module, x).save(tmp_path / "t.pt")
        batch = torch.export.Dim("batch", min=1)
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: batch},)), tmp_path / "t.pt2")
    for name in ("t.pt", "t.pt2"):
        with torch.no_grad():
            assert torch.allclose(teacher(tmp_path / name)(x), module(x), atol=1e-5)


def test_images_are_resized_to_what_the_teacher_reads() -> None:
    seen: list[tuple[int, ...]] = []

    def look(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return torch.zeros(len(x), 4)

    run(recipe=RECIPE, teacher=Teacher(look, shape=(1, 12, 16)))
    assert set(seen) == {(16, 1, 12, 16)}


def test_what_cannot_teach_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Flatten(), torch.zeros(2, 1, 8, 8)).save(tmp_path / "wide.pt")
        torch.jit.trace(nn.Conv2d(3, 4, 1), torch.zeros(2, 3, 8, 8)).save(tmp_path / "colour.pt")
    for name, message in (
        ("broken.pt", "teacher: expected a run folder"),
        ("wide.pt", r"scores of shape \(64,\), expected 4 classes"),
        ("colour.pt", "cannot read images of"),
        ("absent", "there is no"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            teacher(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="temperature"):
        Teacher(nn.Identity(), temperature=0)
