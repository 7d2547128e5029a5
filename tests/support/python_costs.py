"""What a job that does nothing costs the worker in Python, counted: `python -m support.python_costs URL` prints one JSON object.

Seconds depend on the machine and its neighbours; calls, bytecodes and blocks do not. A drain is counted three times, with many jobs and with few; the
difference is the jobs' own. Only the main loop's thread is counted.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import uvloop

from howdah import bench
from howdah.config import load_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FEW, MANY = 1_000, 4_000


def main(url: str) -> None:
    """Count and print."""
    config = load_config(database_url=url, queues={bench.QUEUE: 100}, handlers=["howdah.bench"], http_port=0)
    figures = {f"{name}_per_job": uvloop.run(per_job(config, count)) for name, count in COUNTS.items()}
    sys.stdout.write(json.dumps(figures))


async def per_job(config: Any, count: Callable[[], Any]) -> float:
    """Give what a job more costs."""
    connection = await asyncpg.connect(config.database_url)
    spent: list[float] = []
    try:
        for jobs in (FEW, MANY):  # the first drain also warms up whatever is made once
            await connection.execute(
                "select count(*) from howdah.enqueue_many((select jsonb_agg(jsonb_build_object('kind', $1::text, 'queue', $1::text))"
                " from generate_series(1, $2::int)))",
                bench.KIND,
                jobs,
            )
            with count() as counted:
                await bench.Service(config, bench._handlers(), limits=bench.Limits(until_empty=True)).run()
            spent.append(counted[0])
    finally:
        await connection.close()
    return (spent[1] - spent[0]) / (MANY - FEW)


@contextmanager
def calls() -> Iterator[list[float]]:
    """Count calls of Python's functions, resumed coroutines among them."""
    counted = [0.0]

    def note(_frame: object, event: str, _argument: object) -> None:
        if event == "call":
            counted[0] += 1

    sys.setprofile(note)
    try:
        yield counted
    finally:
        sys.setprofile(None)


@contextmanager
def c_calls() -> Iterator[list[float]]:
    """Count calls of functions written in C."""
    counted = [0.0]

    def note(_frame: object, event: str, _argument: object) -> None:
        if event == "c_call":
            counted[0] += 1

    sys.setprofile(note)
    try:
        yield counted
    finally:
        sys.setprofile(None)


@contextmanager
def bytecodes() -> Iterator[list[float]]:
    """Count bytecodes."""
    counted = [0.0]

    def step(_frame: object, event: str, _argument: object) -> Any:
        if event == "opcode":
            counted[0] += 1
        return step

    def enter(frame: Any, _event: str, _argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    sys.settrace(enter)
    try:
        yield counted
    finally:
        sys.settrace(None)


@contextmanager
def blocks() -> Iterator[list[float]]:
    """Count blocks of memory that are still held after the worker has left: what a job leaves behind for ever."""
    gc.collect()
    before = sys.getallocatedblocks()
    counted = [0.0]
    yield counted
    gc.collect()
    counted[0] = sys.getallocatedblocks() - before


COUNTS = {"calls": calls, "c_calls": c_calls, "bytecodes": bytecodes, "blocks_kept": blocks}

if __name__ == "__main__":
    main(sys.argv[1])
