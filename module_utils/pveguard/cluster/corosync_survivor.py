# SPDX-License-Identifier: Apache-2.0
"""Which copy of corosync.conf should become that of all nodes of a cluster."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..formats import corosync_conf
from ..formats.corosync_version import MAX_CONFIG_VERSION
from .corosync_views import CLUSTER_COPY, HOST_COPY, SHORT, Copy, View, disjoint, grouped, ids_text, named


@dataclass(frozen=True)
class Survivor:
    """The copy that should become that of all.

    ``node`` is None when a person must decide, and ``reason`` says why. ``needed`` is False when there is nothing to
    choose. ``copy``: ``cluster`` or ``host``. ``write_version``: the config_version with which it wins over every copy
    that was seen; that of the copy itself where nothing stands in its way.
    """

    needed: bool
    reason: str
    node: str | None = None
    host: str | None = None
    copy: str | None = None
    config_version: int | None = None
    sha256: str | None = None
    write_version: int | None = None

    @property
    def path(self) -> str | None:
        return {"cluster": CLUSTER_COPY, "host": HOST_COPY}.get(self.copy or "")


def survivor(cluster: str, views: Sequence[View]) -> Survivor:
    """The copy to keep, and why; without a node when a person must decide.

    With quorum it is what the quorate members have on /etc/pve, or, where all of them run a newer text of /etc/corosync,
    that one. Without quorum it is the highest config_version, once nodes with a majority of the votes were asked: a change
    needed quorum, so one of them has it. A node whose daemon works alone is not counted for its copy on /etc/pve.
    """
    asked = [view for view in views if view.asked]
    copies = [copy for view in asked for copy in (view.cluster, view.local) if copy]
    if not copies:
        return Survivor(False, "no node that was asked has a corosync.conf")
    bare = [view for view in asked if view.local is None]
    if len({copy.sha256 for copy in copies}) == 1 and not copies[0].error and not bare:
        return Survivor(False, f"all copies are the same (config_version {copies[0].config_version})")
    quorate = [view for view in asked if view.counts]
    chosen = _of_quorate(cluster, quorate, views) if quorate else _without_quorum(cluster, asked, views)
    if isinstance(chosen, str):
        return Survivor(True, chosen)
    view, which, reason = chosen
    copy = view.cluster if which == "cluster" else view.local
    assert copy is not None
    return Survivor(
        True,
        reason,
        view.name,
        view.host,
        which,
        copy.config_version,
        copy.sha256,
        write_version(copy, copies, views),
    )


_Choice = tuple[View, str, str] | str


def _of_quorate(cluster: str, quorate: Sequence[View], views: Sequence[View]) -> _Choice:
    sides = {view.live for view in quorate}
    if len(sides) > 1:
        parts = grouped(quorate, lambda view: view.live)
        shown = "; ".join(f"{named(part)} see {ids_text(live)}" for live, part in parts.items())
        if disjoint(sides):
            return f"two parts of the cluster have quorum, each with changes of its own: {shown}"
        return f"the quorate members do not agree on the membership: {shown}. Look again in some seconds"
    on_pve = grouped([v for v in quorate if _usable(v.cluster, cluster)], lambda view: view.cluster)
    on_host = grouped([v for v in quorate if _usable(v.local, cluster)], lambda view: view.local)
    best = max((copy.config_version or 0 for copy in on_pve if copy), default=0)
    for copy in [*on_pve, *on_host]:
        if doubt := _forced(copy, next(iter(sides)), views):
            return doubt
    # Where all members run it, a newer text of /etc/corosync is one that works: it was made alike by hand.
    if len(on_host) == 1:
        ((copy, holders),) = on_host.items()
        version = (copy and copy.config_version) or 0
        everyone = {view.node_id for view in holders} >= next(iter(sides))
        if version > best and everyone and all(view.running_version == version for view in holders):
            former = f"{CLUSTER_COPY} has {best}" if best else f"{CLUSTER_COPY} cannot be used"
            return holders[0], "host", f"every member has it in /etc/corosync and runs it (config_version {version}; {former})"
    if not best:
        return "no quorate member has a copy that can be used; look at /etc/pve/corosync.conf.bak"
    top = {copy: holders for copy, holders in on_pve.items() if copy and copy.config_version == best}
    if len(top) > 1:
        shown = "; ".join(f"{named(holders)}: {copy.sha256[:SHORT]}" for copy, holders in top.items())
        return f"quorate members have config_version {best} with different text on /etc/pve ({shown})"
    ((_, holders),) = top.items()
    return holders[0], "cluster", (
        f"it is on /etc/pve of {named(holders)} with quorum, the highest config_version there ({best})"
    )


def _forced(copy: Copy, live: frozenset[int], views: Sequence[View]) -> str:
    """Why this quorum does not exclude another one among nodes that nobody asked; empty when it does."""
    document = corosync_conf.parse(copy.text)
    # A QDevice gives its vote to one side only.
    if document.qdevice:
        return ""
    total = sum(node.votes for node in document.nodes())
    held = sum(node.votes for node in document.nodes() if node.node_id in live)
    silent = [view for view in views if not view.asked and view.node_id not in live]
    if held * 2 > total or not silent:
        return ""
    return (
        f"there is quorum with {held} of {total} votes (two_node, or votes lowered by hand), and {named(silent)} may have it "
        "too. Ask them, or make sure that they are off"
    )


def _without_quorum(cluster: str, asked: Sequence[View], views: Sequence[View]) -> _Choice:
    together = [view for view in asked if view.mode != "local"]
    on_pve = grouped([v for v in together if _usable(v.cluster, cluster)], lambda view: view.cluster)
    on_host = grouped([v for v in asked if _usable(v.local, cluster)], lambda view: view.local)
    best = max((copy.config_version or 0 for copy in [*on_pve, *on_host] if copy), default=0)
    if not best:
        return "no node has a copy that can be used; look at /etc/pve/corosync.conf.bak and at the generations of pve-state"
    texts = {copy.sha256: copy for copy in [*on_pve, *on_host] if copy and copy.config_version == best}
    if len(texts) > 1:
        return _by_majority(texts, on_pve, on_host, best)
    ((_, copy),) = texts.items()
    total, votes = _votes(copy)
    heard = sum(votes.get(view.name, 0) for view in asked if view.cluster or view.local)
    if heard * 2 <= total:
        silent = [view for view in views if not view.asked and view.name in votes]
        return (
            f"no quorum, and nodes with {heard} of {total} votes were asked: {named(silent) or 'another node'} may have a newer "
            "one. Ask a majority"
        )
    holders = [view for part, found in on_pve.items() if part and part.sha256 == copy.sha256 for view in found]
    if holders:
        return holders[0], "cluster", (
            f"without quorum, the highest config_version ({best}) of nodes with {heard} of {total} votes, on /etc/pve of "
            f"{named(holders)}; a change needed a majority, so one of them has the last"
        )
    by_hand = [view for part, found in on_host.items() if part and part.sha256 == copy.sha256 for view in found]
    held = sum(votes.get(view.name, 0) for view in by_hand)
    if held * 2 > total:
        return by_hand[0], "host", (
            f"without quorum, the highest config_version ({best}), alike in /etc/corosync of {named(by_hand)}, nodes with "
            f"{held} of {total} votes; it was made by hand, or /etc/pve went back"
        )
    return (
        f"config_version {best} is in /etc/corosync of {named(by_hand)} only, above every copy on /etc/pve: made by hand and "
        "not on a majority, or /etc/pve went back"
    )


def _by_majority(
    texts: Mapping[str, Copy],
    on_pve: Mapping[Copy | None, Sequence[View]],
    on_host: Mapping[Copy | None, Sequence[View]],
    best: int,
) -> _Choice:
    for sha256, copy in texts.items():
        total, votes = _votes(copy)
        holders = [view for part, found in on_pve.items() if part and part.sha256 == sha256 for view in found]
        held = sum(votes.get(view.name, 0) for view in holders)
        if held * 2 > total:
            return holders[0], "cluster", (
                f"without quorum, config_version {best} has different texts; this one is on /etc/pve of {named(holders)}, nodes "
                f"with {held} of {total} votes"
            )
    shown = []
    for sha256 in texts:
        names = {
            view.name: None
            for copies in (on_pve, on_host)
            for part, found in copies.items()
            if part and part.sha256 == sha256
            for view in found
        }
        shown.append(f"{', '.join(names)}: {sha256[:SHORT]}")
    return f"no quorum, and config_version {best} has different texts, none of a majority ({'; '.join(shown)})"


def _usable(copy: Copy | None, cluster: str) -> bool:
    if copy is None or copy.error:
        return False
    return _cluster_name(copy.text) == cluster


@functools.lru_cache(maxsize=64)
def _cluster_name(text: str) -> str | None:
    return corosync_conf.parse(text).cluster_name


def _votes(copy: Copy) -> tuple[int, dict[str, int]]:
    nodes = corosync_conf.parse(copy.text).nodes()
    return sum(node.votes for node in nodes), {str(node.name): node.votes for node in nodes}


def write_version(chosen: Copy, copies: Iterable[Copy], views: Sequence[View]) -> int:
    """The config_version with which ``chosen`` wins over every copy and every running Corosync that was seen."""
    own = chosen.config_version or 0
    others = [copy.config_version or 0 for copy in copies if copy.sha256 != chosen.sha256]
    runs = [version or 0 for view in views for version in (view.running_version, *view.member_versions.values())]
    if all(version < own for version in others) and all(version <= own for version in runs):
        return own
    # Above the highest there is none; whoever writes it refuses that.
    return min(1 + max([own, *others, *runs]), MAX_CONFIG_VERSION)
