"""Commands about runs, strategies and spaces as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.common import Json, RunPath, app, at_least, picture, wrote


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of one task.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The page. [default: RUN/report.html, of several here]", show_default=False)
    ] = None,
) -> None:
    """Write one HTML page that says all of a run: front, architectures, decisions, errors; and its figures as PNG."""
    from nas.report.page import write_report

    for path in write_report(runs, out):
        print(f"wrote  {path}")


@app.command()
def dashboard(
    run: RunPath,
    host: Annotated[str, typer.Option(help="Who may connect: 0.0.0.0 is every machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of the page.")] = 8080,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write training curves for TensorBoard instead.")
    ] = False,
) -> None:
    """Open a run in optuna-dashboard, whatever its strategy; or write its training curves for TensorBoard."""
    from nas.errors import ConfigError
    from nas.report.dashboard import serve, write_events
    from nas.session import load

    if not 1 <= port <= 65535:
        raise ConfigError(f"--port: expected a number from 1 to 65535, got {port}")
    results = load(run)
    if tensorboard:
        folder = write_events(results, run / "tensorboard")
        print(f"wrote  {folder}\nnext   tensorboard --logdir {folder}")
        return
    print(f"run    {run}\nopen   http://{host}:{port}   Ctrl-C ends it", flush=True)
    serve(results, host=host, port=port)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False)],
    budgets: Annotated[
        str | None, typer.Option(help="Numbers of evaluations. [default: a quarter, half, all of the shortest run]")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("compare.png"),
    json: Json = False,
) -> None:
    """Compare runs of the same task: how far each came, by evaluations and by the clock."""
    from nas.bench.runs import Runs
    from nas.report import tables

    picture("--out", out)
    found = Runs(runs, budgets or ())
    found.save(out)
    tables.print_json(found.to_json()) if json else found.print()


@app.command()
def proxies(
    run: RunPath,
    proxies: Annotated[str, typer.Option(help="Such as nwot,synflow.")] = "all",
    networks: Annotated[int, typer.Option(help="Of the run's trained ones, drawn at random.")] = 200,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the proxies, such as proxy.batch=32.")
    ] = None,
    json: Json = False,
) -> None:
    """Judge proxies by a run's trained networks: do they rank better than counting FLOPs does?"""
    from nas.config import Config
    from nas.honesty import judged
    from nas.report import honesty, tables
    from nas.report.progress import bar
    from nas.session import load

    options = Config.load(None, {}, set_ or ()).option("proxy")
    at_least("networks", networks, 1)
    with bar("scoring", networks) as shown:
        found = judged(load(run), proxies=proxies, options=options, device=device, networks=networks, on_scored=shown)
    tables.print_json(found.to_json()) if json else honesty.print_honesty(found)


@app.command()
def bench(
    table: Annotated[
        list[str] | None,
        typer.Option(help="A shipped table or a CSV file; may be repeated. [default: nas-bench-macro]"),
    ] = None,
    space: Annotated[list[str] | None, typer.Option(help="Of the networks of each CSV file in turn.")] = None,
    strategies: Annotated[
        str | None, typer.Option(help="Such as rl,'rl(policy=lstm)'. [default: all that fit]", show_default=False)
    ] = None,
    peers: Annotated[str, typer.Option(help="all that are installed, none, or names such as optuna-tpe.")] = "all",
    objectives: Annotated[str, typer.Option(help="Columns of the table, or exact costs.")] = "accuracy,flops",
    budgets: Annotated[str, typer.Option(help="Numbers of evaluations.")] = "50,100,200",
    seeds: Annotated[int, typer.Option(help="How many.")] = 50,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    distinct: Annotated[bool, typer.Option("--distinct", help="Count a network once, however often proposed.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes. [default: one per core]", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="The same command goes on with what is there.")] = Path("runs/bench"),
    json: Json = False,
) -> None:
    """Compare strategies, ours and other libraries', on tables of measured results."""
    from nas.bench.comparison import Bench, compare
    from nas.report import tables

    given: dict[str, Any] = {"tables": tuple(table or ()), "workers": workers}
    comparison = compare(
        Bench(
            spaces=tuple(space or ()), strategies=strategies, peers=peers, objectives=objectives, budgets=budgets,
            seeds=seeds, first_seed=first_seed, distinct=distinct, out=out,
            **{name: value for name, value in given.items() if value},
        )
    )  # fmt: skip
    tables.print_json(comparison.to_json()) if json else comparison.print()


@app.command()
def profile_space(
    space: Annotated[str, typer.Argument(help="A space, or a run folder.", show_default=False)],
    other: Annotated[str | None, typer.Argument(help="Another, to be shown beside it.", show_default=False)] = None,
    samples: Annotated[int, typer.Option(help="Random networks of each.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    data: Annotated[str, typer.Option(help="Images that the networks are for.")] = "digits",
    proxies: Annotated[str | None, typer.Option(help="Such as nwot,synflow.", show_default=False)] = None,
    evaluator: Annotated[
        str | None, typer.Option(help="Whose metrics to take, such as diagnose.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="Of the evaluator: auto, cpu, cuda, ...")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Option of a plug-in, such as space.width=2.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the distributions here.")] = None,
    json: Json = False,
) -> None:
    """Show what a space holds: its size, and how the costs of random networks are distributed."""
    from nas.config import Config
    from nas.profile import profiles
    from nas.report import profile as report
    from nas.report import tables
    from nas.report.progress import bar

    picture("--plot", plot)
    sources = [space] if other is None else [space, other]
    if proxies is not None:
        evaluator = evaluator or "proxy"
        set_ = [*(set_ or ()), f'evaluator.proxies="{proxies}"']
    config = Config.load(None, {"data": data, "seed": seed, "device": device}, set_ or ())
    with bar("drawing", samples * len(sources)) as on_sample:
        found = profiles(sources, config, samples=samples, evaluator=evaluator, on_sample=on_sample)
    tables.print_json([profile.to_json() for profile in found]) if json else report.print_profiles(found)
    if plot is not None:
        wrote(report.save_profiles(found, plot), json)


@app.command("profile-device")
def profile_device(
    space: Annotated[str, typer.Option(help="Search space.")] = "mobile",
    data: Annotated[str | None, typer.Option(help="Images of whose size and classes. [default: digits]")] = None,
    images: Annotated[
        str | None, typer.Option("--input", help="Channels, height and width instead, such as 3x224x224.")
    ] = None,
    classes: Annotated[int, typer.Option(help="With --input.")] = 10,
    batch: Annotated[int, typer.Option(help="Images per run.")] = 1,
    threads: Annotated[int, typer.Option(help="Of the CPU.")] = 1,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Layout of images and weights.")] = False,
    runtime: Annotated[str, typer.Option(help="torch, or onnx (ONNX Runtime).")] = "torch",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    networks: Annotated[int, typer.Option(help="Whole ones measured, to check the table.")] = 20,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="The table; the same command goes on with it.")] = Path("device.json"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the space or the data, such as space.width=0.5.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure every block of a space on this device: a table that predicts latency, and how well it does."""
    from nas.config import Config
    from nas.device.profile import profile
    from nas.device.settings import Settings
    from nas.report import device as report
    from nas.report import tables
    from nas.session import space_for
    from nas.torch.runtime import pick_device

    config = Config.load(None, {"space": space, "data": data}, set_ or ())
    where = "cpu" if runtime == "onnx" and device == "auto" else str(pick_device(device))
    settings = Settings(batch, threads, channels_last, runtime, where)
    made = space_for(config, images, classes)
    options = config.option("space")
    table = report.watch(lambda hear: profile(made, options, settings, out, networks=networks, seed=seed, hear=hear))
    tables.print_json(report.to_json(table)) if json else report.print_table(table)
