"""Words for tests about people: who is there, what they may learn, and what is kept of a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

if TYPE_CHECKING:
    import asyncpg

EVERYTHING = ("auth_users", "users", "students", "student_profiles", "student_progress", "sales_activity_log")


async def new_user(connection: asyncpg.Connection, role: str = "user") -> UUID:
    """Add somebody who is known to the auth server and to us."""
    user = uuid4()
    await connection.execute("insert into app.auth_users (id, email) values ($1, $2)", user, f"{user}@example.org")
    await connection.execute(
        "insert into app.users (id, email, full_name, role) values ($1, $2, 'Somebody', $3)",
        user, f"{user}@example.org", role,
    )  # fmt: skip
    return user


async def new_module(connection: asyncpg.Connection, *, lessons: int = 3) -> UUID:
    """Add a module; its lessons were not written in their order."""
    module: UUID = await connection.fetchval("insert into app.modules (title) values ('Module') returning id")
    await connection.execute(
        "insert into app.lessons (module_id, position) select $1, n from generate_series($2::int, 1, -1) n",
        module,
        lessons,
    )
    return module


async def create(connection: asyncpg.Connection, user: UUID, manager: UUID | None, *modules: UUID) -> asyncpg.Record:
    """Call the function that makes a student."""
    return await connection.fetchrow(
        "select * from app.create_student($1, $2, 'Ada', $3, $4)", user, f"{user}@example.org", manager, list(modules)
    )


async def rows_of(connection: asyncpg.Connection, user: UUID | str) -> dict[str, int]:
    """Count what there is of a person, table by table, and the mails that are to welcome them."""
    found: dict[str, Any] = {}
    for table in EVERYTHING:
        column = {
            "auth_users": "id", "users": "id", "student_progress": "student_user_id", "sales_activity_log": "target_user_id",
        }.get(table, "user_id")  # fmt: skip
        found[table] = await connection.fetchval(
            f"select count(*) from app.{table} where {column} = $1", UUID(str(user))
        )
    found["mails"] = await connection.fetchval(
        "select count(*) from howdah.job_status where kind = 'send_welcome_email' and payload ->> 'user_id' = $1",
        str(user),
    )
    return found


def one_of_each(*, progress: int = 1) -> dict[str, int]:
    """What there must be of a student."""
    return {**dict.fromkeys(EVERYTHING, 1), "student_progress": progress, "mails": 1}
