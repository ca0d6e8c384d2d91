"""The dashboard and the alert rules use no metric but those that are there; promtool accepts them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clamproxy.cache.store import Store
from clamproxy.peers.peers import PeerState
from clamproxy.releases.holds import Hold, hold
from clamproxy.web.metrics import exposition
from tests.harness.status import StatusHarness, machine
from tests.support.fixtures import MakeCvd
from tests.support.stored import cdiff, put, put_cvd

CONTRIB = Path(__file__).parents[2] / "contrib"
RULES = CONTRIB / "prometheus" / "clamproxy-alerts.yml"
TESTS = CONTRIB / "prometheus" / "alerts-test.yml"
SCRAPE = CONTRIB / "prometheus" / "scrape-example.yml"
DASHBOARD = CONTRIB / "grafana" / "clamproxy.json"

_USE = re.compile(r"\b(clamproxy_[a-z_]+)(?:\{([^{}]*)\})?")
_LABEL = re.compile(r"([a-z]+)=(?:~)?\"([^\"]*)\"")
_OF_PROMETHEUS = {"job", "instance"}


@pytest.fixture
async def metrics(store: Store, make_cvd: MakeCvd) -> dict[str, dict[str, set[str]]]:
    """All metrics there are: by name, the values of each label."""
    put_cvd(store, 3, make_cvd(3))
    put(store, cdiff(4))
    store.set_note("advertised/daily", [5, 1.0])
    peers = [PeerState("b:8080", "http://b:8080", up=True)]
    hold(store.records.directory, "daily", Hold(4, 1.0, "me"))
    harness = StatusHarness(
        store,
        machines=[machine(1, daily=0)],
        peers=peers,
        fleet_store={"url": "s3://bucket/prefix", "failure": None, "since": None},
    )
    text, _ = exposition(await harness.status(), "")
    found: dict[str, dict[str, set[str]]] = {}
    for name, labels in re.findall(r"^(clamproxy_\w+)(?:\{(.*)\})? ", text.decode(), re.MULTILINE):
        values = found.setdefault(name, {})
        for label, value in _LABEL.findall(labels):
            values.setdefault(label, set()).add(value)
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def expressions_of(value: Any) -> Iterator[str]:
    """All expressions in a dashboard."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("expr", "definition"):
                yield inner
            else:
                yield from expressions_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions_of(inner)


def assert_known(expression: str, metrics: dict[str, dict[str, set[str]]]) -> None:
    """Each metric is one of clamproxy's, and each label has such values."""
    for name, selector in _USE.findall(expression):
        assert name in metrics, expression
        for label, value in _LABEL.findall(selector):
            if label not in _OF_PROMETHEUS:
                assert set(value.split("|")) <= metrics[name].get(label, set()), expression


def test_rules_use_what_is_there(metrics: dict[str, dict[str, set[str]]]) -> None:
    assert rules()
    for rule in rules():
        assert_known(rule["expr"], metrics)


def test_tests_use_what_is_there(metrics: dict[str, dict[str, set[str]]]) -> None:
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for series in test["input_series"]:
            name = series["series"].partition("{")[0]
            assert name == "up" or name in metrics


def test_dashboard_uses_what_is_there(metrics: dict[str, dict[str, set[str]]]) -> None:
    found = list(expressions_of(dashboard()))
    assert len(found) > 15
    for expression in found:
        assert _USE.search(expression)
        assert_known(expression, metrics)


def test_dashboard_can_be_imported() -> None:
    """Any data source, ids that are different, and panels that don't overlap."""
    found = dashboard()
    assert found["templating"]["list"][0]["type"] == "datasource"
    assert "id" not in found
    panels, source = found["panels"], {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        cells |= own
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == source
            assert target["refId"]


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    result = subprocess.run(
        [program, *arguments], cwd=RULES.parent, capture_output=True, text=True, timeout=100, env=os.environ
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_checks_the_rules() -> None:
    promtool("check", "rules", RULES.name)


def test_promtool_tests_the_rules() -> None:
    promtool("test", "rules", TESTS.name)


def test_promtool_checks_the_example(tmp_path: Path) -> None:
    for file in (RULES, SCRAPE):
        shutil.copy(file, tmp_path)
    promtool("check", "config", str(tmp_path / SCRAPE.name))


def test_promtool_checks_the_dashboard(tmp_path: Path) -> None:
    """By way of rules: promtool knows no dashboards."""
    records = []
    for number, expression in enumerate(expressions_of(dashboard())):
        if expression.startswith("label_values"):
            continue
        plain = re.sub(r"\$__(range|rate_interval)", "5m", expression)
        records.append({"record": f"panel:{number}", "expr": plain})
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    promtool("check", "rules", str(path))
