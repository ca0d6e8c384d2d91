"""Puts a process under the seccomp rules of a systemd unit, without systemd.

What systemd does by seccomp is emulated with the same library: SystemCallFilter, MemoryDenyWriteExecute,
RestrictAddressFamilies, RestrictNamespaces. What it does by mounts and credentials is not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "libseccomp.so.2"
UNIT_VARIABLE = "TEST_UNIT"
"""The environment variable that names the unit whose rules apply, see `confined_environment`."""
CALLS_VARIABLE = "TEST_SYSTEM_CALLS"

_ALLOW = 0x7FFF0000
_EPERM = 0x00050000 | errno.EPERM
_EAFNOSUPPORT = 0x00050000 | errno.EAFNOSUPPORT
_ENOSYS = 0x00050000 | errno.ENOSYS
_EQUAL, _MASKED = 4, 7
_WRITE, _EXECUTE = 2, 4
_NEW_NAMESPACES = 0x7E020000 | 0x80
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME (sched.h)."""
_FAMILIES = "RestrictAddressFamilies"
_MOST_FAMILIES = 64


class _Comparison(ctypes.Structure):
    """scmp_arg_cmp of seccomp.h."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class _Filter:
    """A filter of libseccomp for this process and what it starts."""

    def __init__(self, default: int) -> None:
        self._library = ctypes.CDLL(LIBRARY, use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))
        assert self._context.value

    def add(self, action: int, name: str, *comparisons: tuple[int, int, int, int]) -> None:
        """A rule for a system call; one that this machine doesn't have is left out."""
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return
        array = (_Comparison * len(comparisons))(*(_Comparison(*each) for each in comparisons))
        code = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(comparisons), array
        )
        assert code == 0, f"{name}: {os.strerror(-code)}"

    def load(self) -> None:
        """Apply the filter from now on."""
        code = self._library.seccomp_load(self._context)
        assert code == 0, os.strerror(-code)


def unit_setting(unit: Path, name: str) -> list[str]:
    """The values of a setting, in order."""
    lines = unit.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def allowed_calls(unit: Path) -> set[str]:
    """The system calls that SystemCallFilter allows; asks systemd-analyze what is in its groups."""
    allowed: set[str] = set()
    for line in unit_setting(unit, "SystemCallFilter"):
        names = set().union(*(_members(name) for name in line.removeprefix("~").split()))
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed | _members("@default")


@cache
def _members(name: str) -> frozenset[str]:
    if not name.startswith("@"):
        return frozenset({name})
    command = ["systemd-analyze", "--no-pager", "syscall-filter", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    entries = [line.strip() for line in output.splitlines() if line.startswith("    ")]
    names = [entry for entry in entries if not entry.startswith("#")]
    return frozenset().union(*(_members(entry) for entry in names))


def confine(unit: Path, calls: set[str]) -> None:
    """Apply the rules of a unit to this process and its children, permanently.

    Args:
        unit: the file.
        calls: the result of `allowed_calls`.
    """
    denials = _Filter(_ALLOW)
    if unit_setting(unit, "MemoryDenyWriteExecute") == ["yes"]:
        both = _WRITE | _EXECUTE
        denials.add(_EPERM, "mmap", (2, _MASKED, both, both))
        for name in ("mprotect", "pkey_mprotect"):
            denials.add(_EPERM, name, (2, _MASKED, _EXECUTE, _EXECUTE))
    if unit_setting(unit, "RestrictNamespaces") == ["yes"]:
        denials.add(_ENOSYS, "clone3")  # its flags are out of reach of a filter; glibc then takes clone
        for name in ("clone", "unshare"):
            for flag in (1 << bit for bit in range(32) if _NEW_NAMESPACES & 1 << bit):
                denials.add(_EPERM, name, (0, _MASKED, flag, flag))
    admitted = {int(getattr(socket, name)) for name in unit_setting(unit, _FAMILIES)[0].split()}
    for family in range(_MOST_FAMILIES):
        if family not in admitted:
            denials.add(_EAFNOSUPPORT, "socket", (0, _EQUAL, family, 0))
    denials.load()
    permissions = _Filter(_EPERM)
    for name in calls:
        permissions.add(_ALLOW, name)
    permissions.load()


def confined_environment(directory: Path, unit: Path) -> dict[str, str]:
    """Variables that put every Python process which has them under the rules of a unit, from its first line.

    Args:
        directory: an empty one.
        unit: the file.
    """
    directory.mkdir(parents=True)
    (directory / "sitecustomize.py").write_text(_SITE_CUSTOMIZE)
    return {
        "PYTHONPATH": f"{directory}:{ROOT}",
        UNIT_VARIABLE: str(unit),
        CALLS_VARIABLE: " ".join(sorted(allowed_calls(unit))),
    }


_SITE_CUSTOMIZE = f"""
import os
from pathlib import Path
from tests.support.confinement import confine
confine(Path(os.environ["{UNIT_VARIABLE}"]), set(os.environ["{CALLS_VARIABLE}"].split()))
"""
