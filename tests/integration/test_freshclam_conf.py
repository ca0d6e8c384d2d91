"""freshclam.conf: what it says to freshclam, where requests go by it, and what is wrong with it."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from clamproxy.doctor.conf_mistakes import judge
from clamproxy.doctor.findings import Status
from clamproxy.doctor.freshclam import FreshclamConf, find_conf, hidden_conf, objection, parse_conf, read_conf
from clamproxy.doctor.route import Route, bypass, route_of
from tests.support.freshclam import Freshclam

CDN = "database.clamav.net:80"
CONF = Path("/etc/clamav/freshclam.conf")


class TestRoute:
    @pytest.mark.parametrize(
        ("lines", "route"),
        [
            ("", None),
            ("# HTTPProxyServer gw\nDatabaseMirror https://database.clamav.net", None),
            ("DatabaseMirror db.local.clamav.net\nDatabaseMirror database.clamav.net", None),
            ("HTTPProxyServer gw\nDatabaseMirror http://x", Route("gw", target="x:80")),
            ("HTTPProxyServer gw\nDatabaseMirror http://x:8000", Route("gw", target="x:8000")),
            ("HTTPProxyServer gw\nPrivateMirror x\nDatabaseMirror y", Route("gw", target="x:80")),
            ("HTTPProxyServer gw\nDatabaseMirror https://x:8443", Route("gw", 8080, None, True, "x:80")),
            ("HTTPProxyServer gw\nDatabaseMirror db.local.clamav.net", Route("gw", 8080, None, True, CDN)),
            (
                'HTTPProxyServer gw\nHTTPProxyUsername u\nHTTPProxyPassword "p w"',
                Route("gw", 8080, "u:p w"),
            ),
            ("HTTPProxyServer gw\nHTTPProxyUsername u", Route("gw")),
            ("DatabaseMirror http://gw:8080", Route("gw", target="gw:8080", is_mirror=True)),
            ("DatabaseMirror http://gw", Route("gw", 80, target="gw:80", is_mirror=True)),
            (
                "PrivateMirror gw:8080\nDatabaseMirror database.clamav.net",
                Route("gw", target="gw:8080", is_mirror=True),
            ),
            (
                "PrivateMirror http://u:p%40w@gw:8080",
                Route("gw", 8080, "u:p@w", target="gw:8080", is_mirror=True),
            ),
            ("DatabaseMirror http://[::1", None),
        ],
    )
    def test_lines(self, lines: str, route: Route | None) -> None:
        assert route_of(parse_conf(lines), {}) == route

    @pytest.mark.parametrize(
        ("mirror", "environment", "route"),
        [
            ("http://database.clamav.net", {"http_proxy": "http://u:p@gw:8080"}, Route("gw", 8080, "u:p")),
            ("http://database.clamav.net", {"http_proxy": "gw:8080"}, Route("gw")),
            ("http://database.clamav.net", {"HTTP_PROXY": "http://gw:8080"}, None),
            ("http://database.clamav.net", {"https_proxy": "http://gw:8080"}, None),
            ("database.clamav.net", {"https_proxy": "http://gw:8080"}, Route("gw", uses_https=True)),
            ("database.clamav.net", {"HTTPS_PROXY": "http://gw:8080"}, Route("gw", uses_https=True)),
            ("http://database.clamav.net", {"all_proxy": "http://gw:8080"}, Route("gw")),
        ],
    )
    def test_by_the_environment(self, mirror: str, environment: dict[str, str], route: Route | None) -> None:
        """As in containers: without HTTPProxyServer libcurl takes the proxy from there.

        Source: docs/protocol.md 1.4.
        """
        assert route_of(parse_conf(f"DatabaseMirror {mirror}"), environment) == route

    @pytest.mark.parametrize(
        "lines",
        [
            "HTTPProxyServer 127.0.0.1\nHTTPProxyPort {0}\nHTTPProxyPort {1}",
            "HTTPProxyServer\t127.0.0.1:{0}\nHTTPProxyServer 127.0.0.2",
            "  HTTPProxyServer   127.0.0.1  \nHTTPProxyPort {0}",
            'HTTPProxyServer "127.0.0.1"\nHTTPProxyPort {0}',
            "HTTPProxyServer http://127.0.0.1:{0}/\nHTTPProxyPort {1}",
            "# HTTPProxyServer 127.0.0.2\nHTTPProxyServer 127.0.0.1\nHTTPProxyPort {0}",
        ],
    )
    def test_freshclam_goes_there(self, tmp_path: Path, lines: str) -> None:
        """The real one connects to the proxy that was read out of the file."""
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as other:
            ports = [listener.getsockname()[1] for listener in (first, other)]
        # Nothing listens there any more, so freshclam tells where it tried.
        text = lines.format(*ports)
        client = Freshclam(
            directory=tmp_path,
            mirrors=["http://database.clamav.net"],
            attempts=1,
            extra=[text],
            environment={"LANG": "C"},
        )
        tried = re.findall(r"connect to (\S+) port (\d+) failed", client.run().output)
        route = route_of(parse_conf(text), {})
        assert route is not None
        assert tried == [(route.host, str(route.port))]

    @pytest.mark.parametrize(
        ("environment", "variable"),
        [
            ({}, None),
            ({"no_proxy": "localhost,127.0.0.1"}, None),
            ({"no_proxy": "localhost, .clamav.net"}, "no_proxy=localhost, .clamav.net"),
            ({"NO_PROXY": "database.clamav.net"}, "NO_PROXY=database.clamav.net"),
            ({"NO_PROXY": "*"}, "NO_PROXY=*"),
            ({"no_proxy": "mav.net"}, None),
            ({"no_proxy": "", "NO_PROXY": "*"}, None),
        ],
    )
    def test_past_the_proxy(self, environment: dict[str, str], variable: str | None) -> None:
        conf = parse_conf("HTTPProxyServer gw\nDatabaseMirror http://database.clamav.net")
        assert bypass(conf, environment) == variable


class TestDatabases:
    @pytest.mark.parametrize(
        ("lines", "databases"),
        [
            ("", ["daily", "main", "bytecode"]),
            ("Bytecode no", ["daily", "main"]),
            ("Bytecode FALSE", ["daily", "main"]),
            ("Bytecode yes", ["daily", "main", "bytecode"]),
            ("ExcludeDatabase main\nExtraDatabase valhalla", ["daily", "bytecode", "valhalla"]),
            ("ExtraDatabase ../x\nExtraDatabase daily", ["daily", "main", "bytecode"]),
        ],
    )
    def test_which_databases(self, lines: str, databases: list[str]) -> None:
        assert parse_conf(lines).databases == databases

    def test_where_the_databases_are(self) -> None:
        assert parse_conf("DatabaseDirectory /srv/a\nDatabaseDirectory /srv/b").database_directory == Path(
            "/srv/a"
        )


GATEWAY = "HTTPProxyServer gw\nHTTPProxyPort 8080\nDatabaseMirror http://database.clamav.net\n"
PROBLEM, WARNING = Status.PROBLEM, Status.WARNING


class TestRules:
    @pytest.mark.parametrize(
        ("lines", "status", "text", "remedy"),
        [
            ("Foreground yes\r", PROBLEM, "end in CR LF", "sed -i 's/\\r$//' /etc/clamav"),
            ("HTTPProxyUsername u", PROBLEM, "without HTTPProxyPassword", "add HTTPProxyPassword"),
            ("HTTPProxyPassword p", PROBLEM, "only its owner can read it", f"chmod 600 {CONF}"),
            ("Checks 0", PROBLEM, "doesn't start", "from 1 to 50"),
            ("Checks 51", PROBLEM, "doesn't start", "from 1 to 50"),
            (f"Checks {'9' * 5000}", PROBLEM, "doesn't start", "from 1 to 50"),
            (f"HTTPProxyPort {'9' * 5000}", WARNING, "uses the first, 8080", "remove the others"),
            ("PrivateMirror database.clamav.net", PROBLEM, "one of ClamAV's names", "client-config"),
            (
                "HTTPProxyServer other\nHTTPProxyPort 8080",
                WARNING,
                "uses the first, gw",
                "remove the others",
            ),
            ("HTTPProxyPort 3128", WARNING, "uses the first, 8080", "remove the others"),
        ],
    )
    def test_a_line_in_a_good_configuration(self, lines: str, status: Status, text: str, remedy: str) -> None:
        self.check(GATEWAY + lines, status, text, remedy)

    @pytest.mark.parametrize(
        ("lines", "status", "text", "remedy"),
        [
            ("HTTPProxyServer https://gw", PROBLEM, "neither TLS nor SOCKS", "only the host"),
            ("HTTPProxyServer socks5://gw", PROBLEM, "neither TLS nor SOCKS", "only the host"),
            ("HTTPProxyServer 2001:db8::1", PROBLEM, "brackets around", "HTTPProxyServer [2001:db8::1]"),
            ("DatabaseMirror database.clamav.net", PROBLEM, "not the gateway", "client-config"),
            (
                "DatabaseMirror http://gw:8080\nDatabaseMirror database.clamav.net",
                WARNING,
                "asks https://database.clamav.net itself",
                "the only DatabaseMirror",
            ),
        ],
    )
    def test_a_line_alone(self, lines: str, status: Status, text: str, remedy: str) -> None:
        self.check(lines, status, text, remedy)

    @pytest.mark.parametrize(
        "lines",
        [
            GATEWAY,
            GATEWAY + "Checks 24\nHTTPProxyServer gw",
            "HTTPProxyServer [2001:db8::1]:8080",
            "DatabaseMirror http://gw:8080",
            "PrivateMirror gw:8080",
            "DatabaseMirror http://gw:8080\nDatabaseMirror http://[gw",
        ],
    )
    def test_good_configurations(self, lines: str) -> None:
        conf = parse_conf(lines)
        assert judge(CONF, conf, route_of(conf, {}), 0o100644) is None

    def check(self, lines: str, status: Status, text: str, remedy: str) -> None:
        conf = parse_conf(lines)
        verdict = judge(CONF, conf, route_of(conf, {}), 0o100644)
        assert verdict is not None
        assert verdict.status is status, verdict
        assert text in verdict.text, verdict
        assert remedy in verdict.remedy, verdict

    @pytest.mark.parametrize(
        ("lines", "mode", "said"),
        [
            ("HTTPProxyPort 1\r\nDatabaseOwner x\r", 0o600, "Incorrect argument format"),
            ("HTTPProxyUsername u", 0o600, "HTTPProxyUsername requires HTTPProxyPassword"),
            ("HTTPProxyUsername u\nHTTPProxyPassword p", 0o640, "must have no more than 0700"),
            ("PrivateMirror database.clamav.net", 0o600, "may not include servers under *.clamav.net"),
        ],
    )
    def test_freshclam_says_the_same(self, tmp_path: Path, lines: str, mode: int, said: str) -> None:
        client = Freshclam(
            directory=tmp_path,
            mirrors=["http://127.0.0.1:9"],
            attempts=1,
            extra=["HTTPProxyServer 127.0.0.1", *lines.split("\n")],
        )
        (tmp_path / "freshclam.conf").touch()
        (tmp_path / "freshclam.conf").chmod(mode)
        assert said in client.run().output
        conf = read_conf(tmp_path / "freshclam.conf")
        verdict = judge(tmp_path / "freshclam.conf", conf, route_of(conf, {}), mode)
        assert verdict is not None
        assert verdict.status is PROBLEM

    def test_the_password_is_not_shown(self) -> None:
        conf = parse_conf(f"{GATEWAY}HTTPProxyUsername u\nHTTPProxyPassword s3cret\nHTTPProxyPassword t0p")
        verdict = judge(CONF, conf, route := route_of(conf, {}), 0o600)
        assert verdict is not None
        assert "HTTPProxyPassword is there 2 times" in verdict.text
        assert not {"s3cret", "t0p"} & set(re.split(r"\W", f"{conf!r} {route!r} {verdict!r}"))


class TestObjection:
    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            ("DatabaseMirror http://gw:8080", None),
            ("Example", "Please edit the example config file"),
            ("DatabaseMirror http://gw:8080\nNoSuchOption yes", "Unknown option NoSuchOption"),
            ("Checks abc", "Incorrect argument format for option Checks"),
        ],
    )
    def test_in_freshclams_words(self, tmp_path: Path, lines: str, words: str | None) -> None:
        Freshclam(directory=tmp_path, mirrors=[])  # skips without the program
        path = tmp_path / "own.conf"
        path.write_text(f"{lines}\n")
        found = objection(path)
        assert found is None if words is None else words in (found or "")

    def test_without_freshclam(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert objection(tmp_path / "missing.conf") is None


def test_places(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    assert find_conf(places) is None
    places[1].write_text("")
    assert find_conf(places) == places[1]


def test_nothing_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "freshclam.conf").touch()
    assert hidden_conf([tmp_path / "missing.conf", tmp_path / "freshclam.conf"]) is None


def test_nothing_is_said() -> None:
    conf = FreshclamConf()
    assert (conf.mirrors, conf.first("Checks"), conf.databases[0]) == ([], None, "daily")
