# SPDX-License-Identifier: Apache-2.0
"""Services of a node that an idle lab is spared, by name: firewall, listeners, audit and time."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple


class Service(NamedTuple):
    """``file``: what the units' conditions ask for. ``enabled``: units that the image has switched off; ``masked`` as well."""

    units: tuple[str, ...]
    file: str = ""
    enabled: bool = False
    masked: bool = False


SERVICES = {
    "firewall": Service(("pve-firewall.service", "proxmox-firewall.service"), "/etc/pve-firewall-lab.conf"),
    "pveproxy": Service(("pveproxy.service", "spiceproxy.service"), "/etc/pveproxy-lab.conf"),
    "auditd": Service(("auditd.service",), enabled=True),
    "chrony": Service(("chrony.service",), enabled=True),
    "updates": Service(("apt-daily-upgrade.timer",), enabled=True, masked=True),
}


def script(names: Sequence[str], on: bool) -> str:
    """Shell script that switches these services on or off, now and at the next boots; a unit that is not there is no error."""
    lines = ["set -e"]
    for name in names:
        service = SERVICES[name]
        file = shlex.quote(service.file)
        if service.file:
            lines.append(f"[ -e {file} ] || : > {file}" if on else f"rm -f {file}")
        if service.masked and on:
            lines.append(f"systemctl --quiet unmask {' '.join(service.units)}")
        if service.enabled:
            action = "--quiet enable --now" if on else "--quiet disable --now"
        else:
            # The double of pveproxy runs in both cases, and listens in one.
            action = "restart" if on or name == "pveproxy" else "stop"
        for unit in service.units:
            lines.append(f"! systemctl cat {unit} >/dev/null 2>&1 || systemctl {action} {unit}")
        if service.masked and not on:
            lines.append(f"systemctl --quiet mask {' '.join(service.units)}")
    return "\n".join([*lines, ""])
