# SPDX-License-Identifier: Apache-2.0
"""The steps of which the recovery of a cluster is made: what each does, on which node, and what it asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..formats import corosync_conf
from ..formats.corosync_conf import CorosyncConfError
from .corosync_survivor import Survivor
from .corosync_views import HOST_COPY, Copy, View, hosts_of, named


@dataclass(frozen=True)
class Step:
    """One decision. ``word``, ``KIND:NODE`` or ``KIND:CLUSTER``, confirms it.

    ``actions``: ``{host, ...}``, the parameters of the module on each host, one after the other. ``what`` is done, ``why``,
    what is ``lost`` or overwritten (empty: nothing), the ``command`` that does the same by hand. ``refused``: why it must
    not be done; there are no actions then.
    """

    word: str
    kind: str
    cluster: str
    node: str
    what: str
    why: str
    lost: str = ""
    command: str = ""
    actions: tuple[Mapping[str, Any], ...] = ()
    refused: str = ""
    # For the expectation of what comes next; never shown.
    copy: Copy | None = None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extra:
    """What a plan needs of a node beside its :class:`View`.

    ``has_conf``: whether its database holds a corosync.conf, None when that cannot be read. ``ha``: why Corosync and the
    daemon must not be touched, empty when they may. ``version``: of the corosync package.
    """

    has_conf: bool | None = None
    ha: str = ""
    version: str | None = None


def isolate(cluster: str, view: View, extras: Mapping[str, Extra], why: str) -> Step:
    what = f"stop the cluster file system on {view.name}"
    if extras[view.name].ha:
        return refused("isolate", cluster, view.name, what, f"{why}. But {extras[view.name].ha}")
    return Step(
        f"isolate:{view.name}",
        "isolate",
        cluster,
        view.name,
        what,
        why,
        "nothing; /etc/pve is away there until a later step, guests go on",
        f"on {view.name}: systemctl stop pve-cluster",
        ({"host": view.host, "step": "stop_daemon", "seen": seen(view), "mode": view.mode},),
        nodes=(view.name,),
    )


def resync(cluster: str, view: View, quorate: Sequence[View], extra: Extra) -> Step:
    what = f"let {view.name} fetch the state of {named(quorate)} anew"
    if not any(other.mode == "cluster" for other in quorate):
        return refused("resync", cluster, view.name, what, "there is no other member whose daemon runs with quorum")
    if extra.ha:
        return refused("resync", cluster, view.name, what, extra.ha)
    if view.database is False:
        why, lost = "its database is lost", "nothing that is left"
    elif extra.has_conf is False:
        why, lost = "its database holds no corosync.conf: it is empty, or of before its join", "what only it holds"
    else:
        why = f"its state (root version {root_version(view)}) would become that of all when its daemon starts"
        lost = f"what only it holds, up to root version {root_version(view)}"
    return Step(
        f"resync:{view.name}",
        "resync",
        cluster,
        view.name,
        what,
        why,
        f"{lost}; it is saved before",
        f"on {view.name}: pve-state restore --resync (without RAM state: move /var/lib/pve-cluster/config.db* aside, then "
        "systemctl start pve-cluster)",
        ({"host": view.host, "step": "resync"},),
        nodes=(view.name,),
    )


def start_daemon(cluster: str, view: View, quorate: Sequence[View], extra: Extra) -> Step:
    limit = max((other.root_version or 0 for other in quorate), default=view.root_version or 0)
    return Step(
        f"daemon:{view.name}",
        "daemon",
        cluster,
        view.name,
        f"start the cluster file system on {view.name}",
        f"it is down; its root version {root_version(view)} is "
        + (f"not above that of the members ({limit})" if quorate else "the highest of all nodes, none of which runs"),
        "what only it holds is replaced by the members' state; it is saved before" if quorate else "",
        f"on {view.name}: systemctl start pve-cluster",
        ({"host": view.host, "step": "start_daemon", "seen": seen(view), "max_root_version": limit},),
        nodes=(view.name,),
    )


def start(cluster: str, view: View, extra: Extra, quorate: Sequence[View], meets: str = "") -> Step:
    what = f"{'restart' if view.running else 'start'} Corosync on {view.name}"
    if extra.ha:
        return refused("start", cluster, view.name, what, extra.ha)
    limit = max((other.root_version or 0 for other in quorate), default=None)
    version = view.local.config_version if view.local else None
    why = f"it runs config_version {view.running_version}, the file has {version}" if view.running else "it does not run"
    judged = ""
    if quorate and view.mode == "cluster":
        judged = f", and its root version {root_version(view)} is not above theirs ({limit})"
    return Step(
        f"start:{view.name}",
        "start",
        cluster,
        view.name,
        what,
        f"{why}; {HOST_COPY} is that of the others{judged}",
        meets,
        f"on {view.name}: systemctl {'re' if view.running else ''}start corosync",
        (
            {
                "host": view.host,
                "step": "start_corosync",
                "seen": seen(view),
                "max_root_version": limit,
                "live_member_ids": sorted(quorate[0].live) if quorate else [],
            },
        ),
        nodes=(view.name,),
    )


def host_copy(cluster: str, views: Sequence[View], copy: Copy, source: str, kind: str, name: str) -> Step:
    reasons = [
        f"{view.name}: {view.local.error or f'has {view.local.label}'}" if view.local else f"{view.name}: there is none"
        for view in views
    ]
    lost = [f"{view.name}: {view.local.label}" for view in views if view.local and body(view.local) != body(copy)]
    return Step(
        f"{kind}:{name}",
        kind,
        cluster,
        name if kind == "host_copy" else "",
        f"write {source}, config_version {copy.config_version}, to {HOST_COPY} of {named(views)}, once 'corosync -t' accepts it",
        f"Corosync starts with that file and gives up where members run another config_version, and the daemon copies none "
        f"there without quorum ({'; '.join(reasons)})",
        f"another text of {HOST_COPY}, which is saved before: {'; '.join(lost)}" if lost else "",
        f"copy {HOST_COPY} of a member with quorum to {named(views)}"
        if kind == "host_copy"
        else f"edit {HOST_COPY} alike on each of them",
        tuple(
            {"host": view.host, "step": "host_copy", "text": copy.text, "seen": seen(view), "name": view.name} for view in views
        ),
        copy=copy,
        nodes=hosts_of(views),
    )


def harmless(view: View, quorate: Sequence[View]) -> bool:
    """Whether the members' state stays when this node's daemon meets them."""
    best = max(other.root_version or 0 for other in quorate)
    return view.root_version is not None and view.root_version <= best


def foreign(view: View, cluster: str) -> bool:
    return bool(view.cluster_name) and view.cluster_name != cluster


def bare(view: View) -> bool:
    return view.asked and view.cluster is None and view.local is None and view.authkey is None and not view.running


def refused(kind: str, cluster: str, node: str, what: str, reason: str) -> Step:
    return Step(f"{kind}:{node or cluster}", kind, cluster, node, what, "", refused=reason)


def seen(view: View) -> dict[str, Any]:
    """What a step is decided by; the node looks again before it is done."""
    return {
        "cluster_sha256": view.cluster.sha256 if view.cluster else "",
        "host_sha256": view.local.sha256 if view.local else "",
        "running": view.running,
        "quorate": bool(view.quorate),
    }


def chosen(keep: Survivor, views: Sequence[View]) -> Copy | None:
    view = next((each for each in views if keep.node and each.name == keep.node), None)
    return None if view is None else view.cluster if keep.copy == "cluster" else view.local


def with_version(copy: Copy, version: int) -> Copy:
    if copy.config_version == version:
        return copy
    document = corosync_conf.parse(copy.text)
    document.set("totem", "config_version", version)
    text = document.text()
    return Copy(text, hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(), version)


def body(copy: Copy) -> str:
    """The text without its version, to tell a new version from another content."""
    try:
        document = corosync_conf.parse(copy.text)
    except CorosyncConfError:
        return copy.text
    if document.config_version is None:
        return copy.text
    document.set("totem", "config_version", 1)
    return document.text()


def name_in(copy: Copy) -> str | None:
    try:
        return corosync_conf.parse(copy.text).cluster_name
    except CorosyncConfError:
        return None


def copies(views: Iterable[View]) -> list[Copy]:
    return [copy for view in views for copy in (view.cluster, view.local) if copy]


def highest_version(views: Iterable[View]) -> int:
    """The highest config_version of all copies and of every Corosync that runs."""
    runs = [version for view in views for version in (view.running_version, *view.member_versions.values())]
    return max((version or 0 for version in [*(copy.config_version for copy in copies(views)), *runs]), default=0)


def root_version(view: View) -> str:
    return "unknown" if view.root_version is None else str(view.root_version)
