"""Finding spaces, strategies and evaluators: by entry point, or as `package.module:Name`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from nas.architecture import Architecture
from nas.errors import NasError, PluginError
from nas.evaluator import Evaluator, Function
from nas.ops import Shape
from nas.space import Space
from nas.strategy import Strategy

Kind = Literal["search_spaces", "strategies", "evaluators", "proxies", "zoo"]
_WORDS = {
    "search_spaces": "space", "strategies": "strategy", "evaluators": "evaluator", "proxies": "proxy", "zoo": "zoo",
}  # fmt: skip


@cache
def available(kind: Kind) -> Mapping[str, EntryPoint]:
    """Installed plug-ins by name. Raises PluginError where two packages claim one name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"nas.{kind}"):
        if point.name in found and found[point.name].value != point.value:
            raise PluginError(
                f"two packages provide the {_WORDS[kind]} {point.name!r}: {found[point.name].value} and {point.value}; "
                "uninstall one, or name the one you want as package.module:Name"
            )
        found[point.name] = point
    return found


def find(kind: Kind, name: str) -> Any:
    """The plug-in object called `name`, imported. Raises PluginError."""
    if ":" in name:
        return load(name)
    known = available(kind)
    if name not in known:
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise PluginError(
            f"no {_WORDS[kind]} is called {name!r}; {hint}there are {', '.join(sorted(known)) or 'none installed'}; "
            "your own is named package.module:Name"
        )
    return _loading(known[name].value, known[name].load)


def load(reference: str) -> Any:
    """The object at `package.module:Name`; modules in the current folder are found too. Raises PluginError."""
    module, _, attribute = reference.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that a user's file never hides a library's
    loaded = _loading(reference, lambda: importlib.import_module(module))
    for part in attribute.split("."):
        if not hasattr(loaded, part):
            names = [n for n in vars(loaded) if not n.startswith("_")]
            raise PluginError(f"{reference}: {module} has no {part!r}; it has {', '.join(names[:12]) or 'nothing'}")
        loaded = getattr(loaded, part)
    return loaded


def _loading(reference: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:  # whatever a plug-in's module does at import
        raise PluginError(f"{reference} cannot be imported: {type(error).__name__}: {error}") from error


def make_space(name: str, input_shape: Shape, classes: int, options: Mapping[str, Any]) -> Space:
    """The space `name` for a task. Raises PluginError."""
    made: object = _call(find("search_spaces", name), f"space {name!r}", "space", options, input_shape, classes)
    if not isinstance(made, Space):
        raise _wrong(made, f"space {name!r}", "a function (input_shape, classes, **options) that returns a Space")
    return made


def make_strategy(name: str, *args: Any, options: Mapping[str, Any]) -> Strategy:
    """The strategy `name` on (space, objectives, limits). Raises PluginError."""
    made: object = _call(find("strategies", name), f"strategy {name!r}", "strategy", options, *args)
    if not isinstance(made, Strategy):
        raise _wrong(made, f"strategy {name!r}", "a subclass of nas.strategy.Strategy")
    return made


def make_evaluator(name: str, options: Mapping[str, Any], section: str = "evaluator") -> Evaluator:
    """The evaluator `name`; a plain function `f(module, task) -> metrics` becomes one. Raises PluginError.

    `section`: of the configuration, where its options come from.
    """
    target = find("evaluators", name)
    if inspect.isfunction(target):
        if options:
            raise PluginError(f"evaluator {name!r} is a function and takes no options, got {', '.join(options)}")
        return Function(target)
    made: object = _call(target, f"evaluator {name!r}", section, options)
    if not isinstance(made, Evaluator):
        raise _wrong(made, f"evaluator {name!r}", "a subclass of nas.evaluator.Evaluator, or a function")
    return made


def check_options(target: Callable[..., Any], options: Mapping[str, Any], what: str, prefix: str, *, skip: int) -> None:
    """Raises PluginError for an option that `target` does not take; its first `skip` parameters are not options."""
    known = list(_signature(target).parameters)[skip:]
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f", did you mean {prefix}.{close[0]}?" if close else ";"
            raise PluginError(f"{what} has no option {name!r}{hint} It has: {', '.join(known) or 'none'}")


def defaults_of(target: Callable[..., Any]) -> Mapping[str, Any]:
    """Default values of a function's parameters."""
    parameters = _signature(target).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _signature(target: Any) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        raise PluginError(
            f"{target!r} is a {type(target).__name__}, expected a class or function of ours or yours"
        ) from None


def reference_names() -> list[str]:
    """Names of the reference architectures: those of every `nas.zoo` entry point, a module with `names` and `get`."""
    return [name for zoo in available("zoo") for name in find("zoo", zoo).names()]


def reference(name: str) -> Architecture:
    """A reference architecture. Raises SpaceError for an unknown name."""
    zoos = [find("zoo", zoo) for zoo in available("zoo")]
    known = [zoo for zoo in zoos if name in zoo.names()]
    architecture: Architecture = (known or zoos)[0].get(name)
    return architecture


def _call(target: Any, what: str, prefix: str, options: Mapping[str, Any], *args: Any) -> Any:
    if not callable(target):
        raise PluginError(f"{what} is a {type(target).__name__}, expected a class or function")
    check_options(target, options, what, prefix, skip=len(args))
    try:
        return target(*args, **options)
    except NasError:
        raise
    except Exception as error:  # whatever a plug-in does with its options
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise PluginError(f"{what} cannot be made with ({given}): {type(error).__name__}: {error}") from error


def _wrong(made: Any, what: str, expected: str) -> PluginError:
    return PluginError(f"{what} gave a {type(made).__name__}, expected {expected}")
