"""The doctor on the work: workers; what keeps jobs waiting; jobs that nobody takes, that hang, that fail, that died."""

from __future__ import annotations

from typing import TYPE_CHECKING

from howdah.doctor.finding import fail, ok, several, span, warn
from howdah.queries import read_query
from howdah.vitals import GRACE, SWEEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from howdah.doctor.finding import Finding

#: A ready job may be so many seconds old before the doctor minds.
OLD_READY = 300.0
#: A kind that has this share of what runs in a queue is named.
MOST = 0.8
#: From so many on, jobs of a kind that wait to be tried again are no accident.
FEW = 6


async def examine_workers(connection: asyncpg.Connection) -> list[Finding]:
    """See who lives, who is dead and not cleared away, and whether one of them leads."""
    workers = await connection.fetch(read_query("workers", "doctor"))
    living = [row for row in workers if not row["dead"]]
    findings = [
        warn(
            "workers",
            f"{row['name']} (worker {row['id']}) is dead, silent for {span(row['silent'])}",
            "a living worker takes its jobs back; if none does, start one"
            if not living
            else "look at its log; its jobs are being taken back",
        )
        for row in workers
        if row["dead"]
    ]
    if not living:
        return [fail("workers", "none lives: no job is done", "howdah run"), *findings]
    if not any(row["leads"] for row in living):
        findings.append(
            warn(
                "workers",
                "none of them leads: nobody counts queues and tables",
                "wait for 30 s; then read the workers' logs",
            )
        )
    draining = sum(row["draining"] for row in living)
    versions = ", ".join(sorted({row["version"] for row in living}))
    says = f"{len(living)} living{f', {draining} of them draining' if draining else ''}, of version {versions}"
    return [ok("workers", says), *findings]


async def examine_orphans(connection: asyncpg.Connection) -> list[Finding]:
    """Find jobs that no living worker takes."""
    rows = await connection.fetch(read_query("orphans", "doctor"))
    return [
        warn(
            "orphans",
            f"{several(row['jobs'], 'ready job')} of kind {row['kind']} in queue {row['queue']}, the oldest for {span(row['oldest'])}: "
            + ("no living worker has a handler" if row["served"] else "no living worker serves the queue"),
            f"deploy a worker with a handler for {row['kind']}, or cancel the jobs"
            if row["served"]
            else f"howdah run --queues {row['queue']}:10",
        )
        for row in rows
    ] or [ok("orphans", "every ready job has a living worker that takes its kind")]


async def examine_stuck(connection: asyncpg.Connection) -> list[Finding]:
    """Find jobs that hang."""
    rows = await connection.fetch(read_query("stuck", "doctor"), SWEEP, GRACE)
    findings = []
    for row in rows:
        worker = row["worker"] or f"worker {row['leased_by']}, whose row is gone"
        if row["dead"]:
            says, do = f"held by {worker}, which is dead", "start a worker: it takes the job back"
        else:
            says = f"runs for {span(row['running'] or 0)} at {worker}, past its timeout of {span(row['timeout'])}"
            do = f"howdah cancel {row['id']}; a thread that never looks at job.cancelled ends only with its process"
        findings.append(
            fail(
                "stuck",
                f"job {row['id']} ({row['kind']}) is {says}"
                if row["dead"]
                else f"job {row['id']} ({row['kind']}) {says}",
                do,
            )
        )
    return findings or [ok("stuck", "no job hangs")]


async def examine_ready(connection: asyncpg.Connection) -> list[Finding]:
    """See how much waits, and for how long; where that is long, who is being run meanwhile."""
    rows = await connection.fetch(read_query("depth"))
    ready = [row for row in rows if row["state"] == "ready"]
    old = [row for row in ready if (row["oldest"] or 0) > OLD_READY]
    busy = await connection.fetch(read_query("busy", "doctor")) if old else []
    if old:
        return [_behind(row, [one for one in busy if one["queue"] == row["queue"]]) for row in old]
    total = sum(row["jobs"] for row in ready)
    running = sum(row["jobs"] for row in rows if row["state"] == "running")
    return [ok("queues", f"{total:,} jobs ready, {running:,} in hand or running")]


def _behind(row: asyncpg.Record, busy: Sequence[asyncpg.Record]) -> Finding:
    """Say that a queue is behind, and which kind has its slots."""
    says = (
        f"{row['queue']}: {'' if row['exact'] else 'about '}{row['jobs']:,} ready, the oldest for {span(row['oldest'])}"
    )
    running = sum(one["jobs"] for one in busy)
    if not running:
        return warn(
            "queues",
            f"{says}; none of the queue has run for a second or more",
            "see the other lines: workers, paused, orphans; if all of these are well: more slots or workers",
        )
    first = busy[0]
    says += f"; {running:,} run for a second or more, {first['jobs']:,} of them {first['kind']}, the longest for {span(first['longest'])}"
    if first["jobs"] >= MOST * running:
        return warn(
            "queues",
            says,
            f"more slots or workers; or howdah limit set kind:{first['kind']} --concurrency N, fewer than the queue has slots, so that others get on",
        )
    return warn("queues", says, "more slots or workers")


async def examine_failing(connection: asyncpg.Connection) -> list[Finding]:
    """Name the kinds that fail now, with what most of their jobs met."""
    rows = await connection.fetch(read_query("failing", "doctor"))
    findings = [
        warn(
            "failing",
            f"{several(row['jobs'], 'job')}{' or more' if row['cut'] else ''} of kind {row['kind']} failed and wait to be tried again, the next in "
            f"{span(row['next_in'])}; most often: {row['error']}",
            f"howdah jobs --kind {row['kind']} --state retrying; if what it talks to is down, they come back by themselves "
            "(pause the queue to spare their attempts)",
        )
        for row in rows
        if row["jobs"] >= FEW
    ]
    few = sum(row["jobs"] for row in rows)
    return findings or [
        ok("failing", f"{several(few, 'job')} to be tried again" if few else "no job waits to be tried again")
    ]


async def examine_limits(connection: asyncpg.Connection) -> list[Finding]:
    """Name the limits that hold jobs back for long, and those that let nothing through."""
    rows = await connection.fetch(read_query("limits", "doctor"))
    findings = []
    for row in rows:
        waits = f"{several(row['waiting'], 'job')}{' or more' if row['cut'] else ''}"
        if row["waiting"] and row["concurrency"] == 0:
            says = f"{row['name']} lets nothing start, since {span(row['standing'])}: {waits} wait, the oldest for {span(row['oldest'])}"
            do = f"howdah limit set '{row['name']}' --concurrency N, or howdah limit remove '{row['name']}'"
            findings.append(warn("limits", says, do))
        elif (row["oldest"] or 0) > OLD_READY:
            rules = [] if row["concurrency"] is None else [f"{row['running']} run of {row['concurrency']} at once"]
            if row["rate"] is not None:
                rules.append(f"{row['rate']:g} may start in a second")
            says = f"{row['name']} is too narrow for what comes: {', '.join(rules)}; {waits} wait, the oldest for {span(row['oldest'])}"
            findings.append(
                warn("limits", says, f"if what it protects can bear more: howdah limit set '{row['name']}' …")
            )
    if findings or not rows:
        return findings or [ok("limits", "none")]
    return [ok("limits", f"{several(len(rows), 'limit')}, {sum(row['waiting'] for row in rows):,} jobs wait at them")]


async def examine_paused(connection: asyncpg.Connection) -> list[Finding]:
    """Name the queues that are paused."""
    return [
        warn(
            "paused",
            f"queue {row['name']} has been paused for {span(row['paused'])} by {row['paused_by'] or 'somebody'}",
            f"howdah resume {row['name']}",
        )
        for row in await connection.fetch(read_query("paused", "doctor"))
    ] or [ok("paused", "no queue")]


async def examine_dead(connection: asyncpg.Connection) -> list[Finding]:
    """Tell of the jobs that died in the last day, first of those that brought down workers."""
    findings = []
    for row in await connection.fetch(read_query("dead", "doctor")):
        if row["poison"]:
            findings.append(
                fail(
                    "poison",
                    f"{several(row['poison'], 'job')} of kind {row['kind']} brought down their workers and were put aside, the last one job {row['newest']}",
                    f"howdah show {row['newest']}; mend the handler, then howdah retry {row['newest']}",
                )
            )
        if row["jobs"] > row["poison"]:
            findings.append(
                warn(
                    "dead",
                    f"{several(row['jobs'] - row['poison'], 'job')} of kind {row['kind']} died within a day, such as job {row['newest']}",
                    f"howdah show {row['newest']}; mend the cause, then howdah retry --kind {row['kind']}",
                )
            )
    return findings or [ok("dead", "no job within a day")]
