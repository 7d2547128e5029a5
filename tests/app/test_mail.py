"""Letters and the mail server: what is written, what is refused, and what is sent again."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.policy import SMTP as WIRE
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import AuthResult
from jinja2 import UndefinedError
from pydantic import SecretStr
from support.eventually import aeventually
from support.smtp import FaultyMailServer

from handlers.letters import LetterError, write
from handlers.mail import Mailer, MailError, send
from handlers.settings import Settings
from howdah import Job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from email.message import EmailMessage
    from pathlib import Path

    Sending = Callable[..., AbstractAsyncContextManager[Job[Any]]]


@pytest.fixture
async def server() -> AsyncIterator[FaultyMailServer]:
    async with FaultyMailServer().running() as server:
        yield server


@asynccontextmanager
async def sending(server: FaultyMailServer, **settings: Any) -> AsyncIterator[Job[Any]]:
    """Give a job that sends through that server."""
    mailer = Mailer(Settings(smtp_host=server.host, smtp_port=server.port, **settings))
    yield new_job(mailer=mailer)
    await mailer.close()


def new_job(id: int = 7, **resources: object) -> Job[Any]:  # noqa: A002 - what it is called everywhere
    job: Job[Any] = Job()
    job.id, job.kind, job.resources = id, "tell", resources
    job.created_at = datetime(2026, 7, 1, 12, 30, 15, 123456, UTC)
    return job


def letter(job: Job[Any], **given: Any) -> EmailMessage:
    """Write to Ada, unless it is said otherwise."""
    given = {"to": "ada@example.org", "name": "Ada", "subject": "News", "title": "News", "body": "It rains.", **given}
    return write(job, "notification", **given)


# -- letters ----------------------------------------------------------------------------------------------------------


def test_a_letter_has_text_and_html_and_only_the_html_is_escaped() -> None:
    written = letter(new_job(), title="<b>&", body="1 < 2\n\n3 > 2")
    text, html = (part.get_content() for part in written.iter_parts())
    assert "<b>&" in text
    assert "1 < 2" in text
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert "<p>1 &lt; 2</p>" in html
    assert written["To"] == "Ada <ada@example.org>"
    assert written["From"] == "Howdah <noreply@localhost>"
    assert written["Date"].datetime is not None


def test_a_value_that_is_missing_in_a_template_is_an_error_not_a_gap() -> None:
    with pytest.raises(UndefinedError, match="body"):
        write(new_job(), "notification", to="a@b", name="", subject="x", title="x")


def test_a_letters_message_id_is_its_jobs_and_nobody_elses() -> None:
    names = [letter(job)["Message-ID"] for job in (new_job(), new_job(), new_job(8))]
    assert names[0] == names[1] != names[2]
    elsewhere = new_job()
    elsewhere.created_at = datetime(2026, 7, 1, 12, 30, 15, 123457, UTC)
    assert letter(elsewhere)["Message-ID"] != names[0]
    assert names[0].endswith("@localhost>")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("to", "ada@example.org\r\nBcc: eve@example.org"),
        ("to", "ada@example.org\n"),
        ("to", "ada"),
        ("to", ""),
        ("to", "ada@example.org, eve@example.org"),
        ("to", "ada@example.org>\x0brcpt to:<eve@example.org"),
        ("to", "a" * 250 + "@example.org"),
        ("name", "Ada\r\nBcc: eve@example.org"),
        ("name", "Ada\u2028Bcc: eve@example.org"),
        ("subject", "News\nBcc: eve@example.org"),
    ],
)
def test_what_would_write_a_header_of_its_own_is_refused_with_a_reason(field: str, text: str) -> None:
    with pytest.raises(LetterError, match=r"line break|is not an e-mail address"):
        letter(new_job(), **{field: text})


def test_any_name_fits_into_a_header() -> None:
    for name in ('Ada "the Countess" Lovelace', "Жанна", "李", "", "a,b;c@d", "=?utf-8?q?x?="):
        written = letter(new_job(), name=name, subject=f"Welcome, {name}")
        wire = written.as_bytes(policy=WIRE)
        assert wire.count(b"\r\nTo: ") == 1
        assert written["To"].addresses[0].addr_spec == "ada@example.org"


# -- the server -------------------------------------------------------------------------------------------------------


async def test_letters_go_one_after_the_other_over_one_connection(server: FaultyMailServer) -> None:
    async with sending(server) as job:
        letters = [letter(job, to=f"{n}@example.org") for n in range(5)]
        assert await asyncio.gather(*(send(job, one) for one in letters)) == [one["Message-ID"] for one in letters]
    assert sorted(mail["To"].addresses[0].username for mail in server.mails) == list("01234")
    assert server.connections == 1


async def test_a_connection_that_the_server_closed_is_made_anew(server: FaultyMailServer) -> None:
    async with sending(server) as job:
        for _ in range(3):
            await send(job, letter(job))
            server.hang_up()
    assert len(server.mails) == server.connections == 3


async def test_a_refusal_that_may_pass_is_tried_again_and_then_left_to_the_next_attempt(
    server: FaultyMailServer,
) -> None:
    async with sending(server) as job:
        server.recipient_answers, server.mail_answers = ["450 try again"], ["451 try again"]
        await send(job, letter(job))
        assert len(server.mails) == 1
        server.recipient_answers = ["421 going down"] * 3
        with pytest.raises(MailError, match="421 going down") as caught:
            await send(job, letter(job))
    assert caught.value.unsure is False
    assert server.recipient_answers == []
    assert len(server.mails) == 1


async def test_a_refusal_for_good_is_final_in_the_servers_words(server: FaultyMailServer) -> None:
    async with sending(server) as job:
        server.recipient_answers = ["550 no such user here"]
        with pytest.raises(LetterError, match="550 no such user here"):
            await send(job, letter(job))
        server.mail_answers = ["554 looks like spam"]
        with pytest.raises(LetterError, match="554 looks like spam"):
            await send(job, letter(job))
        await send(job, letter(job, to="other@example.org"))
    assert [mail["To"].addresses[0].username for mail in server.mails] == ["other"]


async def test_a_letter_whose_fate_is_unknown_is_not_sent_again_by_itself(server: FaultyMailServer) -> None:
    async with sending(server) as job:
        server.break_after = 1
        with pytest.raises(MailError) as caught:
            await send(job, letter(job))
    assert caught.value.unsure is True
    assert len(server.mails) == 1


async def test_an_attempt_that_is_interrupted_in_the_dialogue_leaves_nothing_to_the_next_one(
    server: FaultyMailServer,
) -> None:
    async with sending(server) as job:
        server.hold_mail = True
        interrupted = asyncio.create_task(send(job, letter(job, to="first@example.org")))
        await aeventually(lambda: server.held)
        server.let_go()
        interrupted.cancel()
        await asyncio.gather(interrupted, return_exceptions=True)
        await send(job, letter(job, to="second@example.org"))
    assert server.mails[-1]["To"].addresses[0].username == "second"
    assert server.connections == 2


async def test_a_server_that_is_not_there_is_no_reason_to_give_up(unused_tcp_port: int) -> None:
    server = FaultyMailServer()
    server.port = unused_tcp_port
    async with sending(server) as job:
        with pytest.raises(MailError, match="the mail server: ") as caught:
            await send(job, letter(job))
    assert caught.value.unsure is False


async def test_an_address_beyond_ascii_is_sent_where_the_server_takes_it(server: FaultyMailServer) -> None:
    async with sending(server) as job:
        await send(job, letter(job, to="жанна@example.org"))
    assert server.recipients == ["жанна@example.org"]


async def test_a_login_is_used_and_its_password_is_in_no_error() -> None:
    logins: list[tuple[bytes, bytes]] = []

    def check(_: object, __: object, ___: object, ____: object, data: Any) -> AuthResult:
        logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"open sesame", handled=False)

    options = {"auth_require_tls": False, "authenticator": check}
    async with FaultyMailServer(**options).running() as server:
        login = {"smtp_username": "ada", "smtp_password": SecretStr("open sesame")}
        async with sending(server, **login) as job:
            await send(job, letter(job))
        assert len(server.mails) == 1
        async with sending(server, **login | {"smtp_password": SecretStr("wrong-pw")}) as job:
            with pytest.raises(MailError, match="535") as caught:
                await send(job, letter(job))
        assert "wrong-pw" not in str(caught.value)
    assert logins[0] == (b"ada", b"open sesame")


async def test_where_starttls_is_a_must_a_server_without_it_gets_nothing(server: FaultyMailServer) -> None:
    async with sending(server, smtp_starttls="always") as job:
        with pytest.raises(MailError, match=r"(?i)starttls"):
            await send(job, letter(job))
    assert server.mails == []


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, and its key in one file."""
    folder = tmp_path_factory.mktemp("tls")
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("there is no openssl to make a certificate with")
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    new = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", "key", "-out", "certificate")
    subprocess.run([openssl, "req", *new, *subject], cwd=folder, check=True, capture_output=True)
    both = folder / "both"
    both.write_bytes((folder / "key").read_bytes() + (folder / "certificate").read_bytes())
    return both


@pytest.mark.parametrize("starttls", ["always", "auto"])
async def test_a_letter_goes_through_tls_where_the_server_offers_it_and_only_to_one_that_we_trust(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, starttls: str
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with FaultyMailServer(tls_context=tls, require_starttls=True).running() as server:
        async with sending(server, smtp_starttls=starttls) as job:
            with pytest.raises(MailError, match=r"(?i)certificate|tls"):
                await send(job, letter(job))
        assert server.mails == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with sending(server, smtp_starttls=starttls) as job:
            await send(job, letter(job))
        assert len(server.mails) == 1
