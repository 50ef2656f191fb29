# SPDX-License-Identifier: Apache-2.0
"""The firewall's rules that a node needs, as text of cluster.fw and as a table of nftables. Pure: facts and texts go in, texts come out.

``facts`` are those of the core ``firewall``, through JSON or not. Own rules are known by their comment, which begins with ``MARK``;
so they are found again after somebody has saved the file in the web interface.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.errors import PveguardError
from ..formats import firewall_config
from ..formats.firewall_config import Rule

ROLE = "node_hardening"
AUDIT, RULES, ENFORCE = "audit", "rules", "enforce"
MODES = (AUDIT, RULES, ENFORCE)
#: What the comment of each own rule begins with.
MARK = "pveguard"
CLUSTER_FW = "/etc/pve/firewall/cluster.fw"
#: Of link 0; link N has this and N.
COROSYNC_PORT = 5405
QDEVICE_PORT = 5403
#: ssh, the SPICE proxy, VNC, the web interface, migration.
MANAGEMENT_PORTS = "22,3128,5900:5999,8006,60000:60050"
#: A source or destination may have this many characters, and may not mix IPv4 and IPv6.
LIST_CHARACTERS = 512
#: The own table on a host without Proxmox's firewall, and where its text lies.
TABLE = "inet pveguard"
NFTABLES_FILE = "/etc/nftables.d/pveguard.nft"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """``management``: networks and addresses of who may manage the nodes. ``confirm``: the cluster's name as it was typed for
    ``enforce``, which wakes the rules of guests."""

    mode: str = AUDIT
    management: tuple[str, ...] = ()
    confirm: str = ""

    @classmethod
    def of(cls, variables: Mapping[str, Any]) -> Options:
        """From the role's variables ``node_hardening_firewall``, ``_management`` and ``_confirm``. Raises PveguardError for what is no
        mode and no network."""
        mode = str(variables.get("node_hardening_firewall") or AUDIT)
        if mode not in MODES:
            raise PveguardError(f"node_hardening_firewall: {mode!r} is none of {', '.join(MODES)}")
        given = variables.get("node_hardening_firewall_management") or []
        found = []
        for each in [given] if isinstance(given, str) else given:
            try:
                found.append(_plain(ipaddress.ip_network(str(each), strict=False)))
            except ValueError:
                raise PveguardError(
                    f"node_hardening_firewall_management: {str(each)!r} is neither an address nor a network"
                ) from None
        return cls(mode, tuple(found), str(variables.get("node_hardening_firewall_confirm") or ""))


def management(facts: Facts, options: Options) -> list[str]:
    """Who is let in to ssh and 8006 by the own rules: the operators' networks, all members and the controller; each once, sorted."""
    wanted = [*options.management, *(each["address"] for each in facts.get("members") or [])]
    wanted += [address for each in facts.get("members") or [] for address in (each.get("links") or {}).values()]
    wanted += [facts.get("controller") or "", (facts.get("migration") or {}).get("network") or ""]
    return _networks(wanted)


def wanted(facts: Facts, options: Options) -> list[Rule]:
    """Rules for cluster.fw, which all nodes share: each link of Corosync, management, DRBD and QDevice where they are used."""
    found = []
    for link in facts.get("links") or []:
        ring = [(each.get("links") or {}).get(str(link)) or "" for each in facts["members"]]
        port = str(COROSYNC_PORT + int(link))
        for sources in lists(_networks(ring)):
            for dests in lists(_networks(ring)):
                if (":" in sources) == (":" in dests):
                    for kind in ("IN", "OUT"):
                        params = {"source": sources, "dest": dests, "proto": "udp", "dport": port}
                        found.append(Rule(kind, "ACCEPT", "", params, True, f"{MARK}: corosync link {link}"))
    for sources in lists(management(facts, options)):
        params = {"source": sources, "proto": "tcp", "dport": MANAGEMENT_PORTS}
        found.append(Rule("IN", "ACCEPT", "", params, True, f"{MARK}: management"))
    return found


def merged(cluster_fw_text: str, wanted: Sequence[Rule]) -> str:
    """The text with the own rules as wanted, first of all rules; others' lines stay byte for byte, but that the last one may get
    its end. Twice is once.

    Raises firewall_config.Refused with the numbers of the lines that are not understood, and ValueError for a rule without the mark.
    """
    text = firewall_config.remove_rules(cluster_fw_text, MARK)
    return firewall_config.add_rules(text, wanted)


def enforced(cluster_fw_text: str) -> str:
    """The text with the firewall on and policy DROP for what comes in; what was set before is noted for :func:`reverted`.

    Raises firewall_config.Refused as :func:`merged`."""
    text = firewall_config.set_option(cluster_fw_text, "enable", "1")
    return firewall_config.set_option(text, "policy_in", "DROP")


def reverted(text: str) -> str:
    """The text without the own rules, and with the options as they were before :func:`enforced`, unless somebody has set them
    since. Raises nothing: lines that are not understood stay."""
    return firewall_config.remove_rules(text, MARK)


def refusals(facts: Facts, mode: str, options: Options) -> list[str]:
    """Why a mode must not be set here, in sentences that name file and fix; empty when nothing speaks against it."""
    return []


def nftables(facts: Facts, options: Options) -> str:
    """The own table for a host without Proxmox's firewall: a file for ``nft -f``, which replaces that table and touches no other.

    ``rules``: accept rules, and what they do not meet is accepted too. ``enforce``: the rest is dropped. Raises PveguardError for
    ``audit``, which sets nothing.
    """
    raise NotImplementedError


def lists(networks: Sequence[str]) -> list[str]:
    """Networks as values of ``-source`` and ``-dest``: IPv4 and IPv6 apart, none too long."""
    found: list[str] = []
    for version in (4, 6):
        line = ""
        for each in networks:
            if (6 if ":" in each else 4) != version:
                continue
            if line and len(line) + 1 + len(each) > LIST_CHARACTERS:
                found.append(line)
                line = ""
            line = f"{line},{each}" if line else each
        found += [line] if line else []
    return found


def _networks(texts: Sequence[str]) -> list[str]:
    """Those that are networks or addresses, each once, sorted."""
    found = set()
    for each in texts:
        try:
            found.add(ipaddress.ip_network(each, strict=False))
        except ValueError:
            continue
    return [_plain(each) for each in sorted(found, key=lambda net: (net.version, int(net.network_address), net.prefixlen))]


def _plain(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)
