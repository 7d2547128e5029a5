"""Log lines: one event one line, whatever is in it, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howdah import logs
from howdah.job import Job, current_job
from howdah.logs import ConsoleFormatter, JSONFormatter

texts = st.text(st.characters(codec=None))


class Silent:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def record(message: str, *arguments: Any, **fields: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "test", "levelname": "WARNING", "msg": message, "args": arguments})
    vars(made).update(fields)
    return made


@given(texts, texts)
def test_a_json_line_is_one_line_of_json_whatever_it_says(message: str, value: str) -> None:
    text = JSONFormatter().format(record(message.replace("%", ""), field=value))
    assert "\n" not in text
    text.encode("utf-8", "strict")
    assert set(json.loads(text)) == {"time", "level", "event", "logger", "field"}


@pytest.mark.parametrize("value", [10**40, object(), {1: {2}}, {"a": "\ud800"}, float("nan"), Silent(), b"\xff", None])
def test_a_json_line_takes_any_field(value: Any) -> None:
    line = json.loads(JSONFormatter().format(record("event", field=value)))
    assert line["event"] == "event"
    assert "field" in line


@given(texts, texts)
def test_a_console_line_holds_no_control_character(message: str, value: str) -> None:
    text = ConsoleFormatter().format(record(message.replace("%", ""), field=value))
    assert text.isprintable()


def test_a_console_line_shows_what_it_escapes() -> None:
    text = ConsoleFormatter().format(record("red \x1b[31m", field="two\nlines"))
    assert text.endswith(r"warning red \x1b[31m field=two\nlines")


def test_a_line_of_a_job_carries_its_fields_and_its_own_come_first() -> None:
    job: Job[Any] = Job()
    job.id, job.kind, job.queue, job.attempt, job.subject = 7, "mail", "post", 2, None
    token = current_job.set(job)
    try:
        line = json.loads(JSONFormatter().format(record("event", attempt=3)))
    finally:
        current_job.reset(token)
    assert (line["job"], line["kind"], line["queue"], line["attempt"]) == (7, "mail", "post", 3)
    assert "subject" not in line


def test_a_stack_is_part_of_the_line() -> None:
    made = record("event")
    made.exc_info = (ValueError, ValueError("broken"), None)
    assert "ValueError: broken" in json.loads(JSONFormatter().format(made))["stack"]


def test_a_console_stack_holds_no_control_character_but_its_line_ends() -> None:
    made = record("event")
    made.exc_info = (ValueError, ValueError("red \x1b[31m\r"), None)
    text = ConsoleFormatter().format(made)
    assert text.split("\n")[-1] == r"ValueError: red \x1b[31m\r"


def test_every_line_says_which_worker_wrote_it_once_it_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "worker" not in json.loads(JSONFormatter().format(record("event")))
    monkeypatch.setattr(logs, "_worker", None)
    logs.set_worker(7)
    assert json.loads(JSONFormatter().format(record("event")))["worker"] == 7
    assert json.loads(JSONFormatter().format(record("rescued", worker=5)))["worker"] == 5
