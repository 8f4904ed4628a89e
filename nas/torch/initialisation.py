"""Which initialisation fits a network: chosen for each weight layer by the activation that follows it, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from nas import ops
from nas.graph import Graph
from nas.torch.activations import gain

Scheme = Literal["he", "xavier", "lecun", "small"]

SMALL = 0.01
"""Standard deviation of classifiers, and of all linear layers of networks with norms, as in MobileNetV2 and VGG."""

BOUNDED = frozenset({"sigmoid", "hard_sigmoid", "tanh"})
"""Activations that saturate on both sides: for these Glorot & Bengio balance both directions."""


class Initial(NamedTuple):
    """How the weights of a layer are drawn, from a normal distribution; biases start at 0.

    Attributes:
        scheme: `he` (He et al. 2015), `xavier` (Glorot & Bengio 2010), `lecun` (LeCun et al. 1998), or `small`, a
            standard deviation of .01 whatever the layer's size.
        gain: what the standard deviation is multiplied by.
        fan: what it is divided by the root of: `in`, `out`, or `mean` of both; empty for `small`.
        reason: why, for people.
    """

    scheme: Scheme
    gain: float
    fan: Literal["in", "out", "mean", ""]
    reason: str

    def std(self, fan_in: int, fan_out: int) -> float:
        """Standard deviation of the weights. A fan counts one group of a convolution, as in EfficientNet."""
        if not self.fan:
            return self.gain * SMALL
        return self.gain / math.sqrt({"in": fan_in, "out": fan_out, "mean": (fan_in + fan_out) / 2}[self.fan])

    def __str__(self) -> str:
        return f"{self.scheme} {self.gain:.3f}" + (f", fan {self.fan}" if self.fan else f" x {SMALL}")


NORMED = Initial("he", math.sqrt(2), "out", "the network has norms, which set the scale")
SMALL_NORMED = Initial("small", 1.0, "", "a linear layer of a network with norms")
CLASSIFIER = Initial("small", 1.0, "", "the scores start near 0")


def initialisation(graph: Graph) -> Mapping[str, Initial]:
    """How each convolution and linear layer starts, by the name of the node that owns the weights.

    In a network with norms: He with the gain of ReLU and the fan out, whatever the activation, because each norm sets
    the scale anew; linear layers .01. In a network without any norm a wrong gain multiplies with every layer. So each
    layer gets what keeps the second moment of the signal through the activation that follows it (through additions,
    pooling and the like): He with that activation's own gain and the fan in; Xavier with its gain for those that
    saturate; LeCun for SELU, which is made for it (Klambauer et al. 2017), and where the next layer follows directly.
    The last layer starts at .01. Norms inside wrapped modules are not seen, nor do these count as layers here.
    """
    owners = [
        i for i, node in enumerate(graph.nodes) if isinstance(node.op, ops.Conv | ops.Linear) and not node.weights
    ]
    if any(type(node.op) is ops.Norm for node in graph.nodes):
        return {graph.nodes[i].name: NORMED if type(graph.nodes[i].op) is ops.Conv else SMALL_NORMED for i in owners}
    following = _following(graph)
    return {graph.nodes[i].name: _without_norms(following[i]) for i in owners}


def _without_norms(following: str | None) -> Initial:
    if following is None:
        return CLASSIFIER
    if following == "":
        return Initial("lecun", 1.0, "in", "no activation follows before the next layer")
    if following == "selu":
        return Initial("lecun", 1.0, "in", "selu follows and no norm: it normalises itself")
    reason = f"{following} follows and no norm"
    if following in BOUNDED:
        return Initial("xavier", gain(following), "mean", reason)
    return Initial("he", gain(following), "in", reason)


def _following(graph: Graph) -> list[str | None]:
    """Behind each node the kind of the next activation; empty if a layer comes first, None if the output does.

    Where a value is read more than once, the first reader that leads to an activation counts.
    """
    found: list[str | None] = [None] * len(graph.nodes)
    for at in range(len(graph.nodes) - 1, -1, -1):
        op = graph.nodes[at].op
        if type(op) is ops.Activation:
            here: str | None = op.kind
        elif type(op) is ops.PReLU:
            here = "prelu"
        else:
            here = "" if op.layer else found[at]
        if here is not None:
            for i in graph.nodes[at].inputs:
                found[i] = here or found[i] or ""
    return found
