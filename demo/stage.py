"""The place where it happens: a database of its own, with the schemas, users' sessions and posts."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from howdah.embedded import EmbeddedPostgres
from howdah.migrate import migrate
from howdah.queries import sql_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from random import Random

USERS, SESSIONS, POSTS = 60, 200, 50
CONNECTIONS = 16  # those of the crowd, and a few that watch

# Short, so that the twenty seconds of the demonstration hold many runs for each post.
LIKE_SYNC_DELAY = "200 milliseconds"

# Killed here are daemons, never the database: commits need not wait for a slow disk.
_SETTINGS = {"synchronous_commit": "off"}


@asynccontextmanager
async def stage(random: Random) -> AsyncIterator[tuple[str, Path, asyncpg.Pool]]:
    """Give the database's address, a folder for logs and a pool; leave nothing behind at the end."""
    folder = _new_folder()
    server = EmbeddedPostgres(folder / "postgres", settings=_SETTINGS)
    try:
        server.start()
        url = server.url("postgres")
        await _migrate(url)
        async with asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            await _populate(pool, random)
            yield url, folder, pool
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="howdah-demo-"))
    folder.chmod(0o711)  # the server may run as another user, who must be able to walk through
    return folder


async def _migrate(url: str) -> None:
    connection = await asyncpg.connect(url)
    await migrate(connection)
    await migrate(connection, source="app", folder=sql_folder() / "app")
    await connection.close()


async def _populate(pool: asyncpg.Pool, random: Random) -> None:
    await pool.execute(f"update app.settings set like_sync_delay = '{LIKE_SYNC_DELAY}'")
    await pool.execute("insert into app.sessions select from generate_series(1, $1)", SESSIONS)
    await pool.execute(
        """with author as materialized (
             select u.place, gen_random_uuid() as id from generate_series(0, $1 - 1) u(place))
           insert into app.posts (author_id, created_at)
           select a.id, now() - make_interval(hours => p.hours)
           from unnest($2::int[]) with ordinality p(hours, place) join author a on a.place = p.place % $1""",
        USERS,
        [random.randrange(24 * 14) for _ in range(POSTS)],
    )
