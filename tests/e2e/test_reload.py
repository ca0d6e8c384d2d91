"""SIGHUP: proxy.yaml is read anew. All of it takes effect or nothing, and no client notices."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from http.client import HTTPException
from threading import Event, Thread
from typing import Any

import pytest
import yaml

from tests.support import faults
from tests.support.big import PATH, Forgery, begun_download
from tests.support.freshclam import OK
from tests.support.gateway import Answer, Gateway, TunnelRefused, Way, read_body, send
from tests.support.origin import OriginServer
from tests.support.site import HOSTS, Site, eventually, signed

from .conftest import MakeForged, MakeSite

READ, UNCHANGED, REFUSED = (
    "The configuration was reloaded",
    "The configuration has not changed",
    "The configuration stays as it was",
)
"""What the log says of a reload."""


def hang_up(gateway: Gateway) -> None:
    os.kill(gateway.pid, signal.SIGHUP)


def write(gateway: Gateway, **sections: dict[str, Any]) -> None:
    """Lay sections over the configuration with which the gateway was started."""
    content = {**gateway.settings}
    for name, section in sections.items():
        content[name] = content.get(name, {}) | section
    written = gateway.config.with_suffix(".new")
    written.write_text(yaml.safe_dump(content))
    written.replace(gateway.config)  # nobody reads half of it


def reload(gateway: Gateway, expected: str = READ, **sections: dict[str, Any]) -> str:
    """Change the configuration, and wait until the gateway has read it; gives what it has logged since."""
    write(gateway, **sections)
    before = len(gateway.log)
    hang_up(gateway)
    assert eventually(lambda: expected in gateway.log[before:]), gateway.log[before:]
    return gateway.log[before:]


# What takes effect


def test_databases(make_site: MakeSite) -> None:
    site = make_site(serving={"databases": ["daily"]})
    site.publish(2)
    assert site.gateway.ask("/test.cvd").status == 404
    reload(site.gateway, serving={"databases": ["daily", "test"]})
    assert site.gateway.ask("/test.cvd").body == signed("test-2.cvd")
    assert site.client(local=1).run().code == OK
    reload(site.gateway, serving={"databases": ["daily"]})
    assert site.gateway.ask("/test.cvd").status == 404


def test_hosts_and_pass_through(site: Site, origin: OriginServer) -> None:
    site.publish(2)
    origin.put("feed.ndb", b"feed")
    other, feed = "mirror.example.com", f"127.0.0.1:{origin.port}"
    assert site.gateway.ask("/test.cvd", Way.ABSOLUTE, host=other).status == 502
    assert site.gateway.ask("/feed.ndb", Way.ABSOLUTE, host=feed).status == 502
    reload(site.gateway, serving={"hosts": [*HOSTS, other], "pass_through": ["127.0.0.1"]})
    assert site.gateway.ask("/test.cvd", Way.ABSOLUTE, host=other).status == 200
    assert site.gateway.ask("/test.cvd", host=other).status == 200
    assert site.gateway.ask("/feed.ndb", Way.ABSOLUTE, host=feed).body == b"feed"


def test_clients(site: Site) -> None:
    site.publish(2)
    assert site.gateway.ask("/test.cvd").status == 200
    reload(site.gateway, serving={"clients": ["192.0.2.0/24"]})
    with pytest.raises((OSError, HTTPException, TunnelRefused)):
        site.gateway.ask("/test.cvd")
    assert eventually(lambda: "not in serving.clients" in site.gateway.log)
    reload(site.gateway)
    assert site.gateway.ask("/test.cvd").status == 200


def test_log_format(site: Site) -> None:
    site.publish(2)
    reload(site.gateway, log={"format": "json"})
    begin = len(site.gateway.log)
    assert site.gateway.ask("/test.cvd").status == 200
    lines = eventually(lambda: [line for line in site.gateway.log[begin:].splitlines() if "test.cvd" in line])
    assert lines
    assert isinstance(json.loads(lines[-1]), dict)
    reload(site.gateway)
    begin = len(site.gateway.log)
    assert site.gateway.ask("/test.cvd").status == 200
    assert eventually(
        lambda: re.search(r"^2\S+ info .*GET /test\.cvd 2 hit 200", site.gateway.log[begin:], re.MULTILINE)
    )


def test_origin(site: Site, origin: OriginServer) -> None:
    """What was cached stays; what is missing comes from the new place."""
    site.publish(2)
    assert site.gateway.ask("/test.cvd").status == 200
    for name in ("test-2.cdiff", "test-2.cvd.sign"):
        origin.put(name, signed(name))
    reload(site.gateway, upstream={"url": origin.url})
    assert site.gateway.ask("/test.cvd").cache_status == "clamproxy; hit"
    assert site.gateway.ask("/test-2.cdiff").status == 200
    assert origin.count("/test-2.cdiff") == 1
    assert site.origin.count("/test-2.cdiff") == 0


def test_cache_directory(site: Site) -> None:
    site.publish(2)
    assert site.gateway.ask("/test.cvd").cache_status == "clamproxy; fwd=miss"
    reload(site.gateway, cache={"directory": str(site.directory / "elsewhere")})
    answer = site.gateway.ask("/test.cvd")
    assert (answer.body, answer.cache_status) == (signed("test-2.cvd"), "clamproxy; fwd=miss")


def test_variables_of_the_environment_still_win(make_site: MakeSite) -> None:
    site = make_site(environment={"CLAMPROXY_SERVING__DATABASES": "[test]"})
    site.publish(2)
    reload(site.gateway, UNCHANGED, serving={"databases": ["daily"]})
    assert site.gateway.ask("/test.cvd").status == 200


def test_last_of_several_counts(make_site: MakeSite) -> None:
    """A signal that comes while the file is being read is not lost."""
    site = make_site(serving={"databases": ["daily"]})
    site.publish(2)
    site.origin.put("daily.cvd", signed("test-2.cvd"))
    for database in ("main", "daily", "bytecode", "test"):
        write(site.gateway, serving={"databases": [database]})
        hang_up(site.gateway)
    assert eventually(lambda: site.gateway.ask("/test.cvd").status == 200)
    assert site.gateway.ask("/daily.cvd").status == 404


def test_nothing_changed(site: Site) -> None:
    log = reload(site.gateway, UNCHANGED)
    assert READ not in log


# All or nothing


def _broken_yaml(gateway: Gateway) -> None:
    gateway.config.write_text("serving: {databases: [daily]\nlog: {format: json}\n")


def _wrong_value(gateway: Gateway) -> None:
    write(gateway, serving={"databases": ["daily"]}, log={"format": "xml"})


def _unknown_key(gateway: Gateway) -> None:
    write(gateway, serving={"databases": ["daily"]}, cache={"size": "1GiB"})


def _no_file(gateway: Gateway) -> None:
    gateway.config.unlink()


def _unusable_directory(gateway: Gateway) -> None:
    write(gateway, serving={"databases": ["daily"]}, cache={"directory": "/dev/null/cache"})


@pytest.mark.parametrize(
    "spoil",
    [_broken_yaml, _wrong_value, _unknown_key, _no_file, _unusable_directory],
    ids=lambda f: f.__name__,
)
def test_a_wrong_file_changes_nothing(site: Site, spoil: Callable[[Gateway], None]) -> None:
    site.publish(2)
    before = len(site.gateway.log)
    spoil(site.gateway)
    hang_up(site.gateway)
    assert eventually(lambda: REFUSED in site.gateway.log[before:])
    assert site.gateway.ask("/test.cvd").status == 200
    told = [
        line for line in site.gateway.log[before:].splitlines() if "GET /" not in line and "DNS" not in line
    ]
    assert len(told) == 1, told
    assert eventually(lambda: site.gateway.log.count("GET /test.cvd 2 miss 200") == 1)
    reload(site.gateway, serving={"databases": ["daily"]})
    assert site.gateway.ask("/test.cvd").status == 404


# Nobody notices


def test_download_goes_on(big: Site, forgery: Forgery) -> None:
    """Client and origin both are in the middle; the file comes once from the origin."""
    big.origin.rule("W", faults.stall(4_000_000), times=1)
    with begun_download(big.gateway) as client:
        reload(big.gateway, serving={"prefetch": "none"})
        with begun_download(big.gateway) as later:  # it reads along
            big.origin.heal()
            assert client.read() == (forgery.body, True)
            assert later.read() == (forgery.body, True)
    assert big.gateway.ask(PATH).cache_status == "clamproxy; hit"
    assert eventually(lambda: big.gateway.stats()["requests"] == 3)
    assert big.gateway.stats()["errors"] == 0
    assert big.origin.bytes_sent < len(forgery.body) * 1.9


def test_slow_reader_of_a_cached_file(big: Site, forgery: Forgery) -> None:
    assert big.gateway.ask(PATH).body == forgery.body
    with begun_download(big.gateway, 1000, buffer=8192) as slow:
        for prefetch in ("none", "all", "none"):
            reload(big.gateway, serving={"prefetch": prefetch})
        assert slow.read() == (forgery.body, True)
    assert "Traceback" not in big.gateway.log


@pytest.mark.parametrize("way", list(Way))
def test_open_connections_stay(site: Site, way: Way) -> None:
    """A connection that was there before is answered by the new rules."""
    site.publish(2)
    with site.gateway.connection(way) as connection:
        assert _ask_on(connection, "/test.cvd", way).status == 200
        reload(site.gateway, serving={"databases": ["daily"]})
        assert _ask_on(connection, "/test.cvd", way).status == 404
        reload(site.gateway)
        assert _ask_on(connection, "/test.cvd", way).body == signed("test-2.cvd")


def _ask_on(connection: Any, path: str, way: Way) -> Answer:
    send(connection, path, way, connection="keep-alive")
    response = connection.getresponse()
    body, complete = read_body(response)
    return Answer(response.status, {}, body, complete)


def test_ten_reloads_under_load(site: Site) -> None:
    """No request is lost, none is answered wrongly, and each is counted."""
    site.publish(2)
    body = signed("test-2.cvd")
    assert site.gateway.ask("/test.cvd").body == body
    enough, answers, failures = Event(), list[Answer](), list[BaseException]()

    def client(way: Way) -> None:
        while not enough.is_set():
            try:
                answers.append(site.gateway.ask("/test.cvd", way))
            except BaseException as error:
                failures.append(error)

    threads = [Thread(target=client, args=[way], daemon=True) for way in (*Way, *Way)]
    for thread in threads:
        thread.start()
    for number in range(10):
        reload(site.gateway, cache={"keep_cdiffs": 100 + number})
    enough.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert {answer.status for answer in answers} == {200}
    assert all(answer.complete and answer.body == body for answer in answers)
    assert eventually(lambda: site.gateway.stats()["requests"] == len(answers) + 1)
    stats = site.gateway.stats()
    # Where DNS has no answer within a second, the file is called stale.
    assert (stats["hits"] + stats["stale"], stats["errors"]) == (len(answers), 0)
    assert "Traceback" not in site.gateway.log
    assert site.gateway.stop() == 0


def test_nothing_piles_up(site: Site) -> None:
    """What an earlier configuration had open is closed."""
    site.publish(2)
    assert site.client().run().code == OK
    reload(site.gateway, cache={"keep_cdiffs": 50})
    figures = []
    for number in range(12):
        reload(site.gateway, cache={"keep_cdiffs": 100 + number})
        if number == 3:
            time.sleep(1)
            figures.append(_held(site.gateway))
    assert eventually(lambda: _held(site.gateway)[0] <= figures[0][0] + 4), _held(site.gateway)
    assert eventually(lambda: _held(site.gateway)[1] <= figures[0][1] + 4), _held(site.gateway)


def _held(gateway: Gateway) -> tuple[int, int]:
    """Open files and threads."""
    return tuple(len(os.listdir(f"/proc/{gateway.pid}/{what}")) for what in ("fd", "task"))  # type: ignore[return-value]  # noqa: PTH208


def test_releases_are_followed_on(make_site: MakeSite) -> None:
    """After a reload new patches are fetched ahead, each once."""
    site = make_site(delta={"max_share": "100%"})
    site.publish(2)
    assert site.client(local=1).run().code == OK
    assert site.gateway.ask("/test.cvd").status == 200
    reload(site.gateway, cache={"keep_cdiffs": 50})
    site.publish(2, advertised=6)
    names = [f"/test-{version}.cdiff" for version in range(3, 7)]
    assert eventually(lambda: all(site.origin.count(name) for name in names))
    assert eventually(lambda: site.gateway.ask("/test-6.cdiff").cache_status == "clamproxy; hit")
    assert [site.origin.count(name) for name in names] == [1] * 4


def test_cool_downs_stay(site: Site) -> None:
    """A reload is no way to ask the CDN again that has just refused."""
    site.publish(2)
    site.origin.rule("*", faults.status(429))
    assert site.gateway.ask("/test.cvd").status == 503
    asked = site.origin.count("/test.cvd")
    assert eventually(lambda: site.gateway.stats()["cooldowns"])
    reload(site.gateway, cache={"keep_cdiffs": 50})
    site.origin.heal()
    assert site.gateway.ask("/test.cvd").status == 503
    assert site.origin.count("/test.cvd") == asked


def test_a_stop_right_after(make_forged: MakeForged) -> None:
    """The signals of a service manager may follow each other at once."""
    site = make_forged()
    write(site.gateway, serving={"prefetch": "none"})
    hang_up(site.gateway)
    assert site.gateway.stop() == 0
    assert "Traceback" not in site.gateway.log
