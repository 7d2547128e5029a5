"""Names and texts are data: whatever stands in them is stored and given back as it is, and nothing of it is carried out."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from support.checker import JOURNAL, Checker
from support.commands import cli
from support.eventually import aeventually
from support.facts import is_empty
from support.jobs import enqueue, enqueued
from support.logins import login

from howdah.client import Client

if TYPE_CHECKING:
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

#: Any of these, carried out anywhere, would leave the table `owned` behind, or take `canary` away.
POISON = (
    "'; create table public.owned (id int); --",
    "\\'; drop table public.canary; --",
    "$$; create table public.owned (id int); $$",
    "$x$ || (select public.own()) || $x$",
    '"; drop table public.canary; --',
    "') union select public.own() --",
    "/* */ x' || public.own() || '",
    "%s %I %L %1$s {0} {kind} ${jndi} $1 :name @x",
    "x'::regclass::text",
    "\u02bc; drop table public.canary; \uff07 \u2018 \u2019 \uff02",  # quotes that are none
    "a]\\[red] [bold]b[/bold] <script>alert(1)</script> &amp;",
    "nul\\0 \\x00 \\u0000 \\",
    "../../etc/passwd",
    "-x --json",
    " leading and trailing ",
    "\u202eright to left\u2066 \ufeff\u200b\U0010fffd",
)
#: What only texts may hold that are no names.
CONTROL = (
    'two\nlines\r\n{"event": "forged", "level": "error"}',
    "\x1b[2J\x1b]0;title\x07 \x9b31m red \x08\x7f",
    "\u2028\u2029\x85",
)


@pytest.fixture(autouse=True)
async def canary(connection: asyncpg.Connection) -> None:
    await connection.execute(
        """create table public.canary (id int);
        create function public.own() returns text language plpgsql as $$ begin create table public.owned (id int); return ''; end $$"""
    )


async def nothing_was_carried_out(connection: asyncpg.Connection) -> None:
    assert await connection.fetchval(
        "select to_regclass('public.owned') is null and to_regclass('public.canary') is not null"
    )


@pytest.mark.fault(
    "Security", "SQL in every name and text of enqueue", "stored and given back as it is, nothing is carried out"
)
async def test_names_and_texts_of_jobs_come_back_as_they_went_in(
    connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    async with Client(database.url) as client:
        for poison in POISON:
            given: dict[str, Any] = {
                "unique_key": poison,
                "subject": poison,
                "queue": poison,
                "fifo_key": poison,
                "headers": {poison: poison},
            }
            if "*" not in poison:
                given["limits"] = [poison]
            payload = {poison: poison, "list": [poison]}
            by_sql = await enqueue(connection, poison, payload, **given)
            by_client = (await client.enqueue(poison, payload, **given | {"unique_key": poison + "2"})).id
            [by_many] = await client.enqueue_many(
                [{"kind": poison, "payload": payload, **given, "unique_key": poison + "3"}]
            )
            [by_payloads] = await client.enqueue_payloads(poison, [payload], queue=poison, subject=poison)
            said = await cli(
                "enqueue",
                "--queue",
                poison,
                "--unique-key",
                poison + "4",
                "--subject",
                poison,
                "--",
                poison,
                json.dumps(payload),
                url=database,
            )
            assert said.code == 0, said.err
            by_command = await connection.fetchval("select max(id) from howdah.jobs")
            for job in (by_sql, by_client, by_many.id, by_payloads, by_command):
                row = await connection.fetchrow("select * from howdah.jobs where id = $1", job)
                assert (row["kind"], row["queue"], row["subject"], row["payload"]) == (poison, poison, poison, payload)
                assert row["unique_key"] is None or row["unique_key"].startswith(poison)
                assert (await connection.fetchrow("select * from howdah.job_status where id = $1", job))[
                    "kind"
                ] == poison
                assert poison in await connection.fetchval("select howdah.explain($1)", job)
                figures.faults += 1
            assert (
                await connection.fetchval(
                    "select count(*) from howdah.job_status where kind = $1 and headers ->> $1 = $1", poison
                )
                == 3
            )
            listing = await cli(
                "jobs", "--json", "--queue", poison, "--kind", poison, "--subject", poison, url=database
            )
            assert {row["kind"] for row in listing.objects} == {poison}
            assert len(listing.objects) == 5
            assert (await client.cancel_subject(poison, poison, poison)) == 5
            row = await connection.fetchrow("select * from howdah.job_history where id = $1", by_sql)
            assert (row["cancelled_by"], row["cancel_reason"]) == (poison, poison)
            # Registered, limited, scheduled and paused by that name, too.
            await connection.execute(
                "select howdah.register($1, 1)", [{"name": poison, "secret": [poison], "fields": {}}]
            )
            assert (await connection.fetchval("select howdah.masked($1, $2)", poison, payload))[poison] == "***"
            await connection.execute("select howdah.pause($1, $1)", poison)
            await connection.execute("select howdah.resume($1)", poison)
            name = poison.replace("*", "")
            await connection.execute("select howdah.set_limit($1, concurrency => 3)", name)
            await connection.execute(
                "select howdah.schedule($1, '0 3 * * *', $1, payload => $2)", poison.strip(), payload
            )
            assert (
                await connection.fetchval("select payload from howdah.schedules where name = $1", poison.strip())
                == payload
            )
            for listing_of in ("limit", "schedule"):
                said = await cli(listing_of, "list", "--json", url=database)
                assert {poison.strip(), name} & {row["name"] for row in said.objects}, (listing_of, poison)
    await nothing_was_carried_out(connection)


async def test_every_text_argument_of_every_function_is_only_data(
    connection: asyncpg.Connection, figures: Figures
) -> None:
    """Each function of ours with every text that it takes replaced by SQL, as the owner: whatever is refused, nothing runs."""
    functions = await connection.fetch(
        """select p.oid::regprocedure::text as signature, p.proname as name, coalesce(p.proargnames[:p.pronargs], '{}') as names,
          array(select t::regtype::text from unnest(p.proargtypes) t) as types, p.prorettype = 'trigger'::regtype as fires
        from pg_proc p where p.pronamespace = 'howdah'::regnamespace order by 1"""
    )
    assert len(functions) > 70
    for row in functions:
        texts = [place for place, kind in enumerate(row["types"]) if kind in {"text", "text[]", "jsonb", "jsonb[]"}]
        if row["fires"] or not texts or any("." in kind for kind in row["types"]):
            continue
        for poison in POISON[:8]:
            arguments = [_argument(kind, poison) for kind in row["types"]]
            places = ", ".join(f"${place}::{kind}" for place, kind in enumerate(row["types"], start=1))
            await connection.execute("begin; set local statement_timeout = '2s'")
            try:
                await connection.fetch(f"select 1 from howdah.{row['name']}({places})", *arguments)
            except asyncpg.PostgresSyntaxError as error:
                raise AssertionError(f"{row['signature']} made SQL of {poison!r}: {error}") from error
            except asyncpg.PostgresError as error:
                assert error.sqlstate != "42601", (row["signature"], error)  # noqa: PT017  # whatever else it is
            await nothing_was_carried_out(connection) if not await in_error(connection) else None
            await connection.execute("rollback")
            figures.faults += 1
    await nothing_was_carried_out(connection)


def _argument(kind: str, poison: str) -> Any:  # noqa: PLR0911  # a table
    match kind:
        case "text":
            return poison
        case "text[]":
            return [poison]
        case "jsonb":
            return {poison: poison, "kind": poison, "name": poison}
        case "jsonb[]":
            return [{poison: poison}]
        case "bigint[]":
            return [1]
        case "interval":
            return timedelta(seconds=1)
        case _:
            return None


async def in_error(connection: asyncpg.Connection) -> bool:
    try:
        await connection.fetchval("select 1")
    except asyncpg.InFailedSQLTransactionError:
        return True
    return False


async def test_no_sql_of_ours_is_put_together_from_texts_unquoted(connection: asyncpg.Connection) -> None:
    """`execute` is where SQL is made of texts: there is little of it, and every name in it goes through %I, every value through %L."""
    rows = await connection.fetch(
        "select p.oid::regprocedure::text as function, p.prosrc from pg_proc p where p.pronamespace = 'howdah'::regnamespace and p.prosrc ~ '\\mexecute\\M'"
    )
    found = {row["function"].partition("(")[0].removeprefix("howdah.") for row in rows}
    assert found == {"make_partitions", "drop_partitions"}
    for row in rows:
        for statement in re.findall(r"execute\s+(.*?);", row["prosrc"], flags=re.DOTALL):
            assert statement.startswith("format("), statement
            assert "%s" not in statement
            assert "||" not in statement.partition(",")[0]


COMMANDS = (
    ("jobs",), ("jobs", "--group-by", "error"), ("stats",), ("doctor",), ("top", "--once"), ("show", "18"), ("explain", "18"), ("jobs", "--json"),
    ("show", "17", "--json"),
)  # fmt: skip

HANDLERS = JOURNAL + """
import json
KINDS = json.loads(Path("kinds").read_text()) if Path("kinds").exists() else []

async def tell(job):
    await quick_journal(job, "start")
    job.log.warning("says %s", job.payload["text"], extra={"told": job.payload["text"]})
    logging.getLogger(job.payload["text"]).warning(job.payload["text"])
    await job.report(job.payload["text"])
    await quick_journal(job, "end")
    raise ValueError(job.payload["text"])

@handler("tells", max_attempts=1)
async def tells(job: Job) -> None:
    await tell(job)

for kind in PLACE:
    handler(kind, max_attempts=1)(tell)
"""  # fmt: skip


@pytest.mark.fault(
    "Security",
    "newlines, escape sequences and forged lines in kinds, errors, payloads and subjects",
    "one event is one line, and nothing that a terminal obeys",
)
@pytest.mark.parametrize("style", ["json", pytest.param("console", marks=pytest.mark.long)])
async def test_nobody_forges_a_line_of_the_log_or_drives_the_terminal(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures, style: str
) -> None:
    checker = await Checker(connection).install()
    kinds = [poison for poison in POISON if poison.isprintable()]
    worker = await daemon(
        HANDLERS.replace("PLACE", repr(kinds)), ready=False, log_format=style, log_level="debug", http_port=0
    )
    texts = (*POISON, *CONTROL)
    for text in texts:
        await enqueue(connection, "tells", {"text": text}, subject=text, unique_key=text)
        figures.faults += 1
    for kind in kinds:
        await enqueue(connection, kind, {"text": kind})
        figures.faults += 1
    await aeventually(lambda: is_empty(connection), timeout=20)
    worker.terminate()
    assert await worker.wait() == 0
    output = worker.log_file.read_bytes().decode("utf-8")
    raw = {character for character in output if ord(character) < 0x20 or character == "\x7f"}
    assert raw == {"\n"}
    lines = output.split("\n")[:-1]
    if style == "json":
        events = [json.loads(line) for line in lines]
        assert all(isinstance(event, dict) and {"time", "level", "event", "logger"} <= event.keys() for event in events)
        assert not any(event["event"] == "forged" for event in events)
        assert {event["told"] for event in events if "told" in event} >= set(texts)
    else:
        begin = re.compile(r"\d\d:\d\d:\d\d (debug  |info   |warning|error  ) ")
        assert all(begin.match(line) for line in lines), [line for line in lines if not begin.match(line)][:3]
        assert all(character.isprintable() for line in lines for character in line)
    for words in COMMANDS if style == "json" else ():
        said = await cli(*words, url=database)
        assert said.code in {0, 1}, said.err
        hostile = re.findall(
            "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]" if "--json" not in words else "[\x00-\x09\x0b-\x1f\x7f-\x9f]",
            said.out + said.err,
        )
        assert hostile == [], words
    await checker.check(figures=figures)


WORDS = (
    "ended 9" + "9" * 5000,
    "ended",
    "cancel",
    "due",
    "limits",
    "settle",
    "suspects",
    "echo x",
    "",
    "{}",
    "cancel 1; drop table x",
    "ended -1",
    "\x1b[2J",
    "ended \u0663",
)


@pytest.mark.fault(
    "Security", "any login sends anything on the channels", "workers and those who wait look once more, and that is all"
)
async def test_words_that_anybody_may_notify_do_no_harm(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(JOURNAL)
    async with login(database) as nobody, Client(database.url) as client:
        stranger = await asyncpg.connect(nobody.url)
        try:
            job = (await client.enqueue("innocent", {"seconds": 1.5})).id
            waits = asyncio.create_task(client.wait(job, timeout=10))
            await aeventually(lambda: checker.starts(job))
            for _ in range(30):
                for channel in ("howdah", "howdah_control"):
                    for word in (*WORDS, *POISON):
                        await stranger.execute("select pg_notify($1, $2)", channel, word.replace("\0", ""))
                        figures.faults += 1
            assert (await waits).state == "completed"
        finally:
            stranger.terminate()
    row = await enqueued(connection, "innocent")
    await aeventually(lambda: checker.starts(row["id"]))
    await aeventually(lambda: is_empty(connection))
    assert worker.process.poll() is None
    assert [line for line in worker.logs() if line.get("level") in {"warning", "error"} or not line["event"]] == []
    await checker.check(figures=figures)
