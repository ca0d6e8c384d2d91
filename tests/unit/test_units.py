"""Values as people write them, by tables."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from clamproxy.config.notation import Notation
from clamproxy.config.quantities import DURATION, MAX_SIZE, SHARE, SIZE
from clamproxy.config.units import (
    ANY,
    BASE_URL,
    DATABASE,
    DOMAIN_PATTERN,
    ENDPOINT,
    GIB,
    HOST_NAME,
    HOST_PATTERN,
    HTTP_PROXY,
    LISTEN,
    MIB,
    NAMESERVER,
    NETWORK,
    TOKEN,
    USER,
    Endpoint,
    HttpProxy,
    Nameserver,
    domain_matches,
    host_matches,
)

NO_QUANTITIES: list[object] = [
    None,
    True,
    False,
    "",
    " ",
    "x",
    "-1",
    -1,
    "4 G B",
    "1e3",
    "٣s",
    [],
    {},
    b"1",
    "1\n2",
]


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (1048576, MIB),
        ("4096", 4096),
        ("4GiB", 4 * GIB),
        ("4 gib", 4 * GIB),
        ("500MB", 500_000_000),
        ("64k", 65536),
        ("64kB", 64_000),
        ("64KiB", 65536),
        ("1.5GiB", GIB + GIB // 2),
        ("2T", 2**41),
        ("10B", 10),
        ("0.3KiB", 307),
    ],
)
def test_sizes(written: object, size: int) -> None:
    assert SIZE.parse(written) == size


@pytest.mark.parametrize("written", [*NO_QUANTITIES, 1.5, "4iB", "4i", "4GiBi", "4PiB", "9999999TiB", 2**63])
def test_no_sizes(written: object) -> None:
    with pytest.raises(ValueError, match="size"):
        SIZE.parse(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0.0),
        (10, 10.0),
        (2.5, 2.5),
        ("10", 10.0),
        ("10s", 10.0),
        ("250ms", 0.25),
        ("5min", 300.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("1h30min", 5400.0),
        ("1h 30min", 5400.0),
        ("2d", 172_800.0),
        ("1.5h", 5400.0),
        ("1s500ms", 1.5),
        ("1d1h1min1s1ms", 90061.001),
    ],
)
def test_durations(written: object, seconds: float) -> None:
    assert DURATION.parse(written) == seconds


@pytest.mark.parametrize(
    "written", [*NO_QUANTITIES, float("nan"), float("inf"), 10**400, "1s1h", "1s1s", "5 sec", "10S", "h"]
)
def test_no_durations(written: object) -> None:
    with pytest.raises(ValueError, match=r"not a (duration|finite)"):
        DURATION.parse(written)


@pytest.mark.parametrize(
    ("written", "share"), [("10%", 0.1), (0.1, 0.1), ("2.5 %", 0.025), (0, 0.0), (1, 1.0), ("250%", 2.5)]
)
def test_shares(written: object, share: float) -> None:
    assert SHARE.parse(written) == share


@pytest.mark.parametrize("written", [*NO_QUANTITIES, float("nan"), "%", "10%%"])
def test_no_shares(written: object) -> None:
    with pytest.raises(ValueError, match=r"not a (share|finite)"):
        SHARE.parse(written)


@given(st.integers(0, MAX_SIZE))
def test_a_size_in_bytes_is_itself(size: int) -> None:
    assert SIZE.parse(size) == size


@given(st.integers(0, 2**20), st.sampled_from([("KiB", 2**10), ("MiB", 2**20), ("GB", 10**9), ("", 1)]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: tuple[str, int]) -> None:
    assert SIZE.parse(f"{number}{unit[0]}") == number * unit[1]


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_the_parts_of_a_duration_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert DURATION.parse(f"{hours}h{minutes}min{seconds}s") == hours * 3600 + minutes * 60 + seconds


@given(st.one_of(st.text(), st.text("0123456789.kMGiBdhmins% "), st.floats(), st.integers(), st.binary()))
def test_quantities_fail_only_with_value_error(written: object) -> None:
    for parse in (SIZE.parse, DURATION.parse, SHARE.parse):
        try:
            quantity = parse(written)
        except ValueError:
            continue
        assert 0 <= quantity < float("inf")


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("https://database.clamav.net", "https://database.clamav.net"),
        ("HTTPS://Database.ClamAV.net/", "https://database.clamav.net"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("http://mirror/clamav/db//", "http://mirror/clamav/db"),
        ("http://mirror:", "http://mirror"),
    ],
)
def test_base_urls(written: str, url: str) -> None:
    assert BASE_URL.parse(written) == url


@pytest.mark.parametrize(
    "written",
    [
        *(None, 5, "", "database.clamav.net", "ftp://a", "http://", "http:///x", "//a", "file:///etc/passwd"),
        *(
            "http://a?x=1",
            "http://a?",
            "http://a/#f",
            "http://u:p@a",
            "http://a b",
            "http://a/\n",
            "http://ä",
        ),
        *("http://a:0", "http://a:65536", "http://a:x", "http://[::1", "http://[1.2.3.4]", "http://a..b"),
    ],
)
def test_no_base_urls(written: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        BASE_URL.parse(written)


@pytest.mark.parametrize(
    ("written", "proxy"),
    [
        ("http://proxy:3128", HttpProxy("http://proxy:3128")),
        ("https://proxy/", HttpProxy("https://proxy")),
        ("http://user:secret@proxy:3128", HttpProxy("http://proxy:3128", "user:secret")),
        ("http://us%40er:p%3Aw%2F@proxy", HttpProxy("http://proxy", "us@er:p:w/")),
        ("http://user@[::1]:3128", HttpProxy("http://[::1]:3128", "user:")),
        ("http://@proxy", HttpProxy("http://proxy")),
    ],
)
def test_proxies(written: str, proxy: HttpProxy) -> None:
    assert HTTP_PROXY.parse(written) == proxy
    assert "secret" not in repr(proxy)


@pytest.mark.parametrize(
    "written", ["proxy:3128", "socks5://proxy", "http://proxy/x", "http://u:p#w@proxy", 1]
)
def test_no_proxies(written: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        HTTP_PROXY.parse(written)


@pytest.mark.parametrize(
    ("written", "server"),
    [
        ("192.0.2.1", Nameserver("192.0.2.1", 53)),
        ("192.0.2.1:5353", Nameserver("192.0.2.1", 5353)),
        ("2001:DB8::1", Nameserver("2001:db8::1", 53)),
        ("[2001:db8::1]", Nameserver("2001:db8::1", 53)),
        ("[::1]:5353", Nameserver("::1", 5353)),
    ],
)
def test_nameservers(written: str, server: Nameserver) -> None:
    assert NAMESERVER.parse(written) == server


@pytest.mark.parametrize(
    "written",
    [
        "",
        "dns.example.com",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "192.0.2.1:",
        "[192.0.2.1]:53",
        "[::1",
        53,
        None,
    ],
)
def test_no_nameservers(written: object) -> None:
    with pytest.raises(ValueError, match="an IP address"):
        NAMESERVER.parse(written)


def test_networks() -> None:
    assert NETWORK.parse("10.0.0.0/8") == ipaddress.ip_network("10.0.0.0/8")
    assert NETWORK.parse("10.1.2.3") == ipaddress.ip_network("10.1.2.3/32")
    assert NETWORK.parse("2001:db8::1") == ipaddress.ip_network("2001:db8::1/128")
    for written in (None, 5, "", "10.0.0.0/33", "localhost", b"\n\0\0\1"):
        with pytest.raises(ValueError, match="a network"):
            NETWORK.parse(written)


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("database.clamav.net", "DATABASE.clamav.net.", True),
        ("database.clamav.net", "xdatabase.clamav.net", False),
        ("db.*.clamav.net", "db.de.clamav.net", True),
        ("db.*.clamav.net", "db.clamav.net", False),
        ("db.*.clamav.net", "db..clamav.net", False),
        ("db.*.clamav.net", "db.a.b.clamav.net", False),
        ("db.*.clamav.net", "db.de.clamav.net.example.com", False),
    ],
)
def test_a_star_in_a_host_is_one_label(pattern: str, host: str, matches: bool) -> None:
    assert host_matches(HOST_PATTERN.parse(pattern), host) is matches


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("Www.example.com", "www.EXAMPLE.com", True),
        ("www.example.com", "a.www.example.com", False),
        ("*.example.com", "www.example.com.", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "badexample.com", False),
    ],
)
def test_a_leading_star_in_a_domain_is_all_below(pattern: str, host: str, matches: bool) -> None:
    assert domain_matches(DOMAIN_PATTERN.parse(pattern), host) is matches


@pytest.mark.parametrize(
    "written", ["", ".", "a..b", "a b", "a/b", "a:1", "-a", "a" * 64, "a." * 127 + "a", None]
)
def test_no_host_names(written: object) -> None:
    for parse in (HOST_NAME.parse, HOST_PATTERN.parse, DOMAIN_PATTERN.parse):
        with pytest.raises(ValueError, match="host name"):
            parse(written)


@pytest.mark.parametrize("written", ["*", "*.", "www.*.com", "*x.example.com"])
def test_no_domain_patterns(written: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        DOMAIN_PATTERN.parse(written)


# What all notations have in common

NOTATIONS: dict[str, Notation[Any]] = {
    "size": SIZE,
    "duration": DURATION,
    "share": SHARE,
    "host name": HOST_NAME,
    "host pattern": HOST_PATTERN,
    "domain pattern": DOMAIN_PATTERN,
    "database": DATABASE,
    "network": NETWORK,
    "nameserver": NAMESERVER,
    "endpoint": ENDPOINT,
    "listen": LISTEN,
    "base URL": BASE_URL,
}
_EXACT = ("size", "duration", "share", "host name", "host pattern", "domain pattern", "database")
"""Those whose pattern leaves only limits to the parser."""
_LIMITS = re.compile(r"below 8 EiB")
every_notation = pytest.mark.parametrize("notation", NOTATIONS.values(), ids=NOTATIONS)

_NEAR = st.text("0123456789.:%*[]/ \n", max_size=12) | st.text(
    "0123456789.kKmMGiIbBdhmins% *-_\n\u212a\u0131\xa0"
)


def fits(notation: Notation[Any], text: str) -> bool:
    """Whether an editor takes a text for right. To ECMA, unlike Python, $ is only the very end."""
    return re.search(notation.pattern.replace("$|", r"\Z|").removesuffix("$") + r"\Z", text) is not None


@pytest.mark.parametrize("name", _EXACT)
@given(data=st.data())
def test_the_pattern_takes_what_the_parser_takes(name: str, data: st.DataObject) -> None:
    notation = NOTATIONS[name]
    text = data.draw(_NEAR | st.from_regex(notation.pattern))
    try:
        notation.parse(text)
        parsed = True
    except ValueError as error:
        parsed = _LIMITS.search(str(error)) is not None
    is_long = len(text) > 253 and "host" in notation.expected
    assert fits(notation, text) is parsed or is_long


@every_notation
@given(data=st.data())
def test_what_is_parsed_fits_the_pattern_and_is_written_so_that_it_is_parsed_again(
    notation: Notation[Any], data: st.DataObject
) -> None:
    text = data.draw(_NEAR | st.from_regex(notation.pattern))
    try:
        value = notation.parse(text)
    except ValueError:
        return
    assert fits(notation, text)
    assert notation.parse(notation.write(value)) == value


@pytest.mark.parametrize(
    ("notation", "values"),
    [
        (SIZE, st.integers(0, MAX_SIZE)),
        (DURATION, st.floats(0, 10**12) | st.integers(0, 10**12).map(lambda ms: ms / 1000)),
        (SHARE, st.floats(0, 10) | st.integers(0, 1000).map(lambda percent: percent / 100)),
    ],
    ids=["size", "duration", "share"],
)
@given(data=st.data())
def test_any_quantity_is_written_so_that_it_is_parsed_again(
    notation: Notation[Any], values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    value = data.draw(values)
    assert notation.parse(notation.write(value)) == value


@pytest.mark.parametrize(
    ("notation", "value", "written"),
    [
        (SIZE, 0, 0),
        (SIZE, 1500, 1500),
        (SIZE, 4 * GIB, "4GiB"),
        (DURATION, 0.0, "0s"),
        (DURATION, 5400.0, "1h30min"),
        (DURATION, 0.1, "100ms"),
        (DURATION, 1e-9, 1e-9),
        (SHARE, 0.1, "10%"),
        (SHARE, 1 / 3, 1 / 3),
        (NAMESERVER, Nameserver("192.0.2.1"), "192.0.2.1"),
        (NAMESERVER, Nameserver("::1", 5353), "[::1]:5353"),
        (LISTEN, Endpoint(ANY, 8080), "*:8080"),
        (HTTP_PROXY, HttpProxy("http://proxy:3128", "us@er:p:w/"), "http://us%40er:***@proxy:3128"),
        (TOKEN, SecretStr("0123456789abcdef"), "***"),
        (USER, "scanner:scrypt:hash", "scanner:***"),
    ],
)
def test_values_are_written(notation: Notation[Any], value: object, written: object) -> None:
    assert notation.write(value) == written
