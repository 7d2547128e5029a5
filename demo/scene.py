"""A scene: one part of the application, played beside the likes and proved at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, ClassVar

from demo.errors import DemoError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from random import Random

    import asyncpg


class Scene(ABC):
    """Made before the daemons start, played while they run, proved when no job is left."""

    #: What the watcher is told when it begins.
    title: ClassVar[str]

    def __init__(self, pool: asyncpg.Pool, random: Random, folder: Path) -> None:
        self.pool = pool
        self.random = random
        self.folder = folder
        #: The rows of the table at the end, what and how much; `prove` adds them.
        self.shown: list[tuple[str, str]] = []

    @abstractmethod
    def servers(self) -> AbstractAsyncContextManager[dict[str, str]]:
        """Run what the scene's jobs talk to, on loopback; give the settings (APP_…) that the daemons need for it."""

    @abstractmethod
    async def play(self) -> None:
        """Enqueue the work, as a user of the application would. The jobs are awaited by the demonstration."""

    @abstractmethod
    async def prove(self) -> list[str]:
        """Fill `shown`, and give a sentence for each thing that is not as promised; nothing proved is a sentence, too."""

    async def doomed(self) -> set[int]:
        """Give the jobs that have died as the scene promised, of its own reasons; any other dead job is a loss."""
        return set()


@asynccontextmanager
async def on(scenes: list[Scene]) -> AsyncIterator[dict[str, str]]:
    """Run the servers of all scenes and give the settings of all of them together."""
    async with AsyncExitStack() as stack:
        environment: dict[str, str] = {}
        for scene in scenes:
            environment |= await stack.enter_async_context(scene.servers())
        yield environment


async def lost(scenes: list[Scene]) -> None:
    """Raise DemoError with what the scenes have found; return if there is nothing."""
    sentences = [sentence for scene in scenes for sentence in await scene.prove()]
    if sentences:
        raise DemoError("; ".join(sentences))
