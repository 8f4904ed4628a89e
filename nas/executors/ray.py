"""A pool of Ray actors: many workers, on many GPUs and nodes, none of which may be relied on."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from nas.errors import NasError, PluginError, RunError, Stop
from nas.evaluator import Evaluator, Task
from nas.executors.base import Executor, Hear, Job, OnReport, Outcome
from nas.executors.cluster import Cluster, Place
from nas.executors.worker import MAIL, Broken, Done, Event, Ready, Reported, Worker, package_version
from nas.trial import Result

LONG = 10.0
"""Mean evaluation time (s) from which nothing is queued ahead: the pause between two is then less than a thousandth,
and what waits in a queue was proposed knowing less."""

AHEAD = 0.05
"""Work (s) that is queued ahead of a worker, so that it is never idle while the driver is busy; at least one job."""

MOST = 64
"""Jobs that are queued ahead of a worker, at most."""

GRACE = 5.0
"""Seconds past a trial's time limit in which it may end by itself, between two batches, and say how far it came."""

LOSSES = 10
"""How often a job is moved on because its worker was lost by no fault of its own, before that counts as one."""

PAUSE = 0.2
"""Seconds for which Ray is waited for at most: only then can Ctrl-C be heard, and twice is not to be taken for once."""

FAILURES = 3
"""How often in a row a worker may fail to open before its place is given up."""


@dataclass(eq=False)
class _Member:
    """A worker as the driver sees it."""

    handle: Any
    call: Any
    """The `events` call that is outstanding."""
    failures: int = 0
    jobs: deque[Job] = field(default_factory=deque)
    """In the order in which they are evaluated; the first is running."""
    since: float = 0.0
    """When the first one began."""
    name: str = ""
    """Host and process; empty until the worker is ready."""
    node: str = ""


class Pool(Executor):
    """Runs jobs on the workers of a Ray cluster, asynchronously.

    The search depends on no single worker. One that dies is replaced; the job that it was at comes back as an outcome
    to be retried, and what was queued behind it is sent elsewhere, each alone on a worker: a job that kills its worker
    takes nobody with it. One whose job is past its time limit is killed. Workers that have no place yet wait for the
    cluster to grow, and join then.

    Args:
        cluster: where; opened here and closed by `close`.
        evaluator, task: sent once per node, through Ray's object store; the images are read there without a copy.
        device, threads: for `Evaluator.open`; `threads` 0 for as many as a worker has CPUs.
        on_report: called for each report of a running job.
        storage: URL through which the files of trials travel; None if all machines see the run folder.
    """

    def __init__(
        self, cluster: Cluster, evaluator: Evaluator, task: Task, *, device: str, threads: int, on_report: OnReport,
        storage: str | None = None,
    ) -> None:  # fmt: skip
        self._cluster, self._evaluator, self._task, self._on_report = cluster, evaluator, task, on_report
        self._device, self._threads, self._storage = device, threads or cluster.threads, storage
        self._members: list[_Member] = []
        self._waiting: deque[Job] = deque()
        self._alone: set[int] = set()  # jobs that were with a worker when it died
        self._losses: Counter[int] = Counter()
        self._mean: float | None = None  # seconds per evaluation, a moving average
        cluster.open()

    # -- the contract ------------------------------------------------------------------------------------------

    def run_once(
        self, function: Callable[..., Any], resources: Mapping[str, float], hear: Hear | None = None
    ) -> Future[Any]:
        return self._cluster.run_once(function, resources, hear)

    def start(self) -> None:
        import ray

        self._parts = [ray.put(self._evaluator), ray.put(self._task)]
        for _ in range(self._cluster.workers):
            self._hire()
        while not self._ready():
            self._collect(1.0)

    @property
    def about(self) -> str:
        return self._cluster.about

    @property
    def capacity(self) -> int:
        return self._depth() * max(1, len(self._ready()))

    def submit(self, job: Job) -> None:
        self._waiting.append(job)
        if any(not member.jobs for member in self._ready()):
            self._dispatch()

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self._dispatch()
            capacity = self.capacity
            left = PAUSE if end is None else max(0.0, min(PAUSE, end - time.monotonic()))
            outcomes = self._collect(left)
            if outcomes or self.capacity > capacity or (end is not None and time.monotonic() >= end):
                return outcomes

    def cancel(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
            return
        member = next(m for m in self._members if job in m.jobs)
        if member.jobs[0] is job:
            self._dismiss(member)
            self._replace(member, skip=job)
        else:
            member.handle.drop.remote(job.number)
            member.jobs.remove(job)

    def close(self, now: bool = False) -> None:
        for member in self._members:
            self._dismiss(member)
        self._members.clear()
        self._waiting.clear()
        self._cluster.close()

    # -- workers -----------------------------------------------------------------------------------------------

    def _hire(self, failures: int = 0) -> None:
        import ray

        options: dict[str, Any] = {**self._cluster.resources, "max_restarts": 0, "max_task_retries": 0}
        remote: Any = ray.remote  # its types do not know this option
        actor = remote(concurrency_groups={MAIL: 1})(Worker).options(**options)
        how = {"device": self._device, "threads": self._threads, "storage": self._storage}
        handle = actor.remote(self._parts, place=Place.here(self._cluster.gpus), **how)
        self._members.append(_Member(handle, handle.events.remote(), failures))

    def _dismiss(self, member: _Member) -> None:
        import ray

        ray.kill(member.handle)

    def _replace(self, member: _Member, *, skip: Job | None = None, failures: int = 0) -> None:
        """Hire another worker in the place of a dead one, and send its jobs elsewhere, but for one."""
        self._members.remove(member)
        for job in reversed(member.jobs):
            if job is not skip:
                self._alone.add(job.number)
                self._waiting.appendleft(job)
        if failures < FAILURES:
            self._hire(failures)

    def _ready(self) -> list[_Member]:
        return [member for member in self._members if member.name]

    def _depth(self) -> int:
        """Jobs per worker: the running one, and those queued ahead."""
        if self._mean is None or self._mean > LONG:
            return 1
        return 1 + min(MOST, max(1, int(AHEAD / max(self._mean, 1e-6))))

    def _dispatch(self) -> None:
        """Give waiting jobs to the workers that have least to do; one that may kill its worker gets one to itself."""
        sent: dict[_Member, list[Job]] = {}
        depth = self._depth()
        for _ in range(len(self._waiting)):
            job = self._waiting.popleft()
            alone = job.number in self._alone
            able = [m for m in self._ready() if not (m.jobs and (alone or m.jobs[0].number in self._alone))]
            member = min(able, key=lambda m: len(m.jobs), default=None)
            if member is None or len(member.jobs) >= depth:
                self._waiting.append(job)
                continue
            if not member.jobs:
                member.since = time.monotonic()
            member.jobs.append(job)
            sent.setdefault(member, []).append(job)
        for member, jobs in sent.items():
            member.handle.take.remote(jobs)

    # -- what comes back ---------------------------------------------------------------------------------------

    def _collect(self, timeout: float) -> list[Outcome]:
        """Outcomes that arrive within `timeout` seconds; returns as soon as anything has happened."""
        import ray

        calls = {member.call: member for member in self._members}
        done, _ = ray.wait(list(calls), timeout=max(0.0, min(timeout, self._next_limit())))
        if done:
            done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        outcomes: list[Outcome] = []
        for call in done:
            member = calls[call]
            try:
                events: list[Event] = ray.get(call)
            except ray.exceptions.RayError as error:
                outcomes += self._lost(member, error)
                continue
            member.call = member.handle.events.remote()
            for event in events:
                outcomes += self._happened(member, event)
        return outcomes + self._overdue()

    def _happened(self, member: _Member, event: Event) -> Iterable[Outcome]:
        match event:
            case Ready():
                self._check(event)
                member.name, member.node, member.failures = event.name, event.node, 0
            case Reported():
                self._reported(member, event)
            case Done():
                job = member.jobs.popleft()
                assert job.number == event.number
                member.since = time.monotonic()
                self._alone.discard(job.number)
                seconds = event.result.seconds
                self._mean = seconds if self._mean is None else 0.9 * self._mean + 0.1 * seconds
                return [Outcome(job, event.result)]
            case Broken():
                return self._broken(member, event.error)
        return []

    def _check(self, ready: Ready) -> None:
        ours = package_version()
        if ready.version != ours:
            raise PluginError(
                f"worker {ready.name} has nas {ready.version}, this machine {ours}: install one version everywhere"
            )

    def _reported(self, member: _Member, event: Reported) -> None:
        job = member.jobs[0]
        try:
            self._on_report(job, event.epoch, event.metrics)
        except Stop:
            if event.waits:
                member.handle.answer.remote(False)
            return
        if event.waits:
            member.handle.answer.remote(True)

    def _broken(self, member: _Member, error: BaseException) -> list[Outcome]:
        """The worker says itself that it cannot go on."""
        self._dismiss(member)
        if member.name:  # in mid job: the run folder cannot be written, from here neither
            raise error
        self._replace(member, failures=member.failures + 1)
        if not self._members:
            raise (
                error if isinstance(error, NasError) else RunError(f"no worker opens: {type(error).__name__}: {error}")
            )
        return []

    def _lost(self, member: _Member, error: Exception) -> list[Outcome]:
        """The process is gone, and with it whatever it was at."""
        import ray

        self._dismiss(member)  # it may be alive behind a broken connection, and must not go on
        if not member.name:
            if isinstance(error, ray.exceptions.RuntimeEnvSetupError | ray.exceptions.ActorUnschedulableError):
                raise RunError(f"Ray cannot start a worker: {_one_line(error)}") from error
            self._replace(member, failures=member.failures + 1)
            if not self._members:
                raise RunError(f"no worker starts: {_one_line(error)}") from error
            return []
        head = member.jobs[0] if member.jobs else None
        if head is None:
            self._replace(member)
            return []
        reason, to_blame = _cause(error, member.name.rpartition(":")[2])
        if (self._node_lost(member) or not to_blame) and self._losses[head.number] < LOSSES:
            self._losses[head.number] += 1
            self._replace(member)
            return []
        self._alone.add(head.number)
        self._replace(member, skip=head)
        lost = Result("failed", error=f"worker {member.name} died: {reason}", worker=member.name)
        return [Outcome(head, lost, retry=True)]

    def _node_lost(self, member: _Member) -> bool:
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return not any(node["NodeID"] == member.node and node["Alive"] for node in nodes)

    # -- time limits -------------------------------------------------------------------------------------------

    def _next_limit(self) -> float:
        """Seconds until a running job is overdue."""
        limits = [m.since + m.jobs[0].timeout + GRACE for m in self._members if m.jobs and m.jobs[0].timeout]
        return min(limits, default=float("inf")) - time.monotonic()

    def _overdue(self) -> list[Outcome]:
        """Kill the workers that hang in a job past its time limit."""
        outcomes = []
        now = time.monotonic()
        for member in self._ready():
            job = member.jobs[0] if member.jobs else None
            if job is None or job.timeout is None or now < member.since + job.timeout + GRACE:
                continue
            self._dismiss(member)
            self._replace(member, skip=job)
            error = f"hung: did not end by itself {GRACE:g} s after the time limit of {job.timeout:g} s"
            outcomes.append(Outcome(job, Result("timed_out", {}, None, now - member.since, member.name, error)))
        return outcomes


def _cause(error: Exception, pid: str) -> tuple[str, bool]:
    """Why a process died, and whether its job may be to blame.

    Where memory runs out Ray kills whom it likes, and says how much everybody had: only the largest is to blame.
    """
    import ray

    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "its machine cannot be reached", False
    text = str(error)
    if "running low on memory" not in text:
        return "the process was killed, or crashed in native code", True
    used = {found: float(size) for found, size in re.findall(r"pid=(\d+), actual memory used=([\d.]+)GB", text)}
    return "its machine ran out of memory", max(used, key=lambda found: used[found], default=pid) == pid


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
