"""The Debian package, installed, upgraded, removed and purged by the real dpkg, in a copy of this system.

Only the copy of Python and its libraries is left out, because making it takes minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.contrib import CONTRIB, ROOT
from tests.support.programs import give_up, require_program


class Build(Protocol):
    def __call__(self, target: Path, version: str, addition: str = "") -> None: ...


LIMIT = 100
"""Seconds for each step."""
STUB = f"""
mkdir -p "$root$prefix/bin"
printf '#!/bin/sh\nexec {sys.executable} "$@"\n' >"$root$prefix/bin/python3"
chmod +x "$root$prefix/bin/python3"
"""
"""What is built instead of the copy of Python."""

_SOURCES = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"),
    *("benchmarks", "docs", "proxy.yaml", "pyproject.toml"),
)
"""What the recipe reads, besides contrib/."""

IN_A_COPY = r"""
set -e
mount -t tmpfs scratch "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --bind /dev "$1/root/dev"
mount -t proc proc "$1/root/proc"
mount -t tmpfs run "$1/root/run"
cp "$2"/*.deb "$1/root/run"
exec chroot "$1/root" /bin/sh -e -c "$3"
"""
"""Arguments: a directory to mount on, one with packages, and a script that finds them in /run."""

SCRIPT = r"""
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
wants=/etc/systemd/system/multi-user.target.wants/clamproxy.service
quiet_dpkg() { dpkg --no-triggers --force-unsafe-io --force-confdef --force-confold "$@" >/dev/null 2>&1; }
install_package() { quiet_dpkg -i "/run/$1.deb"; }
tell() { echo "$1: $2"; }
mode() { stat -c "%a %U %G" "$1"; }
is_enabled() { test -L $wants && echo yes || echo no; }

install_package first
tell "user" "$(getent passwd clamproxy | cut -d: -f6,7)"
tell "cache" "$(mode /var/cache/clamproxy)"
tell "state" "$(mode /var/lib/clamproxy)"
tell "configuration" "$(mode /etc/clamproxy/proxy.yaml)"
tell "defaults" "$(mode /etc/default/clamproxy)"
tell "enabled" "$(is_enabled)"
tell "command" "$(readlink /usr/bin/clamproxy)"
tell "man page" "$(zcat /usr/share/man/man1/clamproxy.1.gz | head -c 3)"
tell "completed" "$(grep -l _CLAMPROXY_COMPLETE /usr/share/bash-completion/completions/clamproxy)"
tell "conffiles" "$(dpkg-query -W -f '${Conffiles}' clamproxy | cut -d' ' -f2 | tr -d '\n')"

echo "# mine" >>/etc/clamproxy/proxy.yaml
echo "OPTIONS=--mine" >/etc/default/clamproxy
touch /var/cache/clamproxy/object /var/lib/clamproxy/key
systemctl disable clamproxy.service 2>/dev/null
tell "disabled" "$(is_enabled)"

install_package second
tell "version" "$(dpkg-query -W -f '${Version}' clamproxy)"
tell "changed file kept" "$(tail -n 1 /etc/clamproxy/proxy.yaml)"
tell "new file beside it" "$(tail -n 1 /etc/clamproxy/proxy.yaml.dpkg-dist)"
tell "changed defaults kept" "$(cat /etc/default/clamproxy)"
tell "data kept" "$(ls /var/cache/clamproxy /var/lib/clamproxy | grep -c -e object -e key)"
tell "still disabled" "$(is_enabled)"

systemctl enable clamproxy.service 2>/dev/null
quiet_dpkg -r clamproxy
tell "program removed" "$(ls /opt /usr/bin | grep -c clamproxy)"
tell "data after removal" "$(ls /var/cache/clamproxy /var/lib/clamproxy | grep -c -e object -e key)"
install_package second
tell "enabled again" "$(is_enabled)"

touch "/etc/systemd/system/timers.target.wants/clamproxy-mirror@var-www.timer"
quiet_dpkg -P clamproxy
tell "left" "$(find /etc /opt /usr /var /lib/systemd -name '*clamproxy*' 2>/dev/null | tr '\n' ' ')"
"""


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Runs the recipe, for a version, with a line added to the configuration that is delivered."""

    def run(target: Path, version: str, addition: str = "") -> None:
        source = tmp_path / version
        source.mkdir()
        for name in _SOURCES:
            (source / name).symlink_to(ROOT / name)
        shutil.copytree(CONTRIB, source / "contrib")
        recipe = source / "contrib" / "debian" / "build"
        text = recipe.read_text()
        text = re.sub(r"^copy_python\ninstall_project\n", lambda _: STUB, text, flags=re.MULTILINE)
        text = re.sub(r"^release=.*$", f"release={version}", text, flags=re.MULTILINE)
        recipe.write_text(text)
        with (source / "contrib" / "systemd" / "proxy.yaml").open("a") as configuration:
            configuration.write(addition)
        environ = os.environ | {"PYTHON": sys.executable}
        command = [str(recipe), str(source / "dist")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environ)
        assert result.returncode == 0, result.stderr
        (package,) = (source / "dist").glob("*.deb")
        package.rename(target)

    return run


def run_in_a_copy(packages: Path, mount_point: Path) -> dict[str, str]:
    """What the script tells; all that it changes is gone then."""
    if os.geteuid() != 0:
        give_up("only root can install packages")
    mount_point.mkdir()
    command = [require_program("unshare"), "--mount", "--pid", "--fork", "--kill-child"]
    command += ["sh", "-c", IN_A_COPY, "sh", str(mount_point), str(packages), SCRIPT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if re.search(r"^(mount|unshare): ", result.stderr, re.MULTILINE):
        give_up(f"file systems can't be mounted here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stdout + result.stderr
    return dict(line.split(": ", 1) for line in result.stdout.splitlines())


@pytest.mark.timeout(3 * LIMIT)
def test_life_of_the_package(build: Build, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    build(packages / "first.deb", "1.0")
    build(packages / "second.deb", "1.1", addition="# new\n")
    assert run_in_a_copy(packages, tmp_path / "scratch") == {
        "user": "/var/lib/clamproxy:/usr/sbin/nologin",
        "cache": "700 clamproxy clamproxy",
        "state": "700 clamproxy clamproxy",
        "configuration": "640 root clamproxy",
        "defaults": "640 root clamproxy",
        "enabled": "yes",
        "command": "/opt/clamproxy/bin/clamproxy",
        "man page": ".TH",
        "completed": "/usr/share/bash-completion/completions/clamproxy",
        "conffiles": "/etc/clamproxy/proxy.yaml",
        "disabled": "no",
        "version": "1.1",
        "changed file kept": "# mine",
        "new file beside it": "# new",
        "changed defaults kept": "OPTIONS=--mine",
        "data kept": "2",
        "still disabled": "no",
        "program removed": "0",
        "data after removal": "2",
        "enabled again": "yes",
        "left": "",
    }
