"""Tables on the terminal, and the same facts as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas.analysis import cost
from nas.architecture import Architecture
from nas.errors import ConfigError, NasError
from nas.search import summary
from nas.trial import Trial, format_number, shown

if TYPE_CHECKING:
    from nas.export import Exported
    from nas.session import Results

Row = Mapping[str, Any]


def print_json(data: Any) -> None:
    """JSON on standard output, whole and unwrapped."""
    print(json.dumps(data, indent=1))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Text to the left, numbers to the right and short. Outside a terminal, lines are as long as they need to be."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        numeric = rows and all(isinstance(row[i], int | float) for row in rows if row[i] is not None)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        cells = ["" if v is None else v if isinstance(v, str) else format_number(v) for v in row]
        table.add_row(*map(Text, cells))  # text, never markup: error messages may have brackets
    Console(width=None if sys.stdout.isatty() else 240).print(table, highlight=False)


# -- a run ---------------------------------------------------------------------------------------------------------


def print_run(results: Results, *, everything: bool = False) -> None:
    """The front of a run, or all of its trials, as a table."""
    trials = results.trials if everything else results.front
    names = _metric_names(trials, results)
    counts = ", ".join(f"{n} {state}" for state, n in summary(results.trials).items())
    print(f"{results.path}: {counts or 'no trial yet'}; {len(results.front)} on the front")
    units = [shown(results.metrics.get(name)) for name in names]
    rows = [
        [str(t.number), *([t.state] if everything else []),
         *(None if (v := t.metrics.get(name)) is None else v * factor
           for name, (_, factor) in zip(names, units, strict=True)), *_why(t, everything)]
        for t in trials
    ]  # fmt: skip
    heads = [f"{name} ({unit})" if unit else name for name, (unit, _) in zip(names, units, strict=True)]
    columns = ["trial", *(["state"] if everything else []), *heads, *(["remark"] if everything else [])]
    print_table(columns, rows)
    if "flops" in names:
        print("flops: multiply-adds of convolutions and linear layers, one image")


def _why(trial: Trial, everything: bool) -> list[str]:
    if not everything:
        return []
    if trial.duplicate_of is not None:
        return [f"same network as {trial.duplicate_of}"]
    broken = ", ".join(f"{name} {amount:+.0%}" for name, amount in trial.violations.items() if name != "graph")
    return [trial.error or broken]


def _metric_names(trials: Sequence[Trial], results: Results) -> list[str]:
    first = [o.metric for o in results.objectives]
    others = dict.fromkeys(name for trial in trials for name in trial.metrics if name not in first)
    return [*first, *others]


def run_json(results: Results, *, everything: bool = False) -> dict[str, Any]:
    """The same as data."""
    trials = results.trials if everything else results.front
    return {
        "run": str(results.path),
        "states": summary(results.trials),
        "objectives": [{"metric": o.metric, "direction": o.direction} for o in results.objectives],
        "trials": [
            {"number": t.number, "state": t.state, "metrics": dict(t.metrics), "genotype": dict(t.genotype),
             "key": t.key, "seconds": t.seconds, "error": t.error}
            for t in trials
        ],
    }  # fmt: skip


# -- lists ---------------------------------------------------------------------------------------------------------


def rows(what: str, folder: Path) -> list[dict[str, Any]]:
    """What `nas list` shows. Raises ConfigError for an unknown list."""
    from nas.plugins import available, find, reference, reference_names

    if what == "runs":
        return _runs(folder)
    if what == "zoo":
        return [_costs(name, reference(name)) for name in reference_names()]
    kinds = {
        "spaces": "search_spaces", "strategies": "strategies", "evaluators": "evaluators", "proxies": "proxies",
    }  # fmt: skip
    if what not in kinds:
        raise ConfigError(f"list: {what!r} is not one of runs, zoo, {', '.join(kinds)}")
    kind: Any = kinds[what]
    found = []
    for name in sorted(available(kind)):
        try:
            about = (find(kind, name).__doc__ or "").strip().split("\n")[0]
        except NasError as error:  # one broken plug-in must not hide the others
            about = f"cannot be used: {error}"
        found.append({"name": name, "about": about})
    return found


def _runs(folder: Path) -> list[dict[str, Any]]:
    from nas.session import load
    from nas.store import find_runs

    found: list[dict[str, Any]] = []
    for path in find_runs(folder):
        try:
            results = load(path)
        except NasError as error:
            found.append({"run": str(path), "space": None, "strategy": None, "trials": None, "front": None,
                          "best": None, "remark": str(error)})  # fmt: skip
            continue
        done = sum(trial.evaluated for trial in results.trials)
        first = results.objectives[0].metric
        best = results.best().trial.metrics[first] if results.front else None
        left = "" if done >= results.config.trials else f"{results.config.trials - done} trials left"
        found.append({"run": str(path), "space": results.config.space, "strategy": results.config.strategy,
                      "trials": done, "front": len(results.front), "best": best, "remark": left})  # fmt: skip
    return found


def print_rows(what: str, found: Sequence[Row]) -> None:
    """A list as a table."""
    if not found:
        print(f"no {what} here; `nas search` starts a run" if what == "runs" else f"no {what}")
        return
    print_table(list(found[0]), [list(row.values()) for row in found])


def _costs(name: str, architecture: Architecture) -> dict[str, Any]:
    a = architecture.analysis
    size = "x".join(map(str, architecture.input_shape))
    return {"name": name, "input": size, "params": a.params, "flops": a.flops, "depth": a.depth}


# -- one architecture ----------------------------------------------------------------------------------------------


def inspect_json(architecture: Architecture) -> dict[str, Any]:
    """An architecture's costs, in all and per block."""
    a = architecture.analysis
    return {
        "name": architecture.name, "key": architecture.key(), "input_shape": list(architecture.input_shape),
        "classes": architecture.classes, "params": a.params, "flops": a.flops,
        "flops_convention": "multiply-adds of convolutions and linear layers", "memory": a.memory, "depth": a.depth,
        "receptive_field": list(a.field), "genotype": dict(architecture.genotype), "blocks": _blocks(architecture),
    }  # fmt: skip


def _blocks(architecture: Architecture) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def visit(name: str, block: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        steps = block.steps()
        if steps is None or not steps:
            part = cost(block, shape)
            if part.params or part.flops or part.shape != shape:
                found.append({"block": name, "kind": block.label, "output": list(part.shape), "params": part.params,
                              "flops": part.flops})  # fmt: skip
            return part.shape
        for inner, part in steps:
            shape = visit(f"{name}.{inner}" if name else inner, part, shape)
        return shape

    visit("", architecture.body, architecture.input_shape)
    return found


def _nested(blocks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Blocks under the stage that they are in, which has their sums."""
    for stage, inside in groupby(blocks, key=lambda block: block["block"].partition(".")[0]):
        parts = list(inside)
        if len(parts) == 1:
            yield parts[0]
            continue
        sums = {name: sum(part[name] for part in parts) for name in ("params", "flops")}
        yield {"block": stage, "kind": f"{len(parts)} blocks", "output": parts[-1]["output"], **sums}
        for part in parts:
            yield {**part, "block": f"  {part['block']}"}


def print_architecture(architecture: Architecture) -> None:
    """Blocks with shapes and costs, then the totals."""
    data = inspect_json(architecture)
    total = data["flops"] or 1
    lines = [
        [b["block"], b["kind"], "x".join(map(str, b["output"])), f"{b['params']:,}", f"{b['flops']:,}",
         f"{b['flops'] / total:.1%}"]
        for b in _nested(data["blocks"])
    ]  # fmt: skip
    print(f"{data['name']}  {data['key']}")
    print_table(["block", "kind", "output", "params", "FLOPs", "share"], lines)
    size = "x".join(map(str, data["input_shape"]))
    height, width = data["receptive_field"]
    print(f"input            {size}, {data['classes']} classes")
    print(f"parameters       {data['params']:,}")
    print(f"FLOPs            {data['flops']:,} ({data['flops_convention']})")
    print(f"activations      {format_number(data['memory'])} bytes at the peak, batch 1, float32")
    print(f"depth            {data['depth']} weight layers")
    print(f"receptive field  {height}x{width} pixels")


def print_export(exported: Sequence[Exported]) -> None:
    """The written files and how far their outputs are from the module's."""
    for each in exported:
        for path in each.files:
            print(f"wrote  {path}")
        same = f"largest difference {each.difference:.1e} (relative)"
        print(f"check  {each.format}: same outputs as the network, {same}")
    if not exported[0].trained and any(each.format in ("onnx", "program") for each in exported):
        print("note   initial weights: no trained ones were kept, or they were not wanted")
