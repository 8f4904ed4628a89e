"""The space that compound scaling searches: one network, its width, depth and input resolution left open."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from nas.architecture import Architecture
from nas.blocks import Block
from nas.choices import OneOf
from nas.errors import SpaceError
from nas.ops import Shape
from nas.plugins import reference
from nas.space import Space

Base = str | Mapping[str, Any]
"""A name of the zoo, a run folder (its best), a JSON file, or what `Architecture.to_json` gives."""


@dataclass(frozen=True)
class _Scaled(Block):
    """A body to be scaled: once its two decisions are taken, the scaled body itself."""

    width: Any
    depth: Any
    body: Block

    def _replaced(self, changes: Mapping[str, Any]) -> _Scaled:
        return cast(_Scaled, self.body.scaled(changes["width"], changes["depth"]))


class ScaledSpace(Space):
    """All networks that `Architecture.scale` makes of a base with these multipliers.

    The genotype says the multipliers themselves, whatever rule they came from, so it can be read without the rule.

    Args:
        input_shape, classes: of the task, to which the base is adapted.
        base: see `Base`. One that was found at another resolution than the data's keeps that, relative to the data.
        width, depth: multipliers of the base's.
        resolution: multipliers of the data's.

    Attributes:
        base: the network that is scaled, for this task.

    Raises NasError for a base that cannot be read or does not fit the task.
    """

    def __init__(
        self, input_shape: Shape = (3, 224, 224), classes: int = 1000, *, base: Base = "efficientnet_b0",
        width: Sequence[float] = (1.0, 1.1, 1.2, 1.4), depth: Sequence[float] = (1.0, 1.2, 1.4, 1.8),
        resolution: Sequence[float] = (1.0, 1.15, 1.32, 1.52),
    ) -> None:  # fmt: skip
        self.base = adapted(base, input_shape, classes)
        self._labels = {
            axis: sorted({float(value) for value in values})
            for axis, values in (("width", width), ("depth", depth), ("resolution", resolution))
        }
        choices = {axis: OneOf(*labels) for axis, labels in self._labels.items()}
        super().__init__(
            _Scaled(choices["width"], choices["depth"], self.base.body),
            input_shape=input_shape,
            classes=classes,
            name=f"scaled-{self.base.name}",
            resolution=choices["resolution"],
        )

    @property
    def recipe(self) -> tuple[str, dict[str, Any]]:
        """Name and options (JSON) with which `make_space` makes it again, when the run or file of the base is gone."""
        return "nas.strategies.scaled:ScaledSpace", {"base": self.base.to_json(), **self._labels}

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.input_shape, self.classes, self.recipe[1])


def _again(input_shape: Shape, classes: int, options: Mapping[str, Any]) -> ScaledSpace:
    return ScaledSpace(input_shape, classes, **options)


def adapted(base: Base, input_shape: Shape, classes: int) -> Architecture:
    """The base for other images and classes. Raises NasError."""
    found = _read(base)
    c, h, w = input_shape
    factor = relative_resolution(found)
    shape = c, max(1, round(h * factor)), max(1, round(w * factor))
    made = replace(found, body=_for_classes(found.body, classes), input_shape=shape, classes=classes)
    made.graph()
    return made


def relative_resolution(architecture: Architecture) -> float:
    """Its resolution relative to the data, 1 unless it came from a space in which that is a decision."""
    found = architecture.genotype.get("resolution", 1.0)
    return float(found) if isinstance(found, int | float) else 1.0


def _read(base: Base) -> Architecture:
    if not isinstance(base, str):
        return Architecture.from_json(base)
    path = Path(base)
    if path.is_dir():
        from nas.session import load

        return load(path).best().architecture
    if path.suffix == ".json":
        try:
            return Architecture.from_json(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise SpaceError(f"base: architecture file {path} cannot be read: {error}") from None
    if len(path.parts) > 1:
        raise SpaceError(f"base: {base!r} is no run folder; expected one, a JSON file, or a name of the zoo")
    return reference(base)


def _for_classes(value: Any, classes: int) -> Any:
    """A block in which every `classes` is another number."""
    if isinstance(value, tuple):
        return tuple(_for_classes(part, classes) for part in value)
    if not isinstance(value, Block):
        return value
    inside = [(name, child) for name, child in value.children() if isinstance(child, Block | tuple)]
    changes = {name: _for_classes(child, classes) for name, child in inside}
    if isinstance(getattr(value, "classes", None), int):
        changes["classes"] = classes
    return value.with_children(changes) if changes else value
