# SPDX-License-Identifier: Apache-2.0
"""What is judged about the kernel's audit log."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from ..base.findings import PROBLEM, UNKNOWN, WARNING, Finding, check, some
from .auditd import CONF
from .looking import facts_of, proxmox, shown

UNREAD = check(
    "hardening-auditd-unread",
    UNKNOWN,
    "The audit daemon's files could not be read",
    "Look at them by hand, as root.",
    f"cat {CONF}; auditctl -l",
)
FULL = check(
    "hardening-auditd-full-stops",
    (PROBLEM, WARNING),
    "A full audit log (or a failing disk) stops the node, HALT or SINGLE (CIS Debian 12 6.2.2.3), or the record, "
    "SUSPEND (a warning)",
    "Let the log rotate and tell.",
    f"sed -i 's/^disk_full_action.*/disk_full_action = SYSLOG/' {CONF}; systemctl kill -s HUP auditd",
)
KEEP = check(
    "hardening-auditd-keeps-all",
    WARNING,
    "max_log_file_action is keep_logs (dev-sec, CIS Debian 12 6.2.2.2): the audit log grows until the disk is full",
    "Let it rotate, and send it elsewhere where it must be kept.",
    f"sed -i 's/^max_log_file_action.*/max_log_file_action = ROTATE/' {CONF}; systemctl kill -s HUP auditd",
)
PANIC = check(
    "hardening-auditd-panics",
    PROBLEM,
    "An audit rule (-f 2) lets the kernel panic when an event cannot be recorded: the node stops with all its guests",
    "Set -f 1, which only tells it.",
    "auditctl -f 1",
)
IMMUTABLE = check(
    "hardening-auditd-immutable",
    WARNING,
    "Audit rules are immutable (-e 2, CIS Debian 12 6.2.3.20): rules on /etc/pve cannot be loaded anew after pmxcfs was mounted "
    "again, and see nothing then",
    "Remove the line and reboot.",
    "grep -rn -- '-e 2' /etc/audit/rules.d",
)
WATCH = check(
    "hardening-auditd-watches-pve",
    WARNING,
    "An audit rule watches /etc/pve as a whole: the LRM's beat fills the log (50,000 records a day), and a rule loaded "
    "before the "
    "mount watches the directory beneath",
    "Watch files by name (user.cfg, storage.cfg, firewall, priv), and load the rules again after each mount.",
    "augenrules --load",
)


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """From the facts that ``hardening_info`` brought; nothing where it was not asked."""
    facts = facts_of(node, "auditd")
    return [] if facts is None else findings(facts, proxmox(node))


def of_report(node: Mapping[str, Any]) -> list[Finding]:
    return of_node(node, {})


def findings(facts: Mapping[str, Any], on_proxmox: bool = True) -> list[Finding]:
    """``facts``: of the core ``auditd``."""
    found = (
        [] if facts["known"] else [UNREAD(f"the audit daemon's files could not be read: {facts['error']}")]
    )
    if not on_proxmox:
        return found
    actions: Mapping[str, str] = facts.get("actions") or {}
    by = shown(facts.get("by") or "")
    stopping = {key: value for key, value in actions.items() if value in ("halt", "single", "suspend")}
    hard = [key for key, value in stopping.items() if value != "suspend"]
    if stopping:
        undo = "; ".join(f"sed -Ei 's/^ *{key} *=.*/{key} = SYSLOG/' {CONF}" for key in stopping)
        found.append(
            FULL(
                f"{', '.join(f'{key} = {value.upper()}' for key, value in stopping.items())} in {CONF} (set by: {by})",
                severity=PROBLEM if hard else WARNING,
                means="a full log stops the node"
                if hard
                else "nothing more is recorded once the log is full, until a restart",
                code=f"{undo}; systemctl kill -s HUP auditd",
            )
        )
    if actions.get("max_log_file_action") == "keep_logs":
        found.append(
            KEEP(
                f"max_log_file_action = keep_logs in {CONF} (set by: {by})",
                means="the log grows until the disk is full",
            )
        )
    rules = facts.get("rules") or []
    for kind in ("panic", "immutable", "watch"):
        meant = [
            rule for rule in rules if rule["what"] == kind or (kind == "watch" and rule["what"] == "beat")
        ]
        if meant:
            found.append(_rule(kind, meant))
    return found


def _deletes(line: str) -> str:
    """The command of sed that deletes this line."""
    pattern = re.sub(r"([][.*^$\\,])", r"\\\1", shown(line, 200))
    return rf"\,^[[:space:]]*{pattern}[[:space:]]*$,d"


def _rule(kind: str, rules: list[Mapping[str, Any]]) -> Finding:
    told = some([f"'{shown(rule['line'], 80)}' in {shown(rule['path'], 120)}" for rule in rules])
    text = f"{told} (set by: {', '.join(sorted({str(rule['by']) for rule in rules}))})"
    files = [shlex.quote(shown(path, 200)) for path in dict.fromkeys(rule["path"] for rule in rules)]
    if kind == "panic":
        undo = "; ".join(f"sed -Ei 's/^ *-f +2 *$/-f 1/' {path}" for path in files)
        return PANIC(text, means="the node stops with all its guests", code=f"{undo}; auditctl -f 1")
    if kind == "immutable":
        undo = "; ".join(f"sed -Ei '/^ *-e +2 *$/d' {path}" for path in files)
        return IMMUTABLE(
            text, means="rules on /etc/pve cannot be loaded again after a mount", code=undo
        )
    # These lines and no other: rules on files of /etc/pve by name are what is wanted.
    undo = "; ".join(
        f"sed -i {shlex.quote(_deletes(rule['line']))} {shlex.quote(shown(rule['path'], 200))}" for rule in rules
    )
    return WATCH(
        text,
        means="the LRM's beat fills the log, and after each mount of pmxcfs it sees nothing",
        code=f"{undo}; augenrules --load",
    )
