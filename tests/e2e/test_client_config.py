"""The lines that `clamproxy client-config` prints make the real freshclam use the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest
from werkzeug.security import generate_password_hash

from tests.support.freshclam import OK, Freshclam, Outcome
from tests.support.site import LOCALHOST, Site

from .conftest import MakeSite

MODES = ("http", "https", "mirror", "private")


def printed(site: Site, *arguments: str) -> str:
    result = site.gateway.tool(
        "client-config", "--gateway", LOCALHOST, "--port", str(site.gateway.port), *arguments
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def run(directory: Path, lines: str, **environment: str) -> Outcome:
    """A run of freshclam with these lines, and none else that says where to."""
    client = Freshclam(directory=directory, mirrors=[], extra=lines.splitlines(), environment=environment)
    # freshclam takes no password from a file that others can read, and the file keeps its mode.
    (directory / "freshclam.conf").touch(mode=0o600)
    return client.run()


def trust(site: Site, mode: str) -> dict[str, str]:
    return {"CURL_CA_BUNDLE": str(site.gateway.ca)} if mode == "https" else {}


@pytest.mark.parametrize("mode", MODES)
def test_freshclam_with_these_lines(site: Site, tmp_path: Path, mode: str) -> None:
    site.publish(6)
    outcome = run(tmp_path, printed(site, "--mode", mode), **trust(site, mode))
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": 6}), outcome.output + site.gateway.log


def test_http_is_the_default(site: Site) -> None:
    assert printed(site) == printed(site, "--mode", "http")


@pytest.mark.parametrize("mode", MODES)
def test_freshclam_with_a_user(make_site: MakeSite, tmp_path: Path, mode: str) -> None:
    site = make_site(access={"users": [f"alice:{generate_password_hash('s3cret')}"]})
    site.publish(6)
    lines = printed(site, "--mode", mode)
    assert "HTTPProxyPassword PASSWORD\n" in lines or ":PASSWORD@" in lines
    lines = lines.replace("USERNAME", "alice").replace("PASSWORD", "s3cret")
    outcome = run(tmp_path, lines, **trust(site, mode))
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": 6}), outcome.output + site.gateway.log
