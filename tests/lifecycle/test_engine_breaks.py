"""A part of the engine that breaks stops the service with its reason; nothing goes on half alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.facts import end_of
from support.jobs import enqueue

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon


@pytest.mark.parametrize("broken", ["claim_suspect", "start"])
async def test_a_broken_statement_about_suspects_stops_the_service_with_its_reason(
    broken: str, daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(lease_ttl=1)
    await end_of(connection, await enqueue(connection, "work"))
    if broken == "claim_suspect":
        await connection.execute(
            """do $$ begin
              execute regexp_replace(pg_get_functiondef('howdah.claim_suspect'::regproc), '\\mbegin\\M',
                'begin raise exception ''no suspects today'';');
            end $$"""
        )
    else:
        await connection.execute(
            """create function public.refuse() returns trigger language plpgsql as $$
            begin raise exception 'no suspects today'; end $$;
            create trigger refuse before update of started_at on howdah.jobs for each row
            when (new.started_at is not null) execute function public.refuse()"""
        )
    async with connection.transaction():
        job = await enqueue(connection, "work")
        await connection.execute("update howdah.jobs set suspect = true where id = $1", job)
    assert await worker.wait() == 1
    [line] = [line for line in worker.logs() if line["event"].startswith("stopping:")]
    assert "no suspects today" in line["event"]


async def test_a_thread_handler_is_told_of_the_drain_and_what_it_says_then_counts(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        @handler("polite")
        def polite(job: Job) -> Any:
            Path(f"begun {job.payload['then']}").touch()
            while not job.stopping: time.sleep(0.01)
            match job.payload["then"]:
                case "result": return {"cancelled": job.cancelled, "stopping": job.stopping}
                case "snooze": return Snooze(0)
                case "raise": raise ValueError("half way")
        """,
        drain_timeout=0.3,
    )
    jobs = {then: await enqueue(connection, "polite", {"then": then}) for then in ("result", "snooze", "raise")}
    for then in jobs:
        await aeventually(lambda then=then: (worker.folder / f"begun {then}").exists())
    assert await worker.stop() == 0
    done = await end_of(connection, jobs["result"])
    assert (done["state"], done["result"]) == ("completed", {"cancelled": False, "stopping": True})
    rows = await connection.fetch("select id, state, attempt, error from howdah.job_status order by id")
    assert [tuple(row)[1:] for row in rows[1:]] == [("ready", 0, None), ("retrying", 1, "half way")]


async def test_a_process_reports_progress_at_most_once_a_second_and_its_last_word_is_never_lost(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        """create table public.writes (progress jsonb);
        create function public.note() returns trigger language plpgsql as $$
        begin insert into public.writes values (new.progress); return null; end $$;
        create trigger note after update of progress on howdah.jobs for each row
        when (new.progress is distinct from old.progress) execute function public.note()"""
    )
    worker = await daemon(
        """
        @handler("long", runs_in="process")
        def long(job: Job) -> None:
            n = 0
            while not Path("enough").exists():
                n += 1
                job.report({"n": n})
                time.sleep(0.001)
            job.report({"n": "last"})

        @handler("fails", runs_in="process", max_attempts=1)
        def fails(job: Job) -> None:
            job.report({"text": "x" * 500_000})
            job.report({"done": "half"})
            raise ValueError

        @handler("killed", runs_in="process", max_attempts=1, timeout=0.5)
        def killed(job: Job) -> None:
            job.report({"done": "half"})
            time.sleep(600)

        @handler("thread", max_attempts=1)
        def in_thread(job: Job) -> None:
            job.report({"done": "half"})
        """
    )
    job = await enqueue(connection, "long")
    await aeventually(lambda: connection.fetchval("select progress -> 'n' from howdah.jobs where id = $1", job))
    await aeventually(lambda: connection.fetchval("select count(*) >= 2 from public.writes"))
    (worker.folder / "enough").touch()
    ended = await end_of(connection, job)
    assert ended["progress"] == {"n": "last"}
    assert await connection.fetchval("select count(*) from public.writes") <= ended["duration"].total_seconds() + 1
    for kind in ("fails", "killed", "thread"):
        assert (await end_of(connection, await enqueue(connection, kind)))["progress"] == {"done": "half"}, kind
    assert await worker.stop() == 0
