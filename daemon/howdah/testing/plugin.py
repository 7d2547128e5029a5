"""The pytest plugin: the fixture `howdah_database`. It imports nothing of weight until a test asks for a database."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from howdah.testing.databases import Database


class Hooks:
    """What a suite's conftest may implement."""

    @pytest.hookspec
    def pytest_howdah_template(self, url: str) -> None:
        """Prepare the template that every test's database is a copy of; called once a run, after the migrations.

        For schemas that are made by another tool. Leave no connection open: a template in use cannot be copied.
        """


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make the hook known."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Make the setting known."""
    parser.addini(
        "howdah_migrations",
        "Folders of numbered SQL files that are applied after Howdah's own.",
        type="paths",
        default=[],
    )


@pytest.fixture(scope="session")
def howdah_template(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the address of the database that `howdah_database` copies: one server and one template for the whole run."""
    # Imported here: they bring asyncpg along.
    from howdah.errors import HowdahError  # noqa: PLC0415
    from howdah.testing.server import TestServer  # noqa: PLC0415

    config = request.config
    # The processes of pytest-xdist have the run's id in common; without it this process is the run.
    workerinput = getattr(config, "workerinput", {})
    server = TestServer(workerinput.get("testrunuid") or uuid.uuid4().hex)
    try:
        template, failure = "", None
        try:
            template = server.join(
                config.getini("howdah_migrations"), lambda url: config.hook.pytest_howdah_template(url=url)
            )
        except HowdahError as error:
            failure = f"howdah_database: {error}"
        if failure:
            pytest.fail(failure, pytrace=False)  # one line, and not the way there
        yield template
    finally:
        server.leave()


@pytest.fixture
def howdah_database(howdah_template: str) -> Iterator[Database]:
    """Give a test a PostgreSQL database of its own: `.url`, `await .connect()`.

    It has Howdah's schema, the suite's migrations, and the kinds of all handlers that have been imported.
    """
    from howdah.testing.databases import clone, drop, register_kinds  # noqa: PLC0415
    from howdah.testing.waiting import wait_for  # noqa: PLC0415

    database = wait_for(clone(howdah_template))
    try:
        wait_for(register_kinds(database))
        yield database
    finally:
        wait_for(drop(database))
