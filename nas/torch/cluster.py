"""Data parallel training on a Ray cluster, by Ray Train: every worker is a process of the group."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

from nas.errors import ConfigError, RunError
from nas.executors.cluster import Cluster
from nas.torch.job import perform, read_curve
from nas.torch.parallel import Group
from nas.training import CURVE, RESULT, Job, OnEpoch, read_result

NOTES = "ray"
"""Folder of Ray Train's own files, within the job's."""

PAUSE = 0.2
"""Seconds between looks at the learning curve, which is how an epoch is heard of."""


def on_ray(job: Job, on_epoch: OnEpoch) -> dict[str, Any]:
    """Do a job with `job.workers` workers of the cluster at `job.address`, with a GPU each if `device` is cuda.

    All machines must see the job's folder and the images at the same path. Raises NasError.
    """
    gpus = 1.0 if job.device.startswith("cuda") else 0.0
    if job.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: {job.device!r} is for Ray to choose; expected auto, cpu or cuda")
    cluster = Cluster(workers=job.workers, gpus=gpus, address=job.address)
    cluster.open()
    try:
        failed: list[BaseException] = []
        training = Thread(target=_fit, args=(job, cluster, failed), daemon=True)
        training.start()
        heard = 0
        while training.is_alive():
            training.join(PAUSE)
            for row in read_curve(job.path / CURVE)[heard:]:
                heard += 1
                on_epoch(heard, row)
        if failed:
            reason = " ".join(str(failed[0]).split())
            raise RunError(f"the training on the cluster failed: {reason[-300:]}")
    finally:
        cluster.close()
        shutil.rmtree(job.path / NOTES, ignore_errors=True)
    if not (job.path / RESULT).exists():
        raise RunError(f"the cluster's machines do not write to {job.path}: choose an --out that all of them see")
    return read_result(job.path)


def _fit(job: Job, cluster: Cluster, failed: list[BaseException]) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    try:
        scaling = ScalingConfig(
            num_workers=job.workers,
            use_gpu=cluster.gpus > 0,
            resources_per_worker={"CPU": cluster.cpus, **({"GPU": cluster.gpus} if cluster.gpus else {})},
        )
        config = {"job": job.to_json(), "folder": job.folder, "threads": cluster.threads}
        trainer = TorchTrainer(
            _work,
            train_loop_config=config,
            scaling_config=scaling,
            run_config=RunConfig(name=NOTES, storage_path=str(job.path)),
            torch_config=TorchConfig(backend="nccl" if cluster.gpus else "gloo"),
        )
        trainer.fit()
    except BaseException as error:
        failed.append(error)


def _work(config: Mapping[str, Any]) -> None:
    """What each worker does."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    job = replace(Job.of(config["job"], Path(config["folder"])), device=str(get_device()), threads=config["threads"])
    perform(job, group=Group(context.get_world_rank(), context.get_world_size()))
