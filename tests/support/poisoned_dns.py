"""A DNS server that says anything about ClamAV's versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.rdtypes.ANY.TXT import TXT

from tests.support.dns_server import PRIMARY, FakeDns

type Record = list[bytes]
"""The character-strings of a TXT record."""
FOR_EVER = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Poison:
    """What is said instead of the truth."""

    name: str
    records: Callable[[int, int], list[Record] | dns.rcode.Rcode | None]
    """Given Unix seconds and how often it was asked: TXT records, an error, or None for the truth."""
    is_ahead: bool = False
    """Whether it hides nothing: the gateway looks at the origin by itself."""


class PoisonedDns(FakeDns):
    """Tells the truth until it is given a poison."""

    poison: Poison | None = None
    asked = 0

    def answer(self, query: dns.message.Message) -> dns.message.Message | None:
        self.asked += 1
        now = int(self.clock.time())
        said = self.poison.records(now, self.asked) if self.poison is not None else None
        if said is None:
            return super().answer(query)
        question, answer = query.question[0], dns.message.make_response(query)
        if isinstance(said, dns.rcode.Rcode):
            answer.set_rcode(said)
        elif question.name.to_text(omit_final_dot=True).lower() == PRIMARY:
            texts = [TXT(dns.rdataclass.IN, dns.rdatatype.TXT, strings) for strings in said]
            if texts:
                answer.answer.append(dns.rrset.from_rdata_list(question.name, 60, texts))
            else:
                loop = question.name.to_text()
                answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "CNAME", loop))
        return answer


def says(
    daily: object, *, main: object = 62, bytecode: object = 339, at: int | None = None
) -> Callable[..., str]:
    """The primary record with these versions."""
    return lambda now: f"1.4.6:{main}:{daily}:{now if at is None else at}:0:90:49192:339"


def _always(name: str, text: Callable[..., str], *, is_ahead: bool = False) -> Poison:
    return Poison(name, lambda now, _: [[text(now).encode()]], is_ahead)


def _raw(name: str, *strings: bytes) -> Poison:
    return Poison(name, lambda *_: [list(strings)])


def _flapping(name: str, *texts: Callable[..., str] | dns.rcode.Rcode, is_ahead: bool = False) -> Poison:
    def records(now: int, asked: int) -> list[Record] | dns.rcode.Rcode:
        said = texts[asked % len(texts)]
        return said if isinstance(said, dns.rcode.Rcode) else [[said(now).encode()]]

    return Poison(name, records, is_ahead)


POISONS = (
    _always("the last version that there can be", says(FOR_EVER), is_ahead=True),
    _always("fifty versions ahead", says(53), is_ahead=True),
    _always("two versions ahead", says(6), is_ahead=True),
    _always("the first version", says(1)),
    _always("version 0", says(0)),
    _always("a negative version", says(-4)),
    _always("a number without end", says("9" * 180)),
    _always("a fraction", says("4.0")),
    _always("digits of other scripts", says("\u0664")),
    _always("main's version as daily's", says(62, main=3), is_ahead=True),
    _always("recorded long ago", says(2, at=0)),
    _always("recorded in the future", says(2, at=2**40)),
    Poison(
        "counting up far ahead",
        lambda now, asked: [[says(10**6 + asked)(now).encode()]],
        is_ahead=True,
    ),
    _flapping("far ahead and far behind", says(FOR_EVER), says(1), is_ahead=True),
    _flapping("one ahead and one behind", says(5), says(2), is_ahead=True),
    _flapping("right and SERVFAIL", says(4), dns.rcode.SERVFAIL, is_ahead=True),
    _flapping("NXDOMAIN and SERVFAIL", dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL),
    _flapping("the first version and NXDOMAIN", says(1), dns.rcode.NXDOMAIN),
    _raw("no text", b""),
    _raw("colons", b":" * 200),
    _raw("no ASCII", bytes(range(128, 256))),
    _raw("control characters", b"1.4.6:62:\x1b[31m4\x00:1:0:90:1:339\r\n"),
    _raw("many strings", *([b"1.4.6:62:"] * 60)),
    Poison("many records", lambda now, _: [[says(n)(now).encode()] for n in range(1, 400)]),
    Poison("a CNAME of itself", lambda *_: []),
    Poison("refused", lambda *_: dns.rcode.REFUSED),
)
