"""The courses part, by real daemons: from files to an outline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.courses import Shelf, add_one_of_each, course_of, documents_of, jobs_of, new_course, over, start, steps_of

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg
    from conftest import StartApp


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "files")


async def test_a_course_of_every_type_of_document_is_read_summarised_and_then_structured_once(
    connection: asyncpg.Connection, app_daemon: StartApp, shelf: Shelf
) -> None:
    course = await new_course(connection)
    await add_one_of_each(connection, shelf, course)
    await app_daemon("courses", app_storage_url=shelf.url)
    batch = await start(connection, course)
    await over(connection, course)
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
