"""Reference architectures: the networks of the literature, built from `nas.blocks`.

    from nas.search_spaces import zoo

    zoo.get("resnet50").analysis.flops
    zoo.get("wrn_28_10_cifar", classes=100)

Parameters and multiply-adds are those of the published networks, exactly.
"""

from __future__ import annotations

from difflib import get_close_matches

from nas.architecture import Architecture
from nas.errors import SpaceError
from nas.ops import Shape

from . import cells, dense, efficientnet, inception, light, mobile, plain, regnet, resnet, searched

_MODELS = {
    **plain.MODELS,
    **inception.MODELS,
    **resnet.MODELS,
    **dense.MODELS,
    **regnet.MODELS,
    **mobile.MODELS,
    **light.MODELS,
    **searched.MODELS,
    **efficientnet.MODELS,
    **cells.MODELS,
}


def names() -> list[str]:
    """The names of all reference architectures, family by family."""
    return list(_MODELS)


def get(name: str, *, classes: int | None = None, input_shape: Shape | None = None) -> Architecture:
    """A reference architecture.

    Args:
        name: one of `names()`.
        classes: number of classes; the paper's by default.
        input_shape: (channels, height, width); the paper's by default.

    Raises SpaceError for an unknown name. An input too small for the network is a GraphError once it is lowered.
    """
    entry = _MODELS.get(name)
    if entry is None:
        close = get_close_matches(name, _MODELS, n=3) or ["resnet50", "mobilenet_v2"]
        raise SpaceError(f"there is no reference architecture {name!r} in the zoo; did you mean {' or '.join(close)}?")
    classes = entry.classes if classes is None else classes
    shape = input_shape or (3, entry.size, entry.size)
    return Architecture(entry.build(classes), shape, classes, name)
