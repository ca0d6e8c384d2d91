"""Configurations that are wrong: the one line that says what, whatever it is."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clamproxy.config import fields, loading
from clamproxy.config.conflicts import find_conflict
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.config.settings import Settings
from clamproxy.config.units import LISTEN
from tests.support.fixtures import Write

SECTIONS = (
    "listen, cache, state, upstream, versions, serving, delta, releases, access, tls, "
    "fleet, status, log, feeds, "
    "files, notify, mail"
)
SIZE = "expected a size such as 4GiB, at least 1 MiB"
COUNT = "expected a whole number, at least 0"
SWITCH = "expected true or false"
TIMEOUT = "expected a duration such as 10s, more than 0 and at most 1h"
URL = "expected an http:// or https:// URL without credentials, query or fragment"
PROXY = "expected an http:// or https:// URL such as http://user:password@proxy:3128, or null"
PORT = 'expected a port, or an IP address and a port such as 192.0.2.1:8080, "[::1]:8080" or "*:8080"'
RATE = (
    "expected a rate such as 2MB/s, at least 16KiB/s, "
    "or a mapping from hours such as Mo-Fr 8-18 to rates, or null"
)
STORE = "expected an s3://, gs:// or az:// URL such as s3://bucket/prefix, without credentials, or null"
DATABASE = "expected a name made of the letters a to z, such as daily"


def error_line(path: Path | None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path, environ or {})
    line = str(caught.value)
    assert line.isprintable()
    return line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("fleet_store: s3:/bucket", f"fleet_store is 's3:/bucket'; {STORE}"),
        ("fleet_store: s3://key:pass@bucket", f"fleet_store is 's3://***@bucket'; {STORE}"),
        ("fleet_store: {url: s3://bucket}", f"fleet_store is a mapping; {STORE}"),
        ("fleet_stor: s3://bucket", "unknown section fleet_stor; did you mean fleet_store?"),
        ("listen: {proxy: here}", f"listen.proxy is 'here'; {PORT}"),
        ("listen: {proxy: 0}", f"listen.proxy is 0; {PORT}"),
        ("listen: {proxy: true}", f"listen.proxy is true; {PORT}"),
        ("listen: {proxy: 'localhost:80'}", f"listen.proxy is 'localhost:80'; {PORT}"),
        ("listen: {proxy: '::1:80'}", f"listen.proxy is '::1:80'; {PORT}"),
        # In YAML 1.1, these are numbers to the base of 60.
        ("listen: {proxy: 1:30}", f"listen.proxy is '1:30'; {PORT}"),
        ("listen: {proxy: -1:30}", f"listen.proxy is '-1:30'; {PORT}"),
        ("cache: {keep_cdiffs: 12:30:00}", f"cache.keep_cdiffs is '12:30:00'; {COUNT}"),
        ("upstream: {connect_timeout: 1:30}", f"upstream.connect_timeout is '1:30'; {TIMEOUT}"),
        ("upstream: {connect_timeout: 1:30.5}", f"upstream.connect_timeout is '1:30.5'; {TIMEOUT}"),
        ("listen: {proxy: {port: 80}}", f"listen.proxy is a mapping; {PORT}"),
        ("listen: {dns: [53, 70000]}", f"listen.dns[1] is 70000; {PORT}"),
        (
            "listen: {proxy:}",
            "listen.proxy is null; "
            'expected a port, an address with a port such as "*:8080", or a list of one or more of them',
        ),
        (
            "listen: {reverse: 8080}",
            "listen.reverse is 8080; expected another port, as *:8080 is already in listen.proxy",
        ),
        (
            "listen: {reverse: '127.0.0.1:53', dns: '0.0.0.0:53'}",
            "listen.dns is '0.0.0.0:53'; expected another port, as 127.0.0.1:53 is already in listen.reverse",
        ),
        (
            "listen: {dns: [53, '*:53']}",
            "listen.dns is a list; expected another port, as *:53 is already in the same list",
        ),
        ("cache: {size_limit: lots}", f"cache.size_limit is 'lots'; {SIZE}"),
        ("cache: {size_limit: 64k}", f"cache.size_limit is '64k'; {SIZE}"),
        ("cache: {size_limit: true}", f"cache.size_limit is true; {SIZE}"),
        ("cache: {size_limit:}", f"cache.size_limit is null; {SIZE}"),
        ("cache: {keep_cdiffs: true}", f"cache.keep_cdiffs is true; {COUNT}"),
        ("cache: {keep_cdiffs: '5'}", f"cache.keep_cdiffs is '5'; {COUNT}"),
        ("cache: {keep_cdiffs: 1.0}", f"cache.keep_cdiffs is 1.0; {COUNT}"),
        ("cache: {keep_cdiffs: -1}", f"cache.keep_cdiffs is -1; {COUNT}"),
        ("cache: {directory: 5}", "cache.directory is 5; expected the path of a directory"),
        (
            "cache: {directory: ~/cache}",
            "cache.directory is '~/cache'; expected a path without ~ or variables",
        ),
        (
            "tls: {directory: $HOME/ca}",
            "tls.directory is '$HOME/ca'; expected a path without ~ or variables",
        ),
        ("cache: {directory: ''}", "cache.directory is ''; expected the path of a directory"),
        ("upstream: {url: 'ftp://a'}", f"upstream.url is 'ftp://a'; {URL}"),
        ("upstream: {url: 'http://me:pw@a'}", f"upstream.url is 'http://***@a'; {URL}"),
        ("upstream: {proxy: 'proxy:3128'}", f"upstream.proxy is 'proxy:3128'; {PROXY}"),
        ("upstream: {proxy: 'ftp://me:pw@a'}", f"upstream.proxy is 'ftp://***@a'; {PROXY}"),
        ("upstream: {proxy: 'http://me:p/@w@a'}", f"upstream.proxy is 'http://***@a'; {PROXY}"),
        ("upstream: {proxy: 'http://me:pw'}", f"upstream.proxy is '***'; {PROXY}"),
        ("upstream: {proxy: {user: me}}", f"upstream.proxy is a mapping; {PROXY}"),
        (
            "upstream: {ca_bundle: /no/such.pem}",
            "upstream.ca_bundle is '/no/such.pem'; expected a readable file of PEM certificates, or null",
        ),
        (
            "upstream: {ca_bundle: proxy.yaml}",
            "upstream.ca_bundle is 'proxy.yaml'; expected a readable file of PEM certificates, or null",
        ),
        (
            "upstream: {ca_bundle: .}",
            "upstream.ca_bundle is '.'; expected a readable file of PEM certificates, or null",
        ),
        (
            "upstream: {address: cdn.example.net}",
            "upstream.address is 'cdn.example.net'; expected an IP address with or without a port "
            'such as 192.0.2.1, 192.0.2.1:8443 or "[2001:db8::1]:443"',
        ),
        (
            "upstream: {proxy_auth: digest}",
            "upstream.proxy_auth is 'digest'; expected basic, ntlm or negotiate",
        ),
        (
            "upstream: {cvd_certs_directory: .}",
            "upstream.cvd_certs_directory is '.'; expected a readable directory with .crt or .pem files of "
            "PEM certificates, or null",
        ),
        (
            "access: {client_ca: .}",
            "access.client_ca is '.'; expected a readable file of PEM certificates, or null",
        ),
        ("upstream: {rate_limit: fast}", f"upstream.rate_limit is 'fast'; {RATE}"),
        ("upstream: {rate_limit: 1KB/s}", f"upstream.rate_limit is '1KB/s'; {RATE}"),
        (
            "upstream: {rate_limit: {Mo-Fr 8-25: 1MB/s}}",
            "upstream.rate_limit is a mapping; "
            "expected hours such as Mo-Fr 8-18 or 22:30-6, or default, instead of Mo-Fr 8-25",
        ),
        (
            "serving: {rate_limit_per_client: {Sa: 1KB/s}}",
            "serving.rate_limit_per_client is a mapping; "
            "expected a rate such as 2MB/s, at least 16KiB/s, or null, for Sa",
        ),
        ("upstream: {url: 'http://a/?x=1'}", f"upstream.url is 'http://a/?***'; {URL}"),
        ("upstream: {connect_timeout: 0}", f"upstream.connect_timeout is 0; {TIMEOUT}"),
        ("upstream: {read_timeout: 2h}", f"upstream.read_timeout is '2h'; {TIMEOUT}"),
        ("upstream: {read_timeout: .inf}", f"upstream.read_timeout is inf; {TIMEOUT}"),
        (
            'upstream: {user_agent: "a\\nb"}',
            "upstream.user_agent is 'a\\nb'; "
            "expected a string such as ClamAV/1.4.3 (OS: Linux, ARCH: x86_64), or null",
        ),
        ("upstream: {offline: 'yes'}", f"upstream.offline is 'yes'; {SWITCH}"),
        ("versions: {dns: 1}", f"versions.dns is 1; {SWITCH}"),
        (
            "versions: {doh: 192.0.2.1}",
            "versions.doh is '192.0.2.1'; "
            "expected the URL of a DNS-over-HTTPS server such as https://192.0.2.1/dns-query, or null",
        ),
        ("versions: {dns: 'yes'}", f"versions.dns is 'yes'; {SWITCH}"),
        (
            "serving: {dns_name: [a]}",
            "serving.dns_name is a list; expected a host name such as current.cvd.example.net, or null",
        ),
        ("versions: {domain: a b}", "versions.domain is 'a b'; expected a host name"),
        (
            "versions: {nameservers: 192.0.2.1}",
            "versions.nameservers is '192.0.2.1'; "
            'expected a list of IP addresses such as [192.0.2.1, "[2001:db8::1]:53"]',
        ),
        (
            "versions: {nameservers: [192.0.2.1, dns]}",
            "versions.nameservers[1] is 'dns'; "
            'expected an IP address with or without a port such as 192.0.2.1 or "[::1]:53"',
        ),
        (
            "serving: {hosts: []}",
            "serving.hosts is an empty list; "
            "expected a list of one or more host names such as [database.clamav.net]",
        ),
        ("serving: {databases: [main, Daily]}", f"serving.databases[1] is 'Daily'; {DATABASE}"),
        (
            "serving: {clients: [10.0.0.0/99]}",
            "serving.clients[0] is '10.0.0.0/99'; "
            'expected a network such as 10.0.0.0/8 or "fd00::/8" (IPv6 in quotes)',
        ),
        (
            "serving: {clients: [10.1.2.3/8]}",
            "serving.clients[0] is '10.1.2.3/8'; expected 10.0.0.0/8, or 10.1.2.3 for that address alone",
        ),
        (
            "serving: {clients: [10.0.0.0/8, 'fd00::1/8']}",
            "serving.clients[1] is 'fd00::1/8'; expected fd00::/8, or fd00::1 for that address alone",
        ),
        (
            "serving: {pass_through: ['*']}",
            "serving.pass_through[0] is '*'; "
            'expected a host name such as www.example.com or "*.example.com" (in quotes)',
        ),
        ("serving: {prefetch: some}", "serving.prefetch is 'some'; expected cdiffs, all or none"),
        ("serving: {other_names: drop}", "serving.other_names is 'drop'; expected refuse or forward"),
        (
            "delta: {max_share: 101%}",
            "delta.max_share is '101%'; expected a share such as 10% or 0.1, at most 100%",
        ),
        ("delta: {max_patches: 0}", "delta.max_patches is 0; expected a whole number, at least 1"),
        ("delta: {enabled: 0}", f"delta.enabled is 0; {SWITCH}"),
    ],
)
def test_impossible_values(write: Write, text: str, line: str) -> None:
    path = write(text)
    assert error_line(path) == f"{path}: {line}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cache: {sizelimit: 1}", "unknown key cache.sizelimit; did you mean cache.size_limit?"),
        ("upstream: {refresh: 1}", "unknown key upstream.refresh; did you mean versions.refresh?"),
        ("CACHE: {}", "unknown section CACHE; did you mean cache?"),
        ("cache: {SIZE_LIMIT: 1GiB}", "unknown key cache.SIZE_LIMIT; did you mean cache.size_limit?"),
        ("cache: {size-limit: 1GiB}", "unknown key cache.size-limit; did you mean cache.size_limit?"),
        ("chache: {}", "unknown section chache; did you mean cache?"),
        ("keep_cdiffs: 1", "unknown section keep_cdiffs; did you mean cache.keep_cdiffs?"),
        ("foo:", f"unknown section foo; expected {SECTIONS}"),
        ("cache: {1: 1}", "unknown key cache.1; expected directory, size_limit, keep_cdiffs"),
        (
            "'http://me:pw@a': 1",
            f"unknown section http://***@a; expected {SECTIONS}",
        ),
        ("cache: 5", "cache is 5; expected a section: lines of key: value"),
        ("cache: [size_limit]", "cache is a list; expected a section: lines of key: value"),
        ("- cache", "the file is a list; expected sections such as cache:"),
        ("cache", "the file is 'cache'; expected sections such as cache:"),
        ("false", "the file is false; expected sections such as cache:"),
    ],
)
def test_a_wrong_structure(write: Write, text: str, line: str) -> None:
    path = write(text)
    assert error_line(path) == f"{path}: {line}"


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("cache:\n  a: b: c\n", "line 2, column 7", "mapping values are not allowed here"),
        ("cache: [\n", "line 2, column 1", "while parsing a flow node"),
        ("cache:\n\tdirectory: x\n", "line 2, column 1", "cannot start any token"),
        ("cache:\n  directory: a\n  directory: b\n", "line 3, column 3", "the key directory occurs twice"),
        ("cache: {}\ncache: {}\n", "line 2, column 1", "the key cache occurs twice"),
        ("cache: {}\n---\ncache: {}\n", "line 2, column 1", "expected a single document"),
        ("cache: *other", "line 1, column 8", "undefined alias"),
        ("cache: !!python/object:os.system {}", "line 1, column 8", "could not determine a constructor"),
        ("a: 1\nb: \x00", "line 2, column 4", "a character that YAML does not allow"),
        ("a: 2024-13-45", "line 1, column 4", "an invalid number or date"),
        ("a: !!timestamp x", "line 1, column 4", "an invalid number or date"),
        ("a: 0x1" + "0" * 5000, "line 1, column 4", "an invalid number or date"),
        ('a: "\\UFFFFFFFF"', "line 1, column 7", "an invalid number"),
    ],
)
def test_no_yaml(write: Write, text: str, place: str, problem: str) -> None:
    path = write(text)
    line = error_line(path)
    assert line.startswith(f"{path}: {place}: not valid YAML: ")
    assert problem in line


def test_yaml_that_is_nested_too_deeply(write: Write) -> None:
    assert error_line(write("[" * 10_000)).endswith("nested too deeply")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert error_line(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    with pytest.raises(ConfigurationError, match="this is a directory, not a configuration file"):
        find_config(str(tmp_path), tmp_path)
    missing, latin = tmp_path / "missing.yaml", tmp_path / "latin.yaml"
    assert error_line(missing) == f"{missing}: cannot be read: No such file or directory"
    latin.write_bytes(b"# \xe4\n")
    assert error_line(latin) == f"{latin}: byte 3 is not UTF-8 text"


def test_a_directory_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "proxy.yaml").mkdir()
    with pytest.raises(
        ConfigurationError, match=r"proxy\.yaml: this is a directory, not a configuration file"
    ):
        find_config(None, tmp_path)


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    """It stands for a configuration that is missing, not for none: a gateway would run with the defaults."""
    (tmp_path / "proxy.yaml").symlink_to(tmp_path / "not mounted")
    assert error_line(find_config(None, tmp_path)) == (
        f"{tmp_path}/proxy.yaml: cannot be read: No such file or directory"
    )


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigurationError, match="the working directory can't be used: No such file"):
        find_config(None)
    with pytest.raises(ConfigurationError, match="the working directory can't be used: No such file"):
        load_settings(None, {})
    (tmp_path / "proxy.yaml").touch()
    assert find_config(f"{tmp_path}/proxy.yaml") == tmp_path / "proxy.yaml"  # nothing is relative to it


def test_a_file_with_the_other_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't passed over in silence, as long as there is no other one."""
    monkeypatch.setattr(loading, "SYSTEM_CONFIG", tmp_path / "none.yaml")
    (tmp_path / "proxy.yml").touch()
    with pytest.raises(ConfigurationError, match=r"expected the name proxy\.yaml, or --config proxy\.yml"):
        find_config(None, tmp_path)
    assert find_config("proxy.yml", tmp_path) == tmp_path / "proxy.yml"
    (tmp_path / "proxy.yaml").touch()
    assert find_config(None, tmp_path) == tmp_path / "proxy.yaml"


@pytest.mark.parametrize(
    ("variable", "text", "line"),
    [
        ("CACHE__SIZE_LIMIT", "lots", f": cache.size_limit is 'lots'; {SIZE}"),
        ("SERVING__DATABASES", "[a, 5]", f": serving.databases[1] is 5; {DATABASE}"),
        ("UPSTREAM__PROXY", "ftp://me:pw@a", f": upstream.proxy is 'ftp://***@a'; {PROXY}"),
        (
            "UPSTREAM__URL",
            "a: b: c",
            ": line 1, column 5: not valid YAML: mapping values are not allowed here",
        ),
        ("CACHE__SIZE_LIMIT", "", f": cache.size_limit is empty; {SIZE}"),
        ("CACHE__SIZE", "1", " is not a setting; did you mean CLAMPROXY_CACHE__SIZE_LIMIT?"),
        ("CACHE_SIZE_LIMIT", "1GiB", " is not a setting; did you mean CLAMPROXY_CACHE__SIZE_LIMIT?"),
        ("LOG_FORMAT", "json", " is not a setting; did you mean CLAMPROXY_LOG__FORMAT?"),
        ("CONFIG", "x.yaml", " is not a setting; expected CLAMPROXY_<SECTION>__<KEY>"),
        ("PORT", "8080", " is not a setting; expected CLAMPROXY_<SECTION>__<KEY>"),
        ("cache__size_limit", "1GiB", " is not a setting"),
        ("ZZ__", "", " is not a setting"),
    ],
)
def test_a_wrong_environment(write: Write, variable: str, text: str, line: str) -> None:
    for path in (None, write("cache: {size_limit: 1GiB}")):
        got = error_line(path, {f"CLAMPROXY_{variable}": text})
        assert got.startswith(f"environment variable CLAMPROXY_{variable}{line}")


@pytest.mark.parametrize("variable", ["clamproxy_cache__size_limit", "Clamproxy_Cache__Size_Limit"])
def test_a_variable_in_the_wrong_case(variable: str) -> None:
    line = error_line(None, {variable: "1GiB"})
    assert (
        line == f"environment variable {variable} is not a setting; did you mean CLAMPROXY_CACHE__SIZE_LIMIT?"
    )


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        # Kubernetes sets these in every pod beside a Service that is called clamproxy, or clamproxy-x.
        ("CLAMPROXY_SERVICE_HOST", "10.96.0.7"),
        ("CLAMPROXY_SERVICE_PORT", "8080"),
        ("CLAMPROXY_SERVICE_PORT_HTTP_PROXY", "8080"),
        ("CLAMPROXY_PORT", "tcp://10.96.0.7:8080"),
        ("CLAMPROXY_PORT_8080_TCP", "tcp://10.96.0.7:8080"),
        ("CLAMPROXY_PORT_8080_TCP_ADDR", "10.96.0.7"),
        ("CLAMPROXY_PORT_53_UDP_PROTO", "udp"),
        ("CLAMPROXY_DNS_PORT_53_UDP", "udp://10.96.0.8:53"),
        ("CLAMPROXY_DNS_PORT", "udp://10.96.0.8:53"),
        ("CLAMPROXY_DNS_SERVICE_HOST", "10.96.0.8"),
        ("CLAMPROXY_PASSWORD", "[secret of `clamproxy doctor`"),
        ("CLAMPROXY_USER", "of the script that sets machines up"),
        ("CLAMPROXY_CONF", "/usr/local/etc/freshclam.conf"),
        ("CLAMPROXY_TESTDATA", "/data"),
        ("MYCLAMPROXY_CACHE", "x"),
    ],
)
def test_variables_that_are_no_settings(variable: str, text: str) -> None:
    assert load_settings(None, {variable: text}) == load_settings(None, {})


@pytest.mark.parametrize(
    ("text", "listening", "value"),
    [
        # The pages have a port of their own.
        ("", "127.0.0.1:8081", "status.listen is 127.0.0.1:8081"),
        ("", "*:8081", "status.listen is 127.0.0.1:8081"),
        ("", "*:8080", None),
        ("", "192.0.2.1:8081", None),
        ("", "[::]:8081", None),
        ("status: {listen: null}", "*:8081", None),
        # The gateway doesn't ask itself.
        ("upstream: {url: 'http://localhost:8080'}", "*:8080", "upstream.url is http://localhost:8080"),
        ("upstream: {url: 'http://localhost:80'}", "[::1]:80", "upstream.url is http://localhost:80"),
        ("upstream: {url: 'http://127.0.0.1/x'}", "0.0.0.0:80", "upstream.url is http://127.0.0.1/x"),
        ("upstream: {url: 'http://192.0.2.1'}", "192.0.2.1:80", "upstream.url is http://192.0.2.1"),
        ("upstream: {proxy: 'http://u:p@[::1]:80'}", "*:80", "upstream.proxy is http://[::1]:80"),
        ("upstream: {url: 'http://localhost:8080'}", "*:3128", None),
        ("upstream: {url: 'http://parent:8080'}", "*:8080", None),
        ("upstream: {url: 'http://127.0.0.1:8080'}", "192.0.2.1:8080", None),
        (
            "versions: {nameservers: [192.0.2.1, 127.0.0.1]}\nlisten: {dns: 53}",
            "*:8080",
            "versions.nameservers has 127.0.0.1:53",
        ),
        (
            "fleet: {nameservers: [192.0.2.1, 127.0.0.1]}\nlisten: {dns: 53}",
            "*:8080",
            "fleet.nameservers has 127.0.0.1:53",
        ),
        ("versions: {nameservers: [127.0.0.1]}\nlisten: {dns: 5353}", "*:8080", None),
        (
            "upstream: {url: 'http://cdn:8080', address: [192.0.2.1, 127.0.0.1]}",
            "*:8080",
            "upstream.address has 127.0.0.1",
        ),
        ("upstream: {address: '[::1]:8080'}", "*:8080", "upstream.address has [::1]:8080"),
        ("upstream: {address: 127.0.0.1}", "*:8080", None),
        (
            "upstream: {address: 192.0.2.1, proxy: 'http://proxy:3128'}",
            "*:8080",
            "upstream.address is 192.0.2.1",
        ),
        ("upstream: {proxy_auth: negotiate}", "*:8080", "upstream.proxy_auth is negotiate"),
        (
            "upstream: {proxy_auth: ntlm, proxy: 'http://proxy:3128'}",
            "*:8080",
            "upstream.proxy_auth is ntlm",
        ),
        ("upstream: {proxy_auth: negotiate, proxy: 'http://proxy:3128'}", "*:8080", None),
        ("upstream: {proxy_auth: ntlm, proxy: 'http://u:p@proxy:3128'}", "*:8080", None),
        # What is answered as the CDN is nothing else.
        ("feeds: {hosts: [Database.ClamAV.net]}", "*:8080", "feeds.hosts has database.clamav.net"),
        (
            "serving: {pass_through: [db.de.clamav.net]}",
            "*:8080",
            "serving.pass_through has db.de.clamav.net",
        ),
        ("status: {host: database.clamav.net}", "*:8080", "status.host has database.clamav.net"),
        ("serving: {pass_through: ['*.clamav.net']}", "*:8080", None),
        # Records are not tidied up with the cache.
        ("{cache: {directory: /c}, state: {directory: /c/index}}", "*:8080", "state.directory is /c/index"),
        (
            "{cache: {directory: /c}, tls: {directory: /c/objects/ca}}",
            "*:8080",
            "tls.directory is /c/objects/ca",
        ),
        (
            "{cache: {directory: /c}, state: {directory: /c/feeds/x}}",
            "*:8080",
            "state.directory is /c/feeds/x",
        ),
        ("{cache: {directory: /c}, state: {directory: /c/state}}", "*:8080", None),
        ("{cache: {directory: /c}, state: {directory: /c}}", "*:8080", None),
    ],
)
def test_values_that_cannot_work_together(write: Write, text: str, listening: str, value: str | None) -> None:
    conflict = find_conflict(load_settings(write(text), {}), [LISTEN.parse(listening)])
    assert (conflict and conflict.partition("; expected ")[0]) == value


def test_the_file_is_blamed_for_what_it_says(write: Write) -> None:
    path = write("cache: 5")
    line = error_line(path, {"CLAMPROXY_CACHE__SIZE_LIMIT": "1GiB"})
    assert line == f"{path}: cache is 5; expected a section: lines of key: value"


def test_long_values_are_shortened(write: Write) -> None:
    line = error_line(write(f"upstream: {{url: {'x' * 5000}}}"))
    assert f"upstream.url is '{'x' * 76}...;" in line


@pytest.mark.parametrize(
    "text",
    [
        "upstream: {proxy: 'ftp://me:hunter2@a'}",
        "upstream: {proxy: 'http://me:hunter2'}",
        "upstream: {proxy: ['http://me:hunter2@a']}",
        "upstream: {proxy: {password: hunter2}}",
        "upstream: {url: 'http://me:hunter2@a'}",
        "upstream: {proxi: 'http://me:hunter2@a'}",
        "upstream: 'http://me:hunter2@a'",
        "upstream: {proxy: http://me:hunter2@a, read_timeout: x}",
        "upstream:\n  proxy:http://me:hunter2@a\n",
        f"upstream: {{proxy: 'http://me:{'x' * 100}hunter2@a?'}}",
    ],
)
def test_passwords_are_never_shown(write: Write, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(text), {})
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_an_object_store_needs_a_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "find_spec", lambda _: None)
    load_settings(write("fleet_store:"), {})
    line = error_line(write("fleet_store: s3://bucket/prefix"))
    assert line.endswith(
        "fleet_store is 's3://bucket/prefix'; "
        "expected null, because the package obstore is missing: pip install 'clamproxy[fleet]'"
    )


# Anything at all

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner))
KEYS = {name: list(section or ()) for name, section in Settings().model_dump().items()}
CONFIGURATIONS = st.fixed_dictionaries(
    {},
    optional={
        name: st.fixed_dictionaries({}, optional=dict.fromkeys(keys, VALUES)) | VALUES
        for name, keys in KEYS.items()
    },
)
YAML_TEXT = (
    st.text() | st.text(":-[]{}!&*|>'\"%@#?,\\<.~=0x1_ \n\tacheU") | st.builds(yaml.dump, CONFIGURATIONS)
)
VARIABLES = st.sampled_from(
    [
        "CLAMPROXY_FLEET_STORE",
        *(f"CLAMPROXY_{name}__{key}".upper() for name, keys in KEYS.items() for key in keys),
    ]
)


def load_anything(path: Path | None, environ: dict[str, str]) -> None:
    line = ""
    try:
        load_settings(path, environ)
    except ConfigurationError as error:
        line = str(error)
    assert line.isprintable()


ANYTHING = settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@ANYTHING
@given(YAML_TEXT)
@example("&a {cache: *a}")
@example("? [1]\n: 2")
@example("<<: 1")
@example("cache: {<<: {keep_cdiffs: 1}}")
@example("cache: !!set {a}")
@example("serving: {hosts: !!set {a, 5}}")
@example('a: !!int ""')
@example("a: !!bool x")
@example('cache: {directory: "\\uD800"}')
@example('upstream: {ca_bundle: "\\uD800"}')
@example('upstream: {url: "http://[\\uD800"}')
@example("upstream: {url: 'http://[::1]x'}")
def test_any_file_gives_settings_or_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "proxy.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    load_anything(path, {})


@ANYTHING
@given(st.dictionaries(VARIABLES | st.text().map("CLAMPROXY_{}__".format) | st.text(), YAML_TEXT, max_size=3))
@example({"CLAMPROXY_CACHE__DIRECTORY": "\udcff"})
@example({"CLAMPROXY_\udcff__": ""})
def test_any_environment_gives_settings_or_one_line(environ: dict[str, str]) -> None:
    load_anything(None, environ)
