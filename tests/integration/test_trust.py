"""The snippets that make a machine trust the certificate authority."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from clamproxy.authority import PermittedNames, found, rotate
from clamproxy.setup.trust import TARGETS, install_snippet

SHELL = ("debian", "rhel", "alpine", "macos")
LINUX_FILE = "/usr/local/share/ca-certificates/clamproxy.pem"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two certificates, as in an overlap."""
    directory = tmp_path_factory.mktemp("authority") / "ca"
    names = PermittedNames(("clamav.net",))
    found(directory, names, time.time())
    return rotate(directory, names, time.time(), 86400).bundle().decode()


def certificates(text: str) -> list[str]:
    """All that are in a text, without indentation."""
    lines = "".join(f"{line.strip()}\n" for line in text.splitlines())
    return re.findall(r"-----BEGIN CERTIFICATE-----\n[^-]+-----END CERTIFICATE-----\n", lines)


@pytest.mark.parametrize("target", TARGETS)
def test_all_certificates_are_in_the_snippet(target: str, bundle: str) -> None:
    snippet = install_snippet(target, bundle)
    assert "".join(certificates(snippet)) == bundle
    assert snippet.endswith("\n")
    assert max(map(len, snippet.splitlines())) <= 110
    assert not re.search(r"[ \t]+$", snippet, re.MULTILINE)
    assert snippet.isascii()


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_certificates_is_in_the_snippet(target: str, bundle: str) -> None:
    text = f"echo one\nEND\n{bundle}'@; evil\n"
    assert install_snippet(target, text) == install_snippet(target, bundle)


@pytest.mark.parametrize("target", TARGETS)
def test_no_certificate(target: str) -> None:
    with pytest.raises(ValueError, match="no certificate"):
        install_snippet(target, "-----BEGIN CERTIFICATE-----\n")


@pytest.mark.parametrize("target", SHELL)
def test_shell_syntax(target: str, bundle: str) -> None:
    script = install_snippet(target, bundle)
    assert script.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in script
    result = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, timeout=30)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("target", "path"),
    [("debian", LINUX_FILE), ("rhel", "/etc/pki/clamproxy/clamproxy.pem"), ("alpine", LINUX_FILE)],
)
@pytest.mark.parametrize("times", [1, 2])
def test_scripts_run(target: str, path: str, times: int, bundle: str, tmp_path: Path) -> None:
    """In directories of the test; once more, too."""
    script = install_snippet(target, bundle)
    for place in ("/usr/local/", "/etc/"):
        script = script.replace(f" {place}", f" {tmp_path}{place}").replace(
            f'"{place}', f'"{tmp_path}{place}'
        )
    script = script.replace("/run/systemd/system", str(tmp_path / "nothing")).replace("rc-service", "no-such")
    (tmp_path / "etc" / "conf.d").mkdir(parents=True)
    for _ in range(times):
        result = subprocess.run(["sh"], input=script, text=True, capture_output=True, timeout=30)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    trusted = tmp_path / path.lstrip("/")
    assert trusted.read_text() == bundle
    assert trusted.stat().st_mode & 0o044 == 0o044  # freshclam isn't root when it reads it
    if target == "alpine":
        expected = f"export CURL_CA_BUNDLE={tmp_path}{path}\n"
        assert (tmp_path / "etc/conf.d/freshclam").read_text().replace("='/", "=/") in (
            expected,
            f"export CURL_CA_BUNDLE={path}\n",
        )
        return
    for unit in ("clamav-freshclam", "clamav-freshclam-once"):
        drop_in = tmp_path / f"etc/systemd/system/{unit}.service.d/clamproxy.conf"
        assert drop_in.read_text() == f"[Service]\nEnvironment=CURL_CA_BUNDLE={tmp_path}{path}\n"


def test_kubernetes(bundle: str) -> None:
    config_map, deployment = yaml.safe_load_all(install_snippet("kubernetes", bundle))
    assert (config_map["kind"], config_map["data"]) == ("ConfigMap", {"clamproxy.pem": bundle})
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["volumes"][0]["configMap"]["name"] == config_map["metadata"]["name"]
    mount = container["volumeMounts"][0]
    assert mount["name"] == pod["volumes"][0]["name"]
    assert container["env"] == [
        {"name": "CURL_CA_BUNDLE", "value": f"{mount['mountPath']}/{next(iter(config_map['data']))}"}
    ]


def test_ansible(bundle: str) -> None:
    tasks: list[dict[str, Any]] = yaml.safe_load(install_snippet("ansible", bundle))
    assert all(task["name"] and task["become"] is True for task in tasks)
    copies = [task["ansible.builtin.copy"] for task in tasks if "ansible.builtin.copy" in task]
    assert [copy["content"] for copy in copies] == [
        bundle,
        f"[Service]\nEnvironment=CURL_CA_BUNDLE={copies[0]['dest']}\n",
    ]
    made = tasks[0]["loop"]
    assert [str(Path(copy["dest"]).parent) for copy in copies] == made
    registered = {task["register"] for task in tasks if "register" in task}
    assert all(name in tasks[-1]["when"] for name in registered)
    assert len(registered) == 2


def test_docker(bundle: str) -> None:
    lines = install_snippet("docker", bundle).splitlines()
    assert lines[0].startswith("# syntax=")
    start = next(number for number, line in enumerate(lines) if line.startswith("COPY "))
    end = lines.index("END")
    assert "\n".join(lines[start + 1 : end]) + "\n" == bundle
    path = lines[start].split()[-1]
    assert lines[end + 1] == f"ENV CURL_CA_BUNDLE={path}"


def test_windows(bundle: str) -> None:
    script = install_snippet("windows", bundle)
    # The ends of a here-string: nothing may follow the first, nothing stand before the second.
    assert len(re.findall(r"^@'$", script, re.MULTILINE)) == 2
    assert len(re.findall(r"^'@,?$", script, re.MULTILINE)) == 2
    assert "-addstore Root" in script
    assert "update-ca" not in script


def test_only_freshclam_is_told_to_trust(bundle: str) -> None:
    """Where freshclam can be told alone, the system's trust isn't touched."""
    for target in ("debian", "alpine", "rhel"):
        commands = [line for line in install_snippet(target, bundle).splitlines() if not line.startswith("#")]
        assert not any("update-ca" in line or ".crt" in line for line in commands)
