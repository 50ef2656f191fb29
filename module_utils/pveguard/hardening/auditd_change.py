# SPDX-License-Identifier: Apache-2.0
"""Audit rules for the configuration of a cluster, on the file system that is mounted, not on the directory beneath.

They lie outside of rules.d, in a file of their own, which a unit loads once pmxcfs has mounted /etc/pve, and again after
each of its restarts. augenrules loads at boot, before the mount, where the folders do not exist: it would stop at the first of
these rules, and nobody's that come after would be loaded. It would also write /etc/audit/audit.rules anew, which may be
somebody's own work.

Writes that come from another member are made inside the daemon and are never seen. The LRM's beat (lrm_status, priv/lock) is left
out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.managed_file import FileSpec
from ..base.mountinfo import mountinfo
from ..base.run import CommandMissing
from . import auditd
from .change_parts import (
    INSTALL,
    SYSTEMCTL_S,
    Around,
    Facts,
    Options,
    Work,
    command,
    file_states,
    is_on,
    same,
)
from .looking import Looking, area, shown

NAME = "auditd"
RULES = "/etc/audit/pveguard.rules"
UNIT = "pveguard-audit-rules.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
WANTS = f"/etc/systemd/system/pve-cluster.service.wants/{UNIT}"
KEY = "pveguard"
_AUDITCTL = "/usr/sbin/auditctl"
FILES = (
    "corosync.conf",
    "datacenter.cfg",
    "domains.cfg",
    "jobs.cfg",
    "storage.cfg",
    "user.cfg",
    "vzdump.cron",
)
#: With what is below them.
FOLDERS = ("firewall", "mapping", "priv", "sdn")
#: Not so: the locks of HA and of pvestatd, every few seconds.
LEFT_OUT = "/etc/pve/priv/lock"


@area
def look(looking: Looking) -> dict[str, Any]:
    """``installed``; ``rules`` (of the core ``auditd``, those that are in the way), ``hard`` ({key: value} that stop the node),
    ``enabled`` (2: immutable), ``loaded`` (whether the kernel has ours), ``pmxcfs`` (it is installed), ``mounted`` (/etc/pve),
    ``files``.
    """
    if not looking.exists(_AUDITCTL):
        return {"installed": False}
    facts = auditd.look(looking.root, looking.run)
    if not facts["known"]:
        looking.unread.append(facts["error"])
    said = looking.output(["auditctl", "-s"])
    listed = looking.output(["auditctl", "-l"])
    return {
        "installed": True,
        "rules": [rule for rule in facts["rules"] if rule["path"] != RULES],
        "hard": {key: value for key, value in facts["actions"].items() if value in ("halt", "single")},
        "enabled": _enabled(said),
        "loaded": _loaded(listed or ""),
        "pmxcfs": looking.exists("/usr/bin/pmxcfs"),
        # By the kernel's table: the daemon may hang.
        "mounted": any(each["mount_point"] == "/etc/pve" for each in mountinfo(str(looking.root))),
        "files": file_states([RULES, UNIT_FILE, WANTS], looking.root),
    }


def _enabled(said: str | None) -> int | None:
    for line in (said or "").split("\n"):
        words = line.split()
        if len(words) > 1 and words[0] == "enabled" and words[1].isdigit():
            return int(words[1])
    return None


def _loaded(listed: str) -> bool:
    """Whether every file that is watched by name is there with our key; a folder need not be there."""
    ours = [line for line in listed.split("\n") if f"key={KEY}" in line or f"-k {KEY}" in line]
    words = {word for line in ours for word in line.replace("=", " ").split()}
    return all(f"/etc/pve/{name}" in words for name in FILES)


def _rules() -> str:
    lines = [
        "## Managed by pveguard (node_hardening_auditd): loaded by pveguard-audit-rules.service once /etc/pve is mounted.",
        "## A folder that is not there yet is no reason to leave out what comes after it.",
        "-i",
        f"-a never,exit -F dir={LEFT_OUT} -F perm=wa -F key={KEY}",
        *(f"-a always,exit -F path=/etc/pve/{name} -F perm=wa -F key={KEY}" for name in FILES),
        *(f"-a always,exit -F dir=/etc/pve/{name} -F perm=wa -F key={KEY}" for name in FOLDERS),
    ]
    return "\n".join(lines) + "\n"


_UNIT = f"""\
# Managed by pveguard (node_hardening_auditd).
[Unit]
Description=Audit rules of pveguard, on the cluster file system as it is mounted
Documentation=file:{RULES}
After=pve-cluster.service auditd.service audit-rules.service
# Restarted with them: a new mount has new files, and auditd's own rules take the place of all.
PartOf=pve-cluster.service auditd.service

[Service]
Type=oneshot
RemainAfterExit=yes
# Not a condition of systemd's own: it would ask the file system, which may hang, and with it process 1.
ExecCondition=/bin/grep -q " /etc/pve fuse" /proc/mounts
ExecStartPre=-{_AUDITCTL} -D -k {KEY}
ExecStart={_AUDITCTL} -R {RULES}
ExecStop=-{_AUDITCTL} -D -k {KEY}
TimeoutSec=120
"""


def owned(options: Options, facts: Facts, root: Path) -> list[FileSpec]:
    return [
        FileSpec(RULES, _rules(), "0640"),
        FileSpec(UNIT_FILE, _UNIT),
        # As `systemctl enable` would make it.
        FileSpec(WANTS, link=UNIT_FILE),
    ]


def differs(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed"):
        return (
            ["install auditd, and watch the configuration of the cluster"]
            if is_on(options.get("install"))
            else []
        )
    if not facts["pmxcfs"]:
        return []
    if not same(facts["files"], owned(options, facts, Path("/"))):
        return [f"watch the configuration of the cluster ({RULES})"]
    return (
        ["load the audit rules, which the kernel does not have"]
        if facts["mounted"] and not facts["loaded"]
        else []
    )


def advice(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed"):
        return (
            []
            if is_on(options.get("install"))
            else [
                "auditd is not installed, so its concern is passed over (node_hardening_auditd_install: true installs it)"
            ]
        )
    return (
        []
        if facts["pmxcfs"]
        else ["there is no cluster file system on this host, so there is nothing to watch"]
    )


def refuse(options: Options, facts: Facts, around: Around) -> None:
    if not facts.get("installed"):
        return
    if not facts["mounted"]:
        raise PveguardError(
            "/etc/pve is not mounted, so no rule can be loaded for it: systemctl start pve-cluster"
        )
    rules = facts["rules"]
    immutable = [rule for rule in rules if rule["what"] == "immutable"]
    if immutable or facts["enabled"] == 2:
        where = _places(immutable) or "the running kernel (auditctl -s: enabled 2)"
        raise PveguardError(
            f"audit rules are immutable: {where}. No rule can be loaded after /etc/pve was mounted then: take the line out "
            "(grep -rn -- '-e 2' /etc/audit/rules.d), run augenrules, and reboot the node"
        )
    if whole := [rule for rule in rules if rule["what"] in ("watch", "beat")]:
        raise PveguardError(
            f"{_places(whole)} watches /etc/pve as a whole, or the LRM's beat: some 50,000 records a day. Take it out, and run "
            "'augenrules --load'"
        )
    if panic := [rule for rule in rules if rule["what"] == "panic"]:
        raise PveguardError(f"{_places(panic)} lets the kernel panic where a record is lost: set -f 1 there")
    if facts["hard"]:
        told = ", ".join(f"{key} = {value.upper()}" for key, value in facts["hard"].items())
        raise PveguardError(
            f"{auditd.CONF} has {told}: a full log stops the node with its guests, and more rules fill it sooner. That file has "
            "no drop-ins, so it is yours: set SYSLOG there, and 'systemctl kill -s HUP auditd'"
        )


def _places(rules: list[dict[str, Any]]) -> str:
    return "; ".join(f"'{shown(rule['line'], 80)}' in {shown(rule['path'], 120)}" for rule in rules)


def prepare(options: Options, facts: Facts, around: Around) -> None:
    """Install what is asked for, before anything else is judged."""
    if not facts.get("installed") and is_on(options.get("install")):
        command(around.run, *INSTALL, "auditd")


def activate(work: Work) -> None:
    if work.options is None:
        # As far as it goes: auditd may be gone, and so may the unit. systemd knows it until it reads its files again.
        for argv in (["systemctl", "stop", UNIT], ["auditctl", "-D", "-k", KEY]):
            try:
                work.run(argv, timeout=SYSTEMCTL_S)
            except CommandMissing:
                pass
    work.command("systemctl", "daemon-reload")
    if work.options is None and not work.at(UNIT_FILE).exists():
        return
    work.command("systemctl", "restart", UNIT)
    work.done.append(f"{UNIT} restarted")
