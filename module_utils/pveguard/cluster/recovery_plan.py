"""What repairs a cluster whose nodes disagree: the next step, who loses what by it, and what must not be done.

Pure: judges the facts of ``node_info``; connects to nothing. A plan is made anew after each step, from what the nodes say
then; the steps behind the first one are what is to be expected if it does what it should.

What every plan keeps: nothing is decided while two parts of a cluster have quorum; no text is written with a
config_version below one that was seen; no daemon is started, and no node is brought to the others, with a root version
above the running members' (it would roll them back); quorum is forced on one node at most, and only while no other node
answers; no daemon is ever started in local mode.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..base import text_table
from ..base.errors import PveguardError
from ..base.findings import PROBLEM, Finding
from ..formats import corosync_conf
from . import corosync_compare, corosync_survivor, recovery_steps
from .corosync_survivor import Survivor
from .corosync_views import CLUSTER_COPY, HOST_COPY, Copy, View, hosts_of, ids_text, named
from .recovery_steps import Extra, Step

#: More steps than this are no plan but a mistake of the planner.
MAX_STEPS = 200


def plan(
    nodes: Mapping[str, Mapping[str, Any] | None],
    wanted: Mapping[str, str | None] | None = None,
    done: Collection[str] = (),
    choice: str = "",
    probes: Collection[str] = (),
) -> list[dict[str, Any]]:
    """For every cluster of the nodes what is to be done.

    ``nodes``, ``wanted``, ``probes`` as for ``corosync_compare.compare``; ``done``: words of the steps of this run; ``choice``:
    ``NODE``, ``NODE:cluster`` or ``NODE:host``, the copy of corosync.conf that a person chose. Each cluster is ``{cluster,
    steps, open, healthy, lines, hosts}``: the steps in their order as dicts, what no step repairs in sentences, whether
    there is nothing at all, all of it as text, the hosts whose state is saved first.
    """
    found = []
    for name, views in corosync_compare.group(nodes, wanted or {}, probes).items():
        extras = {view.name: _extra(nodes.get(view.host or "")) for view in views}
        steps, refused, after = _steps(name, views, extras, frozenset(done), choice)
        problems = [each for each in corosync_compare.findings(name, views) if each.severity == PROBLEM]
        still = _open(refused, corosync_compare.findings(name, after))
        found.append(
            {
                "cluster": name,
                "steps": [_dict(step) for step in steps],
                "open": still,
                "healthy": not steps and not still and not problems,
                "lines": _lines(name, views, steps, still, choice),
                "hosts": [view.host for view in views if view.asked and view.host],
            }
        )
    return found


def _extra(facts: Mapping[str, Any] | None) -> Extra:
    if not facts:
        return Extra()
    pmxcfs, ha = facts.get("pmxcfs") or {}, facts.get("ha") or {}
    reason = ""
    if ha.get("watchdog_active"):
        reason = "a client holds the watchdog (/run/watchdog-mux.active), so the node may be reset"
    elif ha.get("resources"):
        reason = f"the cluster has HA resources ({', '.join(map(str, ha['resources'][:5]))}), so the node may be reset"
    return Extra(
        None if pmxcfs.get("root_version") is None else bool(pmxcfs.get("has_corosync_conf")),
        reason and f"{reason}: stop HA first (role ha, ha_state: disabled)",
        (facts.get("packages") or {}).get("corosync"),
    )


def _steps(
    cluster: str, views: Sequence[View], extras: Mapping[str, Extra], done: frozenset[str], choice: str
) -> tuple[list[Step], list[Step], list[View]]:
    """The steps, what is refused when they are done, and what the nodes should say then."""
    now, words, steps = list(views), set(done), []
    while True:
        proposals = list(_proposals(cluster, now, extras, words, choice))
        step = next((each for each in proposals if not each.refused and each.word not in words), None)
        if step is None:
            break
        steps.append(step)
        words.add(step.word)
        now = _after(step, now, extras)
        if len(steps) > MAX_STEPS:
            raise AssertionError(f"no end of steps for {cluster}: {[each.word for each in steps[-5:]]}")
    refused = [each for each in proposals if each.refused]
    refused += [
        replace(each, refused="it was done in this run and did not help; see 'journalctl -u corosync -u pve-cluster' there")
        for each in proposals
        if not each.refused and each.word in done
    ]
    return steps, refused, now


def _proposals(
    cluster: str, views: Sequence[View], extras: Mapping[str, Extra], words: Collection[str], choice: str
) -> Iterator[Step]:
    for view in views:
        if recovery_steps.foreign(view, cluster):
            yield recovery_steps.refused(
                "foreign",
                cluster,
                view.name,
                "left alone",
                f"its corosync.conf is of the cluster {view.cluster_name!r}: correct corosync_cluster_name, or take the host out",
            )
        elif recovery_steps.bare(view):
            yield recovery_steps.refused(
                "bare",
                cluster,
                view.name,
                "left alone",
                "it has neither a corosync.conf nor an authkey, so it was reinstalled or taken out of the cluster. It must not "
                "come back under its old name as it is: remove the old node ('pvecm delnode'), then let it join "
                "(playbooks/join.yml)",
            )
    ours = [view for view in views if not recovery_steps.foreign(view, cluster) and not recovery_steps.bare(view)]
    asked = [view for view in ours if view.asked]
    quorate = [view for view in asked if view.counts]
    running = [view for view in asked if view.running and view.quorate is not None]
    if len({view.live for view in quorate}) > 1:
        shown = "; ".join(
            f"{view.name} sees {ids_text(view.live)}, root version {recovery_steps.root_version(view)}"
            for view in sorted(quorate, key=lambda v: v.name)
        )
        yield recovery_steps.refused(
            "sides",
            cluster,
            "",
            "a person must choose the side that stays",
            f"nodes with quorum see different memberships ({shown}). Where both sides took writes, those of one side are lost "
            "when they meet. Stop pve-cluster on every node of the side that is to lose ('systemctl stop pve-cluster') BEFORE "
            "the ring heals, then run again",
        )
        return
    if any(one.live & other.live and one.live != other.live for one in running for other in running):
        shown = "; ".join(f"{view.name} sees {ids_text(view.live)}" for view in running)
        yield recovery_steps.refused(
            "membership",
            cluster,
            "",
            "nothing yet",
            f"the membership is being formed anew, or a link works in one direction only ({shown}): look again in some "
            "seconds, then at 'corosync-cfgtool -s' on each node",
        )
        return
    if quorate:
        yield from _with_quorum(cluster, ours, quorate, extras, words, choice)
    else:
        yield from _without_quorum(cluster, ours, extras, choice)


# With quorum


def _with_quorum(
    cluster: str,
    views: Sequence[View],
    quorate: Sequence[View],
    extras: Mapping[str, Extra],
    words: Collection[str],
    choice: str,
) -> Iterator[Step]:
    asked = [view for view in views if view.asked]
    best = max(view.root_version or 0 for view in quorate)
    apart = [view for view in asked if view not in quorate]
    for view in apart:
        # Whatever its daemon is connected to now: once it meets the others, its state becomes theirs.
        if view.mode == "cluster" and not recovery_steps.harmless(view, quorate):
            seen = f"root version {recovery_steps.root_version(view)}, the running members have at most {best} ({named(quorate)})"
            why = f"false leader: {seen}. Once it meets them, all of them are rolled back to it"
            yield recovery_steps.isolate(cluster, view, extras, why)
    reference = None
    members = [view for view in quorate if view.mode == "cluster"]
    if members:
        keep = _keep(cluster, views, choice)
        step = _publish(cluster, views, members, keep, extras)
        if step is not None:
            yield step
            # What the others get is this text, once it is there.
            if not step.refused:
                return
        else:
            reference = members[0].cluster
            yield from _lagging(cluster, members, extras, words)
    for view in apart:
        yield from _apart(cluster, view, quorate, reference, extras)
    for finding in corosync_compare.findings(cluster, views):
        if finding.id == corosync_compare.TREES_DIFFER.id:
            yield recovery_steps.refused(
                "resync",
                cluster,
                finding.nodes[0],
                "fetch the state of one node anew",
                f"{', '.join(finding.nodes)}: {finding.text}. Only a person can tell which content is right: compare the files, "
                "then 'playbooks/restore.yml --limit NODE -e ram_state_restore_resync=true' for the node that is wrong",
            )


def _keep(cluster: str, views: Sequence[View], choice: str) -> Survivor:
    """The copy to keep; the one that a person chose where that can be used."""
    proposed = corosync_survivor.survivor(cluster, views)
    name, _, which = choice.partition(":")
    chosen = next((view for view in views if view.name == name and view.asked), None)
    if not choice or chosen is None or not proposed.needed:
        return proposed
    copies = {"cluster": chosen.cluster if chosen.mode != "local" else None, "host": chosen.local}
    which = which or ("cluster" if copies["cluster"] else "host")
    copy = copies.get(which)
    if copy is None or copy.error or recovery_steps.name_in(copy) != cluster:
        why = copy.error if copy and copy.error else f"it has no such copy of the cluster {cluster}"
        return Survivor(True, f"the copy of {choice} was chosen and cannot be used: {why}")
    version = corosync_survivor.write_version(copy, recovery_steps.copies(views), views)
    reason = f"chosen by recover_survivor={choice}"
    return Survivor(True, reason, chosen.name, chosen.host, which, copy.config_version, copy.sha256, version)


def _publish(
    cluster: str, views: Sequence[View], members: Sequence[View], keep: Survivor, extras: Mapping[str, Extra]
) -> Step | None:
    """One text with the highest version on /etc/pve, from where the daemons bring it to each member."""
    what = f"write one text to {CLUSTER_COPY}"
    if keep.needed and keep.node is None:
        return recovery_steps.refused(
            "publish",
            cluster,
            "",
            what,
            f"a person must decide which copy stays: {keep.reason}. Name it with -e recover_survivor=NODE:cluster or NODE:host "
            "(with nodes that were not asked: only once they are certainly off)",
        )
    copy = recovery_steps.chosen(keep, views) or members[0].cluster or members[0].local
    if copy is None:
        return None
    alike = all(each is not None and each.sha256 == copy.sha256 for view in members for each in (view.cluster, view.local))
    if alike and corosync_survivor.write_version(copy, recovery_steps.copies(views), views) == copy.config_version:
        return None
    # The daemons copy what is written, so also a text that is there already is written once more, as a new version.
    try:
        version = corosync_conf.next_version(recovery_steps.highest_version(views))
    except PveguardError as error:
        return recovery_steps.refused("publish", cluster, "", what, str(error))
    new = recovery_steps.with_version(copy, version)
    by = next((view for view in members if view.name == keep.node), members[0])
    reason = keep.reason if keep.needed else f"Corosync runs a config_version above that of the files ({copy.config_version})"
    lost = [
        f"{name}: {each.label}"
        for view in views
        for name, each in ((f"{CLUSTER_COPY} of {view.name}", view.cluster), (f"{HOST_COPY} of {view.name}", view.local))
        if each and recovery_steps.body(each) != recovery_steps.body(copy) and (view in members or name.startswith(CLUSTER_COPY))
    ]
    return Step(
        f"publish:{cluster}",
        "publish",
        cluster,
        by.name,
        f"{what} with config_version {version}, on {by.name}: that of {keep.path or CLUSTER_COPY} of {keep.node or by.name}; the "
        "daemons copy it to every member",
        reason,
        f"another text: {'; '.join(lost)}" if lost else "",
        f"on {by.name}: copy it to {CLUSTER_COPY}.new, set config_version: {version}, rename it over {CLUSTER_COPY}",
        (
            {
                "host": by.host,
                "step": "publish",
                "text": new.text,
                "seen": recovery_steps.seen(by),
                "live_member_ids": sorted(by.live),
            },
        ),
        copy=new,
        nodes=hosts_of(members),
    )


def _lagging(
    cluster: str, members: Sequence[View], extras: Mapping[str, Extra], words: Collection[str]
) -> Iterator[Step]:
    late = [view for view in members if view.local and view.running_version not in (None, view.local.config_version)]
    if not late:
        return
    assert late[0].local is not None
    wanted = late[0].local.config_version
    why = f"Corosync runs another config_version than the file's {wanted}: " + "; ".join(
        f"{view.name} runs {view.running_version}" for view in late
    )
    if f"reload:{cluster}" not in words:
        what, by = "reload Corosync on all live members", late[0]
        versions = {extras[view.name].version for view in members if extras[view.name].version}
        if len(versions) > 1:
            yield recovery_steps.refused(
                "reload",
                cluster,
                "",
                what,
                f"the members have different versions of corosync ({', '.join(sorted(map(str, versions)))}), among which a "
                "reload is unsupported: install the same one, or restart corosync on one node after the other",
            )
            return
        yield Step(
            f"reload:{cluster}",
            "reload",
            cluster,
            by.name,
            f"{what}, from {by.name}",
            why,
            command=f"on {by.name}: corosync-cfgtool -R",
            actions=({"host": by.host, "step": "reload", "seen": recovery_steps.seen(by)},),
            nodes=hosts_of(members),
        )
        return
    for view in late:
        what = f"restart Corosync on {view.name}"
        if extras[view.name].ha:
            yield recovery_steps.refused("restart", cluster, view.name, what, extras[view.name].ha)
            continue
        yield Step(
            f"restart:{view.name}",
            "restart",
            cluster,
            view.name,
            what,
            f"the reload did not bring it: {why}",
            "its membership for some seconds; the quorum stays",
            f"on {view.name}: systemctl restart corosync",
            ({"host": view.host, "step": "restart", "seen": recovery_steps.seen(view)},),
            nodes=(view.name,),
        )


def _apart(
    cluster: str, view: View, quorate: Sequence[View], reference: Copy | None, extras: Mapping[str, Extra]
) -> Iterator[Step]:
    """The way of one node back to the members that have quorum."""
    live, extra = quorate[0].live, extras[view.name]
    if reference is not None and (view.local is None or view.local.sha256 != reference.sha256):
        source = f"the text of {CLUSTER_COPY} of {named(quorate)}"
        yield recovery_steps.host_copy(cluster, [view], reference, source, "host_copy", view.name)
        return
    key = quorate[0].authkey
    if key and view.authkey != key:
        yield recovery_steps.refused(
            "start",
            cluster,
            view.name,
            f"start Corosync on {view.name}",
            ("its /etc/corosync/authkey is another one" if view.authkey else "there is no /etc/corosync/authkey")
            + f": bring that of {quorate[0].name} there (0400, owner root), then run again",
        )
        return
    version = view.local.config_version if view.local else None
    if not view.running or (view.node_id not in live and view.running_version != version):
        # A daemon that would become the leader is stopped first; that step comes before this one.
        if view.mode == "cluster" and not recovery_steps.harmless(view, quorate):
            return
        # Without the text of the members nobody knows whether it finds them.
        if reference is not None or all(each.mode is None for each in quorate):
            yield recovery_steps.start(cluster, view, extra, quorate)
        return
    if view.node_id not in live:
        yield recovery_steps.refused(
            "link",
            cluster,
            view.name,
            "bring it back to the others",
            f"Corosync runs on {view.name} with the same text and sees {ids_text(view.live)}: repair the links "
            "('corosync-cfgtool -s' on both sides; playbooks/gate.yml measures them)",
        )
        return
    if view.mode == "local":
        yield recovery_steps.isolate(
            cluster,
            view,
            extras,
            "its daemon works alone (local mode); it must be stopped before it can fetch the members' state",
        )
    elif view.mode == "down":
        tied = view.root_version == max(v.root_version or 0 for v in quorate) and view.tree_sha256 not in {
            None,
            *(v.tree_sha256 for v in quorate),
        }
        if view.database is False or extra.has_conf is False or tied or not recovery_steps.harmless(view, quorate):
            yield recovery_steps.resync(cluster, view, quorate, extra)
        else:
            yield recovery_steps.start_daemon(cluster, view, quorate, extra)


# Without quorum


def _without_quorum(
    cluster: str, views: Sequence[View], extras: Mapping[str, Extra], choice: str
) -> Iterator[Step]:
    asked = [view for view in views if view.asked]
    keep = _keep(cluster, views, choice)
    if keep.needed and keep.node is None:
        yield recovery_steps.refused(
            "host_copies",
            cluster,
            "",
            f"make {HOST_COPY} alike on all nodes",
            f"a person must decide which copy stays: {keep.reason}. Name it with -e recover_survivor=NODE:cluster or NODE:host",
        )
        return
    copy = recovery_steps.chosen(keep, views) or next((view.local for view in asked if view.local), None)
    if copy is None:
        return
    new = recovery_steps.with_version(copy, keep.write_version or copy.config_version or 1)
    alike = [view for view in asked if view.local is None or view.local.sha256 != new.sha256]
    if alike:
        source = f"the text of {keep.path or HOST_COPY} of {keep.node or asked[0].name}"
        step = recovery_steps.host_copy(cluster, alike, new, source, "host_copies", cluster)
        yield replace(step, why=f"{keep.reason}. {step.why}")
        return
    keys = {view.authkey for view in asked}
    if len(keys) > 1 or None in keys:
        yield recovery_steps.refused(
            "start",
            cluster,
            "",
            "start Corosync",
            "/etc/corosync/authkey is not the same on all nodes, or missing: bring one and the same to each (0400, owner root)",
        )
        return
    down = [view for view in asked if not view.running]
    up = [view for view in asked if view.running]
    late = [view for view in up if not view.quorate and view.local and view.running_version != view.local.config_version]
    meets, tie = _leader([view for view in asked if view.mode != "local"])
    if down or late:
        if tie:
            yield recovery_steps.refused("start", cluster, "", "start Corosync", tie)
            return
        # The one whose state becomes that of all comes first.
        for view in sorted([*down, *late], key=lambda each: -(each.root_version or 0)):
            yield recovery_steps.start(cluster, view, extras[view.name], (), meets)
        return
    idle = [view for view in up if view.quorate and view.mode == "down"]
    if idle:
        yield from _first_daemon(cluster, views, idle, extras, tie)
    for view in asked:
        if view.mode == "local" and not idle:
            yield recovery_steps.refused(
                "resync",
                cluster,
                view.name,
                f"let {view.name} fetch the members' state",
                "its daemon works alone and no member has quorum, so there is nobody to fetch it from: bring the others up first."
                f" Where there is no other: 'playbooks/restore.yml --limit {view.host}' lists the generations of {view.name}",
            )
    if up and not any(view.quorate for view in up):
        yield _quorum(cluster, views, up, copy)


def _leader(asked: Sequence[View]) -> tuple[str, str]:
    """What becomes of different states when these nodes meet, and why they must not meet (empty: they may)."""
    known = [view for view in asked if view.root_version is not None]
    if not known:
        return "", ""
    top = max(view.root_version or 0 for view in known)
    first = [view for view in known if view.root_version == top]
    shown = "; ".join(f"{view.name}: {view.root_version}" for view in known)
    if len({view.tree_sha256 for view in first if view.tree_sha256}) > 1:
        return "", (
            f"{named(first)} have the same root version {top} and different content of /etc/pve: when they meet, the clock "
            "decides. Compare what they hold (the databases are saved), then let all but one fetch its state: on each of the "
            "others, with pve-cluster stopped, move /var/lib/pve-cluster/config.db* aside before Corosync is started"
        )
    if len({view.root_version for view in known}) == 1:
        return "", ""
    return (
        f"the state of {named(first)}, which has the highest root version, becomes that of all when they meet; what only the "
        f"others hold is saved before (root versions: {shown})",
        "",
    )


def _first_daemon(
    cluster: str, views: Sequence[View], idle: Sequence[View], extras: Mapping[str, Extra], tie: str
) -> Iterator[Step]:
    """Corosync is quorate and no daemon runs: the one with the highest version first, so that nobody is rolled back."""
    what = "start the first cluster file system"
    silent = [view for view in views if not view.asked and any(view.node_id in each.live for each in idle)]
    whole = [
        view
        for view in idle
        if view.root_version is not None and extras[view.name].has_conf is not False and view.database
    ]
    top = max(idle, key=lambda view: view.root_version or 0)
    if silent:
        reason = f"{named(silent)} was not asked and Corosync sees it: its daemon may run with another state. Make it reachable"
    elif tie:
        reason = tie
    elif not whole or top not in whole:
        reason = (
            f"no node with the highest root version holds a database with a corosync.conf ({named(idle)}): started like this "
            "they would begin empty. 'playbooks/restore.yml --limit NODE' lists the generations of a node"
        )
    else:
        yield recovery_steps.start_daemon(cluster, top, (), extras[top.name])
        return
    yield recovery_steps.refused("daemon", cluster, "", what, reason)


def _quorum(cluster: str, views: Sequence[View], up: Sequence[View], copy: Copy) -> Step:
    node = max(up, key=lambda view: (view.root_version or 0, view.name))
    what = f"lower the expected votes on {node.name}, so that {named(up)} has quorum without the others"
    outside = [view for view in views if view.node_id not in node.live]
    document = corosync_conf.parse(copy.text)
    votes = {each.node_id: each.votes for each in document.nodes()}
    held = sum(votes.get(number, 0) for number in node.live)
    answering = [view for view in outside if view.asked]
    alone = [view for view in views if view.asked and view.mode == "local"]
    refused = ""
    if answering or any(view.live != node.live for view in up):
        refused = f"{named(answering) or 'another node'} answers, so it is not off: repair the links ('corosync-cfgtool -s')"
    elif alone:
        refused = f"the daemon of {named(alone)} works alone (local mode); two parts would take writes"
    elif document.qdevice:
        refused = "there is a QDevice, which may have given its vote to the other side: look at 'corosync-qdevice-tool -s'"
    elif node.mode not in ("cluster", None):
        refused = f"the daemon of {node.name} is {node.mode}: start it first ('systemctl start pve-cluster')"
    elif not outside or not held:
        refused = "there is nobody whose vote is missing; look at 'corosync-quorumtool -s'"
    if refused:
        return recovery_steps.refused("quorum", cluster, node.name, what, refused)
    names = named(outside)
    addresses = sorted(
        address for each in document.nodes() if each.node_id not in node.live for address in each.addresses.values()
    )
    return Step(
        f"quorum:{node.name}",
        "quorum",
        cluster,
        node.name,
        f"{what}; until its Corosync is restarted",
        f"no quorum with {held} of {sum(votes.values())} votes. CONFIRM ONLY IF {names} ARE SWITCHED OFF AND STAY SO until "
        f"{node.name} is done",
        f"if one of {names} runs after all, or holds a root version above {recovery_steps.root_version(node)}: what one of "
        "the two sides writes",
        f"on {node.name}: corosync-quorumtool -e {held}",
        (
            {
                "host": node.host,
                "step": "quorum",
                "seen": recovery_steps.seen(node),
                "votes": held,
                "live_member_ids": sorted(node.live),
                "others": addresses,
            },
        ),
        nodes=hosts_of(up),
    )


# What is expected of a step


def _after(step: Step, views: Sequence[View], extras: Mapping[str, Extra]) -> list[View]:
    """What the nodes say when a step has done what it should."""
    now = [_changed(step, view, views) if view.name in step.nodes else view for view in views]
    return _met(step, now) if step.kind in ("start", "daemon", "resync", "quorum") else now


def _changed(step: Step, view: View, views: Sequence[View]) -> View:
    if step.kind == "publish":
        assert step.copy is not None
        version = step.copy.config_version
        runs = dict.fromkeys(view.live, version)
        return replace(view, cluster=step.copy, local=step.copy, running_version=version, member_versions=runs)
    if step.kind in ("host_copy", "host_copies"):
        return replace(view, local=step.copy, cluster_name=step.cluster, errors=())
    if step.kind in ("reload", "restart", "start"):
        version = view.local.config_version if view.local else None
        return replace(
            view,
            running=True,
            running_version=version,
            member_versions=dict.fromkeys(view.live, version),
            quorate=bool(view.quorate),
            live=view.live or frozenset({view.node_id or 0}),
        )
    if step.kind == "isolate":
        return replace(view, mode="down", cluster=None, database=True)
    if step.kind == "quorum":
        return replace(view, quorate=True)
    # A daemon that starts, or fetches the state of the others.
    saved = None if step.kind == "resync" else view.saved_version
    return replace(view, mode="cluster", database=True, cluster=view.local, saved_version=saved)


def _met(step: Step, views: Sequence[View]) -> list[View]:
    """Those that run with one version find each other; the daemons among them agree on the highest root version."""
    node = next(view for view in views if view.name == step.node)
    version = node.running_version
    # Who is in no membership with another one has just been started.
    together = [v for v in views if v.asked and v.running and (v.running_version == version or v.counts)]
    live = frozenset(v.node_id for v in together if v.node_id).union(*(v.live for v in together))
    copy = next((v.local for v in together if v.local), None)
    votes = {each.node_id: each.votes for each in corosync_conf.parse(copy.text).nodes()} if copy and not copy.error else {}
    quorate = any(v.quorate for v in together) or sum(votes.get(n, 0) for n in live) * 2 > sum(votes.values())
    joined = [replace(v, live=live, quorate=quorate, member_versions=dict.fromkeys(live, version)) for v in together]
    daemons = [v for v in joined if v.mode == "cluster"]
    if quorate and daemons:
        fetched = step.kind == "resync"
        leaders = [v for v in daemons if not (fetched and v.name == step.node)] or daemons
        leader = max(leaders, key=lambda v: v.root_version or 0)
        joined = [_led(v, leader) if v.mode == "cluster" else v for v in joined]
    by_name = {v.name: v for v in joined}
    return [by_name.get(view.name, view) for view in views]


def _led(view: View, leader: View) -> View:
    cluster, local = leader.cluster, view.local
    if cluster and not cluster.error and (local is None or (local.config_version or 0) <= (cluster.config_version or 0)):
        local = cluster
    return replace(view, cluster=cluster, local=local, live_version=leader.root_version, tree_sha256=leader.tree_sha256)


# Small


def _open(refused: Sequence[Step], left: Sequence[Finding]) -> list[str]:
    """What no step repairs: what is refused, and each problem that would remain and that no refusal speaks of."""
    texts = [f"{step.word}: {step.what}: refused: {step.refused}" for step in refused]
    spoken = {step.node for step in refused}
    if "" in spoken:
        return texts
    for each in left:
        if each.severity == PROBLEM and not spoken & set(each.nodes):
            texts.append(f"{', '.join(each.nodes)}: {each.text}. {each.helps}")
    return texts


def _dict(step: Step) -> dict[str, Any]:
    return {
        "word": step.word,
        "kind": step.kind,
        "cluster": step.cluster,
        "node": step.node,
        "what": step.what,
        "why": step.why,
        "lost": step.lost,
        "command": step.command,
        "actions": [dict(action) for action in step.actions],
        "lines": [text_table.clean(line) for line in _step_lines(step)],
    }


def _step_lines(step: Step) -> list[str]:
    return [
        f"{step.word}  {step.what}",
        f"  why: {step.why}",
        f"  lost or overwritten: {step.lost or 'nothing'}",
        f"  by hand: {step.command}",
    ]


def _lines(cluster: str, views: Sequence[View], steps: Sequence[Step], still: Sequence[str], choice: str) -> list[str]:
    finds, keep = corosync_compare.findings(cluster, views), _keep(cluster, views, choice)
    out = corosync_compare.lines(cluster, views, finds, keep)
    if steps:
        out.append("  steps, each asked for by its word; after each the nodes are looked at anew:")
    for number, step in enumerate(steps, 1):
        first, *more = _step_lines(step)
        out += [f"  {number}. {text_table.clean(first)}", *(f"     {text_table.clean(line)}" for line in more)]
    if still:
        out.append("  no step for:")
        out += [f"  - {text_table.clean(text)}" for text in still]
    return out
