"""``clamproxy config``: what counts, whether it is valid, and the schema for editors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from clamproxy.cli.config import config
from clamproxy.config.effective import effective_values, to_yaml
from clamproxy.config.loading import ConfigurationError, load_settings
from clamproxy.config.schema import json_schema
from clamproxy.config.settings import Settings
from clamproxy.config.units import MASK

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "proxy.yaml"
HASH = "scrypt:32768:8:1$Kfg3oPQ2vTqnhu5W$" + "0a1b" * 32
SECRET = """
upstream: {proxy: "http://ann:hun%40ter2@proxy.example.com:3128"}
access: {users: ["scanner:HASH"]}
status: {token: 0123456789abcdefXYZ}
""".replace("HASH", HASH)

_VALIDATOR = Draft202012Validator(json_schema())

type Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command where proxy.yaml has the given text."""
    for name in os.environ:
        if name.startswith("CLAMPROXY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str, text: str | None = None, **environ: str) -> Result:
        if text is not None:
            (tmp_path / "proxy.yaml").write_text(text, encoding="utf-8")
        result = CliRunner(env=environ).invoke(config, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run_command


def line_of(result: Result, key: str) -> tuple[str, str]:
    """The value and the origin of the first such key."""
    line = next(line for line in result.stdout.splitlines() if line.strip().startswith(f"{key}:"))
    value, _, origin = line.partition("  # ")
    return value.partition(":")[2].strip(), origin


# show


def test_each_value_tells_where_it_came_from(run: Run) -> None:
    result = run(
        "show",
        text="# mine\ncache:\n  keep_cdiffs: 7\nupstream: {read_timeout: 90}\nversions: {refresh: 1h}\n",
        CLAMPROXY_VERSIONS__REFRESH="90",
        CLAMPROXY_FLEET__KEEP="36h",
    )
    assert line_of(result, "size_limit") == ("4GiB", "default")
    assert line_of(result, "keep_cdiffs") == ("7", "proxy.yaml:3")
    assert line_of(result, "read_timeout") == ("1min30s", "proxy.yaml:4")
    assert line_of(result, "refresh") == ("1min30s", "CLAMPROXY_VERSIONS__REFRESH")
    assert line_of(result, "keep") == ("1d12h", "CLAMPROXY_FLEET__KEEP")


def test_first_line_names_the_file(run: Run, tmp_path: Path) -> None:
    assert run("show").stdout.startswith("# no configuration file\n")
    assert run("show", text="").stdout.startswith(f"# {tmp_path / 'proxy.yaml'}\n")
    (tmp_path / "other.yaml").touch()
    assert run("show", "--config", "other.yaml").stdout.startswith(f"# {tmp_path / 'other.yaml'}\n")


def test_every_key_is_shown(run: Run) -> None:
    shown = yaml.safe_load(run("show").stdout)
    assert {name: keys and list(keys) for name, keys in shown.items()} == {
        name: section and list(type(section).model_fields) for name, section in Settings()
    }


def test_lines_of_keys_that_are_merged_in(run: Run) -> None:
    """YAML's << takes keys over from elsewhere: theirs is the line."""
    result = run("show", text="cache: &x\n  size_limit: 2MiB\nfeeds:\n  <<: *x\n  hosts: []\n")
    assert "  size_limit: 2MiB                            # proxy.yaml:2\n  stale_if" in result.stdout


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize("by", ["file", "environment"])
def test_secrets_are_masked(run: Run, form: list[str], by: str) -> None:
    if by == "file":
        result = run("show", *form, text=SECRET)
    else:
        result = run(
            "show",
            *form,
            CLAMPROXY_UPSTREAM__PROXY="http://ann:hun%40ter2@proxy.example.com:3128",
            CLAMPROXY_ACCESS__USERS=f'["scanner:{HASH}"]',
            CLAMPROXY_STATUS__TOKEN="0123456789abcdefXYZ",
        )
    assert result.exit_code == 0
    for secret in ("hun", "ter2", "scrypt", "Kfg3", "0a1b", "0123456789", "XYZ"):
        assert secret not in result.output
    assert f"http://ann:{MASK}@proxy.example.com:3128" in result.stdout
    assert f"scanner:{MASK}" in result.stdout


def test_a_mask_is_no_value_for_a_token_or_a_user(tmp_path: Path) -> None:
    """What was shown and is used as a file does not let anybody in."""
    for text in (f"status: {{token: '{MASK}'}}", f"access: {{users: ['scanner:{MASK}']}}"):
        path = tmp_path / "proxy.yaml"
        path.write_text(text)
        with pytest.raises(ConfigurationError):
            load_settings(path, {})


def test_json_has_plain_numbers(run: Run) -> None:
    result = run("show", "--json", text="delta: {max_share: 25%}\nstatus: {listen: '[::1]:99'}\n")
    shown = json.loads(result.stdout)
    assert shown["file"].endswith("/proxy.yaml")
    values = shown["settings"]
    assert values["cache"]["size_limit"] == {"value": 2**32, "source": "default", "where": "default"}
    assert values["upstream"]["connect_timeout"]["value"] == 10.0
    assert values["delta"]["max_share"] == {"value": 0.25, "source": "file", "where": "proxy.yaml:1"}
    assert values["status"]["listen"]["value"] == "[::1]:99"
    assert values["upstream"]["proxy"]["value"] is None
    assert run("show", "--json", CLAMPROXY_LOG__FORMAT="json").stdout.count('"source": "environment"') == 1


def test_what_is_shown_means_the_same(run: Run, tmp_path: Path) -> None:
    """It is a proxy.yaml that can be used."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    result = run(
        "show",
        text="""
cache: {directory: "a b/\u00fc # c", size_limit: 1234567, keep_cdiffs: 0}
upstream: {url: "HTTPS://[::1]:444/x/", ca_bundle: ca.pem, connect_timeout: 0.1, user_agent: "x # y: z"}
versions: {nameservers: [192.0.2.1, "[::1]:5353", "::2"], refresh: 1.5ms}
serving: {hosts: ["db.*.Example.com"], clients: ["fd00::/8", 10.1.2.3], pass_through: ["*.example.com"]}
delta: {max_share: 12.34%}
listen: {proxy: ["192.0.2.1:8080", "[::1]:8080"], reverse: 8000, dns: "*:53"}
access: {idle_timeout: 2.5s, max_request_line: 1000}
fleet_store: s3://bucket/prefix
status: {host: null, listen: null}
""",
    )
    (tmp_path / "shown.yaml").write_text(result.stdout)
    expected = load_settings(tmp_path / "proxy.yaml", {})
    assert load_settings(tmp_path / "shown.yaml", {}) == expected


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_numbers_are_shown_exactly(tmp_path: Path, data: st.DataObject) -> None:
    seconds = data.draw(st.floats(1e-9, 3600) | st.integers(1, 3600) | st.decimals(1, 3600, places=3))
    share = data.draw(st.floats(0, 1))
    size = data.draw(st.integers(2**20, 2**63 - 1))
    path = tmp_path / "proxy.yaml"
    given_values = {
        "cache": {"size_limit": size},
        "upstream": {"read_timeout": float(seconds)},
        "delta": {"max_share": share},
    }
    path.write_text(yaml.safe_dump(given_values))
    again = tmp_path / "again.yaml"
    again.write_text("\n".join(to_yaml(effective_values(path, {}))))
    assert load_settings(again, {}) == load_settings(path, {})


def test_show_of_a_wrong_file(run: Run) -> None:
    result = run("show", text="cache: {size: 1}\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1


# check


def test_check(run: Run, tmp_path: Path) -> None:
    assert "defaults are valid" in run("check").stdout
    result = run("check", text="cache:\n")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'proxy.yaml'}: valid\n")
    result = run("check", text="cache: {size_limit: much}\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("clamproxy: ")
    assert "cache.size_limit is 'much'; expected" in result.stderr
    assert result.stderr.count("\n") == 1
    result = run("check", "--config", "nowhere.yaml")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    result = run("check", text="", CLAMPROXY_CACHE__SIZE_LIMIT="1")
    assert result.exit_code == 1
    assert "CLAMPROXY_CACHE__SIZE_LIMIT" in result.stderr


# schema


def test_shipped_schema_is_current(run: Run) -> None:
    """To renew it: clamproxy config schema > contrib/proxy.schema.json."""
    result = run("schema")
    assert result.stderr == ""
    shipped = (ROOT / "contrib" / "proxy.schema.json").read_text()
    assert json.loads(shipped) == json.loads(result.stdout)  # the order of keys depends on pydantic's version


def test_schema_describes_every_key_with_its_default() -> None:
    Draft202012Validator.check_schema(_VALIDATOR.schema)
    schema: Any = _VALIDATOR.schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    shipped = yaml.safe_load(SHIPPED.read_text())
    for name, section in Settings():
        if name == "fleet_store":
            entry = schema["properties"][name]
            assert (entry["default"], entry["description"]) == (None, Settings.model_fields[name].description)
            continue
        described = schema["$defs"][type(section).__name__]["properties"]
        assert list(described) == list(type(section).model_fields)
        for key, entry in described.items():
            assert entry["description"] == type(section).model_fields[key].description
            expected = shipped[name][key]
            is_path = key == "directory" and expected is not None
            assert entry["default"] == (expected.removeprefix("./") if is_path else expected)


@pytest.mark.parametrize(
    "path",
    [SHIPPED, *sorted(ROOT.glob("contrib/**/proxy.yaml"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_shipped_files_validate(path: Path) -> None:
    _VALIDATOR.validate(yaml.safe_load(path.read_text()))
    load_settings(path, {})


RIGHT = [
    "fleet_store:",
    "fleet_store: s3://site-a/clamproxy/eu-1/",
    "fleet_store: gs://bucket",
    "fleet_store: az://container/prefix",
    "cache:",
    "cache: {}",
    "{cache: {size_limit: 1048576}, feeds: {size_limit: ' 1.5 gib '}, access: {max_header_size: 2k}}",
    "upstream: {proxy: 'http://user:p%40ss@proxy:3128', url: 'HTTPS://mirror.example.com/a/b/'}",
    "upstream: {connect_timeout: 1min 30 s, read_timeout: 0.5}",
    "upstream: {user_agent: 'ClamAV/1.4.3 (OS: Linux)'}",
    "versions: {nameservers: [192.0.2.1, '192.0.2.1:53', '[2001:db8::1]:53', '2001:db8::1']}",
    "versions: {nameservers: ['[::1]', 'fe80::1%eth0']}",
    "versions: {refresh: 250ms, doh: 'https://[2001:db8::1]/dns-query'}",
    "versions: {refresh: 5m, domain: Current.Example.com.}",
    "versions: {refresh: 0.5d}",
    "serving: {hosts: ['*.example.com', 'db.*.clamav.net', localhost], databases: [main]}",
    "serving: {clients: ['::1', 10.0.0.0/255.0.0.0]}",
    "serving: {pass_through: ['*.example.org', www.example.com], prefetch: none, other_names: forward}",
    "delta: {max_share: 100%, max_patches: 1}",
    "delta: {max_share: 1}",
    "status: {host: null, listen: null, token: null}",
    "status: {listen: '[::]:8081', token: 0123456789abcdef}",
    "log: {format: json}",
    SECRET,
]

WRONG = [
    "fleet_store: file:///tmp/store",
    "fleet_store: memory:///",
    "fleet_store: https://s3.example.com/bucket",
    "fleet_store: s3://",
    "fleet_store: s3://key:secret@bucket/prefix",
    "fleet_store: s3://bucket/a/../b",
    "fleet_store: s3://bucket/a//b",
    "fleet_store: s3://bucket/prefix?region=x",
    "fleet_store: {url: s3://bucket}",
    "fleet_store: 5",
    "[]",
    "{cash: {}}",
    "cache: {sizelimit: 1GiB}",
    "cache: {directory: 5}",
    "cache: {directory: ''}",
    "cache: {size_limit: 4 gigs}",
    "cache: {size_limit: 1000}",
    "cache: {size_limit: null}",
    "cache: {keep_cdiffs: '7'}",
    "cache: {keep_cdiffs: -1}",
    "cache: {keep_cdiffs: true}",
    "cache: 5",
    "upstream: {url: ftp://example.com}",
    "upstream: {url: 'https://user:password@example.com'}",
    "upstream: {url: 'https://example.com/?query'}",
    "upstream: {proxy: proxy.example.com}",
    "upstream: {connect_timeout: soon}",
    "upstream: {connect_timeout: ''}",
    "upstream: {connect_timeout: 0}",
    "upstream: {connect_timeout: 5000}",
    "upstream: {connect_timeout: 5s 3min}",
    "upstream: {offline: 'yes'}",
    'upstream: {user_agent: "a\\nb"}',
    "versions: {nameservers: 192.0.2.1}",
    "versions: {nameservers: [ns1.example.com]}",
    "versions: {domain: 'a b'}",
    "serving: {hosts: []}",
    "serving: {hosts: database.clamav.net}",
    "serving: {hosts: ['data*.clamav.net']}",
    "serving: {databases: [Main]}",
    "serving: {clients: [lan]}",
    "serving: {pass_through: ['www.*.com']}",
    "serving: {prefetch: some}",
    "delta: {max_share: 2}",
    "delta: {max_share: ten}",
    "access: {users: ['scanner:secret']}",
    "status: {listen: '127.0.0.1'}",
    "status: {listen: 'localhost:8081'}",
    "status: {token: short}",
    "log: {format: xml}",
]


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_accepted_validates(tmp_path: Path, text: str) -> None:
    path = tmp_path / "proxy.yaml"
    path.write_text(text)
    load_settings(path, {})
    _VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_does_not_validate(tmp_path: Path, text: str) -> None:
    path = tmp_path / "proxy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError):
        load_settings(path, {})
    with pytest.raises(ValidationError):
        _VALIDATOR.validate(yaml.safe_load(text))


@given(
    st.sampled_from([("feeds", "size_limit"), ("upstream", "read_timeout"), ("delta", "max_share")]),
    st.from_regex(r"\A ?[0-9.]{1,5} ?([kKmMgGdhst%]?[iBb%]?n?[bBs]? ?[0-9]?s?) ?\Z"),
)
@settings(max_examples=300)
def test_numbers_with_units_that_are_accepted_validate(key: tuple[str, str], text: str) -> None:
    data = {key[0]: {key[1]: text}}
    try:
        Settings.model_validate(data)
    except ValueError:
        return
    assert not list(_VALIDATOR.iter_errors(data))
