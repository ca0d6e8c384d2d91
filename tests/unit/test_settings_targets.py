"""Where notices go, and other gateways: entries with keys of their own, and with secrets."""

from __future__ import annotations

import json

import pytest

from clamproxy.config.effective import effective_values, to_json, to_yaml
from clamproxy.config.loading import ConfigurationError, load_settings
from tests.support.fixtures import Write

SECRET = "VERY-SECRET-0123456789"
HOOK = f"https://hooks.slack.com/services/{SECRET}?sig={SECRET}"
COMPLETE = f"""
notify: {{webhooks: [{{url: "{HOOK}", form: slack}}], after: 5min, repeat: 12h, ignore: [ClamproxyDiskFull]}}
mail: {{server: mail.example.net, user: gw, password: {SECRET}, recipients: [a@example.net, b@example.net]}}
fleet: {{peers: [{{url: "http://gw2:8080/", token: {SECRET}}}, {{url: "https://gw3"}}]}}
"""
ENTRY = "lines of key: value with"
CLEAR = "expected mail.tls: starttls or tls with it; it must not cross the network in the clear"


def error_of(path: object, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path, environ or {})  # type: ignore[arg-type]
    return str(caught.value)


def test_all_keys(write: Write) -> None:
    settings = load_settings(write(COMPLETE), {})
    (hook,) = settings.notify.webhooks
    assert (hook.url.origin, hook.url.url, hook.form) == ("https://hooks.slack.com", HOOK, "slack")
    assert (settings.notify.after, settings.notify.repeat) == (300.0, 43200.0)
    assert settings.mail.password is not None
    assert settings.mail.password.get_secret_value() == SECRET
    assert [(one.name, one.url) for one in settings.fleet.peers] == [
        ("gw2:8080", "http://gw2:8080"),
        ("gw3", "https://gw3"),
    ]
    assert SECRET not in repr(settings) + str(settings)


def test_secrets_are_not_shown(write: Write) -> None:
    values = effective_values(write(COMPLETE), {})
    shown = "\n".join(to_yaml(values)) + json.dumps(to_json(values))
    assert SECRET not in shown
    assert "https://hooks.slack.com/***" in shown
    assert "http://gw2:8080" in shown


def test_in_the_environment(write: Write) -> None:
    environ = {
        "CLAMPROXY_NOTIFY__WEBHOOKS": f'[{{url: "{HOOK}", form: teams}}]',
        "CLAMPROXY_MAIL__PASSWORD": f"'{SECRET}'",
        "CLAMPROXY_MAIL__USER": "gw",
        "CLAMPROXY_FLEET__PEERS": f'[{{url: "http://gw2:8080", token: {SECRET}}}]',
    }
    settings = load_settings(write(""), environ)
    assert (settings.notify.webhooks[0].form, settings.fleet.peers[0].name) == ("teams", "gw2:8080")
    for name, value in {
        "CLAMPROXY_NOTIFY__WEBHOOKS": HOOK,
        "CLAMPROXY_MAIL__PASSWORD": f"[{SECRET}]",
        "CLAMPROXY_FLEET__PEERS": f"[{SECRET}]",
    }.items():
        told = error_of(write(""), environ | {name: value})
        assert told.startswith(f"environment variable {name}: ")
        assert SECRET not in told


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("notify: {webhooks: HOOK}", "notify.webhooks is '***'; expected a list of entries such as {url: \""),
        ("notify: {webhooks: {HOOK: 1}}", "notify.webhooks is '***'; expected a list of entries"),
        ("notify: {webhooks: [HOOK]}", f"notify.webhooks[0] is '***'; expected {ENTRY} url, form"),
        ("notify: {webhooks: [{url: HOOK}]}", "notify.webhooks[0].form is missing; expected slack, teams or"),
        (
            "notify: {webhooks: [{url: HOOK, form: x}]}",
            "notify.webhooks[0].form is 'x'; expected slack",
        ),
        (
            "notify: {webhooks: [{url: HOOK, form: json, kind: x}]}",
            "unknown key notify.webhooks[0].kind; expected url, form, token, through_proxy",
        ),
        (
            "notify: {webhooks: [{url: HOOK, form: json, HOOK: x}]}",
            "unknown key notify.webhooks[0].***; expected url, form, token, through_proxy",
        ),
        (
            "notify: {webhooks: [{url: 'https://me:SECRET@a/SECRET', form: json}]}",
            "notify.webhooks[0].url is '***'; expected an http:// or https:// URL without credentials",
        ),
        (
            "notify: {webhooks: [{url: 'https://a/***', form: json}]}",
            "notify.webhooks[0].url is '***'; expected an http:// or https:// URL without credentials",
        ),
        (
            "notify: {webhooks: [{url: HOOK, form: json, token: SECRET$}]}",
            "notify.webhooks[0].token is '***'; expected a string of at least 16 characters",
        ),
        ("notify: {after: 2d}", "notify.after is '2d'; expected a duration such as 10min, at most 1d"),
        ("notify: {repeat: 1s}", "notify.repeat is '1s'; expected a duration such as 1d, from 1min to 365d"),
        ("notify: {ignore: [Disk]}", "notify.ignore[0] is 'Disk'; expected a name that `clamproxy notify`"),
        ("mail: {server: a}", "mail.recipients is null; expected at least one mail address, as mail.server"),
        ("mail: {recipients: [a]}", "mail.recipients[0] is 'a'; expected a mail address such as"),
        ("mail: {recipients: ['A <a@b.c>']}", "mail.recipients[0] is '***@b.c>'; expected a mail address"),
        (
            'mail: {recipients: ["a@b.c\\nBcc: d"]}',
            "mail.recipients[0] is '***@b.c\\nBcc: d'; expected a",
        ),
        (
            'mail: {sender: "a@b.c\\r\\nX: y"}',
            "mail.sender is '***@b.c\\r\\nX: y'; expected a",
        ),
        ("mail: {password: SECRET}", "mail.password is '***'; expected null, as mail.user is null"),
        ("mail: {user: a}", "mail.password is null; expected a password for mail.user"),
        ("mail: {user: a, password: 123456}", "mail.password is '***'; expected a string of printable ASCII"),
        ("mail: {user: a, password: '***'}", "mail.password is '***'; expected a string of printable ASCII"),
        ("mail: {server: a, user: a, password: SECRET, tls: none}", f"mail.password is '***'; {CLEAR}"),
        ("mail: {port: 0}", "mail.port is 0; expected a port from 1 to 65535, or null"),
        ("mail: {tls: true}", "mail.tls is true; expected starttls, tls or none"),
        ("fleet: {peers: [HOOK]}", f"fleet.peers[0] is '***'; expected {ENTRY} url, token"),
        ("fleet: {peers: [{url: 'ftp://a'}]}", "fleet.peers[0].url is 'ftp://a'; expected an http:// or"),
        (
            "fleet: {peers: [{url: 'http://me:SECRET@a'}]}",
            "fleet.peers[0].url is 'http://***@a'; expected",
        ),
        ("fleet: {peers: [{url: 'http://a', token: $SECRET}]}", "fleet.peers[0].token is '***'; expected a"),
        (
            "fleet: {peers: [{url: 'http://a'}, {url: 'https://a/'}]}",
            "fleet.peers is a list; expected each gateway once; a is there twice",
        ),
    ],
)
def test_wrong_values(write: Write, text: str, line: str) -> None:
    told = error_of(write(text.replace("HOOK", f'"{HOOK}"').replace("SECRET", SECRET)))
    assert line in told
    assert SECRET not in told


def test_a_password_may_go_to_this_very_machine_in_the_clear(write: Write) -> None:
    mail = "{server: localhost, user: a, password: b, tls: none, recipients: [a@b.c]}"
    assert load_settings(write(f"mail: {mail}"), {}).mail.tls == "none"
