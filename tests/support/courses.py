"""Courses for tests: their files in a storage folder, their rows, and what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from support.eventually import aeventually

from demo.files import DOCX_TYPE, docx, html, pdf

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg

STORY = [
    "The elephant carries the load through the forest. The mahout sits on the elephant and guides it with words.",
    "A howdah is the seat that lets an elephant carry a load. Without a howdah the load of the elephant falls.",
    "The weather was fine that morning. Every load that the elephant carries is counted when it arrives.",
]


class Shelf:
    """A folder that the application takes for its storage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.url = folder.as_uri()

    def put(self, name: str, body: bytes) -> str:
        """Store a file and give its address."""
        (self._folder / name).write_bytes(body)
        return f"{self.url}/{name}"


async def new_course(connection: asyncpg.Connection, title: str = "Elephants") -> UUID:
    course: UUID = await connection.fetchval("insert into app.courses (title) values ($1) returning id", title)
    return course


async def add_document(connection: asyncpg.Connection, course: UUID, name: str, content_type: str, url: str) -> UUID:
    document: UUID = await connection.fetchval(
        """insert into app.documents (course_id, filename, content_type, storage_url, created_at)
           values ($1, $2, $3, $4, clock_timestamp()) returning id""",
        course,
        name,
        content_type,
        url,
    )
    return document


async def add_text(connection: asyncpg.Connection, shelf: Shelf, course: UUID, text: str | None = None) -> UUID:
    """Add a Markdown document."""
    name = f"{uuid4().hex[:8]}.md"
    body = text if text is not None else f"# Notes {name}\n\n" + "\n\n".join(STORY)
    return await add_document(connection, course, name, "text/markdown", shelf.put(name, body.encode()))


async def add_one_of_each(connection: asyncpg.Connection, shelf: Shelf, course: UUID) -> dict[str, UUID]:
    """Add a document of each type that is read."""
    files = {
        "a.pdf": ("application/pdf", pdf(["Elephants in print", *STORY])),
        "b.docx": (DOCX_TYPE, docx("Elephants in Word", STORY)),
        "c.html": ("text/html", html("Elephants on the web", STORY)),
        "d.md": ("text/markdown", ("# Elephants in Markdown\n\n## Loads\n\n" + "\n\n".join(STORY)).encode()),
        "e.txt": ("text/plain", "\n\n".join(STORY).encode()),
    }
    return {
        name: await add_document(connection, course, name, content_type, shelf.put(name, body))
        for name, (content_type, body) in files.items()
    }


async def start(connection: asyncpg.Connection, course: UUID, *, again: bool = False) -> int:
    batch: int = await connection.fetchval("select app.start_course($1, $2)", course, again)
    return batch


async def over(connection: asyncpg.Connection, course: UUID, timeout: float = 20) -> None:  # noqa: ASYNC109
    """Wait until no job of a course is left."""
    await aeventually(
        lambda: connection.fetchval(
            "select not exists (select from howdah.jobs where subject = $1)", f"course:{course}"
        ),
        timeout=timeout,
    )


async def course_of(connection: asyncpg.Connection, course: UUID) -> asyncpg.Record:
    return await connection.fetchrow("select * from app.courses where id = $1", course)


async def documents_of(connection: asyncpg.Connection, course: UUID) -> list[asyncpg.Record]:
    return await connection.fetch(
        """select d.*, (select count(*) from app.document_chunks c where c.document_id = d.id) as chunks
           from app.documents d where d.course_id = $1 order by d.created_at""",
        course,
    )


async def jobs_of(connection: asyncpg.Connection, course: UUID) -> list[asyncpg.Record]:
    return await connection.fetch("select * from howdah.job_status where subject = $1 order by id", f"course:{course}")


async def states_of(connection: asyncpg.Connection, course: UUID) -> dict[str, list[str]]:
    """Give the states of a course's jobs by their kinds."""
    states: dict[str, list[str]] = {}
    for job in await jobs_of(connection, course):
        states.setdefault(job["kind"], []).append(job["state"])
    return states


def steps_of(course: asyncpg.Record) -> dict[str, Any]:
    steps: dict[str, Any] = course["generation_progress"]["steps"]
    return steps
