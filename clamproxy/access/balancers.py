"""Load balancers in front of the gateway: which connections are theirs, and whose requests they forward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clamproxy.config.units import Network, client_ip


class Balancers:
    """The balancers that the configuration names. Nobody else can name a client's address.

    Attributes:
        announcing: networks whose connections begin with a PROXY header (`access.proxy_protocol`).
        forwarding: networks whose X-Forwarded-For is believed (`access.forwarded_for`).
    """

    def __init__(self) -> None:
        self.announcing: Sequence[Network] = ()
        self.forwarding: Sequence[Network] = ()

    def announces(self, address: str) -> bool:
        """Whether connections from an address must begin with a PROXY header."""
        return bool(self.announcing) and _is_in(self.announcing, address)

    def forwards(self, address: str) -> bool:
        """Whether requests from an address say in X-Forwarded-For whose they are."""
        return bool(self.forwarding) and _is_in(self.forwarding, address)

    def client_of(self, address: str, fields: Iterable[str]) -> str:
        """The client of a request that a balancer has forwarded.

        Each balancer appends the address that it got the request from. So the last one that isn't a
        balancer's is the client's; whatever is before it, the client may have sent.

        Args:
            address: the balancer that the request came from.
            fields: the values of all X-Forwarded-For fields, in their order.
        """
        for element in reversed(",".join(fields).split(",")):
            forwarded = _address_in(element.strip(" \t"))
            if forwarded is None:
                break
            address = forwarded
            if not self.forwards(address):
                break
        return address


def _is_in(networks: Sequence[Network], address: str) -> bool:
    ip = client_ip(address)
    return ip is not None and any(ip in network for network in networks)


def _address_in(element: str) -> str | None:
    """The address in an element of X-Forwarded-For; some balancers add the port."""
    if element.startswith("["):
        element = element[1:].partition("]")[0]
    elif element.count(":") == 1:
        element = element.partition(":")[0]
    ip = client_ip(element)
    return None if ip is None else str(ip)
