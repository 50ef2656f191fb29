# SPDX-License-Identifier: Apache-2.0
"""What takes an unproved change of the firewall back on a node, whoever else is gone: a shell program for the rollback timer.

First the node's own firewall is opened, for which neither /etc/pve nor quorum is needed: pve-firewall is stopped and kept from
starting by a condition in its unit (so also at the next boot), proxmox-firewall gets the file that disables it. Then the former
cluster.fw is put back, as soon as /etc/pve takes writes again: the program fails until then, and the timer tries it again. Every
member does so, the first one wins, and the others find it done. A cluster.fw that somebody has edited since is left alone.
At last the firewall runs again; not where it was the change that had switched it on, and the edited file may still shut everybody
out: the node stays open then, also at boot, and says how to go on. So does one that was open like that before the change.

On a host without Proxmox's firewall the own table is deleted, and what was there before is loaded again.
"""

from __future__ import annotations

import os

from . import firewall

#: What is kept of a change that waits, of the files before the first one, and the program itself.
FOLDER = "/var/lib/pveguard/node_hardening/firewall"
PROGRAM = f"{FOLDER}/undo"
HELD, FORCE_DISABLE = firewall.HELD_OPEN, firewall.FORCE_DISABLE
#: The content of that file where it is ours; somebody else's stays.
OURS = "pveguard"
LEGACY_UNIT, NFTABLES_UNIT = "pve-firewall.service", "proxmox-firewall.service"
UNITS = (LEGACY_UNIT, NFTABLES_UNIT)
DROP_IN = "60-pveguard-rollback.conf"
#: Of a host without Proxmox's firewall.
TABLE_UNIT = "pveguard-firewall.service"
#: What was in cluster.fw before a change, where somebody's later edit stayed.
COPY = f"{FOLDER}/cluster.fw.before"

CONDITION = f"""\
# Managed by pveguard, as long as a change of the firewall waits for its proof.
[Unit]
ConditionPathExists=!{HELD}
"""


def drop_in(unit: str) -> str:
    """The file by which a unit does not start while the node is held open."""
    return f"/etc/systemd/system/{unit}.d/{DROP_IN}"


def command() -> list[str]:
    return ["/bin/sh", PROGRAM]


def program(root: str = "") -> str:
    """The text; ``root`` is for tests."""
    return _TEXT.replace("@ROOT@", "" if root == "/" else os.path.abspath(root) if root else "")


GO_ON = f"rm -f {HELD} {FORCE_DISABLE} && systemctl start {LEGACY_UNIT}"

_TEXT = f"""#!/bin/sh
# Managed by pveguard. Takes back a change of the firewall that nobody has proved: see {FOLDER}.
# Safe to run twice. It fails while the former cluster.fw cannot be put back, and is tried again then.
root=@ROOT@
here=$root{FOLDER}
held=$root{HELD}
force=$root{FORCE_DISABLE}
opened=$root/run/pveguard/firewall-opened
pve=$root/etc/pve

# within SECONDS COMMAND...: 124 where it has not come back. A process that waits for a dead /etc/pve cannot even be killed.
within() {{
    left=$(($1 * 5))
    shift
    "$@" </dev/null &
    child=$!
    sleep 0.01
    while kill -0 $child 2>/dev/null; do
        [ $left -gt 0 ] || {{ kill -9 $child; return 124; }}
        left=$((left - 1))
        sleep 0.2
    done
    wait $child
}}

open_node() {{
    : >"$held"
    sync "$here"
    mkdir -p "$root/run/pveguard"
    [ -e "$force" ] || echo {OURS} >"$force"
    # Once a boot: what somebody starts by hand meanwhile is his.
    [ ! -e "$opened" ] || return 0
    echo "opening the firewall of this node: its last change was not proved"
    if command -v pve-firewall >/dev/null; then
        within 60 pve-firewall stop || within 20 systemctl kill --signal=KILL {LEGACY_UNIT}
        within 20 systemctl --no-block stop {LEGACY_UNIT}
    fi
    # What a firewall that was killed has left.
    for tool in iptables ip6tables; do
        command -v $tool-legacy >/dev/null && tool=$tool-legacy
        command -v $tool >/dev/null || continue
        for chain in INPUT OUTPUT FORWARD; do
            while within 20 $tool -w 10 -D $chain -j PVEFW-$chain 2>/dev/null; do :; done
        done
    done
    if command -v nft >/dev/null; then
        within 20 nft delete table inet proxmox-firewall 2>/dev/null
        within 20 nft delete table bridge proxmox-firewall-guests 2>/dev/null
    fi
    : >"$opened"
}}

# 0: it is the former one (again); 3: it is empty, as in the middle of a write; 4: somebody has edited it since; else: not now.
put_back() {{
    file=$pve/firewall/cluster.fw
    mountpoint -q "$pve" && [ -e "$pve/.version" ] || return 1
    # Of a try before.
    new=$file.pveguard.$(uname -n)
    [ ! -e "$new" ] || rm -f "$new"
    if cmp -s "$here/pending/ours" "$file"; then
        :
    elif [ -e "$here/pending/before" ] && cmp -s "$here/pending/before" "$file"; then
        return 0
    elif [ -e "$file" ] && [ ! -s "$file" ] && [ -s "$here/pending/ours" ]; then
        return 3
    elif [ -r "$file" ]; then
        return 4
    elif ls "$pve/firewall" >/dev/null && [ ! -e "$file" ]; then
        [ -e "$here/pending/before" ] && return 4
        return 0
    else
        return 1
    fi
    if [ -e "$here/pending/before" ]; then
        # In one step: the other members look at it as well, and power or quorum may go in between.
        cat "$here/pending/before" >"$new" && cmp -s "$here/pending/before" "$new" && mv -T "$new" "$file" &&
            cmp -s "$here/pending/before" "$file"
    else
        rm -f "$file" && [ ! -e "$file" ]
    fi
}}

close_up() {{
    if [ "$1" != hold ]; then
        rm -f "$held"
        [ "$(cat "$force" 2>/dev/null)" != {OURS} ] || rm -f "$force"
        for unit in {" ".join(UNITS)}; do
            rm -f "$root/etc/systemd/system/$unit.d/{DROP_IN}"
            rmdir "$root/etc/systemd/system/$unit.d" 2>/dev/null
        done
        systemctl daemon-reload
        for unit in $(cat "$here/pending/running" 2>/dev/null); do
            systemctl --no-block start "$unit"
        done
    fi
    rm -rf "$here/pending" "$opened"
    sync "$here"
}}

undo_cluster() {{
    open_node
    # In a process of its own, as all that touches /etc/pve.
    within 30 put_back
    case $? in
    0)
        if [ -e "$here/pending/held" ]; then
            echo "the former cluster.fw is there, and this node stays open as before; look at the file, then: {GO_ON}"
            close_up hold
        else
            close_up run
            echo "the former cluster.fw is there, and the firewall of this node runs as before"
        fi
        ;;
    3)
        echo "cluster.fw is empty, as in the middle of a write: put it right or remove it; this node is open until then"
        return 1
        ;;
    4)
        if [ -e "$here/pending/before" ]; then
            cp "$here/pending/before" "$root{COPY}" || return 1
            echo "what was in cluster.fw before is kept in {COPY}"
        fi
        if [ -e "$here/pending/woke" ] || [ -e "$here/pending/held" ]; then
            echo "somebody has edited cluster.fw since: it stays, and this node stays open. Look at the file, then:" \\
                "{GO_ON}"
            close_up hold
        else
            close_up run
            echo "somebody has edited cluster.fw since: it stays, and the firewall of this node runs with it"
        fi
        ;;
    *)
        echo "the former cluster.fw cannot be put back yet, as /etc/pve takes no writes; this node is open until then"
        return 1
        ;;
    esac
}}

undo_table() {{
    nft delete table inet pveguard 2>/dev/null
    if nft list table inet pveguard >/dev/null 2>&1; then
        echo "the table inet pveguard is still there"
        return 1
    fi
    for name in rules unit; do
        file=$root$(cat "$here/pending/$name.path")
        if [ -e "$here/pending/$name.before" ]; then
            cp -p "$here/pending/$name.before" "$file.pveguard-undo" && mv -T "$file.pveguard-undo" "$file" || return 1
        else
            rm -f "$file"
        fi
    done
    if [ -e "$here/pending/rules.before" ]; then
        nft -f "$root$(cat "$here/pending/rules.path")" || return 1
    else
        rm -f "$root/etc/systemd/system/multi-user.target.wants/{TABLE_UNIT}"
    fi
    sync
    systemctl daemon-reload
    rm -rf "$here/pending"
    echo "the table of the firewall is as it was before"
}}

main() {{
    [ -d "$here/pending" ] || return 0
    if [ -e "$here/pending/rules.path" ]; then undo_table; else undo_cluster; fi
}}

main
exit
"""
