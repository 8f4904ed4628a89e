"""A graph as a PyTorch module, and the shape and cost of a wrapped module traced without allocating it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas import ops
from nas.errors import GraphError, PluginError
from nas.graph import Graph
from nas.ops import Shape
from nas.torch import modules
from nas.torch.activations import ACTIVATIONS
from nas.torch.init import initialise
from nas.torch.initialisation import initialisation


def build(graph: Graph, *, seed: int | None = None) -> nn.Module:
    """The module of a graph, on torch's default device.

    Submodules are nested by the nodes' names, so the keys of its state dictionary are `<node name>.weight` and so on.

    Args:
        graph: any lowered network or block.
        seed: for the initial weights, which then depend on nothing else, and are drawn as `nas.torch.initialisation`
            says; None: PyTorch's own initialisation.

    Raises GraphError for names that collide, PluginError where a wrapped module cannot be built.
    """
    if seed is None:
        return GraphModule(graph)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # for what a wrapped module draws in its constructor
        module = GraphModule(graph)
    paths = module_paths(graph)
    initialise(module, seed, {paths[name]: layer for name, layer in initialisation(graph).items()})
    return module


class _Step(NamedTuple):
    """One call: the path of the module, the values it reads, the value it makes, and those nobody reads afterwards."""

    path: tuple[str, ...]
    inputs: tuple[int, ...]
    output: int
    free: tuple[int, ...]


class GraphModule(nn.Module):
    """Runs the nodes of a graph in their order; every node that computes something is a submodule.

    Modules are looked up by path when they are called, so that replacing one (`convert_sync_batchnorm`, pruning,
    quantisation) takes effect, and copies and replicas use their own.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._size = len(graph.nodes)
        self._inputs = graph.inputs
        self._output = graph.output
        paths = module_paths(graph)
        last = {i: at for at, node in enumerate(graph.nodes) for i in node.inputs}
        last[graph.output] = len(graph.nodes)
        steps = []
        for at, node in enumerate(graph.nodes):
            if type(node.op) is ops.Input:
                continue
            if node.weights is None:
                self._attach(paths[node.name], RULES[type(node.op)](node.op, *graph.shapes_into(node)))
            free = {i for i in node.inputs if last[i] == at} | ({at} if at not in last else set())
            path = paths[node.weights or node.name]
            steps.append(_Step(tuple(path.split(".")), node.inputs, at, tuple(sorted(free))))
        self._steps = tuple(steps)

    def _attach(self, path: str, module: nn.Module) -> None:
        parent: nn.Module = self
        *scopes, name = path.split(".")
        for scope in scopes:
            if scope not in parent._modules:
                parent.add_module(scope, nn.Module())
            parent = getattr(parent, scope)
        parent.add_module(name, module)

    def values(self, *x: Tensor) -> list[Tensor]:
        """What every node computes, in the nodes' order: for looking inside, since it keeps everything."""
        found: list[Any] = [None] * self._size
        for i, given in zip(self._inputs, x, strict=True):
            found[i] = given
        for path, reads, output, _ in self._steps:
            found[output] = self.get_submodule(".".join(path))(*[found[i] for i in reads])
        return found

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        values: list[Any] = [None] * self._size
        values[self._inputs[0]] = x
        if len(self._inputs) > 1:  # `others` itself is not touched where there are none: torch.fx cannot iterate it
            for i, other in zip(self._inputs[1:], others, strict=True):
                values[i] = other
        for path, reads, output, free in self._steps:
            module: Any = self
            for part in path:
                module = module._modules[part]
            values[output] = module(*[values[i] for i in reads])
            for i in free:
                values[i] = None
        result: Tensor = values[self._output]
        return result


# -- names -------------------------------------------------------------------------------------------------------------

_TAKEN = frozenset(
    dir(nn.ModuleDict()) + dir(nn.Sequential()) + ["weight", "bias", "_size", "_inputs", "_output", "_steps"]
)


def module_paths(graph: Graph) -> dict[str, str]:
    """Where each node's module stands: at its own name, but where Python or `nn.Module` would not take it.

    A part of a name that is no identifier (or number) gets underscores where it does not fit; one that is a keyword or
    an attribute of `nn.Module` (`half`, `type`) gets one behind it, and so does a node whose name is also a scope.
    Raises GraphError if two nodes end up at one path.
    """
    plain = {node.name: ".".join(map(_part, node.name.split("."))) for node in graph.nodes}
    scopes = {path[:i] for path in plain.values() for i, c in enumerate(path) if c == "."}
    paths: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name, path in plain.items():
        while path in scopes:
            scope, dot, last = path.rpartition(".")
            path = f"{scope}{dot}{_part(last + '_')}"
        if path in taken:
            raise GraphError(f"nodes {taken[path]!r} and {name!r} are both the module {path!r}; rename one")
        taken[path] = name
        paths[name] = path
    return paths


def _part(name: str) -> str:
    if re.fullmatch(r"0|[1-9][0-9]*", name):
        return name
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    name = name if name.isidentifier() else f"_{name}"
    return f"{name}_" if name in _TAKEN or keyword.iskeyword(name) else name


# -- what an operation is in PyTorch -----------------------------------------------------------------------------------


def _conv(op: ops.Conv, x: Shape) -> nn.Module:
    return nn.Conv2d(x[0], op.width, op.kernel, op.stride, op.padding, op.dilation, op.groups, op.bias)


def _norm(op: ops.Norm, x: Shape) -> nn.Module:
    if op.kind == "instance":
        return nn.InstanceNorm2d(x[0], op.eps, affine=True)
    if op.kind != "batch":
        return nn.GroupNorm(op.groups, x[0], op.eps)  # layer norm is the group norm of one group
    return (nn.BatchNorm2d if len(x) == 3 else nn.BatchNorm1d)(x[0], op.eps, op.momentum)


def _pool(op: ops.Pool, x: Shape) -> nn.Module:
    if op.kind == "max":
        return nn.MaxPool2d(op.kernel, op.stride, op.padding, ceil_mode=op.ceil)
    return nn.AvgPool2d(op.kernel, op.stride, op.padding, op.ceil, op.count_padding)


def _wrapped(op: ops.Module, *x: Shape) -> nn.Module:
    from nas.plugins import load

    cls = load(op.target)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise PluginError(f"{op.target} is no nn.Module class but {type(cls).__name__}; name a class")
    try:
        module: nn.Module = cls(**dict(op.options))
    except Exception as error:  # whatever the user's constructor does
        given = ", ".join(f"{name}={value!r}" for name, value in op.options)
        raise PluginError(f"{op.target}({given}) cannot be built: {_line(error)}") from error
    return module


RULES: Mapping[type[ops.Op], Callable[..., nn.Module]] = {
    ops.Conv: _conv,
    ops.Linear: lambda op, x: nn.Linear(x[0], op.width, op.bias),
    ops.Norm: _norm,
    ops.Activation: lambda op, x: ACTIVATIONS[op.kind](),
    ops.PReLU: lambda op, x: nn.PReLU(x[0]),
    ops.Pool: _pool,
    ops.AdaptivePool: lambda op, x: modules.GlobalAvgPool() if op.size == (1, 1) else nn.AdaptiveAvgPool2d(op.size),
    ops.Add: lambda op, *x: modules.Add(),
    ops.Mean: lambda op, *x: modules.Mean(),
    ops.Mul: lambda op, *x: modules.Mul(),
    ops.Concat: lambda op, *x: modules.Concat(),
    ops.Slice: lambda op, x: modules.Slice(op.start, op.stop),
    ops.Shuffle: lambda op, x: nn.ChannelShuffle(op.groups),  # keeps channels_last
    ops.Shift: lambda op, x: nn.ZeroPad2d((-1, 1, -1, 1)),
    ops.PadChannels: lambda op, x: modules.PadChannels(op.width - x[0]),
    ops.Zero: lambda op, x: modules.Zero(op.stride),
    ops.Flatten: lambda op, x: nn.Flatten(),
    ops.Dropout: lambda op, x: nn.Dropout(op.rate),
    ops.DropPath: lambda op, x: modules.DropPath(op.rate, len(x)),
    ops.Module: _wrapped,
}


# -- wrapped modules ---------------------------------------------------------------------------------------------------


def trace(op: ops.Module, inputs: tuple[Shape, ...]) -> tuple[Shape, int, int]:
    """Output shape, trainable parameters and multiply-adds of a wrapped module, from one run on the meta device.

    Args:
        op: names the class and its options.
        inputs: shapes of its inputs, without the batch dimension.

    Raises PluginError if the class cannot be found, built or run there, or does not map tensors to one tensor.
    """
    batch = 2
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        module = _wrapped(op).eval()
        counter = FlopCounterMode(display=False)
        try:
            with counter:
                out = module(*[torch.empty(batch, *x) for x in inputs])
        except Exception as error:  # whatever the user's forward does
            shapes = ", ".join(map(str, inputs))
            raise PluginError(f"{op.target} fails on inputs of the shapes {shapes}: {_line(error)}") from error
    if not isinstance(out, Tensor):
        raise PluginError(f"{op.target} returns {type(out).__name__}; expected one tensor")
    if out.dim() < 2 or out.shape[0] != batch:
        raise PluginError(
            f"{op.target} maps a batch of {batch} to the shape {tuple(out.shape)}; it must keep the batch"
        )
    params = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return tuple(out.shape[1:]), params, counter.get_total_flops() // (2 * batch)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
