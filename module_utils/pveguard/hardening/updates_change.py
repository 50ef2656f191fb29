# SPDX-License-Identifier: Apache-2.0
"""Unattended upgrades of what Debian's security origin brings, and of nothing else, each member at a moment of its own.

The moment comes from the node's id in the cluster alone, so it needs no talk between members: an hour after midnight (UTC), and
then one slot for each id. While every id of the cluster is within the slots of one day, each node has its slot every day; where
one is beyond, every node has its slot once a week, on the day that is (id - 1) / slots of a day. More than a week holds is
refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..base import node_name
from ..base.errors import PveguardError
from ..base.managed_file import FileSpec
from ..formats import corosync_conf
from .change_parts import Facts, Options, file_states, is_on, same
from .looking import Looking, area

NAME = "updates"
CONF = "/etc/apt/apt.conf.d/99-pveguard-updates"
TIMER = "apt-daily-upgrade.timer"
#: Read after every other drop-in, that of the write diet among them.
DROP_IN = f"/etc/systemd/system/{TIMER}.d/zz-pveguard.conf"
COROSYNC = "/etc/corosync/corosync.conf"
ORIGIN = "origin=Debian,codename=${distro_codename}-security,label=Debian-Security"
#: Restarted or rebooted by hand, one member at a time. Regular expressions, matched at the beginning of a package's name.
NEVER = tuple(
    "linux- proxmox- pve- pve$ libpve- corosync libcorosync libknet qemu-server lxc openvswitch".split()
)
#: What apt has to say afterwards.
VALUES = {
    "APT::Periodic::Update-Package-Lists": "1",
    "APT::Periodic::Unattended-Upgrade": "1",
    "Unattended-Upgrade::Automatic-Reboot": "false",
    "Unattended-Upgrade::Automatic-Reboot-WithUsers": "false",
    "Unattended-Upgrade::InstallOnShutdown": "false",
    "Unattended-Upgrade::MinimalSteps": "true",
    "Unattended-Upgrade::Remove-New-Unused-Dependencies": "false",
    "Unattended-Upgrade::Remove-Unused-Dependencies": "false",
    "Unattended-Upgrade::Remove-Unused-Kernel-Packages": "false",
}
FIRST_MINUTE, DAY = 60, 24 * 60
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_PROGRAMS = ("/usr/bin/unattended-upgrade", "/usr/bin/unattended-upgrades")
_LISTS = ("Unattended-Upgrade::Origins-Pattern", "Unattended-Upgrade::Allowed-Origins")


@area
def look(looking: Looking) -> dict[str, Any]:
    """``installed``; ``id`` and ``highest`` of the cluster (1 and 1 without one); ``odd``: why these are not known; ``later``:
    drop-ins of the timer that are read after ours. Where it is installed, ``apt``: what apt says of VALUES, ``origins`` and
    ``never``; ``files``.
    """
    own, highest, odd = _ids(looking)
    folders = [
        f"{folder}/{TIMER}.d"
        for folder in ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
    ]
    drop_ins = [path for folder in folders for path in looking.names(folder, ".conf")]
    later = [path for path in drop_ins if path.rpartition("/")[2] > DROP_IN.rpartition("/")[2]]
    turn = {"id": own, "highest": highest, "odd": odd, "later": later}
    if not any(looking.exists(path) for path in _PROGRAMS):
        return {"installed": False, **turn}
    said = looking.output(["apt-config", "dump"])
    if said is None and not looking.unread:
        looking.cannot("apt-config", "not there")
    return {
        "installed": True,
        **turn,
        "apt": _apt(said or ""),
        "files": file_states([CONF, DROP_IN], looking.root),
    }


def _ids(looking: Looking) -> tuple[int, int, str]:
    text = looking.text(COROSYNC)
    if text is None:
        return 1, 1, ""
    try:
        conf = corosync_conf.parse(text, COROSYNC)
        if not conf.config_version:
            # Debian's example.
            return 1, 1, ""
        nodes = conf.nodes()
    except PveguardError as error:
        return 0, 0, str(error)
    ids = [node.node_id for node in nodes if node.node_id]
    own = [node.node_id for node in nodes if node.name == node_name.own() and node.node_id]
    if len(own) != 1 or len(ids) != len(nodes) or len(set(ids)) != len(ids):
        return 0, 0, f"{COROSYNC} does not tell the node id of {node_name.own()}, or has one twice"
    return own[0], max(ids), ""


def _apt(said: str) -> dict[str, Any]:
    values: dict[str, str] = {}
    origins, never = [], []
    for line in said.split("\n"):
        match = re.match(r'([\w:-]+?)(::)? "(.*)";\Z', line)
        if not match:
            continue
        name, value = match[1].removesuffix("::"), match[3]
        if name in _LISTS:
            origins += [value] if value else []
        elif name == "Unattended-Upgrade::Package-Blacklist":
            never += [value] if value else []
        elif name in VALUES:
            values[name] = value
    return {"values": values, "origins": origins, "never": never}


def calendar(own: int, highest: int, minutes: int) -> str:
    """When a node's turn is, as systemd has it. Raises PveguardError where a week has too few slots."""
    slots = DAY // minutes
    if highest > slots * len(DAYS):
        raise PveguardError(
            f"the highest node id of the cluster is {highest}, and a week has {slots * len(DAYS)} slots of {minutes} minutes: "
            "set node_hardening_updates_slot_minutes lower"
        )
    number = own - 1
    minute = (FIRST_MINUTE + number % slots * minutes) % DAY
    day = "" if highest <= slots else f"{DAYS[number // slots]} "
    return f"{day}*-*-* {minute // 60:02d}:{minute % 60:02d}:00 UTC"


def _minutes(options: Options) -> int:
    return int(options.get("slot_minutes") or 30)


def odd(options: Options, facts: Facts) -> str:
    """Why the turn of the node is not known."""
    try:
        return str(facts["odd"]) or ("" if calendar(facts["id"], facts["highest"], _minutes(options)) else "")
    except PveguardError as error:
        return str(error)


def owned(options: Options, facts: Facts, root: Path) -> list[FileSpec]:
    values = "".join(f'{name} "{value}";\n' for name, value in VALUES.items())
    never = "".join(f'  "^{each}";\n' for each in NEVER)
    conf = (
        "// Managed by pveguard (node_hardening_updates): Debian's security origin alone, no reboot.\n"
        f"#clear {_LISTS[0]};\n#clear {_LISTS[1]};\n"
        f'{_LISTS[0]} {{\n  "{ORIGIN}";\n}};\n'
        f"Unattended-Upgrade::Package-Blacklist {{\n{never}}};\n{values}"
    )
    when = calendar(facts["id"], facts["highest"], _minutes(options))
    timer = (
        "# Managed by pveguard (node_hardening_updates): the turn of this node, by its node id.\n[Timer]\nOnCalendar=\n"
        f"OnCalendar={when}\nRandomizedDelaySec=0\n"
        "# A turn that was missed is not made up for: after a power cut all members would have it at once.\nPersistent=false\n"
    )
    return [FileSpec(CONF, conf), FileSpec(DROP_IN, timer)]


def differs(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed"):
        return ["install unattended-upgrades, and limit it"] if is_on(options.get("install")) else []
    if odd(options, facts):
        return ["have unattended upgrades at the turn of this node, once its node id is known"]
    if not same(facts["files"], owned(options, facts, Path("/"))):
        return [
            f"limit unattended upgrades to Debian's security origin, at the turn of node id {facts['id']}"
        ]
    apt = facts["apt"]
    if (
        apt["origins"] != [ORIGIN]
        or apt["values"] != VALUES
        or not {f"^{each}" for each in NEVER} <= set(apt["never"])
    ):
        return [f"have apt follow {CONF}"]
    return []


def advice(options: Options, facts: Facts) -> list[str]:
    if facts.get("installed") or is_on(options.get("install")):
        return []
    return [
        "unattended-upgrades is not installed, so its concern is passed over (node_hardening_updates_install: true installs it)"
    ]
