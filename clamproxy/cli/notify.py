"""``clamproxy notify``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import click

from clamproxy.cache.store import Store
from clamproxy.cli.common import (
    config_option,
    fail,
    opened_store,
    settings_of,
    shown_trouble,
    write_out,
)
from clamproxy.config.settings import Settings
from clamproxy.notices.episodes import Pace
from clamproxy.notices.notice import Notice
from clamproxy.notices.report import gateway_name, read_report
from clamproxy.notices.rules import RULES, Rule, find_alerts
from clamproxy.notices.targets import DeliveryError, NoticeTarget, deliver, targets_of
from clamproxy.readable import shown_span, shown_time
from clamproxy.state import state_directory

_BY_GATEWAY = "ClamproxyPeerDown"
"""The rule that only the running gateway can check."""
_TEST_EXIT_CODES = """\b
Exit codes:
  0  every target took the notice
  1  a target didn't, or none is configured
  2  the command line is wrong
"""


@click.group(invoke_without_command=True, subcommand_metavar="[test]")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def notify(context: click.Context, config: str | None, as_json: bool) -> None:
    """List what there are notices about, and what is the case now.

    There is a notice when something begins, is repeated while it lasts, and another one when it is over,
    to the mail server and the webhooks of the configuration. This works while the proxy runs, and without
    any of them.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("with a command, only --config is allowed here.")
        return
    settings = settings_of(config)
    try:
        with opened_store(settings.cache.directory, state=state_directory(settings)) as store:
            values = _present(store, settings)
    except OSError as error:
        fail(shown_trouble(settings.cache.directory, error))
    write_out(json.dumps(values, indent=2) + "\n" if as_json else _as_text(values, settings))


@notify.command(epilog=_TEST_EXIT_CODES, short_help="Send a test notice to every target.")
@config_option
@click.pass_context
def test(context: click.Context, config: str | None) -> None:
    """Send a test notice to every target, and say for each whether it worked."""
    settings = settings_of(config or (context.parent.params["config"] if context.parent else None))
    targets = targets_of(settings)
    if not targets:
        fail("there is no target: set notify.webhooks, or mail.server and mail.recipients.")
    outcomes = asyncio.run(_send_all(targets, Notice(gateway_name(), time.time())))
    for target, (worked, remark) in zip(targets, outcomes, strict=True):
        word = "sent" if worked else "failed"
        write_out(f"{target.name}: {word}{f': {remark}' if remark else ''}\n")
    context.exit(0 if all(worked for worked, _ in outcomes) else 1)


async def _send_all(targets: list[NoticeTarget], notice: Notice) -> list[tuple[bool, str | None]]:
    return await asyncio.gather(*(_send(target, notice) for target in targets))


async def _send(target: NoticeTarget, notice: Notice) -> tuple[bool, str | None]:
    """Whether a target took the notice, and what went wrong."""
    try:
        return True, await deliver(target, notice)
    except DeliveryError as error:
        return False, str(error)


def _present(store: Store, settings: Settings) -> dict[str, Any]:
    """The rules with their alerts, and the targets. Blocks."""
    # Not at the top: `notify test` needs no pages.
    from clamproxy.web.stored import stored_figures

    saved = read_report(store.records, settings)
    known = {(one["name"], one["subject"]): one for one in saved["alerts"]}
    found = [
        {"name": alert.rule.name, "subject": alert.subject or None, "text": alert.text}
        for alert in find_alerts(stored_figures(store, settings))
    ]
    found += [one for one in saved["alerts"] if one["name"] == _BY_GATEWAY]
    pace = Pace(settings.notify.after, settings.notify.repeat)
    alerts = {rule.name: [_alert(one, known) for one in found if one["name"] == rule.name] for rule in RULES}
    return {
        "rules": [_rule(rule, pace, settings, alerts[rule.name]) for rule in RULES],
        "targets": saved["targets"],
    }


def _rule(rule: Rule, pace: Pace, settings: Settings, alerts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": rule.name,
        "severity": rule.severity.value,
        "title": rule.title,
        "remedy": rule.remedy,
        "after": pace.ripens(rule),
        "ignored": rule.name in settings.notify.ignore,
        "alerts": alerts,
    }


def _alert(found: Mapping[str, Any], known: Mapping[tuple[str, str | None], Any]) -> dict[str, Any]:
    saved = known.get((found["name"], found["subject"]))
    return {
        "subject": found["subject"],
        "text": found["text"],
        "since": saved["since"] if saved else None,
        "notified": saved["notified"] if saved else 0,
    }


def _as_text(values: Mapping[str, Any], settings: Settings) -> str:
    lines = []
    for rule in values["rules"]:
        state = "ignored" if rule["ignored"] else "yes" if rule["alerts"] else "no"
        lines.append(f"{state:8}{rule['name']:27}{rule['severity']:10}{rule['title']}")
        for alert in rule["alerts"]:
            subject = f"{alert['subject']}: " if alert["subject"] else ""
            lines.append(f"        {subject}{alert['text']}")
            lines.append(f"        {_told(alert, rule)}")
    targets = values["targets"]
    lines.append("")
    if not targets:
        lines.append("Nobody is told: notify.webhooks is empty, and mail.server is null.")
    lines += [f"Notices go to: {target['name']}{_outcome(target)}" for target in targets]
    if targets:
        lines.append(f"They are repeated every {shown_span(settings.notify.repeat)}.")
    return "\n".join(lines) + "\n"


def _told(alert: Mapping[str, Any], rule: Mapping[str, Any]) -> str:
    if alert["since"] is None:
        return f"not seen by a running gateway yet; there is a notice after {shown_span(rule['after'])}"
    since = f"since {shown_time(alert['since'])} ({shown_span(time.time() - alert['since'])})"
    if alert["notified"]:
        return f"{since}; notice sent"
    return f"{since}; there is a notice after {shown_span(rule['after'])}"


def _outcome(target: Mapping[str, Any]) -> str:
    if target["attempted_at"] is None:
        return ""
    at = shown_time(target["attempted_at"])
    if target["failures"]:
        return f" (failed, {target['failures']} in a row, last at {at}: {target['reason']})"
    return f" (last sent {at}{': ' + target['reason'] if target['reason'] else ''})"
