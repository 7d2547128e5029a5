"""The application's settings: environment variables that begin with APP_, read once. A secret may also stand in a file, APP_…_FILE."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from howdah.errors import ConfigError

PREFIX = "APP_"


def _list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Settings(BaseSettings):
    """The field's name, upper case behind APP_, is its variable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    #: The auth server's address, and the token that it wants.
    auth_url: str = "http://127.0.0.1:9999"
    auth_token: SecretStr | None = None

    #: The SMTP server. `starttls`: always (a server that does not offer it is refused), auto, never.
    smtp_host: str = "127.0.0.1"
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = 25
    smtp_starttls: Literal["always", "auto", "never"] = "auto"
    smtp_username: str | None = None
    smtp_password: SecretStr | None = None
    mail_from: str = "Howdah <noreply@localhost>"

    #: Where files are kept: a directory (file:///srv/files) or a bucket (s3://bucket/prefix).
    storage_url: str = "file:///tmp/howdah-files"

    #: Networks and hosts that addresses given by users may lead to although they are private: 127.0.0.0/8, files.internal.
    fetch_allow: Annotated[list[str], NoDecode, BeforeValidator(_list)] = []
    #: What one fetch may take, in seconds, and the most that it may bring, in bytes.
    fetch_timeout: Annotated[float, Field(gt=0)] = 30.0
    fetch_max_bytes: Annotated[int, Field(ge=1)] = 32 * 1024 * 1024
    image_max_pixels: Annotated[int, Field(ge=1)] = 50_000_000

    #: An OpenAI-compatible endpoint (https://…/v1), its model and its token; none: summaries are extracted here.
    chat_url: str | None = None
    chat_model: str = "default"
    chat_token: SecretStr | None = None

    #: The Telegram Bot API's address, and the seconds that one call to it may take.
    telegram_url: Annotated[str, Field(pattern="^https?://")] = "https://api.telegram.org"
    telegram_timeout: Annotated[float, Field(gt=0, le=50)] = 10.0


@cache
def settings() -> Settings:
    """Give the settings. Raises ConfigError, which names the variable: the worker ends with 78."""
    try:
        return Settings(**_secrets())
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise ConfigError(PREFIX + name.upper(), first["msg"].removeprefix("Value error, ")) from None


def _secrets() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("auth_token", "smtp_password", "chat_token"):
        variable = PREFIX + name.upper()
        path = os.environ.get(variable + "_FILE")
        if path is not None and variable not in os.environ:
            try:
                found[name] = Path(path).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(variable + "_FILE", f"{path}: {error.strerror}") from None
    return found
