"""Puts the rights in schema howdah right: sql/roles.sql, or sql/private.sql where roles cannot be made."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from howdah.errors import RightsError
from howdah.queries import sql_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Where names are looked up by what runs with the rights of whoever migrates, a superuser's perhaps: nowhere that others may create.
SEARCH_PATH = "pg_catalog, pg_temp"
#: Go on as the schema's owner, to the end of the transaction: what is made new is then the owner's, and who migrates need only be
#: a member. Nothing happens while there is no schema. `BE_ONESELF` undoes it.
BE_OWNER = """do $$ begin
  perform set_config('howdah.role', current_setting('role'), true), set_config('role', pg_get_userbyid(n.nspowner), true)
  from pg_namespace n where n.nspname = 'howdah' and n.nspowner <> current_user::regrole;
end $$;"""
BE_ONESELF = """do $$ begin
  if current_setting('howdah.role', true) <> '' then
    perform set_config('role', current_setting('howdah.role'), true), set_config('howdah.role', '', true);
  end if;
end $$;"""


def rights_sql(*, roles: bool) -> str:
    """Give the SQL that puts the rights right; without `roles` nothing is left to PUBLIC, and that is all."""
    return (sql_folder() / ("roles.sql" if roles else "private.sql")).read_text(encoding="utf-8")


async def apply_rights(connection: asyncpg.Connection, *, roles: bool) -> None:
    """Make the group roles and give them their rights, or only take PUBLIC's; changes nothing that is right already.

    Belongs into the migrations' transaction, after them. Raises RightsError if this user may not; the message says
    what to grant.
    """
    try:
        if roles:
            await connection.execute(rights_sql(roles=True))
        else:
            async with owner(connection):
                await connection.execute(rights_sql(roles=False))
    except asyncpg.InsufficientPrivilegeError as error:
        raise _refusal(error) from error


@asynccontextmanager
async def owner(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Be the schema's owner for the length of a `with`, inside a transaction. Raises RightsError if this user may not."""
    try:
        await connection.execute(BE_OWNER)
    except asyncpg.PostgresError as error:
        raise _refusal(error) from error
    yield
    # Not in a `finally`: after an error the transaction is over, and the role with it.
    await connection.execute(BE_ONESELF)


def _refusal(error: asyncpg.PostgresError) -> RightsError:
    hint = getattr(error, "hint", None) or "grant this user the role that owns the schema howdah"
    return RightsError(f"{error.args[0]}: {hint}")
