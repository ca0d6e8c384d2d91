"""The file of labels: names and groups that the administrator gives to machines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from clamproxy.config.loading import ConfigurationError, read_text
from clamproxy.config.settings import Settings
from clamproxy.config.units import NETWORK, Network, client_ip

LONGEST = 64
"""Length of a name or a group in characters, at most."""
NO_GROUP = "-"
"""Stands for machines without a group where one is asked for, so no group may be called that."""

_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", re.ASCII)
_COMMENT = re.compile(r"(^|\s)#.*")


class Label(NamedTuple):
    """What a line says about a machine; None for what it leaves out."""

    name: str | None
    group: str | None

    def or_else(self, other: Label) -> Label:
        """This label, with what it leaves out from another one."""
        return Label(self.name or other.name, self.group or other.group)


UNLABELLED = Label(None, None)


@dataclass(frozen=True)
class Labels:
    """All labels."""

    by_machine: Mapping[str, Label] = field(default_factory=dict)
    """By UUID or address, in the form in which the fleet has them."""
    by_network: Mapping[Network, Label] = field(default_factory=dict)

    def of(self, uuid: str, address: str) -> Label:
        """The label of a machine: each part from the UUID, else the address, else the longest network."""
        label = self.by_machine.get(uuid, UNLABELLED)
        if None in label:
            label = label.or_else(self.by_machine.get(address, UNLABELLED))
        if label.group is None and self.by_network:
            label = label.or_else(self._of_network(address))
        return label

    def groups(self) -> set[str]:
        """Every group in the file."""
        labels = (*self.by_machine.values(), *self.by_network.values())
        return {label.group for label in labels if label.group is not None}

    def _of_network(self, address: str) -> Label:
        ip = client_ip(address)
        if ip is not None:
            for length, mask in self._masks[ip.version]:
                if (label := self._numbers.get((ip.version, length, int(ip) & mask))) is not None:
                    return label
        return UNLABELLED

    @cached_property
    def _numbers(self) -> dict[tuple[int, int, int], Label]:
        return {
            (network.version, network.prefixlen, int(network.network_address)): label
            for network, label in self.by_network.items()
        }

    @cached_property
    def _masks(self) -> dict[int, list[tuple[int, int]]]:
        """The lengths and masks of the networks of each IP version, the longest first."""
        networks = {(one.version, one.prefixlen, int(one.netmask)) for one in self.by_network}
        return {
            version: sorted(((length, mask) for of, length, mask in networks if of == version), reverse=True)
            for version in (4, 6)
        }


NO_LABELS = Labels()


def read_labels(path: Path) -> Labels:
    """Read the file. Blocks.

    Raises:
        ConfigurationError: it can't be read, or a line is wrong; the text names the line.
    """
    return parse_labels(read_text(path), str(path))


def require_labels(settings: Settings) -> None:
    """Check the file of labels, if there is one. Blocks.

    Raises:
        ConfigurationError: as from `read_labels`.
    """
    if settings.fleet.labels is not None:
        read_labels(settings.fleet.labels)


def parse_labels(text: str, source: str) -> Labels:
    """Parse the text of a file.

    Raises:
        ConfigurationError: a line is wrong; the text names it.
    """
    by_machine: dict[str, Label] = {}
    by_network: dict[Network, Label] = {}
    seen: dict[str | Network, int] = {}
    for number, line in _lines(text):
        try:
            key, label = _parse_line(line)
            if key in seen:
                raise ValueError(f"{line.partition('=')[0].strip()} is already in line {seen[key]}")
        except ValueError as error:
            raise ConfigurationError(f"{source}: line {number}: {error}") from None
        seen[key] = number
        if isinstance(key, str):
            by_machine[key] = label
        else:
            by_network[key] = label
    return Labels(by_machine, by_network)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if content := (_COMMENT.sub("", line) if "#" in line else line).strip():
            yield number, content


def _parse_line(line: str) -> tuple[str | Network, Label]:
    machine, equals, rest = line.partition("=")
    if not equals:
        raise ValueError(f"{_shown(line)}: expected address-or-network-or-UUID = name, group")
    key = _key(machine.strip())
    parts = [part.strip() for part in rest.split(",")]
    if len(parts) > 2:
        raise ValueError(f"{_shown(rest.strip())}: expected a name and a group, with one comma at most")
    name, group = (_word(part) for part in (*parts, "")[:2])
    if name is None and group is None:
        raise ValueError(f"{_shown(machine.strip())} has neither a name nor a group")
    if group == NO_GROUP:
        raise ValueError(f"{_shown(NO_GROUP)} can't be a group")
    if not isinstance(key, str) and name is not None:
        raise ValueError(f"{_shown(machine.strip())} is a network, which can't have a name: write = , {name}")
    return key, Label(name, group)


def _key(text: str) -> str | Network:
    """A UUID, an address, or a network of more than one address."""
    if _UUID.fullmatch(text):
        return text.lower()
    ip = client_ip(text)
    if ip is not None:
        return str(ip)
    try:
        network = NETWORK.parse(text)
    except ValueError as error:
        expected = "an address, a network or a UUID" if str(error) == NETWORK.expected else str(error)
        raise ValueError(f"{_shown(text)}: expected {expected}") from None
    return str(network.network_address) if network.num_addresses == 1 else network


def _word(text: str) -> str | None:
    if len(text) > LONGEST or not text.isprintable():
        raise ValueError(f"{_shown(text)}: expected at most {LONGEST} printable characters")
    return text or None


def _shown(text: str) -> str:
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")
