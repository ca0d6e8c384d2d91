"""NTLM, and Negotiate (Kerberos, or NTLM inside SPNEGO), towards the parent proxy.

Both take several requests over one connection, which then stays authenticated. pyspnego does the
cryptography; it comes with the extra ``clamproxy[negotiate]``, and is imported only where it is needed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3

from clamproxy.config.units import HttpProxy, host_and_port
from clamproxy.origin.strict_http import StrictConnection, StrictResponse

_NAMES = {"ntlm": "NTLM", "negotiate": "Negotiate"}
"""The names of the schemes in HTTP."""
_CHALLENGE, _CREDENTIALS = "Proxy-Authenticate", "Proxy-Authorization"
_CODES = re.compile(r"^(SpnegoError \(\d+\): |Major \(\d+\): )+")
_LARGEST_REFUSAL = 256 * 1024
"""Bytes of the page that comes with a 407, which has to be read before the connection can be used again."""


class LoginError(OSError):
    """There is nothing to log in with, such as a ticket; or the proxy's challenge makes no sense."""


class Login:
    """One handshake, over one connection.

    Args:
        proxy: with its credentials. Without any, Kerberos uses the ticket in the process's credential cache.

    Raises:
        LoginError: it can't begin.
    """

    def __init__(self, proxy: HttpProxy) -> None:
        import spnego
        import spnego.exceptions

        self._failures = (spnego.exceptions.SpnegoError, ValueError, OSError)
        self._name = _NAMES[proxy.scheme]
        user, _, password = (proxy.credentials or "").partition(":")
        try:
            self._context: Any = spnego.client(
                user or None,
                password or None,
                hostname=urlsplit(proxy.url).hostname or "",
                service="HTTP",
                protocol=proxy.scheme,
            )
        except (*self._failures, ImportError) as error:
            raise LoginError(_first_line(error)) from error

    def first(self) -> str:
        """The Proxy-Authorization field of the first request.

        Raises:
            LoginError: there is none, for example without a ticket.
        """
        return self._step(None)

    def next(self, challenges: Iterable[str]) -> str | None:
        """The field of the next request; None if the proxy has refused.

        Args:
            challenges: the Proxy-Authenticate fields of a 407.

        Raises:
            LoginError: the challenge makes no sense.
        """
        for challenge in challenges:
            name, _, token = challenge.strip().partition(" ")
            if name.lower() == self._name.lower() and token.strip() and not self._context.complete:
                try:
                    return self._step(base64.b64decode(token.strip(), validate=True))
                except binascii.Error as error:
                    raise LoginError("an invalid challenge") from error
        return None

    def _step(self, token: bytes | None) -> str:
        try:
            answer: bytes = self._context.step(token) or b""
        except self._failures as error:
            raise LoginError(_first_line(error)) from error
        return f"{self._name} {base64.b64encode(answer).decode('ascii')}"


class LoginConnection(StrictConnection):
    """A connection that logs in at the proxy which it leads to.

    Args:
        login: the proxy, if logging in takes a handshake.
    """

    def __init__(self, *args: Any, login: HttpProxy | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._login = login
        self._handshake: Login | None = None
        self._asked: tuple[str, str, Mapping[str, str], dict[str, Any]] | None = None

    def _tunnel(self) -> None:
        """Open a tunnel.

        Raises:
            LoginError: see `Login`.
            OSError: the proxy refuses; the text is that of http.client.
        """
        if self._login is None:
            super()._tunnel()
            return
        handshake = Login(self._login)
        field: str | None = handshake.first()
        while field is not None:
            response = self._ask_for_tunnel(field)
            if 200 <= response.status < 300:
                response.close()
                return
            is_asked = response.status == 407 and not response.will_close
            field = handshake.next(response.headers.get_all(_CHALLENGE, [])) if is_asked else None
            if field is not None and len(response.read(_LARGEST_REFUSAL)) == _LARGEST_REFUSAL:
                field = None
        response.close()
        self.close()
        raise OSError(f"Tunnel connection failed: {response.status} {response.reason}")

    def _ask_for_tunnel(self, field: str) -> StrictResponse:
        host: str = self._tunnel_host  # type: ignore[assignment]
        target = host_and_port(host.encode("idna").decode("ascii"), self._tunnel_port or 443)
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"{_CREDENTIALS}: {field}"]
        self.sock.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii"))
        response = StrictResponse(self.sock, method="CONNECT")
        response.begin()
        return response

    def request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Send a request; on a new connection, with what begins the handshake."""
        if self._login is not None and self._tunnel_host is None:
            # "close" would end the connection in the middle of the handshake.
            headers = {name: value for name, value in (headers or {}).items() if name != "Connection"}
            self._asked, self._handshake = (method, url, headers, {"body": body, **options}), None
            if self.sock is None:
                headers = {**headers, _CREDENTIALS: self._next_field([])}
        super().request(method, url, body, headers, **options)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        """Wait for the response; where it asks to go on with the handshake, do so, and wait for the next."""
        response = super().getresponse()
        while self._asked is not None and response.status == 407 and self.sock is not None:
            field = self._next_field(response.headers.getlist(_CHALLENGE))
            if not field or len(response.read(_LARGEST_REFUSAL) or b"") == _LARGEST_REFUSAL:
                break
            method, url, headers, options = self._asked
            super().request(method, url, headers={**headers, _CREDENTIALS: field}, **options)
            response = super().getresponse()
        return response

    def _next_field(self, challenges: Iterable[str]) -> str:
        """The next step of the handshake, or its first; empty if the proxy has refused."""
        assert self._login is not None  # noqa: S101
        if self._handshake is not None:
            return self._handshake.next(challenges) or ""
        self._handshake = Login(self._login)
        return self._handshake.first()


def _first_line(error: BaseException) -> str:
    """An error as one line, without the codes that pyspnego puts first."""
    text = _CODES.sub("", str(error)) or type(error).__name__
    return text.splitlines()[0][:200]
