# SPDX-License-Identifier: Apache-2.0
"""What is judged about sshd of a node: who could get in that should not, and what keeps Proxmox VE from getting in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..base import rollback_timer
from ..base.findings import PROBLEM, UNKNOWN, WARNING, Finding, check, some
from . import sshd
from .looking import facts_of, proxmox, shown

SWITCH = "node_hardening_sshd: true, then make site"

NOT_KNOWN = check(
    "hardening-sshd-unread",
    UNKNOWN,
    "What sshd does with a login could not be found out",
    "Correct what `sshd -t` reports; sshd would not survive its next restart.",
    "sshd -t",
)
UNPROVED = check(
    "hardening-sshd-unproved",
    WARNING,
    "A change of sshd waits for its confirmation, or is being taken back",
    "Run again, or undo it now.",
    f"systemctl start {rollback_timer.PREFIX}{sshd.TIMER}",
)
ROOT_OUT = check(
    "hardening-sshd-root-locked-out",
    PROBLEM,
    "sshd keeps root out from a member or from the controller (PermitRootLogin no as dev-sec sets it and CIS 5.1.20 has it, "
    "AllowUsers and the like of CIS 5.1.4 without root, no key, a second factor, a forced command): no migration, no "
    "replication, no join, no console of another node",
    "Take the line out, or let root in from the other members: root by key is what Proxmox VE needs.",
)
NO_RSA = check(
    "hardening-sshd-no-rsa",
    PROBLEM,
    "The RSA host key, by which the members know the node, is missing or not used, or keys of RSA are not taken: no "
    "migration, no replication, no console of another node",
    "Create the RSA host key again, and allow rsa-sha2-512 and rsa-sha2-256.",
    "ssh-keygen -A; pvecm updatecerts",
)
ANOTHER_KEY = check(
    "hardening-sshd-host-key-not-known",
    PROBLEM,
    "The members know the node by another RSA host key than it has: their logins fail",
    "Publish the present key to the cluster.",
    "pvecm updatecerts",
)
NO_FORWARDING = check(
    "hardening-sshd-no-socket-forwarding",
    PROBLEM,
    "sshd does not forward UNIX sockets (DisableForwarding of CIS 5.1.8, AllowTcpForwarding no as dev-sec sets it, PermitOpen, "
    "AllowStreamLocalForwarding): no migration",
    "Take the line out.",
)
MATCH = check(
    "hardening-sshd-match-root",
    WARNING,
    "A Match block sets for root what then counts in the place of everything that stands outside of it",
    "Take these lines out, or have the block leave root out (Match User *,!root).",
)
FEW_TRIES = check(
    "hardening-sshd-few-tries",
    WARNING,
    f"MaxAuthTries is below {sshd.FEW_TRIES} (dev-sec sets 2): a client that offers some keys first never comes to the right one",
    "Allow four, which is the limit of CIS 5.1.16.",
    "MaxAuthTries 4",
)
NO_INCLUDE = check(
    "hardening-sshd-no-include",
    WARNING,
    "The main file of sshd does not begin with an Include of sshd_config.d, as on a node that was upgraded from Debian 10 or "
    "earlier: what stands there does not count, or not first",
    "Make the Include its first line, and look at what the files of that folder set.",
    sshd.INCLUDE_LINE,
)
ROOT_PASSWORD = check(
    "hardening-sshd-root-password",
    WARNING,
    "Root may log in with a password (CIS 5.1.20, as far as Proxmox VE allows: by key alone)",
    "Let root log in by key only.",
    SWITCH,
)
PASSWORDS = check(
    "hardening-sshd-passwords",
    WARNING,
    "Users other than root may log in with a password",
    "Switch logins by password off.",
    SWITCH,
)
LOOSE = check(
    "hardening-sshd-loose",
    WARNING,
    "Settings that nothing of Proxmox VE needs are on: empty passwords (CIS 5.1.19), environment of users (5.1.21), "
    "host-based logins (5.1.10, 5.1.11), X11",
    "Switch them off.",
    SWITCH,
)
WEAK = check(
    "hardening-sshd-weak-algorithms",
    WARNING,
    "sshd offers weak algorithms (CIS 5.1.6, 5.1.12, 5.1.15)",
    "Take them off its lists, and keep rsa-sha2-256 and rsa-sha2-512.",
    SWITCH,
)
ONLY_ON_PVE = check(
    "hardening-sshd-keys-only-on-pve",
    WARNING,
    "Root's keys are only on /etc/pve: while the daemon of the cluster file system is down, nobody logs in by key",
    "Put a key of yours into a file that does not lie there.",
    "ram_state_login_fallback: true, or /root/.ssh/authorized_keys2",
)
DRIFTED = check(
    "hardening-sshd-changed",
    WARNING,
    "Somebody changed the drop-in of pveguard",
    "Look at it; a run writes it anew.",
    "make site",
)


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """From the facts of a node, with those of ``hardening_info``; nothing where nobody asked for them."""
    facts = facts_of(node, sshd.AREA)
    return [] if facts is None else findings(facts, proxmox(node))


def of_report(node: Mapping[str, Any]) -> list[Finding]:
    return of_node(node, {})


def findings(facts: Mapping[str, Any], proxmox: bool = True) -> list[Finding]:
    """``facts``: of :func:`.sshd.look`. ``proxmox``: whether Proxmox VE is there to be broken."""
    if not facts.get("known"):
        return [NOT_KNOWN(f"sshd could not be looked at: {facts.get('error') or 'no facts of it'}")]
    if not facts.get("installed"):
        return []
    return [*_pending(facts), *(_harmful(facts) if proxmox else []), *_open(facts)]


def _pending(facts: Mapping[str, Any]) -> list[Finding]:
    if facts["timer"] not in (rollback_timer.ARMED, rollback_timer.ROLLING_BACK):
        return []
    return [UNPROVED(f"a change of sshd is {facts['timer'].replace('_', ' ')}", means="nobody has proved it yet")]


def _harmful(facts: Mapping[str, Any]) -> list[Finding]:
    found = []
    wrong = [(who, key, text) for who, said in facts["problems"].items() for key, text in said.items()]
    for condition, keys in ((ROOT_OUT, None), (NO_RSA, sshd.OF_RSA), (NO_FORWARDING, sshd.OF_FORWARDING)):
        told: dict[tuple[str, str], list[str]] = {}
        for who, key, text in wrong:
            if key in keys if keys else key not in (*sshd.OF_RSA, *sshd.OF_FORWARDING):
                told.setdefault((key, text), []).append(who)
        if told:
            said = "; ".join(f"{text} (from {some(who)}{_places(facts, key)})" for (key, text), who in told.items())
            undo = _undo(facts, [key for key, _ in told]) or condition.code
            found.append(condition(f"root cannot work over ssh as Proxmox VE needs it: {said}", code=undo))
    if facts["known_host_key"] is False:
        found.append(ANOTHER_KEY(f"/etc/pve/nodes/{facts['node']}/ssh_known_hosts has another RSA host key than the node"))
    if facts["match"]:
        blocks = "; ".join(f"{each['place']} (Match {each['match']}): {each['sets']}" for each in facts["match"])
        found.append(MATCH(f"a Match block is about root: {blocks}"))
    tries = {who: said.get("MaxAuthTries") for who, said in facts["effective"].items()}
    few = [who for who, number in tries.items() if str(number).isdigit() and int(str(number)) < sshd.FEW_TRIES]
    if few:
        undo = _undo(facts, ["maxauthtries"]) or FEW_TRIES.code
        found.append(FEW_TRIES(f"MaxAuthTries is {tries[few[0]]} (from {some(few)}{_places(facts, 'maxauthtries')})", code=undo))
    return found


def _set_by(facts: Mapping[str, Any], key: str) -> Sequence[Mapping[str, str]]:
    return (facts.get("set_by") or {}).get(key) or []


def _places(facts: Mapping[str, Any], key: str) -> str:
    """Where the lines are, and who wrote them."""
    its = _set_by(facts, key)
    return f"; {some([shown(each['place'], 120) for each in its])}, set by: {its[0]['by']}" if its else ""


def _undo(facts: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Makes comments of the lines, each only where it still has the keyword; empty where no line is known."""
    steps = []
    for key in dict.fromkeys(keys):
        for each in _set_by(facts, key):
            file, _, number = each["place"].rpartition(":")
            steps.append(f"sed -i '{number}s/^[[:space:]]*{key}/#&/I' {shlex.quote(shown(file, 200))}")
    return "; ".join([*steps, "sshd -t && systemctl reload ssh"]) if steps else ""


def _open(facts: Mapping[str, Any]) -> list[Finding]:
    found = []
    if not facts["include"]["leading"]:
        before = facts["include"]["before"]
        found.append(NO_INCLUDE(f"{before} stands before the Include" if before else "sshd_config includes no sshd_config.d"))
    effective = facts["effective"]
    passwords = _from(effective, "PasswordAuthentication", "yes") or _from(effective, "KbdInteractiveAuthentication", "yes")
    with_password = [who for who in _from(effective, "PermitRootLogin", "yes") if who in passwords]
    if with_password:
        found.append(ROOT_PASSWORD(f"root may log in with a password from {some(with_password)}"))
    if passwords:
        found.append(PASSWORDS(f"sshd takes passwords from {some(passwords)}"))
    loose = {key: said for key, said in _any(effective, sshd.PLAIN).items() if said}
    if loose:
        found.append(LOOSE(f"sshd has {', '.join(f'{key} {said}' for key, said in loose.items())}"))
    if facts["weak"]:
        names = "; ".join(f"{key}: {some(names)}" for key, names in facts["weak"].items())
        found.append(WEAK(f"sshd offers weak algorithms ({names})"))
    keys = [each for each in facts["authorized_keys"] if each["keys"]]
    if keys and all(each["on_pve"] for each in keys):
        found.append(ONLY_ON_PVE(f"root's keys are only on /etc/pve ({', '.join(each['path'] for each in keys)})"))
    if facts["drifted"]:
        found.append(DRIFTED(f"{'; '.join(f'{path}: {what}' for path, what in facts['drifted'].items())}"))
    return found


def _from(effective: Mapping[str, Mapping[str, str]], key: str, said: str) -> Sequence[str]:
    return [who for who, found in effective.items() if found.get(key) == said]


def _any(effective: Mapping[str, Mapping[str, str]], wanted: Mapping[str, str]) -> dict[str, str]:
    """What somebody has otherwise, by keyword."""
    return {
        key: next((found[key] for found in effective.values() if found.get(key) and found[key] != good), "")
        for key, good in wanted.items()
    }
