"""What `howdah dev` draws fits the terminal, what it tells to type works, and its file is believed only while it lives."""

from __future__ import annotations

import json
import os
import shlex
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID  # noqa: TC003  # pydantic reads it at run time

import pytest
from pydantic import BaseModel
from rich.console import Console

from howdah.devmode.facts import Facts, example
from howdah.devmode.record import Record, find_session
from howdah.devmode.sources import watched
from howdah.devmode.view import Session, enqueue_lines, render
from howdah.errors import HowdahError

if TYPE_CHECKING:
    from pathlib import Path


class Color(Enum):
    RED = "red"


class Inner(BaseModel):
    number: int


class Payload(BaseModel):
    name: str
    post_id: UUID
    count: int | None
    color: Color
    inner: Inner
    tags: list[str]
    note: str = "optional"


def test_the_example_of_a_payload_is_one_that_the_handler_takes() -> None:
    payload = json.loads(example(Payload.model_json_schema()))
    assert Payload.model_validate(payload).name == "you"
    assert "note" not in payload
    assert example(None) == "{}"
    assert example({"type": "object", "additionalProperties": True}) == "{}"


def test_the_line_to_copy_survives_the_shell_and_avoids_another_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOWDAH_DATABASE_URL", "DATABASE_URL", "HOWDAH_DATABASE_URL_FILE"):
        monkeypatch.delenv(name, raising=False)
    schema = {"required": ["text"], "properties": {"text": {"type": "string", "default": "it's"}}}
    [line] = enqueue_lines(Facts(kinds=[("hello", schema)]))
    assert shlex.split(line) == ["howdah", "enqueue", "hello", '{"text": "it\'s"}']
    monkeypatch.setenv("DATABASE_URL", "postgresql://production/jobs")
    [line] = enqueue_lines(Facts(kinds=[("hello", schema)]))
    assert '--database-url "$(howdah dev --url)"' in line


def crowded() -> Session:
    def row(number: int, state: str, **more: Any) -> dict[str, Any]:
        fields = {"queue": "default", "kind": f"kind_{number % 7}", "attempt": 2, "max_attempts": 3, "progress": None}
        none = {"result": None, "error": None, "cancel_reason": None, "took": 1.5, "running": 5.0, "due": 2.0}
        return {"id": number, "state": state, **fields, **none, **more}

    facts = Facts(
        queues=[
            {
                "queue": f"queue_{n}",
                "ready": n,
                "running": 1,
                "retrying": 0,
                "later": 2,
                "unserved": ["nobody"] if n == 0 else None,
            }
            for n in range(12)
        ],
        live=[row(n, "running", progress='{"percent": 3}') for n in range(30)],
        ended=deque(
            row(n, "dead", error="first\nValueError: [red]the last line[/red] " + "x" * 200) for n in range(100)
        ),
        counts={"completed": 12, "dead": 3},
        kinds=[(f"kind_{n}", Payload.model_json_schema()) for n in range(9)],
    )
    log = deque(f"12:00:{n:02d} info    a line [bold]with brackets[/bold] " + "y" * 150 for n in range(60))
    return Session(file="jobs.py", log=log, facts=facts, phase="ready since 12:00:00", ready=True)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (72, 50)])
@pytest.mark.parametrize("problem", [None, "jobs.py, line 3: expected ':'"])
def test_the_picture_fits_the_terminal_and_shows_every_part(width: int, height: int, problem: str | None) -> None:
    session = crowded()
    session.problem = problem
    console = Console(width=width, height=height, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(render(session, width, height))
    console.file.close()
    lines = console.export_text().rstrip("\n").splitlines()
    assert len(lines) <= height, "\n".join(lines)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in ("jobs.py", "12 completed, 3 dead", "queue_0", "no worker runs nobody", "running", "ValueError: [red]the", "[bold]",
                  "howdah enqueue kind_0", 'psql "$(howdah dev --url)"', "Ctrl-C", problem or ""):  # fmt: skip
        assert words in text, text


def test_an_empty_session_says_what_to_do() -> None:
    console = Console(width=80, height=24, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(render(Session(file="jobs.py", log=deque()), 80, 24))
    console.file.close()
    text = console.export_text()
    assert "no job has run yet" in text
    assert 'psql "$(howdah dev --url)"' in text


def test_a_session_is_found_only_while_it_lives(tmp_path: Path) -> None:
    data_dir = tmp_path / ".howdah"
    assert find_session(data_dir) is None
    with Record(data_dir) as record:
        assert find_session(data_dir) is None
        record.write("postgresql://here")
        assert find_session(data_dir) == "postgresql://here"
        with pytest.raises(HowdahError, match=f"as process {os.getpid()}"), Record(data_dir):
            pass
        assert find_session(data_dir) == "postgresql://here"
        assert (data_dir / "dev.json").stat().st_mode & 0o077 == 0
        assert (data_dir / ".gitignore").read_text() == "*\n"
    (data_dir / "dev.json").write_text('{"database_url": "postgresql://dead"}')
    assert find_session(data_dir) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_file_of_somebody_else_is_not_believed(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.write("postgresql://theirs")
        os.chown(tmp_path / "dev.json", 65534, 65534)
        assert find_session(tmp_path) is None


def test_only_folders_with_modules_are_watched(tmp_path: Path) -> None:
    for name in ("package/inner", "data", ".venv/lib", "name-space"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("package/__init__.py", "package/inner/a.py", ".venv/lib/b.py", ".venv/c.py", "name-space/d.py"):
        (tmp_path / name).touch()
    assert watched(tmp_path / "jobs.py") == [tmp_path, tmp_path / "package", tmp_path / "package/inner"]
