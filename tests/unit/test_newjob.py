"""What becomes of arguments on their way to the database, before it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from howdah.errors import RefusedError
from howdah.newjob import JobOptions, NewJob, arguments_json, payload_json

POST = UUID("7e6c0c0e-0000-4000-8000-000000000001")


class Model(BaseModel):
    post: UUID
    at: datetime


@dataclass
class Plain:
    post: UUID
    price: Decimal


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        (None, {}),
        ({"post": POST, "n": 1}, {"post": str(POST), "n": 1}),
        (Model(post=POST, at=datetime(2026, 1, 2, tzinfo=UTC)), {"post": str(POST), "at": "2026-01-02T00:00:00Z"}),
        (Plain(POST, Decimal("1.50")), {"post": str(POST), "price": "1.50"}),
        ({"inner": Plain(POST, Decimal(1))}, {"inner": {"post": str(POST), "price": "1"}}),
        ({1: "one"}, {"1": "one"}),
    ],
)
def test_mappings_models_and_dataclasses_become_json(payload: Any, stored: Any) -> None:
    assert json.loads(payload_json(payload)) == stored


@pytest.mark.parametrize("payload", [{"a": object()}, {"a": "\ud800"}, {"a": 1 << 70}, {"a": b"bytes"}])
def test_a_payload_that_is_not_json_is_refused_and_not_mended(payload: Any) -> None:
    with pytest.raises(RefusedError, match="payload is not JSON") as caught:
        payload_json(payload)
    assert caught.value.sqlstate == "JB001"


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (5, "5.000000 seconds"),
        (0.25, "0.250000 seconds"),
        (timedelta(days=1), "24 hours 0.000000 seconds"),
        (timedelta(microseconds=1), "0 hours 0.000001 seconds"),
        (timedelta(seconds=-1), "-0 hours -1.000000 seconds"),
    ],
)
def test_a_delay_is_seconds_and_a_day_has_24_hours(span: Any, text: str) -> None:
    assert json.loads(arguments_json({"delay": span})) == {"delay": text}


@pytest.mark.parametrize(
    ("name", "value", "naming"),
    [
        ("run_at", datetime(2026, 1, 2), "time zone"),  # noqa: DTZ001 - it is what is refused
        ("run_at", "tomorrow", "datetime"),
        ("delay", float("nan"), "seconds or a timedelta"),
        ("timeout", "5s", "seconds or a timedelta"),
        ("priority", "high", "whole number"),
        ("queue", 5, "text"),
        ("depends_on", 5, "list"),
        ("limits", "smtp", "list"),
        ("headers", {"a": object()}, "headers is not JSON"),
        ("prioritiy", 5, "no argument prioritiy"),
    ],
)
def test_an_argument_of_the_wrong_sort_is_named(name: str, value: Any, naming: str) -> None:
    with pytest.raises(RefusedError, match=naming) as caught:
        arguments_json({name: value})
    assert name in str(caught.value)
    assert caught.value.sqlstate == "JB002"
    assert caught.value.hint


def test_what_is_none_is_left_to_the_database() -> None:
    assert arguments_json({"kind": "work", "priority": None}) == '{"kind":"work"}'
    assert NewJob("work", priority=0).arguments() == {"kind": "work", "priority": 0}


def test_a_new_job_takes_what_enqueue_takes() -> None:
    assert set(NewJob.__slots__) == {"kind", "payload", *JobOptions.__annotations__}


def test_importing_howdah_does_not_import_the_driver() -> None:
    """A process handler's child imports howdah, and must not pay for a driver that it never uses."""
    code = "import howdah, sys; sys.exit('asyncpg' in sys.modules or not howdah.Client)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import howdah  # noqa: PLC0415

    with pytest.raises(AttributeError, match="Clinet"):
        _ = howdah.Clinet
