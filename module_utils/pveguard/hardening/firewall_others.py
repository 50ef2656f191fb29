# SPDX-License-Identifier: Apache-2.0
"""Rules in netfilter that neither Proxmox nor pveguard has set, by table. Only what is loaded is asked for.

Asking for others would load them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .looking import Facts, Looking, shown

#: Other firewalls, by their units.
UNITS = ("ufw", "nftables", "firewalld", "netfilter-persistent")
#: Tables that are no second firewall.
KNOWN = ("inet pveguard", "inet proxmox-firewall", "bridge proxmox-firewall-guests")
#: Chains of Proxmox's legacy firewall, and those of fail2ban, which bans single addresses.
_CHAINS = re.compile(r"PVEFW-|(tap|veth|fwbr|GROUP-)\S*|f2b-")


def rules(looking: Looking) -> list[Facts]:
    """``[{where, hooks, policy, rules, drops}]``: a table of nftables, or of iptables-legacy, that filters. ``policy``: drop
    where one of its hooks drops what no rule meets; ``drops``: rules that drop or reject.
    """
    found = []
    if re.search("^nf_tables ", looking.text("/proc/modules") or "", re.MULTILINE):
        found += _nftables(looking)
    for names, program, family in (
        ("ip_tables_names", "iptables", "ip"),
        ("ip6_tables_names", "ip6tables", "ip6"),
    ):
        if "filter" in (looking.text(f"/proc/net/{names}") or "").split():
            text = looking.output([f"{program}-legacy-save", "-t", "filter"])
            if text is not None and (told := _legacy(text, f"{program}-legacy {family} filter")):
                found.append(told)
    return found


def _nftables(looking: Looking) -> list[Facts]:
    text = looking.output(["nft", "-j", "list", "ruleset"])
    if text is None:
        return []
    tables: dict[str, Facts] = {}
    try:
        for each in json.loads(text)["nftables"]:
            for kind, said in each.items():
                if kind not in ("chain", "rule"):
                    continue
                name = f"{said['family']} {said['table']}"
                if name in KNOWN:
                    continue
                table = tables.setdefault(
                    name,
                    {
                        "where": f"nftables {shown(name)}",
                        "hooks": [],
                        "policy": "accept",
                        "rules": 0,
                        "drops": 0,
                    },
                )
                _count(table, kind, said)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        looking.cannot("nft", "its answer is not understood")
    return [
        each
        for _, each in sorted(tables.items())
        if each["hooks"] and (each["rules"] or each["policy"] == "drop")
    ]


def _count(table: Facts, kind: str, said: Mapping[str, Any]) -> None:
    if kind == "chain":
        if said.get("hook") in ("input", "forward", "output") and said.get("type") == "filter":
            table["hooks"].append(said["hook"])
            if said.get("policy") == "drop":
                table["policy"] = "drop"
    elif not _CHAINS.match(said.get("chain", "")):
        table["rules"] += 1
        words = [key for part in said.get("expr") or [] for key in part]
        targets = [str((part.get("xt") or {}).get("name")) for part in said.get("expr") or []]
        table["drops"] += bool({"drop", "reject"} & set(words) or {"DROP", "REJECT"} & set(targets))


def _legacy(text: str, where: str) -> Facts | None:
    table: Facts = {"where": where, "hooks": [], "policy": "accept", "rules": 0, "drops": 0}
    for chain, policy in re.findall(r"^:(INPUT|FORWARD|OUTPUT) (\w+)", text, re.MULTILINE):
        table["hooks"].append(chain.lower())
        if policy == "DROP":
            table["policy"] = "drop"
    for chain, rest in re.findall(r"^-A (\S+)(.*)$", text, re.MULTILINE):
        target = re.search(r" -j (\S+)", rest)
        if _CHAINS.match(chain) or (target and _CHAINS.match(target[1])):
            continue
        table["rules"] += 1
        table["drops"] += bool(target and target[1] in ("DROP", "REJECT"))
    return table if table["rules"] or table["policy"] == "drop" else None
