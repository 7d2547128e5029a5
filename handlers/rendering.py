"""Texts from templates that people wrote. A template sees its variables, and nothing else of this program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What one message may hold, in the units that Telegram counts.
LONGEST = 4096

_environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)  # plain text, never HTML


class BadTemplateError(Exception):
    """No text can be made of the template, whatever the variables are; the message names the line."""


@dataclass(frozen=True, slots=True)
class Text:
    """What a recipient gets, or (`text` is None) why there is nothing to send."""

    text: str | None
    error: str | None = None


class Template:
    """A template's body, read once. Raises BadTemplateError."""

    def __init__(self, body: str) -> None:
        try:
            self._template = _environment.from_string(body)
        except TemplateSyntaxError as error:
            problem = f"template, line {error.lineno}: {error.message}"
        else:
            return
        raise BadTemplateError(problem)

    def render(self, variables: Mapping[str, Any]) -> Text:
        """Give the text for one recipient; what is wrong with it is wrong for this recipient alone."""
        try:
            text = self._template.render(variables).strip()
            length = len(text.encode("utf-16-le")) // 2
        except UndefinedError as error:
            return Text(None, f"a variable is missing: {error.message}")
        except Exception as error:  # whatever an author may have written
            return Text(None, f"template: {type(error).__name__}: {error}"[:500].replace("\0", ""))
        if not text:
            return Text(None, "the text is empty")
        if length > LONGEST:
            return Text(None, f"the text has {length} characters, and a message holds {LONGEST}")
        if "\0" in text:
            return Text(None, "the text holds a null character")
        return Text(text)
