"""What a notice says: as text for people, in the forms of Slack and Teams, and as JSON for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clamproxy.notices.episodes import Due, Stage
from clamproxy.notices.rules import RULE_OF, Rule, Severity
from clamproxy.readable import shown_span

FORM = 1
"""Version of the JSON; fields are added without a new one."""
MOST_LINES = 15
"""How many alerts a chat message shows: Teams accepts 28 KiB, Slack 40,000 characters."""

_WORDS = {Severity.CRITICAL: "CRITICAL", Severity.WARNING: "Warning", Severity.INFO: "For information"}
_COLOURS = {Severity.CRITICAL: "attention", Severity.WARNING: "warning", Severity.INFO: "default"}
_SLACK = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "@\N{ZERO WIDTH SPACE}"})
"""Otherwise `<!channel>` in a text would call everybody, and `@channel` in Mattermost and Rocket.Chat."""


@dataclass(frozen=True, slots=True)
class NoticeEntry:
    """What a notice says about one alert."""

    headline: str
    """What is the case, or no longer."""
    when: str
    """Since when, or for how long."""
    details: str
    remedy: str
    """What to do; empty if it is over."""
    severity: Severity | None
    """None if it is over."""

    @property
    def title(self) -> str:
        return f"{self.headline}, {self.when}"


@dataclass(frozen=True, slots=True)
class Notice:
    gateway: str
    """The gateway's name."""
    at: float
    """Unix seconds."""
    due: Sequence[Due] = ()
    """What it is about; nothing if it only tests the way."""

    @property
    def is_test(self) -> bool:
        return not self.due

    @property
    def subject(self) -> str:
        """One line."""
        if self.is_test:
            return f"[clamproxy {self.gateway}] This is a test"
        first, more = self.entries()[0], len(self.due) - 1
        return f"[clamproxy {self.gateway}] {first.headline}{f' (and {more} more)' if more else ''}"

    def entries(self) -> list[NoticeEntry]:
        """What it says, worst first."""
        return [self._entry(one) for one in self.due]

    def text(self) -> str:
        """All of it, for a mail."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.is_test:
            yield "This is a test: notices of this gateway get here."
        for entry in self.entries():
            yield entry.title
            if entry.details:
                yield f"    {entry.details}"
            if entry.remedy:
                yield f"    {entry.remedy}"
            yield ""
        yield f"-- \nclamproxy on {self.gateway}"

    def _entry(self, due: Due) -> NoticeEntry:
        episode, rule = due.episode, RULE_OF[due.episode.rule]
        title = f"{rule.title}{f' ({episode.subject})' if episode.subject else ''}"
        if due.stage is Stage.OVER:
            lasted = shown_span((episode.ended or self.at) - episode.since)
            return NoticeEntry(f"Over: {title}", f"after {lasted}", "", "", None)
        headline = f"{_WORDS[rule.severity]}: {title}"
        still = "still, " if due.stage is Stage.LASTING else ""
        return NoticeEntry(
            headline, f"{still}since {_shown(episode.since)}", episode.text, rule.remedy, rule.severity
        )

    def to_json(self) -> dict[str, Any]:
        """For programs; times are in Unix seconds."""
        return {
            "form": FORM,
            "gateway": self.gateway,
            "at": self.at,
            "test": self.is_test,
            "subject": self.subject,
            "alerts": [self._alert(one, RULE_OF[one.episode.rule]) for one in self.due],
        }

    def _alert(self, due: Due, rule: Rule) -> dict[str, Any]:
        episode = due.episode
        return {
            "name": rule.name,
            "subject": episode.subject or None,
            "stage": due.stage.value,
            "severity": rule.severity.value,
            "title": rule.title,
            "text": episode.text,
            "remedy": rule.remedy,
            "since": episode.since,
            "ended": episode.ended,
        }


def to_slack(notice: Notice) -> dict[str, Any]:
    """The payload of an incoming webhook of Slack; Mattermost and Rocket.Chat take it as well.

    Details may come from outside. They are code, in which none of them sees links, images or markup.
    """
    lines = [f"*{notice.subject.translate(_SLACK)}*"]
    for entry in notice.entries()[:MOST_LINES]:
        lines.append(f"• {entry.title.translate(_SLACK)}")
        if entry.details:
            lines.append(f"    `{entry.details.replace('`', "'").translate(_SLACK)}`")
        if entry.remedy:
            lines.append(f"    {entry.remedy.translate(_SLACK)}")
    return {"text": "\n".join([*lines, *_rest(notice)])}


def to_teams(notice: Notice) -> dict[str, Any]:
    """An Adaptive Card for the trigger "When a Teams webhook request is received" of Workflows.

    Version 1.4 is the newest that all of Teams shows. Text runs show their text as it is; in text blocks,
    what comes from outside could form links.
    """
    body: list[dict[str, Any]] = [_run(notice.subject, size="Medium", weight="Bolder")]
    for entry in notice.entries()[:MOST_LINES]:
        colour = "good" if entry.severity is None else _COLOURS[entry.severity]
        body.append(_run(entry.title, weight="Bolder", color=colour, separator=True))
        body += [_run(text) for text in (entry.details, entry.remedy) if text]
    body += [_run(line) for line in _rest(notice)]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "body": body,
    }
    attachment = {
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": None,
        "content": card,
    }
    return {"type": "message", "attachments": [attachment]}


FORMS: Mapping[str, Callable[[Notice], dict[str, Any]]] = {
    "slack": to_slack,
    "teams": to_teams,
    "json": Notice.to_json,
}
"""What is posted, by `form` of the webhook."""


def _shown(at: float) -> str:
    """A moment with its time zone: who reads it may be in another one."""
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(at))


def _rest(notice: Notice) -> list[str]:
    left = len(notice.due) - MOST_LINES
    return [f"… and {left} more: see the gateway's page."] if left > 0 else []


def _run(text: str, *, separator: bool = False, **style: str) -> dict[str, Any]:
    inline = {"type": "TextRun", "text": text, **style}
    return {"type": "RichTextBlock", "inlines": [inline], **({"separator": True} if separator else {})}
