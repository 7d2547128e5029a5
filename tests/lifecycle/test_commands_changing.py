"""retry, cancel, wait, pause, resume, enqueue: what commands do to jobs."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.commands import cli
from support.daemon import clean_environment
from support.jobs import ack, claim, completed, dead, enqueue, enqueue_many, status

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from support.cluster import Database

FAILED, TIMED_OUT, INTERRUPTED, NOBODY_READS = 1, 124, 130, 141


async def die(connection: asyncpg.Connection, *jobs: dict[str, object], message: str = "no user 7") -> list[int]:
    """Let jobs die; gives their ids."""
    await enqueue_many(connection, *({"kind": "work", **job} for job in jobs))
    held = await claim(connection, count=len(jobs))
    await ack(connection, *(dead(job, message) for job in held))
    return [job.id for job in held]


def command(*arguments: str, database: Database) -> list[str]:
    return ["env", f"HOWDAH_DATABASE_URL={database.url}", sys.executable, "-m", "howdah", *arguments]


# -- retry -------------------------------------------------------------------------------------------------------------


async def test_retry_makes_new_jobs_of_the_named_ones(database: Database, connection: asyncpg.Connection) -> None:
    [one, two] = await die(connection, {}, {})
    said = await cli("retry", str(one), str(two), str(one), url=database)
    assert said.code == 0
    new = [row["id"] for row in await connection.fetch("select id from howdah.jobs order by retried_from")]
    assert said.out == f"job {one} is retried as {new[0]}\njob {two} is retried as {new[1]}\n"
    said = await cli("retry", str(new[0]), str(two), "--json", url=database)
    assert said.code == FAILED
    assert said.objects[0]["id"] == two
    assert said.objects[1] == {"id": new[0], "error": f"job {new[0]} has not ended yet"}


async def test_a_held_unique_key_keeps_no_other_job_from_being_retried(
    database: Database, connection: asyncpg.Connection
) -> None:
    [held] = await die(connection, {"unique_key": "a"})
    [older] = await die(connection, {"unique_key": "b"})
    [newer] = await die(connection, {"unique_key": "b"})
    [*free] = await die(connection, *({} for _ in range(450)))
    await enqueue(connection, unique_key="a")
    said = await cli("retry", "--dead", "--yes", url=database)
    assert (said.code, said.out) == (FAILED, "retried 451 jobs\n")
    assert said.err == f"howdah: 2 jobs ({held}, {older}) not retried: a live job has the same unique key\n"
    rows = await connection.fetch("select retried_from from howdah.jobs where retried_from is not null")
    assert {row["retried_from"] for row in rows} == {newer, *free}


async def test_a_bulk_retry_passes_over_what_it_has_retried_before(
    database: Database, connection: asyncpg.Connection
) -> None:
    await die(connection, {}, {})
    [mail] = await die(connection, {"subject": "mail"}, message="disk is full")
    asked = await cli("retry", "--kind", "work", "--error", "user", "--dry-run", url=database)
    assert asked.out == "would retry 2 jobs: 1, 2\n"
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0
    assert (await cli("retry", "--error", "no user 8", "--yes", url=database)).err == "no job to retry\n"
    assert (await cli("retry", "--error", "user", "--limit", "1", "--yes", url=database)).out == "retried 1 job\n"
    said = await cli("retry", "--error", "user", "--yes", url=database)
    assert said.out == "retried 1 job; 1 job retried before passed over\n"
    said = await cli("retry", "--error", "user", "--yes", url=database)
    assert (said.code, said.err) == (0, "no job to retry; 2 jobs retried before passed over\n")
    said = await cli("retry", "--state", "dead", "--yes", "--json", url=database)
    assert [row["id"] for row in said.objects] == [mail]


# -- cancel ------------------------------------------------------------------------------------------------------------


async def test_cancel_ends_queued_jobs_and_tells_running_ones(
    database: Database, connection: asyncpg.Connection
) -> None:
    [ended] = await die(connection, {})
    running = await enqueue(connection)
    await claim(connection)
    queued = await enqueue(connection)
    said = await cli("cancel", str(ended), str(running), str(queued), "--reason", "sent twice", url=database)
    assert said.code == FAILED
    assert said.out == f"job {running} is running and will be told\njob {queued} is cancelled\n"
    assert said.err == f"howdah: job {ended} not cancelled: ended before: dead\n"
    row = await status(connection, queued)
    assert "@" in row["cancelled_by"]
    assert row["cancel_reason"] == "sent twice"
    assert await connection.fetchval("select reason from howdah.signals where job_id = $1", running) == "sent twice"


async def test_cancel_by_filter_takes_live_jobs_only(database: Database, connection: asyncpg.Connection) -> None:
    await die(connection, {"subject": "course:1"})
    await enqueue_many(connection, *({"kind": "work", "subject": "course:1"} for _ in range(412)), {"kind": "mail"})
    told = await claim(connection, count=2)
    asked = await cli("cancel", "--subject", "course:1", "--dry-run", "--json", url=database)
    assert len(asked.objects) == 412
    said = await cli("cancel", "--subject", "course:1", "--by", "ada", "--yes", url=database)
    assert (said.code, said.out) == (0, "cancelled 410 jobs; 2 running jobs will be told\n")
    left = await connection.fetch("select id, kind from howdah.jobs order by id")
    assert {row["id"] for row in left if row["kind"] == "work"} == {job.id for job in told}
    assert await connection.fetchval("select count(*) from howdah.job_history where cancelled_by = 'ada'") == 410


@pytest.mark.parametrize(("answer", "left"), [("n", 3), ("", 3), ("y", 0)])
async def test_many_jobs_are_touched_only_after_a_yes(
    database: Database, connection: asyncpg.Connection, answer: str, left: int
) -> None:
    await enqueue_many(connection, *({"kind": "work"} for _ in range(3)))
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *command("cancel", "--kind", "work", database=database),
            stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
        )  # fmt: skip
        os.write(ours, f"{answer}\n".encode())
        _, said = await process.communicate()
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"Cancel 3 jobs? [y/N]:" in said
    assert process.returncode == 0
    assert await connection.fetchval("select count(*) from howdah.jobs") == left


# -- wait --------------------------------------------------------------------------------------------------------------


async def test_wait_for_one_job_tells_how_it_ended(database: Database, connection: asyncpg.Connection) -> None:
    job = await enqueue(connection)
    waiting = asyncio.create_task(cli("wait", str(job), url=database))
    [held] = await claim(connection)
    await ack(connection, completed(held, {"n": 1}))
    said = await waiting
    assert (said.code, said.out) == (0, f"job {job} completed\n")
    [row] = (await cli("wait", str(job), "--json", url=database)).objects
    assert (row["state"], row["result"]) == ("completed", {"n": 1})
    [lost] = await die(connection, {})
    said = await cli("wait", str(lost), url=database)
    assert (said.code, said.out) == (FAILED, f"job {lost} is dead: no user 7\n")
    gone = await enqueue(connection)
    await cli("cancel", str(gone), url=database)
    said = await cli("wait", str(gone), url=database)
    assert (said.code, said.out) == (FAILED, f"job {gone} is cancelled\n")


async def test_wait_for_a_sort_says_what_is_left_and_when_time_is_up(
    database: Database, connection: asyncpg.Connection
) -> None:
    await enqueue_many(connection, *({"kind": "work", "subject": "course:1"} for _ in range(3)), {"kind": "mail"})
    [held] = await claim(connection, count=1)
    said = await cli("wait", "--subject", "course:1", "--timeout", "0.2", url=database)
    assert (said.code, said.out) == (TIMED_OUT, "")
    assert said.err.splitlines() == [
        "waiting: 3 jobs left: 2 ready, 1 running",
        "howdah: time is up: 3 jobs left: 2 ready, 1 running",
    ]
    await cli("cancel", "--subject", "course:1", "--ready", "--yes", url=database)
    waiting = asyncio.create_task(cli("wait", "--subject", "course:1", "--kind", "work", "--json", url=database))
    await ack(connection, completed(held))
    said = await waiting
    assert (said.code, said.objects) == (0, [{"done": True, "left": {}}])
    said = await cli("wait", "--queue", "default", "--timeout", "0", url=database)
    assert said.code == TIMED_OUT


async def test_an_interrupt_ends_a_wait_without_a_word(database: Database, connection: asyncpg.Connection) -> None:
    job = await enqueue(connection)
    process = await asyncio.create_subprocess_exec(
        *command("wait", str(job), database=database),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    assert process.stderr is not None
    assert await process.stderr.readline() == b"waiting: job 1 is ready\n"
    process.send_signal(signal.SIGINT)
    out, said = await process.communicate()
    assert (process.returncode, out, said) == (INTERRUPTED, b"", b"")


async def test_a_reader_that_leaves_ends_a_listing_without_a_word(
    database: Database, connection: asyncpg.Connection
) -> None:
    await enqueue_many(connection, *({"kind": "work", "payload": {"text": "x" * 1000}} for _ in range(500)))
    for arguments in (("jobs", "--json", "--limit", "500"), ("jobs", "--limit", "500"), ("show", "1")):
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", '"$@"; echo $? >&2', "sh", *command(*arguments, database=database),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout._transport.close()  # type: ignore[attr-defined]
        _, said = await process.communicate()
        assert said.split() == [str(NOBODY_READS).encode()], said


# -- queues ------------------------------------------------------------------------------------------------------------


async def test_pause_and_resume(database: Database, connection: asyncpg.Connection) -> None:
    await enqueue(connection, queue="mail")
    said = await cli("pause", "mail", url=database)
    assert (said.code, said.out, said.err) == (0, "queue mail is paused\n", "")
    assert await claim(connection, queue="mail") == []
    assert (await cli("resume", "mail", url=database)).out == "queue mail is resumed\n"
    assert len(await claim(connection, queue="mail")) == 1
    assert (await cli("resume", "mail", url=database)).out == "queue mail was not paused\n"
    said = await cli("pause", "mial", url=database)
    assert said.err == "howdah: nobody has used queue 'mial' yet (known: mail); it is paused all the same\n"


async def test_all_queues_are_paused_and_resumed_at_once(database: Database, connection: asyncpg.Connection) -> None:
    assert (await cli("resume", "--all", url=database)).out == "no queue to be resumed\n"
    await enqueue_many(connection, {"kind": "work"}, {"kind": "work", "queue": "mail"})
    assert (await cli("pause", "--all", "--by", "ada", url=database)).out == "paused: default, mail\n"
    assert await claim(connection) == []
    assert (await cli("resume", "--all", url=database)).out == "resumed: default, mail\n"
    assert len(await claim(connection)) == 1
    for words in (("pause",), ("pause", "mail", "--all"), ("resume",)):
        said = await cli(*words, url=database)
        assert (said.code, "--all" in said.complaint) == (2, True)


# -- enqueue -----------------------------------------------------------------------------------------------------------


async def test_every_argument_of_enqueue_has_an_option(database: Database, connection: asyncpg.Connection) -> None:
    first = await enqueue(connection)
    said = await cli(
        "enqueue", "mail", "-", "--queue", "post", "--priority", "3", "--run-at", "2999-01-01T09:00+00:00", "--max-attempts", "7",
        "--timeout", "1h30m", "--unique-key", "k", "--subject", "s", "--expires-at", "2999-02-01", "--headers", '{"trace": "t"}',
        "--depends-on", str(first), "--on-failed-dependency", "run",
        url=database, given='{"n": 12345678901234567890123}',
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.err == "howdah: kind 'mail' was never registered\n"
    row = await connection.fetchrow("select *, payload ->> 'n' as n from howdah.jobs where id = $1", int(said.out))
    assert row is not None
    found = (
        row["queue"],
        row["priority"],
        row["max_attempts"],
        str(row["timeout"]),
        row["unique_key"],
        row["subject"],
        row["n"],
    )
    assert found == ("post", 3, 7, "1:30:00", "k", "s", "12345678901234567890123")
    assert (row["state"], row["headers"], row["expires_at"].year) == ("waiting", {"trace": "t"}, 2999)
    assert (await cli("enqueue", "mail", "--unique-key", "k", "--json", url=database)).objects == [
        {"id": row["id"], "created": False}
    ]
    await cli("enqueue", "mail", "--limits", "api", "--limits", "chat:7", "--fifo-key", "f", url=database)
    limited = await connection.fetchrow("select limits, fifo_key from howdah.jobs where limits is not null")
    assert tuple(limited) == (["api", "chat:7"], "f")


async def test_many_lines_are_enqueued_at_once_with_the_options_as_defaults(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    lines = [{"payload": {"n": n}} for n in range(2500)] + [{"kind": "mail", "queue": "post", "unique_key": "k"}]
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    said = await cli(
        "enqueue", "work", '{"n": -1}', "--many", str(file), "--queue", "bulk", "--delay", "1h", url=database
    )
    assert (said.code, said.out) == (0, "enqueued 2,501 jobs\n")
    rows = await connection.fetch("select kind, queue, state, payload from howdah.jobs order by id")
    assert [row["payload"]["n"] for row in rows] == [*range(2500), -1]
    assert {tuple(row)[:3] for row in rows} == {("work", "bulk", "scheduled"), ("mail", "post", "scheduled")}
    said = await cli("enqueue", "--many", "-", "--json", url=database, given='\n{"kind": "mail", "unique_key": "k"}')
    assert [(row["line"], row["created"]) for row in said.objects] == [(2, False)]


async def test_limits_are_set_listed_and_removed(database: Database, connection: asyncpg.Connection) -> None:
    assert "no limits" in (await cli("limit", "list", url=database)).out
    await cli("limit", "set", "chat:*", "--rate", "2", url=database)
    await cli("limit", "set", "api", "--concurrency", "5", url=database)
    for key in ("chat:1", "chat:1", "chat:2", "api"):
        await connection.execute("select howdah.enqueue('work', limits => array[$1])", key)
    await connection.fetch("select * from howdah.claim_limited(1, 1, '{work}', '{default}', '{10}')")
    said = await cli("limit", "list", url=database)
    assert "api: 5 at once; 1 running, 0 waiting" in said.out
    assert "chat:*: 2 a second, 1 at one moment; 2 running (of 2 keys), 1 waiting" in said.out
    [api, _] = (await cli("limit", "list", "--json", url=database)).objects
    assert (api["name"], api["concurrency"], api["rate"], api["running"]) == ("api", 5, None, 1)
    assert "is removed" in (await cli("limit", "remove", "api", url=database)).out
    assert "there was no limit" in (await cli("limit", "remove", "api", url=database)).out
    wrong = await cli("limit", "set", "a*b", "--concurrency", "1", url=database)
    assert wrong.code == 1
    assert "a * only as the last" in wrong.err
    assert (await cli("limit", "set", "api", url=database)).code == 2
