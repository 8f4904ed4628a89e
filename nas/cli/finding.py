"""Commands that search, and what there is to search with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.common import Json, app


@app.command()
def search(
    space: Annotated[str | None, typer.Option(help="Search space. [default: mobile]", show_default=False)] = None,
    strategy: Annotated[str | None, typer.Option(help="Who proposes. [default: evolution]", show_default=False)] = None,
    evaluator: Annotated[str | None, typer.Option(help="Who scores. [default: train]", show_default=False)] = None,
    data: Annotated[
        str | None, typer.Option(help="Images: digits, a folder, .npz, MNIST or CIFAR files. [default: digits]")
    ] = None,
    objectives: Annotated[str | None, typer.Option(help="[default: accuracy,flops]", show_default=False)] = None,
    limit: Annotated[list[str] | None, typer.Option(help="Such as flops=300M; may be repeated.")] = None,
    start_: Annotated[
        list[str] | None,
        typer.Option("--start", help="Known architectures to begin with: of the zoo, a run folder, a JSON file."),
    ] = None,
    screen: Annotated[
        str | None, typer.Option(help="Score many first, begin with the best: proxy:200, or proxy:200:20.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Architectures to evaluate. [default: 36]")] = None,
    time: Annotated[str | None, typer.Option(help="Time for the whole search, such as 10m.")] = None,
    trial_timeout: Annotated[str | None, typer.Option(help="Time per trial, such as 90s.")] = None,
    rungs: Annotated[
        str | None, typer.Option(help="Epochs at which only the best go on, such as 1,3,9.", show_default=False)
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Of which 1/eta go on at each rung. [default: 3]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ... [default: auto]")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch. [default: one per core, 1 for images up to 16x16]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Architectures evaluated at once, by Ray.", rich_help_panel="Ray")
    ] = None,
    cpus_per_trial: Annotated[
        float | None, typer.Option(help="[default: this machine's, shared out]", rich_help_panel="Ray")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="Such as 1, or 0.25 for four trials on one GPU.", rich_help_panel="Ray")
    ] = None,
    prepare_gpus: Annotated[
        float | None,
        typer.Option(help="Of the long job before the first trial. [default: as per trial]", rich_help_panel="Ray"),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A cluster's host:port, or auto to find it.", rich_help_panel="Ray")
    ] = None,
    wait: Annotated[
        str | None, typer.Option(help="For a cluster to grow until it holds a worker.", rich_help_panel="Ray")
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(help="YAML or JSON file: what workers need.", rich_help_panel="Ray")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="URL for a copy of the run folder, where machines share no disk.", rich_help_panel="Ray"),
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="local, ray or tune. [default: as needed]", rich_help_panel="Ray")
    ] = None,
    verbose: Annotated[
        bool | None, typer.Option("--verbose", help="Show Ray's own log.", rich_help_panel="Ray")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: a fresh one under runs/]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; flags override it.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Option of a plug-in, such as strategy.population=32.")
    ] = None,
) -> None:
    """Search for architectures; ends with the Pareto front and the command to take one home."""
    from nas.config import Config
    from nas.report.progress import watch
    from nas.session import start

    given: dict[str, Any] = {
        "space": space, "strategy": strategy, "evaluator": evaluator, "data": data, "objectives": objectives,
        "limits": tuple(limit) if limit else None, "screen": screen, "start": tuple(start_) if start_ else None,
        "trials": trials, "time": time, "trial_timeout": trial_timeout,
        "rungs": rungs, "eta": eta, "seed": seed, "device": device, "threads": threads, "workers": workers,
        "cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial, "prepare_gpus": prepare_gpus,
        "address": address, "wait": wait, "runtime_env": None if runtime_env is None else str(runtime_env),
        "executor": executor, "verbose": verbose, "out": None if out is None else str(out), "storage": storage,
    }  # fmt: skip
    settings = Config.load(config, given, set_ or ())
    watch(lambda on_trial, on_prepare: start(settings, on_trial=on_trial, on_prepare=on_prepare))


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="A run folder, or the URL of its copy.", show_default=False)],
    trials: Annotated[int | None, typer.Option(help="New total number of architectures.")] = None,
    time: Annotated[str | None, typer.Option(help="New total time, such as 1h.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for what is at the URL. [default: under runs/]")] = None,
) -> None:
    """Go on with an interrupted search, or extend a finished one."""
    from nas.config import parse_seconds
    from nas.report.progress import watch
    from nas.session import resume as go_on

    seconds = parse_seconds("time", time)
    more: dict[str, Any] = {"trials": trials, "time": seconds, "out": out}
    watch(lambda on_trial, on_prepare: go_on(run, **more, on_trial=on_trial, on_prepare=on_prepare))


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="runs, spaces, strategies, evaluators, proxies or zoo.")] = "runs",
    folder: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs there are, or what can be chosen from."""
    from nas.report import tables

    rows = tables.rows(what, folder)
    tables.print_json(rows) if json else tables.print_rows(what, rows)
