"""A member that is to leave its cluster, judged and shown before anything is done.

Pure: judges what ``node_info`` and ``node_traces`` said; connects to nothing. The modules that do the work judge their part
once more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..base.errors import PveguardError
from ..corosync import probe_members
from ..formats import corosync_conf
from ..ha import ha_info
from . import plan
from .cluster_member import QDEVICE

Facts = Mapping[str, Any]


def decide(
    name: str,
    hosts: Mapping[str, Facts | None],
    play_hosts: Collection[str],
    dead: bool = False,
    probes: Collection[str] = (),
) -> dict[str, Any]:
    """Who leaves which cluster, through whom, and why it must not.

    ``name``: the node, by its name in corosync.conf or in the inventory. ``hosts``: every host of the inventory -> its facts
    (node_info), None where it was not asked or did not answer. ``dead``: the operator says that it is off for good.
    ``probes``: hosts that are probes in the inventory.

    Keys: refusals; node_name; node_id (None where no member lists it); cluster; host (in the inventory, None where it did
    not answer); seed (the member that writes); members (the remaining ones, seed first); live_ids (of them); listed
    (a member lists it); separate (the node still holds something of the cluster); done (nothing is left to do), notes,
    probe (it is one).
    """
    found: dict[str, Any] = {
        "refusals": [], "notes": [], "node_name": "", "node_id": None, "cluster": None, "host": None, "seed": None,
        "members": [], "live_ids": [], "listed": False, "separate": False, "done": False,
        "probe": False,
    }  # fmt: skip
    refusals: list[str] = found["refusals"]
    if not name:
        refusals.append("name the node that is to leave: -e leave_node=NAME")
        return found
    given = hosts.get(name)
    answers = {host: facts for host, facts in hosts.items() if facts and host in play_hosts}
    node_name = _by_address(name, answers) if given is None else plan.node_name(name, given)
    same = [host for host, facts in answers.items() if plan.node_name(host, facts) == node_name]
    target = name if name in same else next(iter(same), None)
    found.update(node_name=node_name, host=target)
    clusters = _clusters(node_name, answers, target)
    if len(same) > 1 and name not in same:
        refusals.append(f"{', '.join(same)} are called {node_name}: give the one that is meant by its name in the inventory")
        return found
    if len(clusters) > 1:
        refusals.append(f"{node_name} is listed in the clusters {', '.join(clusters)}: name the hosts of one with --limit")
        return found
    held = _held(answers[target]) if target else []
    found["separate"] = bool(held)
    if not clusters:
        if target and not held:
            found["done"] = True
            return found
        refusals.append(
            f"no host of this run is a member of a cluster with {node_name}: the other members must be asked too, so run it "
            "without --limit"
        )
        return found
    cluster = found["cluster"] = clusters[0]
    others = {host: facts for host, facts in answers.items() if host != target and plan.live_cluster(facts) == cluster}
    # A probe is written through only where nobody else answers.
    others = dict(sorted(others.items(), key=lambda entry: entry[0] in probes or probe_members.is_one(entry[1])))
    if not others:
        refusals.append(
            f"no other member of {cluster!r} was asked: it may be the last one, which cannot leave, or the run lacks the "
            "others (--limit)"
        )
        return found
    _judge(found, answers, others, dead, {name, target} & set(probes))
    return found


def _judge(
    found: dict[str, Any],
    answers: Mapping[str, Facts],
    others: Mapping[str, Facts],
    dead: bool,
    described: Collection[str | None],
) -> None:
    refusals, node_name, target = found["refusals"], found["node_name"], found["host"]
    quorate = [host for host, facts in others.items() if facts["corosync"]["quorate"] and facts["pmxcfs"]["quorate"]]
    running = quorate or [host for host, facts in others.items() if facts["corosync"]["running"]]
    if not running:
        refusals.append(f"corosync runs on none of {', '.join(others)}: start it ('systemctl start corosync')")
        return
    seed = found["seed"] = running[0]
    info = others[seed]["corosync"]
    try:
        conf = corosync_conf.parse(info["cluster"]["text"], f"{seed}: /etc/pve/corosync.conf")
    except (PveguardError, TypeError) as error:
        refusals.append(f"{seed}: /etc/pve/corosync.conf cannot be used: {error}")
        return
    live = set(info["live_member_ids"])
    node = conf.node(node_name)
    stay = [each for each in conf.nodes() if each.name != node_name]
    by_name = {plan.node_name(host, facts): host for host, facts in others.items()}
    probes = probe_members.ids(info)
    found["listed"] = node is not None
    found["node_id"] = node.node_id if node else None
    found["probe"] = node is not None and (bool(described) or node.node_id in probes)
    found["live_ids"] = sorted(each.node_id for each in stay if each.node_id in live and each.node_id is not None)
    asked = [by_name[each.name] for each in stay if each.node_id in live and each.name in by_name]
    found["members"] = [seed] + [host for host in asked if host != seed]
    if not node and not found["separate"]:
        found["done"] = True
        return
    _judge_node(found, node, live, dead)
    if not node:
        return
    if all(each.node_id in probes for each in stay):
        refusals.append(f"{node_name} is the last member of {found['cluster']!r}: a cluster cannot be left by all")
        return
    missing = [each.label for each in stay if each.node_id in live and each.name not in by_name]
    if missing:
        refusals.append(
            f"the members {', '.join(missing)} were not asked: the removal is seen from every member, so run it without "
            "--limit, with all of them in the inventory"
        )
    texts = {(others[host]["corosync"]["cluster"] or {}).get("sha256") for host in asked}
    texts |= {(others[host]["corosync"]["host"] or {}).get("sha256") for host in asked}
    if len(texts) > 1:
        refusals.append(
            "corosync.conf is not the same text on all members ('make assess' shows where): make the copies equal first "
            "(playbooks/recover.yml)"
        )
    if conf.qdevice:
        refusals.append(QDEVICE)
    _judge_quorum(found, info, node, stay, live)
    ha = {host: answers[host]["ha"] for host in [*others, *([target] if target else [])]}
    holders = [each for each in ha_info.watchdog_holders(ha) if not (dead and each.split(" ")[0] == node_name)]
    # Without a vote its leave changes nobody's quorum.
    if holders and node.votes:
        refusals.append(
            f"HA is armed: {', '.join(dict.fromkeys(holders))} holds the watchdog, and a node that loses the quorum would be "
            "reset. Remove the resources ('ha-manager remove SID') and stop HA (role ha, ha_state: disabled)"
        )


def _judge_node(found: dict[str, Any], node: Any, live: Collection[int], dead: bool) -> None:
    refusals, node_name, target = found["refusals"], found["node_name"], found["host"]
    seen = node is not None and node.node_id in live
    if dead and target:
        refusals.append(f"{node_name} answers ({target}), so it is not dead: run it without leave_dead")
    elif dead and seen:
        refusals.append(
            f"{node_name} is in the live membership, so it is not dead: switch it off first, or run it without leave_dead"
        )
    elif not dead and not target:
        refusals.append(
            f"{node_name} does not answer, or is not in this run. Bring it up; or, when it is switched off and will never be "
            "started with its present state again, add -e leave_dead=true"
        )


def _judge_quorum(
    found: dict[str, Any], info: Facts, node: Any, stay: Sequence[Any], live: Collection[int]
) -> None:
    away = [each.label for each in stay if each.node_id not in live]
    votes = sum(each.votes for each in stay if each.node_id in live)
    during = max(sum(each.votes for each in stay) + node.votes, info.get("expected_votes") or 0)
    after = sum(each.votes for each in stay)
    if not node.votes:
        return
    if away and min(votes * 2 - during, votes * 2 - after) <= 0:
        found["refusals"].append(
            f"{', '.join(away)} is away too: without {node.label} the {votes} live vote(s) of the others are no majority of "
            f"{during} and the quorum would be lost. Bring back what is away first"
        )
    elif votes * 2 <= during:
        found["notes"].append(
            f"between the leave of {node.label} and its removal from the list the others have {votes} of {during} votes: "
            "/etc/pve is read-only there for some seconds"
        )
    remain = sum(each.votes > 0 for each in stay)
    if remain % 2 == 0:
        found["notes"].append(
            f"{remain} members remain: an even number can split in halves of which neither has quorum; a QDevice helps "
            "('pvecm qdevice setup ADDRESS')"
        )


def _by_address(name: str, answers: Mapping[str, Facts]) -> str:
    """The name of a node that did not answer and may be given by its address, as the members know it."""
    key = corosync_conf.address_key(name)
    for facts in answers.values():
        if found := plan.names_by_address(facts).get(key):
            return found
    return corosync_conf.short_name(name)


def _clusters(node_name: str, answers: Mapping[str, Facts], target: str | None) -> list[str]:
    """The cluster whose state the node holds; else those of the other hosts that list it."""
    own = plan.live_cluster(answers[target]) if target else None
    if own:
        return [own]
    found = []
    for host, facts in answers.items():
        cluster = plan.live_cluster(facts)
        names = [member["name"] for member in facts["corosync"].get("members") or []]
        if cluster and host != target and node_name in names and cluster not in found:
            found.append(cluster)
    return found


def _held(facts: Facts) -> list[str]:
    """What of a cluster a node holds."""
    info = facts["corosync"]
    return [
        what
        for what, there in (
            ("/etc/pve/corosync.conf", facts["pmxcfs"]["has_corosync_conf"] or info["cluster"]),
            ("/etc/corosync/corosync.conf", info["host"] and not info["example_conf"]),
            ("/etc/corosync/authkey", info["authkey_sha256"]),
        )
        if there
    ]


def propose(
    decision: Mapping[str, Any], traces: Mapping[str, Any], remove_directory: bool = False, dead: bool = False
) -> dict[str, Any]:
    """What is done, in lines; and what of the cluster's configuration forbids it. ``traces``: of node_traces on the seed.

    Keys: lines, refusals, change (whether anything is to be done), remove (whether the directory is).
    """
    name = decision["node_name"]
    refusals = []
    if traces["guests"]:
        where = f"/etc/pve/nodes/{name}/qemu-server/ID.conf"
        help_ = (
            f"move the configuration of those that another node can run (mv {where} to that node's directory), remove the others"
            if dead
            else "migrate or remove them first"
        )
        refusals.append(f"{name} has the guests {_listed(traces['guests'])}: {help_}")
    if traces["replication"]:
        refusals.append(
            f"the replication jobs {_listed(traces['replication'])} go from or to {name}: remove them ('pvesr delete JOB')"
        )
    if traces["ha_services"]:
        refusals.append(f"HA has the resources {_listed(traces['ha_services'])} on {name}: remove or move them ('ha-manager')")
    if traces["ha_rules"]:
        refusals.append(f"groups or rules of HA name {name}: {_listed(traces['ha_rules'])}; take it out of them")
    lines = []
    if decision["separate"]:
        lines.append(
            f"{name}: its database is saved to the store (before-leave), then its key, corosync.conf and database are removed; "
            "it starts as a node by itself with an empty /etc/pve (no storages, users or firewall rules)"
        )
    if decision["listed"]:
        lines.append(
            f"{decision['cluster']}: {name} (id {decision['node_id']}) is taken off corosync.conf through {decision['seed']}; "
            f"{_listed(decision['members'])} remain"
        )
    remove = remove_directory and traces["directory"]
    if remove:
        lines.append(f"/etc/pve/nodes/{name} is removed with {len(traces['files'])} files: {_listed(traces['files'], 20)}")
    elif traces["directory"]:
        lines.append(
            f"/etc/pve/nodes/{name} stays ({len(traces['files'])} files: {_listed(traces['files'])}); "
            "-e leave_remove_directory=true removes it"
        )
    for key, what in (("storages", "the storages"), ("backup_jobs", "the backup jobs")):
        if traces[key]:
            lines.append(f"{what} {_listed(traces[key])} are restricted to {name}: adapt them")
    return {
        "lines": [*lines, *decision["notes"]],
        "refusals": refusals,
        "change": bool(decision["separate"] or decision["listed"] or remove),
        "remove": bool(remove),
    }


def _listed(names: Sequence[Any], most: int = 8) -> str:
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more} more" if more > 0 else "") if names else "none"
