"""Every error that Howdah raises, as one tree.

An error carries its facts as attributes, and its message says what was found and what was expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class HowdahError(Exception):
    """Any failure that Howdah itself reports; catch this to catch them all."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a process hand one over whole: the constructors take facts, and would not take the message."""
        return _revive, (type(self), self.args, vars(self))


def _revive(kind: type[HowdahError], args: tuple[Any, ...], facts: dict[str, Any]) -> HowdahError:
    error = kind.__new__(kind, *args)
    vars(error).update(facts)
    return error


class ConfigError(HowdahError):
    """A setting is missing or wrong. `variable` names it; the process exits 78."""

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(f"{variable}: {problem}")
        self.variable = variable
        self.problem = problem


class HandlersError(HowdahError):
    """The handlers module cannot be loaded, or two handlers claim one kind; the process exits 78."""


class ScheduleError(HowdahError):
    """A cron expression, a time zone or a policy that nobody can follow."""


class LifespanError(HowdahError):
    """A lifespan of the handlers' module failed. `lifespan` names it; the worker does not start, or stops."""

    def __init__(self, lifespan: str, problem: str) -> None:
        super().__init__(f"lifespan {lifespan} {problem}")
        self.lifespan = lifespan
        self.problem = problem


class SchemaError(HowdahError):
    """The database's schema and this release do not fit; the message says what to run. The process exits 78."""


class MigrationError(HowdahError):
    """A migration failed, or one that was applied has changed since. `version` is its number."""

    def __init__(self, version: int, problem: str) -> None:
        super().__init__(f"migration {version:04d}: {problem}")
        self.version = version


class RightsError(HowdahError):
    """Whoever migrates may not set up the roles, or act as the schema's owner; the message says what to grant."""


class QueryFileError(HowdahError):
    """A file under `sql/` is missing from the installation. `path` is where it was looked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is missing: this installation of howdah is incomplete")
        self.path = path


class DatabaseUnavailableError(HowdahError):
    """The database did not answer; the same call may succeed later."""


class LeaseLostError(HowdahError):
    """A write was refused because the job no longer belongs to the lease it was made with.

    Whoever holds this must stop working on the job: somebody else has it, or it has ended.
    """

    def __init__(self, job_id: int, lease: int) -> None:
        super().__init__(f"job {job_id} is not held under lease {lease} any more")
        self.job_id = job_id
        self.lease = lease


class StepError(HowdahError):
    """A step of a job was asked for, or gave, what cannot be kept. `step` names it."""

    def __init__(self, step: str, problem: str) -> None:
        super().__init__(f"step {step!r}: {problem}")
        self.step = step
        self.problem = problem


class PayloadError(HowdahError):
    """A payload does not fit its handler. `kind` and `problem` name the field; the job is dead at once."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(f"{kind}: {problem}")
        self.kind = kind
        self.problem = problem


class HandlerTimeoutError(HowdahError):
    """A handler ran longer than its timeout, in seconds."""

    def __init__(self, kind: str, timeout: float) -> None:
        super().__init__(f"{kind} ran longer than its timeout of {timeout:g} s")
        self.kind = kind
        self.timeout = timeout


class RefusedError(HowdahError):
    """An argument or a call was refused. `sqlstate` says what sort of refusal it is, `hint` what to do.

    JB001 payload, JB002 argument, JB003 field of a registered kind, JB004 kind never registered, JB005 unique key held, JB006 not
    available yet, JB007 no such job or not in that state, JB008 lost lease. One that the server made has spoilt the transaction,
    as every error does; one that was made before it asked the server has not.
    """

    def __init__(self, sqlstate: str, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.sqlstate = sqlstate
        self.message = message
        self.hint = hint


class UniqueKeyHeldError(RefusedError):
    """A live job has the unique key already, and the caller asked for an error in that case."""


class EmbeddedError(HowdahError):
    """The embedded PostgreSQL could not be found, started or stopped; the message says why and what helps."""
