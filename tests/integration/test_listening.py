"""Where the proxy listens: proxy.yaml, the command line, and what commands know of both."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mitmproxy import options
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.test import taddons

from clamproxy.cache.store import Store
from clamproxy.config.loading import ConfigurationError, load_settings
from clamproxy.config.settings import ListenSection
from clamproxy.config.units import LISTEN, Endpoint
from clamproxy.proxy.listening import Listening
from clamproxy.setup.place import nearest, note_proxies, proxies
from tests.support.fixtures import Write
from tests.support.gateway import free_ports

CDN = "database.clamav.net"

type Setup = tuple[options.Options, Proxyserver]


@pytest.fixture
def mitmproxy() -> Iterator[Setup]:
    """mitmproxy's options and the addon that listens, which has not begun."""
    server = Proxyserver()  # type: ignore[no-untyped-call]
    with taddons.context(server) as context:  # type: ignore[no-untyped-call]
        yield context.options, server


def listening(mitmproxy: Setup, **given: object) -> Listening:
    known, server = mitmproxy
    known.update(**given)  # type: ignore[no-untyped-call]
    return Listening(known, given.keys(), server)


def listen(text: str, write: Write) -> ListenSection:
    return load_settings(write(f"listen: {{{text}}}"), {}).listen


@pytest.mark.parametrize(
    ("text", "given", "modes"),
    [
        ("", {}, ["regular"]),
        ("proxy: 3128", {}, ["regular@3128"]),
        ("proxy: '*:3128'", {}, ["regular@3128"]),
        ("proxy: ['192.0.2.1:80', '[::1]:81']", {}, ["regular@192.0.2.1:80", "regular@::1:81"]),
        ("reverse: 80", {}, ["regular", f"reverse:http://{CDN}@80"]),
        ("dns: ['127.0.0.1:53', '[::1]:53']", {}, ["regular", "dns@127.0.0.1:53", "dns@::1:53"]),
        ("dns: null", {}, ["regular"]),
        # The command line wins: the port, the address, or all of it.
        ("proxy: 3128", {"listen_port": 80}, ["regular"]),
        ("proxy: '192.0.2.1:3128'", {"listen_port": 80}, ["regular@192.0.2.1:80"]),
        ("dns: 53", {"listen_port": 80}, ["regular", "dns@53"]),
        ("proxy: 3128", {"listen_host": "192.0.2.9"}, ["regular@3128"]),
        ("proxy: ['192.0.2.1:80', '[::1]:80']", {"listen_host": "192.0.2.9"}, ["regular@80"]),
        ("proxy: 3128", {"mode": ["regular@80"]}, ["regular@80"]),
        ("proxy: 3128, dns: 53", {"mode": ["dns@54", "regular"]}, ["dns@54", "regular"]),
    ],
)
def test_modes(mitmproxy: Setup, write: Write, text: str, given: dict[str, object], modes: list[str]) -> None:
    chosen = listening(mitmproxy, **given)
    chosen.follow(listen(text, write))
    assert list(mitmproxy[0].mode) == modes
    assert chosen.is_given == bool(given)


@pytest.mark.parametrize(
    ("text", "given", "where"),
    [
        ("", {}, ["*:8080"]),
        ("proxy: ['192.0.2.1:80', '[::1]:81'], reverse: 82", {}, ["192.0.2.1:80", "[::1]:81"]),
        ("proxy: 3128", {"listen_port": 80}, ["*:80"]),
        ("proxy: 3128", {"listen_host": "192.0.2.9"}, ["192.0.2.9:3128"]),
        ("proxy: 3128", {"mode": ["dns@53", "regular@[::1]:80"]}, ["[[::1]]:80"]),
    ],
)
def test_proxies(
    mitmproxy: Setup, write: Write, text: str, given: dict[str, object], where: list[str]
) -> None:
    found = listening(mitmproxy, **given).proxies(listen(text, write))
    assert [str(endpoint) for endpoint in found] == where


@pytest.mark.parametrize(
    ("key", "kind", "what"),
    [
        ("proxy", socket.SOCK_STREAM, "HTTP(S) proxy"),
        ("reverse", socket.SOCK_STREAM, f"reverse proxy to http://{CDN}"),
        ("dns", socket.SOCK_STREAM, "DNS server"),
        ("dns", socket.SOCK_DGRAM, "DNS server"),
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1", "*"])
def test_a_port_that_is_taken(
    mitmproxy: Setup, write: Write, key: str, kind: socket.SocketKind, what: str, address: str
) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        port, free = free_ports(2)
        other.bind(("127.0.0.1", port))
        if kind is socket.SOCK_STREAM:
            other.listen()
        endpoints = {"proxy": f"127.0.0.1:{free}", key: f"{address}:{port}"}
        wanted = listen(", ".join(f"{name}: '{where}'" for name, where in endpoints.items()), write)
        with pytest.raises(ConfigurationError) as caught:
            listening(mitmproxy).check(wanted)
    assert str(caught.value).startswith(f"{what} on {address}:{port}: address already in use")
    listening(mitmproxy).check(ListenSection(proxy=(Endpoint("127.0.0.1", port),)))


@pytest.mark.parametrize(
    ("text", "given", "reason"),
    [
        ("proxy: '192.0.2.1:3128'", {}, "no interface of this machine has that address"),
        ("", {"listen_port": 70000}, "expected a port up to 65535"),
        ("", {"listen_host": "no-such-host.invalid", "listen_port": 3128}, "the address isn't known"),
    ],
)
def test_a_place_that_cannot_be(
    mitmproxy: Setup, write: Write, text: str, given: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        listening(mitmproxy, **given).check(listen(text, write))


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("*:8080", ("127.0.0.1", 8080)),
        ("8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:80", ("127.0.0.1", 80)),
        ("[::]:80", ("::1", 80)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
    ],
)
def test_how_a_program_gets_there(written: str, near: tuple[str, int]) -> None:
    assert nearest(LISTEN.parse(written)) == near


def test_what_commands_know(write: Write, tmp_path: Path) -> None:
    settings = load_settings(write(yaml.safe_dump({"listen": {"proxy": 3128}})), {})
    configured, given = [Endpoint("*", 3128)], [Endpoint("192.0.2.1", 80), Endpoint("::", 81)]
    assert list(proxies(settings)) == configured
    assert not (tmp_path / "cache").exists()
    store = Store(settings.cache.directory)
    note_proxies(store, given)
    assert list(proxies(settings)) == given
    store.set_note("listen/proxy", ["nonsense"])
    assert list(proxies(settings)) == configured
    note_proxies(store, None)
    assert list(proxies(settings)) == configured
    store.close()
