"""Summaries: by a real chat endpoint, or by the text's own sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from demo.chat_server import ChatServer, chat_server
from handlers.chat import ContextTooLongError
from handlers.outlines import make_outline
from handlers.outside import BusyError, OutsideError
from handlers.sentences import extract, sentences
from handlers.settings import settings
from handlers.subprocesses import Subprocesses
from handlers.summaries import parts, summarise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TEXT = """# Elephants

The elephant carries the load through the forest. The mahout sits on the elephant and guides it with words.

```sh
Never. Run. This. Command.
```

A howdah is the seat that lets an elephant carry a load. Without a howdah the load of the elephant falls down.

- The weather was [fine](http://example.org) that morning.

| Every | table | is. | left | out |
"""


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
async def chat(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ChatServer]:
    async with chat_server() as server:
        monkeypatch.setenv("APP_CHAT_URL", server.url)
        monkeypatch.setenv("APP_CHAT_TOKEN", "sesame")
        yield server


@pytest.fixture
async def resources() -> AsyncIterator[dict[str, Any]]:
    async with aiohttp.ClientSession() as http:
        yield {"http": http}


# -- the chat endpoint ------------------------------------------------------------------------------------------------


async def test_the_endpoint_is_asked_with_its_token(chat: ChatServer, resources: dict[str, Any]) -> None:
    assert await summarise(resources, "The elephant carries the load.") == "In short: The elephant carries the load."
    assert chat.tokens == {"Bearer sesame"}


async def test_an_endpoint_that_fails_for_a_moment_is_asked_again(chat: ChatServer, resources: dict[str, Any]) -> None:
    chat.next = [(500, {"error": {"message": "overloaded"}}, {}), (502, "", {})]
    assert (await summarise(resources, TEXT)).startswith("In short")
    assert len(chat.asked) == 3


async def test_an_endpoint_that_asks_for_patience_is_obeyed(chat: ChatServer, resources: dict[str, Any]) -> None:
    chat.next = [(429, {"error": {"message": "slow down"}}, {"Retry-After": "7"})]
    with pytest.raises(BusyError) as caught:
        await summarise(resources, TEXT)
    assert caught.value.delay == 7
    assert len(chat.asked) == 1


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{"message": {"content": " "}}]}, "nonsense"])
async def test_an_answer_that_is_none_is_a_failure(chat: ChatServer, resources: dict[str, Any], body: Any) -> None:
    chat.next = [(200, body, {})]
    with pytest.raises(OutsideError, match="chat endpoint: its answer is"):
        await summarise(resources, TEXT)


async def test_a_text_that_is_too_long_is_summarised_in_parts_and_then_the_summaries(
    chat: ChatServer, resources: dict[str, Any]
) -> None:
    chat.context = 4000
    text = "\n\n".join(f"Paragraph {n} speaks of elephants and of what they carry." * 4 for n in range(60))
    summary = await summarise(resources, text)
    assert summary.startswith("In short: In short: Paragraph 0")
    taken = [asked for asked in chat.asked if len(asked) <= chat.context]
    told = "".join("".join(taken).split())
    assert all(f"Paragraph{n}speaks" in told for n in range(60))
    assert taken[-1].count("In short") > 1


async def test_a_model_that_can_take_nothing_is_a_failure_and_not_a_loop(
    chat: ChatServer, resources: dict[str, Any]
) -> None:
    chat.context = 5
    with pytest.raises(ContextTooLongError, match="the model takes no text"):
        await summarise(resources, TEXT * 10)
    assert len(chat.asked) < 10


def test_parts_are_cut_at_the_ends_of_paragraphs_and_lose_no_word() -> None:
    text = "\n\n".join("word " * n for n in range(1, 60)) + "x" * 900
    cut = list(parts(text, 400))
    assert max(map(len, cut)) <= 400
    assert "".join("".join(cut).split()) == "".join(text.split())
    assert cut[0].endswith("word ")


# -- the outline ------------------------------------------------------------------------------------------------------


DOCUMENTS = [
    {
        "id": "1",
        "filename": "a.md",
        "status": "completed",
        "error": None,
        "headings": ["A", "B"],
        "summary": "About A.",
    },
    {"id": "2", "filename": "b.md", "status": "failed", "error": "cut off", "headings": [], "summary": None},
]
MISSING = [{"document_id": "2", "filename": "b.md", "reason": "cut off"}]


@pytest.mark.usefixtures("chat")
async def test_the_endpoint_makes_the_outline(resources: dict[str, Any]) -> None:
    outline = await make_outline(resources, "Elephants", DOCUMENTS, settle=False)
    assert (outline["made_by"], outline["missing"]) == ("chat", MISSING)
    assert outline["modules"] == [{"title": "About a.md", "summary": "", "lessons": ["a.md"]}]


async def test_headings_make_the_outline_where_the_endpoint_gives_none(
    chat: ChatServer, resources: dict[str, Any]
) -> None:
    chat.next = [(200, {"choices": [{"message": {"content": "I would rather not."}}]}, {})]
    outline = await make_outline(resources, "Elephants", DOCUMENTS, settle=False)
    assert (outline["made_by"], outline["missing"]) == ("headings", MISSING)
    assert outline["modules"] == [{"title": "A", "summary": "About A.", "lessons": ["B"]}]


async def test_an_endpoint_that_fails_leaves_the_outline_to_another_attempt_but_not_the_last(
    chat: ChatServer, resources: dict[str, Any]
) -> None:
    chat.next = [(400, {"error": {"message": "no such model"}}, {})] * 2
    with pytest.raises(OutsideError):
        await make_outline(resources, "Elephants", DOCUMENTS, settle=False)
    assert (await make_outline(resources, "Elephants", DOCUMENTS, settle=True))["made_by"] == "headings"


# -- without one ------------------------------------------------------------------------------------------------------


def test_sentences_are_those_of_prose() -> None:
    assert list(sentences(TEXT)) == [
        "The elephant carries the load through the forest.",
        "The mahout sits on the elephant and guides it with words.",
        "A howdah is the seat that lets an elephant carry a load.",
        "Without a howdah the load of the elephant falls down.",
        "The weather was fine that morning.",
    ]


async def test_without_an_endpoint_a_text_is_summarised_by_its_own_sentences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("APP_CHAT_URL", raising=False)
    processes = Subprocesses(1)
    try:
        summary = await summarise({"subprocesses": processes}, TEXT)
    finally:
        processes.close()
    assert summary == " ".join(sentences(TEXT)) == extract(TEXT)


@pytest.mark.parametrize(
    ("text", "length", "summary"),
    [
        (
            "Слон несёт груз. Слон сильный и большой зверь. Погонщик сидит на слоне. Погода хорошая сегодня утром.",
            50,
            "Слон несёт груз. Слон сильный и большой зверь.",
        ),
        (
            "今日は天気がとても良いですね本当に。象は荷物を運ぶ大きな動物です。象は大きな荷物を運ぶことができます。",
            25,
            "象は大きな荷物を運ぶことができます。",
        ),
        ("# Only\n\n## headings", 100, "# Only ## headings"),
        ("Too short.", 100, "Too short."),
        ("", 100, ""),
        ("a. " * 100, 10, "a. a. a. a"),
    ],
)
def test_any_language_and_any_text_is_summarised(text: str, length: int, summary: str) -> None:
    assert extract(text, length) == summary


def test_a_long_text_is_summarised_in_parts() -> None:
    text = " ".join(f"Sentence number {n} speaks of elephant {n % 7} and load {n % 11}." for n in range(3000))
    summary = extract(text)
    assert 600 < len(summary) <= 1200
    assert set(sentences(summary)) <= set(sentences(text))
