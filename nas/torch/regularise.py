"""Dropout and stochastic depth for a network that was found without them: only while it is trained.

They have no weights: the module that is trained has the keys of the architecture's own, and what is evaluated,
saved and exported is that.
"""

from __future__ import annotations

from torch import nn

from nas import ops
from nas.architecture import Architecture
from nas.builder import GraphBuilder
from nas.graph import Graph
from nas.torch.build import build


def module_to_train(
    architecture: Architecture, *, seed: int, dropout: float = 0.0, drop_path: float = 0.0
) -> nn.Module:
    """The network, initialised from `seed`, with dropout before the classifier and dropped residual branches."""
    module = architecture.module(seed=seed)
    if not dropout and not drop_path:
        return module
    regularised = build(regularise(architecture.graph(), dropout=dropout, drop_path=drop_path), seed=seed)
    regularised.load_state_dict(module.state_dict())
    return regularised


def regularise(graph: Graph, *, dropout: float = 0.0, drop_path: float = 0.0) -> Graph:
    """The graph with `Dropout` before its last linear layer and `DropPath` behind residual branches.

    A residual branch is a summand that has passed more weight layers than another summand of the same sum: f(x) of
    x + f(x), with or without a projection of x, but not the equal paths of a cell. The rate grows linearly with the
    position of the sum, from the first to `drop_path` at the last (Huang et al. 2016). Branches that end in a
    `DropPath` of their own keep it, and so does a classifier with a `Dropout`.
    """
    branches = _branches(graph) if drop_path else {}
    sums = sorted({at for at, _ in branches})
    rate = {at: drop_path * (i + 1) / len(sums) for i, at in enumerate(sums)}
    last = max((i for i, node in enumerate(graph.nodes) if type(node.op) is ops.Linear), default=None)
    builder = GraphBuilder()
    refs: list[int] = []
    for at, node in enumerate(graph.nodes):
        inputs = [refs[i] for i in node.inputs]
        if dropout and at == last and type(graph.nodes[node.inputs[0]].op) is not ops.Dropout:
            inputs[0] = builder.op(f"{node.name}_dropout", ops.Dropout(dropout), inputs[0])
        for place in range(len(inputs)):
            if (at, place) in branches:
                inputs[place] = builder.op(f"{node.name}_drop{place}", ops.DropPath(rate[at]), inputs[place])
        refs.append(builder.op(node.name, node.op, *inputs, weights=node.weights))
    return builder.graph(refs[graph.output])


def _branches(graph: Graph) -> dict[tuple[int, int], None]:
    """(index of a sum, place among its inputs) of each residual branch."""
    passed: list[int] = []  # weight layers on the longest way to each node
    found: dict[tuple[int, int], None] = {}
    for at, node in enumerate(graph.nodes):
        before = [passed[i] for i in node.inputs]
        passed.append(max(before, default=0) + bool(node.op.layer))
        if type(node.op) is ops.Add:
            for place, layers in enumerate(before):
                if layers > min(before) and type(graph.nodes[node.inputs[place]].op) is not ops.DropPath:
                    found[at, place] = None
    return found
