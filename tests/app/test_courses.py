"""The courses part, by real daemons: from files to an outline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from support.commands import cli
from support.courses import (
    STORY,
    Shelf,
    add_document,
    add_one_of_each,
    add_text,
    course_of,
    documents_of,
    jobs_of,
    new_course,
    over,
    start,
    states_of,
    steps_of,
)
from support.eventually import aeventually
from support.facts import count_ends
from support.jobs import enqueue
from support.web import website

from demo.chat_server import chat_server
from demo.files import DOCX_TYPE, docx, html, pdf

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import StartApp
    from support.figures import Figures

    from howdah.testing.databases import Database

KINDS = ("process_document", "summarize_document", "structure_course")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "files")


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.long)])
async def test_a_course_of_every_type_of_document_is_read_summarised_and_then_structured_once(
    times: int, connection: asyncpg.Connection, app_daemon: StartApp, shelf: Shelf, database: Database
) -> None:
    await app_daemon("courses", app_storage_url=shelf.url)
    for _ in range(times):
        course = await new_course(connection)
        await add_one_of_each(connection, shelf, course)
        batch = await start(connection, course)
        said = await cli("wait", "--subject", f"course:{course}", "--timeout", "60", url=database)
        assert said.code == 0, said.err
        for document in await documents_of(connection, course):
            assert document["status"] == "completed", document["error"]
            assert "elephant carries the load" in document["text"]
            assert "alert" not in document["text"]
            assert document["chunks"] >= 1
            assert "elephant" in document["processed_content"]
        jobs = await jobs_of(connection, course)
        [structure] = [job for job in jobs if job["kind"] == "structure_course"]
        assert structure["id"] == batch
        assert structure["headers"]["batch"] == {"completed": 10, "dead": 0, "cancelled": 0}
        assert all(job["finished_at"] <= structure["claimed_at"] for job in jobs if job is not structure)
        made = await course_of(connection, course)
        assert (made["generation_status"], made["generation_progress"]["percentage"]) == ("completed", 100)
        assert len(steps_of(made)) == 11
        titles = [module["title"] for module in made["outline"]["modules"]]
        assert titles == ["a.pdf", "Elephants in Word", "Elephants on the web", "Elephants in Markdown", "e.txt"]
        await connection.execute("delete from app.courses where id = $1", course)


async def test_a_document_that_cannot_be_read_is_told_everywhere_and_the_others_are_structured(
    connection: asyncpg.Connection, app_daemon: StartApp, shelf: Shelf
) -> None:
    course = await new_course(connection)
    await add_text(connection, shelf, course)
    bad = {
        "secret.pdf": ("application/pdf", pdf(STORY, password="x"), "the PDF is protected with a password"),
        "cut.docx": (DOCX_TYPE, docx("A", STORY)[:-100], "the DOCX file is damaged, or was cut short on its way"),
        "page.pdf": ("application/pdf", html("404", STORY), "the file is said to be a PDF, but is a web page"),
        "empty.txt": ("text/plain", b"", "the file is empty"),
        "tune.mp3": ("audio/mpeg", b"ID3", "the file is of type audio/mpeg (tune.mp3)"),
    }
    for name, (content_type, body, _) in bad.items():
        await add_document(connection, course, name, content_type, shelf.put(name, body))
    elsewhere = {
        "gone.md": (f"{shelf.url}/gone.md", "nothing is stored as file://"),
        "up.md": (f"{shelf.url}/../up.md", "names no file of our storage"),
        "passwd.md": ("file:///etc/passwd", "is neither in our storage nor an address of the web"),
        "own.md": ("http://127.0.0.1:9/own.md", "http://127.0.0.1:9/own.md is refused"),
    }
    for name, (url, _) in elsewhere.items():
        await add_document(connection, course, name, "text/markdown", url)
    daemon = await app_daemon("courses", app_storage_url=shelf.url)
    await start(connection, course)
    await over(connection, course)

    told = {name: told for name, (*_, told) in {**bad, **elsewhere}.items()}
    made = await course_of(connection, course)
    jobs = {job["payload"].get("document_id"): job for job in await jobs_of(connection, course)}
    [_, *documents] = await documents_of(connection, course)
    for document in documents:
        assert document["status"] == "failed"
        assert told[document["filename"]] in document["error"]
        steps = steps_of(made)
        assert steps[f"process_document:{document['id']}"]["error_message"] == document["error"]
        assert steps[f"summarize_document:{document['id']}"]["status"] == "skipped"
        job = jobs[str(document["id"])]
        assert (job["state"], job["attempt"], job["error"]) == ("dead", 1, document["error"])
    assert made["generation_status"] == "incomplete"
    assert made["generation_progress"]["percentage"] == 100
    assert made["generation_progress"]["message"] == "9 of 10 documents are missing"
    assert {missing["filename"]: missing["reason"] for missing in made["outline"]["missing"]} == {
        document["filename"]: document["error"] for document in documents
    }
    assert len(made["outline"]["modules"]) == 1

    # What was mended is taken up by the next start, which is also what a retry of the dead job comes to.
    shelf.put("empty.txt", b"Not empty any more.")
    empty = next(document["id"] for document in documents if document["filename"] == "empty.txt")
    await connection.execute("select howdah.retry($1)", jobs[str(empty)]["id"])
    await over(connection, course)
    mended = await course_of(connection, course)
    assert mended["generation_progress"]["message"] == "8 of 10 documents are missing"
    assert len(mended["outline"]["modules"]) == 2
    assert await daemon.stop() == 0


async def test_documents_that_are_added_while_a_start_runs_come_into_the_outline_once_each(
    connection: asyncpg.Connection, app_daemon: StartApp, shelf: Shelf
) -> None:
    course = await new_course(connection)
    async with chat_server() as chat:
        chat.until["summary"] = asyncio.Event()
        await app_daemon("courses", app_storage_url=shelf.url, app_chat_url=chat.url)
        documents = [await add_text(connection, shelf, course)]
        await start(connection, course)
        await aeventually(lambda: len(chat.asked) == 1)
        for _ in range(3):
            documents.append(await add_text(connection, shelf, course))
            await start(connection, course)
        await aeventually(lambda: len(chat.asked) == 4)
        assert (await course_of(connection, course))["generation_status"] == "processing"
        chat.until["summary"].set()
        await over(connection, course)
        made = await course_of(connection, course)
        assert len(chat.asked) - chat.outlines_asked == 4
    assert (made["generation_status"], made["generation_progress"]["percentage"]) == ("completed", 100)
    assert len(made["outline"]["modules"]) == 4
    states = await states_of(connection, course)
    assert states == {
        kind: ["completed"] * 4 for kind in ("structure_course", "process_document", "summarize_document")
    }


async def test_a_document_whose_job_ends_without_a_word_is_missing_with_the_engines_reason(
    connection: asyncpg.Connection, app_daemon: StartApp, shelf: Shelf
) -> None:
    course = await new_course(connection)
    await add_text(connection, shelf, course)
    async with website() as site:
        held = asyncio.Event()
        slow = site.put("/slow.md", lambda _request: held.wait())  # type: ignore[arg-type, return-value]
        await add_document(connection, course, "slow.md", "text/markdown", slow)
        await app_daemon("courses", app_storage_url=shelf.url, app_fetch_allow="127.0.0.0/8")
        await start(connection, course)
        await aeventually(lambda: "/slow.md" in site.asked)
        job = await connection.fetchval(
            "select max(id) from howdah.job_status where kind = 'process_document' and subject = $1", f"course:{course}"
        )
        await connection.execute("select howdah.cancel($1, 'ada', 'it takes too long')", job)
        await over(connection, course)
    [_, document] = await documents_of(connection, course)
    assert (document["status"], document["error"]) == ("failed", "it takes too long")
    assert (await course_of(connection, course))["generation_status"] == "incomplete"


async def test_a_course_that_is_deleted_under_its_jobs_leaves_them_cancelled_within_a_second(
    connection: asyncpg.Connection, app_daemon: StartApp, shelf: Shelf, database: Database
) -> None:
    course = await new_course(connection)
    async with website() as site, chat_server() as chat:
        chat.until["summary"] = asyncio.Event()
        slow = site.put("/slow.md", lambda _request: asyncio.Event().wait())  # type: ignore[arg-type, return-value]
        await add_text(connection, shelf, course)
        for _ in range(3):
            await add_document(connection, course, "slow.md", "text/markdown", slow)
        await app_daemon("courses", app_storage_url=shelf.url, app_chat_url=chat.url, app_fetch_allow="127.0.0.0/8")
        await start(connection, course)
        await aeventually(lambda: len(site.asked) == 3 and len(chat.asked) == 1)
        said = await cli("wait", "--subject", f"course:{course}", "--timeout", "0.2", url=database)
        assert said.code == 124
        assert "5 jobs left: 4 running, 1 waiting" in said.err
        await connection.execute("delete from app.courses where id = $1", course)
        deleted = await connection.fetchval("select clock_timestamp()")
        said = await cli("wait", "--subject", f"course:{course}", "--timeout", "60", url=database)
        assert said.code == 0
    jobs = await jobs_of(connection, course)
    ends = {(job["state"], job["cancel_reason"]) for job in jobs if job["kind"] != "process_document"}
    assert ends == {("cancelled", f"course {course} is gone")}
    assert {job["state"] for job in jobs} == {"completed", "cancelled"}
    assert all((job["finished_at"] - deleted).total_seconds() < 1 for job in jobs)
    # And one that comes too late for all of it.
    late = await enqueue(connection, "process_document", {"course_id": str(course), "document_id": str(course)})
    await aeventually(lambda: connection.fetchval("select finished_at from howdah.job_status where id = $1", late))
    told = await connection.fetchrow("select state, cancel_reason from howdah.job_status where id = $1", late)
    assert tuple(told) == ("cancelled", f"course {course} is gone")


@pytest.mark.faults
@pytest.mark.parametrize(
    "killed_at",
    [{"summarize_document"}, pytest.param(set(KINDS), marks=pytest.mark.long)],
    ids=["summary", "every_stage"],
)
@pytest.mark.fault(
    "Process", "killed in the making of a course", "one of everything; each service asked once more at most"
)
async def test_a_worker_that_is_killed_at_any_stage_leaves_one_of_everything(
    killed_at: set[str], connection: asyncpg.Connection, app_daemon: StartApp, shelf: Shelf, figures: Figures
) -> None:
    course = await new_course(connection)
    async with website() as site, chat_server() as chat:
        settings = {
            "app_storage_url": shelf.url,
            "app_chat_url": chat.url,
            "app_fetch_allow": "127.0.0.0/8",
            "howdah_lease_ttl": 1,
        }
        held = asyncio.Event()

        async def page(_request: web.Request) -> web.Response:
            await held.wait()
            return web.Response(body=b"# Elephants\n\n" + STORY[0].encode() * 200)

        await add_document(connection, course, "slow.md", "text/markdown", site.put("/slow.md", page))
        await start(connection, course)
        chat.until = {"summary": asyncio.Event(), "outline": asyncio.Event()}
        started = await asyncio.gather(*(app_daemon("courses", **settings) for _ in range(len(killed_at) + 1)))
        daemons = {daemon.worker: daemon for daemon in started}
        for kind, reached, let_go in (
            ("process_document", lambda: len(site.asked) == 1, held),
            ("summarize_document", lambda: len(chat.asked) == 1, chat.until["summary"]),
            ("structure_course", lambda: chat.outlines_asked == 1, chat.until["outline"]),
        ):
            await aeventually(reached)
            holder = await connection.fetchval("select leased_by from howdah.jobs where kind = $1", kind)
            if kind in killed_at:
                daemons.pop(holder).kill()
            let_go.set()
        await over(connection, course)
        # What was said to the dead was said to nobody: each was asked once more, and no more.
        asked = dict(
            zip(KINDS, (len(site.asked), len(chat.asked) - chat.outlines_asked, chat.outlines_asked), strict=True)
        )
        assert asked == {kind: 1 + (kind in killed_at) for kind in KINDS}
    [document] = await documents_of(connection, course)
    ordinals = await connection.fetch("select ordinal from app.document_chunks order by 1")
    assert [row[0] for row in ordinals] == list(range(1, document["chunks"] + 1))
    assert document["status"] == "completed"
    assert await states_of(connection, course) == {kind: ["completed"] for kind in KINDS}
    assert (await course_of(connection, course))["generation_progress"]["percentage"] == 100
    figures.faults += len(killed_at)
    await count_ends(connection, figures)
