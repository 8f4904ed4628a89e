"""One process's part of a full training: data, network, the loop, and at the end the look at the test images."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from nas.architecture import Architecture
from nas.errors import ConfigError, NasError
from nas.export.weights import save
from nas.ops import Shape
from nas.store import write_atomically
from nas.torch.data import Split
from nas.torch.data import load as load_data
from nas.torch.distill import load_teacher
from nas.torch.loader import Augment, Batches
from nas.torch.parallel import ALONE, Group, joined, synchronised
from nas.torch.regularise import module_to_train
from nas.torch.runtime import pick_device, prepare
from nas.torch.train import evaluate, fit
from nas.torch.transfer import Layers, take_over
from nas.training import CHECKPOINT, CURVE, RESULT, WEIGHTS, Job, OnEpoch, OnLook, threads_of

COLUMNS = ("epoch", "lr", "train_loss", "loss", "accuracy", "seconds")
LATENCY_RUNS = 30


def perform(
    job: Job, *, rank: int = 0, meeting: str | None = None, group: Group | None = None,
    on_epoch: OnEpoch | None = None, on_look: OnLook | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Do a job, or this process's share of it, and return what is in `result.json`.

    Arguments:
        rank, meeting: which of the job's processes this is, and where they meet; None where there is one only.
        group: the processes, where somebody else has brought them together.

    Raises NasError.
    """
    architecture = Architecture.from_json(job.architecture)
    device = pick_device(job.device)
    if meeting is not None and job.device in ("auto", "cuda") and device.type == "cuda":
        if torch.cuda.device_count() < job.workers:  # before the others are waited for
            raise ConfigError(f"workers: {job.workers} need a GPU each, there are {torch.cuda.device_count()}")
        device = torch.device("cuda", rank)
    prepare(device, threads_of(job, architecture.input_shape))
    joining = nullcontext(group or ALONE) if meeting is None else joined(rank, job.workers, meeting, device)
    with joining as processes:
        return _perform(job, architecture, device, processes, on_epoch, on_look)


def _perform(
    job: Job, architecture: Architecture, device: torch.device, group: Group, on_epoch: OnEpoch | None,
    on_look: OnLook | None,
) -> dict[str, Any]:  # fmt: skip
    recipe, data = job.recipe, load_data(job.data, **job.data_options)
    shape = channels, height, width = architecture.input_shape

    def batches(split: Split, **options: Any) -> Batches:
        return Batches(
            split, mean=data.mean, std=data.std, device=device, resolution=(height, width),
            channels_last=recipe.channels_last, classes=data.classes, **options,
        )  # fmt: skip

    module = module_to_train(architecture, seed=job.seed, dropout=recipe.dropout, drop_path=recipe.drop_path)
    old = take_over(module, Path(job.init)) if job.init else frozenset[str]()
    layers = None
    if old or job.freeze != "none":
        layers = Layers(module, old, job.freeze, job.old_rate)
    teacher = None
    if job.teacher is not None:
        teacher = load_teacher(
            job.teacher, (channels, height, width), data.classes, device=device, weight=job.teacher_weight,
            temperature=job.temperature,
        )  # fmt: skip
    shard = group.rank, group.world
    augment = Augment.of(recipe, data.input_shape)
    curve = _Curve(job.path / CURVE, job, on_epoch, goes_on=(job.path / CHECKPOINT).exists())
    metrics = fit(
        synchronised(module, device) if group.world > 1 else module,
        batches(data.train, batch=recipe.batch, augment=augment, seed=job.seed, shard=shard),
        batches(data.validation, batch=max(recipe.batch, 256), shard=shard),
        recipe, seed=job.seed, device=device, checkpoint=job.path / CHECKPOINT, layers=layers, teacher=teacher,
        group=group, every_epoch=True, report=curve.add if group.rank == 0 else None, on_look=on_look,
    )  # fmt: skip
    if group.rank:
        return {}
    used = architecture.module(seed=job.seed)
    used.load_state_dict({name: value.cpu() for name, value in module.state_dict().items()})
    used = used.to(device)
    tested = evaluate(used, batches(data.test, batch=256), device=device, precision=recipe.precision)
    save(used, job.path / WEIGHTS, key=architecture.key())
    costs = architecture.metrics()
    result = {
        "name": job.name, "seed": job.seed, "epochs": recipe.epochs, "key": architecture.key(),
        "validation": {name: metrics[name] for name in ("accuracy", "loss")}, "test": tested,
        "test_images": len(data.test), "train_loss": metrics["train_loss"], "params": costs["params"],
        "flops": costs["flops"], "latency_ms": 1000 * latency(used, shape, device),
        "latency_of": f"one image, {_about(device)}", "seconds": curve.seconds, "searched": dict(job.searched),
        "weights": "exponential moving average" if recipe.ema else "last epoch",
        "task": {"mean": list(data.mean), "std": list(data.std), "class_names": list(data.class_names)},
    }  # fmt: skip
    write_atomically(job.path / RESULT, json.dumps(result, indent=1) + "\n")
    return result


class _Curve:
    """The learning curve as a CSV file, written anew after every epoch.

    Attributes:
        seconds: of training so far, those before an interruption included.
    """

    def __init__(self, path: Path, job: Job, on_epoch: OnEpoch | None, *, goes_on: bool) -> None:
        self._path, self._job, self._on_epoch = path, job, on_epoch
        self._rows: list[dict[str, float]] = []
        self._known = {row["epoch"]: row["seconds"] for row in read_curve(path)} if goes_on else {}
        self._since, self.seconds = time.monotonic(), 0.0

    def add(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """One more epoch; one that the checkpoint remembers keeps the time it took."""
        now = time.monotonic()
        remembered = self._known.get(epoch)
        self.seconds = self.seconds + now - self._since if remembered is None else remembered
        self._since = now
        rate = self._job.recipe.lr_at(epoch)
        self._rows.append({"epoch": epoch, "lr": rate, **metrics, "seconds": self.seconds})
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self._path, text.getvalue())
        if self._on_epoch:
            self._on_epoch(int(epoch), metrics)


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve; none where there is no file, or it is damaged."""
    try:
        lines = path.read_text().splitlines()
        return [{name: float(row[name]) for name in COLUMNS} for row in csv.DictReader(lines)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


@torch.no_grad()
def latency(module: nn.Module, shape: Shape, device: torch.device) -> float:
    """Seconds for one image: the median of some runs. On a GPU by its events (not run on one yet)."""
    x = torch.zeros(1, *shape, device=device)
    module.eval()
    for _ in range(3):
        module(x)
    return median(_timed(module, x) for _ in range(LATENCY_RUNS))


def _timed(module: nn.Module, x: torch.Tensor) -> float:
    if x.device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        module(x)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
    started = time.perf_counter()
    module(x)
    return time.perf_counter() - started


def _about(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def main() -> int:
    """`python -m nas.torch.job FOLDER MEETING RANK`: a process beside the first one."""
    folder, meeting, rank = sys.argv[1:]
    try:
        perform(Job.read(Path(folder)), rank=int(rank), meeting=meeting)
    except NasError as error:
        print(f"nas: worker {rank}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
