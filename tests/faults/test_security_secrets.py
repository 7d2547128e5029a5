"""A known secret in every place that has one, and every place in which a stranger could read it."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
from support.commands import cli
from support.daemon import howdah, write_handlers
from support.eventually import aeventually
from support.facts import end_of
from support.jobs import enqueue
from support.logins import name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.figures import Figures

#: Each in a place of its own, and none like another.
DATABASE, POOL, TOKEN, SETTING, PAYLOAD = (
    f"cAnArY-{place}-o9penX" for place in ("database", "pool", "token", "setting", "payload")
)
#: What is left of any of them in any form that quotes it.
TRACES = ("cAnArY", "o9penX")

HANDLERS = """
from pydantic_settings import BaseSettings
from pydantic import SecretStr

class Settings(BaseSettings):
    app_password: SecretStr

settings = Settings()

class Order(BaseModel):
    how: str = ""
    card: str = ""

@handler("order", secret=("card",), max_attempts=2, backoff=lambda attempt: 3600)
async def order(job: Job[Order]) -> Any:
    job.log.info("at work with %r and %r", settings, job)
    logging.getLogger("library").warning("of %s", job)
    card = job.payload.card
    match job.payload.how:
        case "raise": raise ValueError(f"{card} was refused")
        case "chain": raise ValueError(f"outer {card}") from ValueError(f"inner {card}")
        case "group": raise ExceptionGroup(f"both {card}", [ValueError(card), KeyError(card)])
        case "note":
            error = ValueError("noted")
            error.add_note(f"with {card}")
            raise error
        case "discard": return Discard(f"{card} is stolen")
        case "sql":
            async with job.connection() as connection:
                await connection.execute("select $1::text::int", card)
        case "enqueue": await job.enqueue("order", {"how": "none", "card": card}, queue="nobody")
        case "wait":
            Path("begun").touch()
            while not Path("enough").exists(): await asyncio.sleep(0.01)
    return "done"

@handler("thread", secret=("card",), max_attempts=1)
def thread(job: Job[Order]) -> Any: raise ValueError(job.payload.card)

@handler("process", secret=("card",), max_attempts=1, runs_in="process")
def process(job: Job[Order]) -> Any: raise ValueError(job.payload.card)
"""
WAYS = ("", "raise", "chain", "group", "note", "discard", "sql", "enqueue", "wait")


@pytest.fixture
async def logins(database: Database, connection: asyncpg.Connection) -> AsyncIterator[list[str]]:
    """A worker's login and a handlers' one, whose passwords are canaries."""
    names = [f"howdah_test_{database.name[-12:]}_{place}" for place in ("worker", "pool")]
    parts = urlsplit(database.url)
    roles = ("howdah_worker, howdah_admin", "howdah_producer")
    addresses = []
    for name, role, password in zip(names, roles, (DATABASE, POOL), strict=True):
        await connection.execute(f"create role {name} login password '{password}' in role {role}")
        addresses.append(parts._replace(netloc=f"{name}:{password}@{parts.hostname}:{parts.port}").geturl())
    yield addresses
    await connection.execute(
        "".join(
            f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{name}'; drop role {name};"
            for name in names
        )
    )


@pytest.mark.fault(
    "Security", "secrets in addresses, settings, tokens and payloads, while jobs fail with them", "no log, metric, page, listing, trace or activity shows one"
)  # fmt: skip
async def test_no_secret_is_shown_anywhere(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database, logins: list[str], figures: Figures
) -> None:
    worker = await start(daemon, logins)
    jobs = [await enqueue(connection, "order", {"how": how, "card": PAYLOAD}) for how in WAYS]
    jobs += [await enqueue(connection, kind, {"card": PAYLOAD}) for kind in ("thread", "process")]
    figures.faults = len(jobs)
    for job in jobs[-2:]:
        await end_of(connection, job)
    await aeventually(lambda: (worker.folder / "begun").exists())
    await aeventually(lambda: retrying(connection, 5))
    # A lost connection, and a wrong password, are told with what they were tried with.
    await connection.execute(
        f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{name_of(replace(database, url=logins[0]))}'"
    )
    await aeventually(lambda: reconnected(worker))

    seen: dict[str, str] = {}
    for path in ("/metrics", "/healthz", "/readyz", "/health/queue", "/stats", "/nothing"):
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": "Bearer wrong"}):
            seen[f"{path} {headers}"] = (await worker.get(path, **headers))[1]
    seen["activity"] = str(
        [
            tuple(row)
            for row in await connection.fetch(
                "select application_name, query from pg_stat_activity where application_name like 'howdah%' and usename like 'howdah_test%'"
            )
        ]
    )
    seen["command line"] = command_line(worker)
    variables = {
        "HOWDAH_HTTP_PORT": str(urlsplit(worker.address).port),
        "HOWDAH_ADMIN_TOKEN": TOKEN,
        "HOWDAH_POOL_DATABASE_URL": logins[1],
    }
    for words in COMMANDS:
        for form in ((), ("--json",)) if words[0] in {"jobs", "show", "stats", "doctor"} else ((),):
            arguments = [str(jobs[1]) if word == "JOB" else word for word in (*words, *form)]
            said = await cli(*arguments, url=logins[0], **variables)
            seen[" ".join(arguments)] = said.out + said.err
    (worker.folder / "enough").touch()
    await worker.stop()
    seen["log"] = worker.output()
    for column in ("errors", "result", "progress"):
        seen[column] = str(await connection.fetch(f"select {column}::text from howdah.job_status"))
    seen["kinds"] = str(await connection.fetch("select k::text from howdah.kinds k"))
    seen["completed payloads"] = str(
        await connection.fetch("select payload::text from howdah.job_history where state = 'completed'")
    )
    shown = {place: trace for place, text in seen.items() for trace in TRACES if trace in text}
    assert shown == {}, {
        place: seen[place][max(seen[place].index(trace) - 200, 0) :][:400] for place, trace in shown.items()
    }
    # It was there to be shown.
    assert "***" in seen["errors"]
    assert "at work with" in seen["log"]
    assert '"name":"order"' in seen["log"].replace(" ", ""), "no trace was written"


def command_line(worker: Any) -> str:
    return Path(f"/proc/{worker.process.pid}/cmdline").read_text()


async def start(daemon: StartDaemon, logins: list[str]) -> Any:
    """Start a worker that writes its traces to its log, with a setting of the application's own."""
    os.environ.update({"APP_PASSWORD": SETTING, "OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "100"})
    try:
        return await daemon(
            HANDLERS,
            url=logins[0],
            pool_database_url=logins[1],
            listen_database_url=logins[0],
            admin_token=TOKEN,
            log_level="debug",
        )
    finally:
        for name in ("APP_PASSWORD", "OTEL_TRACES_EXPORTER", "OTEL_BSP_SCHEDULE_DELAY"):
            del os.environ[name]


async def retrying(connection: asyncpg.Connection, count: int) -> bool:
    return bool(await connection.fetchval("select count(*) = $1 from howdah.jobs where state = 'retrying'", count))


async def reconnected(worker: Any) -> bool:
    return (
        sum(value for name, value in (await worker.metrics()).items() if name.startswith("howdah_reconnects_total"))
        >= 3
    )


COMMANDS = (
    ("jobs",), ("jobs", "--group-by", "error"), ("jobs", "--state", "dead"), ("show", "JOB"), ("explain", "JOB"), ("stats",), ("doctor",), ("top", "--once"), ("check",),
    ("healthcheck",), ("limit", "list"), ("schedule", "list"), ("version",), ("migrate", "--check"), ("migrate", "--sql"),
)  # fmt: skip

#: Addresses with a password that cannot be read, or that lead nowhere.
ADDRESSES = (
    "postgresql://u:{0}#x@127.0.0.1:1/d", "postgresql://u:{0}/x@127.0.0.1:1/d", "postgresql://u:{0}?x@127.0.0.1:1/d", "postgresql://u:{0}@x@127.0.0.1:1/d",
    "postgresql://u:77{0}#x@127.0.0.1/d", "postgres://u:{0}@127.0.0.1:99999/d", "postgresql://u:{0}@[::1/d", "postgresql://u:{0}@h:port/d", "mysql://u:{0}@127.0.0.1/d",
    "host=127.0.0.1 password={0}", "postgresql://u@127.0.0.1:1/d?password={0}", "postgresql://u:{0}@127.0.0.1:1/d?sslmode={0}", "postgresql://u:{0}%zz@127.0.0.1:1/d",
    "postgresql://u:{0}\u2100@127.0.0.1:1/d", " postgresql://u:{0}@127.0.0.1:1/d", "postgresql://u:{0}@127.0.0.1:1/d",
)  # fmt: skip


@pytest.mark.fault("Security", "addresses with an unreadable or wrong password", "the complaint shows nothing of it")
async def test_no_complaint_about_an_address_shows_its_password(
    database: Database, tmp_path: Path, figures: Figures
) -> None:
    write_handlers(tmp_path)
    wrong = urlsplit(database.url)
    addresses = [address.format(DATABASE) for address in ADDRESSES]
    addresses += [wrong._replace(netloc=f"nobody:{quote(DATABASE)}@{wrong.hostname}:{wrong.port}").geturl()]
    for address in addresses:
        for words in (("jobs",), ("doctor",), ("check",)):
            for variable in ("HOWDAH_DATABASE_URL", "HOWDAH_LISTEN_DATABASE_URL", "HOWDAH_POOL_DATABASE_URL"):
                given = {"HOWDAH_DATABASE_URL": "postgresql://u@127.0.0.1:1/d"} | {variable: address}
                said = await cli(*words, **given)
                assert said.code != 0 or words == ("doctor",), (address, words, said.out)
                assert not any(trace in said.out + said.err for trace in TRACES), (address, words, said.out, said.err)
                figures.faults += 1
    # A worker says it in its log, and waits or leaves.
    said_by_worker = await asyncio.to_thread(howdah, "run", folder=tmp_path, HOWDAH_DATABASE_URL=addresses[0])
    assert said_by_worker.returncode == 78
    assert not any(trace in said_by_worker.stdout + said_by_worker.stderr for trace in TRACES)
    assert json.dumps(DATABASE)[1:-1] not in said_by_worker.stderr
