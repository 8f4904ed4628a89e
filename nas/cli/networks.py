"""Commands about one network, or the networks of a run: look, train, take home."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.common import Json, Network, absolute, app, architecture_of, at_least, is_run, picture, wrote


@app.command()
def show(
    what: Network,
    all_: Annotated[bool, typer.Option("--all", help="All trials of a run, not only the front.")] = False,
    arch: Annotated[
        str | None, typer.Option(help="Of a run folder: best, best:METRIC, or a trial's number.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Print the Pareto front of a run, or the blocks of one architecture."""
    from nas.report import tables
    from nas.session import load

    if arch is not None or not is_run(what):
        found = architecture_of(what, arch or "best")
        tables.print_json(tables.inspect_json(found)) if json else tables.print_architecture(found)
        return
    results = load(what)
    tables.print_json(tables.run_json(results, everything=all_)) if json else tables.print_run(results, everything=all_)


@app.command()
def inspect(
    architecture: Network,
    arch: Annotated[str, typer.Option(help="Of a run folder: best, or a trial's number.")] = "best",
    json: Json = False,
) -> None:
    """Print an architecture's blocks, shapes, parameters and FLOPs."""
    from nas.report import tables

    found = architecture_of(architecture, arch)
    tables.print_json(tables.inspect_json(found)) if json else tables.print_architecture(found)


@app.command()
def diagnose(
    architecture: Network,
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
    from nas.training import Job, is_training

    at_least("seed", seed, 0)
    picture("--plot", plot)
    found = architecture_of(architecture, arch)
    if size is not None:
        found = found.scale(resolution=size)
    folder = Path(architecture)
    if data is None and is_training(folder):
        job = Job.read(folder)
        images = load_data(job.data, **job.data_options)
    elif data is None and folder.is_dir():
        config = load(folder).config
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
        wrote(diagnosis.save_diagnosis(seen, plot), json)


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
    from nas.errors import ConfigError, EvaluationError
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
        at_least(name, value, least)
    if init is None and old_rate != 1:
        raise ConfigError("--old-rate is of layers that came with --init: name a file of weights, or leave it out")
    if teacher is None and (teacher_weight, temperature) != (0.5, 4.0):
        raise ConfigError("--teacher-weight and --temperature are of a teacher: name one with --teacher")
    found = chosen(source, arch, data=data, data_options=options, out=out)
    jobs = jobs_of(
        found, recipe, range(seed, seed + seeds), init=absolute(init), freeze=freeze, old_rate=old_rate,
        teacher=absolute(teacher), teacher_weight=teacher_weight, temperature=temperature, device=device,
        threads=threads, workers=workers, address=address,
    )  # fmt: skip
    watch = training.Watch(jobs)
    results, failures, done = [], [], []
    try:
        with watch.showing():
            for job in jobs:
                watch.begin(job)
                try:
                    results.append(run(job, watch.on_epoch, watch.on_look))
                    done.append(job)
                except EvaluationError as error:  # the others may end well
                    failures.append(f"{job.path}: {error}")
                watch.end()
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last epoch", file=sys.stderr)
        raise
    for job in done:
        training.save_curve(job.path / CURVE, job.name, job.path / "curve.png")
    if done:
        tables.print_json(training.summary(results)) if json else training.print_results(results, found.data.describe())
    for job in done:
        wrote(job.path, json)
    if failures:
        raise EvaluationError("; ".join(failures))


@app.command()
def export(
    what: Network,
    arch: Annotated[str, typer.Option(help="Of a run folder: best, best:METRIC, or a trial's number.")] = "best",
    format_: Annotated[
        str, typer.Option("--format", help="Some of source, state, onnx, program, json, such as source,onnx.")
    ] = "source",
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="With those that were trained.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write to. [default: export in the given one, else this one]", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(help="File name. [default: space and trial number]")] = None,
    json: Json = False,
) -> None:
    """Write an architecture as files that need nothing of this package, and check that they compute the same."""
    from nas.errors import ConfigError
    from nas.export import export_run, export_training
    from nas.report import tables
    from nas.training import is_training

    formats = [each.strip() for each in format_.split(",")]
    if is_training(Path(what)):
        if arch != "best":
            raise ConfigError(f"--arch {arch}: {what} is one training, which has one architecture; leave it out")
        exported = export_training(Path(what), out, name, formats, weights=weights)
    elif is_run(what):
        exported = export_run(Path(what), arch, out, name, formats, weights=weights)
    else:
        from nas.export.files import export as write

        found = architecture_of(what, arch)
        exported = write(found, None, out or Path(), name or found.name.replace("-", "_"), (), formats)
    tables.print_json([each.to_json() for each in exported]) if json else tables.print_export(exported)
