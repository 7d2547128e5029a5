"""The one PostgreSQL of a test run, and the databases that the tests clone in it: the users' test kit, started before the tests."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.embedded import EmbeddedPostgres
from howdah.testing.databases import SERVER_SETTINGS, Database, cloned, drop, make_template

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

# A superuser's address of a running server: the tests then use that one, whatever its release.
SERVER = "HOWDAH_TEST_DATABASE_URL"
# The controlling process tells the xdist workers, which inherit its environment.
_TEMPLATE = "HOWDAH_TEST_TEMPLATE_URL"


class Cluster:
    """A server, ours or a given one, with a template database that holds the engine's schema."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._server: EmbeddedPostgres | None = None
        self._template: Database | None = None

    def start(self) -> None:
        """Start the server unless one was given, and make the template. Called once, in the controlling process."""
        given = os.environ.get(SERVER)
        if given is None:
            self._folder = Path(tempfile.mkdtemp(prefix="howdah-tests-"))
            self._folder.chmod(0o711)  # the server may run as another user
            self._server = EmbeddedPostgres(self._folder / "postgres", settings=SERVER_SETTINGS)
            self._server.start()
            given = self._server.url("postgres")
        self._template = asyncio.run(make_template(given, f"howdah_template_{secrets.token_hex(6)}"))
        os.environ[_TEMPLATE] = self._template.url

    def stop(self) -> None:
        """Leave nothing behind."""
        os.environ.pop(_TEMPLATE, None)
        if self._server is not None:
            self._server.stop()
        elif self._template is not None:
            asyncio.run(drop(self._template))
        if self._folder is not None:
            shutil.rmtree(self._folder)


def new_database(*, empty: bool = False) -> AbstractAsyncContextManager[Database]:
    """Clone the template (`empty`: a database without the engine's schema), and drop the clone at the end."""
    return cloned(os.environ[_TEMPLATE], empty=empty)


async def connect_to(database: Database, **options: Any) -> asyncpg.Connection:
    """Connect; jsonb is Python's dicts and lists."""
    connection = await asyncpg.connect(database.url, **options)
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    return connection
