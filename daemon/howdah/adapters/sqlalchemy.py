"""Enqueue over SQLAlchemy, in the transaction of the connection or session that is given; any PostgreSQL driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from howdah.newjob import Enqueued, arguments_json, refusals
from howdah.queries import SQL

if TYPE_CHECKING:
    from typing import Unpack

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from howdah.newjob import JobOptions

_ENQUEUE = text(SQL["enqueue"].replace("$1::text", "cast(:job as text)"))


def enqueue(session: Connection | Session, kind: str, payload: Any = None, **options: Unpack[JobOptions]) -> Enqueued:
    """Enqueue one job on a connection or session; see howdah.enqueue."""
    arguments = arguments_json({"kind": kind, "payload": payload, **options})
    with refusals():
        return Enqueued(*session.execute(_ENQUEUE, {"job": arguments}).one())


async def enqueue_async(
    session: AsyncConnection | AsyncSession, kind: str, payload: Any = None, **options: Unpack[JobOptions]
) -> Enqueued:
    """Do the same on an asynchronous connection or session."""
    arguments = arguments_json({"kind": kind, "payload": payload, **options})
    with refusals():
        return Enqueued(*(await session.execute(_ENQUEUE, {"job": arguments})).one())
