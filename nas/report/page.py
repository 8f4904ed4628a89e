"""A run, or several of one task, as one HTML page that needs nothing else, and its figures as PNG."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from nas.config import Config
from nas.errors import ConfigError, NasError, RunError
from nas.report import plot
from nas.report.decisions import Decisions, Shares, decisions
from nas.report.diagram import svg
from nas.report.found import proxies, retrained
from nas.report.plot import called, labels
from nas.report.volume import Volume, volumes
from nas.search import summary
from nas.session import Found, Results, load
from nas.store import write_atomically
from nas.trial import Trial, format_number

SHOWN = 12
"""Decisions whose statistics are shown, and front architectures that are in sight at once, of each run."""
DRAWN = 300
"""Architectures besides the front that are drawn when they are selected: each is some kilobytes."""

STATES = {"ok": "#1f6f8b", "stopped": "#8fb8c6", "duplicate": "#d5dce2", "infeasible": "#e5c07b", "failed": "#c8553d",
          "diverged": "#d98c5f", "out_of_memory": "#a4508b", "timed_out": "#7b5ea7"}  # fmt: skip


def write_report(runs: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Write the page, and beside it its figures as PNG (`<page>-front.png`, `-hypervolume.png`, `-decisions.png`).

    Args:
        runs: run folders of one task and the same objectives.
        out: the page; by default `report.html` in the folder of a single run, else here.

    Returns what was written, the page first. Raises RunError for a folder that holds no run, and for runs that cannot
    be compared.
    """
    if len(set(runs)) < len(runs):
        raise RunError(f"report: {', '.join(map(str, runs))} names a run twice")
    found = [load(path) for path in runs]
    for results in found:
        if not results.trials:
            raise RunError(
                f"run {results.path} has no finished trial yet; let it go on with `nas resume {results.path}`"
            )
    if out is not None and (out.suffix != ".html" or out.is_dir()):
        raise ConfigError(f"--out {out}: expected the name of a page, ending in .html")
    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    page.parent.mkdir(parents=True, exist_ok=True)
    curves = volumes(runs) if len(runs) > 1 or found[0].front else []
    told = [decisions(results) for results in found]
    write_atomically(page, _page(found, curves, told))
    written = [page]
    if any(results.front for results in found):
        written.append(plot.save_fronts(found, page.with_name(f"{page.stem}-front.png")))
        written.append(plot.save_volumes(curves, page.with_name(f"{page.stem}-hypervolume.png")))
    if told[0].shares:
        written.append(plot.save_decisions(told[0], page.with_name(f"{page.stem}-decisions.png")))
    return written


def _page(found: Sequence[Results], curves: Sequence[Volume], told: Sequence[Decisions]) -> str:
    from plotly.offline import get_plotlyjs

    titles = called([results.path for results in found])
    here = files("nas.report")
    body = [*_head(found), *_front(found), *_volume(curves)]
    for results, title, statistics in zip(found, titles, told, strict=True):
        if len(found) > 1:
            body.append(f'<div class="run"><h1>{escape(title)}</h1><p>{escape(_about(results))}</p></div>')
        body += [*_drawings(results), *_decisions(statistics), *_extras(results), *_states(results)]
        body += _reproduce(results)
    data = json.dumps(_data(found, curves)).replace("<", "\\u003c")  # nothing in it may end the script
    return "\n".join([
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(', '.join(titles))}</title>",
        f"<style>{(here / 'page.css').read_text()}</style></head><body><main>",
        *body, f'</main><script id="data" type="application/json">{data}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{(here / 'page.js').read_text()}</script>", "</body></html>", "",
    ])  # fmt: skip


# -- what the charts show ----------------------------------------------------------------------------------------------


def _data(found: Sequence[Results], curves: Sequence[Volume]) -> dict[str, Any]:
    names = [o.metric for o in found[0].objectives]
    return {
        "y": names[0] if any(results.front for results in found) else None,
        "x": names[1] if len(names) > 1 else "trial",
        "steps": len(names) == 2,
        "names": labels(found[0]),
        "runs": [
            {"name": title, "best": results.front[0].number if results.front else None,
             "trials": [_trial(i, results, trial, draw=n < DRAWN) for n, trial in enumerate(_done(results))]}
            for i, (results, title) in enumerate(zip(found, called([r.path for r in found]), strict=True))
        ],
        "volumes": [
            {"label": c.label, "strategy": c.strategy, "mean": c.mean.round(5).tolist(),
             "error": c.error.round(5).tolist()}
            for c in curves
        ],
    }  # fmt: skip


def _trial(run: int, results: Results, trial: Trial, *, draw: bool) -> dict[str, Any]:
    front = trial in results.front
    return {
        "run": run, "number": trial.number, "metrics": _metrics(results, trial), "genotype": dict(trial.genotype),
        "front": front, "command": f"nas export {results.path} --arch {trial.number}",
        "drawing": _drawing(results, trial) if front or draw else "",
    }  # fmt: skip


def _metrics(results: Results, trial: Trial) -> dict[str, float]:
    """The objectives first."""
    first = {o.metric: trial.metrics[o.metric] for o in results.objectives}
    return {**first, **trial.metrics}


def _drawing(results: Results, trial: Trial) -> str:
    try:
        return svg(Found(results, trial).architecture)
    except NasError as error:  # the space is not here any more
        return f'<p class="hint">It cannot be drawn: {escape(str(error))}</p>'


def _done(results: Results) -> list[Trial]:
    return [trial for trial in results.trials if trial.ok and trial.duplicate_of is None]


# -- sections ----------------------------------------------------------------------------------------------------------


def _about(results: Results) -> str:
    task = results.run.config["task"]
    config = results.config
    judged = task.get("about") or f"measured results ({config.evaluator})"
    return f"{config.strategy} in the space {config.space}, judged by {config.evaluator}; {judged}"


def _head(found: Sequence[Results]) -> Iterator[str]:
    first, many, titles = found[0], len(found) > 1, called([results.path for results in found])
    yield f"<h1>{escape('Comparison of runs' if many else titles[0])}</h1>"
    yield f"<p>{escape(', '.join(titles) if many else _about(first))}</p>"
    spent = [t.budget for r in found for t in r.trials if t.budget is not None and t.evaluated]
    facts = {
        "architectures evaluated": f"{sum(t.evaluated for r in found for t in r.trials):,}",
        "on the front": " / ".join(str(len(results.front)) for results in found),
    }
    for objective in first.objectives:
        values = [trial.metrics[objective.metric] for results in found for trial in results.front]
        if values:
            best = max(values) if objective.direction == "max" else min(values)
            facts[f"{'highest' if objective.direction == 'max' else 'lowest'} {objective.metric}"] = format_number(best)
    seconds = [max((t.elapsed for t in results.trials), default=0.0) for results in found]
    facts["wall-clock time of the search"] = " / ".join(map(_clock, seconds))
    if spent:
        facts["epochs trained"] = format_number(sum(spent))
    yield '<div class="facts">'
    for name, value in facts.items():
        yield f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
    yield "</div>"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.2g} min" if minutes < 90 else f"{minutes / 60:.3g} h"


def _front(found: Sequence[Results]) -> Iterator[str]:
    if not any(results.front for results in found):
        yield "<h2>Front</h2><p>No trial has succeeded and kept all limits yet.</p>"
        return
    metrics = [*(o.metric for o in found[0].objectives), "trial"]
    for trial in (trial for results in found for trial in _done(results)):
        metrics += [name for name in trial.metrics if name not in metrics]
    x = found[0].objectives[1].metric if len(found[0].objectives) > 1 else "trial"
    yield "<h2>Front</h2><p>Every point is an architecture. Hovering shows what it is, a click selects it. "
    yield "FLOPs are multiply-adds of convolutions and linear layers for one image.</p>"
    yield '<div class="front"><div class="card"><div class="axes">'
    for axis, chosen, names in (
        ("x", x, metrics),
        ("y", metrics[0], [name for name in metrics if name != "trial"]),
    ):
        options = "".join(f"<option{' selected' if name == chosen else ''}>{escape(name)}</option>" for name in names)
        yield f'<label>{axis} <select id="{axis}">{options}</select></label>'
    yield '</div><div id="front"></div></div><div class="card" id="selected"></div></div>'


def _volume(curves: Sequence[Volume]) -> Iterator[str]:
    if not curves:
        return
    yield "<h2>Hypervolume</h2><p>How much of the front of everything found here was dominated after so many "
    yield "evaluations; accuracies count from the best to 10 points below, other objectives over the range seen. "
    if any(curve.strategy == "random" for curve in curves):
        yield "Random search is dashed.</p>"
    else:
        yield "Random search is not known here: run it (<code>--strategy random</code>) and name both runs.</p>"
    yield '<div class="card"><div id="volume"></div></div>'


def _drawings(results: Results) -> Iterator[str]:
    if not results.front:
        return
    yield f"<h2>Architectures on the front</h2><p>From the best {escape(results.objectives[0].metric)} on. A small "
    yield "green arc is a way around a block's layers (dashed: with a layer of its own); violet lines skip rows.</p>"
    yield f'<div class="grid">{"".join(_card(results, trial) for trial in results.front[:SHOWN])}</div>'
    if rest := results.front[SHOWN:]:
        yield f"<details><summary>{len(rest)} more on the front</summary>"
        yield f'<div class="grid">{"".join(_card(results, trial) for trial in rest)}</div></details>'


def _card(results: Results, trial: Trial) -> str:
    numbers = ", ".join(f"{name} {format_number(value)}" for name, value in _metrics(results, trial).items())
    return (
        f'<div class="card"><h3>trial {trial.number}</h3><div class="numbers">{escape(numbers)}</div>'
        f'<div class="tall">{_drawing(results, trial)}</div></div>'
    )


def _decisions(told: Decisions) -> Iterator[str]:
    if not told.shares:
        return
    yield "<h2>What the good ones share</h2><p>Shares of each option among the "
    yield f'<span class="key-good">{told.good} best-ranked</span> and among '
    yield f'<span class="key-all">all {told.trials}</span> architectures, the most telling first. Chance: how '
    yield "often as many architectures drawn at random differ as much from the rest; among twenty decisions one is "
    yield "below .05 by chance.</p>"
    yield '<div class="card"><table><tr><th>decision</th><th>options</th><th class="n">difference</th>'
    yield '<th class="n">chance</th></tr>'
    for shares in told.shares[:SHOWN]:
        yield f'<tr><td>{escape(shares.path)}</td><td><div class="labels">{"".join(_labels(shares))}</div></td>'
        yield f'<td class="n">{shares.distance:.2f}</td><td class="n">{shares.chance:.3f}</td></tr>'
    yield "</table></div>"


def _labels(shares: Shares) -> Iterator[str]:
    for label, good, everyone in zip(shares.names, shares.good, shares.all, strict=True):
        yield f'<div class="label"><div class="pair"><span>{escape(label)}</span><span>{good:.0%}</span></div>'
        yield f'<div class="bar"><i style="width:{good:.0%}"></i></div>'
        yield f'<div class="bar"><i class="all" style="width:{everyone:.0%}"></i></div></div>'


def _extras(results: Results) -> Iterator[str]:
    """What later commands left in the run folder."""
    if rows := retrained(results.path):
        yield "<h2>Trained anew</h2><p>Results of <code>nas train</code>: longer trainings of what was found.</p>"
        yield from _table(rows)
    if rows := proxies(results):
        yield "<h2>How honest the proxies are</h2><p>Rank correlation with the results of this run: Kendall's tau, "
        yield "its 95 % interval (one that has 0 in it says nothing), Spearman's rho, and what tau has over that of "
        yield "FLOPs, which every proxy must beat.</p>"
        yield from _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name for name in names if all(isinstance(row.get(name, 0), int | float) for row in rows)}
    yield '<div class="card"><table><tr>'
    yield "".join(f"<th{' class=n' if name in numeric else ''}>{escape(name)}</th>" for name in names) + "</tr>"
    for row in rows:
        cells = [format_number(row[n]) if n in numeric and n in row else str(row.get(n, "–")) for n in names]
        pairs = zip(names, cells, strict=True)
        yield "<tr>" + "".join(f"<td{' class=n' if n in numeric else ''}>{escape(c)}</td>" for n, c in pairs) + "</tr>"
    yield "</table></div>"


def _states(results: Results) -> Iterator[str]:
    counts = summary(results.trials)
    total = sum(counts.values())
    yield "<h2>Trials</h2><p>What became of every proposal. Infeasible ones broke a limit before any training; "
    yield 'duplicates are networks that were known already; neither counts.</p><div class="card"><div class="states">'
    for state, count in counts.items():
        yield f'<div style="width:{count / total:.2%};background:{STATES.get(state, "#999")}"></div>'
    yield '</div><div class="legend">'
    for state, count in counts.items():
        colour = STATES.get(state, "#999")
        yield f'<span><i style="background:{colour}"></i>{count} {escape(state.replace("_", " "))}</span>'
    yield "</div>"
    errors: dict[tuple[str, str], list[int]] = {}
    for trial in results.trials:
        if trial.error:
            errors.setdefault((trial.state, trial.error), []).append(trial.number)
    if errors:
        yield "<table><tr><th>trials</th><th>state</th><th>error</th></tr>"
        for (state, error), numbers in errors.items():
            which = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
            yield f"<tr><td>{which}</td><td>{escape(state)}</td><td>{escape(error)}</td></tr>"
        yield "</table>"
    else:
        yield '<span class="hint">No errors.</span>'
    yield "</div>"


def _reproduce(results: Results) -> Iterator[str]:
    config: Config = results.config
    versions = results.run.config.get("versions", {})
    workers = sorted({trial.worker for trial in results.trials})
    lines = [config.command(), "", f"seed      {config.seed}"]
    lines += [f"versions  {', '.join(f'{name} {version}' for name, version in versions.items())}"]
    lines += [f"workers   {config.workers} ({', '.join(workers[:4])}{', ...' if len(workers) > 4 else ''})"]
    if config.workers > 1 or config.time is not None:
        lines += ["", "With several workers, or a limit on time, the order of results depends on the clock: the seed"]
        lines += ["does not fix which trials there are."]
    yield f'<h2>How to reproduce</h2><div class="card"><pre>{escape(chr(10).join(lines))}</pre></div>'
