"""What `howdah migrate` would do, as SQL for a person to read and to run: psql -f, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from howdah.migrate import ADAPT, ENGINE, LOCK, find_pending, is_ahead, read_migrations
from howdah.queries import sql_folder
from howdah.rights import BE_ONESELF, BE_OWNER, SEARCH_PATH, rights_sql

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg

    from howdah.migrate import Migration


#: Whoever runs the text may be a superuser.
SAFELY = f"set local search_path = {SEARCH_PATH};"


async def migration_script(connection: asyncpg.Connection | None, *, app: Path | None, roles: bool) -> str:
    """Give the SQL of the migrations that are pending, of all of them without a connection, then that of the rights.

    The text refuses to run on a database that has got further, or not as far, as the one that was asked.
    """
    folders = {ENGINE: sql_folder() / "migrations"} | ({"app": app} if app is not None else {})
    parts = [
        "begin;",
        f"do $$ begin perform pg_advisory_xact_lock({LOCK});\nexception when undefined_function or feature_not_supported or insufficient_privilege then null; end $$;",
        "-- Whoever wants a table stands behind us while we wait for it. If this ends us, run the text again.\nset local lock_timeout = '2s';",
        "set local client_min_messages = warning;",
        SAFELY,
    ]
    for source, folder in folders.items():
        migrations = read_migrations(folder)
        if connection is not None:
            migrations = await find_pending(connection, source=source, folder=folder)
        if migrations:
            parts += [_expect(source, migrations[0].version - 1), *(_step(source, one) for one in migrations)]
        if source == ENGINE and (connection is None or not await is_ahead(connection)):
            parts.append(rights_sql(roles=True) if roles else _as_owner(rights_sql(roles=False)))
            if migrations:
                parts.append(_as_owner(f"{ADAPT};"))
    return "\n\n".join([*parts, "commit;"]) + "\n"


def _expect(source: str, version: int) -> str:
    """Give a statement that fails unless `version` is the last one of `source` that was applied."""
    return f"""do $$
declare
  last int := 0;
begin
  if to_regclass('howdah.migrations') is not null then
    select coalesce(max(m.version), 0) into last from howdah.migrations m where m.source = {_literal(source)};
  end if;
  if last <> {version} then
    raise exception 'this text goes on from {source} migration {version}, and the database is at %', last
      using hint = 'have howdah migrate --sql print it anew';
  end if;
end $$;"""


def _step(source: str, migration: Migration) -> str:
    """Give one migration and the record of it; the engine's own are applied by the schema's owner."""
    values = ", ".join(
        (_literal(source), str(migration.version), _literal(migration.name), _literal(migration.checksum))
    )
    record = f"insert into howdah.migrations (source, version, name, checksum) values ({values});"
    head = f"-- ==== {source}: {migration.name} ====\n\n"
    text = migration.text.strip()
    if not text.endswith(";"):
        text += "\n;"
    return head + (
        _as_owner(f"{text}\n\n{record}")
        if source == ENGINE
        else f"set local search_path to default;\n\n{text}\n\n{SAFELY}\n\n{_as_owner(record)}"
    )


def _as_owner(text: str) -> str:
    return f"{BE_OWNER}\n\n{text}\n\n{BE_ONESELF}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
