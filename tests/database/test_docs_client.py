"""The examples of docs/client.md do what the page says, and mypy agrees with them."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from support.eventually import aeventually
from support.jobs import ack, claim_one, completed, status

from howdah import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.cluster import Database

ROOT = Path(__file__).parents[2]
EXAMPLES = "\n".join(
    re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(encoding="utf-8"), re.DOTALL)
)


@pytest.fixture
def example() -> Callable[[str], Any]:
    """Give a function of the page by its name."""
    names: dict[str, Any] = {"__name__": "examples"}
    exec(compile(EXAMPLES, "docs/client.md", "exec"), names)  # noqa: S102 - the page is ours
    return names.__getitem__


def test_mypy_agrees_with_the_examples(tmp_path: Path) -> None:
    (tmp_path / "examples.py").write_text(EXAMPLES, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--follow-imports=silent", tmp_path / "examples.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


async def test_enqueue_in_a_transaction_of_the_callers(
    example: Callable[[str], Any], database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("create table orders (id int primary key)")
    async with asyncpg.create_pool(database.url, min_size=1, max_size=2) as pool:
        job = await example("place_order")(pool, 7)
        with pytest.raises(asyncpg.UniqueViolationError):
            await example("place_order")(pool, 7)
    assert await connection.fetchval("select count(*) from howdah.jobs") == 1
    found = await status(connection, job)
    assert (found["payload"], found["subject"], found["state"]) == ({"order": 7}, "order:7", "scheduled")
    assert await example("enqueue_once")(connection, 7)
    assert not await example("enqueue_once")(connection, 7)


async def test_many_jobs(example: Callable[[str], Any], connection: asyncpg.Connection) -> None:
    ids = await example("remind_all")(connection, [1, 2, 3])
    rows = await connection.fetch("select id, kind, queue from howdah.jobs order by id")
    assert [row["id"] for row in rows] == ids
    assert [row["kind"] for row in rows] == ["remind"] * 3 + ["report", "tidy"]
    assert (await status(connection, await example("crunch")(connection, 3)))["state"] == "waiting"


async def test_the_client(example: Callable[[str], Any], database: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("create table users as select 1 as id, 'Ada' as name")
    async with Client(database.url) as client:
        await example("rename")(client, 1, "Grace")
        assert await connection.fetchval("select name from users") == "Grace"
        await ack(connection, completed(await claim_one(connection, kinds=["index_user"])))

        converted = asyncio.create_task(example("convert")(client, "a.png"))
        held = await aeventually(lambda: claim_one(connection, kinds=["convert"]))
        await ack(connection, completed(held, result="a.jpg"))
        assert await converted == "completed: a.jpg"

        job = await client.enqueue("work")
        assert "is scheduled" in await example("postpone")(client, job.id)


async def test_other_drivers(example: Callable[[str], Any], database: Database, connection: asyncpg.Connection) -> None:
    engine = sqlalchemy.create_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    with psycopg.connect(database.url) as mine, sqlalchemy.orm.Session(engine) as session:
        first, second = example("enqueue_over_others")(mine, session)
    engine.dispose()
    assert {(await status(connection, job))["payload"]["age"] for job in (first, second)} == {5, 6}
