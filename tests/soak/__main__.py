"""`./dev soak`: load at half of the peak rate with faults of chance, for as long as it is told; exit 0 only if all bounds hold."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click
from soak.faults import Faults
from soak.load import Load
from soak.plot import draw
from soak.report import write
from soak.samples import Samples
from soak.stage import Stage, refuse_small_disk, stage
from soak.verdict import judge
from soak.verify import Proof
from soak.workers import Fleet
from support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Coroutine

DOCS = Path(__file__).parents[2] / "docs"
#: Jobs of the drain that measures the peak, in transactions of so many.
PEAK_JOBS, PEAK_BATCH = 100_000, 1000
_LAST_PATIENCE = 180.0


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.5), default=30.0, show_default=True, help="How long.")
@click.option(
    "--rate", type=click.FloatRange(min=10), help="Jobs a second; else half of the peak, which is measured first."
)
@click.option(
    "--seed", type=int, default=7, show_default=True, help="Repeats the choices; their timing is never the same."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where the server's data go for the time.",
)
@click.option(
    "--docs",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=DOCS,
    help="Where soak.md, soak.png go.",
)
@click.option("--raw", type=click.Path(dir_okay=False, path_type=Path), help="Write samples and faults there, as JSON.")
@click.option("--note", default="", help="A sentence for the page: what else went on.")
def main(
    minutes: float, rate: float | None, seed: int, folder: Path | None, docs: Path, raw: Path | None, note: str
) -> None:
    """Soak the product: a steady load, faults, and a proof at the end."""
    try:
        held = asyncio.run(soak(minutes, rate, seed, folder, docs, raw, note))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    sys.exit(0 if held else 1)


async def soak(
    minutes: float, rate: float | None, seed: int, folder: Path | None, docs: Path, raw: Path | None, note: str
) -> bool:
    """Do it in order of time; tells whether all bounds hold."""
    _unwind_on_sigterm()
    before = os.getloadavg()[0]
    say("starting PostgreSQL")
    async with stage(folder) as scene:
        refuse_small_disk(scene.folder, minutes * 60 * (rate or 5_000))
        wire = Proxy(scene.url)
        await wire.start()
        fleet = Fleet(scene.folder, [wire.url, wire.url, scene.url])
        load = Load(scene.url, seed=seed)
        try:
            peak = None if rate else await measure_peak(scene, fleet, load)
            rate = rate or peak / 2  # type: ignore[operator]  # one of them is there
            refuse_small_disk(scene.folder, minutes * 60 * rate)
            if peak is None:
                fleet.start()
            return await run(scene, fleet, wire, load, rate, peak, minutes, seed, docs, raw, note, before)
        finally:
            await load.close()
            fleet.reap()
            await wire.stop()


async def measure_peak(scene: Stage, fleet: Fleet, load: Load) -> float:
    """Enqueue as fast as it goes while the workers work, and give the rate at which jobs ended in the middle of that.

    A drain of jobs that are there already is faster: enqueue has its part in what a job costs this machine.
    """
    say(f"measuring the peak with {PEAK_JOBS:,} jobs of the mix")
    fleet.start()
    connection = await scene.connect()
    while await connection.fetchval("select count(*) from howdah.workers") < len(fleet.workers):
        await asyncio.sleep(0.2)
    for _ in range(PEAK_JOBS // PEAK_BATCH):
        await load.enqueue(PEAK_BATCH)
    while await connection.fetchval("select exists (select from howdah.jobs)"):
        await asyncio.sleep(1)
    seconds = await connection.fetchval(
        "select extract(epoch from t[2] - t[1])::float8 from (select percentile_disc(array[0.1, 0.9]) within group (order by finished_at) as t from howdah.job_history) h"
    )
    connection.terminate()
    return 0.8 * PEAK_JOBS / float(seconds)


async def run(
    scene: Stage,
    fleet: Fleet,
    wire: Proxy,
    load: Load,
    rate: float,
    peak: float | None,
    minutes: float,
    seed: int,
    docs: Path,
    raw: Path | None,
    note: str,
    before: float,
) -> bool:
    """Load, faults, samples and looks side by side; then quiet, and the proof."""
    say(f"{rate:,.0f} jobs/s for {minutes:g} minutes" + (f", half of {peak:,.0f}" if peak else ""))
    began = monotonic()
    asked = load.asked
    stop, calm = asyncio.Event(), asyncio.Event()
    samples = Samples(scene, fleet, began)
    faults = Faults(scene, fleet, wire, seed=seed, began=began)
    proof = Proof(scene)
    beside = [_task(part) for part in (fleet.run(), samples.run(), proof.run(), _tell(samples, faults, proof))]
    work = [_task(load.run(rate, stop)), _task(faults.run(calm))]
    try:
        await _last(minutes * 60, [*beside, *work])
        calm.set()
        await work[1]
        stop.set()
        await work[0]
        seconds = monotonic() - began
        end = await samples.take()
        samples.taken.append(end)
        say("quiet; waiting for the last jobs")
        await faults.settled()
        await _until_empty(scene)
        samples.taken.append(await samples.take())
    finally:
        for task in (*beside, *work):
            task.cancel()
        await asyncio.gather(*beside, *work, return_exceptions=True)
    await fleet.stop()
    say("proving")
    ends = await proof.finish(scene.folder)
    connection = await scene.connect()
    postgres = str(await connection.fetchval("select current_setting('server_version')")).split()[0]
    connection.terminate()
    events = fleet.events()
    findings = judge(
        samples.taken,
        faults.log,
        rate=rate,
        seconds=seconds,
        asked=load.asked - asked,
        end=end,
        broken=proof.broken + ([f"{proof.doubled} doubled, seen in windows"] if proof.doubled else []),
        unasked=fleet.unasked,
        errors=sum(events["error"].values()) + sum(events[""].values()),
    )
    if raw is not None:
        raw.write_text(
            json.dumps(
                {
                    "samples": [asdict(s) for s in samples.taken],
                    "faults": [asdict(f) for f in faults.log],
                    "rate": rate,
                    "peak": peak,
                }
            )
        )
    command = " ".join(["./dev soak", f"--minutes {minutes:g}", *([f"--rate {rate:g}"] if peak is None else [])])
    title = f"{command}: {sum(ends.values()):,} jobs, {len(faults.log)} faults, three workers, PostgreSQL {postgres}, {os.cpu_count()} cores shared with the server"
    draw(samples.taken, faults.log, rate=rate, title=title, target=docs / "soak.png")
    write(
        docs / "soak.md",
        command=command,
        peak=peak,
        rate=rate,
        minutes=minutes,
        postgres=postgres,
        findings=findings,
        faults=faults.log,
        samples=samples.taken,
        ends=ends,
        events=events,
        load=(before, os.getloadavg()[0]),
        note=note,
    )
    for finding in findings:
        mark = {True: "holds", False: "BROKEN", None: "not judged"}[finding.holds]
        say(f"{mark:>10}  {finding.what}: {finding.found}")
    scene.went_well = all(finding.holds is not False for finding in findings)
    return scene.went_well


async def _last(seconds: float, tasks: list[asyncio.Task[None]]) -> None:
    """Let the time pass; none of the parts may end before."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
        raise AssertionError(f"{task.get_coro()} ended before its time")


async def _until_empty(scene: Stage) -> None:
    connection = await scene.connect()
    deadline = monotonic() + _LAST_PATIENCE
    while await connection.fetchval("select exists (select from howdah.jobs)") and monotonic() < deadline:
        await asyncio.sleep(0.5)
    connection.terminate()


async def _tell(samples: Samples, faults: Faults, proof: Proof) -> None:
    """Say once a minute how it goes."""
    while True:
        await asyncio.sleep(60)
        last = next((s for s in reversed(samples.taken) if s.finished is not None), None)
        if last is not None:
            memory = " ".join(f"{p.rss >> 20}" for p in last.workers.values())
            say(
                f"{last.at / 60:4.1f} min: {last.finished:,} ended, {last.live:,} live, oldest {last.oldest:.1f} s, RSS {memory} MB,"
                f" {last.connections} connections, {len(faults.log)} faults, {proof.doubled} doubled"
            )


def _task(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)


def say(what: str) -> None:
    """Tell the watcher."""
    click.echo(f"soak: {what}")


def _unwind_on_sigterm() -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


main()
