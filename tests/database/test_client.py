"""The client: every call of SQL from Python, and what it does when the database is not there."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.jobs import ack, claim_one, completed, dead, live
from support.proxy import proxied

from howdah import Client, JobStatus, NewJob, Tally, enqueue
from howdah.errors import ConfigError, DatabaseUnavailableError, HowdahError, RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    from conftest import Connect
    from support.cluster import Database


@pytest.fixture
async def client(database: Database) -> AsyncIterator[Client]:
    async with Client(database.url) as client:
        yield client


# -- work and commands ------------------------------------------------------------------------------------------------


async def test_what_is_enqueued_is_committed(client: Client, connection: asyncpg.Connection) -> None:
    one = await client.enqueue("work", {"n": 1}, subject="s")
    many = await client.enqueue_many([NewJob("work", {"n": 2}), {"kind": "work", "priority": 2}])
    ids = await client.enqueue_payloads("work", [{"n": 3}], priority=1)
    await client.enqueue_coalesced("work", {"n": 4}, key="k", delay=timedelta(hours=1), subject="s")
    stored = await connection.fetch("select id from howdah.jobs order by id")
    assert [row["id"] for row in stored] == [one.id, *(job.id for job in many), *ids]
    event = await connection.fetchrow("select kind, key, payload, subject from howdah.events")
    assert event is not None
    assert tuple(event) == ("work", "k", {"n": 4}, "s")


async def test_own_sql_and_enqueue_commit_together_or_not_at_all(
    client: Client, connection: asyncpg.Connection
) -> None:
    await connection.execute("create table public.orders (id int, facts jsonb)")

    async def order(*, broken: bool) -> None:
        async with client.transaction() as mine:
            await mine.execute("insert into public.orders values (1, $1)", {"a": 1})
            await enqueue(mine, "work")
            if broken:
                raise LookupError

    with pytest.raises(LookupError):
        await order(broken=True)
    assert await connection.fetchval("select count(*) from public.orders") == 0
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0
    await order(broken=False)
    assert await connection.fetchval("select facts from public.orders") == {"a": 1}
    assert await connection.fetchval("select count(*) from howdah.jobs") == 1


async def test_commands_do_what_they_say(client: Client, connection: asyncpg.Connection) -> None:
    first, second, third = [job.id for job in await client.enqueue_many([NewJob("work", subject="s")] * 3)]
    assert await client.cancel(first, by="me", reason="why") == "cancelled"
    assert await client.cancel_subject("s", by="me") == 2
    ended = await client.job(first)
    assert ended is not None
    assert (ended.state, ended.cancelled_by, ended.cancel_reason, ended.ended) == ("cancelled", "me", "why", True)
    again = await client.retry(second)
    retried = await client.job(again)
    assert retried is not None
    assert (retried.retried_from, retried.ended) == (second, False)
    moment = datetime.now(UTC) + timedelta(days=1)
    await client.reschedule(again, moment)
    assert (await client.job(again)).due_at == moment  # type: ignore[union-attr]
    assert "is scheduled" in await client.explain(again)
    assert "cancelled" in await client.explain(third)
    await client.pause("default", by="me")
    assert await connection.fetchval("select paused_by from howdah.queues where name = 'default'") == "me"
    await client.resume("default")
    assert await connection.fetchval("select paused_at is null from howdah.queues where name = 'default'")
    [tally] = await client.stats()
    assert isinstance(tally, Tally)
    assert tally[:4] == ("default", "work", "scheduled", 1)


async def test_a_refusal_is_an_error_of_ours(client: Client) -> None:
    with pytest.raises(RefusedError, match="there is no job 99") as caught:
        await client.cancel(99)
    assert caught.value.sqlstate == "JB007"
    with pytest.raises(RefusedError, match="priority is 99"):
        await client.enqueue("work", priority=99)
    with pytest.raises(RefusedError, match="not queued"):
        await client.reschedule(99, datetime.now(UTC))
    await client.enqueue("work")


async def test_a_job_is_told_with_all_its_columns(client: Client, connection: asyncpg.Connection) -> None:
    job = await client.enqueue("work", {"n": 1}, headers={"trace": "t"}, subject="s", unique_key="k")
    held = await claim_one(connection)
    await ack(connection, completed(held, result={"sum": 3}))
    found = await client.job(job.id)
    row = await connection.fetchrow("select * from howdah.job_status where id = $1", job.id)
    assert found is not None
    assert row is not None
    assert {name: getattr(found, name) for name in JobStatus.__slots__} == dict(row)
    assert found.result == {"sum": 3}
    assert await client.job(99) is None


async def test_a_job_status_has_the_columns_of_the_view(connection: asyncpg.Connection) -> None:
    columns = await connection.fetch("select * from howdah.job_status limit 0")
    assert columns == []
    statement = await connection.prepare("select * from howdah.job_status")
    assert tuple(column.name for column in statement.get_attributes()) == JobStatus.__slots__


# -- waits ------------------------------------------------------------------------------------------------------------


async def test_a_wait_ends_with_the_job_and_tells_what_came_of_it(
    client: Client, connection: asyncpg.Connection
) -> None:
    job = await client.enqueue("work")
    wait = asyncio.create_task(client.wait(job.id))
    held = await claim_one(connection)
    await ack(connection, dead(held, "it cannot be"))
    status = await asyncio.wait_for(wait, 5)
    assert (status.state, status.error) == ("dead", "it cannot be")
    assert (await client.wait(job.id, timeout=5)) == status


async def test_a_wait_that_takes_too_long_is_a_timeout_and_can_be_repeated(
    client: Client, connection: asyncpg.Connection
) -> None:
    job = await client.enqueue("work", delay=3600)
    with pytest.raises(TimeoutError, match=rf"job {job.id} has not ended within 0\.05 s"):
        await client.wait(job.id, timeout=0.05)
    assert await live(connection, job.id) is not None
    wait = asyncio.create_task(client.wait(job.id, timeout=5))
    await client.cancel(job.id)
    assert (await wait).state == "cancelled"


async def test_a_job_that_is_nowhere_is_refused_and_others_are_waited_for(client: Client) -> None:
    job = await client.enqueue("work")
    wait = asyncio.create_task(client.wait(job.id))
    with pytest.raises(RefusedError, match="there is no job 4711"):
        await client.wait(4711, timeout=5)
    assert not wait.done()
    await client.cancel(job.id)
    assert (await asyncio.wait_for(wait, 5)).state == "cancelled"


async def test_many_waits_share_their_looks(client: Client) -> None:
    jobs = [job.id for job in await client.enqueue_many([NewJob("work", subject="s", delay=60)] * 1000)]
    waits = [asyncio.create_task(client.wait(job)) for job in jobs]
    looks = 0
    look = client._waits._look

    async def count(due: list[int]) -> None:
        nonlocal looks
        looks += 1
        await look(due)

    client._waits._look = count  # type: ignore[method-assign]
    began = asyncio.get_running_loop().time()
    await aeventually(lambda: looks >= 5)
    await client.cancel_subject("s")
    states = {(await asyncio.wait_for(wait, 20)).state for wait in waits}
    took = asyncio.get_running_loop().time() - began
    assert states == {"cancelled"}
    # A look a wait would be a thousand at once. A thousand words of ended jobs come in a few handfuls.
    assert looks < 60 + 20 * took, f"{looks} looks in {took} s"


async def test_two_who_wait_for_one_job_are_both_told_and_one_who_gives_up_harms_nobody(client: Client) -> None:
    job = await client.enqueue("work", delay=60)
    first, second, third = (asyncio.create_task(client.wait(job.id)) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    await client.cancel(job.id)
    assert [(await asyncio.wait_for(wait, 5)).state for wait in (second, third)] == ["cancelled"] * 2


async def test_whoever_waits_when_the_client_is_closed_is_told(database: Database) -> None:
    async with Client(database.url) as client:
        job = await client.enqueue("work", delay=60)
        wait = asyncio.create_task(client.wait(job.id))
        await asyncio.sleep(0)
    with pytest.raises(HowdahError, match="closed"):
        await asyncio.wait_for(wait, 5)


async def test_a_wait_is_possible_while_every_connection_of_the_pool_is_lent(database: Database) -> None:
    async with Client(database.url, pool_size=1) as client:
        job = await client.enqueue("work", delay=60)
        async with client.transaction():
            with pytest.raises(TimeoutError):
                await client.wait(job.id, timeout=0.1)


async def test_idle_waits_for_queued_and_running_jobs_and_for_events(
    client: Client, connection: asyncpg.Connection
) -> None:
    await client.wait_idle(timeout=5)
    await client.enqueue("work", subject="s")
    held = await claim_one(connection)
    for wanted in ({"subject": "s"}, {"kind": "work"}, {"queue": "default"}):
        with pytest.raises(TimeoutError, match="did not become idle"):
            await client.wait_idle(**wanted, timeout=0.02)
    await client.wait_idle(subject="other", timeout=5)
    wait = asyncio.create_task(client.wait_idle(subject="s", timeout=5))
    await ack(connection, completed(held))
    await wait


# -- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_database_that_is_away_is_one_error_and_the_next_call_works(database: Database) -> None:
    async with proxied(database.url) as wire, Client(wire.url) as client:
        await client.enqueue("work")
        wire.refusing = True
        wire.cut()
        with pytest.raises(DatabaseUnavailableError, match="client: "):
            await client.enqueue("work")
        wire.refusing = False
        assert (await client.enqueue("work")).created


async def test_a_wait_outlives_an_outage(database: Database, connect: Connect) -> None:
    connection = await connect()
    async with proxied(database.url) as wire, Client(wire.url) as client:
        job = await client.enqueue("work")
        waits = [asyncio.create_task(client.wait(job.id)), asyncio.create_task(client.wait_idle(kind="work"))]
        await aeventually(lambda: client._waits._hearing)
        wire.refusing = True
        wire.cut()
        await ack(connection, completed(await claim_one(connection)))
        wire.refusing = False
        await asyncio.wait_for(asyncio.gather(*waits), 10)
        assert waits[0].result().state == "completed"  # type: ignore[union-attr]


async def test_behind_a_pooler_nothing_is_kept_prepared(database: Database, connect: Connect) -> None:
    """A pooler gives the next transaction another server connection, which knows nothing of the last one's statements."""
    connection = await connect()
    direct = database.url + "?application_name=direct"
    async with Client(database.url, listen_url=direct, pool_size=1) as client:
        job = await client.enqueue("work", delay=60)
        with pytest.raises(TimeoutError):
            await client.wait(job.id, timeout=0.1)
        async with client.transaction() as mine:
            assert (
                await mine.fetchval("select count(*) from pg_prepared_statements where name like '\\_\\_asyncpg%'") == 0
            )
    async with Client(database.url, pool_size=1) as client, client.transaction() as mine:
        await mine.fetch("select 1")
        assert await mine.fetchval("select count(*) from pg_prepared_statements where name like '\\_\\_asyncpg%'") > 0
    assert await connection.fetchval("select count(*) from howdah.jobs") == 1


async def test_the_address_comes_from_the_environment_as_for_a_worker(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOWDAH_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="HOWDAH_DATABASE_URL"):
        Client()
    monkeypatch.setenv("DATABASE_URL", database.url.replace("postgresql://", "postgres://"))
    async with Client() as client:
        assert (await client.enqueue("work")).id == 1
