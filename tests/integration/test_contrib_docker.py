"""The container image and the compose file, as far as can be told without building them."""

from __future__ import annotations

import ast
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.loading import load_settings
from clamproxy.config.settings import Settings
from clamproxy.web.pages import PATHS
from tests.support.contrib import CONTRIB, NOFILE_PER_CONNECTION, ROOT, load_yaml, parse

DOCKER = CONTRIB / "docker"
DOCKERFILE = DOCKER / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Name and arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def of(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def copied() -> list[str]:
    """What comes from the project."""
    words = [rest.split() for rest in of("COPY") if "--from=" not in rest]
    return [source for each in words for source in each[:-1] if not source.startswith("--")]


def test_what_is_copied_exists() -> None:
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source


def test_what_is_copied_is_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    admitted = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert admitted == set(copied())
    ignored = [rule for rule in rules[1:] if not rule.startswith("!")]
    for source in copied():
        assert not any(fnmatch(source, rule.removeprefix("**/")) for rule in ignored)


def test_what_the_build_needs_is_copied() -> None:
    """pyproject.toml names files that setuptools wants to see."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        assert name in copied()
    # obstore is for fleet_store (contrib/kubernetes/replicas).
    for package in ("setuptools", "obstore"):
        assert re.search(rf"^{package}==", (ROOT / "requirements.txt").read_text(), re.MULTILINE), package


def test_entry_point_is_ours() -> None:
    words = json.loads(of("ENTRYPOINT")[0])
    params = parse(words)
    assert (str(params["port"]), params["config"]) == (of("EXPOSE")[0], "/etc/clamproxy/proxy.yaml")
    assert any(rest.endswith(" /etc/clamproxy/proxy.yaml") for rest in of("COPY"))


def test_only_volumes_are_written_to() -> None:
    volumes = json.loads(of("VOLUME")[0])
    settings = load_settings(DOCKER / "proxy.yaml", {})
    confdir = Path(json.loads(of("ENTRYPOINT")[0])[-1].removeprefix("confdir="))
    for directory in (settings.cache.directory, settings.tls.directory, confdir):
        assert any(directory.is_relative_to(volume) for volume in volumes), directory
    for volume in volumes:
        assert any(rest.endswith(f" {volume}") and "--chown=10001:10001" in rest for rest in of("COPY"))


def test_health_check_asks_for_a_page_of_ours() -> None:
    """Its code is run by tests/e2e/test_service_manager.py."""
    check = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    assert check[:2] == ["python", "-c"]
    ast.parse(check[2])
    url = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", check[2])
    assert url is not None
    assert url[1] == of("EXPOSE")[0]
    assert url[2] in PATHS


# compose.yaml


def compose() -> dict[str, Any]:
    document: dict[str, Any] = load_yaml(DOCKER / "compose.yaml")[0]
    return document


def test_compose_gives_descriptors_for_all_connections() -> None:
    gateway = compose()["services"]["clamproxy"]
    assert gateway["ulimits"]["nofile"] >= NOFILE_PER_CONNECTION * Settings().access.max_connections + 256


def test_variables_in_compose_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = compose()["services"]["clamproxy"]["environment"]
    assert load_settings(DOCKER / "proxy.yaml", environ).log.format == "json"
