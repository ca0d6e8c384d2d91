"""Logging in at the parent proxy: NTLM, and Negotiate (Kerberos, or NTLM inside SPNEGO).

Both take several requests over one connection, which then stays authenticated. pyspnego does the
cryptography; it comes with the extra ``clamproxy[negotiate]``, and is imported only where it is needed.

Basic takes no handshake. But with all three, each attempt with a wrong password counts at the proxy.
"""

from __future__ import annotations

import base64
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3

from clamproxy.config.units import HttpProxy, host_and_port
from clamproxy.origin.strict_http import StrictConnection, StrictResponse

_NAMES = {"ntlm": "NTLM", "negotiate": "Negotiate"}
"""The names of the schemes in HTTP."""
_CHALLENGE, _CREDENTIALS = "Proxy-Authenticate", "Proxy-Authorization"
_CODES = re.compile(r"^(SpnegoError \(\d+\): |Major \(\d+\): )+")
_NO_TUNNEL = "Tunnel connection failed: "
"""How http.client's error begins if the proxy answers otherwise than with a tunnel; the status follows."""
ACCEPTED_FOR, REFUSED_FOR = 600.0, 900.0
"""For how many seconds the proxy's last word on the credentials is believed. Directories lock accounts after
some three to ten failures within half an hour."""
_LOOK_EVERY = 0.1
_LARGEST_REFUSAL = 256 * 1024
"""Bytes of the page that comes with a 407, which has to be read before the connection can be used again."""


class LoginError(OSError):
    """There is no ticket, or an invalid challenge; or the proxy has refused the same credentials lately."""


class Admission:
    """Whether a parent proxy accepts the credentials. Thread-safe.

    As long as that isn't known, one connection finds out, while all others wait: a wrong password must not be
    sent by many at once, which would lock the account.
    """

    def __init__(self, proxy: HttpProxy) -> None:
        self.proxy = proxy
        self._turn = threading.Lock()
        self._accepted_until = self._refused_until = -math.inf

    def enter(self, check: Callable[[], None]) -> bool:
        """Wait until the credentials may be sent.

        Args:
            check: called from time to time; may raise if nobody wants the connection any more.

        Returns:
            Whether others wait for the result: then `leave` must follow.

        Raises:
            LoginError: the proxy has refused the credentials lately.
        """
        while not self._turn.acquire(timeout=_LOOK_EVERY):
            check()
        now = time.monotonic()
        if now >= max(self._accepted_until, self._refused_until):
            return True
        self._turn.release()
        if now < self._refused_until:
            raise LoginError(
                "it has refused these credentials lately, and isn't asked again for some minutes"
            )
        return False

    def leave(self) -> None:
        """Let the next one find out, or all others if the result is known."""
        self._turn.release()

    def note(self, *, is_accepted: bool) -> None:
        """Note what the proxy said."""
        now = time.monotonic()
        self._accepted_until = now + ACCEPTED_FOR if is_accepted else -math.inf
        self._refused_until = -math.inf if is_accepted else now + REFUSED_FOR

    def forgive(self) -> None:
        """Ask the proxy again: the password may have been corrected there."""
        self._refused_until = -math.inf


_admissions: dict[HttpProxy, Admission] = {}


def admission_to(proxy: HttpProxy) -> Admission:
    """One for all connections of the process: what the proxy counts is attempts by the same user."""
    return _admissions.setdefault(proxy, Admission(proxy))


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
                except LoginError:
                    raise
                except Exception as error:  # not base64, or whatever pyspnego stumbles over
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
        admission: to the proxy; None if there are no credentials for it.
    """

    def __init__(self, *args: Any, admission: Admission | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._admission = admission
        # With Basic, the pool adds the credentials.
        self._login = admission.proxy if admission is not None and admission.proxy.scheme != "basic" else None
        self._handshake: Login | None = None
        self._asked: tuple[str, str, Mapping[str, str], dict[str, Any]] | None = None
        self._is_first = False
        """Whether others wait for the proxy's answer."""

    def check_wanted(self) -> None:
        """Raises OSError if nobody wants the connection any more."""

    def _enter(self) -> None:
        if self._admission is not None and not self._is_first:
            self._is_first = self._admission.enter(self.check_wanted)

    def _leave(self) -> None:
        if self._admission is not None and self._is_first:
            self._is_first = False
            self._admission.leave()

    def _note(self, *, is_accepted: bool) -> None:
        if self._admission is not None:
            self._admission.note(is_accepted=is_accepted)

    def _tunnel(self) -> None:
        """Open a tunnel.

        Raises:
            LoginError: see `Login` and `Admission.enter`.
            OSError: the proxy refuses; the text is that of http.client.
        """
        self._enter()
        try:
            if self._login is None:
                super()._tunnel()
            else:
                self._log_in_and_tunnel(self._login)
            self._note(is_accepted=True)
        except OSError as error:
            if (text := str(error)).startswith(_NO_TUNNEL):
                self._note(is_accepted=not text.startswith(f"{_NO_TUNNEL}407"))
            raise
        finally:
            self._leave()

    def _log_in_and_tunnel(self, login: HttpProxy) -> None:
        handshake = Login(login)
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
        raise OSError(f"{_NO_TUNNEL}{response.status} {response.reason}")

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
        if self._admission is None or self._tunnel_host is not None:
            super().request(method, url, body, headers, **options)
            return
        try:
            if self.sock is None:
                self._enter()
            if self._login is not None:
                # "close" would end the connection in the middle of the handshake.
                headers = {name: value for name, value in (headers or {}).items() if name != "Connection"}
                self._asked, self._handshake = (method, url, headers, {"body": body, **options}), None
                if self.sock is None:
                    headers = {**headers, _CREDENTIALS: self._next_field([])}
            super().request(method, url, body, headers, **options)
        except BaseException:
            self._leave()
            raise

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        """Wait for the response; where it asks to go on with the handshake, do so, and wait for the next."""
        if self._tunnel_host is not None:
            return super().getresponse()
        try:
            response = super().getresponse()
            while self._asked is not None and response.status == 407 and self.sock is not None:
                field = self._next_field(response.headers.getlist(_CHALLENGE))
                if not field or len(response.read(_LARGEST_REFUSAL) or b"") == _LARGEST_REFUSAL:
                    break
                method, url, headers, options = self._asked
                super().request(method, url, headers={**headers, _CREDENTIALS: field}, **options)
                response = super().getresponse()
            self._note(is_accepted=response.status != 407)
            return response
        finally:
            self._leave()

    def _next_field(self, challenges: Iterable[str]) -> str:
        """The next step of the handshake, or its first; empty if the proxy has refused."""
        assert self._login is not None  # noqa: S101
        if self._handshake is not None:
            return self._handshake.next(challenges) or ""
        self._enter()
        self._handshake = Login(self._login)
        return self._handshake.first()


def _first_line(error: BaseException) -> str:
    """An error as one line, without the codes that pyspnego puts first."""
    text = _CODES.sub("", str(error)) or type(error).__name__
    return text.splitlines()[0][:200]


def login_error(error: BaseException | None) -> LoginError | None:
    """The error in the handshake with the parent proxy, whatever it is wrapped in."""
    while error is not None and not isinstance(error, LoginError):
        inner = [one for one in (*error.args, error.__context__) if isinstance(one, BaseException)]
        error = inner[0] if inner else None
    return error
