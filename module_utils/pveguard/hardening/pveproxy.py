# SPDX-License-Identifier: Apache-2.0
"""What pveproxy lets in, as /etc/default/pveproxy says it. The file is sourced by bash; none of it is run here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from ..pmxcfs import members
from . import peers
from .looking import Facts, Looking, area, assignments

DEFAULTS = "/etc/default/pveproxy"
NAMES = (
    "ALLOW_FROM",
    "DENY_FROM",
    "POLICY",
    "LISTEN_IP",
    "CIPHERS",
    "CIPHERSUITES",
    "DISABLE_TLS_1_2",
    "DISABLE_TLS_1_3",
)
#: Parts of OpenSSL's names that no list should have, unless with ! or - before them.
WEAK = ("3DES", "DES-CBC", "RC4", "MD5", "NULL", "EXP", "aNULL", "eNULL", "ADH", "LOW", "SEED", "IDEA")


@area
def look(looking: Looking) -> Facts:
    """``installed``, ``values`` of NAMES, ``strange`` (numbers of lines that are no plain assignment: nothing is certain then),
    ``peers`` ({name: address} of the cluster's nodes; null where not known), ``clustered``.
    """
    if not looking.pve() and not looking.unread:
        return {"installed": False}
    found = assignments(looking.text(DEFAULTS) or "")
    clustered = looking.exists("/etc/pve/corosync.conf")
    return {
        "installed": True,
        "values": {name: value for name, value in found.values.items() if name in NAMES},
        "strange": found.strange[:20],
        "clustered": clustered,
        "peers": _peers(looking) if clustered else {},
    }


def _peers(looking: Looking) -> dict[str, str] | None:
    """Members as the cluster file system lists them: the addresses from which one pveproxy asks another."""
    try:
        found = peers.addresses(members.parse(looking.text("/etc/pve/.members") or ""))
        for address in found.values():
            ipaddress.ip_address(address)
    except ValueError:
        looking.cannot("/etc/pve/.members", "no list of members with their addresses")
        return None
    return found


def networks(text: str) -> list[tuple[int, int, int]] | None:
    """``[(version, first, last)]`` of a list of addresses, None where a part of it is not understood."""
    found: list[tuple[int, int, int]] = []
    for each in re.split(r"[,\s]+", text.strip()):
        if not each:
            continue
        if each == "all":
            found += [(4, 0, 2**32 - 1), (6, 0, 2**128 - 1)]
            continue
        try:
            if "-" in each:
                first, last = (ipaddress.ip_address(part) for part in each.split("-"))
                if first.version != last.version:
                    return None
                found.append((first.version, int(first), int(last)))
            else:
                each = "0.0.0.0/0" if each == "0/0" else each
                net = ipaddress.ip_network(each, strict=False)
                found.append((net.version, int(net.network_address), int(net.broadcast_address)))
        except ValueError:
            return None
    return found


def lets_in(values: dict[str, Any], addresses: Iterable[str]) -> dict[str, bool] | None:
    """Whether pveproxy takes a request from each address: what is in one list alone goes by it, what is in both or none by
    POLICY.
    None where that is not understood.
    """
    allow, deny = networks(values.get("ALLOW_FROM", "")), networks(values.get("DENY_FROM", ""))
    policy = values.get("POLICY") or "allow"
    if allow is None or deny is None or policy not in ("allow", "deny"):
        return None

    def within(address: str, ranges: list[tuple[int, int, int]]) -> bool:
        its = ipaddress.ip_address(address)
        return any(version == its.version and first <= int(its) <= last for version, first, last in ranges)

    found = {}
    for address in addresses:
        allowed, denied = within(address, allow), within(address, deny)
        found[address] = allowed if allowed is not denied else policy == "allow"
    return found


def weak_ciphers(ciphers: str) -> list[str]:
    """Parts of a cipher list that allow what is broken."""
    parts = [each for each in re.split(r"[:, ]+", ciphers) if each and each[0] not in "!-"]
    return [each for each in parts if any(word in each for word in WEAK)]
