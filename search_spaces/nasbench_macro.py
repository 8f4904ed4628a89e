"""NAS-Bench-Macro: 3^8 = 6,561 networks for CIFAR-10, each trained three times (Su et al. 2021).

Eight layers in stages of 2, 3 and 3; every layer is an identity or one of two inverted residuals. Identities inside
a stage commute, so there are 3,969 distinct networks. What they reach is shipped: `--evaluator=table`.
"""

from __future__ import annotations

from nas.blocks import Chain, Conv, Head, InvertedResidual, Skip
from nas.choices import Genotype, OneOf, Repeat
from nas.errors import SpaceError
from nas.ops import Shape
from nas.space import Space

STAGES = ((2, 64), (3, 128), (3, 256))  # layers, channels
LAYERS = ("identity", "mb3_k3", "mb6_k5")  # the digits 0, 1, 2 of the published codes


def nasbench_macro(input_shape: Shape = (3, 32, 32), classes: int = 10) -> Space:
    """The published space; the shipped table answers for its published input shape and number of classes only."""
    layer = OneOf(
        Skip(),
        InvertedResidual(expansion=3, kernel=3, activation="relu"),
        InvertedResidual(expansion=6, kernel=5, activation="relu"),
        labels=LAYERS,
    )
    stages = {
        f"stage{i}": Repeat(layer, times, each={"width": width}, first={"stride": 2})
        for i, (times, width) in enumerate(STAGES, 1)
    }
    template = Chain(stem=Conv(32), **stages, features=Conv(1280, kernel=1), head=Head(classes))
    return Space(template, input_shape=input_shape, classes=classes, name="nasbench-macro")


def code(genotype: Genotype) -> str:
    """The published code of a genotype, such as `22212220`. Raises SpaceError for a genotype of another space."""
    try:
        return "".join([str(LAYERS.index(str(genotype[path]))) for path in _paths()])
    except (KeyError, ValueError) as error:
        raise SpaceError(f"not a genotype of nasbench-macro: {error}; expected {', '.join(_paths())}") from None


def genotype(code: str) -> Genotype:
    """The genotype of a published code. Raises SpaceError unless it is eight digits 0, 1, 2."""
    paths = _paths()
    if len(code) != len(paths) or set(code) - set("012"):
        raise SpaceError(f"nasbench-macro: {code!r} is not a code of {len(paths)} digits 0, 1 or 2")
    return {path: LAYERS[int(digit)] for path, digit in zip(paths, code, strict=True)}


def _paths() -> list[str]:
    return [f"stage{i}.{j}.block" for i, (times, _) in enumerate(STAGES, 1) for j in range(times)]
