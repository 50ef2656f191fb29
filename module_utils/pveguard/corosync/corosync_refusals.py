# SPDX-License-Identifier: Apache-2.0
"""Changes of corosync.conf that are refused before anything is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.run import Run
from ..formats import corosync_conf, corosync_edit
from ..formats.corosync_conf import Document
from ..ha import ha_info
from .corosync_wish import Wanted, int_or_zero

#: First version of corosync that changes its encryption without a restart (release notes of 3.1.0, "runtime crypto
#: reconfig").
CRYPTO_RELOAD_VERSION = (3, 1)


def refuse_state(info: dict[str, Any], wanted: Wanted) -> None:
    if not info["running"]:
        raise PveguardError("corosync is not running on this node: start it with 'systemctl start corosync'")
    if wanted.absent:
        names = {node["name"] for node in wanted.nodes}
        live = [
            m["name"] for m in info["members"] if m["name"] in names and m["id"] in info["live_member_ids"]
        ]
        if live:
            raise PveguardError(
                f"{', '.join(live)} is in the live membership; stop corosync there before it is removed"
            )
    if not info["quorate"]:
        raise PveguardError(
            "this node has no quorum ('corosync-quorumtool -s'); a change of corosync.conf needs it, bring "
            "members back first"
        )
    if not info["copies_equal"]:
        host = (info["host"] or {}).get("config_version")
        raise PveguardError(
            f"/etc/corosync/corosync.conf (config_version {host}) differs from /etc/pve/corosync.conf "
            "(config_version "
            f"{info['cluster']['config_version']}): make them equal first, then run again"
        )
    if not wanted.absent:
        refuse_lost_majority(info, wanted)


def refuse_at_once(
    info: dict[str, Any], before: str, texts: Sequence[str], wanted: Wanted, run: Run, root: Path
) -> list[str]:
    """Refuse what a running cluster would not survive, and return the keys that need a restart of Corosync."""
    old, new = corosync_conf.parse(before), corosync_conf.parse(texts[-1])
    refuse_votes(info, old, new)
    if old.crypto != new.crypto:
        refuse_crypto(info, old, new, wanted, run)
    former = before
    for number, text in enumerate(texts):
        # The state of a link that this change adds is seen when it is there.
        if number == 0:
            refuse_cut(info, former, text)
        else:
            refuse_last_link(corosync_conf.parse(former), corosync_conf.parse(text))
        former = text
    keys = corosync_edit.restart_keys(old, new)
    if keys:
        ha = ha_info.collect(run=run, root=root)
        if ha["resources"]:
            raise PveguardError(
                f"{', '.join(keys)} is taken only at a restart of corosync, and the cluster has HA resources "
                f"({', '.join(ha['resources'][:5])}): a node that is restarted may be reset. Remove them ('ha-manager "
                "remove SID') and stop HA (role ha, ha_state: disabled), change it, and bring them back"
            )
        if ha["watchdog_active"]:
            raise PveguardError(
                f"{', '.join(keys)} is taken only at a restart of corosync, and a client holds the watchdog on this node "
                "(/run/watchdog-mux.active): stop HA first (role ha, ha_state: disabled)"
            )
    return keys


def refuse_votes(info: dict[str, Any], old: Document, new: Document) -> None:
    """Votes of listed nodes, or the number expected, must not take the quorum away."""
    votes = {node.name: node.votes for node in old.nodes()}
    kept = [node for node in new.nodes() if node.name in votes]
    expected = old.get("quorum", "expected_votes"), new.get("quorum", "expected_votes")
    if all(votes[node.name] == node.votes for node in kept) and expected[0] == expected[1]:
        return
    live_ids = info["live_member_ids"]
    live = sum(node.votes for node in new.nodes() if node.node_id in live_ids)
    total = max(sum(node.votes for node in new.nodes()), int_or_zero(expected[1]))
    if new.qdevice:
        listed = sum(votes.values())
        live += max(0, (info.get("total_votes") or 0) - sum(n.votes for n in old.nodes() if n.node_id in live_ids))
        total += max(0, (info.get("expected_votes") or listed) - listed)
    if live * 2 <= total:
        raise PveguardError(
            f"with these votes the {live} of the live members would be no majority of {total} and the cluster would "
            "lose its quorum: bring back what is away, or give fewer votes to it"
        )


def refuse_crypto(info: dict[str, Any], old: Document, new: Document, wanted: Wanted, run: Run) -> None:
    if len(old.nodes()) < 2:
        return
    change = f"crypto would change from {'/'.join(old.crypto)} to {'/'.join(new.crypto)}"
    if not wanted.allow_crypto_change:
        raise PveguardError(
            f"{change} on a live cluster: a member that does not follow is cut off. With corosync 3.1, every member live "
            "and the same /etc/corosync/authkey everywhere it is done without a restart: run it once with "
            "-e corosync_allow_crypto_change=true (allow_crypto_change of the module) at a quiet time. Otherwise stop "
            "corosync on every member, change both copies alike, and start all of them"
        )
    away = [node.label for node in old.nodes() if node.node_id not in info["live_member_ids"]]
    if away:
        raise PveguardError(f"{change}, but {', '.join(away)} is away and could not come back: bring it back first")
    if new.crypto != ("none", "none") and info.get("authkey_sha256") is None:
        raise PveguardError(
            f"{change}, but /etc/corosync/authkey does not exist on this node: give every member the same key first "
            "(corosync-keygen, mode 0400)"
        )
    said = run(["corosync", "-v"], timeout=20)
    match = re.search(r"version '(\d+)\.(\d+)", said.stdout)
    if match is None or (int(match.group(1)), int(match.group(2))) < CRYPTO_RELOAD_VERSION:
        raise PveguardError(
            f"{change}, but corosync here is {match.group(0) if match else 'of an unknown version'}; only 3.1 and later "
            "change it while they run: stop corosync on every member, change both copies alike, and start all of them"
        )


def refuse_last_link(old: Document, new: Document) -> set[int]:
    """The links that stay as they are while others go; refuse when none does. Empty when none goes."""
    gone = set(old.link_numbers()) - corosync_edit.unchanged_links(old, new)
    stay = corosync_edit.unchanged_links(old, new)
    if not gone:
        return set()
    if not stay:
        raise PveguardError(
            f"this would replace link {', '.join(map(str, sorted(gone)))}, all that the nodes have, at once and cut them "
            "from each other: add a link with the new addresses first, wait until it is up, then remove the old one"
        )
    return stay


def refuse_cut(info: dict[str, Any], former: str, text: str) -> None:
    """Refuse to take a link away unless one that stays is up between this node and every live one."""
    old, new = corosync_conf.parse(former), corosync_conf.parse(text)
    stay = refuse_last_link(old, new)
    peers = peer_ids(info)
    if not stay or not peers:
        return
    up = [number for number in stay if not down_ids(info, number, peers)]
    if not up:
        links = "; ".join(
            f"link {number} is not up to node ids {', '.join(map(str, down_ids(info, number, peers)))}" for number in sorted(stay)
        )
        gone = set(old.link_numbers()) - stay
        raise PveguardError(
            f"link {', '.join(map(str, sorted(gone)))} cannot be taken away, no link that stays is up to every live member: "
            f"{links} ('corosync-cfgtool -n'); bring one up first"
        )


def peer_ids(info: dict[str, Any]) -> list[int]:
    listed = corosync_conf.parse(info["cluster"]["text"]).nodes()
    own = info.get("node_id")
    ids = {node.node_id for node in listed}
    return sorted(number for number in info["live_member_ids"] if number != own and number in ids)


def down_ids(info: dict[str, Any], number: int, peers: Sequence[int]) -> list[int]:
    """Peers that this node does not reach over a link."""
    states: dict[str, str] = next(
        (link["peers"] for link in info.get("links") or [] if link["link"] == number), {}
    )
    return [peer for peer in peers if states.get(str(peer)) != "connected"]


def new_link_numbers(former: str, text: str) -> list[int]:
    """Links that come with a text, so that they must be up when it has arrived."""
    old, new = corosync_conf.parse(former), corosync_conf.parse(text)
    if new.transport != "knet":
        return []
    return sorted(set(new.link_numbers()) - corosync_edit.unchanged_links(old, new))


def refuse_lost_majority(info: dict[str, Any], wanted: Wanted) -> None:
    """A new node's vote counts from the moment it is listed, before it has joined.

    Where every listed member is live that is how a cluster of one grows, and the failed join is undone.
    With a member away it could cost a running cluster its quorum.
    """
    listed = corosync_conf.parse(info["cluster"]["text"], "/etc/pve/corosync.conf").nodes()
    names = {node.name for node in listed}
    new = [node for node in wanted.nodes if node["name"] not in names]
    away = [node.label for node in listed if node.node_id not in info["live_member_ids"]]
    if not new or not away:
        return
    live = sum(node.votes for node in listed if node.node_id in info["live_member_ids"])
    total = sum(node.votes for node in listed)
    total += sum(1 if node.get("votes") is None else int(node["votes"]) for node in new)
    if live * 2 <= total:
        raise PveguardError(
            f"{', '.join(away)} is away: with {', '.join(node['name'] for node in new)} listed too, the {live} "
            f"live vote(s) would be no majority of {total} and the cluster would lose its quorum. Bring back "
            "what is away, or remove a member that is gone for good ('pvecm delnode NAME'), then run again"
        )
