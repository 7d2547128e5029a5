"""Settings: where they come from, which comes first, and that a wrong one is named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from howdah.cli.health import address
from howdah.config import load_config
from howdah.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

URL = "postgresql://user:secret@host/jobs"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("HOWDAH_") or name in {"DATABASE_URL", "CREDENTIALS_DIRECTORY"}:
            monkeypatch.delenv(name)


def test_defaults_are_those_of_the_manual() -> None:
    config = load_config()
    assert config.database_url is None
    assert (config.queues, config.concurrency, config.handlers) == ({"default": 100}, None, ["handlers"])
    assert (config.pool_size, config.drain_timeout, config.lease_ttl, config.poll_interval) == (10, 25, 30, 1)
    assert (config.http_host, config.http_port, config.history_days, config.log_format) == (
        "127.0.0.1",
        9543,
        14,
        "json",
    )


@pytest.mark.parametrize(
    ("text", "queues"),
    [
        ("default:100,mail:10", {"default": 100, "mail": 10}),
        (" default:1 , mail : 2 ", {"default": 1, "mail": 2}),
        ("mail", {"mail": 10}),
        ("a:b:3", {"a:b": 3}),
        ("a:1,,", {"a": 1}),
    ],
)
def test_queues_are_read_with_their_slots(monkeypatch: pytest.MonkeyPatch, text: str, queues: dict[str, int]) -> None:
    monkeypatch.setenv("HOWDAH_QUEUES", text)
    assert load_config().queues == queues


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("queues", text) for text in ("", ",", "mail:", ":3", "mail:0", "mail:-1", "mail:1.5", "mail:²")),
        ("concurrency", "0"),
        ("handlers", ","),
        ("pool_size", "none"),
        ("lease_ttl", "0"),
        ("lease_ttl", "nan"),
        ("poll_interval", "0"),
        ("http_port", "65536"),
        ("log_format", "xml"),
        ("history_days", "-1"),
        ("database_url", "host=localhost"),
        ("listen_database_url", "http://host/"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HOWDAH_{name.upper()}", value)
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert caught.value.variable == f"HOWDAH_{name.upper()}"
    assert "\n" not in str(caught.value)


def test_an_address_may_name_a_primary_and_its_standbys(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "postgresql://howdah:secret@one:5432,two:5433,three/jobs?target_session_attrs=read-write"
    monkeypatch.setenv("HOWDAH_DATABASE_URL", address)
    assert load_config().database_url == address
    monkeypatch.setenv("HOWDAH_DATABASE_URL", address.replace("5433", "many"))
    with pytest.raises(ConfigError):
        load_config()


def test_a_wrong_address_is_refused_without_showing_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOWDAH_DATABASE_URL", "mysql://user:secret@host/jobs")
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert "secret" not in str(caught.value)


def test_a_flag_comes_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "howdah.toml"
    file.write_text('lease_ttl = 7\npool_size = 7\nhttp_port = 7\nqueues = {mail = 7}\nhandlers = ["seven"]\n')
    monkeypatch.setenv("HOWDAH_CONFIG", str(file))
    monkeypatch.setenv("HOWDAH_POOL_SIZE", "8")
    monkeypatch.setenv("HOWDAH_HTTP_PORT", "8")
    config = load_config(http_port=9, pool_size=None)
    assert (config.lease_ttl, config.pool_size, config.http_port) == (7, 8, 9)
    assert (config.queues, config.handlers) == ({"mail": 7}, ["seven"])


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOWDAH_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_config()


def test_a_file_that_is_not_toml_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "howdah.toml"
    file.write_text("lease_ttl = = 7\n")
    monkeypatch.setenv("HOWDAH_CONFIG", str(file))
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert caught.value.variable == "HOWDAH_CONFIG"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_both_schemes_of_an_address_are_taken(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", URL.replace("postgresql", scheme))
    assert load_config().database_url == URL


def test_secrets_come_from_the_variable_then_its_file_then_the_credentials_then_database_url(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def found() -> Any:
        return load_config().database_url

    monkeypatch.setenv("DATABASE_URL", URL + "4")
    assert found() == URL + "4"
    (tmp_path / "database_url").write_text(URL + "3\n")
    (tmp_path / "admin_token").write_text("token\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert found() == URL + "3"
    assert load_config().admin_token == "token"
    (tmp_path / "other").write_text(URL + "2\n")
    monkeypatch.setenv("HOWDAH_DATABASE_URL_FILE", str(tmp_path / "other"))
    assert found() == URL + "2"
    monkeypatch.setenv("HOWDAH_DATABASE_URL", URL + "1")
    assert found() == URL + "1"
    assert load_config(database_url=URL).database_url == URL


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HOWDAH_HTTP_HOST": "::1", "HOWDAH_HTTP_PORT": "81"},
        {"HOWDAH_CONFIG": "howdah.toml"},
        {"HOWDAH_CONFIG": "howdah.toml", "HOWDAH_HTTP_PORT": "81"},
    ],
)
def test_the_healthcheck_finds_the_port_where_the_worker_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "howdah.toml").write_text("http_port = 82\n", encoding="utf-8")
    for name in ("HOWDAH_HTTP_HOST", "HOWDAH_HTTP_PORT", "HOWDAH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = load_config()
    assert address(None, None) == (config.http_host, config.http_port)
    assert address("h", 1) == ("h", 1)


def test_the_healthcheck_refuses_a_port_as_the_worker_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOWDAH_HTTP_PORT", "many")
    with pytest.raises(ConfigError, match="HOWDAH_HTTP_PORT"):
        address(None, None)
