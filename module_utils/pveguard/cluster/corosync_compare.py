"""What the nodes of a cluster say of their Corosync, side by side: where they differ, what that means, what helps.

Pure: judges the facts of the modules ``node_info`` or ``corosync_info``; connects to nothing. The nodes are asked one
after the other, so a change that is under way looks like a difference for some seconds.

Rules of the daemon that are relied on: each quorate daemon copies /etc/pve/corosync.conf to /etc/corosync at its start,
after a sync and on a change, unless the host's copy has a higher config_version, never the other way; equal versions with
different text are overwritten. When daemons meet, the state with the highest root version becomes that of all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..base import text_table
from ..base.findings import PROBLEM, WARNING, Finding, check, worst_first
from ..corosync import corosync_findings
from ..formats import corosync_conf
from ..formats.corosync_conf import short_name
from ..pmxcfs import pmxcfs_findings
from . import corosync_survivor
from .corosync_survivor import Survivor
from .corosync_views import (
    CLUSTER_COPY,
    HOST_COPY,
    SHORT,
    Copy,
    View,
    disjoint,
    grouped,
    hosts_of,
    ids_text,
    named,
    view_of,
)

OTHER = check(
    "cluster-other-name",
    PROBLEM,
    "A host of the group reports the name of another cluster",
    "correct corosync_cluster_name, or take the host out of the group",
)
SPLIT = check(
    "cluster-membership-split",
    PROBLEM,
    "Nodes see different memberships: parts without quorum, two parts with quorum, or views that overlap",
    "repair the links between the parts: 'corosync-cfgtool -s' on both sides, playbooks/gate.yml measures them",
)
LOCAL_MODE = check(
    "cluster-local-mode",
    PROBLEM,
    "The daemon of a member works alone, with a corosync.conf in its database: what is written there raises its version. One "
    "that was started while Corosync does not run is in cluster mode, and none of these",
    "write nothing there; stop pve-cluster, and fetch the others' state",
    "pve-state restore --resync",
)
DATABASE_LOST = check(
    "cluster-database-lost",
    PROBLEM,
    "The daemon of a member works alone, without a corosync.conf: its database is empty, or of before its join",
    "write nothing there; stop pve-cluster, and fetch the others' state",
    "pve-state restore --resync",
)
WENT_BACK = check(
    "cluster-went-back",
    PROBLEM,
    "The database has a lower version than its replica on disk",
    "'pve-state list' and 'pve-state show' say what is missing; look again in some seconds first",
)
FALSE_LEADER = check(
    "cluster-false-leader",
    PROBLEM,
    "A node that is not with the quorate members has a higher root version than they have: once it is, its state becomes that "
    "of all",
    "keep it apart until it has theirs: with its daemon stopped 'pve-state restore --resync' (RAM state), or move "
    "/var/lib/pve-cluster/config.db* aside, which keeps what only it has",
)
TREES_DIFFER = check(
    "cluster-trees-differ",
    PROBLEM,
    "Quorate members hold different content at the same root version",
    "compare the files; then one node fetches the others' state: playbooks/restore.yml with -e ram_state_restore_resync=true",
)
LEADER_TO_BE = check(
    "cluster-leader-to-be",
    (WARNING, PROBLEM),
    "Nobody has quorum, and root versions differ (a problem: the content at the same version): whose state becomes that of all "
    "when they meet",
    "before the ring comes back compare what they hold, and save the state of each (/var/lib/pve-cluster/config.db with its "
    "-wal, or a generation of pve-state)",
)
COPY_UNREADABLE = check(
    "cluster-copy-unreadable",
    PROBLEM,
    "A copy of corosync.conf cannot be parsed, has no config_version, or is a cluster that cannot be (line and column are named)",
    "look at it with corosync's own check; the former text may be in FILE.bak",
    "corosync -c FILE -t",
)
CLUSTER_COPIES_SPLIT = check(
    "cluster-copies-split",
    PROBLEM,
    f"{CLUSTER_COPY} is not the same on these nodes",
    "where no node would be a false leader, bring them into one membership with quorum; the daemons then take the state with "
    "the highest root version",
)
HOST_COPIES_SPLIT = check(
    "cluster-host-copies-split",
    PROBLEM,
    f"{HOST_COPY} is not the same on these nodes, each of which has two equal copies",
    f"with quorum the daemon brings {CLUSTER_COPY} to each of them; without, make {HOST_COPY} alike by hand",
)
_KEY_HELPS = (
    "bring /etc/corosync/authkey of a quorate member to the others (0400, owner root), then restart corosync there, one node at "
    "a time"
)
AUTHKEY_DIFFERS = check("cluster-authkey-differs", PROBLEM, "Nodes have different keys of Corosync, by hash", _KEY_HELPS)
AUTHKEY_MISSING = check("cluster-authkey-missing", PROBLEM, "A member has no /etc/corosync/authkey", _KEY_HELPS)
NOT_ASKED = check(
    "cluster-not-asked",
    WARNING,
    "A member was not asked in this run, or is not in the inventory",
    "make it reachable, run without --limit, or add it to the inventory",
)

#: What the facts of one node do not tell.
ACROSS = frozenset(
    each.id
    for each in (
        OTHER, SPLIT, LOCAL_MODE, DATABASE_LOST, WENT_BACK, FALSE_LEADER, TREES_DIFFER, LEADER_TO_BE, COPY_UNREADABLE,
        CLUSTER_COPIES_SPLIT, HOST_COPIES_SPLIT, AUTHKEY_DIFFERS, AUTHKEY_MISSING,
    )
)  # fmt: skip




def compare(
    nodes: Mapping[str, Mapping[str, Any] | None],
    wanted: Mapping[str, str | None] | None = None,
    probes: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Every cluster that the nodes belong to, in the order of the inventory.

    ``nodes``: host of the inventory -> facts of ``node_info`` (or ``{corosync: facts of corosync_info}``), None when it
    could not be asked. ``wanted``: host -> the name of its cluster in the inventory; ``probes``: hosts that are probes
    there. Each cluster is ``{cluster,
    nodes: [what each has], findings: [{id, severity, nodes, seen, means, helps, ...}], survivor, agree, lines}``; ``lines``
    is the same for a terminal. ``agree``: nothing differs among the nodes that were asked.
    """
    found = []
    for name, views in group(nodes, wanted or {}, probes).items():
        finds = findings(name, views)
        best = corosync_survivor.survivor(name, views)
        found.append(
            {
                "cluster": name,
                "nodes": [row(view) for view in views],
                "findings": [
                    {**each.as_dict(), "seen": each.text, "helps": each.helps}
                    for each in finds
                ],
                "survivor": {
                    "needed": best.needed,
                    "reason": best.reason,
                    "node": best.node,
                    "host": best.host,
                    "copy": best.copy,
                    "path": best.path,
                    "config_version": best.config_version,
                    "sha256": best.sha256,
                    "write_version": best.write_version,
                },
                "agree": not best.needed and all(each.id == NOT_ASKED.id for each in finds),
                "lines": lines(name, views, finds, best),
            }
        )
    return found


def group(
    nodes: Mapping[str, Mapping[str, Any] | None], wanted: Mapping[str, str | None], probes: Collection[str] = ()
) -> dict[str, list[View]]:
    """``{cluster: what each of its nodes says}``; nodes that its corosync.conf lists and nobody asked are there too.

    A host that is to join is no member yet and is left out. A node that lost its configuration belongs to the cluster
    that lists it. ``probes``: hosts that are probes in the inventory.
    """
    views = {host: view_of(host, facts) for host, facts in nodes.items()}
    names = {host: wanted.get(host) or view.cluster_name for host, view in views.items() if view.cluster_name}
    clusters: dict[str, list[View]] = {name: [] for name in names.values() if name}
    listed: dict[str, dict[str, int | None]] = {name: {} for name in clusters}
    for host, name in names.items():
        for node_id, member in views[host].listed:
            if name and listed[name].get(member) is None:
                listed[name][member] = node_id
    for host, view in views.items():
        if not view.asked:
            view = views[host] = replace(view, name=_by_address(host, views, names, wanted.get(host)))
        expected = names.get(host) or wanted.get(host)
        places = [expected] if expected in clusters else [] if expected else list(clusters)
        where = next((name for name in places if name and (host in names or view.name in listed[name])), None)
        if where is not None:
            node_id = listed[where].get(view.name) if view.node_id is None else view.node_id
            if wanted.get(host):
                is_probe = host in probes
            else:
                is_probe = view.probe if view.asked else _seen_as_probe(node_id, views, names, where)
            clusters[where].append(replace(view, node_id=node_id, probe=is_probe))
    for name, found in clusters.items():
        there = {view.name for view in found}
        found += [
            View(member, node_id=number, probe=_seen_as_probe(number, views, names, name))
            for member, number in listed[name].items()
            if member not in there
        ]
    return clusters


def _by_address(host: str, views: Mapping[str, View], names: Mapping[str, str | None], cluster: str | None) -> str:
    """The name of a node that did not answer: that of the member that has its address, where the inventory has it by that."""
    key = corosync_conf.address_key(host)
    for other, view in views.items():
        if key in view.addresses and cluster in (None, names.get(other)):
            return view.addresses[key]
    return short_name(host)


def _seen_as_probe(node_id: int | None, views: Mapping[str, View], names: Mapping[str, str | None], cluster: str) -> bool:
    """Whether the members of a cluster take a node for a probe; one that has its /etc/pve knows best."""
    seen = [view for host, view in views.items() if names.get(host) == cluster and view.listed]
    seen = [view for view in seen if view.counts] or seen
    return bool(seen) and all(node_id in view.probes for view in seen)


# What differs


def findings(cluster: str, views: Sequence[View]) -> list[Finding]:
    """Where the nodes differ, the worst first."""
    found = [
        # First what must not meet the others, then how to bring them together.
        *_apart(cluster, views),
        *_leaders(views),
        *_lost(views),
        *_membership(views),
        *_unreadable(views),
        *_copies(views),
        *_split(views),
        *_running(views),
        *_authkeys(views),
        *_silent(views),
    ]
    return worst_first(found)


def _apart(cluster: str, views: Sequence[View]) -> Iterator[Finding]:
    for view in views:
        if view.cluster_name and view.cluster_name != cluster:
            yield OTHER(
                f"its corosync.conf is of the cluster {view.cluster_name!r}, wanted {cluster!r}",
                means="it is in another cluster, or its configuration was replaced",
                nodes=(view.name,),
            )


def _membership(views: Sequence[View]) -> Iterator[Finding]:
    running = [view for view in views if view.running and view.quorate is not None]
    sides = {view.live for view in running}
    if len(sides) > 1:
        yield _parts(running, sides)
    without = [view for view in running if view.quorate is False]
    lone = [view for view in without if view.live <= {view.node_id} and len(views) > 1]
    others_quorate = any(view.quorate for view in running)
    for alone, part in ((True, lone), (False, [view for view in without if view not in lone])):
        if part:
            yield corosync_findings.no_quorum(alone, nodes=hosts_of(part), others_quorate=others_quorate)
    for view in (view for view in views if view.asked):
        why = view.local.error if view.local else f"there is no {HOST_COPY}"
        down = corosync_findings.service(view.running, view.met_corosync, why, view.mode == "local", (view.name,))
        if down:
            yield down


def _parts(running: Sequence[View], sides: Collection[frozenset[int]]) -> Finding:
    """Nodes with different memberships. ``sides``: each membership once."""
    parts = grouped(running, lambda view: (view.live, view.quorate))
    seen = "; ".join(
        f"{named(part)} see{'s' if len(part) == 1 else ''} {ids_text(live)} ({'quorate' if quorate else 'no quorum'})"
        for (live, quorate), part in parts.items()
    )
    fix = None
    if disjoint({view.live for view in running if view.quorate}):
        means = (
            "both sides take writes; when they meet, the state with the higher root version becomes that of all and what "
            "the other side wrote is lost"
        )
        fix = (
            "before the ring heals save the state of both sides and stop pve-cluster on one of them ('systemctl stop "
            "pve-cluster' on each of its nodes); find out why both have quorum (two_node, 'corosync-quorumtool -e')"
        )
    elif any(one & other for one in sides for other in sides if one != other):
        means = "the membership is being formed anew, or a link works in one direction only"
        fix = "look again in some seconds; then 'corosync-cfgtool -s' on each of these nodes, and the links"
    else:
        means = "the cluster is in parts; those without quorum have /etc/pve read-only, with what they had before"
    return SPLIT(seen, means=means, fix=fix, nodes=hosts_of(running))


def _lost(views: Sequence[View]) -> Iterator[Finding]:
    for view in views:
        if view.mode == "local":
            imported = view.cluster is not None
            yield (LOCAL_MODE if imported else DATABASE_LOST)(
                "its daemon works alone (local mode)"
                + ("" if imported else f", and there is no {CLUSTER_COPY} in its database, which is empty or of before its join"),
                means="/etc/pve is writable there, and each write raises its root version: with a higher one than the others' it "
                "rolls the whole cluster back when it joins",
                fix="write nothing there. 'systemctl stop pve-cluster'; with RAM state 'pve-state restore --resync', else move "
                "/var/lib/pve-cluster/config.db* aside; then start it again: it fetches the others' state"
                + ("" if view.local else f", once {HOST_COPY} and /etc/corosync/authkey are there"),
                nodes=(view.name,),
            )
        down = pmxcfs_findings.mounted(view.mode != "down", view.database, (view.name,), _without_daemon(view))
        if down:
            yield down
        live, saved = view.live_version, view.saved_version
        if view.mode in ("cluster", "local") and live is not None and saved is not None and live < saved:
            yield WENT_BACK(
                f"its database has root version {live}, its replica on disk has {saved}",
                means="the state of this node was replaced by an older or an empty one",
                nodes=(view.name,),
            )


def _without_daemon(view: View) -> str:
    if view.database is not False:
        return "the copy of the cluster is not known here; changes of corosync.conf do not arrive at this node"
    return (
        f"the copy of the cluster is not known here; started like this, the daemon takes {HOST_COPY} and fetches the state of "
        "the others, or works alone where that file is missing too"
    )


def _leaders(views: Sequence[View]) -> Iterator[Finding]:
    known = [view for view in views if view.asked and view.root_version is not None]
    quorate = [view for view in known if view.counts]
    others = [view for view in known if not view.counts]
    # The leader of a sync is whoever has the highest root version, then the later mtime of the root.
    if quorate:
        best = max(view.root_version or 0 for view in quorate)
        for view in others:
            if (view.root_version or 0) > best:
                yield FALSE_LEADER(
                    f"root version {view.root_version}, the quorate members have at most {best}",
                    means="once its daemon is with the others, its state becomes that of all: what they wrote since is lost",
                    nodes=(view.name,),
                )
        for version, same in grouped(quorate, lambda view: view.root_version).items():
            trees = {view.tree_sha256 for view in same if view.tree_sha256}
            if len(trees) > 1:
                yield TREES_DIFFER(
                    f"different content of /etc/pve at the same root version {version}",
                    means="they are not in sync although both have quorum, or a database is damaged; nothing repairs that by "
                    "itself",
                    nodes=hosts_of(same),
                )
    elif len(known) > 1:
        versions = grouped(known, lambda view: view.root_version)
        top = max(version or 0 for version in versions)
        first = versions[top]
        trees = {view.tree_sha256 for view in first if view.tree_sha256}
        if len(versions) == 1 and len(trees) < 2:
            return
        seen = "; ".join(f"{named(versions[version])}: {version}" for version in sorted(versions, key=lambda v: -(v or 0)))
        yield LEADER_TO_BE(
            f"root versions without quorum: {seen}",
            severity=PROBLEM if len(trees) > 1 else WARNING,
            means=f"when they meet, the state of {named(first)} becomes that of all"
            + (
                ", of which the one whose root was changed later by the clock wins: they hold different content"
                if len(trees) > 1
                else ""
            ),
            nodes=hosts_of(first),
        )


def _unreadable(views: Sequence[View]) -> Iterator[Finding]:
    for view in views:
        for copy, path in ((view.cluster, CLUSTER_COPY), (view.local, HOST_COPY)):
            seen = copy.error if copy else next((text for text in view.errors if text.startswith(f"{path}:")), "")
            if not seen:
                continue
            yield COPY_UNREADABLE(
                seen,
                means="the daemon does not copy it, or copies what corosync refuses"
                if path == CLUSTER_COPY
                else "corosync does not start with it again",
                fix=f"'corosync -c {path} -t' on {view.name}; the former text may be in {path}.bak",
                nodes=(view.name,),
            )


def _copies(views: Sequence[View]) -> Iterator[Finding]:
    def differs(view: View) -> tuple[int, int] | None:
        if not view.cluster or not view.local or view.cluster.sha256 == view.local.sha256:
            return None
        cluster, local = view.cluster.config_version, view.local.config_version
        # One without a version is told as a copy that cannot be used.
        return (cluster, local) if cluster and local else None

    for (cluster, local), part in grouped([view for view in views if differs(view)], differs).items():
        yield corosync_findings.copies(cluster, local, all(view.counts for view in part), hosts_of(part))


def _split(views: Sequence[View]) -> Iterator[Finding]:
    """Different texts on different nodes, where the copies of each node agree."""
    clusters = grouped([view for view in views if view.cluster], lambda view: view.cluster)
    locals_ = grouped(
        [view for view in views if view.local and (not view.cluster or view.cluster.sha256 == view.local.sha256)],
        lambda view: view.local,
    )
    for path, texts in ((CLUSTER_COPY, clusters), (HOST_COPY, locals_)):
        if len({copy.sha256 for copy in texts if copy}) < 2:
            continue
        seen = "; ".join(f"{named(part)}: {copy.label}" for copy, part in texts.items() if copy)
        nodes = hosts_of(view for part in texts.values() for view in part)
        if path == CLUSTER_COPY:
            means = "/etc/pve is not the same on these nodes: they are apart, or one is not in sync"
            yield CLUSTER_COPIES_SPLIT(f"{path}: {seen}", means=means, nodes=nodes)
        else:
            means = "a node that starts corosync with another text than the others may not find them"
            yield HOST_COPIES_SPLIT(f"{path}: {seen}", means=means, nodes=nodes)
        return


def _running(views: Sequence[View]) -> Iterator[Finding]:
    def versions(view: View) -> tuple[int, int] | None:
        file = view.local.config_version if view.local else None
        runs = view.running_version if view.running else None
        if not view.asked:
            # Only what the others see of it is known, and what they have.
            runs = next((seen for each in views if (seen := each.member_versions.get(view.node_id or 0)) is not None), None)
            file = max((each.local.config_version or 0 for each in views if each.counts and each.local), default=0) or None
        return (runs, file) if runs and file else None

    for (runs, file), part in grouped([view for view in views if versions(view)], versions).items():
        found = corosync_findings.running(runs, file, hosts_of(part))
        if found:
            yield found


def _authkeys(views: Sequence[View]) -> Iterator[Finding]:
    asked = [view for view in views if view.asked]
    keys = grouped([view for view in asked if view.authkey], lambda view: view.authkey or "")
    if len(keys) > 1:
        seen = "; ".join(f"{named(part)}: {key[:SHORT]}" for key, part in keys.items())
        yield AUTHKEY_DIFFERS(
            f"hashes of /etc/corosync/authkey: {seen}",
            means="after its next start corosync does not understand the nodes with another key",
            nodes=hosts_of(view for part in keys.values() for view in part),
        )
    bare = [view for view in asked if not view.authkey]
    if keys and bare:
        yield AUTHKEY_MISSING(
            "there is no /etc/corosync/authkey", means="corosync does not start there", nodes=hosts_of(bare)
        )


def _silent(views: Sequence[View]) -> Iterator[Finding]:
    live = frozenset[int]().union(*(view.live for view in views if view.running))
    silent = [view for view in views if not view.asked]
    members = [view for view in silent if not view.probe]
    for (known, up), part in grouped(members, lambda view: (view.host is not None, view.node_id in live)).items():
        yield NOT_ASKED(
            ("not asked in this run" if known else "not in the inventory")
            + (", corosync of the others sees it" if up else ", and no corosync that was asked sees it"),
            means="nothing is known of its copies and of its state",
            fix="make it reachable, run without --limit" if known else "add it to the inventory",
            nodes=hosts_of(part),
        )
    for view in (view for view in silent if view.probe):
        yield NOT_ASKED(
            "a probe that was not asked" + (", corosync of the others sees it" if view.node_id in live else ", and it is off"),
            means="nothing depends on a probe without a vote",
            fix="bring it up when you want to observe; where it is gone for good, 'playbooks/probe.yml -e probe_state=absent -e "
            "leave_dead=true' takes it off corosync.conf",
            nodes=(view.name,),
        )


# For a terminal


def row(view: View) -> dict[str, Any]:
    """What one node has, as data."""
    return {
        "node": view.name,
        "host": view.host,
        "asked": view.asked,
        "node_id": view.node_id,
        "cluster": _brief(view.cluster),
        "local": _brief(view.local),
        "running": view.running,
        "running_config_version": view.running_version,
        "live_member_ids": sorted(view.live),
        "quorate": view.quorate,
        "authkey_sha256": view.authkey,
        "mode": view.mode,
        "root_version": view.root_version,
    }


def _brief(copy: Copy | None) -> dict[str, Any] | None:
    if copy is None:
        return None
    return {"config_version": copy.config_version, "sha256": copy.sha256, "error": copy.error}


def table(views: Sequence[View], width: int | None = None) -> list[str]:
    """What each node has, as a table; a copy is its config_version and the start of its hash."""
    header = ["node", "/etc/pve", "/etc/corosync", "runs", "sees", "quorum", "authkey", "daemon", "root version"]
    rows = [[text_table.clean(cell) for cell in _cells(view)] for view in views]
    return text_table.lines(header, rows, width=width, elastic=[0])


def _cells(view: View) -> list[str]:
    if not view.asked:
        return [view.name, "not asked" if view.host else "not in the inventory", *[""] * 7]
    return [
        view.name,
        view.cluster.label if view.cluster else "-",
        view.local.label if view.local else "-",
        "-" if not view.running else "?" if view.running_version is None else str(view.running_version),
        ids_text(view.live) if view.running else "-",
        _quorum(view.quorate) if view.running else "-",
        view.authkey[:SHORT] if view.authkey else "-",
        view.mode or "?",
        "?" if view.root_version is None else str(view.root_version),
    ]


def lines(cluster: str, views: Sequence[View], found: Sequence[Finding], best: Survivor) -> list[str]:
    """The comparison of one cluster as text: a table, what differs, which copy to keep."""
    out = [f"cluster {cluster}:", *(f"  {line}" for line in table(views))]
    for each in found:
        sign = "[!!]" if each.severity == PROBLEM else "[! ]"
        out.append(f"  {sign} {', '.join(each.nodes)}: {each.text}")
        out.append(f"       {each.means}")
        out.append(f"       helps: {each.helps}")
    if not found:
        out.append("  [ok] the nodes agree")
    if best.needed and best.node:
        version = "" if best.write_version == best.config_version else f", to be written with config_version {best.write_version}"
        out.append(f"  corosync.conf to keep: {best.path} of {best.node}{version}: {best.reason}")
    elif best.needed:
        out.append(f"  corosync.conf to keep: a person must decide: {best.reason}")
    return [line[: len(line) - len(line.lstrip(" "))] + text_table.clean(line) for line in out]


def _quorum(quorate: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[quorate]
