"""The schema's way into a database: every file once, all of them or none; and schema.sql tells the same story."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from support.cluster import connect_to, new_database

from howdah.errors import MigrationError
from howdah.migrate import migrate, pending, read_migrations
from howdah.queries import sql_folder
from howdah.rights import apply_rights

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg
    from support.cluster import Database

MIGRATIONS = sql_folder() / "migrations"
NAMES = [migration.name for migration in read_migrations(MIGRATIONS)]


@pytest.fixture
async def empty_database() -> AsyncIterator[Database]:
    async with new_database(empty=True) as database:
        yield database


@pytest.fixture
async def empty(empty_database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database without the engine's schema."""
    connection = await connect_to(empty_database)
    yield connection
    connection.terminate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the engine's migrations, to be changed."""
    return shutil.copytree(MIGRATIONS, tmp_path / "migrations")


def add(folder: Path, name: str, text: str) -> str:
    """Add the next migration to a folder and return its name."""
    number = len(list(folder.glob("*.sql"))) + 1
    (folder / f"{number:04d}_{name}.sql").write_text(text)
    return f"{number:04d}_{name}"


async def applied(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch("select name from howdah.migrations order by source, version")
    return [row["name"] for row in rows]


async def is_bare(connection: asyncpg.Connection) -> bool:
    bare: bool = await connection.fetchval("select to_regnamespace('howdah') is null")
    return bare


async def test_ten_at_once_apply_each_file_once(empty: asyncpg.Connection, empty_database: Database) -> None:
    async with AsyncExitStack() as stack:
        starters = []
        for _ in range(10):
            connection = await connect_to(empty_database)
            stack.callback(connection.terminate)
            starters.append(connection)
        answers = await asyncio.gather(*map(migrate, starters))
    assert sorted(answers) == [[]] * 9 + [NAMES]
    assert await applied(empty) == NAMES


async def test_a_second_run_changes_nothing(empty: asyncpg.Connection) -> None:
    assert await pending(empty) == NAMES
    assert await migrate(empty) == NAMES
    before = await catalogue(empty)
    assert await pending(empty) == []
    assert await migrate(empty) == []
    assert await catalogue(empty) == before


async def test_pending_changes_nothing(empty: asyncpg.Connection) -> None:
    assert await pending(empty) == NAMES
    assert await is_bare(empty)


async def test_only_what_is_new_is_applied(connection: asyncpg.Connection, folder: Path) -> None:
    new = add(folder, "more", "create table howdah.more (id int)")
    assert await migrate(connection, folder=folder) == [new]
    assert await applied(connection) == [*NAMES, new]


async def test_an_applied_file_that_changed_is_refused(connection: asyncpg.Connection, folder: Path) -> None:
    changed = folder / f"{NAMES[1]}.sql"
    changed.write_text(changed.read_text() + "\n-- a word more\n")
    new = add(folder, "more", "create table howdah.more (id int)")
    with pytest.raises(MigrationError, match=f"{NAMES[1]}.sql has changed") as caught:
        await migrate(connection, folder=folder)
    assert caught.value.version == 2
    with pytest.raises(MigrationError, match="has changed"):
        await pending(connection, folder=folder)
    assert new not in await applied(connection)


async def test_a_failing_migration_leaves_nothing(empty: asyncpg.Connection, folder: Path) -> None:
    name = add(folder, "wrong", "create table howdah.more (id int); select 1 / 0")
    with pytest.raises(MigrationError, match=f"{name}.sql: division by zero") as caught:
        await migrate(empty, folder=folder)
    assert caught.value.version == len(NAMES) + 1
    assert await is_bare(empty)
    (folder / f"{name}.sql").write_text("create table howdah.more (id int)")
    assert await migrate(empty, folder=folder) == [*NAMES, name]


async def test_a_failing_migration_leaves_what_was_there(connection: asyncpg.Connection, folder: Path) -> None:
    before = await catalogue(connection)
    add(folder, "good", "create table howdah.more (id int)")
    add(folder, "wrong", "alter table howdah.more add column id int")
    with pytest.raises(MigrationError, match="already exists"):
        await migrate(connection, folder=folder)
    assert await catalogue(connection) == before
    assert await applied(connection) == NAMES


async def test_a_gap_in_the_numbers_is_refused(empty: asyncpg.Connection, folder: Path) -> None:
    (folder / f"{NAMES[1]}.sql").unlink()
    with pytest.raises(MigrationError, match=f"{NAMES[2]}.sql stands where 0002 is expected"):
        await migrate(empty, folder=folder)
    assert await is_bare(empty)


async def test_two_files_with_one_number_are_refused(folder: Path) -> None:
    (folder / "0002_zebra.sql").write_text("select 1")
    with pytest.raises(MigrationError, match=r"0002_zebra\.sql stands where 0003 is expected"):
        read_migrations(folder)


@pytest.mark.parametrize("name", ["5_short.sql", "0005-dash.sql", "0005_Upper.sql", "words.sql"])
async def test_a_name_that_is_no_number_and_words_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("select 1")
    with pytest.raises(MigrationError, match="must look like 0001_words"):
        read_migrations(folder)


async def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="holds no migrations"):
        read_migrations(tmp_path)


async def test_an_application_numbers_its_own_migrations_from_one(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    first = add(tmp_path, "posts", "create table posts (id int)")
    assert await migrate(connection, source="app", folder=tmp_path) == [first]
    assert await migrate(connection, source="app", folder=tmp_path) == []
    assert await migrate(connection) == []
    assert await applied(connection) == [first, *NAMES]


# -- schema.sql -------------------------------------------------------------------------------------------------------

CATALOGUE = {
    "relations": """select c.relname, c.relkind, c.relpersistence, c.reloptions, c.relrowsecurity, c.relacl::text,
        c.relowner::regrole::text, pg_get_partkeydef(c.oid), obj_description(c.oid, 'pg_class')
        from pg_class c where c.relnamespace = 'howdah'::regnamespace and not c.relispartition""",
    "columns": """select c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attidentity, a.attgenerated, a.attstorage, a.attcompression, a.attstattarget, a.attcollation::regcollation::text,
        pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
        from pg_attribute a join pg_class c on c.oid = a.attrelid
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where c.relnamespace = 'howdah'::regnamespace and not c.relispartition and a.attnum > 0 and not a.attisdropped""",
    "constraints": """select r.conrelid::regclass::text, r.conname, pg_get_constraintdef(r.oid), r.convalidated,
        obj_description(r.oid, 'pg_constraint')
        from pg_constraint r join pg_class c on c.oid = r.conrelid
        where r.connamespace = 'howdah'::regnamespace and not c.relispartition""",
    "indexes": """select pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisunique, i.indisreplident
        from pg_index i join pg_class c on c.oid = i.indrelid
        where c.relnamespace = 'howdah'::regnamespace and not c.relispartition""",
    "views": """select c.relname, pg_get_viewdef(c.oid)
        from pg_class c where c.relnamespace = 'howdah'::regnamespace and c.relkind in ('v', 'm')""",
    "functions": """select p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.proacl::text, p.proowner::regrole::text,
        obj_description(p.oid, 'pg_proc')
        from pg_proc p where p.pronamespace = 'howdah'::regnamespace and p.prokind <> 'a'""",
    "triggers": """select t.tgrelid::regclass::text, pg_get_triggerdef(t.oid), t.tgenabled
        from pg_trigger t join pg_class c on c.oid = t.tgrelid
        where c.relnamespace = 'howdah'::regnamespace and not t.tgisinternal""",
    "policies": "select * from pg_policies where schemaname = 'howdah'",
    "types": """select t.typname, t.typtype, pg_get_expr(t.typdefaultbin, 0), obj_description(t.oid, 'pg_type')
        from pg_type t where t.typnamespace = 'howdah'::regnamespace and t.typtype in ('d', 'e', 'r')""",
    "sequences": """select s.seqrelid::regclass::text, s.seqstart, s.seqincrement, s.seqmax, s.seqcache, s.seqcycle
        from pg_sequence s join pg_class c on c.oid = s.seqrelid where c.relnamespace = 'howdah'::regnamespace""",
    "schema": """select nspname, nspacl::text, nspowner::regrole::text, obj_description(oid, 'pg_namespace')
        from pg_namespace where nspname = 'howdah'""",
    "default privileges": "select defaclobjtype, defaclacl::text from pg_default_acl",
    # Their names are days, and midnight may pass between two schemas; each is a copy of its parent.
    "days of history": "select count(*) from pg_inherits where inhparent = 'howdah.job_history'::regclass",
    "settings": "select * from howdah.settings",
    "leader": "select * from howdah.leader",
}


async def catalogue(connection: asyncpg.Connection) -> dict[str, list[str]]:
    """Everything in the schema howdah, comparable."""
    return {
        name: sorted(repr(tuple(row)) for row in await connection.fetch(query)) for name, query in CATALOGUE.items()
    }


async def test_schema_sql_and_the_migrations_give_the_same_database(
    connection: asyncpg.Connection, empty: asyncpg.Connection
) -> None:
    await empty.execute((sql_folder() / "schema.sql").read_text(encoding="utf-8"))
    await apply_rights(empty, roles=True)
    migrated, read = await catalogue(connection), await catalogue(empty)
    for name in CATALOGUE:
        assert set(read[name]) ^ set(migrated[name]) == set(), (
            f"{name} differ; the head of sql/schema.sql says how it is made"
        )


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("relations", "alter table howdah.jobs set (fillfactor = 46)"),
        ("relations", "comment on table howdah.jobs is 'jobs'"),
        ("columns", "alter table howdah.jobs alter column priority set default 1"),
        ("columns", "alter table howdah.queues alter column paused_by type varchar(100)"),
        ("constraints", "alter table howdah.jobs drop constraint priority_in_range"),
        ("indexes", "drop index howdah.jobs_subject"),
        ("functions", "alter function howdah.worker_beat(bigint) set geqo = off"),
        ("functions", "create or replace function howdah.wake(queue text) returns void language sql as ''"),
        ("functions", "revoke execute on function howdah.stats() from howdah_reader"),
        (
            "views",
            """do $$ begin execute 'create or replace view howdah.job_status as '
            || rtrim(pg_get_viewdef('howdah.job_status'::regclass), ';') || ' limit 1'; end $$""",
        ),
        ("settings", "update howdah.settings set strict_kinds = true"),
    ],
)
async def test_the_comparison_sees_every_sort_of_difference(
    connection: asyncpg.Connection, part: str, change: str
) -> None:
    before = await catalogue(connection)
    await connection.execute(change)
    assert (await catalogue(connection))[part] != before[part]
