"""The course's scene: documents of five types become Markdown, chunks and summaries, and then, once, an outline."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from demo.chat_server import chat_server
from demo.files import DOCX_TYPE, docx, html, pdf
from demo.scene import Scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from random import Random
    from uuid import UUID

_SUBJECTS = [
    "The elephant",
    "The mahout",
    "A howdah",
    "The load",
    "Every road",
    "The herd",
    "A good rider",
    "The forest",
]
_VERBS = ["carries", "guides", "holds", "waits for", "follows", "knows", "counts", "rests beside"]
_OBJECTS = [
    "the elephant",
    "the load of the day",
    "the other riders",
    "the seat",
    "the river",
    "the way home",
    "the young ones",
]
_WHEN = [
    "in the morning",
    "when the rain comes",
    "without a word",
    "before the others",
    "until the evening",
    "as agreed",
]
_PARAGRAPHS, _SENTENCES = 12, 6


class Course(Scene):
    """One course of five documents, by process_document, summarize_document and structure_course."""

    title = "a course is made of a PDF, a DOCX, a web page, Markdown and plain text"
    _course: UUID
    _files: dict[str, tuple[str, bytes]]

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[dict[str, str]]:
        """Keep the files in a folder, and run a chat endpoint."""
        folder = self.folder / "files"
        folder.mkdir(exist_ok=True)
        self._files = _files(self.random)
        for name, (_, body) in self._files.items():
            (folder / name).write_bytes(body)
        async with chat_server() as chat:
            yield {"APP_STORAGE_URL": folder.as_uri(), "APP_CHAT_URL": chat.url}

    async def play(self) -> None:
        """Upload the documents, and start the course."""
        self._course = await self.pool.fetchval("insert into app.courses (title) values ('Elephants') returning id")
        for name, (content_type, _) in self._files.items():
            await self.pool.execute(
                "insert into app.documents (course_id, filename, content_type, storage_url) values ($1, $2, $3, $4)",
                self._course,
                name,
                content_type,
                f"{(self.folder / 'files').as_uri()}/{name}",
            )
        await self.pool.execute("select app.start_course($1)", self._course)

    async def prove(self) -> list[str]:
        """Look at every document, at the order of the jobs by their times, and at what the course says of itself."""
        [numbers] = await self.pool.fetch(
            """select count(*) as documents,
                 count(*) filter (where d.text is null or d.processed_content is null or d.status <> 'completed'
                   or not exists (select from app.document_chunks c where c.document_id = d.id)) as unfinished,
                 (select count(*) from app.document_chunks) as chunks
               from app.documents d where d.course_id = $1""",
            self._course,
        )
        [jobs] = await self.pool.fetch(
            """select count(*) filter (where h.kind = 'structure_course') as structures,
                 count(*) filter (where h.kind <> 'structure_course') as others,
                 max(h.finished_at) filter (where h.kind <> 'structure_course')
                   <= min(h.claimed_at) filter (where h.kind = 'structure_course') as in_order,
                 extract(epoch from max(h.finished_at) - min(h.created_at)) as seconds
               from howdah.job_history h where h.subject = $1""",
            f"course:{self._course}",
        )
        course = await self.pool.fetchrow(
            """select generation_status as status, generation_progress ->> 'percentage' as percentage,
                 coalesce(jsonb_array_length(outline -> 'modules'), 0) as modules from app.courses where id = $1""",
            self._course,
        )
        self.shown.append(
            ("documents read, cut and summarised", f"{numbers['documents']} into {numbers['chunks']} chunks")
        )
        self.shown.append(("… and then structured, once", f"{course['modules']} modules in {jobs['seconds']:.1f} s"))
        return list(_complaints(numbers, jobs, course, len(self._files)))


def _complaints(numbers: Any, jobs: Any, course: Any, files: int) -> list[str]:
    found = []
    if numbers["documents"] != files or numbers["unfinished"]:
        found.append(
            f"{numbers['unfinished']} of {numbers['documents']} documents have no text, no chunks or no summary"
        )
    if (jobs["structures"], jobs["others"]) != (1, 2 * files):
        found.append(
            f"the course had {jobs['structures']} structures and {jobs['others']} other jobs, not 1 and {2 * files}"
        )
    if not jobs["in_order"]:
        found.append("the course was structured before all of its documents were through")
    if (course["status"], course["percentage"], course["modules"]) != ("completed", "100", files):
        found.append(f"the course is {course['status']} at {course['percentage']} % with {course['modules']} modules")
    return found


def _files(random: Random) -> dict[str, tuple[str, bytes]]:
    def story() -> list[str]:
        return [" ".join(_sentence(random) for _ in range(_SENTENCES)) for _ in range(_PARAGRAPHS)]

    markdown = "\n\n".join(["# Elephants at work", *story()[:6], "## Elephants at rest", *story()[6:]])
    return {
        "history.pdf": ("application/pdf", pdf(story())),
        "riding.docx": (DOCX_TYPE, docx("Riding", story())),
        "feeding.html": ("text/html", html("Feeding", story())),
        "days.md": ("text/markdown", markdown.encode()),
        "notes.txt": ("text/plain", "\n\n".join(story()).encode()),
    }


def _sentence(random: Random) -> str:
    return " ".join(random.choice(words) for words in (_SUBJECTS, _VERBS, _OBJECTS, _WHEN)) + "."
