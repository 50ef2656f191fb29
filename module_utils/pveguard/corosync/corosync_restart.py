"""A restart of Corosync on one node that costs the cluster nothing: judged before, awaited after.

What Corosync takes only at its start (corosync_edit.restart_keys) is brought into force this way, one node at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from ..formats import corosync_conf
from ..ha import ha_info
from . import corosync_info


def judge(allow_quorum_loss: bool = False, run: Run = real_run, root: Path = Path("/")) -> dict[str, Any]:
    """The facts of corosync_info when Corosync may be restarted here. Raises PveguardError when not.

    A node by itself may always. Otherwise the cluster must be quorate, keep its quorum without this node unless
    ``allow_quorum_loss``, and both copies of corosync.conf must be the same. No restart with an HA resource, or while
    a client holds the watchdog here: the node could be reset.
    """
    info = corosync_info.collect(run=run, root=root)
    copy = info["cluster"] or info["host"]
    if copy is None:
        raise PveguardError("this node has no corosync.conf: there is nothing to restart")
    ha = ha_info.collect(run=run, root=root)
    if ha["resources"]:
        raise PveguardError(
            f"the cluster has HA resources ({', '.join(ha['resources'][:5])}): a restart of corosync may reset this node. "
            "Remove them ('ha-manager remove SID') and stop HA (role ha, ha_state: disabled) first"
        )
    if ha["watchdog_active"]:
        raise PveguardError(
            "a client holds the watchdog (/run/watchdog-mux.active): a restart of corosync may reset this node. Stop HA "
            "(role ha, ha_state: disabled) first"
        )
    if info["copies_equal"] is False:
        raise PveguardError("/etc/corosync/corosync.conf differs from /etc/pve/corosync.conf: make them equal first")
    document = corosync_conf.parse(copy["text"], "corosync.conf")
    if not info["running"] or len(document.nodes()) < 2:
        return info
    if not info["quorate"]:
        raise PveguardError("this node has no quorum ('corosync-quorumtool -s'): bring members back first")
    if not allow_quorum_loss:
        _refuse_quorum_loss(info, document)
    return info


def _refuse_quorum_loss(info: dict[str, Any], document: corosync_conf.Document) -> None:
    votes = {node.node_id: node.votes for node in document.nodes()}
    others = [number for number in info["live_member_ids"] if number != info["node_id"]]
    if document.two_node and others:
        return
    live = sum(votes.get(number, 0) for number in others)
    if document.qdevice:
        live += max(0, (info["total_votes"] or 0) - sum(votes.get(n, 0) for n in info["live_member_ids"]))
    total = max(info["expected_votes"] or 0, sum(votes.values()) if not document.qdevice else 0)
    if live * 2 <= total:
        raise PveguardError(
            f"without this node the cluster has {live} of {total} votes and loses its quorum while corosync restarts: bring "
            "back what is away, or accept it with -e corosync_restart_allow_quorum_loss=true (/etc/pve is read-only for "
            "some seconds)"
        )


def restart(
    deadline_s: float = 90.0,
    allow_quorum_loss: bool = False,
    run: Run = real_run,
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Restart Corosync and wait until this node is back as it was, with the configuration of its file.

    Returns the facts of corosync_info. Raises PveguardError when it must not be done, when the unit fails, or when
    something is still missing after ``deadline_s`` seconds.
    """
    before = judge(allow_quorum_loss, run, root)
    done = run(["systemctl", "restart", "corosync.service"], timeout=deadline_s)
    if not done.ok:
        said = " ".join((done.stderr or done.stdout).split()) or f"code {done.rc}"
        raise PveguardError(f"corosync did not start again: {said}; see 'journalctl -u corosync'")
    start = clock()
    while True:
        info = corosync_info.collect(run=run, root=root)
        missing = _missing(before, info)
        if not missing:
            return info
        if clock() - start > deadline_s:
            raise PveguardError(
                f"corosync was restarted and after {deadline_s:g} s " + "; ".join(missing) + "; see 'journalctl -u corosync'"
            )
        sleep(0.5)


def _missing(before: dict[str, Any], info: dict[str, Any]) -> list[str]:
    if not info["running"]:
        return ["it does not answer"]
    missing = []
    gone = sorted(set(before["live_member_ids"]) - set(info["live_member_ids"]))
    if gone:
        missing.append(f"node ids {', '.join(map(str, gone))} are not in the membership {info['live_member_ids']}")
    if not info["quorate"]:
        missing.append("there is no quorum")
    wanted = (info["host"] or {}).get("config_version")
    if info["running_config_version"] != wanted:
        missing.append(f"it runs config_version {info['running_config_version']}, wanted {wanted}")
    return missing
