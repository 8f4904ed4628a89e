"""What a proxy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from nas.architecture import Architecture

    from .passes import Passes, Use

Needs = Literal["nothing", "images", "labels"]


class Proxy(ABC):
    """A number that ranks architectures before any is trained; larger is better, by definition and not by data.

    A third party's is registered under the entry point `nas.proxies`, or named `package.module:Class`. An instance is a
    function of an architecture, on noise: what `strategy.proxies` takes.
    """

    paper: ClassVar[str]
    """Where it is defined."""

    cost: ClassVar[str]
    """Forward (F) and backward (B) passes it takes alone, such as `1F1B`."""

    needs: ClassVar[Needs]
    """Of the task. With `labels` it needs images too; noise stands in where there are none."""

    blind: ClassVar[str]
    """What it cannot see, and where it is known to fail."""

    uses: ClassVar[frozenset[Use]] = frozenset()
    """What it asks of the shared passes."""

    @abstractmethod
    def score(self, passes: Passes) -> float:
        """The score; NaN or infinite where it is not defined for the network."""

    def __call__(self, architecture: Architecture) -> float:
        from .measuring import measure

        return measure(architecture, {"": self})[""]


Proxies = Mapping[str, Proxy]
"""Proxies by name."""
