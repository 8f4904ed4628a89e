"""Learning from the outputs of a trained network (Hinton et al. 2015)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.errors import ConfigError

EXPECTED = "a run folder, a folder of `nas train`, a TorchScript file (.pt) or an exported program (.pt2)"


class Teacher:
    """A network whose outputs are learned beside the labels.

    The loss is (1 - weight) times that of the labels plus weight times T^2 times the Kullback-Leibler divergence of the
    student's from the teacher's probabilities, both at temperature T.

    Arguments:
        function: images (N, C, H, W) to logits (N, classes); called without gradients.
        shape: (C, H, W) that it reads, if not any; images are resized to it.

    Raises ConfigError for a weight or temperature out of range.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], *, weight: float = 0.5, temperature: float = 4.0,
        shape: tuple[int, int, int] | None = None,
    ) -> None:  # fmt: skip
        if not 0 < weight <= 1:
            raise ConfigError(f"teacher-weight: expected a number above 0, at most 1, got {weight}")
        if not temperature > 0:
            raise ConfigError(f"temperature: expected a number above 0, got {temperature}")
        self._function, self.weight, self.temperature, self._shape = function, weight, temperature, shape

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Its logits."""
        if self._shape is not None and x.shape[2:] != self._shape[1:]:
            x = functional.interpolate(x, self._shape[1:], mode="bilinear", antialias=True)
        return self._function(x).float()

    def loss(self, labels: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
        """The loss, given that of the labels and both networks' logits."""
        t = self.temperature
        student, teacher = functional.log_softmax(logits / t, 1), functional.log_softmax(taught / t, 1)
        divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.weight) * labels + self.weight * t * t * divergence


def load_teacher(
    source: str, input_shape: tuple[int, int, int], classes: int, *, device: torch.device, weight: float,
    temperature: float,
) -> Teacher:  # fmt: skip
    """A teacher for images of a shape: a network of ours with its weights, or a file that runs by itself.

    It is given the images as the student is, normalised by the moments of the training images.

    Raises ConfigError where it cannot be read, or does not map such images to so many classes.
    """
    path = Path(source)
    shape: tuple[int, int, int] | None = None
    if path.is_dir():
        module, shape = _ours(path)
        if shape[0] != input_shape[0]:
            raise ConfigError(f"teacher: {source} reads {shape[0]} channels, the images have {input_shape[0]}")
        function: Callable[[Tensor], Tensor] = module.to(device).eval().requires_grad_(False)
    elif path.is_file():
        function = _file(path, device)
    else:
        raise ConfigError(f"teacher: expected {EXPECTED}; there is no {source}")
    teacher = Teacher(function, weight=weight, temperature=temperature, shape=shape)
    try:
        found = tuple(teacher(torch.zeros(2, *input_shape, device=device)).shape)
    except Exception as error:  # whatever a program does with images it was not made for
        raise ConfigError(
            f"teacher: {source} cannot read images of {input_shape}: {' '.join(str(error).split())[:200]}"
        ) from error
    if found != (2, classes):
        raise ConfigError(f"teacher: {source} gives scores of shape {found[1:]}, expected {classes} classes")
    return teacher


def _ours(path: Path) -> tuple[nn.Module, tuple[int, int, int]]:
    """From a folder of `nas train`, or the best of a run folder."""
    from nas.export.weights import load as load_weights
    from nas.session import load
    from nas.training import finished

    if (path / "run.json").exists():
        found = load(path).best()
        module, architecture = found.module(weights=True), found.architecture
    else:
        architecture, weights = finished(path)
        module = architecture.module(seed=0)
        load_weights(weights, module)
    channels, height, width = architecture.input_shape
    return module, (channels, height, width)


def _file(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is old, but files of it are there
            if path.suffix == ".pt2":
                program = torch.export.load(path).module().to(device)
                return lambda x: program(x)
            script = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
            return lambda x: script(x)
    except Exception as error:  # damaged files raise anything
        raise ConfigError(f"teacher: expected {EXPECTED}; {path}: {' '.join(str(error).split())[:200]}") from error
