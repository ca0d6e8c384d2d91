"""The manifests for Kubernetes ask for what the program has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.loading import load_settings
from clamproxy.config.settings import Settings
from clamproxy.proxy.addon import CLOSING_LIMIT, STOP_GRACE
from clamproxy.web.pages import PATHS
from tests.support.contrib import CONTRIB, load_yaml, parse

FOLDER = CONTRIB / "kubernetes"


REPLICAS = FOLDER / "replicas"
SHARED = ("Namespace", "Service", "NetworkPolicy")
"""What the Deployment uses, too."""


def objects(folder: Path = FOLDER) -> dict[str, Any]:
    """All of a folder by kind; there is one of each."""
    documents = [document for path in sorted(folder.glob("*.yaml")) for document in load_yaml(path)]
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def workload(folder: Path) -> dict[str, Any]:
    (spec,) = (
        found["spec"] for kind, found in objects(folder).items() if kind in ("StatefulSet", "Deployment")
    )
    assert isinstance(spec, dict)
    return spec


def pod(folder: Path) -> dict[str, Any]:
    spec: dict[str, Any] = workload(folder)["template"]["spec"]
    return spec


def container(folder: Path) -> dict[str, Any]:
    (only,) = pod(folder)["containers"]
    assert isinstance(only, dict)
    return only


def command(folder: Path) -> list[str]:
    return [*container(folder)["command"], *container(folder)["args"]]


def mounts(folder: Path) -> dict[str, Path]:
    return {mount["name"]: Path(mount["mountPath"]) for mount in container(folder)["volumeMounts"]}


def configured(folder: Path, directory: Path) -> Settings:
    """The settings in the ConfigMap, as the command finds them."""
    ((name, text),) = objects(folder)["ConfigMap"]["data"].items()
    assert parse(command(folder))["config"] == str(mounts(folder)["config"] / name)
    path = directory / name
    path.write_text(text)
    return load_settings(path, {})


def gib(size: str) -> int:
    return int(size.removesuffix("Gi")) * 2**30


both = pytest.mark.parametrize("folder", [FOLDER, REPLICAS], ids=["volume", "replicas"])


@both
def test_command_is_ours(folder: Path) -> None:
    (port,) = container(folder)["ports"]
    assert parse(command(folder))["port"] == port["containerPort"]
    annotations = workload(folder)["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in PATHS


@both
@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probes(folder: Path, probe: str) -> None:
    asked = container(folder)[probe]["httpGet"]
    assert asked["path"] in PATHS


@both
def test_configuration(folder: Path, tmp_path: Path) -> None:
    settings = configured(folder, tmp_path)
    confdir = Path(command(folder)[-1].removeprefix("confdir="))
    for directory in (settings.cache.directory, settings.state.directory, settings.files.directory, confdir):
        # Below the volume, not the volume itself: that belongs to root.
        assert mounts(folder)["data"] in Path(str(directory)).parents
    assert set(settings.serving.clients) <= set(Settings().serving.clients)


def test_cache_fits_into_the_volume(tmp_path: Path) -> None:
    settings = configured(FOLDER, tmp_path)
    claimed = workload(FOLDER)["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]
    assert settings.cache.size_limit + settings.feeds.size_limit < gib(claimed["storage"])
    assert mounts(FOLDER)["data"] in settings.tls.directory.parents


@both
def test_service_network_policy_and_budget_mean_these_pods(folder: Path) -> None:
    labels = workload(folder)["template"]["metadata"]["labels"]
    assert workload(folder)["selector"]["matchLabels"] == labels
    assert objects()["Service"]["spec"]["selector"] == labels
    assert objects()["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    if budget := objects(folder).get("PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"] == labels


@both
def test_stop_has_the_time_that_it_needs(folder: Path) -> None:
    hook = (
        container(folder)
        .get("lifecycle", {})
        .get("preStop", {})
        .get("exec", {})
        .get("command", ["sleep", "0"])
    )
    assert hook[0] == "sleep"
    needed = int(hook[1]) + STOP_GRACE + CLOSING_LIMIT
    assert pod(folder)["terminationGracePeriodSeconds"] > needed


def test_replicas_need_no_volume_and_share_a_store(tmp_path: Path) -> None:
    settings = configured(REPLICAS, tmp_path)
    volumes = {volume["name"]: volume for volume in pod(REPLICAS)["volumes"]}
    assert set(volumes) == set(mounts(REPLICAS))
    assert {kind for volume in volumes.values() for kind in volume} == {
        "name",
        "configMap",
        "secret",
        "emptyDir",
    }
    room = gib(volumes["data"]["emptyDir"]["sizeLimit"])
    assert settings.cache.size_limit + settings.feeds.size_limit < room
    assert settings.fleet_store is not None
    assert workload(REPLICAS)["replicas"] > objects(REPLICAS)["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert not set(objects(REPLICAS)) & set(SHARED)


def test_replicas_sign_with_one_authority(tmp_path: Path) -> None:
    assert configured(REPLICAS, tmp_path).tls.directory == mounts(REPLICAS)["authority"]
