"""The sections about the administrator's own servers: those that notices go to, and other gateways."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from clamproxy.config.fields import BaseUrl, Duration, HostName, Section, Switch
from clamproxy.config.notation import Notation
from clamproxy.config.units import HOST_NAME, MASK, TOKEN, SecretUrl, normal_host

_TOKEN = "a string of at least 16 characters from A-Z, a-z, 0-9 and -._~, or null"  # noqa: S105
_CONDITION = "a list of names that `clamproxy notify` prints, such as [ClamproxyEndOfLifeClients]"
MOST_TARGETS = 32
"""Webhooks, recipients or peers, at most."""


def _address(text: str) -> str:
    if len(text) > 254:  # RFC 5321 4.5.3.1.3
        raise ValueError("too long")
    HOST_NAME.parse(text.rpartition("@")[2])
    return text


MAIL_ADDRESS = Notation(
    pattern=r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9._-]{1,253}$",
    expected="a mail address such as admin@example.net",
    read=_address,
)
"""The address alone, without a name or quotes (dot-atom of RFC 5322)."""

PASSWORD = Notation(
    pattern=r"^(?!\*\*\*$)[ -~]{1,256}$",
    expected="a string of printable ASCII characters",
    read=SecretStr,
    write=lambda _: MASK,
)
"""smtplib can't send others."""

WEBHOOK_URL = Notation(
    pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://[A-Za-z0-9._-]+(:[0-9]{1,5})?([/?][A-Za-z0-9._~:/\[\]@!$&'(),;=%?+-]*)?$",
    expected="an http:// or https:// URL without credentials",
    read=SecretUrl.parse,
    write=lambda url: f"{url.origin}/{MASK}",
)
"""Whoever knows the URL may post there, so only its host is ever shown."""

CONDITION = Notation(
    pattern="^Clamproxy[A-Za-z]{1,40}$",
    expected="a name that `clamproxy notify` prints",
    read=str,
)


class MailSection(Section):
    """The mail server for notices, and whom they go to. There is no mail without a server."""

    server: HostName | None = Field(None, description="a host name, or null")
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = Field(
        None, description="a port from 1 to 65535, or null"
    )
    tls: Literal["starttls", "tls", "none"] = Field("starttls", description="starttls, tls or none")
    user: Annotated[str, Field(strict=True, pattern=r"^[ -~]{1,256}$")] | None = Field(
        None, description="a string of printable ASCII characters, or null"
    )
    password: Annotated[SecretStr, PASSWORD] | None = Field(
        None, validate_default=True, description="a string of printable ASCII characters, or null"
    )
    sender: Annotated[str, MAIL_ADDRESS] | None = Field(
        None, description="a mail address such as clamproxy@example.net, or null"
    )
    recipients: tuple[Annotated[str, MAIL_ADDRESS], ...] = Field(
        (),
        validate_default=True,
        max_length=MOST_TARGETS,
        description="a list of mail addresses such as [admin@example.net]",
    )

    @field_validator("password", mode="after")
    @classmethod
    def _suits_the_user(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        server, user, tls = (info.data.get(key) for key in ("server", "user", "tls"))
        if "user" in info.data and (user is None) != (password is None):
            missing = "a password for mail.user" if password is None else "null, as mail.user is null"
            raise PydanticCustomError("conflict", missing)
        if password is not None and tls == "none" and server is not None and not _is_here(server):
            raise PydanticCustomError(
                "conflict", "mail.tls: starttls or tls with it; it must not cross the network in the clear"
            )
        return password

    @field_validator("recipients", mode="after")
    @classmethod
    def _are_given(cls, recipients: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("server") is not None and not recipients:
            raise PydanticCustomError("conflict", "at least one mail address, as mail.server is set")
        return recipients


class Webhook(Section):
    """Where to post notices."""

    url: Annotated[SecretUrl, WEBHOOK_URL] = Field(
        description="an http:// or https:// URL without credentials"
    )
    form: Literal["slack", "teams", "json"] = Field(description="slack, teams or json")
    token: Annotated[SecretStr, TOKEN] | None = Field(None, description=_TOKEN)
    through_proxy: Switch = Field(False, description="true or false")


class NotifySection(Section):
    """Notices about what needs an administrator; `after` and `repeat` in seconds."""

    webhooks: tuple[Webhook, ...] = Field(
        (),
        max_length=MOST_TARGETS,
        description='a list of entries such as {url: "https://hooks.example.net/…", form: slack}',
    )
    after: Duration = Field(600.0, ge=0, le=86400, description="a duration such as 10min, at most 1d")
    repeat: Duration = Field(
        86400.0, ge=60, le=365 * 86400, description="a duration such as 1d, from 1min to 365d"
    )
    ignore: tuple[Annotated[str, CONDITION], ...] = Field((), description=_CONDITION)


class Peer(Section):
    """Another gateway."""

    url: BaseUrl = Field(description="an http:// or https:// URL such as http://gateway2:8080")
    token: Annotated[SecretStr, TOKEN] | None = Field(None, description=_TOKEN)

    @property
    def name(self) -> str:
        """What it is called: the URL without the scheme."""
        return self.url.partition("://")[2]


Peers = tuple[Peer, ...]


def no_peer_twice(peers: Peers) -> Peers:
    """Refuse two peers with the same name.

    Raises:
        PydanticCustomError: there are such.
    """
    names = [peer.name for peer in peers]
    for name in names:
        if names.count(name) > 1:
            raise PydanticCustomError("conflict", "each gateway once; {name} is there twice", {"name": name})
    return peers


def _is_here(server: str) -> bool:
    try:
        return ipaddress.ip_address(server).is_loopback
    except ValueError:
        return normal_host(server) == "localhost"
