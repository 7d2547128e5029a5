"""Who may do what: the whole matrix of rights, written down here a second time, and that each role can do its job with it."""

from __future__ import annotations

import inspect
import re
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from support.cluster import connect_to
from support.jobs import ack, add_worker, claim_one, dead, enqueue, enqueue_coalesced, enqueue_many, register, status
from support.logins import login
from support.rights import ROLES, foreign_objects, wrong_rights

from howdah import store
from howdah.queries import SQL
from howdah.rights import rights_sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.cluster import Database

    As = Callable[..., Awaitable[asyncpg.Connection]]


@pytest.fixture
async def as_(database: Database) -> AsyncIterator[As]:
    """Connect as a fresh login that is only a member of the roles that are named."""
    async with AsyncExitStack() as stack:

        async def connect(*roles: str) -> asyncpg.Connection:
            mine = await stack.enter_async_context(login(database, *roles))
            connection = await connect_to(mine)
            stack.callback(connection.terminate)
            return connection

        yield connect


@asynccontextmanager
async def denied() -> AsyncIterator[None]:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        yield


# -- the matrix --------------------------------------------------------------------------------------------------------


@pytest.mark.fault(
    "Security",
    "a right too many, or too few, of any role on anything in the schema",
    "a second list of all rights tells it",
)
async def test_every_role_has_exactly_the_rights_that_are_listed(connection: asyncpg.Connection) -> None:
    assert await wrong_rights(connection) == []


DIFFERENCES = (
    "grant execute on function howdah.cancel to howdah_producer",
    "grant execute on function howdah.stats to public",
    "revoke execute on function howdah.ack from howdah_worker",
    "create function howdah.new() returns int language sql as 'select 1'",
    "grant select on howdah.jobs to howdah_reader",
    "grant select (payload) on howdah.jobs to howdah_reader",
    "grant update on howdah.settings to howdah_worker",
    "grant truncate on howdah.jobs to howdah_worker",
    "grant select on howdah.queues to public",
    "grant usage on sequence howdah.jobs_id_seq to howdah_worker",
    "create table howdah.new (id int)",
    "create view howdah.new as select 1",
    "do $$ begin execute 'grant select on ' || (select inhrelid::regclass from pg_inherits limit 1) || ' to howdah_reader'; end $$",
    "grant create on schema howdah to howdah_worker",
    "grant usage on schema howdah to public",
    "alter table howdah.events disable row level security",
    "drop policy granted on howdah.jobs",
    "create policy more on howdah.jobs to public using (true)",
    "drop function howdah.resume",
    "create type howdah.new as enum ('one')",
    "create type howdah.new as (one int)",
    "create domain howdah.new as int",
    "create materialized view howdah.new as select 1 as one",
    "create sequence howdah.new",
    "create procedure howdah.new() language sql as 'select 1'",
    "grant usage on schema howdah to howdah_reader with grant option; grant howdah_owner to howdah_admin",
)
DRIFTS = (
    "grant execute on function howdah.cancel to howdah_producer",
    "grant all on howdah.jobs to public",
    "revoke all on howdah.jobs from howdah_worker",
    "grant all on schema howdah to public, howdah_reader",
    "alter table howdah.jobs disable row level security; drop policy granted on howdah.events",
    "drop policy granted on howdah.jobs; create policy granted on howdah.jobs to howdah_reader using (true)",
    "alter table howdah.jobs owner to current_user; alter function howdah.cancel owner to current_user",
)


async def test_the_matrix_sees_every_sort_of_difference(connection: asyncpg.Connection) -> None:
    assert await wrong_rights(connection) == []
    for change in DIFFERENCES:
        await connection.execute(f"begin; {change}")
        assert await wrong_rights(connection) != [], change
        await connection.execute("rollback")


async def test_what_has_drifted_is_set_right_again(connection: asyncpg.Connection) -> None:
    for drift in DRIFTS:
        await connection.execute(f"begin; {drift}")
        assert await wrong_rights(connection) + await foreign_objects(connection) != [], drift
        await connection.execute(rights_sql(roles=True))
        assert await wrong_rights(connection) + await foreign_objects(connection) == [], drift
        await connection.execute("rollback")


async def test_what_a_site_has_granted_to_its_own_roles_stays(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with login(database) as analyst:
        mine = await connect_to(analyst)
        await connection.execute(
            f"""grant usage on schema howdah to {mine.get_settings().session_authorization};
            grant select on howdah.job_status to {mine.get_settings().session_authorization}"""
        )
        await connection.execute("grant select on howdah.jobs to public")
        await connection.execute(rights_sql(roles=True))
        await mine.fetch("select id from howdah.job_status")
        await mine.close()


@pytest.mark.fault("Security", "a grant by mistake on the tables of jobs", "row-level security shows none of them")
async def test_a_grant_by_mistake_on_a_table_of_jobs_shows_none_of_them(
    connection: asyncpg.Connection, as_: As
) -> None:
    await enqueue(connection)
    await connection.execute("select howdah.cancel($1)", await enqueue(connection))
    producer = await as_("howdah_producer")
    await connection.execute("grant select on howdah.jobs, howdah.job_history to howdah_producer")
    for table in ("jobs", "job_history"):
        assert await connection.fetchval(f"select count(*) from howdah.{table}") == 1
        assert await producer.fetchval(f"select count(*) from howdah.{table}") == 0


async def test_the_owner_owns_everything_and_nobody_logs_in_as_a_group(connection: asyncpg.Connection) -> None:
    assert await foreign_objects(connection) == []
    logins = "select rolname from pg_roles where rolname like 'howdah\\_%' and rolname not like 'howdah\\_test%' and (rolcanlogin or rolsuper or rolbypassrls or rolcreaterole or rolcreatedb)"
    assert await connection.fetch(logins) == []


async def test_a_function_that_has_its_owners_rights_looks_names_up_only_where_nobody_can_put_any(
    connection: asyncpg.Connection,
) -> None:
    rows = await connection.fetch(
        """select proname, proconfig from pg_proc where pronamespace = 'howdah'::regnamespace and prosecdef
        and not 'search_path=pg_catalog, howdah, pg_temp' = any (coalesce(proconfig, '{}'))"""
    )
    assert rows == []


async def test_what_the_owner_makes_later_is_not_for_everybody(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("set local role howdah_owner")
        await connection.execute(
            "create function howdah.new() returns int language sql as 'select 1'; create table howdah.new (id int)"
        )
    for role in ROLES:
        assert not await connection.fetchval("select has_function_privilege($1, 'howdah.new()', 'execute')", role)
        assert not await connection.fetchval("select has_table_privilege($1, 'howdah.new', 'select')", role)


# -- each role at work -------------------------------------------------------------------------------------------------

CALLS = {
    "enqueue": "select * from howdah.enqueue('work')",
    "enqueue_many": """select * from howdah.enqueue_many('[{"kind": "work"}]')""",
    "enqueue_coalesced": "select howdah.enqueue_coalesced('work', key => 'k')",
    "job_status": "select * from howdah.job_status",
    "stats": "select * from howdah.stats()",
    "explain": "select howdah.explain(1)",
    "watch": "select howdah.watch(1, 'me')",
    "create_batch": "select howdah.create_batch('work')",
    "cancel": "select howdah.cancel(1)",
    "cancel_subject": "select howdah.cancel_subject('s')",
    "retry": "select howdah.retry(2)",
    "reschedule": "select howdah.reschedule(1, now() + interval '1 day')",
    "pause": "select howdah.pause('default')",
    "resume": "select howdah.resume('default')",
    "strict": "update howdah.settings set strict_kinds = true",
    "claim": "select * from howdah.claim('me', '{default}', '{work}')",
    "claim_ready": "select * from howdah.claim_ready(1, 5, '{work}', '{default}', '{10}', '{default}', '{-1}', '{0}', '{10}')",
    "read jobs": "select * from howdah.jobs",
    "read history": "select * from howdah.job_history",
    "write jobs": "update howdah.jobs set priority = 1",
    "write history": "update howdah.job_history set priority = 1",
    "write migrations": "delete from howdah.migrations",
    "make a table": "create table howdah.mine (id int)",
    "change a table": "alter table howdah.jobs disable row level security",
    "be the owner": "set role howdah_owner",
}
READING = {"job_status", "stats", "explain", "watch"}
ENQUEUEING = {"enqueue", "enqueue_many", "enqueue_coalesced", "create_batch"}
ABILITIES = {
    (): set(),
    ("howdah_producer",): ENQUEUEING,
    ("howdah_worker",): READING | ENQUEUEING | {"claim", "claim_ready", "read jobs", "read history", "write jobs"},
    ("howdah_reader",): READING,
    ("howdah_admin",): CALLS.keys()
    - {
        "claim",
        "claim_ready",
        "write jobs",
        "write history",
        "write migrations",
        "make a table",
        "change a table",
        "be the owner",
    },
    ("howdah_producer", "howdah_reader"): READING | ENQUEUEING,
}


@pytest.mark.parametrize("roles", ABILITIES, ids=lambda roles: "+".join(roles) or "nobody")
async def test_a_login_can_do_what_its_roles_can_and_nothing_else(
    connection: asyncpg.Connection, as_: As, roles: tuple[str, ...]
) -> None:
    await add_worker(connection)
    first, second = await enqueue_many(connection, {"kind": "work", "subject": "s"}, {"kind": "work"})
    assert (first["id"], second["id"]) == (1, 2)
    await connection.execute("select howdah.cancel(2)")
    mine = await as_(*roles)
    can = set()
    for name, call in CALLS.items():
        await mine.execute("begin")
        try:
            await mine.execute(call)
        except asyncpg.InsufficientPrivilegeError:
            pass
        else:
            can.add(name)
        await mine.execute("rollback")
    assert can == ABILITIES[roles]


async def test_a_producers_job_exists_when_its_own_transaction_commits(connection: asyncpg.Connection, as_: As) -> None:
    producer = await as_("howdah_producer")
    await producer.execute("begin")
    await enqueue(producer)
    await enqueue_coalesced(producer)
    await producer.execute("rollback")
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0
    await producer.execute("begin")
    job = await enqueue(producer, unique_key="k", priority=3, subject="s")
    [other] = await enqueue_many(producer, {"kind": "work", "unique_key": "k"})
    await producer.execute("commit")
    assert (other["id"], other["created"]) == (job, False)
    assert (await status(connection, job))["priority"] == 3


async def test_every_statement_of_the_daemon_can_be_run_by_a_worker(connection: asyncpg.Connection, as_: As) -> None:
    """Each is run with nulls for arguments: what it may touch is checked before anything is read."""
    worker = await as_("howdah_worker")
    nobody = await as_()
    await add_worker(connection)
    for name in sorted(set(re.findall(r'SQL\["(\w+)"\]', inspect.getsource(store)))):
        await worker.execute("begin")
        statement = await worker.prepare(SQL[name])
        arguments: list[Any] = [None] * len(statement.get_parameters())
        try:
            await statement.fetch(*arguments)
        except asyncpg.InsufficientPrivilegeError as error:
            raise AssertionError(f"{name}: {error}") from error
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError):
            pass  # a null where none may be, found after the rights were
        await worker.execute("rollback")
        async with denied():
            await nobody.fetch(SQL[name], *arguments)


async def test_a_worker_in_another_language_needs_no_more_than_its_role(
    connection: asyncpg.Connection, as_: As
) -> None:
    worker = await as_("howdah_worker")
    done, failed, given_back, with_more = [await enqueue(connection, max_attempts=1) for _ in range(4)]
    rows = await worker.fetch("select id, lease from howdah.claim('me', '{default}', '{work}', 4)")
    lease = rows[0]["lease"]
    assert await worker.fetchval("select alive from howdah.beat('me')")
    assert await worker.fetchval("select howdah.start($1, $2)", done, lease)
    assert await worker.fetchval("select howdah.complete($1, $2)", done, lease) == "completed"
    assert await worker.fetchval("select howdah.fail($1, $2, 'no')", failed, lease) == "dead"
    assert await worker.fetchval("select howdah.release($1, $2)", given_back, lease) == "dead"
    assert await worker.fetchval("select howdah.keep_step($1, $2, 'one', '1')", with_more, lease) == 1
    assert await worker.fetchval(
        """select howdah.ack_with($1, $2, 'completed', null, null, null, 1, 1, null, true, '[{"kind": "work"}]')""",
        with_more,
        lease,
    )
    assert await worker.fetchval("select array_agg(state order by id) from howdah.job_status") == (
        ["completed", "dead", "dead", "completed", "ready"]
    )


# -- what is secret ----------------------------------------------------------------------------------------------------

SECRET = {"token": "t0p", "address": {"street": "s"}, "to": "Ada"}


@pytest.fixture
async def mail(connection: asyncpg.Connection) -> tuple[int, int]:
    """A live and a dead job of a kind with secrets: the others that have ended keep none."""
    await register(connection, {"name": "mail", "secret": ["token", "address", "never"]})
    await enqueue(connection, "mail", SECRET)
    ended = await claim_one(connection, kinds=["mail"])
    await ack(connection, dead(ended))
    return await enqueue(connection, "mail", SECRET), ended.id


async def test_a_reader_sees_secret_fields_masked_and_who_may_read_the_jobs_sees_them(
    connection: asyncpg.Connection, as_: As, mail: tuple[int, int]
) -> None:
    for job in mail:
        for role in ("howdah_worker", "howdah_admin"):
            assert (await status(await as_(role), job))["payload"] == SECRET
        assert (await status(connection, job))["payload"] == SECRET
        masked = {"token": "***", "address": "***", "to": "Ada"}
        assert (await status(await as_("howdah_reader"), job))["payload"] == masked
        assert (await status(await as_("howdah_reader", "howdah_admin"), job))["payload"] == SECRET
        assert await connection.fetchval("select howdah.masked('mail', $1)", SECRET) == masked


@pytest.mark.fault("Security", "a reader who asks for a secret in a where clause", "it is compared with ***")
async def test_a_reader_cannot_ask_for_a_secret_in_a_where_clause(as_: As, mail: tuple[int, int]) -> None:
    reader = await as_("howdah_reader")
    query = "select id from howdah.job_status where payload ->> $1 = $2 order by id"
    assert await reader.fetch(query, "token", "t0p") == []
    assert [row["id"] for row in await reader.fetch(query, "to", "Ada")] == sorted(mail)
    await reader.execute(
        """create function pg_temp.spy(payload jsonb) returns boolean cost 0.0001 language plpgsql as
        $$ begin raise notice '%', payload; return true; end $$"""
    )
    heard: list[str] = []
    reader.add_log_listener(lambda _, message: heard.append(message.message))
    await reader.fetch("select id from howdah.job_status where pg_temp.spy(payload)")
    assert len(heard) == 2
    assert "t0p" not in "".join(heard)


async def test_what_has_no_secret_is_shown_whole(connection: asyncpg.Connection, as_: As) -> None:
    await register(connection, {"name": "known"})
    reader = await as_("howdah_reader")
    for kind in ("known", "unknown"):
        for payload in (SECRET, {}):
            job = await enqueue(connection, kind, payload)
            assert (await status(reader, job))["payload"] == payload


async def test_a_query_that_does_not_name_the_payload_does_not_mask_it(as_: As) -> None:
    reader = await as_("howdah_reader")
    for columns, masks in (("id, state, duration, updated_at", False), ("count(*)", False), ("payload", True)):
        plan = "\n".join(
            row[0] for row in await reader.fetch(f"explain verbose select {columns} from howdah.job_status")
        )
        assert ("masked" in plan) == masks, plan
