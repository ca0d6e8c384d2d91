"""The lines for freshclam.conf in the form of what an administrator rolls out.

The templates are in `forms`. Each form is idempotent: its lines are between two marks, and a second run
replaces what is between them. They take whatever lines there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from textwrap import indent

from clamproxy.setup.freshclam_lines import PASSWORD, USER
from clamproxy.setup.trust import LINUX_FILE

_FOLDER = Path(__file__).with_name("forms")
_PLACEHOLDER = re.compile(r"@([A-Z]+)@")
_USER = re.compile(rf"(?<=^HTTPProxyUsername ){USER}$|(?<=//){USER}(?=:)", re.MULTILINE)
_PASSWORD = re.compile(rf"(?<=^HTTPProxyPassword ){PASSWORD}$|(?<=:){PASSWORD}(?=@)", re.MULTILINE)
"""Only these places: the words may also be in a comment, or in the name of a file."""
_MIRROR = re.compile(r"^(?:Database|Private)Mirror +https?://(?:[^@/ ]*@)?(\S+)$", re.MULTILINE)


class Form(StrEnum):
    """What the lines are for."""

    SCRIPT = "script"
    """A shell script for a Unix system."""
    ANSIBLE = "ansible"
    GPO = "gpo"
    """A startup script for Windows, by Group Policy."""
    DOCKERFILE = "dockerfile"


def client_form(form: Form, lines: str, certificates: str) -> str:
    """Everything that a machine, or an administrator's tool, needs to use the gateway.

    Args:
        lines: for freshclam.conf, from `client_config`.
        certificates: what machines have to trust, in PEM; empty if they needn't trust anything.

    Raises:
        ValueError: this form can't have such lines; the text says what to do.
    """
    address = _address(lines)
    values = {
        "GATEWAY": address,
        "URL": f"http://{address}",
        "LINES": lines.rstrip("\n"),
        "CERTIFICATES": certificates.rstrip("\n"),
        "REPLACED": "|".join(_replaced(lines)),
    }
    template = (_FOLDER / _FILES[form]).read_text(encoding="ascii")
    values |= _SPECIAL[form](lines, certificates)
    text = _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)
    return text.replace("\n", "\r\n") if form is Form.GPO else text


def _address(lines: str) -> str:
    """Host and port of the gateway."""
    server, port = (
        re.search(rf"^HTTPProxy{name} (\S+)$", lines, re.MULTILINE) for name in ("Server", "Port")
    )
    if server is not None and port is not None:
        return f"{server[1]}:{port[1]}"
    mirror = _MIRROR.search(lines)
    if mirror is None:
        raise ValueError("lines that name the gateway")
    return mirror[1]


def _replaced(lines: str) -> list[str]:
    """The keys whose other lines go, as parts of a regular expression."""
    always = ["DatabaseMirror", "PrivateMirror", "HTTPProxy[A-Za-z]*"]
    return always + [key for key in ("DNSDatabaseInfo",) if f"\n{key} " in lines]


def _has_password(lines: str) -> bool:
    return _PASSWORD.search(lines) is not None


def _is_in_url(lines: str) -> bool:
    return f":{PASSWORD}@" in lines


def _filled(lines: str, user: str, password: str) -> str:
    """The lines with something else in the place of name and password."""
    return _USER.sub(lambda _: user, _PASSWORD.sub(lambda _: password, lines))


def _script(lines: str, certificates: str) -> Mapping[str, str]:
    return {}


def _ansible(lines: str, certificates: str) -> Mapping[str, str]:
    if "{{" in lines or "{%" in lines:
        raise ValueError("lines without {{ and {%, which Ansible would take for its own")
    is_secret, coded = _has_password(lines), " | urlencode | replace('/', '%2F')"
    coded = coded if _is_in_url(lines) else ""
    filled = _filled(lines, f"{{{{ clamproxy_user{coded} }}}}", f"{{{{ clamproxy_password{coded} }}}}")
    needed = "# The gateway asks for a user: keep clamproxy_user and clamproxy_password in a vault.\n"
    return {
        "CREDENTIALS": needed if is_secret else "",
        "SECRET": str(is_secret).lower(),
        "MODE": "0600" if is_secret else "{{ omit }}",
        "LINES": _indented(filled, 6),
        "CERTIFICATES": _indented(certificates, 6),
    }


def _gpo(lines: str, certificates: str) -> Mapping[str, str]:
    if not _has_password(lines):
        return {"CREDENTIALS": "", "GIVEN": ""}
    if _is_in_url(lines):
        places, value = (f"//{USER}:", f":{PASSWORD}@"), "[uri]::EscapeDataString({})"
    else:
        places, value = (f"HTTPProxyUsername {USER}", f"HTTPProxyPassword {PASSWORD}"), "{}"
    fill = "\n".join(
        f"            $_ = $_.Replace('{place}', '{place}'.Replace('{mark}', {value.format(variable)}))"
        for place, mark, variable in zip(
            places, (USER, PASSWORD), ("$env:CLAMPROXY_USER", "$env:CLAMPROXY_PASSWORD"), strict=True
        )
    )
    return {
        "CREDENTIALS": (
            "#\n"
            "# The gateway asks for a user: set CLAMPROXY_USER and CLAMPROXY_PASSWORD in the environment.\n"
            "# All users can read scripts of a Group Policy, so the password must not be in this file.\n"
        ),
        "GIVEN": (
            "    if (-not $env:CLAMPROXY_PASSWORD) { throw 'set CLAMPROXY_USER and CLAMPROXY_PASSWORD' }\n"
            "    $lines = $lines | ForEach-Object {\n"
            "        if (-not $_.StartsWith('#')) {\n"
            f"{fill}\n"
            "        }\n"
            "        $_\n"
            "    }\n"
        ),
    }


def _dockerfile(lines: str, certificates: str) -> Mapping[str, str]:
    remarks = trust = ""
    if _has_password(lines):
        if _is_in_url(lines):
            raise ValueError("the mode http or https: with a mirror, the password would be in the image")
        # No secret in an image: name and password come with the variable, at run time.
        kept = [line for line in lines.splitlines() if not line.startswith(("HTTPProxy", "#"))]
        variable = "https_proxy" if "https://" in lines else "http_proxy"
        remarks = (
            "#\n"
            "# The gateway asks for a user. No password belongs in an image: name the proxy at run time.\n"
            f"#     docker run -e {variable}=http://{USER}:{PASSWORD}@{_address(lines)} IMAGE\n"
        )
        lines = "\n".join([f"# The proxy comes from the variable {variable}.", *kept])
    if certificates:
        trust = (
            "# curl and others in the container that go by this variable then trust nothing else, either.\n"
            f"COPY --chmod=644 <<'CLAMPROXY-CERTIFICATES' {LINUX_FILE}\n{certificates.rstrip()}\n"
            f"CLAMPROXY-CERTIFICATES\nENV CURL_CA_BUNDLE={LINUX_FILE}"
        )
    return {"LINES": lines.rstrip("\n"), "REMARKS": remarks, "TRUST": trust}


def _indented(text: str, columns: int) -> str:
    """The text for a block scalar of YAML whose first line is already indented."""
    return indent(text.strip("\n"), " " * columns).lstrip(" ")


_FILES = {
    Form.SCRIPT: "script.sh",
    Form.ANSIBLE: "ansible.yaml",
    Form.GPO: "gpo.ps1",
    Form.DOCKERFILE: "dockerfile",
}
_SPECIAL: Mapping[Form, Callable[[str, str], Mapping[str, str]]] = {
    Form.SCRIPT: _script,
    Form.ANSIBLE: _ansible,
    Form.GPO: _gpo,
    Form.DOCKERFILE: _dockerfile,
}
