"""The manifests for Kubernetes ask for what the program has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.loading import load_settings
from clamproxy.config.settings import Settings
from clamproxy.web.pages import PATHS
from tests.support.contrib import CONTRIB, load_yaml, parse

FOLDER = CONTRIB / "kubernetes"


def objects() -> dict[str, Any]:
    """All by kind; there is one of each."""
    documents = [document for path in sorted(FOLDER.glob("*.yaml")) for document in load_yaml(path)]
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = objects()["StatefulSet"]["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    assert isinstance(only, dict)
    return only


def test_command_is_ours() -> None:
    (port,) = container()["ports"]
    command = [*container()["command"], *container()["args"]]
    assert parse(command)["port"] == port["containerPort"]
    annotations = objects()["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in PATHS


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probes(probe: str) -> None:
    asked = container()[probe]["httpGet"]
    assert asked["path"] in PATHS


def test_configuration(tmp_path: Path) -> None:
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container()["volumeMounts"]}
    ((name, text),) = objects()["ConfigMap"]["data"].items()
    command = [*container()["command"], *container()["args"]]
    assert parse(command)["config"] == str(mounts["config"] / name)
    path = tmp_path / name
    path.write_text(text)
    settings = load_settings(path, {})
    confdir = Path(command[-1].removeprefix("confdir="))
    for directory in (settings.cache.directory, settings.tls.directory, confdir):
        # Below the volume, not the volume itself: that belongs to root.
        assert mounts["data"] in directory.parents
    claimed = objects()["StatefulSet"]["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]
    gib = int(claimed["storage"].removesuffix("Gi"))
    assert settings.cache.size_limit + settings.feeds.size_limit < gib * 2**30
    assert set(settings.serving.clients) <= set(Settings().serving.clients)
