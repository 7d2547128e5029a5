"""Workers that are killed while they make and welcome students: in the end there is one of everything."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support.auth_server import FaultyAuthServer
from support.eventually import aeventually
from support.facts import count_ends, is_empty
from support.jobs import enqueue
from support.people import create, new_module, new_user, one_of_each, rows_of
from support.smtp import FaultyMailServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg
    from conftest import StartApp

    Connect = Callable[[], Awaitable[asyncpg.Connection]]
    from support.figures import Figures

pytestmark = pytest.mark.faults

PASSWORD = "a password"


@pytest.mark.fault(
    "Process", "killed at five points of the making of students", "one user, one student and one mail each"
)
async def test_a_worker_killed_anywhere_in_the_making_of_students_leaves_one_of_everything(
    connection: asyncpg.Connection, connect: Connect, app_daemon: StartApp, figures: Figures
) -> None:
    # Never again (d): a retry after the auth step, or after the transaction, made things twice.
    manager, module = await new_user(connection), await new_module(connection)
    acks, inserts = await connect(), await connect()
    auth, mails = FaultyAuthServer(), FaultyMailServer()
    auth.hold_before, auth.hold_after = {"before"}, {"after"}
    async with auth.running(), mails.running():
        settings = {"app_auth_url": auth.url, "app_smtp_port": mails.port}
        victim = await app_daemon("accounts", **settings)

        async def make(name: str) -> None:
            payload = {"email": f"{name}@example.org", "full_name": name, "password": PASSWORD}
            payload |= {"granted_by": str(manager), "module_ids": [str(module)]}  # type: ignore[dict-item]
            await enqueue(connection, "create_student", payload)

        # All is written and committed, the mail is sent and noted; only that the jobs are done will nobody hear.
        await acks.execute("begin; lock table howdah.job_history in share mode")
        await make("committed")
        await aeventually(lambda: connection.fetchval("select bool_and(welcome_email_sent) from app.students"))
        # In the middle of the transaction: one will be undone, and one commits though its worker is dead.
        await inserts.execute("begin; lock table app.sales_activity_log in share row exclusive mode")
        await make("undone")
        await make("orphaned")
        # The auth server has not made the user yet; and it has, but nobody has heard of it.
        await make("before")
        await make("after")
        await aeventually(lambda: sorted(auth.held) == ["after@example.org", "before@example.org"])
        await aeventually(lambda: stuck(connection, "%app.create_student%", 2))
        await aeventually(
            lambda: connection.fetchval("select count(*) = 6 from howdah.jobs where leased_by is not null")
        )
        await app_daemon("accounts", **settings)
        victim.kill()
        await connection.execute(
            """select pg_terminate_backend(pid, 5000) from (
                 select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()
                 order by query like '%app.create_student%', pid limit (
                   select count(*) - 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())) w"""
        )
        auth.let_go()
        await inserts.execute("commit")
        await acks.execute("commit")
        await aeventually(lambda: is_empty(connection), 20)

        names = ["after", "before", "committed", "orphaned", "undone"]
        assert sorted(auth.users) == [f"{name}@example.org" for name in names]
        for user in auth.users.values():
            assert await rows_of(connection, user["id"]) == one_of_each(), user
        assert Counter(mails.recipients) == dict.fromkeys(auth.users, 1)
        assert await connection.fetchval("select bool_and(welcome_email_sent) from app.students")
        assert await connection.fetchval("select count(*) from howdah.job_history where state = 'completed'") == 10
        assert await connection.fetchval("select count(*) from app.students") == 5
    figures.faults += 5
    await count_ends(connection, figures)


@pytest.mark.fault("Process", "killed while it sends mails", "none twice but the one on the wire, under the same id")
async def test_a_worker_killed_while_it_welcomes_sends_nothing_twice_but_what_was_on_the_wire(
    connection: asyncpg.Connection, connect: Connect, app_daemon: StartApp, figures: Figures
) -> None:
    flags, mails = await connect(), FaultyMailServer()
    mails.hold_taken = 2
    for user in (uuid4(), uuid4(), uuid4()):
        await create(connection, user, None)
    async with mails.running():
        await flags.execute("begin; lock table app.students in share mode")
        victim = await app_daemon("accounts", app_smtp_port=mails.port)
        # The first mail is sent and kept as sent, the flag is not set. The server has the second, and has not said so.
        # The third has not begun.
        await aeventually(lambda: mails.held)
        await aeventually(lambda: stuck(connection, "%app.mark_welcomed%", 1))
        sent, on_the_wire = mails.recipients
        await app_daemon("accounts", app_smtp_port=mails.port)
        victim.kill()
        # Else the server, which has not noticed, would set the flag when the lock is free.
        await connection.execute(
            """select pg_terminate_backend(pid, 5000) from pg_stat_activity
               where query like '%app.mark_welcomed%' and wait_event_type = 'Lock' and datname = current_database()"""
        )
        mails.let_go()
        await flags.execute("commit")
        await aeventually(lambda: is_empty(connection), 20)
        assert len(set(mails.recipients)) == 3
        assert Counter(mails.recipients)[sent] == 1
        assert Counter(mails.recipients)[on_the_wire] == 2
        assert len(mails.recipients) == 4
        assert len({mail["Message-ID"] for mail in mails.mails}) == 3
        copies = [mail["Message-ID"] for mail in mails.mails if mail["To"].addresses[0].addr_spec == on_the_wire]
        assert len(set(copies)) == 1
        assert await connection.fetchval("select bool_and(welcome_email_sent) from app.students")
    figures.faults += 1
    await count_ends(connection, figures)


async def stuck(connection: asyncpg.Connection, query: str, number: int) -> bool:
    """Tell whether so many backends wait for a lock in a query like this."""
    found: int = await connection.fetchval(
        """select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()
           and query like $1 and pid <> pg_backend_pid()""",
        query,
    )
    return found == number
