"""The client of the Bot API against a server: what it makes of each way in which a request may end."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually

from demo.bot_api import Act, BotApi
from handlers.telegram import Later, NotSent, Refused, Sent, Telegram, Unknown

if TYPE_CHECKING:
    from handlers.telegram import Outcome

TOKEN = "123456:CANARY-token_of-the-bot"


@pytest.fixture
def client(bot_client: Telegram) -> Telegram:
    return bot_client


async def send(client: Telegram, chat: str = "7") -> Outcome:
    return await client.send_message(TOKEN, chat, "Hello")


async def test_a_message_that_arrives_is_known_by_its_number(bot: BotApi, client: Telegram) -> None:
    assert await send(client) == Sent("1")
    [request] = bot.requests
    assert (request.token, request.chat_id, request.text) == (TOKEN, "7", "Hello")


async def test_a_chat_that_has_blocked_the_bot_or_does_not_exist_is_refused_for_good(
    bot: BotApi, client: Telegram
) -> None:
    bot.blocked, bot.missing = {"7"}, {"8"}
    assert await send(client, "7") == Refused("403 Forbidden: bot was blocked by the user")
    assert await send(client, "8") == Refused("400 Bad Request: chat not found")


async def test_above_the_rate_the_answer_says_when_to_ask_again(bot: BotApi, client: Telegram) -> None:
    bot.rate, bot.retry_after = 1, 7
    assert await send(client) == Sent("1")
    assert await send(client) == Later(7, "429 Too Many Requests: retry after 7")


async def test_a_server_that_fails_has_not_sent_and_is_asked_once_per_call(bot: BotApi, client: Telegram) -> None:
    bot.acts["7"].extend([Act.BREAK, Act.BREAK])
    assert await send(client) == NotSent("500 Internal Server Error")
    assert len(bot.requests) == 1


@pytest.mark.parametrize("act", [Act.HOLD, Act.CUT, Act.GATEWAY])
async def test_silence_after_the_request_leaves_it_unknown_whether_it_arrived(
    bot: BotApi, client: Telegram, act: Act
) -> None:
    bot.acts["7"].append(act)
    assert isinstance(await send(client), Unknown)
    assert bot.delivered == {"7": 1}


async def test_what_never_left_was_surely_not_sent(bot: BotApi, client: Telegram) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        lost = Telegram(client._session, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert await send(lost) == NotSent("no connection: ClientConnectorError")
        # Now the system takes the connection, and nobody answers the handshake of TLS: the time runs out before it is made.
        nobody.listen()
        lost = Telegram(client._session, f"https://127.0.0.1:{nobody.getsockname()[1]}")
        assert await send(lost) == NotSent("no connection: no answer in time")
    assert bot.requests == []


async def test_no_outcome_holds_the_token_not_even_if_the_server_says_it(bot: BotApi, client: Telegram) -> None:
    bot.acts["7"].extend([Act.ECHO, Act.CUT, Act.HOLD, Act.BREAK])
    outcomes = [await send(client) for _ in range(4)]
    bot.missing = {"8"}
    outcomes.append(await send(client, "8"))
    assert isinstance(outcomes[0], NotSent)
    assert outcomes[0].reason == "500 Internal Server Error at /bot***/sendMessage"
    assert not any("CANARY" in repr(outcome) for outcome in outcomes)


async def test_an_answer_that_is_no_http_leaves_it_unknown_and_the_address_unsaid(client: Telegram) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 two hundred\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1") as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        outcome = await send(Telegram(client._session, address))
    # Its text would be: 400, message='Bad status line …', url='http://…/bot123456:…'
    assert outcome == Unknown("ClientResponseError after the request was sent")


async def test_a_token_with_a_slash_goes_nowhere_else(bot: BotApi, client: Telegram) -> None:
    assert isinstance(await client.send_message("1:../../x?y=", "7", "Hello"), Sent)
    assert [request.token for request in bot.requests] == ["1:../../x?y="]


async def test_calls_in_flight_when_the_worker_leaves_are_cut(bot: BotApi, client: Telegram) -> None:
    bot.acts["7"].append(Act.HOLD)
    call = asyncio.create_task(send(client))
    await aeventually(lambda: bot.holding == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
