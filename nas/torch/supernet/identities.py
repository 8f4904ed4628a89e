"""Identities put back where other settings have an activation.

A graph has no node for the identity. Laid over graphs with an activation there, all that reads the activation would
read a mixture of two nodes: a sum of weighed tensors. With the identity as a node, it reads one, whose activations are
mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nas import ops
from nas.graph import Node
from nas.ops import Shape
from nas.torch.supernet.channels import Channels
from nas.torch.supernet.union import Setting

IDENTITY = ops.Activation("identity")


def with_identities(settings: Sequence[Setting | None]) -> list[Setting | None]:
    """The settings, with an identity behind each node that only one activation reads in the others."""
    behind: dict[str, tuple[str, str] | None] = {}  # the activation behind a node and the key of its weights
    for setting in settings:
        for producer, activation in {} if setting is None else _activated(setting).items():
            if behind.setdefault(producer, activation) != activation:
                behind[producer] = None
    found = list(behind.values())
    behind = {producer: a if found.count(a) == 1 else None for producer, a in behind.items()}
    return [None if setting is None else _filled(setting, behind) for setting in settings]


def _activated(setting: Setting) -> dict[str, tuple[str, str] | None]:
    """For what activations read, their names and keys; None where something else reads it too."""
    found: dict[str, tuple[str, str] | None] = {}
    nodes, names = setting.graph.nodes, setting.names
    readers = [0] * len(nodes)
    readers[setting.graph.output] += 1
    for node in nodes:
        for i in node.inputs:
            readers[i] += 1
    for at, node in enumerate(nodes):
        if isinstance(node.op, ops.Activation | ops.PReLU):
            (i,) = node.inputs
            found[names[i]] = (names[at], setting.keys[at]) if readers[i] == 1 else None
    return found


def _filled(setting: Setting, behind: dict[str, tuple[str, str] | None]) -> Setting:
    graph = setting.graph
    rows: list[tuple[Node, Shape, str, str, Channels]] = []
    place: list[int] = []  # of what stands for each old node
    for row in zip(graph.nodes, graph.shapes, setting.names, setting.keys, setting.channels, strict=True):
        node, shape, name, _, channels = row
        rows.append((node._replace(inputs=tuple([place[i] for i in node.inputs])), *row[1:]))
        added = behind.get(name)
        if added is not None and added[0] not in setting.names:
            rows.append((Node(added[0], IDENTITY, (len(rows) - 1,)), shape, *added, channels))
        place.append(len(rows) - 1)
    if len(rows) == len(graph.nodes):
        return setting
    nodes, shapes, names, keys, places = zip(*rows, strict=True)
    filled = replace(graph, nodes=nodes, shapes=shapes, output=place[graph.output])
    return replace(setting, graph=filled, names=names, keys=keys, channels=places)
