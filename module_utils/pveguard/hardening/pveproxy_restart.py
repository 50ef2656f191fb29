# SPDX-License-Identifier: Apache-2.0
"""The change of /etc/default/pveproxy: judged beforehand, made to count by a restart, and asked afterwards."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from ..base import node_name
from ..base.errors import PveguardError
from ..base.systemd import properties, properties_of
from ..pmxcfs import daemon_mode
from ..pmxcfs import members as members_file
from . import pveproxy_proof
from .change_parts import Around, Facts, Options, Work
from .looking import shown
from .pveproxy import DEFAULTS, lets_in, networks
from .pveproxy_change import LOOPBACK, allowed, wanted

UNITS = ("pveproxy.service", "spiceproxy.service")


def refuse(options: Options, facts: Facts, around: Around) -> None:
    if facts["strange"]:
        numbers = ", ".join(str(number) for number in facts["strange"])
        raise PveguardError(
            f"{DEFAULTS} is more than plain assignments (line {numbers}), and bash sources it, so what counts is not known: "
            'write plain NAME="value" lines there'
        )
    new = wanted(options)
    for name, value in new.items():
        if not value.isascii() or any(char in '"$`\\\n' or not char.isprintable() for char in value):
            raise PveguardError(
                f"{shown(value)!r} is no value for {name} (node_hardening_pveproxy_{_OPTIONS[name]})"
            )
    _refuse_tls(new, facts["values"])
    # Also for TLS alone: without its certificates on /etc/pve pveproxy does not come back from a restart.
    own, peers = members(around)
    if "ALLOW_FROM" in new:
        asking = {f"this node ({own[1]})": own[1]} if own[1] else {}
        asking.update({f"{name} ({address})": address for name, address in peers.items()})
        if around.controller:
            asking[f"the controller ({around.controller})"] = around.controller
        _refuse_access(options, new, facts["values"], asking)
    _refuse_dead(facts["values"], around)


_OPTIONS = {
    "ALLOW_FROM": "allow_from",
    "DENY_FROM": "allow_from",
    "POLICY": "allow_from",
    "CIPHERS": "ciphers",
    "CIPHERSUITES": "ciphersuites",
    "DISABLE_TLS_1_2": "tls_1_2",
}


def _refuse_tls(new: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    if new.get("DISABLE_TLS_1_2") == "1" and theirs.get("DISABLE_TLS_1_3", "0") not in ("", "0"):
        raise PveguardError(
            f"{DEFAULTS} has DISABLE_TLS_1_3, and with TLS 1.2 off nobody could connect: take that line out, or leave "
            "node_hardening_pveproxy_tls_1_2: true"
        )
    if "CIPHERS" in new:
        import ssl

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(new["CIPHERS"])
        except ssl.SSLError as error:
            raise PveguardError(
                f"OpenSSL knows none of the ciphers {shown(new['CIPHERS'], 200)!r} (node_hardening_pveproxy_ciphers)"
            ) from error


def _refuse_access(
    options: Options, new: Mapping[str, str], theirs: Mapping[str, str], asking: Mapping[str, str]
) -> None:
    switch = "node_hardening_pveproxy_allow_from"
    odd = [each for each in allowed(options) if "," in each or networks(each) is None]
    if odd:
        raise PveguardError(f"{shown(', '.join(odd))!r} in {switch} is no address, network or range")
    denied = theirs.get("DENY_FROM", "")
    if denied.strip() not in ("", "all"):
        raise PveguardError(
            f'{DEFAULTS} has DENY_FROM="{shown(denied)}", which would not count any more beside an access list: leave these '
            f"addresses out of {switch}, and take the line out"
        )
    taken = lets_in(dict(new), asking.values())
    missing = [who for who, address in asking.items() if taken is None or not taken[address]]
    if missing:
        raise PveguardError(
            f"pveproxy would not let in {', '.join(missing)}: every member asks the others there (consoles, migration, graphs). "
            f"Add their addresses to {switch}"
        )


def members(around: Around) -> tuple[tuple[str, str], dict[str, str]]:
    """(name, address) of this node, and ``{name: address}`` of the others, as the cluster file system has them. The daemon that
    says so may hang, so a child asks it. Raises PveguardError where they are not known.
    """
    said, error = daemon_mode.members(around.root, around.run)
    if error:
        raise PveguardError(
            f"which members must be let in is not known: {error}. Look with 'systemctl status pve-cluster', and run again"
        )
    cluster = said.get("cluster")
    if isinstance(cluster, Mapping) and not cluster.get("quorate"):
        raise PveguardError(
            "the cluster is not quorate, so the other members cannot prove that they get in: bring it to quorum "
            "first (pvecm status)"
        )
    if gone := members_file.offline(said):
        raise PveguardError(
            f"{', '.join(gone)} of the cluster is offline, so nobody can prove that it gets in: start it, or take it out of the "
            "cluster (pvecm delnode), and run again"
        )
    found = {str(name): str(node.get("ip") or "") for name, node in (said.get("nodelist") or {}).items()}
    own = str(said.get("nodename") or node_name.own())
    without = []
    for name, address in found.items():
        try:
            ipaddress.ip_address(address)
        except ValueError:
            without.append(name)
    if without:
        raise PveguardError(
            f"the addresses of {', '.join(sorted(without))} are not known: /etc/pve/.members has none"
        )
    return (own, found.get(own, "")), {
        name: address for name, address in sorted(found.items()) if name != own
    }


def _listens(theirs: Mapping[str, str]) -> str:
    address = theirs.get("LISTEN_IP", "").strip("[] ")
    return LOOPBACK[0] if address in ("", "0.0.0.0", "::", "*") else address


def _refuse_dead(theirs: Mapping[str, str], around: Around) -> None:
    """What does not answer now could not be proved afterwards. An access list that is wrong already is what is being mended."""
    states = properties_of(UNITS, ["ActiveState"], around.run)
    state = states[UNITS[0]].get("ActiveState")
    if state != "active":
        raise PveguardError(
            f"{UNITS[0]} is {state or 'not known'}: mend that first, look with 'systemctl status pveproxy'"
        )
    found = pveproxy_proof.ask(_listens(theirs), pveproxy_proof.PORT)
    if found["absent"]:
        raise PveguardError(
            f"nothing answers on port {pveproxy_proof.PORT} of {_listens(theirs)}: {found['error']}"
        )


def proof(options: Options, facts: Facts, around: Around) -> dict[str, Any]:
    """``address`` of this node and ``peers`` ([{name, address}]) that are to ask it."""
    try:
        own, peers = members(around)
    except PveguardError:
        return {"address": "", "peers": []}
    return {
        "address": own[1],
        "peers": [{"name": name, "address": address} for name, address in peers.items()],
    }


def activate(work: Work) -> None:
    units = properties_of(UNITS, ["ActiveState"], work.run)
    active: Sequence[str] = [
        name for name in UNITS if units[name].get("ActiveState") in ("active", "activating", "failed")
    ]
    if not active:
        return
    work.command("systemctl", "reset-failed", *active)
    work.command("systemctl", "restart", *active)
    work.done.append(f"{', '.join(active)} restarted")
    if UNITS[0] in active and work.facts.get("known"):
        _prove(work)


def _prove(work: Work) -> None:
    """That it answers on the node itself, and that what is to be off is off."""
    address, number = _listens(work.facts.get("values") or {}), pveproxy_proof.PORT
    found = pveproxy_proof.until(address, number, alive=lambda: _is_alive(work))
    if work.options is None:
        # As it was before, which may not have let this node in either.
        return
    if found["error"]:
        raise PveguardError(
            f"pveproxy does not take a connection from this node to {address} port {number}: {found['error']}; look with "
            "'journalctl -u pveproxy'"
        )
    new = wanted(work.options)
    if new.get("DISABLE_TLS_1_2") == "1" and pveproxy_proof.takes(address, number, ""):
        raise PveguardError("pveproxy still takes TLS 1.2")
    left = _not_in(new["CIPHERS"]) if "CIPHERS" in new else ""
    if left and pveproxy_proof.takes(address, number, left):
        raise PveguardError("pveproxy still takes ciphers that node_hardening_pveproxy_ciphers leaves out")


def _is_alive(work: Work) -> bool:
    return properties(UNITS[0], ["ActiveState"], work.run).get("ActiveState") in ("active", "activating")


def _not_in(ciphers: str) -> str:
    """Ciphers of TLS 1.2 that a list leaves out, as far as OpenSSL here can offer them."""
    import ssl

    def names(listed: str) -> set[str]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers(listed)
        return {str(each["name"]) for each in context.get_ciphers() if each["protocol"] != "TLSv1.3"}

    left = sorted(names("ALL:@SECLEVEL=0") - names(f"{ciphers}:@SECLEVEL=0"))
    return ":".join(left)
