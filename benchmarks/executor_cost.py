"""What metrics cost the executor, to a tenth of a microsecond: the same attempts with them and without, in turn, in one process.

On a shared machine this tells more than metrics_cost.py, whose pairs of whole runs differ by more than what is looked for.

    .venv/bin/python benchmarks/executor_cost.py
"""

from __future__ import annotations

import asyncio
import statistics
from time import monotonic, process_time
from typing import Any, cast

from metrics_cost import silence

from howdah.executor import Executor
from howdah.job import Job  # noqa: TC001  # handlers are read at run time
from howdah.metrics import Metrics
from howdah.registry import Registry, handler, registry
from howdah.store import job_of

ROUNDS, JOBS = 60, 5000
QUEUE = KIND = "bench"


@handler(KIND, queue=QUEUE)
async def nothing(_job: Job[Any]) -> None:
    """Do nothing."""


class Off(Metrics):
    """Collectors that take what they are given and do nothing with it."""


silence(Off)


async def main() -> None:
    """Run the rounds and print microseconds of CPU for each job."""
    executors = {kind: make(kind) for kind in (Metrics, Off)}
    spent: dict[type[Metrics], list[float]] = {Metrics: [], Off: []}
    for number in range(ROUNDS):
        for kind in (Metrics, Off) if number % 2 else (Off, Metrics):
            metrics, executor = executors[kind]
            jobs = [make_job(n) for n in range(JOBS)]
            began = process_time()
            for job in jobs:
                await executor.execute(job)
            metrics.fold()
            spent[kind].append((process_time() - began) / JOBS * 1e6)
    for kind, name in ((Metrics, "on"), (Off, "off")):
        print(f"{name:<4} median {statistics.median(spent[kind]):.3f} us of CPU a job, least {min(spent[kind]):.3f}")
    differences = [on - off for on, off in zip(spent[Metrics], spent[Off], strict=True)]
    print(
        f"on - off: median {statistics.median(differences):.3f} us, of the least {min(spent[Metrics]) - min(spent[Off]):.3f}"
    )


def make(kind: type[Metrics]) -> tuple[Metrics, Executor]:
    """Make an executor whose outcomes go nowhere."""
    metrics, only, unused = kind(queues=[QUEUE], kinds={KIND: QUEUE}), Registry(), cast("Any", None)
    taken = registry.get(KIND)
    if taken is None:
        raise AssertionError("the decorator above put it there")
    only.add(taken)
    executor = Executor(
        registry=only,
        metrics=metrics,
        put=lambda _attempt, _chain: None,
        write_start=unused,
        services=unused,
        transactions=unused,
        threads=unused,
        processes=unused,
        resources={},
        errors=unused,
        tracing=None,
    )
    return metrics, executor


def make_job(number: int) -> Job[Any]:
    """Make a job as a claim gives it."""
    row = (number, QUEUE, KIND, b'{"n": 1}', 0, 1, 3, None, 0.01, None, None, None, None, 0, None)
    job = job_of(row, 7)
    job.in_hand_since = monotonic()
    return job


if __name__ == "__main__":
    asyncio.run(main())
