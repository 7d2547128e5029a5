"""Ask a language model, by the protocol that OpenAI's servers speak and many others do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field, ValidationError

from handlers.outside import OutsideError, RefusedError, call
from handlers.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp

SERVICE = "chat endpoint"
TIMEOUT = 120.0  # seconds of one try; models take their time
_TOO_LONG = ("context_length_exceeded", "context length", "context window", "too many tokens", "too long", "max_tokens")


class ContextTooLongError(Exception):
    """The model cannot take so much at once."""


class Chat:
    """One model at one endpoint."""

    def __init__(self, http: aiohttp.ClientSession, url: str, model: str, token: str | None = None) -> None:
        self._http = http
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def ask(self, task: str, text: str) -> str:
        """Give the answer to a task about a text.

        Asking twice does no harm but costs, so what follows from an answer is kept by `job.step`. Raises ContextTooLongError,
        BusyError (429: come back later), and OutsideError for what bounded retries did not mend.
        """
        messages = [{"role": "system", "content": task}, {"role": "user", "content": text}]
        body = {"model": self._model, "messages": messages, "temperature": 0}
        try:
            answer = await call(
                self._http,
                SERVICE,
                "POST",
                self._url,
                json=body,
                headers=self._headers,
                timeout=TIMEOUT,
                repeatable=True,
            )
        except RefusedError as error:
            said = str(error.answer.body).lower()
            if error.answer.status == 413 or (error.answer.status == 400 and any(word in said for word in _TOO_LONG)):
                raise ContextTooLongError from None
            raise
        try:
            content = _Completion.model_validate(answer.body).choices[0].message.content.strip()
        except ValidationError:
            raise OutsideError(SERVICE, "its answer is no chat completion") from None
        if not content:
            raise OutsideError(SERVICE, "its answer is empty")
        return content


def chat_of(resources: Mapping[str, object]) -> Chat | None:
    """Give the endpoint of the settings, APP_CHAT_URL; None: there is none."""
    chosen = settings()
    if not chosen.chat_url:
        return None
    token = chosen.chat_token.get_secret_value() if chosen.chat_token else None
    return Chat(resources["http"], chosen.chat_url, chosen.chat_model, token)  # type: ignore[arg-type]


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
