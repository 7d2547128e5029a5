"""Settings: flag, then environment, then file, then default."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from howdah.errors import ConfigError

PREFIX = "HOWDAH_"
#: What a queue may be called; the database has the same rule.
QUEUE_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,100}")


def load_config(**flags: Any) -> Config:
    """Build the settings from flags (None: not given), environment, secret files and `HOWDAH_CONFIG`.

    Raises ConfigError, which names the variable.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Config(**given, **_secrets(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise ConfigError(_variable(name), first["msg"].removeprefix("Value error, ")) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("HOWDAH_CONFIG", f"{os.environ.get('HOWDAH_CONFIG')} is not TOML: {error}") from None


def _queues(value: Any) -> Any:
    """Read `default:100,mail:10`; a queue without a number gets 10 slots."""
    if not isinstance(value, str):
        return value
    queues: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in value.split(","))):
        name, _, slots = part.rpartition(":") if ":" in part else (part, "", "10")
        name, slots = name.strip(), slots.strip()
        if not name or not slots.isdigit() or int(slots) < 1:
            raise ValueError(f"{part!r} is not like mail:10, a queue and its slots")
        if QUEUE_NAME.fullmatch(name) is None:
            raise ValueError(f"{name[:100]!r} is no queue's name: one to 100 characters, none a control character")
        queues[name] = int(slots)
    if not queues:
        raise ValueError("no queue is named; say default:100")
    return queues


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _postgres_url(value: str) -> str:
    if value.partition("://")[0].lower() not in {"postgres", "postgresql"}:
        raise ValueError("must begin with postgresql://")
    try:
        parts = urlsplit(value)
        # Several hosts may stand there, with commas between: a primary and its standbys.
        for host in parts.netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port  # raises ValueError for what is no port
        names = [item.partition("=") for item in parts.query.split("&") if item]
        is_cut = (
            bool(parts.fragment)
            or ("@" in parts.path and "@" not in parts.netloc)
            or any(not equals or "@" in name for name, equals, _ in names)
        )
    except ValueError:
        is_cut = True
    if is_cut:
        # What the library says would show what it took for a port, and that may be the password's beginning.
        raise ValueError(
            "cannot be read: in a user's name or password, # / ? @ : and % are written %23 %2F %3F %40 %3A %25"
        )
    return urlunsplit(parts._replace(scheme="postgresql"))


PostgresURL = Annotated[str, AfterValidator(_postgres_url)]


class Config(BaseSettings):
    """Every setting of a worker. The field's name, upper case behind HOWDAH_, is its variable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    #: Where the jobs are; a pooler may stand in between. Also read from DATABASE_URL.
    database_url: PostgresURL | None = None
    #: A direct address for LISTEN, where `database_url` leads through a pooler.
    listen_database_url: PostgresURL | None = None
    #: Another login for the handlers' connections, with no more rights than they need; none: `database_url`.
    pool_database_url: PostgresURL | None = None
    queues: Annotated[dict[str, int], NoDecode, BeforeValidator(_queues)] = {"default": 100}
    #: The most jobs running at once over all queues; none: the sum of the queues' slots.
    concurrency: Annotated[int, Field(ge=1)] | None = None
    handlers: Annotated[list[str], NoDecode, BeforeValidator(_names), Field(min_length=1)] = ["handlers"]
    pool_size: Annotated[int, Field(ge=1, le=1000)] = 10
    drain_timeout: Annotated[float, Field(ge=0)] = 25.0
    lease_ttl: Annotated[float, Field(ge=1, le=86400)] = 30.0
    poll_interval: Annotated[float, Field(gt=0, le=3600)] = 1.0
    hang_timeout: Annotated[float, Field(gt=0)] = 300.0
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] = 9543
    admin_token: str | None = None
    history_days: Annotated[int, Field(ge=0, le=3650)] = 14
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    data_dir: Path = Path(".howdah")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources; the file is named by HOWDAH_CONFIG."""
        del dotenv_settings, file_secret_settings
        file = os.environ.get("HOWDAH_CONFIG")
        if file is None:
            return init_settings, env_settings
        if not Path(file).is_file():
            raise ConfigError("HOWDAH_CONFIG", f"{file} is not a file")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)


def _secrets(given: dict[str, Any]) -> dict[str, Any]:
    """Read what comes from elsewhere than HOWDAH_NAME: …_FILE, systemd credentials, and DATABASE_URL last."""
    found: dict[str, Any] = {}
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    for name in ("database_url", "listen_database_url", "pool_database_url", "admin_token"):
        if name in given or _variable(name) in os.environ:
            continue
        path = os.environ.get(_variable(name) + "_FILE")
        if path is None and credentials is not None and (Path(credentials) / name).is_file():
            path = str(Path(credentials) / name)
        if path is not None:
            try:
                found[name] = Path(path).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(_variable(name) + "_FILE", f"{path}: {error.strerror}") from None
        elif name == "database_url" and "DATABASE_URL" in os.environ:
            found[name] = os.environ["DATABASE_URL"]
    return found


def _variable(name: str) -> str:
    return PREFIX + name.upper()
