"""The database goes away, comes back, holds rows or lies idle: no job pays for it, and neither does the server."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from support.checker import JOURNAL, Checker
from support.cluster import Database, connect_to
from support.daemon import NOOP
from support.eventually import aeventually
from support.facts import end_of, has_ended, is_empty, sleeps
from support.jobs import enqueue, enqueue_many
from support.proxy import proxied

from howdah.embedded import EmbeddedPostgres
from howdah.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from conftest import Connect, StartDaemon
    from support.daemon import Daemon
    from support.figures import Figures

log = logging.getLogger("figures")

TTL = 1
#: Transactions a second of an idle daemon, and how many that happen every ten seconds or more seldom may fall on both edges of a window.
IDLE_RATE, AT_THE_EDGES = 0.5, 4
#: How long the idle daemon is watched; a minute or more where somebody wants to know it exactly.
IDLE_SECONDS = float(os.environ.get("HOWDAH_TEST_IDLE_SECONDS", "40"))


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, not running, with a migrated database."""
    folder = tmp_path_factory.mktemp("server")
    for parent in [folder, *folder.parents][:3]:
        parent.chmod(0o711)  # the server may run as another user
    server = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off", "shared_buffers": "32MB"})
    server.start()

    async def make() -> None:
        connection = await asyncpg.connect(server.url())
        await migrate(connection)
        await connection.close()

    asyncio.run(make())
    server.stop()
    yield server
    server.stop()


@asynccontextmanager
async def connected(server: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect_to(Database(server.url(), "postgres"))
    try:
        yield connection
    finally:
        connection.terminate()


@pytest.mark.parametrize("seconds", [3 * TTL, pytest.param(180, marks=pytest.mark.long)])
@pytest.mark.fault(
    "Server",
    "it is away for many ttls",
    "nothing is rescued wrongly, no crash is counted; work within 2 s of its return",
)
async def test_a_daemon_waits_for_a_database_that_is_not_there_yet_and_lives_through_its_outage(
    daemon: StartDaemon, server: EmbeddedPostgres, seconds: float, figures: Figures
) -> None:
    handlers = JOURNAL + """
@handler("once", max_attempts=1)
async def once(job: Job) -> None:
    await innocent(job)
"""  # fmt: skip
    workers = [
        await daemon(handlers, url=server.url(), ready=False, lease_ttl=TTL, queues="default:10") for _ in range(2)
    ]
    for worker in workers:
        await aeventually(lambda worker=worker: worker.log_events("database is away, waiting"))
        assert worker.process.poll() is None
    await asyncio.to_thread(server.start)
    began = time.monotonic()
    for worker in workers:
        await worker.ready()
    came = time.monotonic() - began

    async with connected(server) as connection:
        checker = await Checker(connection).install()
        jobs = [row["id"] for row in await enqueue_many(connection, *[LONG] * 15)]
        await aeventually(lambda: starts_of(checker, jobs, 15))

    await asyncio.to_thread(server.stop)
    figures.faults += 1
    await asyncio.sleep(seconds)  # the outage itself
    await asyncio.to_thread(server.start)
    async with connected(server) as connection:
        began = time.monotonic()
        checker = Checker(connection)
        probe = await enqueue(connection, "innocent", priority=10)
        await end_of(connection, probe)
        back = time.monotonic() - began
        await aeventually(lambda: is_empty(connection), timeout=30)
        log.warning("working %.2f s after the first start, %.2f s after the outage of %d s", came, back, seconds)
        figures.recovered(back)
        assert back < 2
        for job in jobs:
            row = await checker.history_of(job)
            assert (row["state"], row["crashes"], row["attempt"]) == ("completed", 0, 1)
        await checker.check(figures=figures)
        await nobody_was_rescued(workers)
    for worker in workers:
        assert await worker.stop() == 0


#: Longer than the outages, so that it runs all through them.
LONG = {"kind": "innocent", "payload": {"seconds": 4}}


@pytest.mark.fault(
    "Connections", "all workers are cut off for three ttl", "nobody rescues anybody, no attempt is counted"
)
async def test_a_broken_wire_does_not_make_workers_look_dead_to_one_another(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    async with proxied(database.url) as wire:
        workers = [
            await daemon(
                JOURNAL.replace('os.environ["HOWDAH_DATABASE_URL"]', repr(database.url)),
                url=wire.url, lease_ttl=TTL, queues="default:10",
            )
            for _ in range(2)
        ]  # fmt: skip
        jobs = [row["id"] for row in await enqueue_many(connection, *[LONG] * 15)]
        await aeventually(lambda: starts_of(checker, jobs, 15))
        wire.refusing = True
        wire.cut()
        await asyncio.sleep(3 * TTL)  # the outage itself; the server runs on, and its clock with it
        wire.refusing = False
        healed, figures.faults = time.monotonic(), 1
        await end_of(connection, await enqueue(connection, "innocent", priority=10))
        figures.recovered(time.monotonic() - healed)
        await aeventually(lambda: is_empty(connection), timeout=30)
        for job in jobs:
            row = await checker.history_of(job)
            assert (row["state"], row["crashes"], row["attempt"]) == ("completed", 0, 1)
        await nobody_was_rescued(workers)
        await checker.check(figures=figures)


@pytest.mark.fault("Connections", "one worker of two is cut off", "it lets its jobs go before the other takes them")
async def test_a_worker_that_is_cut_off_lets_its_jobs_go_before_another_takes_them(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    handlers = JOURNAL.replace('os.environ["HOWDAH_DATABASE_URL"]', repr(database.url)) + """
@handler("work")
async def work(job: Job) -> None:
    await journal(job, "start")
    try:
        while not Path("../go").exists():
            await asyncio.sleep(0.02)
    finally:
        await journal(job, "end")
"""  # fmt: skip
    async with proxied(database.url) as wire:
        lonely = await daemon(handlers, url=wire.url, lease_ttl=2)
        job = await enqueue(connection)
        await aeventually(lambda: starts_of(checker, [job], 1))
        other = await daemon(handlers, lease_ttl=2)
        wire.refusing = True
        wire.cut()
        await aeventually(lambda: starts_of(checker, [job], 2))
        let_go, taken = await connection.fetchrow(
            """select min(at) filter (where event = 'end') as let_go, max(at) filter (where event = 'start') as taken
            from public.journal where job_id = $1""",
            job,
        )
        assert let_go is not None
        assert let_go < taken
        [line] = lonely.log_events("no beat arrived for long, releasing all jobs")
        assert line["running"] == [job]
        (lonely.folder.parent / "go").touch()
        row = await end_of(connection, job)
        assert (row["state"], row["attempt"], row["crashes"], row["worker"]) == ("completed", 1, 0, other.worker)
        # Back on the wire it finds itself taken for dead; its late release is refused.
        wire.refusing = False
        await aeventually(lambda: lonely.log_events("taken for dead, entering again"))
        await aeventually(lambda: lonely.log_events("lost lease"))
        figures.faults = 1
        await checker.check(figures=figures)


@pytest.mark.fault(
    "Users", "500 running jobs' rows held by two users' open transactions", "acks of all others within 50 ms"
)
async def test_users_who_hold_500_running_jobs_do_not_delay_the_acks_of_others(
    daemon: StartDaemon, connection: asyncpg.Connection, connect: Connect, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    handlers = """
@handler("wait")
async def wait(job: Job) -> None:
    while not Path("go").exists():
        await asyncio.sleep(0.2)

@handler("work")
async def work(job: Job) -> None:
    pass
"""  # fmt: skip
    worker = await daemon(handlers, queues="default:700")
    held = [{"kind": "wait", "subject": "held", "unique_key": f"key {n}"} for n in range(500)]
    ids = [row["id"] for row in await enqueue_many(connection, *held)]
    await aeventually(lambda: slots_used(worker, 500))

    holders = [await connect() for _ in range(2)]
    for holder in holders:
        await holder.execute("begin")
    # One who holds the rows outright, and one whose cancels and replaces are not committed yet.
    await holders[0].execute("select from howdah.jobs where id = any ($1) order by id for update", ids[:250])
    await holders[1].execute("select howdah.cancel(id) from unnest($1::bigint[]) id", ids[250:300])
    await holders[1].execute(
        "select howdah.enqueue('wait', unique_key => 'key ' || n, on_conflict => 'replace') from generate_series(300, 499) n"
    )
    await holders[1].execute("select howdah.cancel_subject('held')")
    (worker.folder / "go").touch()
    await aeventually(lambda: has_ended(connection, *ids[250:]), timeout=20)
    assert not await has_ended(connection, ids[0])

    before = await worker.metrics()
    for _ in range(300):
        await enqueue(connection)
    await aeventually(lambda: ended_of_kind(connection, "work", 300))
    after = await worker.metrics()
    p99 = quantile(before, after, "howdah_ack_seconds", 0.99)
    delays = await connection.fetch(
        """select extract(epoch from a.at - h.finished_at)::float8 from public.audit a join howdah.job_history h on h.id = a.job_id
        where a.event = 'ended' and h.kind = 'work' order by 1"""
    )
    delay99 = delays[int(len(delays) * 0.99)][0]
    acks = after["howdah_ack_seconds_count"] - before["howdah_ack_seconds_count"]
    log.warning("beside 250 held rows: p99 of %d acks within %g s, of end to ack %.4f s", acks, p99, delay99)
    assert p99 <= 0.05
    assert delay99 < 0.05

    for holder in holders:
        await holder.execute("rollback")
    await aeventually(lambda: is_empty(connection))
    assert await connection.fetchval("select count(*) from howdah.job_history where state = 'completed'") == 800
    figures.faults = 500
    await checker.check(figures=figures)


@pytest.mark.costs
async def test_an_idle_daemon_costs_next_to_nothing(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    worker = await daemon(NOOP)
    await end_of(connection, await enqueue(connection))
    await aeventually(lambda: sleeps(connection))
    # Autovacuum looks at a new database with the first minute; its transactions are not the daemon's.
    await connection.execute(
        """do $$ declare name regclass; begin
        for name in select oid from pg_class where relnamespace = 'howdah'::regnamespace and relkind = 'r' loop
          execute format('alter table %s set (autovacuum_enabled = off)', name);
        end loop; end $$"""
    )
    # The polls grow from 2 ms to fifteen seconds, the gap always a third of what has passed, and an idle session tells of its last
    # transactions after 10 s at most: late words of what came before may fall into one window, but not into all.
    await asyncio.sleep(35)
    server = await connect_to(Database(database.url.replace(database.name, "postgres"), "postgres"))
    try:
        for _ in range(3):
            await server.execute("select pg_stat_clear_snapshot()")
            transactions, cpu, began = await committed(server, database.name), cpu_seconds(worker), time.monotonic()
            await asyncio.sleep(IDLE_SECONDS)  # what is measured is that time passes
            seconds = time.monotonic() - began
            rate = (await committed(server, database.name) - transactions) / seconds
            share = (cpu_seconds(worker) - cpu) / seconds
            if rate <= IDLE_RATE + AT_THE_EDGES / seconds:
                break
    finally:
        server.terminate()
    memory = rss(worker)
    log.warning("idle %d s: %.2f transactions/s, %.2f %% CPU, %.1f MB", seconds, rate, share * 100, memory / 1e6)
    assert rate <= IDLE_RATE + AT_THE_EDGES / seconds
    assert share < (0.005 if IDLE_SECONDS >= 60 else 0.01)
    assert memory < 90e6


@pytest.mark.fault("Connections", "LISTEN is cut and refused", "a running job is cancelled within 2.5 s all the same")
async def test_a_running_job_is_cancelled_within_a_second_or_two_also_by_a_deaf_worker(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    async with proxied(database.url) as wire:
        worker = await daemon(JOURNAL, listen_database_url=wire.url)
        await aeventually(lambda: listener_is(worker, 1))
        await asyncio.sleep(1.5)  # by now all of it counts on being told
        job = await enqueue(connection, "innocent", {"seconds": 600})
        await aeventually(lambda: checker.starts(job))
        wire.refusing = True
        wire.cut()
        await aeventually(lambda: listener_is(worker, 0))
        await connection.execute("select howdah.cancel($1, 'anna', 'enough')", job)
        ended = await end_of(connection, job, timeout=2.5)
        assert (ended["state"], ended["cancelled_by"], ended["cancel_reason"]) == ("cancelled", "anna", "enough")
        figures.faults = 1
        await checker.check(figures=figures)


async def starts_of(checker: Checker, jobs: list[int], count: int) -> bool:
    return len(await checker.starts(*jobs)) >= count


async def nobody_was_rescued(workers: list[Daemon]) -> None:
    for worker in workers:
        assert await worker.metric("howdah_rescued_total") == 0, worker.log_events("rescued")


async def slots_used(worker: Daemon, count: int) -> bool:
    return await worker.metric('howdah_slots_used{queue="default"}') == count


async def listener_is(worker: Daemon, value: float) -> bool:
    return await worker.metric("howdah_listener_up") == value


async def ended_of_kind(connection: asyncpg.Connection, kind: str, count: int) -> bool:
    return bool(await connection.fetchval("select count(*) = $2 from howdah.job_history where kind = $1", kind, count))


async def committed(server: asyncpg.Connection, database: str) -> int:
    """Count the transactions of one database; sessions tell of theirs with a delay of a second at most."""
    count: int = await server.fetchval(
        "select xact_commit + xact_rollback from pg_stat_database where datname = $1", database
    )
    return count


def cpu_seconds(worker: Daemon) -> float:
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(worker: Daemon) -> int:
    return int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def quantile(before: dict[str, Any], after: dict[str, Any], name: str, share: float) -> float:
    """Give the upper bound of the histogram bucket in which a quantile lies."""
    prefix = f'{name}_bucket{{le="'
    buckets = sorted(
        (float(key.removeprefix(prefix).removesuffix('"}')), after[key] - before[key])
        for key in after
        if key.startswith(prefix)
    )
    total = buckets[-1][1]
    return next(bound for bound, count in buckets if count >= share * total)
