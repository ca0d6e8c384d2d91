"""The configuration: what counts, and the one line that says what is wrong."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest
import trustme
import yaml
from pydantic import ValidationError

from clamproxy.config import loading as loading_module
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.config.settings import ServingSection, Settings
from clamproxy.config.units import GIB, MIB, HttpProxy, Nameserver
from tests.support.fixtures import Write

SHIPPED = Path(__file__).parents[2] / "proxy.yaml"
# The shipped file


def test_the_shipped_file_holds_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHIPPED.parent)
    assert load_settings(SHIPPED, {}) == load_settings(None, {}) == Settings()


def test_the_shipped_file_has_every_key() -> None:
    shipped = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    defaults = Settings().model_dump()
    assert {name: keys and list(keys) for name, keys in shipped.items()} == {
        name: keys and list(keys) for name, keys in defaults.items()
    }


def test_the_shipped_file_explains_every_key() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    for section, keys in yaml.safe_load(text).items():
        block = re.split(rf"^{section}:\n", text, flags=re.MULTILINE)[-1]
        listed = keys if isinstance(keys, dict) else {section: keys}
        for key, value in listed.items():
            indent, name = ("  ", f"{section}__{key}") if listed is keys else ("", section)
            comment = re.search(rf"((?:^{indent}#.*\n)+){indent}{key}:", block, re.MULTILINE)
            assert comment, f"{section}.{key} has no comment"
            *meaning, default, environment = (line.strip("# ") for line in comment[1].splitlines())
            assert meaning
            assert yaml.safe_load(default.removeprefix("Default: ")) == value
            assert environment == f"Environment: CLAMPROXY_{name.upper()}"


def test_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_settings(None, {})
    assert config.cache.model_dump() == {
        "directory": tmp_path / "cache",
        "size_limit": 4 * GIB,
        "keep_cdiffs": 120,
    }
    assert config.upstream.model_dump() == {
        "url": "https://database.clamav.net",
        "address": (),
        "proxy": None,
        "proxy_auth": "basic",
        "ca_bundle": None,
        "cvd_certs_directory": None,
        "connect_timeout": 10.0,
        "read_timeout": 30.0,
        "offline": False,
        "user_agent": None,
        "rate_limit": None,
    }
    assert config.versions.model_dump() == {
        "dns": True,
        "domain": "current.cvd.clamav.net",
        "nameservers": (),
        "refresh": 300.0,
        "doh": None,
    }
    assert config.serving.databases == ("main", "daily", "bytecode", "safebrowsing", "test", "valhalla")
    assert (config.serving.prefetch, config.serving.other_names) == ("cdiffs", "refuse")
    assert config.delta.model_dump() == {
        "enabled": True,
        "max_patches": 90,
        "max_share": 0.1,
        "renew_after": 30,
    }


# What counts


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "cache:\nserving:\n", "\ufeffcache: {}\n"])
def test_nothing_said_means_the_defaults(write: Write, text: str) -> None:
    path = write(text)
    config = load_settings(path, {})
    assert config.cache.directory == path.parent / "cache"
    assert config.serving == ServingSection()


def test_values_of_the_file(write: Write, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    path = write("""
cache: {directory: store/objects, size_limit: 1MiB, keep_cdiffs: 0}
upstream: {proxy: "http://user:secret@proxy:3128", ca_bundle: ca.pem, read_timeout: 1min30s}
versions: {dns: false, nameservers: [192.0.2.1, "[::1]:5353"]}
serving: {hosts: [Mirror.Example.com], clients: [192.0.2.0/24], pass_through: ["*.example.com"]}
delta: {max_share: 0.25}
""")
    config = load_settings(path, {})
    assert config.cache.directory == tmp_path / "store" / "objects"
    assert (config.cache.size_limit, config.cache.keep_cdiffs) == (MIB, 0)
    assert config.upstream.proxy == HttpProxy("http://proxy:3128", "user:secret")
    assert config.upstream.ca_bundle == tmp_path / "ca.pem"
    assert config.upstream.read_timeout == 90.0
    assert config.versions.nameservers == (Nameserver("192.0.2.1"), Nameserver("::1", 5353))
    assert config.serving.hosts == ("mirror.example.com",)
    assert config.serving.clients == (ipaddress.ip_network("192.0.2.0/24"),)
    assert config.delta.max_share == 0.25
    assert "secret" not in repr(config) + str(config)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("CACHE__SIZE_LIMIT", "2GiB", 2 * GIB),
        ("CACHE__KEEP_CDIFFS", "7", 7),
        ("CACHE__DIRECTORY", "/var/cache/clamproxy", Path("/var/cache/clamproxy")),
        ("UPSTREAM__URL", "http://127.0.0.1:1234/", "http://127.0.0.1:1234"),
        ("UPSTREAM__PROXY", "null", None),
        ("UPSTREAM__PROXY", "", None),
        ("VERSIONS__DNS", "false", False),
        ("SERVING__DATABASES", "[main, daily]", ("main", "daily")),
        ("SERVING__PASS_THROUGH", '["*.example.com"]', ("*.example.com",)),
        ("DELTA__MAX_SHARE", "5%", 0.05),
    ],
)
@pytest.mark.parametrize("text_of_file", ["", "cache: {size_limit: 1GiB}\nupstream: {proxy: 'http://p:1'}\n"])
def test_the_environment_wins(
    write: Write, text_of_file: str, variable: str, text: str, value: object
) -> None:
    config = load_settings(
        write(text_of_file), {f"CLAMPROXY_{variable}": text, "CLAMPROXY_PASSWORD": "[", "A__B": "["}
    )
    section, key = variable.lower().split("__")
    assert getattr(getattr(config, section), key) == value


def test_relative_paths_of_the_environment_start_at_the_file(write: Write, tmp_path: Path) -> None:
    config = load_settings(write(""), {"CLAMPROXY_CACHE__DIRECTORY": "elsewhere"})
    assert config.cache.directory == tmp_path / "elsewhere"


def test_settings_are_frozen() -> None:
    config = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        config.cache.keep_cdiffs = 1  # type: ignore[misc]
    assert hash(config) == hash(Settings())


# Hosts and clients


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("database.clamav.net", True),
        ("DATABASE.ClamAV.net.", True),
        ("db.local.clamav.net", True),
        ("db.de.clamav.net", True),
        ("db.de.ipv6.clamav.net", False),
        ("clamav.net", False),
        ("www.clamav.net", False),
        ("database.clamav.net.example.com", False),
        ("", False),
    ],
)
def test_clamav_hosts(host: str, expected: bool) -> None:
    assert ServingSection().is_clamav_host(host) is expected


def test_pass_through() -> None:
    serving = ServingSection(pass_through=("www.example.com", "*.example.org"))
    names = ["www.example.com", "example.com", "example.org", "a.example.org", "A.b.example.org.", "x.org"]
    assert [name for name in names if serving.passes_through(name)] == [names[0], names[3], names[4]]
    assert not any(ServingSection().passes_through(name) for name in names)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.255.0.1", True),
        ("172.32.0.1", False),
        ("100.64.1.1", True),
        ("8.8.8.8", False),
        ("::ffff:192.168.1.1", True),
        ("::ffff:8.8.8.8", False),
        ("fe80::1%eth0", True),
        ("fd12::1", True),
        ("2001:db8::1", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_clients(address: str, expected: bool) -> None:
    assert ServingSection().admits(address) is expected


# Where the file is


def test_find_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, local, other = tmp_path / "etc.yaml", tmp_path / "proxy.yaml", tmp_path / "other.yaml"
    monkeypatch.setattr(loading_module, "SYSTEM_CONFIG", system)
    assert find_config(None, tmp_path) is None
    system.touch()
    assert find_config(None, tmp_path) == system
    local.touch()
    assert find_config(None, tmp_path) == local
    other.touch()
    assert find_config("other.yaml", tmp_path) == find_config(str(other), tmp_path) == other


@pytest.mark.parametrize("explicit", ["missing.yaml", "", ".", "a\0b"])
def test_an_explicit_file_must_exist(tmp_path: Path, explicit: str) -> None:
    (tmp_path / "proxy.yaml").touch()
    with pytest.raises(ConfigurationError, match=r"(no such|not a) configuration file"):
        find_config(explicit, tmp_path)
