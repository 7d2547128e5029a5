"""What nobody can read, tell or store ends its own job with an error that says so, and spoils no other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from support.checker import JOURNAL, Checker
from support.commands import cli
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, enqueue_many

from howdah.anyjson import read
from howdah.client import Client

if TYPE_CHECKING:
    from conftest import StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon
    from support.figures import Figures

#: Innocent jobs around every hostile one.
CROWD = 20


def nested(depth: int) -> str:
    return '{"a": ' + "[" * depth + "]" * depth + "}"


#: JSON that PostgreSQL keeps, and whether a handler can be given it.
STORED = {
    "deep enough for a handler": (nested(150), True),
    "deeper than the parser of payloads": (nested(300), False),
    "deeper than any parser": (nested(1100), False),
    "ten thousand levels": (nested(10_000), False),
    "a number of 1,000 digits": ('{"a": 1e999}', True),
    "a number of 131,072 digits": ('{"a": 1e131071}', False),
    "a very small number": ('{"a": -1e-1000}', True),
    "every plane": (json.dumps({chr(plane << 16 | 0x61): chr(plane << 16 | 0x62) for plane in range(17)}), True),
    "a million keys' worth": ('{"a": ["' + '", "'.join(["\\ud83d\\udc18"] * 80_000) + '"]}', True),
}

#: Headers are read by another parser, which is given every job's and goes deeper.
READ_AS_HEADERS = {
    "deep enough for a handler",
    "deeper than the parser of payloads",
    "a very small number",
    "every plane",
}
TOO_LARGE_FOR_HEADERS = {"a number of 131,072 digits", "a million keys' worth"}

HANDLERS = JOURNAL + """
class Any_(BaseModel):
    a: Any = None

@handler("plain")
async def plain(job: Job) -> None:
    await quick_journal(job, "start")
    await quick_journal(job, "end")

@handler("model")
async def model(job: Job[Any_]) -> None:
    await quick_journal(job, "start")
    await quick_journal(job, "end")

@on_error
def tell(job, error):
    Path("told").open("a").write(f"{job.id}\\n")
"""  # fmt: skip


@pytest.mark.fault(
    "Data", "JSON that no parser takes, in payloads and headers", "the job is dead at once and says why, the others run"
)
async def test_a_payload_that_the_database_takes_and_no_parser_does_ends_its_own_job_only(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, figures: Figures
) -> None:
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=read)
    checker = await Checker(connection).install()
    jobs: dict[int, tuple[str, bool]] = {}
    for what, (text, readable) in STORED.items():
        await enqueue_many(connection, *[{"kind": "innocent"}] * CROWD)
        for kind in ("plain", "model"):
            as_payload = await connection.fetchval(
                "select id from howdah.enqueue($1, $2::text::jsonb, max_attempts => 5)", kind, text
            )
            jobs[as_payload] = (f"payload of {kind}: {what}", readable)
        figures.faults += 2
        if what in TOO_LARGE_FOR_HEADERS:
            continue
        as_headers = await connection.fetchval(
            "select id from howdah.enqueue('plain', headers => $1::text::jsonb)", text
        )
        jobs[as_headers] = (f"headers: {what}", what in READ_AS_HEADERS)
        figures.faults += 1
    worker = await daemon(HANDLERS, log_level="debug")
    await aeventually(lambda: is_empty(connection), timeout=15)
    assert worker.process.poll() is None, worker.output()
    for job, (what, readable) in jobs.items():
        row = await connection.fetchrow(
            "select state, attempt, errors -> 0 ->> 'type' as type, errors -> 0 ->> 'message' as message from howdah.job_history where id = $1", job
        )  # fmt: skip
        if readable:
            assert (row["state"], row["type"]) == ("completed", None), what
        else:
            assert (row["state"], row["attempt"], row["type"]) == ("dead", 1, "PayloadError"), what
            assert row["message"].startswith(("plain: ", "model: ")), row["message"]
    told = (worker.folder / "told").read_text().split()
    assert sorted(map(int, told)) == sorted(job for job, (_, readable) in jobs.items() if not readable)
    await checker.check(figures=figures)

    # People can look at them: one such job spoils neither a listing nor its own sheet.
    listing = await cli("jobs", "--json", "--limit", "1000", url=database)
    assert (listing.code, len(listing.objects)) == (0, len(STORED) * CROWD + len(jobs))
    async with Client(database.url) as client:
        for job, (what, readable) in jobs.items():
            if not readable and what.startswith("payload of plain"):
                for form in ((), ("--json",)):
                    sheet = await cli("show", str(job), *form, url=database)
                    assert sheet.code == 0, (what, sheet.err)
                status = await client.job(job)
                assert status is not None
                assert status.ended


@pytest.mark.fault("Data", "JSON that PostgreSQL itself refuses", "refused in the caller's face, nothing is enqueued")
async def test_what_cannot_be_stored_is_refused_in_the_callers_face(
    connection: asyncpg.Connection, figures: Figures
) -> None:
    refused = {
        "NUL": '{"a": "\\u0000"}',
        "NUL in a key": '{"\\u0000": 1}',
        "half a surrogate pair": '{"a": "\\ud83d"}',
        "the wrong half": '{"a": "\\udc18\\ud83d"}',
        "not a number": '{"a": NaN}',
        "infinity": '{"a": Infinity}',
        "no number so large": '{"a": 1e200000}',
        "four hundred thousand levels": nested(400_000),
        "a byte too much": '{"a": "' + "x" * ((1 << 20) - 8) + '"}',
        "no object": "[]",
    }
    for what, text in refused.items():
        for call in ("howdah.enqueue('work', $1::text::jsonb)", "howdah.enqueue('work', headers => jsonb_build_object('h', $1::text::jsonb), payload => $1::text::jsonb)",
                     "howdah.enqueue_coalesced('work', $1::text::jsonb)", "howdah.enqueue_payloads('work', array[$1::text::jsonb])",
                     "howdah.enqueue_many(jsonb_build_array(jsonb_build_object('kind', 'work', 'payload', $1::text::jsonb)))"):  # fmt: skip
            with pytest.raises(asyncpg.PostgresError) as caught:
                await connection.execute(f"select {call}", text)
            assert caught.value.sqlstate is not None
            assert caught.value.sqlstate[:2] in {"22", "54", "JB"}, (what, caught.value)
            figures.faults += 1
    assert await is_empty(connection)
    largest = '{"a": "' + "x" * ((1 << 20) - 9) + '"}'
    assert await connection.fetchval("select id from howdah.enqueue('work', $1::text::jsonb)", largest)


HOSTILE = JOURNAL + """
class Meta(type):
    @property
    def __name__(cls): raise RuntimeError("no name")
    @property
    def __module__(cls): raise RuntimeError("no module")
    def __instancecheck__(cls, other): raise RuntimeError("no instance")
    def __subclasscheck__(cls, other): raise RuntimeError("no subclass")

class Nameless(Exception, metaclass=Meta): ...

class Liar(Exception):
    @property
    def __class__(self): raise RuntimeError("no class")

class Exits(Exception):
    def __str__(self): raise SystemExit("out of __str__")
    def __repr__(self): raise KeyboardInterrupt("out of __repr__")

class Numb(Exception):
    def __str__(self): return 7
    __repr__ = __str__

class Sly(str):
    def replace(self, *_): raise RuntimeError("no replace")
    def encode(self, *_): raise RuntimeError("no encode")
    def __getitem__(self, _): raise RuntimeError("no item")
    def __len__(self): return -1

class Slyly(Exception):
    def __str__(self): return Sly("sly")

class Noted(Exception):
    @property
    def __notes__(self): raise RuntimeError("no notes")

class Callous(Exception):
    def with_traceback(self, _): raise RuntimeError("no traceback")
    def __getattribute__(self, name): raise RuntimeError("no attribute")

class Unequal(Exception):
    def __eq__(self, other): raise RuntimeError("no equal")
    __hash__ = None

def chained(depth):
    error = None
    for place in range(depth):
        cause, error = error, ValueError(f"link {place}")
        error.__cause__ = cause
    return error

def noted(error, *notes):
    for note in notes: error.add_note(note)
    return error

def fall(depth):
    if depth: fall(depth - 1)
    raise LookupError("deep down")

def group(depth):
    error = ValueError("innermost")
    for _ in range(depth): error = ExceptionGroup("a group", [error])
    return error

HUGE = 10_000_000
ERRORS = {
    "nameless": Nameless,
    "liar": Liar,
    "exits": Exits,
    "numb": Numb,
    "sly": Slyly,
    "noted": Noted,
    "callous": Callous,
    "unequal": Unequal,
    "generator exit": lambda: GeneratorExit("of its own"),
    "ten megabytes": lambda: ValueError("x" * HUGE),
    "ten megabytes of nothing": lambda: ValueError("\\0\\ud800" * (HUGE // 2)),
    "ten megabytes of name": lambda: type("N" * HUGE, (Exception,), {})("a long name"),
    "ten megabytes of notes": lambda: noted(ValueError("noted"), "n" * HUGE),
    "every plane": lambda: ValueError("".join(chr(plane << 16 | 0x61) for plane in range(17))),
    "endless": lambda: chained(3000),
    "a circle": lambda: circle(),
    "group": lambda: group(500),
    "bottomless": lambda: fall(100_000),
    "deep progress": lambda: ValueError("after its progress"),
}

def circle():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one

def nested(depth):
    value = []
    for _ in range(depth): value = [value]
    return value

async def misbehave(job):
    await quick_journal(job, "start")
    await job.report({"deep": nested(10_000), "nul": "\\0\\ud800"})
    try:
        raise ERRORS[job.payload["what"]]()
    finally:
        await quick_journal(job, "end")

@handler("hostile", max_attempts=2, backoff=lambda attempt: 0, retry_for=[KeyError], discard_for=[MemoryError])
async def hostile(job: Job) -> None:
    await misbehave(job)

@handler("hostile transaction", max_attempts=1, transaction=True)
async def hostile_transaction(job: Job, connection: asyncpg.Connection) -> None:
    await misbehave(job)

@handler("hostile thread", max_attempts=1)
def hostile_thread(job: Job) -> None:
    asyncio.run(journal(job, "start"))
    asyncio.run(journal(job, "end"))
    raise ERRORS[job.payload["what"]]()

class Leaves(BaseModel):
    def model_post_init(self, _): raise SystemExit("out of a validator")

@handler("leaving validator", max_attempts=1)
async def leaving_validator(job: Job[Leaves]) -> None: ...

@handler("leaving backoff", max_attempts=2, backoff=lambda attempt: sys.exit(3))
async def leaving_backoff(job: Job) -> None:
    await quick_journal(job, "start")
    await quick_journal(job, "end")
    raise ValueError("and what then?")
"""  # fmt: skip
ERRORS = (
    "nameless", "liar", "exits", "numb", "sly", "noted", "callous", "unequal", "generator exit", "ten megabytes", "ten megabytes of nothing", "ten megabytes of name",
    "ten megabytes of notes", "every plane", "endless", "a circle", "group", "bottomless", "deep progress",
)  # fmt: skip


@pytest.mark.fault(
    "Data",
    "exceptions that raise when they are told, of 10 MB, of no text",
    "an attempt that failed; the worker goes on",
)
async def test_an_exception_that_cannot_be_told_is_a_failed_attempt_and_no_more(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    jobs: list[dict[str, Any]] = [
        {"kind": kind, "payload": {"what": what}, "max_attempts": 2 if kind == "hostile" else 1}
        for what in ERRORS
        for kind in ("hostile", "hostile transaction", "hostile thread")
    ]
    await enqueue_many(
        connection,
        *[{"kind": "innocent"}] * CROWD,
        *jobs,
        *[{"kind": "innocent"}] * CROWD,
    )
    await enqueue(connection, "leaving backoff", max_attempts=2)
    worker = await daemon(HOSTILE, log_level="debug", queues="default:20")
    await aeventually(lambda: is_empty(connection), timeout=25)
    figures.faults = len(jobs) + 2
    assert len(backoff_warnings(worker)) == 1
    assert worker.process.poll() is None
    rows = await connection.fetch(
        "select kind, payload ->> 'what' as what, state, attempt, errors, pg_column_size(errors) as size from howdah.job_history where kind <> 'innocent'"
    )
    assert {row["state"] for row in rows} == {"dead"}
    for row in rows:
        assert row["attempt"] == (2 if row["kind"] in {"hostile", "leaving backoff"} else 1), row
        assert row["size"] < 100_000
        for error in row["errors"]:
            assert error["type"], row
            assert error["message"], row
            assert len(error["type"]) <= 200
            assert len(error["message"]) <= 2000
    await checker.check(figures=figures)
    # It never started, and is dead of its own validator: to the checker no promise allows that.
    row = await end_of(connection, await enqueue(connection, "leaving validator", max_attempts=1))
    assert (row["state"], row["errors"][0]["type"]) == ("dead", "SystemExit")
    assert worker.process.poll() is None


def backoff_warnings(worker: Daemon) -> list[dict[str, Any]]:
    return worker.log_events("no delay from backoff")


STEPS = JOURNAL + """
def nested(depth):
    value = []
    for _ in range(depth): value = [value]
    return value

ODD = {
    "nul": lambda: "\\0", "surrogate": lambda: "\\ud800", "deep": lambda: nested(10_000), "nan": lambda: float("nan"), "set": lambda: {1},
    "bytes": lambda: b"x", "huge": lambda: "x" * (1 << 20), "just": lambda: "x" * ((1 << 20) - 2), "big": lambda: 10 ** 30,
}

@handler("steps", max_attempts=1)
async def steps(job: Job) -> dict[str, str]:
    await quick_journal(job, "start")
    found = {}
    for name, make in ODD.items():
        try:
            found[name] = type(await job.step(name, make)).__name__
        except Exception as error:
            found[name] = type(error).__name__
    for name in ("\\ud800", "", "x" * 201, "\\0", "x" * 200, chr(0x10fffd)):
        try:
            await job.step(name, lambda: 1)
            found[ascii(name)[:12]] = "kept"
        except Exception as error:
            found[ascii(name)[:12]] = type(error).__name__
    await quick_journal(job, "end")
    return found

@handler("chains", max_attempts=1)
async def chains(job: Job) -> None:
    await quick_journal(job, "start")
    for _ in range(70):
        await job.enqueue("innocent", {"x": "y" * (1 << 20 - 64)})
    await quick_journal(job, "end")
"""  # fmt: skip


@pytest.mark.fault("Data", "steps and chains that cannot be stored", "an error that names them; no connection is lost")
async def test_steps_and_chains_that_cannot_be_stored_are_refused_by_name(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(STEPS.replace("1 << 20 - 64", "(1 << 20) - 64"))
    row = await end_of(connection, await enqueue(connection, "steps"))
    assert row["state"] == "completed", row["errors"]
    assert row["result"] == {
        **dict.fromkeys(("nul", "surrogate", "deep", "set", "bytes", "huge", "big"), "StepError"),
        "nan": "NoneType",
        "just": "str",
        ascii("\ud800"): "StepError",
        "''": "StepError",
        ascii("x" * 201)[:12]: "kept",  # the shorter one, which has the same beginning
        ascii("\0"): "StepError",
        ascii(chr(0x10FFFD)): "kept",
    }
    row = await end_of(connection, await enqueue(connection, "chains"))
    assert (row["state"], row["errors"][0]["type"]) == ("dead", "RefusedError")
    assert "70 jobs" in row["error"]
    figures.faults = 13
    found = await worker.metrics()
    assert sum(value for name, value in found.items() if name.startswith("howdah_reconnects_total")) == 0
    await checker.check(figures=figures)
