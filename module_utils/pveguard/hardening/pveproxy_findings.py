# SPDX-License-Identifier: Apache-2.0
"""What is judged about the access rules and TLS of pveproxy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.findings import PROBLEM, UNKNOWN, WARNING, Finding, check, some
from .looking import facts_of, proxmox, shown
from .pveproxy import DEFAULTS, lets_in, networks, weak_ciphers

_EDIT = f"editor {DEFAULTS}; systemctl restart pveproxy spiceproxy"

UNREAD = check(
    "hardening-pveproxy-unread",
    UNKNOWN,
    "The rules of pveproxy, or the members they must let in, could not be read",
    "Look at the file by hand, as root.",
    f"cat {DEFAULTS}",
)
STRANGE = check(
    "hardening-pveproxy-not-understood",
    UNKNOWN,
    "/etc/default/pveproxy is more than plain assignments, or has addresses that are not understood: bash may make "
    "anything of it",
    'Write plain NAME="value" lines.',
    _EDIT,
)
NO_PROTECTION = check(
    "hardening-pveproxy-allow-without-deny",
    WARNING,
    'ALLOW_FROM without DENY_FROM="all" or POLICY="deny" is no protection: who is in no list is let in',
    "Deny the others, once all nodes of the cluster are in ALLOW_FROM.",
    'DENY_FROM="all"',
)
PEER = check(
    "hardening-pveproxy-peer-refused",
    PROBLEM,
    "The rules of pveproxy refuse a node of the cluster: its requests for this node fail (console, migration, graphs)",
    "Add every node of the cluster to ALLOW_FROM, and keep POLICY at allow where DENY_FROM is all.",
    _EDIT,
)
LISTEN = check(
    "hardening-pveproxy-listen-ip",
    WARNING,
    "LISTEN_IP binds pveproxy of a cluster member to one address: other nodes may ask at another",
    "Remove it, and use ALLOW_FROM with DENY_FROM.",
    f"sed -i '/^LISTEN_IP=/d' {DEFAULTS}; systemctl restart pveproxy spiceproxy",
)
TLS = check(
    "hardening-pveproxy-tls",
    (WARNING, PROBLEM),
    "pveproxy takes weak ciphers (or no version of TLS at all, a problem)",
    "Remove the line: the default takes TLS 1.2 and 1.3 with strong ciphers.",
    _EDIT,
)


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """From the facts that ``hardening_info`` brought; nothing where it was not asked."""
    facts = facts_of(node, "pveproxy")
    return [] if facts is None or not proxmox(node) else findings(facts)


def of_report(node: Mapping[str, Any]) -> list[Finding]:
    return of_node(node, {})


def findings(facts: Mapping[str, Any]) -> list[Finding]:
    """``facts``: of the core ``pveproxy``."""
    found = [] if facts["known"] else [UNREAD(f"what pveproxy lets in could not be read: {facts['error']}")]
    values: dict[str, str] = dict(facts.get("values") or {})
    strange = facts.get("strange") or []
    odd = [name for name in ("ALLOW_FROM", "DENY_FROM") if networks(values.get(name, "")) is None]
    if values.get("POLICY", "allow") not in ("allow", "deny", ""):
        odd.append("POLICY")
    if strange or odd:
        where = f"line {some(strange)}" if strange else " and ".join(odd)
        found.append(
            STRANGE(f"{DEFAULTS} is not understood in {where}", means="what pveproxy lets in is not known")
        )
    # Such a line may set any of these to anything.
    return found if strange else found + _access(facts, values) + _tls(values)


def _access(facts: Mapping[str, Any], values: dict[str, str]) -> list[Finding]:
    found = []
    members: Mapping[str, str] | None = facts.get("peers")
    # Of documentation: in no list.
    strangers = ("192.0.2.1", "198.51.100.1", "203.0.113.1")
    outside = lets_in(values, strangers)
    if (
        values.get("ALLOW_FROM")
        and outside is not None
        and all(outside.values())
        and values["ALLOW_FROM"] != "all"
    ):
        closed = lets_in({**values, "DENY_FROM": "all"}, (members or {}).values()) or {}
        missing = [f"{shown(name)} ({its})" for name, its in (members or {}).items() if not closed.get(its)]
        told = f"; nodes of the cluster are missing in it: {some(missing)}" if missing else ""
        code = f"echo 'DENY_FROM=\"all\"' >> {DEFAULTS}; systemctl restart pveproxy spiceproxy"
        found.append(
            NO_PROTECTION(
                f'ALLOW_FROM="{shown(values["ALLOW_FROM"])}" in {DEFAULTS} with neither DENY_FROM="all" nor POLICY="deny"{told}',
                means="who is in no list is let in",
                code=_EDIT if missing or members is None else code,
            )
        )
    peers: Mapping[str, str] = members or {}
    taken = lets_in(values, peers.values())
    refused = [
        f"{shown(name)} ({address})"
        for name, address in peers.items()
        if taken is not None and not taken[address]
    ]
    if refused:
        found.append(
            PEER(
                f"pveproxy refuses nodes of the cluster: {some(refused)} (ALLOW_FROM, DENY_FROM, POLICY in {DEFAULTS})",
                means="their requests for this node fail (console, migration, graphs)",
            )
        )
    if values.get("LISTEN_IP") and facts.get("clustered"):
        found.append(LISTEN(f'LISTEN_IP="{shown(values["LISTEN_IP"])}" in {DEFAULTS} of a cluster member'))
    return found


def _tls(values: dict[str, str]) -> list[Finding]:
    if values.get("DISABLE_TLS_1_2") == "1" and values.get("DISABLE_TLS_1_3") == "1":
        return [
            TLS(
                f"DISABLE_TLS_1_2 and DISABLE_TLS_1_3 are both 1 in {DEFAULTS}: nobody can connect",
                severity=PROBLEM,
            )
        ]
    if weak := weak_ciphers(values.get("CIPHERS", "")):
        return [
            TLS(
                f"CIPHERS in {DEFAULTS} has {shown(', '.join(weak))}",
                code=f"sed -i '/^CIPHERS=/d' {DEFAULTS}; systemctl restart pveproxy spiceproxy",
            )
        ]
    return []
