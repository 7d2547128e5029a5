"""The accounts part as the database keeps it: what cannot be written wrongly, and what is written once however often it is asked."""

from __future__ import annotations

import asyncio
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest
from support.eventually import aeventually
from support.jobs import waits_for_lock
from support.people import create, new_module, new_user, one_of_each, rows_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Connect = Callable[[], Awaitable[asyncpg.Connection]]

DAY = date(2026, 7, 1)


# -- students ---------------------------------------------------------------------------------------------------------


async def test_a_student_begins_with_the_first_lesson_of_each_module(connection: asyncpg.Connection) -> None:
    user, modules = uuid4(), [await new_module(connection), await new_module(connection)]
    student = await create(connection, user, await new_user(connection), *modules)
    assert student["created"] is True
    assert await rows_of(connection, user) == one_of_each(progress=2)
    begun = await connection.fetch(
        "select p.module_id, l.position from app.student_progress p join app.lessons l on l.id = p.lesson_id"
    )
    assert sorted((row["module_id"], row["position"]) for row in begun) == sorted((module, 1) for module in modules)


async def test_progress_cannot_be_written_with_a_students_number(connection: asyncpg.Connection) -> None:
    # Never again (a): 70 of 71 students had no progress, because it was written with students.id.
    module, user = await new_module(connection), uuid4()
    await create(connection, user, await new_user(connection), module)
    lesson = await connection.fetchval("select id from app.lessons where position = 2")
    student = await connection.fetchval("select id from app.students")
    write = "insert into app.student_progress (student_user_id, module_id, lesson_id)"
    with pytest.raises(asyncpg.DatatypeMismatchError):
        await connection.execute(f"{write} select s.id, $1, $2 from app.students s", module, lesson)
    with pytest.raises(asyncpg.DataError):
        await connection.execute(f"{write} values ($1, $2, $3)", student, module, lesson)
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="student_user_id"):
        await connection.execute(f"{write} values ($1, $2, $3)", uuid4(), module, lesson)
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await connection.execute("select app.mark_welcomed(s.id) from app.students s")  # and (f), the same for the flag


async def test_what_hangs_on_a_user_cannot_be_there_without_the_user(connection: asyncpg.Connection) -> None:
    # Never again (b): a missing users row. Whatever keeps it from being written keeps all of it from being written.
    manager, module, user = await new_user(connection), await new_module(connection), uuid4()
    await connection.execute(
        """create function app.skip() returns trigger language plpgsql as 'begin return null; end';
        create trigger skip before insert on app.users for each row execute function app.skip()"""
    )
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await create(connection, user, manager, module)
    assert set((await rows_of(connection, user)).values()) == {0}


async def test_making_a_student_again_adds_what_is_missing_and_changes_nothing(connection: asyncpg.Connection) -> None:
    user, manager, modules = uuid4(), await new_user(connection), [await new_module(connection) for _ in range(2)]
    first = await create(connection, user, manager, modules[0])
    await connection.execute("update app.users set full_name = 'Ada Lovelace', role = 'admin' where id = $1", user)
    again = await create(connection, user, manager, *modules)
    assert (again["student_id"], again["created"]) == (first["student_id"], False)
    assert await rows_of(connection, user) == one_of_each(progress=2)
    assert tuple(await connection.fetchrow("select full_name, role from app.users where id = $1", user)) == (
        "Ada Lovelace",
        "admin",
    )
    await connection.execute("delete from app.student_profiles; delete from app.student_progress")
    await create(connection, user, manager, *modules)
    assert await rows_of(connection, user) == one_of_each(progress=2)


async def test_two_that_make_the_same_student_at_once_make_one(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    user, manager, module = uuid4(), await new_user(connection), await new_module(connection)
    first, second = await connect(), await connect()
    held = first.transaction()
    await held.start()
    assert (await create(first, user, manager, module))["created"] is True
    waiting = asyncio.create_task(create(second, user, manager, module))
    await aeventually(lambda: waits_for_lock(connection, second.get_server_pid()))
    await held.commit()
    assert (await waiting)["created"] is False
    assert await rows_of(connection, user) == one_of_each()


async def test_a_module_without_a_lesson_to_begin_with_is_refused_and_nothing_is_written(
    connection: asyncpg.Connection,
) -> None:
    user, manager = uuid4(), await new_user(connection)
    for module in (uuid4(), await new_module(connection, lessons=0)):
        with pytest.raises(asyncpg.ForeignKeyViolationError, match=f"module {module}"):
            await create(connection, user, manager, await new_module(connection), module)
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="granted_by"):
        await create(connection, user, uuid4())
    assert set((await rows_of(connection, user)).values()) == {0}


async def test_the_welcome_is_noted_for_the_person_it_went_to_and_keeps_its_first_time(
    connection: asyncpg.Connection,
) -> None:
    # Never again (f): the flag set by the wrong id.
    users = [uuid4(), uuid4(), uuid4()]
    for user in users:
        await create(connection, user, None)
    assert await connection.fetchval("select app.mark_welcomed($1)", users[1]) is True
    flags = dict(await connection.fetch("select user_id, welcome_email_sent_at from app.students"))
    assert [flags[user] is not None for user in users] == [False, True, False]
    assert await connection.fetchval("select app.mark_welcomed($1)", users[1]) is True
    assert dict(await connection.fetch("select user_id, welcome_email_sent_at from app.students")) == flags
    assert await connection.fetchval("select app.mark_welcomed($1)", uuid4()) is False


# -- traffic ----------------------------------------------------------------------------------------------------------


async def test_the_sums_of_a_day_follow_its_events_however_often_they_are_made(connection: asyncpg.Connection) -> None:
    one, other, gone = [await new_targetologist(connection) for _ in range(3)]
    await add_events(connection, one, (DAY, 3, "1.25", 1), (DAY, 4, "0.75", 0), (date(2026, 7, 2), 9, "9", 9))
    await add_events(connection, other, (DAY, 1, "0", 0))
    await add_events(connection, gone, (DAY, 5, "5", 5))
    for _ in range(2):
        assert await roll_up(connection) == 3
        assert await sums(connection) == {one: (7, Decimal(2), 1), other: (1, Decimal(0), 0), gone: (5, Decimal(5), 5)}
    await connection.execute("delete from app.traffic_events where targetologist_id = $1", gone)
    await add_events(connection, other, (DAY, 1, "3.50", 2))
    assert await roll_up(connection) == 2
    assert await sums(connection) == {one: (7, Decimal(2), 1), other: (2, Decimal("3.5"), 2)}
    assert await connection.fetchval("select count(*) from app.traffic_analytics where day <> $1", DAY) == 0


async def test_of_two_roll_ups_at_once_the_later_one_sees_all_events(
    connection: asyncpg.Connection, connect: Connect
) -> None:
    one = await new_targetologist(connection)
    await add_events(connection, one, (DAY, 1, "1", 1))
    early, late = await connect(), await connect()
    await early.execute("begin")
    await roll_up(early)
    waiting = asyncio.create_task(roll_up(late))
    await aeventually(lambda: waits_for_lock(connection, late.get_server_pid()))
    await add_events(connection, one, (DAY, 1, "1", 1))
    await early.execute("commit")
    await waiting
    assert await sums(connection) == {one: (2, Decimal(2), 2)}


# -- the audit --------------------------------------------------------------------------------------------------------


async def test_the_applications_own_references_are_constrained_and_indexed(connection: asyncpg.Connection) -> None:
    bad = [row for row in await audit(connection) if row["severity"] not in {"ok", "info"}]
    # Who wrote a post may be somebody of whom nothing is known here.
    assert [(row["table"], row["columns"]) for row in bad] == []


async def test_the_audit_finds_each_way_in_which_a_reference_can_be_wrong(connection: asyncpg.Connection) -> None:
    user = await new_user(connection)
    await connection.execute(
        """create table app.categories (id int primary key);
        create table app.bad (
          indexed_id int references app.categories, category_id int references app.categories,
          partly_id int references app.categories, nulls_id int references app.categories,
          loose_user_id uuid, target_user_id uuid, external_id text, category_ids int);
        create index on app.bad (indexed_id, external_id);
        create index on app.bad (category_ids, category_id);
        create index on app.bad (partly_id) where partly_id > 7;
        create index on app.bad (nulls_id) where nulls_id is not null;
        create table app.pairs (a int, b int, primary key (a, b));
        create table app.of_pairs (x int, y int, foreign key (x, y) references app.pairs (a, b));
        create index on app.of_pairs (y, x);
        create table app.unchecked (category_id int);
        insert into app.unchecked values (1), (2), (null);
        alter table app.unchecked add foreign key (category_id) references app.categories not valid;
        create index on app.unchecked (category_id)"""
    )
    await connection.execute(
        "insert into app.bad (loose_user_id, target_user_id) values ($1, $2), (null, $1)", user, uuid4()
    )
    found = {
        (row["table"], *row["columns"]): (
            row["references"],
            row["constrained"],
            row["indexed"],
            row["dangling"],
            row["severity"],
        )
        for row in await audit(connection)
        if row["table"] in {"app.bad", "app.of_pairs", "app.unchecked"}
    }
    assert found == {
        ("app.bad", "indexed_id"): ("app.categories", True, True, None, "ok"),
        ("app.bad", "category_id"): ("app.categories", True, False, None, "warning"),
        ("app.bad", "partly_id"): ("app.categories", True, False, None, "warning"),
        ("app.bad", "nulls_id"): ("app.categories", True, True, None, "ok"),
        ("app.bad", "loose_user_id"): ("app.users", False, False, 0, "warning"),
        ("app.bad", "target_user_id"): ("app.users", False, False, 1, "error"),
        ("app.bad", "external_id"): (None, False, False, None, "info"),
        ("app.of_pairs", "x", "y"): ("app.pairs", True, True, None, "ok"),
        ("app.unchecked", "category_id"): ("app.categories", True, True, 2, "error"),
    }


async def test_the_audit_is_for_the_handlers_alone(connection: asyncpg.Connection) -> None:
    assert await connection.fetchval(
        "select has_function_privilege('app_handlers', 'app.audit_references()', 'execute')"
    )
    assert not await connection.fetchval("select has_function_privilege('public', 'app.audit_references()', 'execute')")


# -- words for the above ----------------------------------------------------------------------------------------------


async def new_targetologist(connection: asyncpg.Connection) -> UUID:
    user = await new_user(connection)
    made: UUID = await connection.fetchval(
        "insert into app.traffic_targetologists (user_id) values ($1) returning id", user
    )
    return made


async def add_events(connection: asyncpg.Connection, who: UUID, *events: tuple[date, int, str, int]) -> None:
    await connection.executemany(
        "insert into app.traffic_events (targetologist_id, day, clicks, spend, registrations) values ($1, $2, $3, $4, $5)",
        [(who, day, clicks, Decimal(spend), registrations) for day, clicks, spend, registrations in events],
    )


async def roll_up(connection: asyncpg.Connection) -> int:
    number: int = await connection.fetchval("select app.roll_up_traffic($1)", DAY)
    return number


async def sums(connection: asyncpg.Connection) -> dict[UUID, tuple[int, Decimal, int]]:
    rows = await connection.fetch(
        "select targetologist_id, clicks, spend, registrations from app.traffic_analytics where day = $1", DAY
    )
    return {row["targetologist_id"]: tuple(row)[1:] for row in rows}


async def audit(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    return await connection.fetch("select * from app.audit_references()")
