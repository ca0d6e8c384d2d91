"""How to make a machine's freshclam trust the gateway's certificate authority.

On Linux and BSD, freshclam trusts the certificates in the file that ``CURL_CA_BUNDLE`` names, and then no
others; on macOS and Windows it trusts those of the system, and only those (docs/protocol.md 7;
common/mac/cert_util_mac.m and common/win/cert_util_win.c of ClamAV). The snippets contain the
certificates themselves, because anything fetched from the gateway over plain http could be forged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from textwrap import dedent, indent

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n")
LINUX_FILE = "/usr/local/share/ca-certificates/clamproxy.pem"
"""Debian's AppArmor profile lets freshclam read this file (docs/protocol.md 7)."""
RHEL_FILE = "/etc/pki/clamproxy/clamproxy.pem"
"""Everything below /etc/pki has a type that SELinux lets freshclam read."""
KUBERNETES_FILE = "/etc/clamproxy/clamproxy.pem"
INSTALLED_FILES = (LINUX_FILE, RHEL_FILE, KUBERNETES_FILE)
"""Where the snippets put the certificates on a machine, unless they go into the system's trust store."""


def install_snippet(target: str, bundle: str) -> str:
    """The script or manifest for an administrator to run or apply.

    Args:
        target: one of `TARGETS`.
        bundle: one or more certificates as PEM.

    Raises:
        ValueError: there is no certificate in the bundle.
    """
    certificates = _CERTIFICATE.findall(bundle)
    if not certificates:
        raise ValueError("no certificate")
    return TARGETS[target](certificates)


def _debian(certificates: list[str]) -> str:
    head = """\
        #!/bin/sh
        # Debian, Ubuntu: freshclam trusts the gateway. Run this as root.
        set -eu
        umask 022

        # AppArmor lets freshclam read this directory. As the name doesn't end in .crt,
        # update-ca-certificates leaves the file alone: only freshclam trusts what is in it.
        """
    return dedent(head) + _systemd(LINUX_FILE, "/etc/ssl/certs/ca-certificates.crt", certificates)


def _rhel(certificates: list[str]) -> str:
    head = """\
        #!/bin/sh
        # RHEL, Fedora and similar systems: freshclam trusts the gateway. Run this as root.
        #
        # To have the whole system trust it instead, put each certificate into a file of its own in
        # /etc/pki/ca-trust/source/anchors and run update-ca-trust; then the rest isn't needed.
        set -eu
        umask 022

        # SELinux lets freshclam read what is below /etc/pki. Only freshclam trusts what is in this file.
        """
    return dedent(head) + _systemd(RHEL_FILE, "/etc/pki/tls/certs/ca-bundle.crt", certificates)


def _systemd(path: str, public: str, certificates: list[str]) -> str:
    units = """
        # A drop-in for the daemon, and one for the timer, in case that is used instead.
        for unit in clamav-freshclam clamav-freshclam-once; do
            mkdir -p "/etc/systemd/system/$unit.service.d"
            printf '[Service]\\nEnvironment=CURL_CA_BUNDLE=%s\\n' {path} \\
                > "/etc/systemd/system/$unit.service.d/clamproxy.conf"
        done
        if [ -d /run/systemd/system ]; then
            systemctl daemon-reload
            systemctl try-restart clamav-freshclam.service
        fi

        # By hand: CURL_CA_BUNDLE={path} freshclam
        """
    return _file(path, public, certificates) + dedent(units).format(path=path)


def _alpine(certificates: list[str]) -> str:
    head = """\
        #!/bin/sh
        # Alpine: freshclam trusts the gateway. Run this as root.
        set -eu
        umask 022

        # As the name doesn't end in .crt, update-ca-certificates leaves the file alone: only freshclam
        # trusts what is in it.
        """
    service = """
        # OpenRC reads this file before it starts the service.
        variable='export CURL_CA_BUNDLE={path}'
        touch /etc/conf.d/freshclam
        grep -qxF "$variable" /etc/conf.d/freshclam || echo "$variable" >> /etc/conf.d/freshclam
        if command -v rc-service > /dev/null; then
            rc-service --ifstarted freshclam restart
        fi

        # By hand, and in crontabs: CURL_CA_BUNDLE={path} freshclam
        """
    public = "/etc/ssl/certs/ca-certificates.crt"
    return dedent(head) + _file(LINUX_FILE, public, certificates) + dedent(service).format(path=LINUX_FILE)


def _file(path: str, public: str, certificates: list[str]) -> str:
    """Lines of a shell script that write the certificates into a file."""
    return (
        "#\n"
        "# freshclam then trusts nothing but this file. If it also fetches from https hosts that the\n"
        "# gateway passes through (serving.pass_through), append the public authorities:\n"
        f"#     cat {public} >> {path}\n"
        f"mkdir -p {path.rpartition('/')[0]}\n" + _here_document(path, "".join(certificates))
    )


def _here_document(path: str, text: str) -> str:
    return f"cat > {path} <<'END'\n{text}END\n"


def _macos(certificates: list[str]) -> str:
    head = """\
        #!/bin/sh
        # macOS: run this as root. freshclam takes its trust from the system's keychain, so the whole
        # system trusts the certificate; it is valid only for the gateway's few names.
        set -eu
        directory=$(mktemp -d)
        trap 'rm -r "$directory"' EXIT
        """
    parts = [dedent(head)]
    for number, certificate in enumerate(certificates, 1):
        path = f'"$directory/clamproxy-{number}.pem"'
        parts.append(
            f"\n{_here_document(path, certificate)}"
            "security add-trusted-cert -d -r trustRoot -p ssl \\\n"
            f"    -k /Library/Keychains/System.keychain {path}\n"
        )
    return "".join(parts)


def _windows(certificates: list[str]) -> str:
    head = """\
        # Windows: run this in PowerShell as administrator. freshclam takes its trust from the system
        # (it ignores CURL_CA_BUNDLE), so the whole system trusts the certificate; it is valid only for the
        # gateway's few names.
        $ErrorActionPreference = 'Stop'
        """
    tail = """
        foreach ($certificate in $certificates) {
            $file = Join-Path $env:TEMP 'clamproxy.cer'
            Set-Content -Path $file -Value $certificate -Encoding Ascii
            certutil.exe -f -addstore Root $file
            if ($LASTEXITCODE -ne 0) { throw 'certutil failed' }
            Remove-Item $file
        }
        """
    # The end of a here-string must be at the beginning of a line.
    strings = ",\n".join(f"@'\n{certificate}'@" for certificate in certificates)
    return f"{dedent(head)}\n$certificates = @(\n{strings}\n)\n{dedent(tail)}"


def _docker(certificates: list[str]) -> str:
    lines = f"""\
        # syntax=docker/dockerfile:1
        # Lines for a Dockerfile. The first one has to be the first line of the file, for the "<<" below.
        # To use an image unchanged, put the certificates (`clamproxy ca export`) into a file instead:
        #     docker run -v "$PWD/clamproxy.pem:{LINUX_FILE}:ro" \\
        #         -e CURL_CA_BUNDLE={LINUX_FILE} clamav/clamav
        # curl in the container then trusts nothing else, either.
        FROM clamav/clamav
        """
    return (
        f"{dedent(lines)}COPY --chmod=644 <<'END' {LINUX_FILE}\n{''.join(certificates)}END\n"
        f"ENV CURL_CA_BUNDLE={LINUX_FILE}\n"
    )


def _kubernetes(certificates: list[str]) -> str:
    config_map = """\
        # kubectl apply --server-side --field-manager=clamproxy -f FILE
        apiVersion: v1
        kind: ConfigMap
        metadata:
          name: clamproxy-ca
        data:
          clamproxy.pem: |
        """
    deployment = """\
        ---
        # A patch for your existing deployment: put in its name, and that of the container that
        # runs freshclam.
        apiVersion: apps/v1
        kind: Deployment
        metadata:
          name: clamav
        spec:
          template:
            spec:
              containers:
                - name: clamav
                  env:
                    - name: CURL_CA_BUNDLE
                      value: /etc/clamproxy/clamproxy.pem
                  volumeMounts:
                    - name: clamproxy-ca
                      mountPath: /etc/clamproxy
                      readOnly: true
              volumes:
                - name: clamproxy-ca
                  configMap:
                    name: clamproxy-ca
        """
    return dedent(config_map) + indent("".join(certificates), " " * 4) + dedent(deployment)


def _ansible(certificates: list[str]) -> str:
    before = f"""\
        # Tasks for Debian, Ubuntu and other systems with systemd and without SELinux. On RHEL, the file is
        # {RHEL_FILE}.
        - name: Create the directories for the gateway's certificates
          become: true
          ansible.builtin.file:
            path: "{{{{ item }}}}"
            state: directory
            mode: "0755"
          loop:
            - {LINUX_FILE.rpartition("/")[0]}
            - /etc/systemd/system/clamav-freshclam.service.d

        # AppArmor lets freshclam read this file, and update-ca-certificates leaves it alone.
        - name: Put the gateway's certificates there
          become: true
          ansible.builtin.copy:
            dest: {LINUX_FILE}
            mode: "0644"
            content: |
        """
    after = f"""\
        - name: Make freshclam trust them
          become: true
          ansible.builtin.copy:
            dest: /etc/systemd/system/clamav-freshclam.service.d/clamproxy.conf
            mode: "0644"
            content: |
              [Service]
              Environment=CURL_CA_BUNDLE={LINUX_FILE}
          register: clamproxy_drop_in

        - name: Restart freshclam
          become: true
          ansible.builtin.systemd_service:
            name: clamav-freshclam.service
            state: restarted
            daemon_reload: true
          when: clamproxy_certificates is changed or clamproxy_drop_in is changed
        """
    content = indent("".join(certificates), " " * 6)
    return f"{dedent(before)}{content}  register: clamproxy_certificates\n\n{dedent(after)}"


TARGETS: Mapping[str, Callable[[list[str]], str]] = {
    "debian": _debian,
    "rhel": _rhel,
    "alpine": _alpine,
    "macos": _macos,
    "windows": _windows,
    "docker": _docker,
    "kubernetes": _kubernetes,
    "ansible": _ansible,
}
"""The systems and tools for which there are snippets."""
