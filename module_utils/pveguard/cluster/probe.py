"""A probe: a plain Debian machine that watches a cluster as corosync and the cluster file system only.

Pure: whether one may join, by the cluster's votes and by what the machine is. It is a host of the inventory's group
``pve_probe`` with the ``corosync_*`` variables of a node.

Which member is one: :mod:`..corosync.probe_members`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base.errors import PveguardError
from ..corosync.probe_members import FOREIGN, GROUP, is_listed
from ..formats import corosync_conf
from .cluster_member import QDEVICE


def quorum_of(votes: int) -> int:
    """Votes that are a majority of ``votes`` (votequorum(5))."""
    return votes // 2 + 1


def arithmetic(others: int, votes: int) -> tuple[str, str]:
    """Why a probe with ``votes`` must not join nodes that have ``others`` together (empty when it may), and what it means.

    With no vote nothing changes. With one the threshold stays where the others have an even number: without the probe
    they are quorate as before, with it one more of them may be away. With an odd number the threshold would rise.
    """
    before, after = quorum_of(others), quorum_of(others + votes)
    meaning = f"the members have {others} votes, quorum is {before}; with the probe's {votes} it is {after} of {others + votes}"
    if after <= before:
        return "", meaning
    return (
        f"the members have {others} votes and are quorate with {before}; with a vote of the probe they would need {after} of "
        f"{others + votes}, so that a probe that is off costs them the quorum one member earlier. A vote helps only where the "
        "members have an even number of them: leave probe_votes at 0"
    ), meaning


def refusals(
    name: str, votes: int, node: Mapping[str, Any], seed: Mapping[str, Any], node_id: int | None = None
) -> list[str]:
    """Why ``name`` must not be the probe of a cluster. ``node`` and ``seed``: facts (node_info) of it and of a member.

    ``node_id``: the id that the probe has in the inventory.
    """
    found = []
    for package, harm in FOREIGN.items():
        if (node.get("packages") or {}).get(package):
            found.append(
                f"{package} is installed on it: {harm}. A probe is a plain Debian machine: 'apt purge {package}', or take the "
                f"host out of the group {GROUP}"
            )
    ha = node.get("ha") or {}
    if ha.get("watchdog_active"):
        found.append("a client holds its watchdog (/run/watchdog-mux.active): a probe has none, as nothing would feed it")
    text = ((seed.get("corosync") or {}).get("cluster") or {}).get("text") or ""
    try:
        document = corosync_conf.parse(text, "the cluster's corosync.conf")
    except PveguardError as error:
        return [*found, str(error)]
    if document.qdevice:
        found.append(QDEVICE)
    if document.two_node:
        found.append(
            "quorum.two_node is 1, which corosync takes only while two nodes are listed: with a probe the cluster could not "
            "reload its corosync.conf. Take it off first (corosync_quorum: {two_node: null}, playbooks/corosync.yml), which "
            "means that a member alone is not quorate any more; probe_votes: 1 then makes the probe the third vote"
        )
    listed = document.node(name)
    if listed is not None and _is_other(listed, node_id, seed, node):
        found.append(f"the cluster has a member of this name already (id {listed.node_id}): give the probe another host name")
    refusal, _ = arithmetic(votes_of_others(document.nodes(), name), votes)
    if refusal:
        found.append(refusal)
    return found


def _is_other(
    listed: corosync_conf.Node, node_id: int | None, seed: Mapping[str, Any], node: Mapping[str, Any]
) -> bool:
    """Whether a listed node of the probe's name is a member that has nothing to do with it.

    One that was listed by a run that ended too early has no place on /etc/pve yet; it has the probe's id. The directory of
    a node that is gone may lie there under its name.
    """
    theirs, own = seed.get("corosync") or {}, node.get("corosync") or {}
    if own.get("node_id") == listed.node_id and own.get("cluster_name") == theirs.get("cluster_name"):
        return False
    members: list[Mapping[str, Any]] = theirs.get("members") or []
    seen: Mapping[str, Any] = next((each for each in members if each.get("id") == listed.node_id), {})
    if is_listed(seen):
        return False
    return listed.node_id != node_id or bool(seen.get("is_node") and listed.votes)


def votes_of_others(nodes: Sequence[corosync_conf.Node], name: str) -> int:
    """The votes of all nodes of a nodelist but one."""
    return sum(node.votes for node in nodes if node.name != name)


def votes_to_change(name: str, votes: int, seed: Mapping[str, Any]) -> bool:
    """Whether the cluster lists the probe with another number of votes than is wanted."""
    document = corosync_conf.parse(((seed.get("corosync") or {}).get("cluster") or {}).get("text") or "")
    listed = document.node(name)
    return listed is not None and listed.votes != votes
