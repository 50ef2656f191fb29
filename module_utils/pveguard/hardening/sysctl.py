# SPDX-License-Identifier: Apache-2.0
"""Kernel settings and modules of a node, as its files and its running kernel have them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..base.sysctl_files import parse
from .looking import Facts, Looking, area, lines, writer

#: The first folder that has a name counts. Those of packages are left out where a file is judged: what Proxmox and Debian
#: ship there is no one's mistake.
SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d")
MODPROBE_FOLDERS = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d")
#: Those that something of Proxmox VE needs, by the name that the kernel gives them.
MODULES = ("8021q", "br_netfilter", "fuse", "overlay", "sctp", "squashfs", "udf", "usb_storage", "vfat")
#: ``*``: all, default and each interface.
KEYS = (
    "kernel.modules_disabled",
    "kernel.unprivileged_userns_clone",
    "net.bridge.bridge-nf-call-ip6tables",
    "net.bridge.bridge-nf-call-iptables",
    "net.ipv4.conf.*.forwarding",
    "net.ipv4.conf.*.log_martians",
    "net.ipv4.conf.*.rp_filter",
    "net.ipv4.ip_forward",
    "net.ipv6.conf.*.forwarding",
    # Of single interfaces Proxmox VE sets it itself, on those of guests.
    "net.ipv6.conf.all.disable_ipv6",
    "net.ipv6.conf.default.disable_ipv6",
    "user.max_user_namespaces",
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.swappiness",
)
#: Where a node says that it uses IPv6, and what of it.
IPV6 = {
    "/etc/corosync/corosync.conf": r"(?m)^\s*ring[0-9]_addr:\s*[0-9A-Fa-f]*:",
    "/etc/network/interfaces": r"(?m)^\s*iface\s+(?!lo\s)\S+\s+inet6\s+(?:static|dhcp|auto)\b|^\s*address\s+[0-9A-Fa-f]*:",
}
USUAL = "dev-sec or a CIS role"
_PATTERNS = {key: re.compile(re.escape(key).replace(r"\*", "[^.]+(?:[.][0-9]+)?") + r"\Z") for key in KEYS}


def watched(key: str) -> str:
    """The one of KEYS that a key is, empty where it is none."""
    return next((each for each, pattern in _PATTERNS.items() if pattern.match(key)), "")


def disabled(text: str) -> dict[str, list[str]]:
    """``{module: lines}`` that keep modules from being loaded; under ``?`` those install lines of MODULES that run another
    program than true or false, which may load it or not."""
    found: dict[str, list[str]] = {}
    for line in lines(text.replace("\\\n", " ")):
        words = line.split()
        if len(words) < 2:
            continue
        module = words[1].replace("-", "_")
        if module not in MODULES:
            continue
        if words[0] == "blacklist":
            found.setdefault(module, []).append(line)
        elif words[0] == "install" and len(words) > 2:
            off = words[2].rpartition("/")[2] in ("true", "false", ":")
            found.setdefault(module if off else "?", []).append(line)
    return found


@area
def look(looking: Looking) -> Facts:
    """``set`` (of each file: path, key, value, by), ``runtime`` ({key: value}), ``modules`` (path, module, line, by), ``install``
    (lines that were not understood, by path), ``cmdline`` and ``boot`` (lockdown= of the running kernel and of the files
    that make
    the next one's), ``lockdown``, ``needs`` (what on this node needs forwarding), ``ipv6`` (files by which it uses IPv6).
    """
    files = looking.texts(SYSCTL_FOLDERS, ".conf")
    # Debian 12 reads it through a link in sysctl.d; 13 no longer does, but `sysctl -p` and what Ansible writes still mean it.
    main = looking.text("/etc/sysctl.conf")
    if main is not None:
        files = [*[each for each in files if not _is_link(looking, each[0])], ("/etc/sysctl.conf", main)]
    put = [
        {"path": path, "key": key, "value": value, "by": writer(path, text, USUAL)}
        for path, text in files
        for key, value in parse(text).items()
        if watched(key)
    ]
    modules: list[Facts] = []
    strange: list[str] = []
    for path, text in looking.texts(MODPROBE_FOLDERS, ".conf"):
        for module, found in disabled(text).items():
            if module == "?":
                strange.append(path)
            else:
                by = writer(path, text, USUAL)
                modules += [{"path": path, "module": module, "line": line, "by": by} for line in found]
    return {
        "set": put,
        "runtime": _runtime(looking),
        "modules": modules,
        "install": strange,
        "cmdline": _lockdown(looking.text("/proc/cmdline") or ""),
        "boot": [
            {"path": path, "value": value}
            for path in (
                "/etc/kernel/cmdline",
                *looking.names("/etc/default/grub.d", ".cfg"),
                "/etc/default/grub",
            )
            if (value := _lockdown("\n".join(lines(looking.text(path) or ""))))
        ],
        "needs": _needs(looking),
        "ipv6": [path for path, pattern in IPV6.items() if re.search(pattern, looking.text(path) or "")],
    }


def _is_link(looking: Looking, path: str) -> bool:
    """Whether it leads to /etc/sysctl.conf, which is read by itself."""
    place: Path = looking.at(path)
    return place.is_symlink() and Path(place.readlink()).name == "sysctl.conf"


def _runtime(looking: Looking) -> dict[str, str]:
    found = {}
    for key in KEYS:
        before, star, after = key.partition(".*.")
        if star:
            folder = f"/proc/sys/{before.replace('.', '/')}"
            paths = [
                (f"{before}.{path.rpartition('/')[2]}.{after}", f"{path}/{after}")
                for path in looking.names(folder)
            ]
        else:
            paths = [(key, f"/proc/sys/{key.replace('.', '/')}")]
        for name, path in paths:
            if (value := looking.value(path)) is not None:
                found[name] = value
    if not found:
        looking.cannot("/proc/sys", "holds none of the settings")
    return found


def _lockdown(text: str) -> str:
    found = re.findall(r"(?:\A|[\s\"'])lockdown=(\w+)", text)
    return found[-1] if found else ""


def _needs(looking: Looking) -> list[str]:
    """What was seen of routed guests: without it a node whose forwarding is off is as Proxmox installs it."""
    found = []
    paths = ["/etc/network/interfaces", *looking.names("/etc/network/interfaces.d")]
    for path in paths:
        text = "\n".join(lines(looking.text(path) or ""))
        if re.search(r"ip_forward|\bforwarding\b|MASQUERADE|masquerade|ip-forward\s+(on|yes|1)", text):
            found.append(path)
    if looking.exists("/etc/pve/sdn/zones.cfg"):
        zones = re.findall(r"(?m)^(simple|evpn):", looking.text("/etc/pve/sdn/zones.cfg") or "")
        if zones:
            found.append("/etc/pve/sdn/zones.cfg")
    return found


def strict_interfaces(runtime: dict[str, Any]) -> list[str]:
    """Interfaces whose reverse path filter is strict: the higher of ``all`` and its own counts."""
    head, tail = "net.ipv4.conf.", ".rp_filter"
    own = {
        key[len(head) : -len(tail)]: value
        for key, value in runtime.items()
        if key.startswith(head) and key.endswith(tail)
    }
    for_all = own.get("all", "0")
    return sorted(
        name for name, value in own.items() if name not in ("all", "default") and max(value, for_all) == "1"
    )
