"""An architecture as a block diagram: what is drawn, from the graph alone, and the drawing as SVG."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from nas import ops
from nas.architecture import Architecture
from nas.blocks.base import Block
from nas.graph import Graph
from nas.trial import format_number

MANY = 30  # nodes of a block that is drawn as the blocks inside it

ROW, BOX, TOP = 30, 24, 26  # pixels: from row to row, height of a box, height of the heads
LEFT, WIDE = 96, 244  # pixels: where boxes begin, and how wide they are
SHAPE, SHARE, PARAMS = 356, 444, 560  # pixels: where the columns begin, or the last one ends
BAR = 32  # pixels of the bar of the block with the most FLOPs

COLOURS = {"conv": "#dbe7f3", "inverted": "#fbe6d0", "residual": "#dcefe3", "bottleneck": "#dcefe3", "dense": "#ece2f4",
           "inception": "#fdf0c8", "separable": "#d9eef2", "cell": "#ece2f4", "head": "#e7e9ec", "pool": "#eef1f4",
           "transition": "#eef1f4", "fire": "#fadfdc"}  # fmt: skip
OTHER = "#edf0e4"


@dataclass(frozen=True)
class Unit:
    """A row of the diagram.

    Attributes:
        name: its scope in the graph; `stage1.0-2` for three in a row that are the same.
        kind, detail: of the block: `inverted_residual`, `5x5, expansion 3`.
        shape: of its output.
        params, flops: of all `times` together.
        skip: `identity` or `projection` if there is a way around its layers, else nothing.
        reads: rows whose outputs it reads; -1 is the input.
    """

    name: str
    kind: str
    detail: str
    shape: tuple[int, ...]
    params: int
    flops: int
    skip: str = ""
    reads: frozenset[int] = field(default_factory=frozenset)
    times: int = 1


def units(architecture: Architecture) -> list[Unit]:
    """The blocks of a network in their order. Equal ones in a row are one unit, `times` times."""
    graph = architecture.graph()
    names: dict[str, int] = {}
    blocks = dict(_leaves("", architecture.body))
    kinds = dict(graph.scopes)
    scopes = _scopes(graph, blocks)
    owner = [None if scope is None else names.setdefault(scope, len(names)) for scope in scopes]
    sources: list[frozenset[int]] = []
    found = [
        Unit(name, block.label if (block := blocks.get(name)) else kinds.get(name, ""), _detail(block), (), 0, 0)
        for name in names
    ]
    for i, (node, at) in enumerate(zip(graph.nodes, owner, strict=True)):
        into = frozenset[int]().union(*[sources[j] for j in node.inputs]) if node.inputs else frozenset({-1})
        if at is None:
            sources.append(into)
            continue
        sources.append(frozenset({at}))
        unit, shapes = found[at], graph.shapes_into(node)
        skip, merges = unit.skip, isinstance(node.op, ops.Add | ops.Concat)
        if merges and any(owner[j] != at for j in node.inputs):
            skip = "identity"
        elif isinstance(node.op, ops.Add) and not skip and len(graph.nodes) > 1:
            skip = "projection"
        found[at] = replace(
            unit, kind=unit.kind or type(node.op).__name__.lower(), shape=graph.shapes[i], skip=skip,
            params=unit.params + (0 if node.weights else node.op.params(*shapes)),
            flops=unit.flops + node.op.flops(*shapes), reads=unit.reads | (into - {at}),
        )  # fmt: skip
    return _merged(found)


def _leaves(name: str, block: Block) -> Iterator[tuple[str, Block]]:
    steps = block.steps()
    if not steps:
        yield name, block
    for inner, part in steps or ():
        yield from _leaves(f"{name}.{inner}" if name else inner, part)


def _scopes(graph: Graph, blocks: dict[str, Block]) -> list[str | None]:
    """The unit of each node by name; None for inputs, and for what only joins the parts of a large block."""
    leaves = []
    for node in graph.nodes:
        parts = node.name.split(".")
        prefixes = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
        leaves.append(None if isinstance(node.op, ops.Input) else next((p for p in prefixes if p in blocks), ""))
    found: list[str | None] = []
    for node, leaf in zip(graph.nodes, leaves, strict=True):
        if leaf is None or leaves.count(leaf) <= MANY:
            found.append(leaf)
            continue
        inner = node.name[len(leaf) + bool(leaf) :].split(".")
        found.append(f"{leaf}.{inner[0]}".lstrip(".") if len(inner) > 1 else None)
    return found


def _detail(block: Block | None) -> str:
    """Those hyperparameters of a block that are not its defaults, in short; channels stand in the output's shape."""
    words: list[str] = []
    known: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(block) if dataclasses.is_dataclass(block) else ()
    for each in known:
        value: Any = getattr(block, each.name)
        if each.name == "kernel" and isinstance(value, int):
            words.insert(0, f"{value}x{value}")
        elif each.name == "stride" and value != 1:
            words.append(f"/{value}")
        elif each.name == "expansion":
            words.append(f"expand {value:g}")
        elif each.name == "activation" and isinstance(value, str):
            words.append(value)
        elif each.name == "se" and value is not None:
            words.append("SE")
        elif each.name in ("groups", "growth", "layers", "dilation") and value not in (None, 1):
            words.append(f"{each.name} {value}")
    return ", ".join(words)


def _merged(found: Sequence[Unit]) -> list[Unit]:
    """Equal neighbours that nothing but their neighbours reads become one; `reads` are numbered anew."""
    readers: dict[int, set[int]] = {i: set() for i in range(-1, len(found))}
    for i, unit in enumerate(found):
        for j in unit.reads:
            readers[j].add(i)
    out: list[Unit] = []
    place = {-1: -1}
    for i, unit in enumerate(found):
        same = ("kind", "detail", "shape", "params", "flops", "skip")
        if (
            i and unit.reads == {i - 1} and readers[i - 1] == {i} and found[i - 1].reads <= {i - 2}
            and all(getattr(unit, name) == getattr(found[i - 1], name) for name in same)
        ):  # fmt: skip
            last = out[-1]
            first = last.name.partition("-")[0]
            name = f"{first}-{unit.name.rpartition('.')[2]}"
            out[-1] = replace(
                last, name=name, times=last.times + 1, params=last.params + unit.params, flops=last.flops + unit.flops
            )
        else:
            out.append(replace(unit, reads=frozenset(place[j] for j in unit.reads)))
        place[i] = len(out) - 1
    return out


# -- drawing -----------------------------------------------------------------------------------------------------------


def svg(architecture: Architecture) -> str:
    """The diagram as one `<svg>` element: a row per block with its output, share of the FLOPs, and parameters.

    Arcs on the left lead to what reads something else than the row above it; a small arc at a box is a way around its
    layers, dashed where that has a layer of its own.
    """
    rows = units(architecture)
    total = sum(unit.flops for unit in rows) or 1
    largest = max(unit.flops for unit in rows) or 1
    height, centre = TOP + ROW * (len(rows) + 1) + 6, LEFT + WIDE // 2
    size = "×".join(map(str, architecture.input_shape))
    title = f"{architecture.name}: {len(rows)} blocks, {sum(u.params for u in rows):,} parameters"
    parts = [
        f'<svg class="diagram" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PARAMS + 4} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="11"><title>{escape(title)}</title>',
        _text(LEFT, 14, "block", "#8a94a0", 10), _text(SHAPE, 14, "output", "#8a94a0", 10),
        _text(SHARE, 14, "FLOPs", "#8a94a0", 10), _text(PARAMS, 14, "parameters", "#8a94a0", 10, "end"),
        f'<line x1="{centre}" y1="{TOP + 4}" x2="{centre}" y2="{height - ROW}" stroke="#c3ccd5"/>',
        f'<rect x="{centre - 60}" y="{TOP}" width="120" height="{BOX - 4}" rx="10" fill="#fff" stroke="#c3ccd5"/>',
        _text(centre, TOP + 14, "input", "#5b6672", 11, "middle"),
        _text(SHAPE, TOP + 14, size, "#5b6672"),
    ]  # fmt: skip
    parts += _arcs(rows)
    for i, unit in enumerate(rows):
        parts += _row(unit, TOP + ROW * (i + 1), unit.flops / total, BAR * unit.flops / largest)
    return "".join([*parts, "</svg>"])


def _row(unit: Unit, y: float, share: float, bar: float) -> Iterator[str]:
    fill = next((c for word, c in COLOURS.items() if unit.kind.startswith(word) or word in unit.kind), OTHER)
    middle = y + BOX / 2 + 4
    times = f" ×{unit.times}" if unit.times > 1 else ""
    kind = unit.kind.replace("_", " ") + times
    room = max(0, int((WIDE - 20 - 6.1 * len(kind)) / 5.2))
    detail = unit.detail if len(unit.detail) <= room else f"{unit.detail[: max(0, room - 1)].rstrip(', ')}…"
    about = ", ".join(filter(None, [unit.name, kind, unit.detail, f"{unit.flops:,} FLOPs"]))
    yield f"<g><title>{escape(about)}</title>"
    name = unit.name if len(unit.name) <= 12 else f"…{unit.name[-11:]}"
    yield _text(2, middle, name, "#8a94a0", 10)
    yield f'<rect x="{LEFT}" y="{y}" width="{WIDE}" height="{BOX}" rx="6" fill="{fill}"/>'
    if unit.skip:
        dash = ' stroke-dasharray="3 2"' if unit.skip == "projection" else ""
        x = LEFT + WIDE
        yield (
            f'<path d="M{x - 4} {y - 2} C{x + 10} {y - 2} {x + 10} {y + BOX + 2} {x - 4} {y + BOX + 2}" fill="none" '
            f'stroke="#4a7c59" stroke-width="1.3"{dash}/>'
        )
    yield (
        f'<text x="{LEFT + 10}" y="{middle}" fill="#1f2933"><tspan font-weight="600">{escape(kind)}</tspan>'
        f'<tspan dx="6" fill="#5b6672" font-size="10">{escape(detail)}</tspan></text>'
    )
    yield _text(SHAPE, middle, "×".join(map(str, unit.shape)), "#5b6672")
    yield f'<rect x="{SHARE}" y="{y + 8}" width="{max(bar, 0.5):.1f}" height="8" rx="2" fill="#1f6f8b"/>'
    yield _text(SHARE + max(bar, 0.5) + 4, middle, f"{share:.0%}", "#5b6672", 10)
    yield _text(PARAMS, middle, format_number(unit.params) if unit.params else "–", "#5b6672", 11, "end")
    yield "</g>"


def _arcs(rows: Sequence[Unit]) -> Iterator[str]:
    """Connections that skip rows, on the left; the longer, the further out."""
    for i, unit in enumerate(rows):
        for j in sorted(unit.reads - {i - 1}):
            above = TOP + ROW * (j + 1) + BOX - 3
            below = TOP + ROW * (i + 1) + 5
            bend = min(30, 8 + 4 * (i - j))
            yield (
                f'<path d="M{LEFT} {above} C{LEFT - bend} {above + 4} {LEFT - bend} {below - 4} {LEFT} {below}" '
                'fill="none" stroke="#7b5ea7" stroke-opacity=".55"/>'
            )


def _text(x: float, y: float, text: str, fill: str, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
