"""Logins that are no superusers, for tests of what each role may do."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.cluster import Database


@asynccontextmanager
async def login(database: Database, *roles: str, attributes: str = "") -> AsyncIterator[Database]:
    """Make a login that is only a member of `roles`, gone at the end; gives the database with its address.

    `attributes` are those of `create role`. The login's name is what `name_of` tells.
    """
    name = f"howdah_test_{secrets.token_hex(6)}"
    member = f"in role {', '.join(roles)}" if roles else ""
    parts = urlsplit(database.url)
    address = parts._replace(netloc=f"{name}:secret@{parts.hostname}:{parts.port}").geturl()
    owner = await asyncpg.connect(database.url)
    try:
        await owner.execute(f"create role {name} login password 'secret' {attributes} {member}")
        try:
            yield replace(database, url=address)
        finally:
            await owner.execute(
                f"""select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{name}';
                reassign owned by {name} to current_user; drop owned by {name}; drop role {name}"""
            )
    finally:
        await owner.close()


def name_of(database: Database) -> str:
    """The user of an address."""
    return str(urlsplit(database.url).username)
