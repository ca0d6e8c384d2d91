"""Types of values in proxy.yaml that several sections have, and what all sections have in common."""

from __future__ import annotations

import os
import re
import ssl
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from clamproxy.config.notation import OneOrMore
from clamproxy.config.quantities import DURATION, SHARE, SIZE
from clamproxy.config.units import BASE_URL, DATABASE, HOST_NAME, LISTEN, Endpoint, require_text


def _absolute_path(value: object, info: ValidationInfo) -> Path:
    """Resolve a path against the validation context's ``base``, else the working directory."""
    text = str(value) if isinstance(value, Path) else require_text(value)
    if not text or b"\0" in os.fsencode(text):
        raise ValueError("a path")
    if text[0] in "~$":
        raise PydanticCustomError("conflict", "a path without ~ or variables")
    base: Path = info.context["base"] if info.context else Path.cwd()
    return base / text


_PEM_BLOCK = re.compile(
    rb"^-----BEGIN ([^\n-]+)-----\s*$(?:(?!-----).)*^-----END \1-----\s*?$", re.DOTALL | re.MULTILINE
)
_PEM_MARK = re.compile(rb"-----(?:BEGIN|END)\b|^-----\w*\Z", re.MULTILINE)
"""What begins or ends a block, or may have been about to."""


def certificates(path: Path) -> Path:
    """Refuse a file that holds no certificates in PEM."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:  # of which SSLError is one
        raise ValueError("certificates") from error
    return path


def roots(directory: Path) -> Path:
    """Refuse a directory that holds no certificates in PEM, or anything else under their names."""
    from clamproxy.root_certificates import read_roots  # takes a while to import

    try:
        read_roots(directory)
    except (OSError, ValueError) as error:
        raise ValueError("certificates") from error
    return directory


def client_authorities(path: Path) -> Path:
    """Refuse a file that isn't whole, because what is missing could be a revocation list."""
    with suppress(OSError):
        try:
            check_pem(path.read_bytes())
        except ValueError as error:
            raise PydanticCustomError("conflict", "a complete file, without half a PEM block") from error
    return certificates(path)


def check_pem(text: bytes) -> None:
    """Raise ValueError if a block is incomplete, so that readers would ignore it."""
    if _PEM_MARK.search(_PEM_BLOCK.sub(b"", text)):
        raise ValueError("an incomplete PEM block")


def available(scheme: str) -> str:
    """Refuse a way to log in for which a package is missing."""
    if scheme != "basic" and find_spec("spnego") is None:
        missing = f"basic; {scheme} needs the package pyspnego: pip install 'clamproxy[negotiate]'"
        raise PydanticCustomError("conflict", "{missing}", {"missing": missing})
    return scheme


def with_obstore(url: str) -> str:
    """Refuse an object store if the package for it is missing."""
    if find_spec("obstore") is None:
        missing = "null, because the package obstore is missing: pip install 'clamproxy[fleet]'"
        raise PydanticCustomError("conflict", "{missing}", {"missing": missing})
    return url


Size = Annotated[int, SIZE]
Duration = Annotated[float, DURATION]
Share = Annotated[float, SHARE]
Count = Annotated[int, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]
AbsolutePath = Annotated[
    Path, PlainValidator(_absolute_path), WithJsonSchema({"type": "string", "minLength": 1})
]
DatabaseName = Annotated[str, DATABASE]
BaseUrl = Annotated[str, BASE_URL]
HostName = Annotated[str, HOST_NAME]

Endpoints = Annotated[tuple[Annotated[Endpoint, LISTEN], ...], OneOrMore()]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
