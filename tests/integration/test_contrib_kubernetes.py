"""The manifests for Kubernetes agree with each other, with the image and with the program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.loading import load_settings
from clamproxy.config.settings import Settings
from clamproxy.web.pages import PATHS
from tests.support.contrib import CONTRIB, directives, load_yaml, parse

FOLDER = CONTRIB / "kubernetes"
VERSIONS = {
    "Namespace": "v1",
    "ConfigMap": "v1",
    "Service": "v1",
    "StatefulSet": "apps/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}


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


def test_kinds_and_names() -> None:
    found = objects()
    assert {kind: document["apiVersion"] for kind, document in found.items()} == VERSIONS
    namespace = found.pop("Namespace")["metadata"]["name"]
    assert {document["metadata"]["namespace"] for document in found.values()} == {namespace}
    for document in found.values():
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", document["metadata"]["name"])


def test_selectors_meet_the_pod() -> None:
    found = objects()
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["StatefulSet"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert found["StatefulSet"]["spec"]["serviceName"] == found["Service"]["metadata"]["name"]
    assert found["StatefulSet"]["spec"]["replicas"] == 1


def test_ports_agree() -> None:
    found = objects()
    (port,) = container()["ports"]
    command = [*container()["command"], *container()["args"]]
    assert parse(command)["port"] == port["containerPort"] == 8080
    (served,) = found["Service"]["spec"]["ports"]
    assert (served["targetPort"], served["port"]) == (port["name"], port["containerPort"])
    (rule,) = found["NetworkPolicy"]["spec"]["ingress"]
    assert [each["port"] for each in rule["ports"]] == [port["containerPort"]]
    annotations = found["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    assert annotations["prometheus.io/path"] in PATHS


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probes(probe: str) -> None:
    asked = container()[probe]["httpGet"]
    assert asked["port"] == container()["ports"][0]["name"]
    assert asked["path"] == ("/readyz" if probe == "readinessProbe" else "/livez")
    assert asked["path"] in PATHS


def test_volumes_agree() -> None:
    claims = objects()["StatefulSet"]["spec"]["volumeClaimTemplates"]
    there = {volume["name"] for volume in pod()["volumes"]} | {each["metadata"]["name"] for each in claims}
    assert {mount["name"] for mount in container()["volumeMounts"]} == there
    (config,) = (volume for volume in pod()["volumes"] if "configMap" in volume)
    assert config["configMap"]["name"] == objects()["ConfigMap"]["metadata"]["name"]


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


def test_strictest_pod_security_standard() -> None:
    """What "restricted" demands of a pod."""
    labels = objects()["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    security, own = pod()["securityContext"], container()["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod()["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod())


def test_values_for_charts() -> None:
    service = objects()["Service"]
    (values,) = load_yaml(FOLDER / "helm" / "helm-values-example.yaml")
    for text in (values["freshclamConfig"], values["config"]["freshclam"]):
        lines = directives(text)
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        assert lines["HTTPProxyServer"] == [f"{name}.{namespace}.svc"]
        assert lines["HTTPProxyPort"] == [str(service["spec"]["ports"][0]["port"])]
        assert lines["DatabaseMirror"] == ["http://database.clamav.net"]
