"""Who may migrate: a superuser, one who may only make roles, a mere member of the owner, one who may do neither."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from support.cluster import Database, connect_to, new_database
from support.daemon import howdah
from support.jobs import enqueue
from support.logins import login, name_of
from support.rights import ROLES, foreign_objects, wrong_rights

from howdah.embedded import EmbeddedPostgres
from howdah.embedded.binaries import find_binaries
from howdah.errors import RightsError
from howdah.migrate import migrate, read_migrations
from howdah.queries import sql_folder
from howdah.script import migration_script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

MIGRATIONS = sql_folder() / "migrations"
NAMES = [migration.name for migration in read_migrations(MIGRATIONS)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of this module's own: roles belong to a whole server, and the tests' server has ours."""
    folder = tmp_path_factory.mktemp("server")
    for parent in [folder, *folder.parents][:3]:
        parent.chmod(0o711)  # the server may run as another user
    with EmbeddedPostgres(folder / "postgres", settings={"fsync": "off", "shared_buffers": "32MB"}) as server:
        yield server


@pytest.fixture
async def bare(server: EmbeddedPostgres) -> AsyncIterator[Database]:
    """An empty database of a server without our roles."""
    async with databases(server, 1) as [database]:
        yield database


@asynccontextmanager
async def databases(server: EmbeddedPostgres, count: int) -> AsyncIterator[list[Database]]:
    names = [f"bare_{secrets.token_hex(4)}" for _ in range(count)]
    outside = await asyncpg.connect(server.url())
    try:
        assert await outside.fetch("select from pg_roles where rolname like 'howdah%'") == []
        for name in names:
            await outside.execute(f"create database {name}")
        yield [Database(server.url(name), name) for name in names]
        for name in names:
            await outside.execute(f"drop database {name} with (force)")
        await outside.execute(f"drop role if exists howdah_owner, {', '.join(ROLES)}")
    finally:
        await outside.close()


@asynccontextmanager
async def migrator(database: Database, attributes: str) -> AsyncIterator[Database]:
    """A login that may make schemas in the database."""
    async with login(database, attributes=attributes) as mine:
        await execute(database, f"grant create on database {database.name} to {name_of(mine)}")
        yield mine


@asynccontextmanager
async def database_connection(database: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect_to(database)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(database: Database, sql: str) -> None:
    async with database_connection(database) as connection:
        await connection.execute(sql)


async def migrate_as(database: Database, **options: Any) -> list[str]:
    async with database_connection(database) as connection:
        return await migrate(connection, **options)


async def wrong(database: Database) -> list[str]:
    async with database_connection(database) as connection:
        return await wrong_rights(connection) + await foreign_objects(connection)


@pytest.fixture
def longer(tmp_path: Path) -> Path:
    """The engine's migrations and one more, which uses what is there, makes something and changes something."""
    folder = shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    (folder / f"{len(NAMES) + 1:04d}_more.sql").write_text(
        """alter table howdah.jobs add column more int;
        create table howdah.more (id int);
        create function howdah.more() returns int language sql as 'select 1';
        create or replace function howdah.refuse(problem text[], place text default '') returns void language plpgsql strict as
        $$ begin raise exception using errcode = problem[1], message = format('howdah: %s%s', place, problem[2]), hint = problem[3]; end $$"""
    )
    return folder


# -- roles -------------------------------------------------------------------------------------------------------------


async def test_who_may_make_roles_migrates_without_being_a_superuser_now_and_later(
    bare: Database, longer: Path, tmp_path: Path
) -> None:
    async with migrator(bare, "createrole") as manager:
        assert await migrate_as(manager) == NAMES
        assert await wrong(bare) == []
        assert await migrate_as(manager) == []

        assert await migrate_as(manager, folder=longer) == [f"{len(NAMES) + 1:04d}_more"]
        connection = await connect_to(bare)
        assert await foreign_objects(connection) == []
        for role in ROLES:
            assert not await connection.fetchval("select has_table_privilege($1, 'howdah.more', 'select')", role)
            assert not await connection.fetchval("select has_function_privilege($1, 'howdah.more()', 'execute')", role)

        app = tmp_path / "app"
        app.mkdir()
        (app / "0001_shop.sql").write_text("create schema shop; create table shop.orders (id int)")
        assert await migrate_as(manager, source="app", folder=app) == ["0001_shop"]
        assert await connection.fetchval("select relowner::regrole::text from pg_class where relname = 'orders'") == (
            name_of(manager)
        )
        await connection.close()


@pytest.mark.parametrize("attributes", ["", "noinherit"])
async def test_a_member_of_the_owner_migrates_and_anybody_else_is_told_what_to_grant(
    bare: Database, longer: Path, attributes: str
) -> None:
    await migrate_as(bare)
    async with migrator(bare, attributes) as member, login(bare, "howdah_worker") as worker:
        assert await migrate_as(worker) == []
        with pytest.raises(RightsError, match="howdah_owner"):
            await migrate_as(worker, folder=longer)
        with pytest.raises(RightsError, match="howdah_owner"):
            await migrate_as(member, folder=longer)
        await execute(bare, f"grant howdah_owner to {name_of(member)}")
        assert await migrate_as(member, folder=longer) == [f"{len(NAMES) + 1:04d}_more"]
        await execute(bare, "grant all on howdah.jobs to public; drop table howdah.more; drop function howdah.more()")
        assert await migrate_as(member, folder=longer) == []
        assert await wrong(bare) == []


async def test_rights_that_only_the_owner_can_set_right_are_refused_to_others_with_a_hint(bare: Database) -> None:
    await migrate_as(bare)
    await execute(bare, "grant all on howdah.jobs to public")
    async with login(bare, "howdah_worker") as worker:
        with pytest.raises(RightsError, match=f"no member of howdah_owner: grant howdah_owner to {name_of(worker)}"):
            await migrate_as(worker)


async def test_who_may_make_no_roles_is_told_so_before_anything_changes_and_can_do_without(
    bare: Database, longer: Path, tmp_path: Path
) -> None:
    async with migrator(bare, "") as owner, login(bare) as stranger:
        url = {"HOWDAH_DATABASE_URL": owner.url}
        refused = howdah("migrate", folder=tmp_path, **url)
        assert refused.returncode == 1
        [line] = refused.stderr.splitlines()
        assert f"howdah_owner is missing, and {name_of(owner)} may not make it" in line
        assert f"alter role {name_of(owner)} createrole" in line
        assert "--no-roles" in line
        connection = await connect_to(owner)
        assert await connection.fetchval("select to_regnamespace('howdah')") is None

        assert howdah("migrate", "--no-roles", folder=tmp_path, **url).stdout.split() == NAMES
        assert howdah("migrate", "--no-roles", folder=tmp_path, **url).stdout == "up to date\n"
        assert howdah("check", folder=tmp_path, **url).stdout.endswith("ok\n")
        assert await migrate_as(owner, folder=longer, roles=False) == [f"{len(NAMES) + 1:04d}_more"]
        assert await enqueue(connection) == 1
        assert await connection.fetchval("select state from howdah.job_status") == "ready"
        assert await open_to_public(connection) == []
        await connection.execute("grant usage on schema howdah to public")
        other = await connect_to(stranger)
        for statement in ("select howdah.enqueue('work')", "select howdah.more()", "select from howdah.job_status"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await other.execute(statement)
        await other.close()
        await migrate_as(owner, folder=longer, roles=False)
        assert await open_to_public(connection) == []

        # And with roles after all, once they can be made.
        await connection.execute("drop table howdah.more; drop function howdah.more()")
        await execute(bare, f"alter role {name_of(owner)} createrole")
        await migrate_as(owner, folder=longer)
        assert await wrong(bare) == []
        assert await enqueue(connection) == 2
        await connection.close()


async def open_to_public(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch(
        """select p.oid::regprocedure::text from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        where p.pronamespace = 'howdah'::regnamespace and a.grantee = 0
        union all select c.relname from pg_class c, aclexplode(c.relacl) a where c.relnamespace = 'howdah'::regnamespace and a.grantee = 0
        union all select 'schema' from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = 'howdah' and a.grantee = 0"""
    )
    return [row[0] for row in rows]


async def test_databases_of_one_server_that_are_migrated_at_once_share_the_roles(server: EmbeddedPostgres) -> None:
    async with databases(server, 6) as all_of_them, AsyncExitStack() as stack:
        manager = await stack.enter_async_context(login(all_of_them[0], attributes="createrole superuser"))
        others = [Database(manager.url.replace(all_of_them[0].name, one.name), one.name) for one in all_of_them[:3]]
        answers = await asyncio.gather(*(migrate_as(one) for one in [*all_of_them, *others]))
        assert sorted(answers) == [[]] * 3 + [NAMES] * 6
        for one in all_of_them:
            assert await wrong(one) == []


async def test_managers_of_two_databases_that_begin_at_once_get_along(server: EmbeddedPostgres) -> None:
    """Whoever is first makes the roles. Since release 16 the other cannot make itself a member, and is told so."""
    async with (
        databases(server, 2) as [one, two],
        migrator(one, "createrole") as first,
        migrator(two, "createrole") as second,
    ):
        answers = await asyncio.gather(migrate_as(first), migrate_as(second), return_exceptions=True)
        for answer, mine, database in zip(answers, (first, second), (one, two), strict=True):
            if answer != NAMES:
                assert isinstance(answer, RightsError)
                assert f"grant howdah_owner to {name_of(mine)}" in str(answer)
                await execute(database, f"grant howdah_owner to {name_of(mine)}")
                assert await migrate_as(mine) == NAMES
            assert await wrong(database) == []


async def test_an_older_release_takes_no_rights_of_what_it_does_not_know(bare: Database, longer: Path) -> None:
    await migrate_as(bare, folder=longer)
    await execute(bare, "grant execute on function howdah.more() to howdah_producer")
    assert await migrate_as(bare) == []
    connection = await connect_to(bare)
    assert await connection.fetchval("select has_function_privilege('howdah_producer', 'howdah.more()', 'execute')")
    await connection.close()


# -- migrate --sql -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roles", [True, False])
async def test_what_migrate_would_do_can_be_printed_and_run_by_hand(tmp_path: Path, roles: bool) -> None:  # noqa: FBT001
    (tmp_path / "0001_shop.sql").write_text(
        "create schema shop;\ncreate table shop.orders (id int) -- 'all' of them; :them"
    )
    async with new_database(empty=True) as database, database_connection(database) as connection:
        text = await migration_script(None, app=tmp_path, roles=roles)
        psql(database, text)
        assert await migrate(connection, roles=roles) == []
        assert await migrate(connection, source="app", folder=tmp_path) == []
        names = "select array_agg(name order by source desc, version) from howdah.migrations"
        assert await connection.fetchval(names) == [*NAMES, "0001_shop"]
        assert (await wrong(database) if roles else await open_to_public(connection)) == []
        assert await enqueue(connection) == 1

        with pytest.raises(asyncpg.RaiseError, match="goes on from howdah migration 0, and the database is at"):
            await connection.execute(text)
        await connection.execute("rollback")

        (tmp_path / "0002_prices.sql").write_text("alter table shop.orders add column price int")
        rest = await migration_script(connection, app=tmp_path, roles=roles)
        assert "0001_" not in rest
        await connection.execute(rest)
        await connection.execute("select price from shop.orders")
        assert await migrate(connection, source="app", folder=tmp_path) == []


async def test_what_the_command_prints_is_all_that_a_database_needs(tmp_path: Path) -> None:
    printed = howdah("migrate", "--sql", folder=tmp_path)
    assert printed.returncode == 0, printed.stderr
    async with new_database(empty=True) as database:
        url = {"HOWDAH_DATABASE_URL": database.url}
        # A text that fails half way leaves nothing.
        psql(
            database,
            printed.stdout.replace("create function howdah.retry", "select 1 / 0; create function howdah.retry"),
        )
        async with database_connection(database) as connection:
            assert await connection.fetchval("select to_regnamespace('howdah')") is None
        psql(database, printed.stdout)
        assert howdah("check", folder=tmp_path, **url).stdout.endswith("ok\n")
        assert howdah("migrate", folder=tmp_path, **url).stdout == "up to date\n"
        assert "0001_tables" not in howdah("migrate", "--sql", folder=tmp_path, **url).stdout


def psql(database: Database, text: str) -> None:
    """Run a text as a person would."""
    command = shutil.which("psql") or str(find_binaries() / "psql")
    done = subprocess.run(
        [command, "-X", "-q", "-d", database.url], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
