"""jobs, show, explain, stats: what people see of jobs, and what programs read."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import cli
from support.jobs import Ack, ack, claim, completed, dead, enqueue, enqueue_many, register, retried

if TYPE_CHECKING:
    import asyncpg
    from support.cluster import Database


async def die(connection: asyncpg.Connection, *messages: str, kind: str = "work") -> list[int]:
    """Let jobs die of these errors; gives their ids."""
    await enqueue_many(connection, *({"kind": kind} for _ in messages))
    held = await claim(connection, kinds=[kind])
    await ack(connection, *(dead(job, message) for job, message in zip(held, messages, strict=True)))
    return [job.id for job in held]


async def ids(database: Database, *arguments: str) -> list[int]:
    """Give the ids that `howdah jobs` lists."""
    return [row["id"] for row in (await cli("jobs", "--json", *arguments, url=database)).objects]


# -- jobs --------------------------------------------------------------------------------------------------------------


async def test_jobs_lists_live_and_ended_ones_newest_first(database: Database, connection: asyncpg.Connection) -> None:
    one = await enqueue(connection, subject="course:1")
    await ack(connection, completed((await claim(connection))[0]))
    [two] = await die(connection, "no user 'ada'")
    three = await enqueue(connection, "mail", queue="post", delay=timedelta(minutes=10))
    said = await cli("jobs", url=database)
    lines = said.out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        [str(three), "mail", "scheduled"],
        [str(two), "work", "dead"],
        [str(one), "work", "completed"],
    ]
    assert "in 10 min" in lines[1]
    assert "ValueError: no user 'ada'" in lines[2]
    assert lines[3].endswith("course:1")
    assert await ids(database) == [three, two, one]
    assert await ids(database, "--limit", "2") == [three, two]


async def test_filters_narrow_the_listing_down(database: Database, connection: asyncpg.Connection) -> None:
    [one, two] = await die(connection, "no user 'ada'", "disk is full")
    three = await enqueue(connection, "mail", queue="post", subject="course:1")
    four = await enqueue(connection, subject="course:2")
    for arguments, found in (
        (["--queue", "post"], [three]),
        (["--kind", "work", "--state", "ready"], [four]),
        (["--ready"], [four, three]),
        (["--state", "dead", "--ready", "--subject", "course:2"], [four]),
        (["--dead"], [two, one]),
        (["--state", "dead", "--state", "ready"], [four, three, two, one]),
        (["--state", "dead", "--state", "ready", "--limit", "3"], [four, three, two]),
        (["--error", "DISK"], [two]),
        (["--error", "ValueError"], [two, one]),
        (["--error", "%"], []),
        (["--since", "1 hour"], [four, three, two, one]),
        (["--until", "1 hour ago"], []),
        (["--since", "2999-01-01"], []),
    ):
        assert await ids(database, *arguments) == found, arguments


async def test_a_queue_with_nothing_in_it_is_told_apart_from_a_wrong_name(
    database: Database, connection: asyncpg.Connection
) -> None:
    await enqueue(connection, queue="mail")
    assert (await cli("jobs", "--queue", "mial", url=database)).err == "no job in queue 'mial'; known queues: mail\n"
    assert (await cli("jobs", "--queue", "mail", "--dead", url=database)).err == "no job fits\n"


async def test_the_same_failure_of_many_jobs_is_one_line_whose_fingerprint_finds_them(
    database: Database, connection: asyncpg.Connection
) -> None:
    alike = await die(
        connection,
        "no user 'ada' in group 7",
        'no user "grace hopper" in group 12.5',
        "no user 'O\"Neil' in group 0x7fe3",
        "no user '' in group 3b241101-e2bb-4255-8caf-4136c566a962",
    )
    [other] = await die(connection, "disk is full", kind="mail")
    again = await enqueue(connection)
    await ack(connection, retried((await claim(connection))[0], 60, "no user 'x' in group 1"))
    rows = (await cli("jobs", "--group-by", "error", "--json", url=database)).objects
    assert [(row["jobs"], row["signature"], row["kinds"], row["example"]) for row in rows] == [
        (5, "no user # in group #", ["work"], again),
        (1, "disk is full", ["mail"], other),
    ]
    assert rows[0]["states"] == ["dead", "retrying"]
    assert await ids(database, "--error", rows[0]["name"]) == [again, *reversed(alike)]
    said = await cli("jobs", "--group-by", "error", url=database)
    assert said.out.splitlines()[0].split()[:2] == ["5", rows[0]["name"]]
    assert said.out.splitlines()[1].strip() == "ValueError: no user # in group #"


@pytest.mark.parametrize("by", ["kind", "queue", "state", "worker"])
async def test_jobs_are_counted_by(database: Database, connection: asyncpg.Connection, by: str) -> None:
    await die(connection, "so", "so", "so")
    await enqueue_many(
        connection, *({"kind": "work"} for _ in range(3)), *({"kind": "mail", "queue": "post"} for _ in range(2))
    )
    rows = (await cli("jobs", "--group-by", by, "--json", url=database)).objects
    expected = {
        "kind": {"work": 6, "mail": 2},
        "queue": {"default": 6, "post": 2},
        "state": {"dead": 3, "ready": 5},
        "worker": {"1": 3, "": 5},
    }[by]
    assert {row["name"]: row["jobs"] for row in rows} == expected
    assert (await cli("jobs", "--group-by", by, url=database)).code == 0


async def test_a_listing_does_not_read_what_it_does_not_show(
    database: Database, connection: asyncpg.Connection
) -> None:
    """Counted in pages: on a million ended jobs a listing takes milliseconds, whatever their share of deaths."""
    await connection.execute(
        """insert into howdah.job_history (id, created_at, ready_at, finished_at, priority, attempt, max_attempts, crashes, queue, kind,
             state, payload, errors)
           select n, now(), now(), now(), 0, 1, 1, 0, 'default', 'work', case when n % 1000 = 0 then 'dead' else 'completed' end, '{}',
             case when n % 1000 = 0 then '[{"type": "E", "message": "m"}]'::jsonb end
           from generate_series(1, 20000) n"""
    )
    await connection.execute("analyze howdah.job_history")
    whole = await connection.fetchval(
        "select sum(pg_relation_size(relid)) / 8192 from pg_partition_tree('howdah.job_history')"
    )
    before = await pages_read(connection)
    assert len(await ids(database)) == 50
    assert await ids(database, "--dead", "--limit", "3") == [20000, 19000, 18000]
    read = await pages_read(connection) - before
    assert read < whole / 2, (read, whole)


async def pages_read(connection: asyncpg.Connection) -> int:
    """Count the pages of ended jobs that anybody has looked at."""
    await connection.execute("select pg_sleep(0.05), pg_stat_clear_snapshot()")
    count: int = await connection.fetchval(
        "select coalesce(sum(heap_blks_read + heap_blks_hit), 0)::bigint from pg_statio_all_tables where relname like 'job_history%'"
    )
    return count


# -- show --------------------------------------------------------------------------------------------------------------


async def test_show_tells_everything_and_masks_secrets(database: Database, connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "work", "secret": ["token"]})
    job = await enqueue(connection, payload={"token": "hunter2", "n": 1}, subject="course:1", unique_key="k")
    [held] = await claim(connection)
    await ack(connection, retried(held, 60, "first"))
    await connection.execute("update howdah.jobs set due_at = null")
    [held] = await claim(connection)
    error = {"type": "ValueError", "message": "second\nline", "stack": "Traceback: …\n  here"}
    await ack(connection, Ack(held, "dead", error=error, progress={"done": 3}))
    new = await connection.fetchval("select howdah.retry($1)", job)
    said = await cli("show", str(job), url=database)
    for words in ("work  dead", "course:1", "2 of 3", '"token": "***"', '"done": 3', "ValueError: first", "ValueError: second",
                  "  here", f"retried as  job {new}", "attempt 2, "):  # fmt: skip
        assert words in said.out, words
    assert "hunter2" not in said.out + (await cli("jobs", "--json", url=database)).out
    [row] = (await cli("show", str(job), "--json", url=database)).objects
    assert row["payload"] == {"token": "***", "n": 1}
    assert (row["state"], row["retries"], [error["message"] for error in row["errors"]]) == (
        "dead",
        [new],
        ["first", "second\nline"],
    )
    assert f"job {job}" in (await cli("show", str(new), url=database)).out


HOSTILE = "\x1b[2J\x07\x9b31m[bold red]x[/]\u202e:smile:\r"


async def test_nothing_that_a_job_says_drives_the_terminal(database: Database, connection: asyncpg.Connection) -> None:
    kind = "[link=x]kind[/]\u202e"
    await enqueue(connection, kind, {"text": HOSTILE}, subject=HOSTILE, unique_key=HOSTILE)
    [held] = await claim(connection, kinds=[kind])
    error: dict[str, Any] = {"type": HOSTILE, "message": HOSTILE, "stack": HOSTILE + "\n" + HOSTILE}
    await ack(connection, Ack(held, "dead", error=error, progress=HOSTILE))
    for arguments in (
        ("jobs",),
        ("jobs", "--group-by", "error"),
        ("jobs", "--group-by", "kind"),
        ("show", str(held.id)),
        ("wait", str(held.id)),
        ("stats",),
        ("jobs", "--json"),
        ("show", str(held.id), "--json"),
    ):
        said = await cli(*arguments, url=database)
        assert not set("\x1b\x07\x9b\r") & set(said.out + said.err), arguments
        if "--json" not in arguments:
            assert "\u202e" not in said.out
            assert "[link=x]kind[/]" in said.out or "[bold red]x[/]" in said.out, said.out
    assert (await cli("jobs", "--json", url=database)).objects[0]["error"] == HOSTILE


async def test_listings_keep_within_the_terminal(database: Database, connection: asyncpg.Connection) -> None:
    await register(connection, {"name": "x" * 90})
    await die(connection, *("long " * 100 for _ in range(3)), kind="x" * 90)
    await enqueue(connection, queue="q" * 90, subject="s" * 300)
    for columns in (80, 100):
        for arguments in ((), ("--group-by", "error"), ("--group-by", "queue")):
            said = await cli("jobs", *arguments, url=database, COLUMNS=str(columns))
            assert max(map(len, said.out.splitlines())) <= columns
            assert len(said.out.splitlines()) <= 5, said.out


# -- explain, stats ----------------------------------------------------------------------------------------------------


async def test_explain_says_what_the_database_says(database: Database, connection: asyncpg.Connection) -> None:
    job = await enqueue(connection)
    await cli("pause", "default", "--by", "ada", url=database)
    said = await cli("explain", str(job), url=database)
    assert said.out.startswith(f"Job {job} (work) has been ready for ")
    assert "but ada paused queue default" in said.out
    [found] = (await cli("explain", str(job), "--json", url=database)).objects
    assert found["id"] == job
    assert "but ada paused queue default" in found["explanation"]


async def test_stats_tells_of_live_jobs_pauses_and_deaths(database: Database, connection: asyncpg.Connection) -> None:
    assert (await cli("stats", url=database)).out == "no live jobs\n"
    await die(connection, "so")
    await enqueue_many(connection, *({"kind": "mail", "queue": "post"} for _ in range(1200)))
    await enqueue(connection, "mail", queue="post", delay=timedelta(hours=1))
    await cli("pause", "post", "--by", "ada", url=database)
    said = await cli("stats", url=database)
    [head, default, post, paused] = said.out.splitlines()
    assert head.split()[:4] == ["queue", "kind", "ready", "scheduled"]
    assert default.split() == ["default", "work", "·", "·", "·", "1"]
    assert post.split()[:5] == ["post", "(paused)", "mail", "1,200", "1"]
    assert paused.startswith("queue post was paused")
    assert paused.endswith("by ada")
    [found] = (await cli("stats", "--json", url=database)).objects
    assert [(row["state"], row["jobs"]) for row in found["jobs"]] == [("ready", 1200), ("scheduled", 1)]
    assert found["jobs"][0]["oldest_seconds"] >= 0
    assert [row["name"] for row in found["paused"]] == ["post"]
    assert found["died_last_day"] == [{"queue": "default", "kind": "work", "jobs": 1}]
