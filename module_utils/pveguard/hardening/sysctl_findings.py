# SPDX-License-Identifier: Apache-2.0
"""What is judged about kernel settings and modules: those that break Proxmox VE, where they were found, and how they go."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..base.findings import PROBLEM, UNKNOWN, WARNING, Check, Finding, check, some
from .looking import facts_of, proxmox, shown
from .sysctl import USUAL, strict_interfaces, watched

UNREAD = check(
    "hardening-sysctl-unread",
    UNKNOWN,
    "Kernel settings or modules could not be read",
    "Look at the files by hand, as root.",
    "sysctl -a; grep -r . /etc/sysctl.d /etc/modprobe.d",
)
FORWARDING = check(
    "hardening-sysctl-forwarding-off",
    (WARNING, PROBLEM),
    "Forwarding of IPv4 or IPv6 is switched off (CIS Debian 12 3.3.1; a problem where guests are routed): routed and NAT guests, "
    "SDN and EVPN lose the net",
    "Remove the line, and switch it on where guests are routed.",
    "sysctl -w net.ipv4.ip_forward=1",
)
BRIDGE = check(
    "hardening-sysctl-bridge-netfilter-off",
    (WARNING, PROBLEM),
    "net.bridge.bridge-nf-call-* is 0: the firewall of guests sees nothing of what goes through their bridge",
    "Remove the line; pve-firewall sets 1 itself.",
    "sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
)
RP_FILTER = check(
    "hardening-sysctl-rp-filter-strict",
    PROBLEM,
    "The reverse path filter is strict (rp_filter 1; CIS Debian 12 3.3.7), Proxmox VE ships 2: asymmetric and multi-homed nodes, "
    "bridges of the firewall and ring links lose packets",
    "Remove the line, and set it loose.",
    "sysctl -w net.ipv4.conf.all.rp_filter=2",
)
USERNS = check(
    "hardening-sysctl-user-namespaces-off",
    (PROBLEM, WARNING),
    "User namespaces are off (a warning where only for users that are not root): unprivileged containers do not start",
    "Remove the line.",
    "sysctl -w user.max_user_namespaces=100000",
)
MODULES_DISABLED = check(
    "hardening-sysctl-modules-disabled",
    PROBLEM,
    "kernel.modules_disabled is 1: no module is loaded any more, so DKMS modules, passthrough and new storage fail",
    "Remove the line and reboot; it cannot be taken back in a running kernel.",
    "grep -rl modules_disabled /etc/sysctl.conf /etc/sysctl.d",
)
LOCKDOWN = check(
    "hardening-sysctl-lockdown",
    (WARNING, PROBLEM),
    "The kernel is told to lock itself down (lockdown=; confidentiality is a problem): unsigned DKMS modules and "
    "passthrough fail",
    "Take lockdown= off the kernel's command line, refresh the boot loader, reboot.",
    "proxmox-boot-tool refresh",
)
IPV6_OFF = check(
    "hardening-sysctl-ipv6-off",
    PROBLEM,
    "net.ipv6.conf.*.disable_ipv6 is 1 (dev-sec) on a node whose ring or network uses IPv6",
    "Remove the line, and switch it on.",
    "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
)
OVERCOMMIT = check(
    "hardening-sysctl-overcommit",
    PROBLEM,
    "vm.overcommit_memory is 2: guests fail to start although memory is free",
    "Remove the line, and set the default.",
    "sysctl -w vm.overcommit_memory=0",
)
SWAPPINESS = check(
    "hardening-sysctl-swappiness-zero",
    WARNING,
    "vm.swappiness is 0: the kernel kills guests (out of memory) before it swaps",
    "Remove the line, and set a low value instead.",
    "sysctl -w vm.swappiness=10",
)
MAP_COUNT = check(
    "hardening-sysctl-map-count-low",
    WARNING,
    "vm.max_map_count is lower than the kernel's default of 65530: large guests and databases in containers fail",
    "Remove the line, and set the default.",
    "sysctl -w vm.max_map_count=65530",
)
MARTIANS = check(
    "hardening-sysctl-log-martians",
    WARNING,
    "log_martians is 1 (CIS Debian 12 3.3.9): bridges of the firewall and SDN flood the log, which wears the disk",
    "Remove the line, and switch it off.",
    "sysctl -w net.ipv4.conf.all.log_martians=0 net.ipv4.conf.default.log_martians=0",
)
MODULE_OFF = check(
    "hardening-sysctl-module-off",
    (WARNING, PROBLEM),
    "A kernel module that Proxmox VE uses is kept from being loaded (CIS Debian 12 1.1.1; a problem for fuse, vfat, "
    "br_netfilter, "
    "8021q)",
    "Remove the line.",
    "grep -rE '^(install|blacklist)' /etc/modprobe.d",
)
INSTALL = check(
    "hardening-sysctl-module-install",
    UNKNOWN,
    "An install line in modprobe.d runs a program of its own for a module that Proxmox VE uses: whether it is loaded "
    "is not known",
    "Read the line.",
    "modprobe -n -v MODULE",
)


class Rule(NamedTuple):
    """``bad``: of a value. ``set``: what the running kernel is given instead; empty where nothing can be set."""

    check: Check
    bad: Callable[[str], bool]
    breaks: str
    set: str


def _below(limit: int) -> Callable[[str], bool]:
    return lambda value: value.isdigit() and int(value) < limit


_ROUTED = "routed and NAT guests, SDN and EVPN lose the net"
_BRIDGED = "the firewall of guests sees nothing of what goes through their bridge"
_NO_CONTAINERS = "unprivileged containers do not start"


@functools.cache
def rules() -> dict[str, Rule]:
    """By the keys of the core ``sysctl``."""
    return {
        "net.ipv4.ip_forward": Rule(FORWARDING, "0".__eq__, _ROUTED, "1"),
        "net.ipv4.conf.*.forwarding": Rule(FORWARDING, "0".__eq__, _ROUTED, "1"),
        "net.ipv6.conf.*.forwarding": Rule(FORWARDING, "0".__eq__, _ROUTED, "1"),
        "net.bridge.bridge-nf-call-iptables": Rule(BRIDGE, "0".__eq__, _BRIDGED, "1"),
        "net.bridge.bridge-nf-call-ip6tables": Rule(BRIDGE, "0".__eq__, _BRIDGED, "1"),
        "net.ipv4.conf.*.rp_filter": Rule(
            RP_FILTER, "1".__eq__, "asymmetric and multi-homed nodes and ring links lose packets", "2"
        ),
        "net.ipv6.conf.all.disable_ipv6": Rule(IPV6_OFF, "1".__eq__, _NO_IPV6, "0"),
        "net.ipv6.conf.default.disable_ipv6": Rule(IPV6_OFF, "1".__eq__, _NO_IPV6, "0"),
        "user.max_user_namespaces": Rule(USERNS, "0".__eq__, _NO_CONTAINERS, "100000"),
        "kernel.unprivileged_userns_clone": Rule(
            USERNS, "0".__eq__, "containers inside of containers do not start", "1"
        ),
        "kernel.modules_disabled": Rule(
            MODULES_DISABLED, "1".__eq__, "DKMS modules, passthrough and new storage fail", ""
        ),
        "vm.overcommit_memory": Rule(
            OVERCOMMIT, "2".__eq__, "guests fail to start although memory is free", "0"
        ),
        "vm.swappiness": Rule(SWAPPINESS, "0".__eq__, "guests are killed before anything is swapped", "10"),
        "vm.max_map_count": Rule(
            MAP_COUNT, _below(65530), "large guests and databases in containers fail", "65530"
        ),
        "net.ipv4.conf.*.log_martians": Rule(
            MARTIANS, "1".__eq__, "bridges and SDN flood the log, which wears the disk", "0"
        ),
    }


_NO_IPV6 = "rings, guests and storages that are reached by it are cut off"
#: Switched off on a node as it is installed, so the running value alone says nothing.
_OFF_BY_DEFAULT = (FORWARDING.id, BRIDGE.id)
_BREAKS_MODULE = {
    "8021q": "VLANs",
    "br_netfilter": "the firewall of guests",
    "fuse": "pmxcfs, so /etc/pve",
    "overlay": "containers with overlays, such as Docker in LXC",
    "sctp": "the lock manager of shared LVM, GFS2 and OCFS2, and what speaks SCTP in containers",
    "squashfs": "images such as those of appliances and snaps in containers",
    "udf": "DVD images on the node",
    "usb_storage": "disks on USB, for backups and passthrough",
    "vfat": "the EFI system partition, so kernel updates",
}
_GRAVE_MODULES = ("fuse", "vfat", "br_netfilter", "8021q")


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """From the facts that ``hardening_info`` brought; nothing where it was not asked."""
    facts = facts_of(node, "sysctl")
    return [] if facts is None else findings(facts, proxmox(node))


def of_report(node: Mapping[str, Any]) -> list[Finding]:
    return of_node(node, {})


def findings(facts: Mapping[str, Any], on_proxmox: bool = True) -> list[Finding]:
    """``facts``: of the core ``sysctl``."""
    found = [] if facts["known"] else [UNREAD(f"kernel settings could not be read: {facts['error']}")]
    if not on_proxmox:
        return found
    found += _settings(facts)
    found += _modules(facts)
    for path in facts.get("install") or []:
        found.append(
            INSTALL(
                f"{shown(path, 120)} has an install line that runs a program of its own",
                code=f"cat {_quoted(path)}",
            )
        )
    return found + _lockdown(facts)


def _settings(facts: Mapping[str, Any]) -> list[Finding]:
    """One finding a condition: all keys and places that meet it."""
    put: Iterable[Mapping[str, Any]] = facts.get("set") or []
    runtime: Mapping[str, str] = facts.get("runtime") or {}
    found = []
    for each in dict.fromkeys(rule.check for rule in rules().values()):
        keys = {key: rule for key, rule in rules().items() if rule.check is each}
        files = [line for line in put if (rule := keys.get(watched(line["key"]))) and rule.bad(line["value"])]
        now = {
            key: value
            for key, value in runtime.items()
            if (rule := keys.get(watched(key))) and rule.bad(value)
        }
        if each.id == RP_FILTER.id:
            strict = strict_interfaces(dict(runtime))
            now = {f"net.ipv4.conf.{name}.rp_filter": "1" for name in strict if name != "lo"}
            if now and runtime.get("net.ipv4.conf.all.rp_filter") == "1":
                now = {"net.ipv4.conf.all.rp_filter": "1"}
        if each.id == IPV6_OFF.id and not facts.get("ipv6"):
            continue
        if each.id in _OFF_BY_DEFAULT and not files and not (each.id == FORWARDING.id and facts.get("needs")):
            continue
        if each.id == FORWARDING.id:
            # An interface follows "all", and one of IPv6 alone is off on every node.
            now = {
                key: value
                for key, value in now.items()
                if key == "net.ipv4.ip_forward" or _is_set(key, files)
            }
        elif each.id == BRIDGE.id:
            now = {key: value for key, value in now.items() if _is_set(key, files)}
        if files or now:
            found.append(_told(each, keys, files, now, facts))
    return found


def _is_set(key: str, files: Iterable[Mapping[str, Any]]) -> bool:
    return any(line["key"] == key for line in files)


def _told(
    each: Check,
    keys: Mapping[str, Rule],
    files: list[Mapping[str, Any]],
    now: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Finding:
    places = [
        f"{shown(line['key'])} = {shown(line['value'], 20)} in {shown(line['path'], 120)}" for line in files
    ]
    by = sorted({str(line["by"]) for line in files}) or [f"in no file of /etc; usually {USUAL}"]
    running = [f"{shown(key)} = {shown(value, 20)} in the running kernel" for key, value in now.items()]
    breaks = "; ".join(
        dict.fromkeys(keys[watched(key)].breaks for key in [*(line["key"] for line in files), *now])
    )
    severity = each.severities[0]
    needs = facts.get("needs") or []
    if each.id == FORWARDING.id and needs:
        severity = PROBLEM
        breaks += f" (this node routes: {some([shown(path, 120) for path in needs])})"
    elif each.id == BRIDGE.id and now:
        severity = PROBLEM
    elif each.id == USERNS.id and {watched(key) for key in [*(line["key"] for line in files), *now]} == {
        "kernel.unprivileged_userns_clone"
    }:
        severity = WARNING
    return each(
        f"{some([*places, *running], 4)} (set by: {', '.join(by)})",
        severity=severity,
        means=breaks,
        code=_undo(files, now, keys) or each.code,
    )


def _undo(files: Iterable[Mapping[str, Any]], now: Mapping[str, str], keys: Mapping[str, Rule]) -> str:
    steps = []
    for path, key in dict.fromkeys((line["path"], line["key"]) for line in files):
        pattern = shown(key).replace(".", "[./]").replace("*", "[*]")
        steps.append(f"sed -Ei '\\,^ *-?{pattern} *=,d' {_quoted(path)}")
    for key in now:
        if value := keys[watched(key)].set:
            steps.append(f"sysctl -w {shlex.quote(f'{shown(key)}={value}')}")
    return "; ".join(steps)


def _modules(facts: Mapping[str, Any]) -> list[Finding]:
    found = []
    lines: list[Mapping[str, Any]] = list(facts.get("modules") or [])
    for grave in (True, False):
        some_of = [line for line in lines if (line["module"] in _GRAVE_MODULES) is grave]
        if not some_of:
            continue
        told = dict.fromkeys(f"{shown(line['line'], 60)} in {shown(line['path'], 120)}" for line in some_of)
        broken = dict.fromkeys(f"{line['module']}: {_BREAKS_MODULE[line['module']]}" for line in some_of)
        undo = dict.fromkeys(
            f"sed -Ei '/^ *(install|blacklist) +{line['module'].replace('_', '[-_]')}( |$)/d' {_quoted(line['path'])}"
            for line in some_of
        )
        found.append(
            MODULE_OFF(
                f"modules are kept from being loaded: {some(list(told), 8)} "
                f"(set by: {', '.join(sorted({str(line['by']) for line in some_of}))})",
                severity=PROBLEM if grave else WARNING,
                means=f"what needs them fails ({'; '.join(broken)})",
                code="; ".join(undo),
            )
        )
    return found


def _lockdown(facts: Mapping[str, Any]) -> list[Finding]:
    """Of the command line only: with Secure Boot the kernel locks itself down, which is as it should be."""
    places = [(line["path"], line["value"]) for line in facts.get("boot") or []]
    if facts.get("cmdline"):
        places.append(("/proc/cmdline", facts["cmdline"]))
    places = [(path, value) for path, value in places if value != "none"]
    if not places:
        return []
    told = ", ".join(f"lockdown={value} in {shown(path, 120)}" for path, value in places)
    grave = any(value == "confidentiality" for _, value in places)
    undo = [
        f"sed -Ei 's/ ?lockdown=[a-z]+//' {_quoted(path)}" for path, _ in places if path != "/proc/cmdline"
    ]
    return [
        LOCKDOWN(
            f"{told} (set by: usually hand or {USUAL})",
            severity=PROBLEM if grave else WARNING,
            means="unsigned DKMS modules and passthrough fail",
            code="; ".join(
                [
                    *undo,
                    "update-grub"
                    if any("grub" in path for path, _ in places)
                    else "proxmox-boot-tool refresh",
                ]
            ),
        )
    ]


def _quoted(path: str) -> str:
    return shlex.quote(shown(path, 200))
