"""A gate in the database: whoever writes what it guards waits in the middle of his transaction, until a test lets him through or ends him."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.eventually import aeventually

if TYPE_CHECKING:
    import asyncpg

_LOCK = 4711

#: What a gate may guard: a table, an event, and which of its rows.
CLAIM = ("howdah.jobs", "update", "old.lease is null and new.lease is not null")
GIVING_BACK = ("howdah.jobs", "update", "old.lease is not null and new.lease is null")
END = ("howdah.job_history", "insert", "true")


class Gate:
    """Shut from `shut` to `open`, by a lock that belongs to the given connection."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def shut(self, table: str, event: str, rows: str) -> Gate:
        """Let nobody through any more who writes such rows."""
        await self._connection.execute(
            f"""create function public.wait_at_gate() returns trigger language plpgsql security definer set lock_timeout = 0 as $$
            begin
              perform pg_advisory_xact_lock_shared({_LOCK});
              return null;
            end $$;
            create trigger gate after {event} on {table} for each row when ({rows}) execute function public.wait_at_gate();
            select pg_advisory_lock({_LOCK});"""
        )
        return self

    async def shut_at(self, function: str) -> Gate:
        """Let nobody through any more who has just made a function whose name begins so: a migration, in its middle."""
        await self._connection.execute(
            f"""create function public.wait_at_gate() returns event_trigger language plpgsql set lock_timeout = 0 as $$
            begin
              if exists (select from pg_event_trigger_ddl_commands() c where starts_with(c.object_identity, '{function}')) then
                perform pg_advisory_xact_lock_shared({_LOCK});
              end if;
            end $$;
            create event trigger gate on ddl_command_end when tag in ('CREATE FUNCTION') execute function public.wait_at_gate();
            select pg_advisory_lock({_LOCK});"""
        )
        return self

    async def reached(self, count: int = 1) -> None:
        """Wait until so many sessions stand before it."""
        await aeventually(lambda: self._stand_before(count))

    async def end_waiting(self) -> None:
        """Have the server notice that they who wait have nobody to answer to: what they did is undone. The gate is open then."""
        await self._connection.fetch(
            f"""select pg_terminate_backend(l.pid, 5000) from pg_locks l join pg_database d on d.oid = l.database
            where d.datname = current_database() and l.locktype = 'advisory' and l.objid = {_LOCK} and not l.granted"""
        )
        await self.open()

    async def open(self) -> None:
        """Let everybody through."""
        await self._connection.execute(f"select pg_advisory_unlock({_LOCK})")

    async def _stand_before(self, count: int) -> bool:
        found: int = await self._connection.fetchval(
            f"""select count(*) from pg_locks l join pg_database d on d.oid = l.database
            where d.datname = current_database() and l.locktype = 'advisory' and l.objid = {_LOCK} and not l.granted"""
        )
        return found >= count
