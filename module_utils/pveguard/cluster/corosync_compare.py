"""What the nodes of a cluster say of their Corosync, side by side: where they differ, what that means, what helps.

Pure: judges the facts of the modules ``node_info`` or ``corosync_info``; connects to nothing. The nodes are asked one
after the other, so a change that is under way looks like a difference for some seconds.

Rules of the daemon that are relied on: each quorate daemon copies /etc/pve/corosync.conf to /etc/corosync at its start,
after a sync and on a change, unless the host's copy has a higher config_version, never the other way; equal versions with
different text are overwritten. When daemons meet, the state with the highest root version becomes that of all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..base import text_table
from ..formats import corosync_conf
from ..formats.corosync_conf import short_name
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

PROBLEM, WARNING = "problem", "warning"


@dataclass(frozen=True)
class Finding:
    """``kind`` is stable, for programs; ``seen``, ``means`` and ``helps`` are for people."""

    severity: str
    kind: str
    nodes: tuple[str, ...]
    seen: str
    means: str
    helps: str


def compare(
    nodes: Mapping[str, Mapping[str, Any] | None],
    wanted: Mapping[str, str | None] | None = None,
    probes: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Every cluster that the nodes belong to, in the order of the inventory.

    ``nodes``: host of the inventory -> facts of ``node_info`` (or ``{corosync: facts of corosync_info}``), None when it
    could not be asked. ``wanted``: host -> the name of its cluster in the inventory; ``probes``: hosts that are probes
    there. Each cluster is ``{cluster,
    nodes: [what each has], findings: [{severity, kind, nodes, seen, means, helps}], survivor, agree, lines}``; ``lines``
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
                    {
                        "severity": each.severity,
                        "kind": each.kind,
                        "nodes": list(each.nodes),
                        "seen": each.seen,
                        "means": each.means,
                        "helps": each.helps,
                    }
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
                "agree": not best.needed and all(each.kind == "not_asked" for each in finds),
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
    return sorted(found, key=lambda each: each.severity != PROBLEM)


def _apart(cluster: str, views: Sequence[View]) -> Iterator[Finding]:
    for view in views:
        if view.cluster_name and view.cluster_name != cluster:
            yield Finding(
                PROBLEM,
                "other_cluster",
                (view.name,),
                f"its corosync.conf is of the cluster {view.cluster_name!r}, wanted {cluster!r}",
                "it is in another cluster, or its configuration was replaced",
                "correct corosync_cluster_name, or take the host out of the group",
            )


def _membership(views: Sequence[View]) -> Iterator[Finding]:
    running = [view for view in views if view.running and view.quorate is not None]
    parts = grouped(running, lambda view: (view.live, view.quorate))
    sides = {view.live for view in running}
    if len(sides) > 1:
        seen = "; ".join(
            f"{named(part)} see{'s' if len(part) == 1 else ''} {ids_text(live)} ({'quorate' if quorate else 'no quorum'})"
            for (live, quorate), part in parts.items()
        )
        quorate_sides = {view.live for view in running if view.quorate}
        if disjoint(quorate_sides):
            means = (
                "both sides take writes; when they meet, the state with the higher root version becomes that of all and what "
                "the other side wrote is lost"
            )
            helps = (
                "before the ring heals save the state of both sides and stop pve-cluster on one of them ('systemctl stop "
                "pve-cluster' on each of its nodes); find out why both have quorum (two_node, 'corosync-quorumtool -e')"
            )
        elif any(one & other for one in sides for other in sides if one != other):
            means = "the membership is being formed anew, or a link works in one direction only"
            helps = "look again in some seconds; then 'corosync-cfgtool -s' on each of these nodes, and the links"
        else:
            means = "the cluster is in parts; those without quorum have /etc/pve read-only, with what they had before"
            helps = "repair the links between the parts: 'corosync-cfgtool -s' on both sides, playbooks/gate.yml measures them"
        yield Finding(PROBLEM, "membership_split", hosts_of(running), seen, means, helps)
    without = [view for view in running if view.quorate is False]
    lone = [view for view in without if view.live <= {view.node_id} and len(views) > 1]
    for kind, part in (("lone_node", lone), ("no_quorum", [view for view in without if view not in lone])):
        if not part:
            continue
        seen = "alone and without quorum" if kind == "lone_node" else "no quorum"
        helps = (
            "bring a majority of the nodes back. Only where the others are certainly off and stay so: "
            "'corosync-quorumtool -e 1' on one node, which lasts until its corosync is restarted"
        )
        if any(view.quorate for view in running):
            helps = "the others have quorum: repair its links to them; never 'corosync-quorumtool -e' here"
        yield Finding(
            PROBLEM,
            kind,
            hosts_of(part),
            seen,
            "/etc/pve is read-only there, guests go on; nothing of what the others write arrives",
            helps,
        )
    for view in (view for view in views if view.asked and not view.running):
        why = f"; {view.local.error}" if view.local and view.local.error else ""
        why = why or ("" if view.local else f"; there is no {HOST_COPY}")
        yield Finding(
            PROBLEM,
            "corosync_down",
            (view.name,),
            f"corosync does not run{', nor has it since the daemon started' if view.met_corosync is False else ''}{why}",
            "the node is in no membership, its vote is missing and /etc/pve is "
            + ("writable there, as its daemon works alone" if view.mode == "local" else "read-only there"),
            "'journalctl -u corosync' and 'corosync -t' say why; then 'systemctl start corosync'",
        )


def _lost(views: Sequence[View]) -> Iterator[Finding]:
    for view in views:
        if view.mode == "local":
            imported = view.cluster is not None
            yield Finding(
                PROBLEM,
                "local_mode" if imported else "database_lost",
                (view.name,),
                "its daemon works alone (local mode)"
                + ("" if imported else f", and there is no {CLUSTER_COPY} in its database, which is empty or of before its join"),
                "/etc/pve is writable there, and each write raises its root version: with a higher one than the others' it "
                "rolls the whole cluster back when it joins",
                "write nothing there. 'systemctl stop pve-cluster'; with RAM state 'pve-state restore --resync', else move "
                "/var/lib/pve-cluster/config.db* aside; then start it again: it fetches the others' state"
                + ("" if view.local else f", once {HOST_COPY} and /etc/corosync/authkey are there"),
            )
        elif view.mode == "down":
            missing = view.database is False
            yield Finding(
                PROBLEM,
                "database_missing" if missing else "daemon_down",
                (view.name,),
                "/etc/pve is not mounted" + (", and there is no /var/lib/pve-cluster/config.db" if missing else ""),
                "the copy of the cluster is not known here; "
                + (
                    f"started like this, the daemon takes {HOST_COPY} and fetches the state of the others, or works alone where "
                    "that file is missing too"
                    if missing
                    else "changes of corosync.conf do not arrive at this node"
                ),
                "'journalctl -u pve-cluster' says why" + ("; 'pve-state status' where the state is in RAM" if missing else ""),
            )
        live, saved = view.live_version, view.saved_version
        if view.mode in ("cluster", "local") and live is not None and saved is not None and live < saved:
            yield Finding(
                PROBLEM,
                "went_back",
                (view.name,),
                f"its database has root version {live}, its replica on disk has {saved}",
                "the state of this node was replaced by an older or an empty one",
                "'pve-state list' and 'pve-state show' say what is missing; look again in some seconds first",
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
                yield Finding(
                    PROBLEM,
                    "false_leader",
                    (view.name,),
                    f"root version {view.root_version}, the quorate members have at most {best}",
                    "once its daemon is with the others, its state becomes that of all: what they wrote since is lost",
                    "keep it apart until it has theirs: with its daemon stopped 'pve-state restore --resync' (RAM state), or "
                    "move /var/lib/pve-cluster/config.db* aside, which keeps what only it has",
                )
        for version, same in grouped(quorate, lambda view: view.root_version).items():
            trees = {view.tree_sha256 for view in same if view.tree_sha256}
            if len(trees) > 1:
                yield Finding(
                    PROBLEM,
                    "trees_differ",
                    hosts_of(same),
                    f"different content of /etc/pve at the same root version {version}",
                    "they are not in sync although both have quorum, or a database is damaged; nothing repairs that by itself",
                    "compare the files; then one node fetches the others' state: playbooks/restore.yml with "
                    "-e ram_state_restore_resync=true",
                )
    elif len(known) > 1:
        versions = grouped(known, lambda view: view.root_version)
        top = max(version or 0 for version in versions)
        first = versions[top]
        trees = {view.tree_sha256 for view in first if view.tree_sha256}
        if len(versions) == 1 and len(trees) < 2:
            return
        seen = "; ".join(f"{named(versions[version])}: {version}" for version in sorted(versions, key=lambda v: -(v or 0)))
        yield Finding(
            PROBLEM if len(trees) > 1 else WARNING,
            "leader_to_be",
            hosts_of(first),
            f"root versions without quorum: {seen}",
            f"when they meet, the state of {named(first)} becomes that of all"
            + (
                ", of which the one whose root was changed later by the clock wins: they hold different content"
                if len(trees) > 1
                else ""
            ),
            "before the ring comes back compare what they hold, and save the state of each "
            "(/var/lib/pve-cluster/config.db with its -wal, or a generation of pve-state)",
        )


def _unreadable(views: Sequence[View]) -> Iterator[Finding]:
    for view in views:
        for copy, path in ((view.cluster, CLUSTER_COPY), (view.local, HOST_COPY)):
            seen = copy.error if copy else next((text for text in view.errors if text.startswith(f"{path}:")), "")
            if not seen:
                continue
            yield Finding(
                PROBLEM,
                "copy_unreadable",
                (view.name,),
                seen,
                "the daemon does not copy it, or copies what corosync refuses"
                if path == CLUSTER_COPY
                else "corosync does not start with it again",
                f"'corosync -c {path} -t' on {view.name}; the former text may be in {path}.bak",
            )


def _copies(views: Sequence[View]) -> Iterator[Finding]:
    def differs(view: View) -> tuple[str, int, int] | None:
        if not view.cluster or not view.local or view.cluster.sha256 == view.local.sha256:
            return None
        cluster, local = view.cluster.config_version, view.local.config_version
        if not cluster or not local:
            return None
        kind = "same_version" if cluster == local else "host_newer" if local > cluster else "host_older"
        return kind, cluster, local

    for key, part in grouped([view for view in views if differs(view)], differs).items():
        kind, cluster, local = key or ("", 0, 0)
        seen = f"{CLUSTER_COPY} has config_version {cluster}, {HOST_COPY} has {local}"
        severity = PROBLEM
        if kind == "same_version":
            seen = f"both copies have config_version {cluster} and different text"
            means = (
                "the daemon overwrites the host's copy at its next start, sync or change, and corosync takes what is on /etc/pve "
                "at its next reload or start"
            )
            helps = (
                f"'diff {CLUSTER_COPY} {HOST_COPY}'. To keep what is on /etc/pve: 'systemctl restart pve-cluster'. To keep the "
                f"host's: bring it to /etc/pve with config_version {cluster + 1} (copy to .new, edit, rename)"
            )
        elif kind == "host_newer":
            means = "the daemon leaves both as they are ('local corosync.conf is newer'), so they stay different"
            helps = (
                f"'diff {CLUSTER_COPY} {HOST_COPY}', then bring the one that is right to /etc/pve with config_version "
                f"{local + 1} (copy to .new, edit, rename)"
            )
        else:
            if not all(view.counts for view in part):
                severity = WARNING
            means = "corosync would start with the old text; the daemon copies the new one as soon as it has quorum"
            helps = "with quorum 'systemctl restart pve-cluster' on the node copies it; 'journalctl -u pve-cluster' says why not"
        yield Finding(severity, kind, hosts_of(part), seen, means, helps)


def _split(views: Sequence[View]) -> Iterator[Finding]:
    """Different texts on different nodes, where the copies of each node agree."""
    clusters = grouped([view for view in views if view.cluster], lambda view: view.cluster)
    locals_ = grouped(
        [view for view in views if view.local and (not view.cluster or view.cluster.sha256 == view.local.sha256)],
        lambda view: view.local,
    )
    for kind, path, texts in (("cluster_copies_split", CLUSTER_COPY, clusters), ("host_copies_split", HOST_COPY, locals_)):
        if len({copy.sha256 for copy in texts if copy}) < 2:
            continue
        seen = "; ".join(f"{named(part)}: {copy.label}" for copy, part in texts.items() if copy)
        if kind == "cluster_copies_split":
            means = "/etc/pve is not the same on these nodes: they are apart, or one is not in sync"
            helps = (
                "where no node would be a false leader, bring them into one membership with quorum; the daemons then take the "
                "state with the highest root version"
            )
        else:
            means = "a node that starts corosync with another text than the others may not find them"
            helps = f"with quorum the daemon brings {CLUSTER_COPY} to each of them; without, make {path} alike by hand"
        yield Finding(PROBLEM, kind, hosts_of(view for part in texts.values() for view in part), f"{path}: {seen}", means, helps)
        return


def _running(views: Sequence[View]) -> Iterator[Finding]:
    def versions(view: View) -> tuple[int, int] | None:
        file = view.local.config_version if view.local else None
        runs = view.running_version if view.running else None
        if not view.asked:
            # Only what the others see of it is known, and what they have.
            runs = next((seen for each in views if (seen := each.member_versions.get(view.node_id or 0)) is not None), None)
            file = max((each.local.config_version or 0 for each in views if each.counts and each.local), default=0) or None
        return (runs, file) if runs and file and runs != file else None

    for pair, part in grouped([view for view in views if versions(view)], versions).items():
        runs, file = pair or (0, 0)
        yield Finding(
            WARNING,
            "running_differs",
            hosts_of(part),
            f"corosync runs config_version {runs}, the file has {file}",
            "the reload came before the new text, or was refused" if runs < file else "the file was put back later",
            "'corosync-cfgtool -R' on one node reloads all; where 'journalctl -u corosync' says that a setting cannot be changed "
            "live, restart corosync on one node after the other, with quorum and without armed HA",
        )


def _authkeys(views: Sequence[View]) -> Iterator[Finding]:
    asked = [view for view in views if view.asked]
    keys = grouped([view for view in asked if view.authkey], lambda view: view.authkey or "")
    helps = (
        "bring /etc/corosync/authkey of a quorate member to the others (0400, owner root), then restart corosync there, one "
        "node at a time"
    )
    if len(keys) > 1:
        seen = "; ".join(f"{named(part)}: {key[:SHORT]}" for key, part in keys.items())
        yield Finding(
            PROBLEM,
            "authkey_differs",
            hosts_of(view for part in keys.values() for view in part),
            f"hashes of /etc/corosync/authkey: {seen}",
            "after its next start corosync does not understand the nodes with another key",
            helps,
        )
    bare = [view for view in asked if not view.authkey]
    if keys and bare:
        yield Finding(
            PROBLEM,
            "authkey_missing",
            hosts_of(bare),
            "there is no /etc/corosync/authkey",
            "corosync does not start there",
            helps,
        )


def _silent(views: Sequence[View]) -> Iterator[Finding]:
    live = frozenset[int]().union(*(view.live for view in views if view.running))
    silent = [view for view in views if not view.asked]
    members = [view for view in silent if not view.probe]
    for (known, up), part in grouped(members, lambda view: (view.host is not None, view.node_id in live)).items():
        yield Finding(
            WARNING,
            "not_asked",
            hosts_of(part),
            ("not asked in this run" if known else "not in the inventory")
            + (", corosync of the others sees it" if up else ", and no corosync that was asked sees it"),
            "nothing is known of its copies and of its state",
            "make it reachable, run without --limit" if known else "add it to the inventory",
        )
    for view in (view for view in silent if view.probe):
        yield Finding(
            WARNING,
            "not_asked",
            (view.name,),
            "a probe that was not asked" + (", corosync of the others sees it" if view.node_id in live else ", and it is off"),
            "nothing depends on a probe without a vote",
            "bring it up when you want to observe; where it is gone for good, 'playbooks/probe.yml -e probe_state=absent -e "
            "leave_dead=true' takes it off corosync.conf",
        )


# Which copy should become that of all


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
        out.append(f"  {sign} {', '.join(each.nodes)}: {each.seen}")
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
