"""Courses from documents: each is read and summarised, and when all are through, the course gets its outline.

`app.start_course` begins it. What these jobs write, they write by functions of sql/app/0004_courses.sql, each of which is one
statement: it holds the course while it looks and writes, so a deletion comes before all of it or after all of it.
"""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import BaseModel

from handlers.documents import Reading, read_document
from handlers.fetching import TryLaterError
from handlers.filetypes import UnreadableError
from handlers.outlines import make_outline
from handlers.outside import BusyError
from handlers.sources import read_source
from handlers.subprocesses import NoSeatError, Subprocesses, TooLargeError, TooLongError
from handlers.summaries import summarise
from howdah import Cancel, Discard, Job, Snooze, handler


class OfDocument(BaseModel):
    """Which document of which course."""

    course_id: UUID
    document_id: UUID


class OfCourse(BaseModel):
    """Which course."""

    course_id: UUID


@handler("process_document", timeout=300)
async def process_document(job: Job[OfDocument]) -> object:
    """Make Markdown and chunks of a document's file; the job of its summary is enqueued with them."""
    begun = await _call(job, "begin_step", job.kind, *_document(job))
    if (told := _ended(begun)) is not None:
        return told
    try:
        reading = await _read(job, begun["document"])
    except (UnreadableError, TooLongError, TooLargeError) as error:
        return await _give_up(job, str(error))
    except NoSeatError as error:
        return Snooze(error.delay)
    except TryLaterError as error:
        delay = error.snooze_for(job.created_at, datetime.now(UTC))
        if delay is None:
            raise
        return Snooze(delay)
    chunks, tokens = reading.chunks, reading.tokens
    gone = await _call(job, "store_document", *_document(job), reading.text, reading.headings, chunks, tokens)
    return {"characters": len(reading.text), "chunks": len(chunks)} if gone is None else Cancel(gone)


@handler("summarize_document", timeout=1800)
async def summarize_document(job: Job[OfDocument]) -> object:
    """Write a document's summary."""
    begun = await _call(job, "begin_step", job.kind, *_document(job))
    if (told := _ended(begun)) is not None:
        return told
    try:
        # A step: the model is paid by the call, and what it said is not asked for again by a later attempt.
        summary = await job.step("summary", summarise, job.resources, begun["document"]["text"])
    except BusyError as error:
        return Snooze(error.delay)
    gone = await _call(job, "store_summary", *_document(job), summary)
    return {"characters": len(summary)} if gone is None else Cancel(gone)


@handler("structure_course", timeout=900)
async def structure_course(job: Job[OfCourse]) -> object:
    """Make the outline of a course whose documents are through, whatever became of them, and say what is missing."""
    course = job.payload.course_id
    while True:
        begun = await _call(job, "begin_structure", course, job.id)
        if (told := _ended(begun)) is not None:
            return told
        try:
            last = job.attempt >= job.max_attempts
            outline = await make_outline(job.resources, begun["title"], begun["documents"], settle=last)
        except BusyError as error:
            return Snooze(error.delay)
        jobs = job.headers.get("batch", {})
        stored = await _call(job, "store_outline", course, job.id, begun["version"], outline, jobs)
        if stored["gone"] is not None:
            return Cancel(stored["gone"])
        if stored["status"] is not None:
            return {"status": stored["status"], "modules": len(outline["modules"]), "missing": outline["missing"]}
        # The documents have changed meanwhile, by a later start or by somebody's hand: look again.


async def _read(job: Job[OfDocument], document: asyncpg.Record) -> Reading:
    processes: Subprocesses = job.resources["subprocesses"]
    async with processes.seat():
        source = await read_source(job.resources, document["storage_url"])
        said = document["content_type"]
        if said == "application/octet-stream":
            said = source.content_type
        reading: Reading = await processes.call(read_document, source.body, document["filename"], said)
    return reading


async def _give_up(job: Job[OfDocument], reason: str) -> Cancel | Discard:
    """Say on the document, the course and the job why nothing will come of this one."""
    gone = await _call(job, "fail_document", job.kind, *_document(job), reason)
    return Discard(reason) if gone is None else Cancel(gone)


def _document(job: Job[OfDocument]) -> tuple[UUID, UUID, int | None]:
    return job.payload.course_id, job.payload.document_id, job.batch


def _ended(begun: asyncpg.Record) -> object:
    """Give what the job ends with before it has begun, if it does."""
    if begun["gone"] is not None:
        return Cancel(begun["gone"])
    if begun.get("started") is not None:
        return {"started": begun["started"]}
    return {"done": "before"} if begun["done"] else None


async def _call(job: Job[Any], function: str, *arguments: object) -> Any:
    """Call a function of schema app. One that gives several things gives them by name."""
    places = ", ".join(f"${place}" for place in range(1, len(arguments) + 1))
    async with job.connection() as connection:
        row = await connection.fetchrow(f"select * from app.{function}({places})", *arguments)
    assert row is not None  # noqa: S101 - a function always gives a row
    return row if len(row) > 1 else row[0]
