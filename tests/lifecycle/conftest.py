"""Daemons for the lifecycle tests; every one of them is gone when its test ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.daemon import NOOP, Daemon

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from support.cluster import Database

    StartDaemon = Callable[..., Awaitable[Daemon]]


@pytest.fixture
def daemon(database: Database, tmp_path: Path) -> Iterator[StartDaemon]:
    """Start a daemon on the test's database: `await daemon(handlers, *arguments, queues="default:2", …)`.

    Other keywords are settings. `ready=False`: return at once. `url`: another database.
    """
    daemons: list[Daemon] = []

    async def start(
        handlers: str = NOOP, *arguments: str, ready: bool = True, url: str | None = None, **settings: Any
    ) -> Daemon:
        daemon = Daemon(
            tmp_path / f"daemon{len(daemons)}",
            url=url or database.url,
            handlers=handlers,
            arguments=arguments,
            environment={f"HOWDAH_{name.upper()}": str(value) for name, value in settings.items()},
        )
        daemons.append(daemon)
        return await daemon.ready() if ready else daemon

    yield start
    for daemon in daemons:
        daemon.reap()
