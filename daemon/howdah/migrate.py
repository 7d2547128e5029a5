"""Migrations: numbered SQL files, up only, each applied once, all of them or none."""

from __future__ import annotations

import hashlib
import re
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from howdah.errors import MigrationError, RightsError
from howdah.queries import sql_folder
from howdah.rights import SEARCH_PATH, apply_rights, owner

if TYPE_CHECKING:
    from pathlib import Path

#: Whose migrations: the engine's, which run as the schema's owner; the application's run as whoever migrates.
ENGINE = "howdah"
# One lock for every source: an application's migration may need the engine's schema to stand still.
LOCK = 7316042
#: Seconds that one of ours waits for a table. Whoever wants the table, too, stands behind it meanwhile: enqueue, claims and acks. So
#: it gives up soon, lets them through and tries again, for so many seconds in all; a user's transaction may stay open for minutes.
LOCK_TIMEOUT, LOCK_PATIENCE, LONGEST_PAUSE = 0.2, 300.0, 3.0
# Who has held tables of ours for longest.
_HOLDER = """
select format('process %s (%s, %s) has held %s for %s s', a.pid, coalesce(nullif(a.application_name, ''), a.backend_type), a.state,
         string_agg(distinct c.relname, ', '), extract(epoch from clock_timestamp() - a.xact_start)::int) as who,
       format('select pg_terminate_backend(%s)', a.pid) as mends
from pg_locks l join pg_class c on c.oid = l.relation and c.relnamespace = to_regnamespace('howdah') join pg_stat_activity a on a.pid = l.pid
where l.granted and c.relkind in ('r', 'p') and a.pid <> pg_backend_pid() and a.datname = current_database()
group by a.pid, a.application_name, a.backend_type, a.state, a.xact_start order by a.xact_start limit 1"""
#: What a server says that has no such thing, or not for this login.
LACKING = (asyncpg.UndefinedFunctionError, asyncpg.FeatureNotSupportedError, asyncpg.InsufficientPrivilegeError)
#: Has the schema do without what the server lacks. Whoever has switched something off keeps it so.
ADAPT = """update howdah.settings s
set advisory_locks = s.advisory_locks and not 'advisory_locks' = any (l.missing), notifications = s.notifications and not 'notifications' = any (l.missing)
from (select howdah.lacks() as missing) l
where s.advisory_locks and 'advisory_locks' = any (l.missing) or s.notifications and 'notifications' = any (l.missing)"""
_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name and its text."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text: a migration that was applied must never change."""
        return hashlib.sha256(self.text.encode()).hexdigest()


async def migrate(
    connection: asyncpg.Connection,
    *,
    source: str = ENGINE,
    folder: Path | None = None,
    roles: bool = True,
    patience: float = LOCK_PATIENCE,
) -> list[str]:
    """Bring the schema up to date and return the names of the migrations that were applied now.

    All pending files run in one transaction under a lock, so ten that start at once apply each file once, and one
    that fails leaves everything as it was. `source` names whose migrations these are ("howdah", or the application's
    "app"); `folder` holds the files. After the engine's, rights are set: of the group roles, or without `roles` only that
    PUBLIC has none. The engine's hold up nobody while somebody's transaction holds a table: they try again, for `patience`
    seconds. Raises MigrationError for a file that fails, that changed after it was applied or that got no lock, RightsError if
    this user may not.
    """
    migrations = read_migrations(folder or sql_folder() / "migrations")
    tries = AsyncRetrying(
        retry=retry_if_exception_type((asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)),
        stop=stop_after_delay(patience),
        wait=wait_random_exponential(multiplier=LOCK_TIMEOUT, max=LONGEST_PAUSE),
        reraise=True,
    )
    try:
        async for attempt in tries:
            with attempt:
                return await _migrate(connection, source, migrations, roles=roles)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
        who, mends = await connection.fetchrow(_HOLDER) or (str(error), "look at pg_locks")
        problem = f"no lock within {patience:g} s: {who}; wait for its end, or {mends}; then howdah migrate again"
        raise MigrationError(len(migrations), problem) from error
    raise AssertionError("the tries end with an answer or an error")


async def _migrate(
    connection: asyncpg.Connection, source: str, migrations: list[Migration], *, roles: bool
) -> list[str]:
    """Apply what is pending, all of it or nothing."""
    async with connection.transaction():
        # Before the first look: whoever waits here must see what the one before has done.
        await _lock(connection)
        theirs = await look_up_in(connection, SEARCH_PATH)
        applied = await _applied(connection, source)
        pending = _pending(migrations, applied)
        if source == ENGINE:
            await connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}s'")
        for migration in pending:
            await _apply(connection, source, migration, theirs)
        # A newer schema has rights of which this release knows nothing.
        if source == ENGINE and len(applied) <= len(migrations):
            await apply_rights(connection, roles=roles)
            # Whoever may not be the owner has nothing to change here, or is told so by the worker that does not start.
            with suppress(RightsError):
                async with connection.transaction(), owner(connection):
                    await connection.execute(ADAPT)
        await look_up_in(connection, theirs)
    return [migration.name for migration in pending]


async def pending(connection: asyncpg.Connection, *, source: str = ENGINE, folder: Path | None = None) -> list[str]:
    """Return the names of the migrations that `migrate` would apply, changing nothing."""
    return [migration.name for migration in await find_pending(connection, source=source, folder=folder)]


async def find_pending(
    connection: asyncpg.Connection, *, source: str = ENGINE, folder: Path | None = None
) -> list[Migration]:
    """Return the migrations that `migrate` would apply, changing nothing."""
    migrations = read_migrations(folder or sql_folder() / "migrations")
    return _pending(migrations, await _applied(connection, source))


async def is_ahead(connection: asyncpg.Connection, folder: Path | None = None) -> bool:
    """Tell whether the schema is newer than this release, which then does not know all functions, nor their rights."""
    return len(await _applied(connection, ENGINE)) > len(read_migrations(folder or sql_folder() / "migrations"))


def read_migrations(folder: Path) -> list[Migration]:
    """Read a folder's migrations in order. Raises MigrationError if the numbers are not 1, 2, 3 and so on."""
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(len(found) + 1, f"{path}: the name must look like 0001_words.sql")
        found.append(Migration(int(match[1]), path.stem, path.read_text(encoding="utf-8")))
    for place, migration in enumerate(found, start=1):
        if migration.version != place:
            raise MigrationError(
                migration.version, f"{folder}/{migration.name}.sql stands where {place:04d} is expected"
            )
    if not found:
        raise MigrationError(1, f"{folder} holds no migrations")
    return found


async def _lock(connection: asyncpg.Connection) -> None:
    """Keep other migrations out, where the server can: where it cannot, the second of two fails and leaves everything as it was."""
    with suppress(*LACKING):
        async with connection.transaction():
            await connection.execute("select pg_catalog.pg_advisory_xact_lock($1)", LOCK)


async def _applied(connection: asyncpg.Connection, source: str) -> dict[int, str]:
    # Not to_regclass: it fails for whoever may not look into the schema.
    readable = await connection.fetchval(
        """select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'howdah' and c.relname = 'migrations'"""
    )
    if readable is None:
        return {}
    async with connection.transaction(), nullcontext() if readable else owner(connection):
        rows = await connection.fetch("select version, checksum from howdah.migrations where source = $1", source)
    return {row["version"]: row["checksum"] for row in rows}


def _pending(migrations: list[Migration], applied: dict[int, str]) -> list[Migration]:
    for migration in migrations:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise MigrationError(
                migration.version, f"{migration.name}.sql has changed since it was applied; write a new one instead"
            )
    return [migration for migration in migrations if migration.version not in applied]


async def look_up_in(connection: asyncpg.Connection, search_path: str) -> str:
    """Set the transaction's search path, and give the one before."""
    before: str = await connection.fetchval("select pg_catalog.current_setting('search_path')")
    await connection.execute("select pg_catalog.set_config('search_path', $1, true)", search_path)
    return before


async def _apply(connection: asyncpg.Connection, source: str, migration: Migration, theirs: str) -> None:
    if source == ENGINE:
        async with owner(connection):
            await _run(connection, migration)
    else:
        await look_up_in(connection, theirs)
        await _run(connection, migration)
        await look_up_in(connection, SEARCH_PATH)
    async with owner(connection):
        await connection.execute(
            "insert into howdah.migrations (source, version, name, checksum) values ($1, $2, $3, $4)",
            source,
            migration.version,
            migration.name,
            migration.checksum,
        )


async def _run(connection: asyncpg.Connection, migration: Migration) -> None:
    try:
        await connection.execute(migration.text)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        raise  # nothing is wrong with the file
    except asyncpg.PostgresError as error:
        raise MigrationError(migration.version, f"{migration.name}.sql: {error}") from error
