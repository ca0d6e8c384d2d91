"""What clients that mean no good may send on one connection: valid requests, and what looks like them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle, pairwise
from random import Random

from tests.support.gateway import CDN
from tests.torture import oddities

NAME = "test-6.cvd.sign"
"""A file that both gateways have in their caches."""
DOORS = ("absolute", "reverse", "tunnel", "early", "tls", "h2", "passed", "text header", "binary header")
"""How a stream arrives: see `Stream.door`."""
_ABSOLUTE = ("absolute", "text header", "binary header")
_LINE = (
    oddities.METHODS,
    oddities.SPACES,
    oddities.TARGETS,
    oddities.SPACES,
    oddities.VERSIONS,
    oddities.ENDS,
)
"""What a request line is made of; the first of each is ordinary."""


@dataclass(frozen=True, slots=True)
class Stream:
    """All bytes of one connection."""

    door: str
    """`absolute` and `reverse`: to these ports. `tunnel`, `tls`, `h2`: inside a tunnel to port 80 or 443,
    `h2` offering HTTP/2. `early`: CONNECT and what follows are sent at once. `passed`: in a tunnel to a
    host that is passed through. `text header`, `binary header`: after the PROXY header of a balancer."""
    atoms: tuple[bytes, ...]
    """The bytes, in pieces that can be left out to find the smallest stream that shows a difference."""
    cuts: tuple[int, ...] = ()
    """Where the client waits a moment; -1 stands for everywhere."""
    half_closes: bool = True
    """Whether the client says at once that it will send no more. Otherwise it sends another request."""

    @property
    def data(self) -> bytes:
        return b"".join(self.atoms)

    @property
    def may_be_given_up(self) -> bool:
        """Whether a request is given up if the client seems to leave: so its moment counts."""
        is_passed = self.door == "passed" or b"{upstream}" in self.data
        return is_passed or b"4294967299" in self.data

    def segments(self, data: bytes) -> list[bytes]:
        """What is sent at a time."""
        if self.cuts == (-1,):
            return [data[at : at + 1] for at in range(len(data))]
        edges = [0, *sorted(min(cut, len(data)) for cut in self.cuts), len(data)]
        return [data[start:end] for start, end in pairwise(edges) if end > start]

    def without(self, number: int) -> Stream:
        """The same stream without one of its pieces."""
        return replace(self, atoms=self.atoms[:number] + self.atoms[number + 1 :])


def target_of(door: str) -> str:
    """What a request for the file in the cache has to name."""
    return f"http://{CDN}/{NAME}" if door in _ABSOLUTE else f"/{NAME}"


def odd_streams() -> list[Stream]:
    """A stream for each oddity: a request that is ordinary but for this, and one that is ordinary."""
    pieces = (*_LINE, oddities.HOSTS, oddities.ENDS, oddities.ENDS)
    plain = [options[0] for options in pieces]
    odd = [
        [*plain[:number], option, *plain[number + 1 :]]
        for number, options in enumerate(pieces)
        for option in dict.fromkeys(options[1:])
        if option != options[0]
    ]
    odd += [[*plain[:-1], field, *plain[-2:]] for field in dict.fromkeys(oddities.FIELDS)]
    odd += [[*plain[:-1], field, *plain[-2:], content] for field, content in dict.fromkeys(oddities.CONTENT)]
    made = []
    for atoms, door in zip(odd, cycle(("absolute", "tunnel", "reverse", "tls")), strict=False):
        aimed = tuple(atom.replace(b"{f}", target_of(door).encode()) for atom in (*atoms, *plain) if atom)
        stream = Stream(door, aimed)
        made.append(replace(stream, half_closes=not stream.may_be_given_up))
    return made


def make_stream(random: Random) -> Stream:
    """One connection, perhaps with several requests."""
    door = random.choice(DOORS)
    atoms = [atom for _ in range(random.choice((1, 1, 2, 2, 3))) for atom in _request(random, door)]
    if door == "early":
        atoms.insert(0, _connect(random))
    if random.random() < 0.3:
        atoms = _damaged(random, atoms)
    size = sum(map(len, atoms))
    cuts: tuple[int, ...] = tuple(random.randrange(size + 1) for _ in range(random.choice((0, 0, 1, 2))))
    if random.random() < 0.05 and size < 600:
        cuts = (-1,)
    if atoms[0].startswith((b"\x16", b"PROXY")):
        cuts = ()  # what a connection is, is decided by its first bytes, as they arrive
    made = Stream(door, tuple(atoms), cuts, half_closes=random.random() < 0.5)
    return replace(made, half_closes=False) if made.may_be_given_up else made


def _request(random: Random, door: str) -> list[bytes]:
    """A request in its pieces; half of them have at most one oddity."""
    odd = random.choice((0.0, 0.02, 0.1, 0.3))

    def choose(options: list[bytes]) -> bytes:
        return random.choice(options) if random.random() < odd else options[0]

    atoms = [choose(options).replace(b"{f}", target_of(door).encode()) for options in _LINE]
    fields = [choose(oddities.HOSTS), *random.choices(oddities.FIELDS, k=random.choice((0, 0, 1, 1, 2)))]
    content = b""
    if random.random() < 0.35:
        field, content = random.choice(oddities.CONTENT)
        fields.append(field)
        if random.random() < 0.6:
            atoms[0] = random.choice((b"POST", b"PUT", b"GET", b"HEAD", b"CONNECT"))
    random.shuffle(fields)
    for one in fields:
        atoms += [one, choose(oddities.ENDS)]
    return [atom for atom in (*atoms, choose(oddities.ENDS), content) if atom]


def _connect(random: Random) -> bytes:
    host = random.choice((f"{CDN}:80", f"{CDN}:443", f"{CDN}:8080", "{upstream}", "{own}", "x.example:80"))
    fields = random.choice((f"Host: {host}\r\n", "Host: x\r\n", "", "Host: x\r\nContent-Length: 0\r\n"))
    return f"CONNECT {host} HTTP/1.{random.choice('1110')}\r\n{fields}\r\n".encode()


def _damaged(random: Random, atoms: list[bytes]) -> list[bytes]:
    atoms = list(atoms)
    for _ in range(random.choice((1, 1, 2))):
        number = random.randrange(len(atoms))
        atom = atoms[number]
        at = random.randrange(len(atom) + 1)
        match random.randrange(4):
            case 0:
                atoms[number] = atom[:at] + random.choice(oddities.ODD_BYTES) + atom[at:]
            case 1:
                atoms[number] = atom[:at] + atom[at + 1 :]
            case 2:
                atoms[number] = atom[:at] + random.choice(oddities.ODD_BYTES) + atom[at + 1 :]
            case _:
                atoms.insert(number, random.choice(atoms))
    return atoms
