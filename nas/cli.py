"""The command line. Imports only typer at the top: `nas --help` must answer at once."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nas.architecture import Architecture

app = typer.Typer(
    help="Neural architecture search for PyTorch.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

COLLECTIONS = (20_000, 10, 10)
"""Thresholds of the garbage collector: a search keeps much and leaves next to no cycles, and looking through all of it
as often as Python does takes a sixth of the driver's time (`benchmarks/scale.py`)."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]


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


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(help="A run folder, a zoo name, or an architecture's JSON file.", show_default=False)
    ],
    all_: Annotated[bool, typer.Option("--all", help="All trials of a run, not only the front.")] = False,
    arch: Annotated[
        str | None, typer.Option(help="Of a run folder: best, best:METRIC, or a trial's number.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Print the Pareto front of a run, or the blocks of one architecture."""
    from nas.report import tables
    from nas.session import load

    if arch is not None or not _is_run(what):
        found = _architecture(what, arch or "best")
        tables.print_json(tables.inspect_json(found)) if json else tables.print_architecture(found)
        return
    results = load(what)
    tables.print_json(tables.run_json(results, everything=all_)) if json else tables.print_run(results, everything=all_)


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


@app.command()
def inspect(
    architecture: Annotated[
        str, typer.Argument(help="A zoo name, a run folder, or an architecture's JSON file.", show_default=False)
    ],
    arch: Annotated[str, typer.Option(help="Of a run folder: best, or a trial's number.")] = "best",
    json: Json = False,
) -> None:
    """Print an architecture's blocks, shapes, parameters and FLOPs."""
    from nas.report import tables

    found = _architecture(architecture, arch)
    tables.print_json(tables.inspect_json(found)) if json else tables.print_architecture(found)


@app.command()
def export(
    what: Annotated[
        str, typer.Argument(help="A run folder, a zoo name, or an architecture's JSON file.", show_default=False)
    ],
    arch: Annotated[str, typer.Option(help="Of a run folder: best, best:METRIC, or a trial's number.")] = "best",
    format_: Annotated[
        str, typer.Option("--format", help="Some of source, state, onnx, program, json, such as source,onnx.")
    ] = "source",
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="With those that the run kept.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. [default: RUN/export, else this one]", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="File name. [default: space and trial number]")] = None,
    json: Json = False,
) -> None:
    """Write an architecture as files that need nothing of this package, and check that they compute the same."""
    from nas.export import export_run
    from nas.report import tables

    formats = [each.strip() for each in format_.split(",")]
    if _is_run(what):
        exported = export_run(Path(what), arch, out, name, formats, weights=weights)
    else:
        from nas.export.files import export as write

        found = _architecture(what, arch)
        exported = write(found, None, out or Path(), name or found.name.replace("-", "_"), (), formats)
    tables.print_json([each.to_json() for each in exported]) if json else tables.print_export(exported)


@app.command()
def train(
    source: Annotated[
        str, typer.Argument(help="A run folder, a zoo name, or an architecture's JSON file.", show_default=False)
    ],
    arch: Annotated[
        str, typer.Option(help="Of a run: best, best:METRIC, a trial's number, front, front:K, a zoo name; or several.")
    ] = "best",
    data: Annotated[str | None, typer.Option(help="[default: the run's, else digits]", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="[default: 30]", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, order and augmentation.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many trainings of each, from --seed on.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 for what suits the images.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Where the folders go. [default: RUN/train, or runs/train]", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Such as train.mixup=0.2, train.drop_path=0.1, data.limit=5000.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Weights to start from (safetensors).", rich_help_panel="Transfer")
    ] = None,
    freeze: Annotated[
        str,
        typer.Option(help="none, all, gradual, gradual:EPOCHS, or stages: stem,stage1.", rich_help_panel="Transfer"),
    ] = "none",
    old_rate: Annotated[
        float, typer.Option(help="Of the learning rate, for layers that came with --init.", rich_help_panel="Transfer")
    ] = 1.0,
    teacher: Annotated[
        str | None,
        typer.Option(help="A run, a folder of nas train, a .pt or .pt2 file.", rich_help_panel="Distillation"),
    ] = None,
    teacher_weight: Annotated[
        float, typer.Option(help="Share of the loss that is the teacher's.", rich_help_panel="Distillation")
    ] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of both networks.", rich_help_panel="Distillation")] = 4.0,
    workers: Annotated[
        int,
        typer.Option(help="Processes that share each batch: GPUs of this machine.", rich_help_panel="Data parallel"),
    ] = 1,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster: its machines do it.", rich_help_panel="Data parallel")
    ] = None,
    json: Json = False,
) -> None:
    """Train what was found properly, and test it. The same command goes on where it was interrupted."""
    from nas.report import tables, training
    from nas.training import CURVE, jobs_of, recipe_of, run
    from nas.training import source as chosen

    recipe, options = recipe_of(epochs, set_ or ())
    for name, value, least in (
        ("seeds", seeds, 1),
        ("seed", seed, 0),
        ("workers", workers, 1),
        ("threads", threads, 0),
    ):
        _at_least(name, value, least)
    found = chosen(source, arch, data=data, data_options=options, out=out)
    jobs = jobs_of(
        found, recipe, range(seed, seed + seeds), init=_absolute(init), freeze=freeze, old_rate=old_rate,
        teacher=_absolute(teacher), teacher_weight=teacher_weight, temperature=temperature, device=device,
        threads=threads, workers=workers, address=address,
    )  # fmt: skip
    watch = training.Watch(jobs)
    results = []
    try:
        with watch.showing():
            for job in jobs:
                watch.begin(job)
                results.append(run(job, watch.on_epoch, watch.on_look))
                watch.end()
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last epoch", file=sys.stderr)
        raise
    for job in jobs:
        training.save_curve(job.path / CURVE, job.name, job.path / "curve.png")
    tables.print_json(training.summary(results)) if json else training.print_results(results, found.data.describe())
    for job in jobs:
        _wrote(job.path, json)


def _at_least(name: str, value: int, least: int) -> None:
    from nas.errors import ConfigError

    if value < least:
        raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value}")


def _absolute(path: str | Path | None) -> str | None:
    """So that the same training is recognised from anywhere, and other processes find it."""
    return None if path is None else str(Path(path).resolve())


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
    with bar("scoring", networks) as shown:
        found = judged(load(run), proxies=proxies, options=options, device=device, networks=networks, on_scored=shown)
    tables.print_json(found.to_json()) if json else honesty.print_honesty(found)


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
    from nas.report.dashboard import serve, write_events
    from nas.session import load

    results = load(run)
    if tensorboard:
        folder = write_events(results, run / "tensorboard")
        print(f"wrote  {folder}\nnext   tensorboard --logdir {folder}")
        return
    print(f"run    {run}\nopen   http://{host}:{port}   Ctrl-C ends it", flush=True)
    serve(results, host=host, port=port)


@app.command()
def diagnose(
    architecture: Annotated[
        str, typer.Argument(help="A zoo name, a run folder, or an architecture's JSON file.", show_default=False)
    ],
    arch: Annotated[str, typer.Option(help="Of a run folder: best, or a trial's number.")] = "best",
    data: Annotated[
        str | None,
        typer.Option(help="Images to look at it with. [default: the run's, else digits]", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(help="Of training, before the second look; 0 looks once.")] = 50,
    batch: Annotated[int, typer.Option(help="Images per step, and looked at.")] = 32,
    size: Annotated[
        int | None, typer.Option(help="Shorter side of the input. [default: the network's own]", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    plot: Annotated[Path | None, typer.Option(help="Write a picture here.")] = None,
    json: Json = False,
) -> None:
    """Look inside a network: vanishing or exploding gradients, dead units, what it sees of the image."""
    from nas.report import diagnosis, tables
    from nas.report.progress import bar
    from nas.session import load, threads_for
    from nas.torch.data import load as load_data
    from nas.torch.diagnose import diagnose as look
    from nas.torch.runtime import pick_device, prepare

    found = _architecture(architecture, arch)
    if size is not None:
        found = found.scale(resolution=size)
    if data is None and Path(architecture).is_dir():
        config = load(architecture).config
        images = load_data(config.data, **config.option("data"))
    else:
        images = load_data(data or "digits")
    chosen = pick_device(device)
    prepare(chosen, threads_for(found.input_shape))
    with bar("training", steps) as on_step:
        seen = look(
            found, images, steps=steps, batch=batch, seed=seed, device=chosen,
            on_step=lambda done, loss: on_step(done, f"loss {loss:.3g}"),
        )  # fmt: skip
    tables.print_json(diagnosis.diagnosis_json(seen)) if json else diagnosis.print_diagnosis(seen)
    if plot is not None:
        _wrote(diagnosis.save_diagnosis(seen, plot), json)


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

    sources = [space] if other is None else [space, other]
    if proxies is not None:
        evaluator = evaluator or "proxy"
        set_ = [*(set_ or ()), f'evaluator.proxies="{proxies}"']
    config = Config.load(None, {"data": data, "seed": seed, "device": device}, set_ or ())
    with bar("drawing", samples * len(sources)) as on_sample:
        found = profiles(sources, config, samples=samples, evaluator=evaluator, on_sample=on_sample)
    tables.print_json([profile.to_json() for profile in found]) if json else report.print_profiles(found)
    if plot is not None:
        _wrote(report.save_profiles(found, plot), json)


def _wrote(path: Path, json: bool) -> None:
    print(f"wrote  {path}", file=sys.stderr if json else sys.stdout)


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


def _is_run(source: str) -> bool:
    """Whether a run folder is meant: it is one, or it is no file and no name in the zoo, nor like one."""
    from difflib import get_close_matches

    from nas.plugins import reference_names

    path = Path(source)
    return path.is_dir() or (path.suffix != ".json" and not get_close_matches(source, reference_names(), cutoff=0.8))


def _architecture(source: str, which: str) -> Architecture:
    """From a zoo name, a run folder or a JSON file. Raises NasError."""
    import json

    from nas.architecture import Architecture
    from nas.errors import SpaceError
    from nas.plugins import reference
    from nas.session import load

    path = Path(source)
    if path.is_dir():
        return load(path).select(which).architecture
    if path.suffix == ".json":
        try:
            return Architecture.from_json(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise SpaceError(f"architecture file {path} cannot be read: {error}") from None
    return reference(source)


def main() -> None:
    """Entry point: errors that a user can mend are one line and exit code 2."""
    from nas.errors import NasError

    # Torch's threads wait for work by spinning; where another process has the other core, each wait then lasts until
    # the scheduler steps in, and two threads train 50 times slower than one. libgomp reads this when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    gc.set_threshold(*COLLECTIONS)
    try:
        app()
    except NasError as error:
        print(f"nas: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that cannot be written: never this program's fault
        print(f"nas: {error.filename or 'operating system'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("nas: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
