"""The doctor names what is broken and what mends it, keeps silent about what is well, and needs no special rights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from support.daemon import howdah
from support.jobs import ack, add_dead_worker, add_worker, claim, crashed, dead, enqueue, enqueue_many, retried
from support.logins import login, name_of
from support.proxy import proxied

from howdah.config import load_config
from howdah.doctor import server
from howdah.doctor.examine import examine

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import Connect, StartDaemon
    from support.cluster import Database

    from howdah.doctor.finding import Finding


async def findings(url: str, **settings: Any) -> list[Finding]:
    config = load_config(database_url=url, **{"http_port": 1, **settings})
    return [finding async for finding in examine(config, url)]


async def troubles(url: str, **settings: Any) -> dict[str, tuple[str, str, str]]:
    """What is not well: topic → level, what was found, what to do."""
    return {
        one.topic: (one.level, one.says, one.do)
        for one in await findings(url, **settings)
        if one.level not in {"ok", "unseen"}
    }


async def test_a_well_worker_on_a_well_database_gives_no_trouble(daemon: StartDaemon, database: Database) -> None:
    worker = await daemon()
    port = urlsplit(worker.address).port
    found = {one.topic: one for one in await findings(database.url, http_port=port)}
    trouble = [one for one in found.values() if one.level in {"warn", "fail"} and one.topic != "roles"]
    # It may not lead yet: it entered a moment ago.
    assert [one for one in trouble if "leads" not in one.says] == []
    assert found["port"].level == "ok"
    assert set(found) >= {"schema", "indexes", "history", "clock", "pooler", "listen", "stuck", "orphans", "snapshot"}


async def test_it_names_what_is_wrong_with_the_work(connection: asyncpg.Connection, database: Database) -> None:
    assert (await troubles(database.url))["workers"][0] == "fail"
    worker = await add_worker(connection, kinds=["work", "kills"], queues=["default"])
    await enqueue_many(connection, {"kind": "strange"}, {"kind": "strange"}, {"kind": "work", "queue": "nobody"})
    await connection.execute("select howdah.pause('mail', 'anna')")
    await enqueue(connection, "work")
    [died] = await claim(connection, worker)
    await ack(connection, dead(died))
    killer = await enqueue(connection, "kills")
    [held] = await claim(connection, worker, kinds=["kills"])
    await connection.execute("update howdah.jobs set crashes = 1, suspect = true where id = $1", killer)
    await ack(connection, crashed(held))
    gone = await add_dead_worker(connection)
    late = await enqueue(connection, "work")
    await claim(connection, gone)
    found = [one for one in await findings(database.url) if one.level in {"warn", "fail"}]
    lines = [f"{one.topic} {one.level}: {one.says} → {one.do}" for one in found]

    def told(*parts: str) -> bool:
        return any(all(part in line for part in parts) for line in lines)

    assert told("orphans warn: 2 ready jobs of kind strange in queue default", "no living worker has a handler"), lines
    assert told("orphans warn: 1 ready job of kind work in queue nobody", "howdah run --queues nobody:10"), lines
    assert told("paused warn: queue mail", "by anna", "howdah resume mail"), lines
    assert told("dead warn: 1 job of kind work died", f"howdah show {died.id}"), lines
    assert told("poison fail: 1 job of kind kills brought down their workers", f"howdah retry {killer}"), lines
    assert told(f"stuck fail: job {late} (work) is held by tester:1, which is dead"), lines
    assert told("workers warn: tester:1", "is dead, silent for 60 s"), lines


async def test_it_names_what_holds_jobs_back_and_what_fails(connection: asyncpg.Connection, database: Database) -> None:
    worker = await add_worker(connection)
    await connection.execute(
        "select howdah.set_limit('brake', concurrency => 0), howdah.set_limit('chat:*', rate => 0.01)"
    )
    assert "limits" not in await troubles(database.url)
    await enqueue_many(
        connection,
        *({"kind": "work", "limits": ["brake"]} for _ in range(2)),
        *({"kind": "work", "limits": [f"chat:{n}"]} for n in range(3)),
        *({"kind": "slow", "queue": "reports"} for _ in range(10)),
        *({"kind": "quick", "queue": "reports"} for _ in range(5)),
        *({"kind": "mail", "queue": "mails"} for _ in range(7)),
    )
    await claim(connection, worker, kinds=["slow"], queue="reports")
    failed = await claim(connection, worker, kinds=["mail"], queue="mails")
    await ack(connection, *(retried(job, delay=60.0) for job in failed))
    found = await troubles(database.url)
    level, says, do = found["limits"]
    assert (level, do) == ("warn", "howdah limit set 'brake' --concurrency N, or howdah limit remove 'brake'")
    assert says.startswith("brake lets nothing start")
    assert "2 jobs wait" in says
    level, says, do = found["failing"]
    assert says.startswith("7 jobs of kind mail failed and wait to be tried again, the next in ")
    assert "howdah jobs --kind mail --state retrying" in do
    assert "queues" not in found
    await connection.execute(
        "update howdah.jobs set created_at = created_at - interval '1 h', ready_at = ready_at - interval '1 h', started_at = claimed_at"
    )
    lines = [f"{one.topic}: {one.says} → {one.do}" for one in await findings(database.url) if one.level == "warn"]
    assert any(
        "limits: chat:* is too narrow for what comes: 0.01 may start in a second; 3 jobs wait, the oldest for 60 min"
        in line
        for line in lines
    ), lines
    assert any(
        "queues: reports: 5 ready, the oldest for 60 min; 10 run for a second or more, 10 of them slow" in line
        and "howdah limit set kind:slow --concurrency N" in line
        for line in lines
    ), lines


async def test_it_names_who_holds_a_snapshot_with_the_statement_that_frees_it(
    connect: Connect, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = await connect(server_settings={"application_name": "somebody's report"})
    await holder.execute("begin isolation level repeatable read; select 1")
    pid = holder.get_server_pid()
    # A minute is too long for a test.
    monkeypatch.setattr(server, "HELD", 0.0)
    level, says, do = (await troubles(database.url))["snapshot"]
    assert (level, do) == ("warn", f"select pg_terminate_backend({pid});")
    assert "somebody's report, idle in transaction" in says
    await holder.execute("rollback")
    assert "snapshot" not in await troubles(database.url)


async def test_it_names_what_is_wrong_with_the_schema(connection: asyncpg.Connection, database: Database) -> None:
    await connection.execute(
        """drop index howdah.jobs_subject;
        update pg_index set indisvalid = false where indexrelid = 'howdah.signals_job'::regclass;
        create index by_state on howdah.jobs (state);
        alter table howdah.events set (autovacuum_enabled = false);
        alter table howdah.jobs reset (fillfactor)"""
    )
    today = await connection.fetchval("select to_char(clock_timestamp() at time zone 'UTC', 'YYYYMMDD')")
    await connection.execute(f"drop table howdah.job_history_{today}")
    lines = [f"{one.level} {one.says} → {one.do}" for one in await findings(database.url)]
    assert any(line.startswith("fail jobs_subject on jobs is missing") for line in lines), lines
    assert any("→ reindex index concurrently howdah.signals_job" in line for line in lines), lines
    assert any(line.startswith("warn by_state names state") for line in lines), lines
    assert any("fail it is switched off for events" in line for line in lines), lines
    assert any("warn jobs has fillfactor 100" in line for line in lines), lines
    assert any(line.startswith("fail today has no partition") for line in lines), lines


async def test_it_hears_that_notifications_are_lost_on_the_way(database: Database) -> None:
    async with proxied(database.url) as wire:
        found = {one.topic: one for one in await findings(wire.url)}
        assert found["listen"].level == "ok"
        assert "something stands in between" in found["pooler"].says
        wire.deaf = True
        found = {one.topic: one for one in await findings(database.url, listen_database_url=wire.url)}
        assert found["pooler"].says == "none in between"
        assert found["listen"].level == "fail"
        assert "HOWDAH_LISTEN_DATABASE_URL" in found["listen"].do


async def test_what_a_login_may_not_see_is_said_and_not_failed(
    connection: asyncpg.Connection, database: Database
) -> None:
    await add_worker(connection)
    async with login(database) as weak:
        await connection.execute(f"grant usage on schema howdah to {name_of(weak)}")
        await connection.execute(f"grant select on howdah.settings, howdah.migrations to {name_of(weak)}")
        found = {one.topic: one.level for one in await findings(weak.url)}
    assert (found["schema"], found["listen"], found["pooler"]) == ("unseen", "ok", "ok")
    assert (found["paused"], found["queues"], found["dead"]) == ("unseen", "unseen", "unseen")
    assert "fail" not in found.values()


@pytest.mark.parametrize("role", ["howdah_worker", "howdah_reader", "howdah_admin"])
async def test_each_group_but_producers_sees_all_of_it(
    connection: asyncpg.Connection, database: Database, role: str
) -> None:
    await add_worker(connection)
    async with login(database, role) as member:
        found = await findings(member.url)
    assert {one.topic for one in found if one.level == "unseen"} == {"port"}
    assert [one for one in found if one.level == "fail"] == []


async def test_the_command_says_all_of_it_and_exits_by_what_it_found(
    connection: asyncpg.Connection, database: Database, tmp_path: Path
) -> None:
    await connection.execute("select howdah.pause(e'evil\\u001b]0;\\u0007')")
    done = howdah("doctor", folder=tmp_path, HOWDAH_DATABASE_URL=database.url, HOWDAH_HTTP_PORT="1")
    assert done.returncode == 1
    assert "fail   workers       none lives" in done.stdout
    assert "\x1b" not in done.stdout
    await add_worker(connection)
    await connection.execute(
        "update howdah.leader set worker = (select max(id) from howdah.workers), until = 'infinity'"
    )
    done = howdah("doctor", "--json", folder=tmp_path, HOWDAH_DATABASE_URL=database.url, HOWDAH_HTTP_PORT="1")
    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout)
    assert said["ok"] is True
    assert {one["level"] for one in said["findings"]} >= {"ok", "warn", "unseen"}


async def test_without_a_schema_or_a_database_it_says_so_in_one_line(database: Database, tmp_path: Path) -> None:
    nowhere = urlsplit(database.url)._replace(path="/no_such_database").geturl()
    done = howdah("doctor", folder=tmp_path, HOWDAH_DATABASE_URL=nowhere, HOWDAH_HTTP_PORT="1")
    assert (done.returncode, done.stdout.split()[:2]) == (1, ["fail", "database"])
    bare = urlsplit(database.url)._replace(path="/postgres").geturl()
    found = [one for one in await findings(bare) if one.level == "fail"]
    assert [(one.topic, one.do) for one in found] == [("schema", "howdah migrate")]
