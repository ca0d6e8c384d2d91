"""What a notice says, in each form."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from email import message_from_bytes, policy
from typing import Any

import pytest

from clamproxy.notices.episodes import Due, Episode, Stage
from clamproxy.notices.mail import compose
from clamproxy.notices.notice import FORMS, MOST_LINES, Notice, to_slack, to_teams
from clamproxy.readable import shown_span

SINCE, NOW = 1_790_000_000.0, 1_790_007_200.0
NOT_READY = Episode("ClamproxyNotReady", "", "the clock is wrong", SINCE)
PEER = Episode("ClamproxyPeerDown", "gw2:8080", "<!channel> [click](http://evil) & ü", SINCE)
OVER = replace(NOT_READY, missing=NOW - 60, ended=NOW - 60)
TEAMS_LIMIT = 28 * 1024


def notice(*due: Due) -> Notice:
    return Notice("gw1", NOW, due)


BEGUN = notice(Due(NOT_READY, Stage.BEGUN), Due(PEER, Stage.LASTING))


@pytest.mark.parametrize(
    ("made", "subject"),
    [
        (notice(), "[clamproxy gw1] This is a test"),
        (
            notice(Due(NOT_READY, Stage.BEGUN)),
            "[clamproxy gw1] CRITICAL: the gateway can't serve clients",
        ),
        (
            notice(Due(PEER, Stage.LASTING)),
            "[clamproxy gw1] Warning: another gateway doesn't answer (gw2:8080)",
        ),
        (BEGUN, "[clamproxy gw1] CRITICAL: the gateway can't serve clients (and 1 more)"),
        (
            notice(Due(OVER, Stage.OVER)),
            "[clamproxy gw1] Over: the gateway can't serve clients",
        ),
    ],
)
def test_subject(made: Notice, subject: str) -> None:
    assert made.subject == subject


def test_text_says_what_to_do() -> None:
    lines = BEGUN.text().splitlines()
    assert lines[1:3] == [
        "    the clock is wrong",
        "    Its page and /readyz say why: the disk, the clock, or nothing to serve.",
    ]
    assert lines[-2:] == ["-- ", "clamproxy on gw1"]
    assert "Check its service, and fleet.peers." in BEGUN.text()
    assert ", still, since 2026-09-2" in lines[4]
    over = notice(Due(OVER, Stage.OVER)).text()
    assert over.startswith(f"Over: the gateway can't serve clients, after {shown_span(7140)}\n")
    assert "the clock is wrong" not in over


def test_mail() -> None:
    mail = compose(BEGUN, "clamproxy@gw1.example.net", ["a@example.net", "b@example.net"])
    read = message_from_bytes(mail.as_bytes(), policy=policy.SMTP)
    assert read["To"] == "a@example.net, b@example.net"
    assert (read["From"], read["Auto-Submitted"]) == ("clamproxy@gw1.example.net", "auto-generated")
    assert read["Subject"] == BEGUN.subject
    assert read["Message-ID"].endswith("@gw1.example.net>")
    assert read["Date"].datetime.timestamp() == NOW
    assert read.get_content_type() == "text/plain"
    assert read.get_content_charset() == "utf-8"
    assert read.get_content().replace("\r\n", "\n").rstrip("\n") == BEGUN.text()
    head, _, content = mail.as_bytes().partition(b"\r\n\r\n")
    assert max(map(len, head.splitlines())) <= 998  # RFC 5322 2.1.1
    assert max(map(len, content.splitlines())) <= 76  # RFC 2045 6.7


def test_slack_is_not_told_to_call_everybody() -> None:
    text = to_slack(BEGUN)["text"]
    assert "&lt;!channel&gt; [click](http://evil) &amp; ü" in text
    assert "<" not in text
    assert text.startswith("*[clamproxy gw1] CRITICAL")


@pytest.mark.parametrize(
    "text",
    [
        "@channel [update now](http://evil.example/x) ![](http://evil.example/t.png)",
        "` @all *bold* <http://evil.example/x|click> ``",
    ],
)
def test_foreign_text_has_no_meaning_in_a_chat(text: str) -> None:
    """Mattermost and Rocket.Chat read Markdown, and neither looks for it in code."""
    made = notice(Due(replace(PEER, text=text), Stage.BEGUN))
    line = to_slack(made)["text"].splitlines()[2]
    assert re.fullmatch(r" {4}`[^`]+`", line)
    assert not re.search(r"[<>]|@\w", line)


def texts(card: dict[str, Any]) -> list[str]:
    return [inline["text"] for block in card["body"] for inline in block["inlines"]]


def test_teams_gets_an_adaptive_card_without_markdown() -> None:
    message = to_teams(BEGUN)
    (attachment,) = message["attachments"]
    card = attachment["content"]
    assert message["type"] == "message"
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert (card["type"], card["version"]) == ("AdaptiveCard", "1.4")
    # A TextBlock would make a link of [click](http://evil).
    assert {block["type"] for block in card["body"]} == {"RichTextBlock"}
    assert texts(card)[0] == BEGUN.subject
    assert PEER.text in texts(card)


def test_json_is_complete() -> None:
    values = BEGUN.to_json()
    assert {**values, "alerts": len(values["alerts"])} == {
        **{"form": 1, "gateway": "gw1", "at": NOW, "test": False, "subject": BEGUN.subject, "alerts": 2}
    }
    assert values["alerts"][0] == {
        "name": "ClamproxyNotReady",
        "subject": None,
        "stage": "begun",
        "severity": "critical",
        "title": "the gateway can't serve clients",
        "text": "the clock is wrong",
        "remedy": "Its page and /readyz say why: the disk, the clock, or nothing to serve.",
        "since": SINCE,
        "ended": None,
    }
    assert notice().to_json()["test"] is True


@pytest.mark.parametrize("form", FORMS)
def test_many_alerts_fit_into_a_message(form: str) -> None:
    many = notice(
        *(
            Due(replace(PEER, subject=f"gw{n}", text="\N{PARTY POPPER}" * 300), Stage.BEGUN)
            for n in range(240)
        )
    )
    body = json.dumps(FORMS[form](many), ensure_ascii=False).encode()
    if form != "json":
        assert len(body) < TEAMS_LIMIT
        assert f"and {240 - MOST_LINES} more".encode() in body
