"""Handlers: what @handler takes and refuses, what it tells the database, and which payload a handler gets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

import howdah.registry
from howdah import Job, Schedule, handler
from howdah.errors import HandlersError, PayloadError
from howdah.registry import Registry

if TYPE_CHECKING:
    from decimal import Decimal


class Days(BaseModel):
    days: int = 30


class Order(BaseModel):
    number: int
    price: float
    name: str
    tags: list[str] = []
    note: str | None = None
    anything: Any = None
    size: Literal["s", "m"] = "s"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    fresh = Registry()
    monkeypatch.setattr(howdah.registry, "registry", fresh)
    return fresh


def payload_of(registry: Registry, kind: str, payload: Any) -> Any:
    found = registry.get(kind)
    assert found is not None
    return found.validate(json.dumps(payload).encode())


def test_a_handler_gets_the_model_that_its_annotation_names(registry: Registry) -> None:
    @handler("order")
    async def order(job: Job[Order]) -> None: ...

    found = payload_of(registry, "order", {"number": 1, "price": 2, "name": "x"})
    assert found == Order(number=1, price=2.0, name="x")


def test_a_bare_job_or_none_at_all_gets_a_dict(registry: Registry) -> None:
    @handler("bare")
    async def bare(job: Job) -> None: ...  # type: ignore[type-arg]

    @handler("silent")
    async def silent(job): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202

    for kind in ("bare", "silent"):
        assert payload_of(registry, kind, {"a": [1]}) == {"a": [1]}


def test_a_type_that_only_the_checker_imports_is_no_hindrance_elsewhere_but_named_for_the_payload(
    registry: Registry,
) -> None:
    @handler("fine")
    async def fine(job: Job[Order], connection: Decimal) -> Decimal: ...

    assert isinstance(payload_of(registry, "fine", {"number": 1, "price": 2, "name": "x"}), Order)
    with pytest.raises(HandlersError, match=r"Decimal.*TYPE_CHECKING"):

        @handler("wrong")
        async def wrong(job: Job[Decimal]) -> None: ...


def test_a_payload_that_does_not_fit_names_kind_and_field_and_never_the_value(registry: Registry) -> None:
    @handler("order")
    async def order(job: Job[Order]) -> None: ...

    with pytest.raises(PayloadError) as caught:
        payload_of(registry, "order", {"number": "hunter2", "price": 2, "name": "x"})
    assert str(caught.value).startswith("order: number: ")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(PayloadError, match="order: name: "):
        payload_of(registry, "order", {"number": 1, "price": 2})


def test_the_database_learns_the_fields_their_types_and_which_are_required(registry: Registry) -> None:
    @handler("order", queue="shop", priority=3, timeout=7, max_attempts=2, secret=["name"])
    async def order(job: Job[Order]) -> None: ...

    [told] = registry.registrations()
    assert told["fields"] == {
        "number": {"types": ["number"], "required": True},
        "price": {"types": ["number"], "required": True},
        "name": {"types": ["string"], "required": True},
        "tags": {"types": ["array"], "required": False},
        "note": {"types": ["null", "string"], "required": False},
        "anything": {"required": False},
        "size": {"types": ["string"], "required": False},
    }
    assert (told["queue"], told["priority"], told["timeout"], told["max_attempts"]) == ("shop", 3, 7, 2)
    assert told["secret"] == ["name"]
    json.dumps(told)


def test_a_field_that_may_come_under_two_names_is_not_required_under_either(registry: Registry) -> None:
    class Aliased(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        number: int = Field(alias="no")

    globals()["Aliased"] = Aliased

    @handler("aliased")
    async def aliased(job: Job[Aliased]) -> None: ...

    [told] = registry.registrations()
    assert not any(field["required"] for field in told["fields"].values())


def test_two_handlers_of_one_kind_are_refused_and_the_same_one_again_is_not(registry: Registry) -> None:
    async def one(job: Job[Order]) -> None: ...

    async def two(job: Job[Order]) -> None: ...

    handler("mail")(one)
    handler("mail")(one)
    assert registry.kinds == ["mail"]
    with pytest.raises(HandlersError, match=r"'mail' has two handlers: .*one and .*two"):
        handler("mail")(two)


def test_where_a_handler_runs_follows_from_what_it_is(registry: Registry) -> None:
    @handler("async")
    async def in_loop(job: Job[Order]) -> None: ...

    @handler("thread")
    def in_thread(job: Job[Order]) -> None: ...

    assert [registry.get(kind).runs_in for kind in ("async", "thread")] == ["async", "thread"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "options",
    [
        {"runs_in": "thread"},
        {"runs_in": "process"},
        {"max_attempts": 0},
        {"timeout": 0},
        {"priority": 11},
        {"priority": -1},
    ],
)
def test_what_cannot_work_is_refused_when_the_module_is_loaded(options: dict[str, Any]) -> None:
    async def function(job: Job[Order]) -> None: ...

    with pytest.raises(HandlersError, match="odd"):
        handler("odd", **options)(function)


def test_a_plain_function_has_no_transaction_and_must_take_its_job() -> None:
    with pytest.raises(HandlersError, match="async"):
        handler("odd", transaction=True)(lambda job: None)  # noqa: ARG005
    with pytest.raises(HandlersError, match="first argument"):
        handler("odd")(lambda: None)


def test_a_schedule_is_told_to_the_database_as_it_was_declared(registry: Registry) -> None:
    @handler("plain", schedule="0 3 * * *")
    async def plain(job: Job[Days]) -> None: ...

    @handler("whole", schedule=Schedule("0 3 * * 1", Days(days=7), "Europe/Berlin", "all", "skip", 60))
    async def whole(job: Job[Days]) -> None: ...

    @handler("none")
    async def none(job: Job[Days]) -> None: ...

    told = {kind["name"]: kind["schedule"] for kind in registry.registrations()}
    common = {"time_zone": "UTC", "missed": "one", "overlap": "allow", "jitter": 0.0}
    assert told["plain"] == {"cron": "0 3 * * *", "payload": {}, **common}
    berlin = {"time_zone": "Europe/Berlin", "missed": "all", "overlap": "skip", "jitter": 60}
    assert told["whole"] == {"cron": "0 3 * * 1", "payload": {"days": 7}, **berlin}
    assert told["none"] is None


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("0 3 * *", r"order: schedule: '0 3 \* \*' is no cron expression: wrong number of fields; say minute"),
        (Schedule("0 3 * * *", time_zone="Berlin"), "order: schedule: 'Berlin' is no time zone"),
        (Schedule("0 3 * * *", missed="some"), "order: schedule: missed is 'some': say skip, one or all"),  # type: ignore[arg-type]
        ("0 3 * * *", "order: schedule: number: Field required; give the field a default"),
        (Schedule("0 3 * * *", {"number": 1, "price": "x", "name": ""}), "order: schedule: price: "),
        (Schedule("0 3 * * *", {"number": object()}), "order: schedule: payload is not JSON"),
    ],
)
def test_a_schedule_that_could_not_fire_is_refused_where_it_is_declared(
    registry: Registry, schedule: str | Schedule, words: str
) -> None:
    with pytest.raises(HandlersError, match=words):

        @handler("order", schedule=schedule)
        async def order(job: Job[Order]) -> None: ...

    assert registry.kinds == []
