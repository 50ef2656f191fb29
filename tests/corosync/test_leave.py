# SPDX-License-Identifier: Apache-2.0
"""Who may leave a cluster and what is shown of it first."""

from __future__ import annotations

import copy
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.cluster import leave, plan
from ansible.module_utils.pveguard.formats import corosync_conf, corosync_edit
from ansible.module_utils.pveguard.pmxcfs import node_traces, pve_file

from .cluster_facts import conf, node
from .fakes import make_database, snapshot

#: What names a node: nothing.
NONE: dict[str, Any] = {
    "guests": [], "replication": [], "ha_services": [], "ha_rules": [], "storages": [], "backup_jobs": [], "files": [],
    "directory": False,
}  # fmt: skip


def cluster(nodes: int = 3, live: tuple[int, ...] | None = None, text: str | None = None, **more: Any) -> dict[str, Any]:
    """Members of one cluster, those of ``live`` in sight of each other; the others do not answer."""
    text = text or conf(nodes=nodes)
    live = live or tuple(range(1, nodes + 1))
    found: dict[str, Any] = {}
    for number in range(1, nodes + 1):
        expected = {"expected_votes": nodes}
        facts = node(number, text, text, live=live, corosync=expected, **copy.deepcopy(more))
        found[f"pve{number}"] = facts if number in live else None
    return found


def decide(hosts: dict[str, Any], name: str = "pve3", dead: bool = False) -> dict[str, Any]:
    found = leave.decide(name, hosts, list(hosts), dead)
    assert not found["done"] or not found["refusals"]
    return found


def refusal(hosts: dict[str, Any], name: str = "pve3", dead: bool = False) -> str:
    (text,) = decide(hosts, name, dead)["refusals"]
    return str(text)


def alone(number: int) -> dict[str, Any]:
    return node(number, None, None, running=False, mode="local", authkey=None)


def test_a_live_member_leaves_through_another() -> None:
    found = decide(cluster(4), "pve1")
    assert found["refusals"] == [] and found["separate"] and found["listed"]
    assert (found["seed"], found["members"], found["live_ids"]) == ("pve2", ["pve2", "pve3", "pve4"], [2, 3, 4])
    assert (found["node_name"], found["node_id"], found["host"], found["cluster"]) == ("pve1", 1, "pve1", "production")
    assert found["notes"] == []


def test_an_inventory_may_name_hosts_as_it_likes() -> None:
    hosts = {f"rack-{name[-1]}.example.org": facts for name, facts in cluster(3).items()}
    found = decide(hosts, "rack-3.example.org")
    assert (found["node_name"], found["host"], found["seed"]) == ("pve3", "rack-3.example.org", "rack-1.example.org")
    assert decide(hosts, "pve3")["host"] == "rack-3.example.org"


def test_the_last_member_stays() -> None:
    assert "may be the last one" in refusal(cluster(1), "pve1")
    hosts = {**cluster(1), "pve9": alone(9)}
    assert "may be the last one" in refusal(hosts, "pve1")


def test_a_majority_must_remain() -> None:
    # Two of three: the other two would be one.
    assert "pve1 is away too" in refusal(cluster(3, live=(2, 3)))
    assert "2 live vote(s) of the others are no majority of 4" in refusal(cluster(4, live=(1, 2, 3)))
    assert decide(cluster(5, live=(1, 2, 3, 4)))["refusals"] == []


def test_of_two_the_one_that_stays_is_without_quorum_for_a_moment() -> None:
    found = decide(cluster(2), "pve2")
    assert found["refusals"] == [] and "read-only there for some seconds" in found["notes"][0]


def test_a_qdevice_is_removed_first() -> None:
    text = conf().replace(
        "provider: corosync_votequorum",
        "provider: corosync_votequorum\n  device {\n    model: net\n    votes: 1\n    net {\n      host: 10.0.0.9\n    }\n  }",
    )
    assert corosync_conf.parse(text).qdevice
    assert "pvecm qdevice remove" in refusal(cluster(text=text))


def test_not_while_ha_is_armed() -> None:
    hosts = cluster()
    hosts["pve2"]["ha"]["watchdog_active"] = True
    assert "HA is armed: pve2 holds the watchdog" in refusal(hosts)
    # What a dead node's last heartbeat says is no watchdog.
    hosts = cluster(3, live=(1, 2), ha={"lrm_states": {"pve3": {"state": "active"}}})
    assert decide(hosts, dead=True)["refusals"] == []
    hosts["pve1"]["ha"]["lrm_states"]["pve2"] = {"state": "active"}
    assert "pve2" in refusal(hosts, dead=True)


def test_every_member_must_be_asked_and_agree() -> None:
    hosts = cluster(4)
    del hosts["pve2"]
    assert "the members pve2 (id 2) were not asked" in refusal(hosts) or "pve2" in refusal(hosts)
    hosts = cluster()
    hosts["pve2"] = node(2, conf(note="edited"), conf(note="edited"))
    assert "not the same text on all members" in refusal(hosts)


def test_a_silent_node_is_only_removed_by_who_says_that_it_is_dead() -> None:
    hosts = cluster(3, live=(1, 2))
    assert "leave_dead=true" in refusal(hosts)
    found = decide(hosts, dead=True)
    assert found["refusals"] == [] and found["listed"] and not found["separate"] and found["host"] is None
    # It need not be in the inventory.
    del hosts["pve3"]
    assert decide(hosts, dead=True)["refusals"] == []
    assert "is in the live membership" in refusal({**cluster(), "pve3": None}, dead=True)
    assert "answers (pve3)" in refusal(cluster(), dead=True)


def test_a_dead_peer_of_two() -> None:
    hosts = cluster(2, live=(1,))
    hosts["pve1"] = node(1, conf(nodes=2), conf(nodes=2), live=(1,), quorate=False)
    found = decide(hosts, "pve2", dead=True)
    assert found["refusals"] == [] and found["seed"] == "pve1"


def test_what_was_interrupted_is_finished() -> None:
    # Its own part is done, the list not.
    hosts = {**cluster(3, live=(1, 2)), "pve3": alone(3)}
    found = decide(hosts)
    assert found["refusals"] == [] and found["listed"] and not found["separate"]
    # Off the list while it was away, and back with its old state.
    text = conf(6, nodes=2)
    old = node(3, live=(3,), quorate=False)
    hosts = {"pve1": node(1, text, text, live=(1, 2)), "pve2": node(2, text, text, live=(1, 2)), "pve3": old}
    found = decide(hosts)
    assert found["refusals"] == [] and found["separate"] and not found["listed"] and found["seed"] == "pve1"
    # Neither: nothing to do.
    hosts["pve3"] = alone(3)
    assert decide(hosts)["done"]


def test_a_node_of_two_clusters_or_of_none() -> None:
    other = conf(nodes=3, name="second")
    hosts = {**cluster(2, text=conf()), "b1": node(1, other, other)}
    hosts["b1"]["hostname"] = "other1"
    assert "production, second" in refusal(hosts, dead=True)
    assert "no host of this run is a member of a cluster with pve9" in refusal(cluster(), "pve9", dead=True)
    assert "leave_node=NAME" in refusal(cluster(), "")


def test_two_clusters_may_have_nodes_of_one_name() -> None:
    other = conf(name="second")
    hosts = {f"a-{name}": facts for name, facts in cluster().items()}
    hosts.update({f"b-pve{n}": node(n, other, other) for n in (1, 2, 3)})
    found = decide(hosts, "b-pve3")
    assert found["refusals"] == [] and (found["cluster"], found["host"], found["seed"]) == ("second", "b-pve3", "b-pve1")
    assert "a-pve3, b-pve3 are called pve3" in refusal(hosts, "pve3")


def test_what_has_come_back_with_its_old_state_is_not_adopted() -> None:
    text = conf(6, nodes=2)
    nodes = {
        "pve1": node(1, text, text, live=(1, 2)),
        "pve2": node(2, text, text, live=(1, 2)),
        "pve3": node(3, live=(3,), quorate=False),
    }
    plans = plan.cluster_plan({name: {"cluster": "production", "node": facts} for name, facts in nodes.items()}, list(nodes))
    assert {name: each["action"] for name, each in plans.items()} == {"pve1": "adopt", "pve2": "adopt", "pve3": "refuse"}
    assert "playbooks/leave.yml -e leave_node=pve3" in plans["pve3"]["reason"]
    assert plans["pve1"]["members"] == ["pve1", "pve2"]
    # One that was merely away during edits is listed, and stays a member; so does one that nobody with quorum disowns.
    text = conf(6)
    nodes = {**nodes, "pve1": node(1, text, text, live=(1, 2)), "pve2": node(2, text, text, live=(1, 2))}
    plans = plan.cluster_plan({name: {"cluster": "production", "node": facts} for name, facts in nodes.items()}, list(nodes))
    assert {each["action"] for each in plans.values()} == {"adopt"}


FILES = {
    "corosync.conf": conf(),
    "nodes/pve3/qemu-server/301.conf": "memory: 512\n",
    "nodes/pve3/lrm_status": "{}",
    "nodes/pve3/pve-ssl.pem": "x",
    "nodes/pve33/lxc/333.conf": "memory: 512\n",
    "replication.cfg": "local: 100-0\n\ttarget pve3\n\tschedule */15\n\nlocal: 301-0\n\ttarget pve1\n\tsource pve3\n\n"
    "local: 101-0\n\ttarget pve2\n\tcomment pve3\n",
    "ha/manager_status": json.dumps({"service_status": {"vm:301": {"node": "pve3"}, "vm:100": {"node": "pve1"}}}),
    "ha/groups.cfg": "group: first\n\tnodes pve1:2,pve3:1\n\trestricted 1\n",
    "ha/rules.cfg": "node-affinity: second\n\tnodes pve33\n\tresources vm:100\n",
    "storage.cfg": "dir: local\n\tpath /var/lib/vz\n\nlvm: fast\n\tnodes pve3,pve1\n",
    "jobs.cfg": "vzdump: backup-1\n\tnode pve3\n\nvzdump: backup-2\n\tall 1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_database(tmp_path / "var/lib/pve-cluster/config.db", FILES)
    for name, text in FILES.items():
        (tmp_path / "etc/pve" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "etc/pve" / name).write_text(text)
    return tmp_path


def test_what_names_a_node_is_found(root: Path) -> None:
    before = snapshot(root)
    assert node_traces.collect("pve3", root=root) == {
        "guests": [301], "replication": ["100-0", "301-0"], "ha_services": ["vm:301"], "ha_rules": ["first"],
        "storages": ["fast"], "backup_jobs": ["backup-1"],
        "files": ["nodes/pve3/pve-ssl.pem", "nodes/pve3/qemu-server/301.conf"], "directory": True,
    }  # fmt: skip
    assert node_traces.collect("pve9", root=root) == NONE
    assert snapshot(root) == before
    for name in ("../pve3", "pve3/..", "", "."):
        with pytest.raises(PveguardError, match="no host name"):
            node_traces.collect(name, root=root)


def test_the_directory_goes_only_as_it_was_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pve_file, "await_writable", lambda *_: None)
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: True)
    before = snapshot(root)
    shown = ["nodes/pve3/pve-ssl.pem", "nodes/pve3/qemu-server/301.conf"]
    with pytest.raises(PveguardError, match="corosync.conf lists pve3"):
        node_traces.remove_directory("pve3", shown, root)
    monkeypatch.setattr(node_traces, "lists", lambda *_: False)
    with pytest.raises(PveguardError, match="not shown before: nodes/pve3/qemu-server/301.conf"):
        node_traces.remove_directory("pve3", shown[:1], root)
    assert node_traces.remove_directory("pve3", shown, root, check=True)
    assert node_traces.remove_directory("pve9", [], root) is False
    assert snapshot(root) == before
    assert node_traces.remove_directory("pve3", shown, root)
    gone = set(before) - set(snapshot(root))
    assert gone and all(path.startswith("etc/pve/nodes/pve3") for path in gone)


def test_the_removal_of_the_directory_outlasts_a_passing_loss_of_quorum(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pve_file, "await_writable", lambda *_: None)
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: True)
    monkeypatch.setattr(node_traces, "lists", lambda *_: False)
    shown = ["nodes/pve3/pve-ssl.pem", "nodes/pve3/qemu-server/301.conf"]
    now, until, real = [0.0], [4.0], os.rmdir

    def rmdir(path: Any, **more: Any) -> None:
        if now[0] < until[0]:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path, **more)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(os, "rmdir", rmdir)
    assert node_traces.remove_directory("pve3", shown, root, sleep=sleep, clock=lambda: now[0]) and now[0] == 4
    assert not (root / "etc/pve/nodes/pve3").exists()
    (root / "etc/pve/nodes/pve3").mkdir()
    until[0] = 1e9
    with pytest.raises(PveguardError, match="/etc/pve/nodes/pve3: Permission denied: it is removed in part at most; run again"):
        node_traces.remove_directory("pve3", shown, root, sleep=sleep, clock=lambda: now[0])


def test_what_names_the_node_forbids_it_or_is_said() -> None:
    decision = decide(cluster(4), "pve4")
    found = leave.propose(decision, NONE)
    assert found["change"] and not found["refusals"] and not found["remove"] and len(found["lines"]) == 2
    for key, part in (
        ("guests", "migrate or remove them first"),
        ("replication", "pvesr delete"),
        ("ha_services", "ha-manager"),
        ("ha_rules", "groups or rules of HA"),
    ):
        (text,) = leave.propose(decision, {**NONE, key: ["x"]})["refusals"]
        assert part in text
    traces = {**NONE, "directory": True, "files": ["nodes/pve4/config"], "storages": ["fast"]}
    found = leave.propose(decision, traces)
    assert "stays (1 files: nodes/pve4/config)" in found["lines"][2] and "fast are restricted" in found["lines"][3]
    assert not found["remove"]
    found = leave.propose(decision, traces, remove_directory=True)
    assert found["remove"] and "is removed with 1 files: nodes/pve4/config" in found["lines"][2]
    # A directory that was left is reason enough for a second run.
    done = {**decision, "listed": False, "separate": False}
    assert leave.propose(done, traces)["change"] is False
    assert leave.propose(done, traces, remove_directory=True)["change"] is True


@pytest.mark.parametrize("name", ["10.0.0.3", "10.1.0.3", "192.0.2.3", "::ffff:10.0.0.3"])
def test_a_host_named_by_its_address_leaves_alive_and_dead(name: str) -> None:
    """As the inventory has it; no part of an address is a name."""
    alive = {name if host == "pve3" else f"2001:db8::{host[-1]}": facts for host, facts in cluster(3).items()}
    found = decide(alive, name)
    assert found["refusals"] == [] and (found["node_name"], found["host"], found["node_id"]) == ("pve3", name, 3)
    gone: dict[str, Any] = {**{host: facts for host, facts in cluster(3, live=(1, 2)).items() if host != "pve3"}, name: None}
    dead = decide(gone, name, dead=True)
    assert dead["refusals"] == [] and (dead["node_name"], dead["host"], dead["node_id"]) == ("pve3", None, 3)
    assert "no host of this run is a member" in refusal(gone, "10.0.0.33", dead=True)


@pytest.mark.parametrize("votes", [0, 1])
def test_a_probe_of_the_inventory_is_one_with_and_without_a_vote_and_an_id_makes_none(votes: int) -> None:
    listed = [{"name": f"pve{n}", "node_id": 998 + n, "links": [f"10.0.0.{n}"]} for n in (1, 2)]
    listed.append({"name": "watch", "node_id": 3, "links": ["10.0.0.3"], "votes": votes})
    text = corosync_edit.render_new("production", listed, config_version=5)
    hosts = {each["name"]: node(1, text, text, live=(999, 1000, 3), hostname=each["name"]) for each in listed}
    for host, each in zip(hosts.values(), listed, strict=True):
        host["corosync"]["node_id"] = each["node_id"]
    found = leave.decide("watch", hosts, list(hosts), probes=["watch"])
    assert found["probe"] and found["refusals"] == []
    member = leave.decide("pve2", hosts, list(hosts), probes=["watch"])
    assert not member["probe"] and member["node_id"] == 1000 and member["seed"] == "pve1"
