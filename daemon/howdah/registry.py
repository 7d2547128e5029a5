"""Which handler runs which kind: `@handler` puts it in, the executor looks it up."""

from __future__ import annotations

import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from howdah.backoff import backoff as default_backoff
from howdah.errors import HandlersError, PayloadError, RefusedError, ScheduleError
from howdah.fields import checked_fields
from howdah.job import Job
from howdah.masking import hider
from howdah.modules import import_handlers
from howdah.newjob import payload_json
from howdah.schedules import Schedule

F = TypeVar("F", bound=Callable[..., Any])
RunsIn = Literal["async", "thread", "process"]
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]
ErrorReporter = Callable[[Job[Any], BaseException], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One kind's code, with what was said of it."""

    kind: str
    function: Callable[..., Any]
    runs_in: RunsIn
    transaction: bool
    queue: str | None
    priority: int | None
    timeout: float
    max_attempts: int
    backoff: Callable[[int], float]
    secret: tuple[str, ...]
    retry_for: tuple[type[BaseException], ...]
    discard_for: tuple[type[BaseException], ...]
    payload_type: Any = dict
    schedule: Schedule | None = None
    adapter: TypeAdapter[Any] = field(repr=False)

    def validate(self, payload: bytes) -> Any:
        """Make the payload of its JSON. Raises PayloadError, which names the field but never shows its value."""
        try:
            # The adapter's own method asks for options first, which costs as much as a small payload.
            return self.adapter.validator.validate_json(payload)
        except ValidationError as error:
            problem = self._describe(error, payload)
        # Out here the error of pydantic, which holds the values, is no context of ours.
        raise PayloadError(self.kind, problem)

    def _describe(self, error: ValidationError, payload: bytes) -> str:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        top = str(first["loc"][0]) if first["loc"] else "payload"
        if top in self.secret:
            # Neither a message, which may quote the value, nor a place inside of it.
            return f"{top}: {first['type'].replace('_', ' ')} (the field is secret)"
        hide = hider(self.secret, payload)
        text = f"{'.'.join(map(str, first['loc'])) or top}: {first['msg']}"
        return hide(text) if hide is not None else text

    def registration(self) -> dict[str, Any]:
        """Give what the database keeps of this kind."""
        schema = self.adapter.json_schema()
        for name in self.secret:
            for telling in ("default", "examples", "const", "enum"):
                schema.get("properties", {}).get(name, {}).pop(telling, None)
        return {
            "name": self.kind,
            "fields": checked_fields(schema, self.payload_type),
            "schema": schema,
            "queue": self.queue,
            "priority": self.priority,
            "max_attempts": self.max_attempts,
            "timeout": self.timeout,
            "secret": list(self.secret),
            "schedule": None
            if (schedule := self.schedule) is None
            else {
                "cron": schedule.cron,
                "payload": json.loads(payload_json(schedule.payload)),
                "time_zone": schedule.time_zone,
                "missed": schedule.missed,
                "overlap": schedule.overlap,
                "jitter": schedule.jitter,
            },
        }

    def check_schedule(self) -> None:
        """Raise HandlersError if the declared schedule cannot be followed, or its payload does not fit."""
        if self.schedule is None:
            return
        try:
            self.schedule.check()
            self.validate(payload_json(self.schedule.payload))
        except ScheduleError as error:
            raise HandlersError(f"{self.kind}: schedule: {error}") from None
        except (PayloadError, RefusedError) as error:
            problem = str(error).removeprefix(f"{self.kind}: ")
            raise HandlersError(
                f"{self.kind}: schedule: {problem}; give the field a default, or say Schedule(…, payload=…)"
            ) from None


class Registry:
    """What handlers' modules have declared: handlers by kind, and what is there for all of them."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        #: In order of declaration.
        self.lifespans: dict[str, Lifespan] = {}
        self.error_reporters: list[ErrorReporter] = []

    def add(self, handler: Handler) -> None:
        """Take a handler in. Raises HandlersError when another function has its kind already."""
        held = self._handlers.get(handler.kind)
        if held is not None and home(held.function) != home(handler.function):
            raise HandlersError(
                f"kind {handler.kind!r} has two handlers: {home(held.function)} and {home(handler.function)}"
            )
        self._handlers[handler.kind] = handler

    def get(self, kind: str) -> Handler | None:
        """Look a kind up."""
        return self._handlers.get(kind)

    def take(self, kind: str) -> Handler | None:
        """Take a kind out."""
        return self._handlers.pop(kind, None)

    def add_lifespan(self, name: str, lifespan: Lifespan) -> None:
        """Take a lifespan in. Raises HandlersError when another function has its name already."""
        held = self.lifespans.get(name)
        if held is not None and home(held) != home(lifespan):
            raise HandlersError(f"two lifespans are called {name}: {home(held)} and {home(lifespan)}")
        self.lifespans[name] = lifespan

    def add_error_reporter(self, reporter: ErrorReporter) -> None:
        """Take an error reporter in."""
        self.error_reporters.append(reporter)

    @property
    def kinds(self) -> list[str]:
        """The kinds, in order."""
        return sorted(self._handlers)

    def registrations(self) -> Iterable[dict[str, Any]]:
        """Give what the database keeps of each kind."""
        return [self._handlers[kind].registration() for kind in self.kinds]

    def revision(self) -> int:
        """Give the age of the code, as nanoseconds since 1970: of its youngest file. Newer code wins when kinds are registered."""
        files = {inspect.getsourcefile(handler.function) for handler in self._handlers.values()}
        return max((Path(file).stat().st_mtime_ns for file in files if file and Path(file).exists()), default=0)


#: Where `@handler` puts things; a process has one set of handlers.
registry = Registry()


def handler(
    kind: str,
    *,
    queue: str | None = None,
    priority: int | None = None,
    timeout: float = 300,
    max_attempts: int = 3,
    backoff: Callable[[int], float] = default_backoff,
    transaction: bool = False,
    runs_in: RunsIn | None = None,
    secret: Sequence[str] = (),
    retry_for: Sequence[type[BaseException]] = (),
    discard_for: Sequence[type[BaseException]] = (),
    schedule: Schedule | str | None = None,
) -> Callable[[F], F]:
    """Make a function the handler of a kind.

    Args:
        kind: what the jobs are called.
        queue: where jobs of this kind go unless enqueue says otherwise.
        priority: 0 to 10, 10 most urgent, unless enqueue says otherwise.
        timeout: the seconds that an attempt may take; then it is cancelled (in a process: killed) and counts as failed.
        max_attempts: how often it may be tried; 1 means at most once, even when the worker dies.
        backoff: the seconds to wait after failed attempt n (from 1).
        transaction: the function gets a connection as second argument; what it writes there commits together with the
            job's completion, or not at all.
        runs_in: async for coroutine functions; thread (the default for others), or process for work that keeps a CPU busy
            or must be killed for real at its timeout.
        secret: payload fields that are masked wherever they could be read.
        retry_for: exceptions that are worth another attempt although they look hopeless.
        discard_for: exceptions that no further attempt will mend: the job is dead at once.
        schedule: a cron expression, in UTC, or a Schedule, by which jobs of this kind are made.

    """

    def declare(function: F) -> F:
        is_async = inspect.iscoroutinefunction(function)
        where: RunsIn = runs_in or ("async" if is_async else "thread")
        if (where == "async") != is_async:
            raise HandlersError(
                f"{kind}: runs_in={where!r} does not fit {home(function)}, {'an async' if is_async else 'a plain'} function"
            )
        if transaction and not is_async:
            raise HandlersError(f"{kind}: transaction=True needs an async function")
        if max_attempts < 1 or timeout <= 0 or (priority is not None and not 0 <= priority <= 10):
            raise HandlersError(f"{kind}: max_attempts and timeout must be positive, and priority between 0 and 10")
        payload_type = _payload_type(kind, function)
        declared = Handler(
            kind=kind,
            function=function,
            runs_in=where,
            transaction=transaction,
            queue=queue,
            priority=priority,
            timeout=timeout,
            max_attempts=max_attempts,
            backoff=backoff,
            secret=tuple(secret),
            retry_for=tuple(retry_for),
            discard_for=tuple(discard_for),
            payload_type=payload_type,
            schedule=Schedule(schedule) if isinstance(schedule, str) else schedule,
            adapter=TypeAdapter(payload_type),
        )
        declared.check_schedule()
        registry.add(declared)
        return function

    return declare


def load(modules: Sequence[str]) -> Registry:
    """Import the handlers' modules, by name (from the working directory, too) or by file, and give the registry that they filled.

    Raises HandlersError when a module is missing or fails, or when none of them declares a handler.
    """
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    for module in modules:
        import_handlers(module)
    if not registry.kinds:
        raise HandlersError(f"no handler is declared in {', '.join(modules)}; decorate a function with @handler")
    return registry


def _payload_type(kind: str, function: Callable[..., Any]) -> Any:
    """Read `Job[Model]` off the first argument; a bare Job, or no annotation, means a dict."""
    parameters = list(inspect.signature(function).parameters)
    if not parameters:
        raise HandlersError(f"{kind}: {home(function)} must take the job as its first argument")
    try:
        hints: Mapping[str, Any] = typing.get_type_hints(function)
    except NameError as error:
        # A type that is imported for the checker only: the payload's must be there at run time, the others need not.
        hints = _tolerant_hints(function, parameters[0], kind, error)
    annotation = hints.get(parameters[0], Job)
    arguments = typing.get_args(annotation)
    return arguments[0] if typing.get_origin(annotation) is Job and arguments else dict[str, Any]


def _tolerant_hints(function: Callable[..., Any], parameter: str, kind: str, error: NameError) -> Mapping[str, Any]:
    text = function.__annotations__.get(parameter)
    if not isinstance(text, str):
        return {parameter: text} if text is not None else {}
    try:
        return {parameter: eval(text, {"Job": Job, **inspect.unwrap(function).__globals__})}  # noqa: S307  # the author's own annotation
    except NameError:
        raise HandlersError(
            f"{kind}: {error}; the payload's type must be imported at run time, not under TYPE_CHECKING"
        ) from error


def home(function: Callable[..., Any]) -> str:
    """Say where a function is at home: module and name."""
    return f"{function.__module__}.{function.__qualname__}"
