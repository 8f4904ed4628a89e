"""What was found inside a network: a table, a verdict in words, a picture."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import ops
from nas.report.tables import print_table
from nas.torch.diagnose import DEAD, EXPLODED, VANISHED, Diagnosis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nas.ops import Op
    from nas.torch.field import Field

COLOURS = ("#8fa3b5", "#1f6f8b")
"""At initialisation, and after training."""

ALARM = "#c0492f"
MEASURES = ("gradients", "sensitivities", "dead", "means", "sizes", "spreads")

LABELS = 24
"""How many parts of a network are named below its picture, at most."""


def diagnosis_json(found: Diagnosis) -> dict[str, Any]:
    """Everything that was measured, but for the pixels of the fields."""
    return {
        "name": found.architecture.name, "key": found.architecture.key(), "images": found.images,
        "input_shape": list(found.architecture.input_shape), "steps": found.steps, "diverged": found.diverged,
        "initialisation": {name: layer._asdict() for name, layer in found.initial.items()},
        "moments": {
            when: {
                "loss": _finite(moment.loss), "dead_units": moment.dead_share,
                **{name: {node: _finite(value) for node, value in getattr(moment, name).items()} for name in MEASURES},
                "field": {"node": moment.field.node, "effective": moment.field.size,
                          "theoretical": list(moment.field.theory)},
            }
            for when, moment in found.moments.items()
        },
        "findings": [finding._asdict() for finding in found.findings],
    }  # fmt: skip


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


def print_diagnosis(found: Diagnosis) -> None:
    """The layers and activations as a table, then the whole network, then what is wrong with it."""
    kinds = {node.name: _kind(node.op) for node in found.architecture.graph().nodes}
    drawn = {name: f"{layer.scheme} {layer.gain:.3f}" for name, layer in found.initial.items()}
    moments = list(found.moments.values())
    columns = ["node", "kind", "drawn"]
    for head in ("gradient", "x weights", "dead"):
        columns += [head, *(["after"] if found.end else [])]
    rows = [
        [
            name, kinds[name], drawn.get(name, ""),
            *(_short(m.gradients.get(name)) for m in moments), *(_short(m.sensitivities.get(name)) for m in moments),
            *(_percent(m.dead.get(name)) for m in moments), f"{mean:.3g}", f"{found.start.spreads[name]:.3g}",
        ]
        for name, mean in found.start.means.items()
    ]  # fmt: skip
    print_table([*columns, "mean", "spread"], rows)
    for line in _summary(found):
        print(line)


def _summary(found: Diagnosis) -> list[str]:
    moments = found.moments
    _, height, width = found.architecture.input_shape
    field = found.start.field
    seen = ", ".join(f"{moment.field.size:.1f} pixels across {when}" for when, moment in moments.items())
    reasons = Counter(f"{layer}: {layer.reason}" for layer in found.initial.values())
    drawn = [f"{reason} ({count} {'layer' if count == 1 else 'layers'})" for reason, count in reasons.items()]
    verdicts = [finding.text for finding in found.findings]
    sound = f"sound: no gradient vanishes or explodes, no activation has more than {DEAD:.0%} dead units"
    return [
        "gradient: norm of the loss's gradient; x weights: times the weights' norm, to be compared between layers;",
        "spread: between images; all at initialisation unless said",
        "loss             " + ", ".join(f"{moment.loss:.4g} {when}" for when, moment in moments.items()),
        "dead units       " + ", ".join(f"{moment.dead_share:.1%} {when}" for when, moment in moments.items()),
        f"receptive field  effective {seen}; theoretical {field.theory[0]}x{field.theory[1]}; "
        f"input {height}x{width} (of {field.node})",
        *(f"{'drawn' if not i else '':17}{line}" for i, line in enumerate(drawn)),
        *(f"{'verdict' if not i else '':17}{line}" for i, line in enumerate(verdicts or [sound])),
    ]


def _kind(op: Op) -> str:
    if isinstance(op, ops.Conv):
        size = f"conv {op.kernel[0]}x{op.kernel[1]}"
        return f"{size}, {op.groups} groups" if op.groups > 1 else size
    if isinstance(op, ops.Activation):
        return op.kind
    return op.target.rpartition(":")[2] if isinstance(op, ops.Module) else type(op).__name__.lower()


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


# -- the picture ---------------------------------------------------------------------------------------------------


def save_diagnosis(found: Diagnosis, path: Path) -> Path:
    """Write gradients and dead units along the network, and the effective receptive field, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    halves = figure.add_gridspec(1, 2, width_ratios=(3.1, 1))
    left = halves[0].subgridspec(2, 1, height_ratios=(1.8, 1))
    right = halves[1].subgridspec(len(found.moments), 1)
    gradients = figure.add_subplot(left[0])
    dead = figure.add_subplot(left[1], sharex=gradients)
    places = {name: i for i, name in enumerate(found.start.means)}
    _draw_gradients(gradients, found, places)
    _draw_dead(dead, found, places)
    _name_parts(dead, list(places))
    gradients.tick_params(labelbottom=False)
    for i, (when, moment) in enumerate(found.moments.items()):
        _draw_field(figure.add_subplot(right[i]), moment.field, when)
    name, (channels, height, width) = found.architecture.name, found.architecture.input_shape
    kinds = ", ".join(dict.fromkeys(finding.kind for finding in found.findings)) or "sound"
    title = f"{name}, input {channels}x{height}x{width}: {kinds}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.savefig(path, dpi=150)
    return path


def _draw_gradients(axes: Axes, found: Diagnosis, places: Mapping[str, int]) -> None:
    low, high = math.inf, 0.0
    for (when, moment), colour in zip(found.moments.items(), COLOURS, strict=False):
        known = {n: s for n, s in moment.sensitivities.items() if math.isfinite(s) and s > 0}
        axes.plot([places[n] for n in known], list(known.values()), "o-", color=colour, markersize=4, linewidth=1.2,
                  label=when)  # fmt: skip
        low, high = min([low, *known.values()]), max([high, *known.values()])
    axes.set_yscale("log")
    if high:
        axes.set_ylim(low / 5, high * 5)
    else:
        axes.text(0.5, 0.5, "no number", transform=axes.transAxes, ha="center", va="center", color=ALARM)
    bottom, top = axes.get_ylim()
    vanished, exploded = min(VANISHED, top), max(EXPLODED, bottom)
    for word, low, high, at, side in (
        ("vanishing", bottom, vanished, vanished, "top"), ("exploding", exploded, top, exploded, "bottom")
    ):  # fmt: skip
        if low < high:
            axes.axhspan(low, high, color=ALARM, alpha=0.07, linewidth=0)
            axes.text(0.995, at, word, transform=axes.get_yaxis_transform(), ha="right", va=side, color=ALARM)
    axes.set_ylim(bottom, top)
    for finding in {finding.node: finding for finding in found.findings if finding.node}.values():
        size = found.moments[finding.when].sensitivities.get(finding.node, 0.0)
        if 0 < size < math.inf:
            axes.plot(places[finding.node], size, "o", markersize=9, markerfacecolor="none", markeredgecolor=ALARM)
            axes.annotate(finding.node, (places[finding.node], size), xytext=(8, 8), textcoords="offset points",
                          color=ALARM, fontsize=8)  # fmt: skip
    axes.set_title("Gradient norm x weight norm, layer by layer", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="best")
    _clean(axes)


def _draw_dead(axes: Axes, found: Diagnosis, places: Mapping[str, int]) -> None:
    moments = list(found.moments.items())
    width = 0.8 / len(moments)
    top = 0.0
    for i, ((_, moment), colour) in enumerate(zip(moments, COLOURS, strict=False)):
        x = [places[name] + (i - (len(moments) - 1) / 2) * width for name in moment.dead]
        axes.bar(x, [100 * share for share in moment.dead.values()], width, color=colour)
        top = max([top, *moment.dead.values()])
    if not top:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=COLOURS[0])
    axes.set_ylim(0, min(100, max(5, 115 * top)))
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.set_title("Dead units, activation by activation", loc="left", fontsize=10)
    _clean(axes)


def _name_parts(axes: Axes, names: Sequence[str]) -> None:
    """Ticks where the parts of a network begin, as many as can be read."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        first.setdefault(name.partition(".")[0], i)
    shown: list[tuple[str, int]] = []
    for part, i in first.items():
        if not shown or i - shown[-1][1] >= len(names) / LABELS:
            shown.append((part, i))
    axes.set_xticks(
        [i for _, i in shown], [part for part, _ in shown], rotation=30, rotation_mode="anchor", ha="right", fontsize=8
    )
    axes.set_xlim(-0.8, len(names) - 0.2)


def _draw_field(axes: Axes, field: Field, when: str) -> None:
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    height, width = field.map.shape
    axes.imshow(field.map.numpy(), cmap="Blues", norm=PowerNorm(0.5))
    row, column = field.centre
    for (tall, wide), style, label in (
        (field.theory, "--", f"theoretical, {field.theory[0]}x{field.theory[1]}"),
        ((field.size, field.size), "-", f"effective, {field.size:.1f} across"),
    ):
        tall, wide = min(tall, height), min(wide, width)
        # What would stand over the edge is moved inside.
        top = min(max(row - tall / 2, 0.0), height - tall)
        left = min(max(column - wide / 2, 0.0), width - wide)
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), wide, tall, fill=False, linestyle=style, edgecolor=ALARM,
                                 linewidth=1.4, label=label, clip_on=False))  # fmt: skip
    axes.set_title(f"Receptive field {when}", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.02))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#b8c4d0")


def _clean(axes: Axes) -> None:
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
