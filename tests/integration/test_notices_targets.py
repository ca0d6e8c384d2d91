"""Notices on their way, by a real mail server and a real web server."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from clamproxy.config.settings import Settings
from clamproxy.notices import mail as mail_module
from clamproxy.notices import targets as targets_module
from clamproxy.notices import webhooks as webhooks_module
from clamproxy.notices.notice import Notice
from clamproxy.notices.targets import DeliveryError, NoticeTarget, deliver, targets_of
from tests.support.doh_server import ConnectProxy
from tests.support.smtp_server import PASSWORD, USER, Mailbox, mail_server, silent_server
from tests.support.webhook_server import webhook_server

TEST = Notice("gw1", 1_790_000_000.0)
LOGIN: dict[str, Any] = {"user": USER, "password": PASSWORD}
TOKEN = "0123456789abcdef"
SECRET = "T0000/B0000/VERYSECRET"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def served(authority: trustme.CA) -> ssl.SSLContext:
    """What a server with a good certificate has."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For servers that are silent. Those that aren't get all the time that they need on a busy machine."""
    monkeypatch.setattr(mail_module, "STEP", 2.0)
    monkeypatch.setattr(webhooks_module, "READ", 2.0)


def by_mail(box: Mailbox, bundle: Path | None = None, **keys: Any) -> NoticeTarget:
    mail = {"server": "localhost", "port": box.port, "tls": "none", "recipients": ["a@example.net"], **keys}
    (target,) = targets_of(Settings.model_validate({"mail": mail, "upstream": {"ca_bundle": bundle}}))
    return target


def by_webhook(url: str, bundle: Path | None = None, proxy: str | None = None, **keys: Any) -> NoticeTarget:
    hook = {"url": url, "form": "json", **keys}
    upstream = {"ca_bundle": bundle, "proxy": proxy}
    (target,) = targets_of(Settings.model_validate({"notify": {"webhooks": [hook]}, "upstream": upstream}))
    return target


async def failure(target: NoticeTarget) -> str:
    with pytest.raises(DeliveryError) as caught:
        await deliver(target, TEST)
    return str(caught.value)


# By mail


async def test_a_mail_without_tls() -> None:
    with mail_server() as box:
        target = by_mail(box, sender="gw1@example.net", recipients=["a@example.net", "b@example.net"])
        assert await deliver(target, TEST) is None
        (mail,) = box.mails
        assert box.recipients == [["a@example.net", "b@example.net"]]
        assert (mail["From"], mail["Subject"]) == ("gw1@example.net", "[clamproxy gw1] This is a test")
        assert "notices of this gateway get here" in mail.get_content()
    assert target.name == f"mail to 2 recipients by localhost:{box.port}"


@pytest.mark.parametrize("tls", ["tls", "starttls"])
async def test_a_mail_with_tls_and_login(tls: str, served: ssl.SSLContext, bundle: Path) -> None:
    with mail_server(**{tls: served}, login=True) as box:
        assert await deliver(by_mail(box, bundle, tls=tls, **LOGIN), TEST) is None
        assert (len(box.mails), box.users) == (1, [USER])


@pytest.mark.parametrize("tls", ["tls", "starttls"])
async def test_a_certificate_that_is_not_trusted(tls: str, served: ssl.SSLContext) -> None:
    with mail_server(**{tls: served}, login=True) as box:
        assert "certificate verify failed" in await failure(by_mail(box, tls=tls, **LOGIN))
        assert box.mails == []


async def test_a_certificate_for_another_name(authority: trustme.CA, bundle: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example.net").configure_cert(context)
    with mail_server(starttls=context) as box:
        assert "certificate verify failed" in await failure(by_mail(box, bundle, tls="starttls"))


async def test_a_server_without_starttls_gets_neither_password_nor_mail() -> None:
    with mail_server() as box:
        assert "STARTTLS" in await failure(by_mail(box, tls="starttls", **LOGIN))
        assert box.mails == []


async def test_a_wrong_password_is_told_without_it(served: ssl.SSLContext, bundle: Path) -> None:
    with mail_server(starttls=served, login=True) as box:
        wrong = {**LOGIN, "password": "a wrong secret"}
        told = await failure(by_mail(box, bundle, tls="starttls", **wrong))
        assert told == "the server answered 535 5.7.8 to the login"


async def test_a_server_that_refuses() -> None:
    with mail_server() as box:
        box.answers = ["451 4.3.0 try again later"]
        target = by_mail(box)
        assert await failure(target) == "the server answered 451 4.3.0 to the mail"
        assert await deliver(target, TEST) is None
        box.refused = {"a@example.net"}
        assert await failure(target) == "1 of 1 recipient refused, number 1 with 550 5.1.1"


@pytest.mark.parametrize("farewell", ["250 ok", "421 4.3.2 busy", "500 what?"])
async def test_what_a_server_says_in_the_end_changes_nothing(farewell: str) -> None:
    with mail_server() as box:
        box.farewell = farewell
        assert await deliver(by_mail(box), TEST) is None
        box.answers = ["554 5.6.0 no"]
        assert await failure(by_mail(box)) == "the server answered 554 5.6.0 to the mail"
        assert len(box.mails) == 1


async def test_some_recipients_are_refused() -> None:
    with mail_server() as box:
        box.refused = {"gone@example.net"}
        remark = await deliver(by_mail(box, recipients=["a@example.net", "gone@example.net"]), TEST)
        assert remark == "1 of 2 recipients refused, number 2 with 550 5.1.1"
        assert box.recipients == [["a@example.net"]]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("greeting", [b"", b"220 hello\r\n"])
async def test_a_silent_mail_server(greeting: bytes) -> None:
    with silent_server(greeting) as port:
        assert "timed out" in await failure(by_mail(Mailbox(port)))


async def test_a_deadline_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_module, "STEP", 60.0)
    monkeypatch.setattr(targets_module, "DEADLINE", 0.5)
    with silent_server() as port:
        assert "it took longer" in await failure(by_mail(Mailbox(port)))


async def test_nobody_waits_for_a_mail_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_module, "STEP", 60.0)
    with silent_server() as port:
        task = asyncio.create_task(deliver(by_mail(Mailbox(port)), TEST))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# By webhook


async def test_a_post() -> None:
    with webhook_server() as hook:
        target = by_webhook(f"{hook.url}/hook/{SECRET}?sig=x", token=TOKEN)
        assert await deliver(target, TEST) is None
        assert hook.posts == [TEST.to_json()]
        assert hook.paths == [f"/hook/{SECRET}?sig=x"]
        assert hook.headers[0]["authorization"] == f"Bearer {TOKEN}"
        assert hook.headers[0]["content-type"] == "application/json"
        assert target.name == f"json webhook at {hook.url}"


@pytest.mark.parametrize(("form", "key"), [("slack", "text"), ("teams", "attachments"), ("json", "alerts")])
async def test_the_form(form: str, key: str) -> None:
    with webhook_server() as hook:
        hook.answers = [202]  # as Teams answers
        await deliver(by_webhook(f"{hook.url}/x", form=form), TEST)
        assert key in hook.posts[0]
        assert "authorization" not in hook.headers[0]


async def test_a_failure_and_then_success() -> None:
    with webhook_server() as hook:
        hook.answers = [500]
        target = by_webhook(f"{hook.url}/{SECRET}")
        assert await failure(target) == "the server answered 500 Internal Server Error"
        assert await deliver(target, TEST) is None
        assert len(hook.posts) == 2


async def test_a_server_that_quotes_secrets() -> None:
    with webhook_server() as hook:
        hook.answers, hook.body = [404, 299], b"no such page: VERYSECRET; 0123456789abcdef"
        target = by_webhook(f"{hook.url}/{SECRET}?sig=x", token=TOKEN)
        assert await failure(target) == "the server answered 404 Not Found"
        assert await deliver(target, TEST) is None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"%s\r\n", "the server answered with something other than HTTP"),
        (b"HTTP/1.1 404 %s\r\nno field: %s\r\n", "the server answered 404 Not Found"),
    ],
)
async def test_what_is_no_http(answer: bytes, told: str, caplog: pytest.LogCaptureFixture) -> None:
    """Some servers send back what they don't understand, and urllib3 logs URLs."""
    caplog.set_level("DEBUG")
    with silent_server(answer.replace(b"%s", f"POST /{SECRET}".encode()) + b"\r\n") as port:
        assert await failure(by_webhook(f"http://127.0.0.1:{port}/{SECRET}")) == told
    assert "VERYSECRET" not in caplog.text


async def test_redirects_are_not_followed() -> None:
    with webhook_server() as hook:
        hook.answers = [307]
        assert "redirects are not followed" in await failure(by_webhook(f"{hook.url}/{SECRET}"))
        assert len(hook.posts) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_silent_web_server() -> None:
    with webhook_server() as hook:
        hook.answers = [0]
        told = await failure(by_webhook(f"{hook.url}/{SECRET}"))
        assert "timed out" in told
        assert SECRET not in told
        hook.over.set()


async def test_https(served: ssl.SSLContext, bundle: Path) -> None:
    with webhook_server(served) as hook:
        assert "certificate verify failed" in await failure(by_webhook(f"{hook.url}/{SECRET}"))
        assert hook.posts == []
        assert await deliver(by_webhook(f"{hook.url}/{SECRET}", bundle), TEST) is None


async def test_through_the_proxy_if_it_should(served: ssl.SSLContext, bundle: Path) -> None:
    with webhook_server(served) as hook, ConnectProxy() as proxy:
        url = f"{hook.url}/x"
        await deliver(by_webhook(url, bundle, proxy.url), TEST)
        assert proxy.tunnels == []
        await deliver(by_webhook(url, bundle, proxy.url, through_proxy=True), TEST)
        assert proxy.tunnels == [hook.url.partition("://")[2]]


async def test_nobody_there() -> None:
    with webhook_server() as hook:
        url = hook.url
    told = await failure(by_webhook(f"{url}/{SECRET}"))
    assert "Connection refused" in told
    assert SECRET not in told
