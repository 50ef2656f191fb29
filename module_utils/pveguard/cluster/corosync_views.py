# SPDX-License-Identifier: Apache-2.0
"""What each node of a cluster says of its Corosync, as the facts tell it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..corosync import probe_members
from ..corosync.corosync_findings import version_told
from ..formats import corosync_check, corosync_conf
from ..formats.corosync_conf import CorosyncConfError, short_name
from ..pmxcfs import places
from . import plan

CLUSTER_COPY, HOST_COPY = places.CLUSTER_CONF, places.HOST_CONF
#: Hexadecimal digits of a hash that are shown.
SHORT = 8


@dataclass(frozen=True)
class Copy:
    """One copy of corosync.conf. ``error``: why no cluster can be run with it; empty when one can."""

    text: str
    sha256: str
    config_version: int | None
    error: str = ""

    @property
    def label(self) -> str:
        return f"{'?' if self.config_version is None else self.config_version} {self.sha256[:SHORT]}"


@dataclass(frozen=True)
class View:
    """What one node says. ``host``: its name in the inventory, None when it is not there. None is unknown.

    ``addresses``: ``{address: name}`` of the members that it knows, ``probes``: node ids of those that it takes for probes.
    ``probe``: it is one, by the inventory where that describes it, else by what the cluster says (probe_members.is_listed).
    ``cluster`` and ``local``: the copies on /etc/pve and in /etc/corosync. ``live``: node ids that its Corosync sees.
    ``mode``: of its daemon, ``cluster``, ``local`` (apart from any cluster) or ``down``. ``met_corosync``: False where its
    Corosync has not run since a daemon in cluster mode started. ``root_version``: of its database, or of its replica where
    that is higher; ``saved_version``: of the replica alone.
    """

    name: str
    host: str | None = None
    asked: bool = False
    node_id: int | None = None
    cluster_name: str | None = None
    cluster: Copy | None = None
    local: Copy | None = None
    errors: tuple[str, ...] = ()
    listed: tuple[tuple[int | None, str], ...] = ()
    probes: frozenset[int | None] = frozenset()
    probe: bool = False
    addresses: Mapping[str, str] = field(default_factory=dict)
    running: bool = False
    running_version: int | None = None
    member_versions: Mapping[int, int | None] = field(default_factory=dict)
    live: frozenset[int] = frozenset()
    quorate: bool | None = None
    authkey: str | None = None
    mode: str | None = None
    met_corosync: bool | None = None
    database: bool | None = None
    live_version: int | None = None
    saved_version: int | None = None
    tree_sha256: str | None = None

    @property
    def root_version(self) -> int | None:
        return max((v for v in (self.live_version, self.saved_version) if v is not None), default=None)

    @property
    def counts(self) -> bool:
        """Whether what it holds on /etc/pve is the cluster's: with quorum, and not a daemon that works alone."""
        return self.running and self.quorate is True and self.mode in ("cluster", None)


def view_of(host: str, facts: Mapping[str, Any] | None) -> View:
    if not facts:
        return View(short_name(host), host)
    info = facts.get("corosync") or {}
    # Where the cluster file system is not installed there is no daemon that could be down.
    packages = facts.get("packages")
    pmxcfs = (facts.get("pmxcfs") or {}) if packages is None or packages.get("pve-cluster") else {}
    name = plan.node_name(host, facts)
    member = not info.get("example_conf")
    cluster_name = info.get("cluster_name") if member else None
    return View(
        name=name,
        host=host,
        asked=True,
        node_id=info.get("node_id"),
        cluster_name=cluster_name,
        cluster=_copy(info.get("cluster"), CLUSTER_COPY) if member else None,
        local=_copy(info.get("host"), HOST_COPY) if member else None,
        errors=tuple(str(text) for text in info.get("errors") or ()),
        listed=tuple((m.get("id"), str(m["name"])) for m in info.get("members") or () if m.get("name")) if member else (),
        probes=frozenset(probe_members.ids(info)) if member else frozenset(),
        probe=probe_members.is_one(facts),
        addresses=plan.names_by_address({"corosync": info, "pmxcfs": pmxcfs}) if member else {},
        running=bool(info.get("running")),
        running_version=version_told(info.get("running_config_version")),
        member_versions={int(number): version_told(each) for number, each in (info.get("member_config_versions") or {}).items()},
        live=frozenset(info.get("live_member_ids") or ()),
        quorate=info.get("quorate"),
        authkey=info.get("authkey_sha256"),
        mode=pmxcfs.get("mode"),
        met_corosync=pmxcfs.get("met_corosync"),
        database=pmxcfs.get("database_bytes") is not None if pmxcfs else None,
        live_version=pmxcfs.get("root_version"),
        saved_version=(facts.get("ram_state") or {}).get("saved_root_version"),
        tree_sha256=pmxcfs.get("tree_sha256"),
    )


def _copy(copy: Mapping[str, Any] | None, path: str) -> Copy | None:
    if not copy:
        return None
    text = str(copy.get("text") or "")
    return Copy(text, str(copy.get("sha256") or ""), version_told(copy.get("config_version")), unusable(text, path))


# Most nodes have the same text, and it is long where they are many.
@functools.lru_cache(maxsize=64)
def unusable(text: str, path: str = CLUSTER_COPY) -> str:
    """Why no cluster can be run with this text, in one sentence; empty when one can.

    Not judged: what a cluster suffers from and runs with all the same, two_node among it.
    """
    try:
        document = corosync_conf.parse(text, path)
    except CorosyncConfError as error:
        return str(error)
    if not document.config_version:
        return f"{path}: totem.config_version is missing or 0, so no daemon copies it"
    nameless = [node.label for node in document.nodes() if not node.name]
    errors = [each.message for each in corosync_check.problems(document, with_pmxcfs=False) if each.severity == "error"]
    errors += [f"{label} has no name, and its ring0_addr is an address, so its host is not known" for label in nameless]
    return f"{path}: {'; '.join(errors)}" if errors else ""


def grouped(views: Iterable[View], key: Any) -> dict[Any, list[View]]:
    found: dict[Any, list[View]] = {}
    for view in views:
        found.setdefault(key(view), []).append(view)
    return found


def disjoint(sides: Iterable[frozenset[int]]) -> bool:
    found = list(sides)
    return any(not one & other for number, one in enumerate(found) for other in found[number + 1 :])


def named(views: Iterable[View]) -> str:
    return ", ".join(view.name for view in views)


def hosts_of(views: Iterable[View]) -> tuple[str, ...]:
    return tuple(view.name for view in views)


def ids_text(live: Iterable[int]) -> str:
    return " ".join(map(str, sorted(live))) or "nobody"
