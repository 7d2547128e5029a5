"""The courses part's schema: steps that are never lost, starts that double nothing, deletions that leave no job behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from support.courses import add_document, course_of, documents_of, jobs_of, new_course, start, states_of, steps_of
from support.eventually import aeventually
from support.jobs import waits_for_lock
from support.logins import login

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from howdah.testing.databases import Database

    Connect = Callable[[], Awaitable[asyncpg.Connection]]


# -- progress ---------------------------------------------------------------------------------------------------------


async def test_progress_of_a_course_that_is_gone_is_answered_and_is_no_error(connection: asyncpg.Connection) -> None:
    gone = uuid4()
    assert await progress(connection, gone, "reading", "completed") == {
        "success": False,
        "reason": "course_not_found",
        "course_id": str(gone),
    }


async def test_a_step_keeps_what_was_said_of_it_and_counts_when_it_has_ended(connection: asyncpg.Connection) -> None:
    course = await new_course(connection)
    await progress(connection, course, "reading", "in_progress", "page 3", metadata={"page": 3})
    told = await progress(connection, course, "writing", "pending")
    assert (told["success"], told["percentage"]) == (True, 0)
    told = await progress(
        connection, course, "reading", "failed", error_message="cut off", error_details={"at": 4}, metadata={"pages": 9}
    )
    assert told["percentage"] == 50
    kept = await course_of(connection, course)
    step = steps_of(kept)["reading"]
    assert (step["status"], step["error_message"], step["error_details"]) == ("failed", "cut off", {"at": 4})
    assert step["metadata"] == {"page": 3, "pages": 9}
    assert step["started_at"] <= step["ended_at"]
    assert kept["generation_progress"]["percentage"] == 50
    assert kept["generation_progress"]["message"] == "cut off"


@pytest.mark.parametrize(
    ("step", "status", "metadata", "named"),
    [
        ("", "completed", None, "step_id"),
        (None, "completed", None, "step_id"),
        ("a", "finished", None, "status is 'finished'"),
        ("a", None, None, "status"),
        ("a", "completed", [1], "metadata"),
    ],
)
async def test_a_step_that_makes_no_sense_is_refused_by_name(
    connection: asyncpg.Connection, step: str | None, status: str | None, metadata: Any, named: str
) -> None:
    course = await new_course(connection)
    with pytest.raises(asyncpg.InvalidParameterValueError, match=named):
        await progress(connection, course, step, status, metadata=metadata)


async def test_steps_of_many_at_once_are_all_kept(connection: asyncpg.Connection, database: Database) -> None:
    course = await new_course(connection)
    async with asyncpg.create_pool(database.url, min_size=8, max_size=8) as pool:
        await asyncio.gather(*(progress(pool, course, f"step {n}", "completed") for n in range(200)))
    kept = await course_of(connection, course)
    assert len(steps_of(kept)) == 200
    assert kept["generation_progress"]["percentage"] == 100


# -- starts -----------------------------------------------------------------------------------------------------------


async def test_a_start_makes_one_job_a_document_and_the_structure_behind_them_all_of_the_courses_subject(
    connection: asyncpg.Connection,
) -> None:
    course, documents = await course_with(connection, 3)
    assert (await course_of(connection, course))["has_documents"]
    batch = await start(connection, course)
    jobs = await jobs_of(connection, course)
    assert [job["kind"] for job in jobs] == ["structure_course", *["process_document"] * 3]
    assert [job["payload"].get("document_id") for job in jobs[1:]] == [str(document) for document in documents]
    assert (jobs[0]["id"], jobs[0]["state"]) == (batch, "waiting")
    assert await connection.fetchval("select count(*) from howdah.jobs where batch = $1", batch) == 3
    course = await course_of(connection, course)
    assert (course["generation_status"], len(steps_of(course))) == ("processing", 7)


async def test_a_start_while_one_runs_gives_that_one_and_doubles_nothing(connection: asyncpg.Connection) -> None:
    course, _ = await course_with(connection, 2)
    batch = await start(connection, course)
    assert await start(connection, course) == batch
    assert await start(connection, course, again=True) == batch
    assert await states_of(connection, course) == {"structure_course": ["waiting"], "process_document": ["ready"] * 2}


async def test_two_starts_at_once_double_nothing(connection: asyncpg.Connection, connect: Connect) -> None:
    course, _ = await course_with(connection, 2)
    other = await connect()
    async with connection.transaction():
        batch = await start(connection, course)
        second = asyncio.create_task(start(other, course))
        watcher = await connect()
        await aeventually(lambda: waits_for_lock(watcher, other.get_server_pid()))
    assert await second == batch
    assert len(await jobs_of(connection, course)) == 3


async def test_a_document_that_is_added_later_starts_a_batch_of_its_own(connection: asyncpg.Connection) -> None:
    course, _ = await course_with(connection, 2)
    first = await start(connection, course)
    late = await add(connection, course)
    second = await start(connection, course)
    assert second > first
    jobs = [job for job in await jobs_of(connection, course) if job["id"] >= second]
    assert [job["payload"].get("document_id") for job in jobs] == [None, str(late)]
    assert await start(connection, course) == second


async def test_a_start_takes_up_what_failed_and_leaves_what_is_done(connection: asyncpg.Connection) -> None:
    course, [done, failed] = await course_with(connection, 2)
    await connection.execute("update app.documents set status = 'completed' where id = $1", done)
    await connection.execute("update app.documents set status = 'failed', error = 'cut off' where id = $1", failed)
    await start(connection, course)
    jobs = await jobs_of(connection, course)
    assert [job["payload"].get("document_id") for job in jobs] == [None, str(failed)]
    assert [row["error"] for row in await documents_of(connection, course)] == [None, None]


async def test_a_start_of_what_is_all_done_makes_the_outline_anew_and_again_makes_everything_anew(
    connection: asyncpg.Connection,
) -> None:
    course, _ = await course_with(connection, 2)
    await connection.execute("update app.documents set status = 'completed'")
    batch = await start(connection, course)
    assert await states_of(connection, course) == {"structure_course": ["waiting"]}
    assert await start(connection, course) == batch
    await start(connection, course, again=True)
    assert (await states_of(connection, course))["process_document"] == ["ready"] * 2


async def test_a_course_whose_jobs_were_cancelled_can_be_started_anew(connection: asyncpg.Connection) -> None:
    course, _ = await course_with(connection, 2)
    first = await start(connection, course)
    await connection.execute("select howdah.cancel_subject($1)", f"course:{course}")
    second = await start(connection, course)
    assert second > first
    assert (await states_of(connection, course))["process_document"] == ["cancelled", "cancelled", "ready", "ready"]


async def test_a_start_of_no_course_names_it(connection: asyncpg.Connection) -> None:
    gone = uuid4()
    with pytest.raises(asyncpg.NoDataFoundError, match=str(gone)):
        await start(connection, gone)


# -- deletions --------------------------------------------------------------------------------------------------------


async def test_deleting_a_course_cancels_its_jobs_with_the_reason(connection: asyncpg.Connection) -> None:
    course, _ = await course_with(connection, 2)
    other, _ = await course_with(connection, 1)
    await start(connection, course)
    await start(connection, other)
    await connection.execute("delete from app.courses where id = $1", course)
    jobs = await jobs_of(connection, course)
    assert {(job["state"], job["cancelled_by"], job["cancel_reason"]) for job in jobs} == {
        ("cancelled", "app.courses", f"course {course} is gone")
    }
    assert await states_of(connection, other) == {"structure_course": ["waiting"], "process_document": ["ready"]}


async def test_deleting_an_organization_cancels_the_jobs_of_all_of_its_courses(connection: asyncpg.Connection) -> None:
    owner = await connection.fetchval("insert into app.organizations (name) values ('zoo') returning id")
    courses = [(await course_with(connection, 2))[0] for _ in range(3)]
    await connection.execute("update app.courses set organization_id = $1", owner)
    for course in courses:
        await start(connection, course)
    await connection.execute("delete from app.organizations")
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0
    assert await connection.fetchval("select count(*) from app.documents") == 0


async def test_whoever_deletes_a_course_needs_no_right_to_cancel(
    connection: asyncpg.Connection, database: Database
) -> None:
    course, _ = await course_with(connection, 1)
    await start(connection, course)
    async with login(database) as clerk:
        name = clerk.url.partition("://")[2].partition(":")[0]
        await connection.execute(f"grant usage on schema app to {name}; grant select, delete on app.courses to {name}")
        theirs = await asyncpg.connect(clerk.url)
        await theirs.execute("delete from app.courses where id = $1", course)
        await theirs.close()
    assert {job["state"] for job in await jobs_of(connection, course)} == {"cancelled"}


@pytest.mark.parametrize(
    "call", ["begin_step", "store_document", "store_summary", "fail_document", "begin_structure", "store_outline"]
)
async def test_a_jobs_statement_waits_for_a_deletion_and_then_finds_the_course_gone(
    connection: asyncpg.Connection, connect: Connect, call: str
) -> None:
    course, [document] = await course_with(connection, 1)
    batch = await start(connection, course)
    await connection.execute(
        "update app.documents set status = $1", "processed" if call == "store_summary" else "processing"
    )
    version = await connection.fetchval("select app.documents_version($1)", course)
    worker, deleter, watcher = await connect(), await connect(), await connect()

    async with deleter.transaction():
        await deleter.execute("delete from app.courses where id = $1", course)
        waiting = asyncio.create_task(act(worker, call, course, document, batch, version))
        await aeventually(lambda: waits_for_lock(watcher, worker.get_server_pid()))
    assert await waiting == f"course {course} is gone"


@pytest.mark.parametrize("call", ["begin_step", "store_document", "store_summary", "fail_document"])
async def test_a_deletion_waits_for_a_jobs_statement_and_then_takes_what_it_wrote(
    connection: asyncpg.Connection, connect: Connect, call: str
) -> None:
    course, [document] = await course_with(connection, 1)
    batch = await start(connection, course)
    await connection.execute(
        "update app.documents set status = $1", "processed" if call == "store_summary" else "processing"
    )
    worker, watcher = await connect(), await connect()
    async with worker.transaction():
        await act(worker, call, course, document, batch, "")
        deleting = asyncio.create_task(connection.execute("delete from app.courses where id = $1", course))
        await aeventually(lambda: waits_for_lock(watcher, connection.get_server_pid()))
    await deleting
    assert await connection.fetchval("select count(*) from app.document_chunks") == 0
    # Also the job of the summary, which was enqueued after the deletion had begun.
    assert {job["state"] for job in await jobs_of(connection, course)} == {"cancelled"}


# -- what the jobs write ----------------------------------------------------------------------------------------------


async def test_what_is_stored_twice_is_there_once(connection: asyncpg.Connection) -> None:
    course, [document] = await course_with(connection, 1)
    batch = await start(connection, course)
    for _ in range(2):
        await act(connection, "begin_step", course, document, batch)
        assert await act(connection, "store_document", course, document, batch) is None
    assert await connection.fetchval("select count(*) from app.document_chunks") == 2
    assert len((await states_of(connection, course))["summarize_document"]) == 1


async def test_a_document_that_is_deleted_under_its_job_is_missed_by_nobody(connection: asyncpg.Connection) -> None:
    course, [document] = await course_with(connection, 1)
    batch = await start(connection, course)
    await act(connection, "begin_step", course, document, batch)
    await connection.execute("delete from app.documents")
    for call in ("begin_step", "store_document", "store_summary", "fail_document"):
        assert await act(connection, call, course, document, batch) == f"document {document} is gone"
    assert await act(connection, "begin_structure", course, document, batch) is None
    assert await act(connection, "store_outline", course, document, batch) is None
    kept = await course_of(connection, course)
    assert (kept["has_documents"], kept["generation_progress"]["percentage"]) == (False, 100)
    assert kept["generation_progress"]["message"] == "the course has no documents"


async def test_a_job_of_an_earlier_start_leaves_the_document_alone(connection: asyncpg.Connection) -> None:
    course, [document] = await course_with(connection, 1)
    early = await start(connection, course)
    await connection.execute("select howdah.cancel_subject($1)", f"course:{course}")
    late = await start(connection, course)
    await act(connection, "begin_step", course, document, late)
    assert "another start" in str(await act(connection, "store_document", course, document, early))
    assert await connection.fetchval("select count(*) from app.document_chunks") == 0


async def test_a_batch_whose_last_job_was_cancelled_is_told_and_stores_nothing(connection: asyncpg.Connection) -> None:
    course, [document] = await course_with(connection, 1)
    batch = await start(connection, course)
    await act(connection, "begin_step", course, document, batch)
    await connection.execute("select howdah.cancel($1)", batch)
    assert "is over" in str(await act(connection, "store_document", course, document, batch))
    assert await connection.fetchval("select count(*) from app.document_chunks") == 0


async def test_an_outline_of_documents_that_have_changed_meanwhile_is_not_stored(
    connection: asyncpg.Connection,
) -> None:
    course, _ = await course_with(connection, 1)
    batch = await start(connection, course)
    begun = await connection.fetchrow("select * from app.begin_structure($1, $2)", course, batch)
    await connection.execute("update app.documents set processed_content = 'by hand'")
    query = "select * from app.store_outline($1, $2, $3, $4, $5)"
    stored = await connection.fetchrow(query, course, batch, begun["version"], {"modules": []}, {})
    assert tuple(stored) == (None, None)
    begun = await connection.fetchrow("select * from app.begin_structure($1, $2)", course, batch)
    assert begun["documents"][0]["summary"] == "by hand"
    stored = await connection.fetchrow(query, course, batch, begun["version"], {"modules": []}, {})
    assert tuple(stored) == (None, "failed")


async def test_the_handlers_may_do_what_they_do_and_nothing_else_of_courses(
    connection: asyncpg.Connection, handlers_url: str
) -> None:
    course, [document] = await course_with(connection, 1)
    batch = await start(connection, course)
    handlers = await asyncpg.connect(handlers_url)
    assert await act(handlers, "begin_step", course, document, batch) is None
    for statement in (
        "delete from app.courses",
        "update app.documents set text = ''",
        "select from app.document_chunks",
        f"select app.is_live({batch})",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await handlers.execute(statement)
    await handlers.close()


# -- words for the above ----------------------------------------------------------------------------------------------


async def add(connection: asyncpg.Connection, course: UUID) -> UUID:
    return await add_document(connection, course, "a.md", "text/markdown", "file:///nowhere/a.md")


async def course_with(connection: asyncpg.Connection, documents: int) -> tuple[UUID, list[UUID]]:
    course = await new_course(connection)
    return course, [await add(connection, course) for _ in range(documents)]


async def progress(
    connection: asyncpg.Connection | asyncpg.Pool,
    course: UUID,
    step: str | None,
    status: str | None,
    message: str | None = None,
    **given: Any,
) -> dict[str, Any]:
    if isinstance(connection, asyncpg.Pool):
        query = "select app.update_course_progress($1, $2, $3)"
        told: str = await connection.fetchval(query, course, step, status)
        return {"told": told}
    named = "".join(f", {name} => ${place}" for place, name in enumerate(given, start=5))
    query = f"select app.update_course_progress($1, $2, $3, $4{named})"
    answer: dict[str, Any] = await connection.fetchval(query, course, step, status, message, *given.values())
    return answer


async def act(
    connection: asyncpg.Connection, call: str, course: UUID, document: UUID, batch: int, version: str = ""
) -> str | None:
    """Do what a job does in one statement, and give why nobody wants it, if nobody does."""
    arguments: dict[str, tuple[str, list[Any]]] = {
        "begin_step": ("gone from app.begin_step('process_document', $1, $2, $3)", [document, batch]),
        "store_document": ("app.store_document($1, $2, $3, 'text', '{}', '{one,two}', '{1,1}')", [document, batch]),
        "store_summary": ("app.store_summary($1, $2, $3, 'in short')", [document, batch]),
        "fail_document": ("app.fail_document('process_document', $1, $2, $3, 'cut off')", [document, batch]),
        "begin_structure": ("gone from app.begin_structure($1, $2)", [batch]),
        "store_outline": ("gone from app.store_outline($1, $2, $3, '{}', '{}')", [batch, version]),
    }
    query, values = arguments[call]
    told: str | None = await connection.fetchval(f"select {query}", course, *values)
    return told
