"""A Prometheus of a test's own, which looks every second and evaluates the project's rules."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from support.eventually import aeventually

if TYPE_CHECKING:
    from collections.abc import Sequence

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "howdah.rules.yml"


class Prometheus:
    """An async context manager; gone at the end."""

    def __init__(self, folder: Path, targets: Sequence[str], *, rules: str | None = None) -> None:
        """`rules`: others than the project's."""
        self._folder = folder / "prometheus"
        self._folder.mkdir()
        (self._folder / "howdah.rules.yml").write_text(rules or RULES.read_text(encoding="utf-8"), encoding="utf-8")
        (self._folder / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": ["howdah.rules.yml"],
                    "scrape_configs": [{"job_name": "howdah", "static_configs": [{"targets": list(targets)}]}],
                }
            ),
            encoding="utf-8",
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
                ["prometheus", f"--config.file={self._folder}/prometheus.yml", f"--storage.tsdb.path={self._folder}/data",
                 f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._session = aiohttp.ClientSession()
        await aeventually(lambda: self.ask("up == 1"), timeout=30)
        return self

    async def __aexit__(self, *failure: object) -> None:
        if self._session is not None:
            await self._session.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    async def firing(self) -> set[str]:
        """Give the names of the alerts that fire."""
        return {one["metric"]["alertname"] for one in await self.ask('ALERTS{alertstate="firing"}')}

    async def ask(self, expr: str) -> list[dict[str, Any]]:
        """Give what an expression is now."""
        return await self._get("query", query=expr)

    async def ask_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Give what an expression was, as series of (time, value)."""
        return await self._get("query_range", query=expr, start=start, end=end, step=step)

    async def _get(self, what: str, **parameters: Any) -> list[dict[str, Any]]:
        assert self._session is not None
        async with self._session.get(f"http://127.0.0.1:{self._port}/api/v1/{what}", params=parameters) as response:
            answer = await response.json()
        assert answer["status"] == "success", (parameters, answer.get("error"))
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found
