"""docs/sql.md: every SQL example runs as printed, and what JavaScript calls is there under those names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import asyncpg

PAGE = (Path(__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
CALLS = re.findall(r'rpc\("(\w+)"(?:, \{ (.*) \})?\)', PAGE)


async def test_every_sql_example_runs_in_order(connection: asyncpg.Connection) -> None:
    said: list[asyncpg.Record] = []
    for example in EXAMPLES:
        for statement in re.split(r";(?=\s*(?:--[^\n]*)?(?:\n|$))(?![^$]*\$\$;)", example):
            text = "\n".join(line for line in statement.splitlines() if not line.strip().startswith("--")).strip()
            if text:
                said += await connection.fetch(text)
    assert await connection.fetchval("select kind from howdah.job_status where id = 9") == "summarize_course"
    assert await connection.fetchval(
        "select array_agg(id order by id) from howdah.job_status where id in (8, 9, 10, 11)"
    ) == [8, 9, 10, 11]
    assert await connection.fetchval("select kind from howdah.job_status where id = 11") == "report_campaign"
    assert await connection.fetchval("select retried_from from howdah.job_status order by id desc limit 1") == 2
    assert any("Job 2 (send_mail) is scheduled" in str(row[0]) for row in said)


@pytest.mark.parametrize(("function", "arguments"), CALLS)
async def test_what_javascript_calls_by_name_is_there(
    connection: asyncpg.Connection, function: str, arguments: str
) -> None:
    given = re.findall(r"(?:^|, )(\w+): ", re.sub(r"\{[^{}]*\}|\[[^\]]*\]", "x", re.sub(r"\[\{.*\}\]", "x", arguments)))
    names = await connection.fetchval(
        "select array_agg(proargnames) from pg_proc where pronamespace = 'howdah'::regnamespace and proname = $1",
        function,
    )
    assert names is not None, f"there is no function howdah.{function}"
    assert len(names) == 1, "PostgREST cannot choose between functions of one name"
    assert set(given) <= set(names[0] or [])
    assert bool(given) == bool(arguments)


async def test_the_columns_of_the_view_are_named(connection: asyncpg.Connection) -> None:
    columns = await connection.fetch(
        "select attname from pg_attribute where attrelid = 'howdah.job_status'::regclass and attnum > 0 order by attnum"
    )
    assert ", ".join(row["attname"] for row in columns) in " ".join(PAGE.replace("`", "").split())


async def test_the_arguments_of_enqueue_are_named(connection: asyncpg.Connection) -> None:
    names = await connection.fetchval(
        "select array_agg(n) from pg_proc, unnest(proargnames) n where proname = 'enqueue' and pronamespace = 'howdah'::regnamespace"
    )
    table = PAGE[PAGE.index("| argument | means |") : PAGE.index("Null means what")]
    assert [name for name in names if f"`{name}`" not in table and name not in {"id", "created"}] == []


async def test_every_refusal_is_explained(connection: asyncpg.Connection) -> None:
    texts = await connection.fetch("select prosrc from pg_proc where pronamespace = 'howdah'::regnamespace")
    raised = {code for row in texts for code in re.findall(r"JB\d\d\d", row["prosrc"])}
    assert raised
    assert [code for code in sorted(raised) if f"| `{code}` |" not in PAGE] == []
