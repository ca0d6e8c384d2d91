"""Canary strings in each setting and field that holds a secret: they come out nowhere.

A gateway has them all in its configuration, gets others from its clients, and is asked for everything it can
show, while it logs all that it can log. Then they are looked for in all that it has said and written.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clamproxy.access.users import user_line
from clamproxy.config.loading import load_settings
from clamproxy.web.pages import PATHS
from tests.support.data import require_testdata
from tests.support.dns_server import open_dns
from tests.support.gateway import CDN, Gateway, TunnelRefused, Way
from tests.support.object_store import ObjectStore, moto_server
from tests.support.origin import OriginServer
from tests.support.processes import family
from tests.support.raw_http import exchange
from tests.support.site import LOCALHOST, eventually, publish, settings_for
from tests.support.smtp_server import mail_server
from tests.support.webhook_server import webhook_server
from tests.torture.canaries import Canaries
from tests.torture.conftest import Figures
from tests.torture.effort import FULL, SEED

USER = "machine"
COMMANDS = (
    *("stats", "stats --json", "ls", "ls --json", "fleet", "fleet --json", "fleet --csv", "verify"),
    *("config show", "config show --json", "config check", "notify", "notify --json", "notify test"),
    *("files", "files --json", "hold", "ignore list", "ca show", "ca export", "prefetch", "reload"),
    *("client-config", "client-config --for script", "client-config --mode https --for ansible"),
    *("doctor", "doctor --json", "export BUNDLE", "mirror MIRROR", "purge --help"),
)
"""BUNDLE and MIRROR are places for what they write."""
WORKERS = 2
UMASKS = [0o000, 0o022] if FULL else [0o000]
MEANT = ("proxy.yaml", "ca/", "conf/")
"""Where secrets are meant to be."""
SHARED = {
    "(gateway|parent)": 0o777,  # made by the test, as are the next ones
    r"proxy\.yaml|gateway\.log|conf|conf/config\.yaml": 0o777,
    r"mirror(/.*)?": 0o777,  # for a web server, which is another user
    r"bundle\.tar": 0o666,  # an administrator's own, as the umask has it
    r"cache/objects/.*/.*": 0o644,  # if `clamproxy mirror` has given the same file a name elsewhere
    r"conf/mitmproxy-(ca-cert\.(pem|cer|p12)|dhparam\.pem)": 0o666,  # no secrets, and made by mitmproxy
    r"cache/index/objects": 0o777,  # a link
}
"""What may have other modes than 0600, or 0700 for a directory: patterns, and the most that it may have."""


@dataclass
class Scene:
    """What a gateway said, and where it wrote."""

    directory: Path
    canaries: Canaries
    said: dict[str, bytes] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module", params=UMASKS, ids=lambda umask: f"umask {umask:03o}")
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    require_testdata()
    scene = Scene(tmp_path_factory.mktemp("secrets"), Canaries(SEED))
    before = os.umask(request.param)
    try:
        _play(scene)
    finally:
        os.umask(before)
    return scene


def _play(scene: Scene) -> None:
    with ExitStack() as stack:
        canaries = scene.canaries
        store = stack.enter_context(ObjectStore(stack.enter_context(moto_server())))
        hook = stack.enter_context(webhook_server())
        mail = stack.enter_context(mail_server(login=True))
        origin, dns = stack.enter_context(OriginServer()), stack.enter_context(open_dns())
        publish(origin, 6)
        dns.versions["test"] = 6
        # The parent is the origin, and a peer.
        parent = Gateway(
            scene.directory / "parent",
            settings_for(
                origin,
                dns,
                access={"users": [user_line("child", canaries["upstream.proxy"])]},
                status={"token": canaries["fleet.peers.token"]},
                feeds={"hosts": [LOCALHOST]},
            ),
        )
        stack.enter_context(parent)
        upstream = {
            "url": f"http://{CDN}",
            "proxy": f"http://child:{canaries['upstream.proxy']}@{LOCALHOST}:{parent.port}",
        }
        scene.settings = settings_for(
            origin,
            dns,
            upstream=upstream,
            access={"users": [user_line(USER, canaries["a user's password"])]},
            status={"token": canaries["status.token"]},
            feeds={"hosts": [LOCALHOST]},
            fleet={
                "peers": [
                    {"url": f"http://{LOCALHOST}:{parent.port}", "token": canaries["fleet.peers.token"]},
                    {"url": f"http://{LOCALHOST}:1", "token": canaries["another peer's token"]},
                ]
            },
            notify={
                "webhooks": [
                    {
                        "url": f"{hook.url}/{canaries['webhook path']}?key={canaries['webhook query']}",
                        "form": "json",
                        "token": canaries["webhook token"],
                    },
                    {"url": f"http://{LOCALHOST}:1/{canaries['dead webhook']}", "form": "slack"},
                ],
                "after": "0s",
            },
            mail={
                "server": LOCALHOST,
                "port": mail.port,
                "tls": "none",
                "user": "gateway",
                "password": canaries["mail.password"],
                "recipients": ["admin@example.net"],
            },
        )
        scene.environment = {
            **store.environment,
            "CLAMPROXY_FLEET_STORE": store.url,
            "AWS_ACCESS_KEY_ID": canaries["access key"],
            "AWS_SECRET_ACCESS_KEY": canaries["secret key"],
            "CLAMPROXY_PASSWORD": canaries["a user's password"],
        }
        gateway = Gateway(
            scene.directory / "gateway", scene.settings, environment=scene.environment, workers=WORKERS
        )
        assert gateway.tool("ca", "init").returncode == 0
        confdir = gateway.directory / "conf"
        confdir.mkdir()
        (confdir / "config.yaml").write_text("termlog_verbosity: debug\n")
        with gateway, _watching_command_lines(gateway, scene):
            _ask_as_clients(gateway, origin, canaries)
            _look(gateway, scene)
            # Nobody has made a mirror of this one: so only here is its mode what it was given at first.
            login = _login(canaries)
            assert gateway.ask("/test-3.cdiff", Way.ABSOLUTE, extra=login).status == 200
            eventually(lambda: store.count("PUT", "gateways/") > 0)
            scene.said |= {f"the store's {path}": content for path, content in store.objects().items()}
            scene.said["paths in the store"] = "\n".join(one.path for one in store.seen).encode()
            scene.said["notices"] = repr((hook.posts, [str(one) for one in mail.mails])).encode()
        parent.kill()
        scene.said |= {f"log of {one.directory.name}": one.log.encode() for one in (gateway, parent)}
        _keep_keys(gateway, canaries)


def _ask_as_clients(gateway: Gateway, origin: OriginServer, canaries: Canaries) -> None:
    """Requests with secrets wherever a client can put one, most of them wrong."""

    known = _login(canaries)
    for path in ("/test.cvd", "/test-6.cdiff", "/test-9.cdiff", "/test.cld"):
        gateway.ask(path, Way.ABSOLUTE, extra=known)
    assert gateway.ask("/test.cvd", Way.ABSOLUTE, extra=known).status == 200
    wrong = [
        {"Proxy-Authorization": _basic(canaries["wrong password"])},
        {"Proxy-Authorization": f"Basic {canaries['malformed login']}"},
        {"Authorization": f"Bearer {canaries['wrong token']}"},
        known | {"Authorization": _basic(canaries["Authorization"]), "Cookie": f"id={canaries['cookie']}"},
        known | {"X-Api-Key": canaries["field"], "Referer": f"http://a/?key={canaries['referer']}"},
    ]
    for fields in wrong:
        for way in (Way.ABSOLUTE, Way.CONNECT_HTTP, Way.REVERSE):
            with contextlib.suppress(TunnelRefused):
                gateway.ask(f"/test.cvd?key={canaries['query']}", way, extra=fields)
        gateway.ask(f"/status.json?token={canaries['query of a page']}", Way.REVERSE, extra=fields)
    login = f"Proxy-Authorization: {known['Proxy-Authorization']}\r\n"
    for target in (
        f"http://u:{canaries['userinfo']}@{CDN}/test.cvd",
        f"http://example.net/{canaries['path elsewhere']}?k={canaries['query elsewhere']}",
        f"http://{CDN}:99999/{canaries['path, bad port']}",
        f"http://{CDN}/test.cvd?{canaries['broken query']} x",
    ):
        for more in (
            login,
            "",
            f"{login}Content-Length: 10\r\n",
            f"{login}A B: {canaries['odd field']}\r\n",
        ):
            _send(gateway, f"GET {target} HTTP/1.1\r\nHost: {CDN}\r\n{more}\r\n")
    _send(gateway, f"GET {canaries['garbage']}\r\n\r\n")
    _send(gateway, f"GET http://{CDN}/x HTTP/1.1\r\nX: {canaries['cut off']}")
    origin.put(f"get/{canaries['feed path']}/a.ndb", b"A.B:0:*:6d792d746573742d7369676e6174757265\n")
    for path in (f"/get/{canaries['feed path']}/a.ndb", f"/missing.ndb?key={canaries['feed query']}"):
        place = f"{LOCALHOST}:{origin.port}"
        gateway.ask(path, Way.ABSOLUTE, host=place, extra=known)
        userinfo = f"http://u:{canaries['feed password']}@{place}{path}"
        _send(gateway, f"GET {userinfo} HTTP/1.1\r\nHost: {place}\r\n{login}\r\n")


def _login(canaries: Canaries) -> dict[str, str]:
    return {"Proxy-Authorization": _basic(canaries["a user's password"])}


def _basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'{USER}:{password}'.encode()).decode()}"


def _send(gateway: Gateway, head: str) -> None:
    exchange(gateway.port, head.encode(), half_closes=True)


def _look(gateway: Gateway, scene: Scene) -> None:
    """Everything that a gateway shows to anybody."""
    for path in sorted(PATHS):
        reader = {"Authorization": f"Bearer {scene.canaries['status.token']}"}
        for who, fields in {"somebody": dict[str, str](), "a reader": reader}.items():
            answer = gateway.ask(path, Way.REVERSE, host=LOCALHOST, extra=fields)
            scene.said[f"{path} for {who}"] = repr(answer.headers).encode() + answer.body
    for command in COMMANDS:
        places = {"BUNDLE": gateway.directory / "bundle.tar", "MIRROR": gateway.directory / "mirror"}
        result = gateway.tool(*(str(places.get(word, word)) for word in command.split()))
        scene.said[f"clamproxy {command}"] = f"{result.stdout}{result.stderr}".encode()
        assert "Usage:" not in result.stderr, result.stderr
    limits = Path(f"/proc/{gateway.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 ", limits), limits


@contextlib.contextmanager
def _watching_command_lines(gateway: Gateway, scene: Scene) -> Iterator[None]:
    """Read them again and again, of the gateway, its workers, and all that these start."""
    found, ends = set[tuple[int, bytes]](), threading.Event()
    parent = gateway.pid

    def watch() -> None:
        while not ends.wait(0.01):
            with contextlib.suppress(OSError):  # one of them has just ended
                found.update((pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in family(parent))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
    assert len({pid for pid, _ in found}) > WORKERS, found
    scene.said["command lines"] = b"\n".join({line for _, line in found})


def _keep_keys(gateway: Gateway, canaries: Canaries) -> None:
    """Parts of the private keys that the gateway has made."""
    for name, path in (
        ("the authority's key", gateway.directory / "ca" / "authority.json"),
        ("mitmproxy's key", gateway.directory / "conf" / "mitmproxy-ca.pem"),
    ):
        key = re.search(
            r"BEGIN (?:RSA |EC )?PRIVATE KEY-----(?:\\n|\n)([A-Za-z0-9+/\\\n]+)", path.read_text()
        )
        assert key is not None, name
        canaries.keep(name, re.sub(r"\\n|\n", "", key[1])[40:64])


def test_nothing_is_said(scene: Scene, figures: Figures) -> None:
    found = {where: names for where, text in scene.said.items() if (names := scene.canaries.found_in(text))}
    figures(
        "secrets in what is shown",
        secrets=len(scene.canaries.secrets),
        outputs=len(scene.said),
        bytes=sum(map(len, scene.said.values())),
        found=len(found),
    )
    assert found == {}


def test_nothing_is_written(scene: Scene, figures: Figures) -> None:
    """Except where it is meant to be; that is found, so whatever else is there would be found as well."""
    found, meant, files = dict[str, list[str]](), set[str](), 0
    for top in (scene.directory / "gateway", scene.directory / "parent"):
        for path in (path for path in top.rglob("*") if path.is_file()):
            files += 1
            names = scene.canaries.found_in(path.read_bytes())
            if str(path.relative_to(top)).startswith(MEANT):
                meant.update(names)
            elif names:
                found[str(path)] = names
    figures("secrets in files", secrets=len(scene.canaries.secrets), files=files, found=len(found))
    assert found == {}
    assert {"upstream.proxy", "mail.password", "webhook query", "the authority's key"} <= meant


def test_modes(scene: Scene, figures: Figures) -> None:
    """Whatever the umask is, nobody else reads a file of the gateway's, or gets into a directory."""
    top = scene.directory / "gateway"
    found, paths = dict[str, str](), [path for path in top.rglob("*") if not path.is_symlink()]
    for path in paths:
        place, mode = str(path.relative_to(top)), stat.S_IMODE(path.stat().st_mode)
        shared = [most for pattern, most in SHARED.items() if re.fullmatch(pattern, place)]
        if place.startswith("cache/objects/") and path.stat().st_nlink == 1:  # no mirror has it
            shared = []
        most = shared[0] if shared else 0o700 if path.is_dir() else 0o600
        if mode & ~most:
            found[place] = f"{mode:04o}"
    figures("modes", files_and_directories=len(paths), too_open=len(found))
    assert found == {}


def test_the_configuration_hides_them(scene: Scene) -> None:
    """Whatever a traceback or a debugger prints."""
    settings = load_settings(scene.directory / "gateway" / "proxy.yaml", scene.environment)
    for text in (
        repr(settings),
        str(settings),
        repr(settings.upstream.proxy),
        repr(settings.notify.webhooks),
    ):
        assert scene.canaries.found_in(text.encode()) == []
