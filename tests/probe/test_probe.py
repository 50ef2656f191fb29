# SPDX-License-Identifier: Apache-2.0
"""Whether a probe may join: its place in the inventory, the cluster's votes, and what the machine is."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.cluster import assess, corosync_compare, leave, node_findings, probe
from ansible.module_utils.pveguard.cluster.inventory import inventory_errors
from ansible.module_utils.pveguard.cluster.plan import cluster_plan
from ansible.module_utils.pveguard.corosync import corosync_info, corosync_wish, probe_members
from ansible.module_utils.pveguard.filters import report as pveguard_units
from ansible.module_utils.pveguard.formats import corosync_conf, corosync_edit
from ansible.module_utils.pveguard.pmxcfs import probe_home
from ansible.module_utils.pveguard.report import report_table
from ansible.module_utils.pveguard.writes import write_amplification

#: The id of the probe: any.
NUMBER = 9


def conf(nodes: int = 3, probe_votes: int | None = None, extra: str = "") -> str:
    listed: list[dict[str, Any]] = [
        {"name": f"pve{n}", "node_id": n, "links": [f"10.0.0.{n}"]} for n in range(1, nodes + 1)
    ]
    if probe_votes is not None:
        listed.append({"name": "watch1", "node_id": NUMBER, "links": ["10.0.0.100"], "votes": probe_votes})
    text = corosync_edit.render_new("c", listed, config_version=4)
    return text.replace("  provider: corosync_votequorum\n", f"  provider: corosync_votequorum\n{extra}")


def members(text: str, placeholder: bool = True) -> list[dict[str, Any]]:
    """As corosync_info has them on a cluster where the probe has its place on /etc/pve."""
    found = [corosync_info._member(each, (False, False)) for each in corosync_conf.parse(text).nodes()]
    for each in found:
        if each["name"] == "watch1":
            each["probe"] = placeholder
        else:
            each.update(is_node=True, probe=False)
    return found


def facts(text: str | None = None, quorate: bool = True, **more: Any) -> dict[str, Any]:
    copy = {"config_version": 4, "text": text, "sha256": "a" * 64} if text else None
    return {
        "hostname": "x",
        "packages": {"pve-manager": None, "pve-ha-manager": None, "pve-cluster": None},
        "ha": {"watchdog_active": False},
        "corosync": {
            "cluster": copy,
            "host": copy,
            "cluster_name": "c" if text else None,
            "quorate": quorate and bool(text),
            "members": members(text) if text else [],
        },
        "pmxcfs": {"guests": [], "storage": False, "users": False, "has_corosync_conf": bool(text)},
        **more,
    }


# --- votes


@pytest.mark.parametrize("others", [1, 2, 3, 4, 5, 16])
def test_without_a_vote_the_quorum_is_what_it_was(others: int) -> None:
    refusal, meaning = probe.arithmetic(others, 0)
    assert refusal == "" and probe.quorum_of(others) == probe.quorum_of(others + 0)
    assert f"quorum is {probe.quorum_of(others)}" in meaning


@pytest.mark.parametrize(("others", "allowed"), [(1, False), (2, True), (3, False), (4, True), (5, False)])
def test_a_vote_only_where_the_members_lose_nothing_when_the_probe_is_off(others: int, allowed: bool) -> None:
    refusal, _ = probe.arithmetic(others, 1)
    assert (refusal == "") is allowed
    # What the rule stands for: members that are quorate without a probe stay so beside one that is off.
    for up in range(others + 1):
        if up >= probe.quorum_of(others) and allowed:
            assert up >= probe.quorum_of(others + 1)


def test_the_refusal_names_both_thresholds_and_the_variable() -> None:
    (refusal,) = probe.refusals("watch1", 1, facts(), facts(conf(3)))
    assert "quorate with 2" in refusal and "need 3 of 4" in refusal and "probe_votes at 0" in refusal


def test_two_members_and_a_vote_are_three_votes() -> None:
    assert probe.refusals("watch1", 1, facts(), facts(conf(2))) == []
    # It is not counted twice once it is listed.
    assert probe.refusals("watch1", 1, facts(), facts(conf(2, probe_votes=1)), NUMBER) == []


@pytest.mark.parametrize("votes", [0, 1])
def test_two_node_is_refused_with_the_way_out(votes: int) -> None:
    (refusal,) = probe.refusals("watch1", votes, facts(), facts(conf(2, extra="  two_node: 1\n")))
    assert "two_node" in refusal and "corosync_quorum: {two_node: null}" in refusal


def test_a_qdevice_is_refused() -> None:
    device = "  device {\n    model: net\n    votes: 1\n  }\n"
    (refusal,) = probe.refusals("watch1", 0, facts(), facts(conf(2, extra=device)))
    assert "QDevice" in refusal and "pvecm qdevice remove" in refusal


def test_a_machine_that_is_more_than_a_probe_is_refused() -> None:
    node = facts(packages={"pve-manager": "9.0", "pve-ha-manager": "5.0"}, ha={"watchdog_active": True})
    found = probe.refusals("watch1", 0, node, facts(conf(3)))
    assert len(found) == 3 and "pve-manager" in found[0] and "arm a watchdog" in found[1] and "watchdog-mux" in found[2]


def test_the_name_of_a_member_is_refused() -> None:
    for node_id in (NUMBER, 2, None):
        (refusal,) = probe.refusals("pve2", 0, facts(), facts(conf(3)), node_id)
        assert "member of this name already (id 2)" in refusal


def test_a_probe_that_was_listed_by_a_run_that_ended_is_not_another_member() -> None:
    """It has no place on /etc/pve yet. Its id in the inventory tells it, with and without a vote."""
    for votes in (0, 1):
        seed = facts(conf(2, probe_votes=votes))
        seed["corosync"]["members"] = members(conf(2, probe_votes=votes), placeholder=False)
        assert probe.refusals("watch1", votes, facts(), seed, NUMBER) == []
        (refusal,) = probe.refusals("watch1", votes, facts(), seed, NUMBER + 1)
        assert "member of this name already" in refusal


@pytest.mark.parametrize(("listed", "wanted", "differs"), [(0, 0, False), (0, 1, True), (1, 0, True), (None, 1, False)])
def test_votes_are_changed_only_where_they_differ(listed: int | None, wanted: int, differs: bool) -> None:
    assert probe.votes_to_change("watch1", wanted, facts(conf(2, probe_votes=listed))) is differs


def test_what_a_node_of_this_name_left_on_etc_pve_does_not_make_the_probe_another_member() -> None:
    for votes in (0, 1):
        seed = facts(conf(2, probe_votes=votes))
        seed["corosync"]["members"][-1].update(probe=False, is_node=True)
        # The machine says itself that it is the listed one.
        node = facts(conf(2, probe_votes=votes))
        node["corosync"]["node_id"] = NUMBER
        assert probe.refusals("watch1", votes, node, seed, NUMBER) == []
        assert len(probe.refusals("watch1", votes, facts(), seed, NUMBER)) == votes


# --- which member is one


def place(root: Path, name: str, certificate: bytes | None = None, lrm: bool = False) -> None:
    folder = root / "etc/pve/nodes" / name
    folder.mkdir(parents=True)
    if certificate is not None:
        (folder / "pve-ssl.pem").write_bytes(certificate)
    if lrm:
        (folder / "lrm_status").write_text("{}")


def pem(subject: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(b"\x30\x82" + subject) + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("node_id", [1, 7, 1000, 1099, 65535])
@pytest.mark.parametrize(
    ("votes", "certificate", "lrm", "expected"),
    [
        (0, None, False, True),
        (0, probe_home.MARK.encode(), False, True),
        (1, probe_home.MARK.encode(), False, True),
        # Nodes of Proxmox VE, with a vote and without.
        (1, None, False, False),
        (1, b"OU=PVE Cluster Node", True, False),
        (0, b"OU=PVE Cluster Node", False, False),
        (0, None, True, False),
    ],
)
def test_the_votes_and_what_is_on_etc_pve_tell_a_probe_and_no_id_does(
    tmp_path: Path, node_id: int, votes: int, certificate: bytes | None, lrm: bool, expected: bool
) -> None:
    listed = [
        {"name": "pve1", "node_id": 2, "links": ["10.0.0.1"]},
        {"name": "x", "node_id": node_id, "links": ["10.0.0.2"], "votes": votes},
    ]
    text = corosync_edit.render_new("c", listed, config_version=4)
    (tmp_path / "etc/pve").mkdir(parents=True)
    (tmp_path / "etc/pve/corosync.conf").write_text(text)
    if certificate is not None or lrm:
        place(tmp_path, "x", None if certificate is None else pem(certificate), lrm)
    info = corosync_info.collect(root=tmp_path)
    (found,) = [each for each in info["members"] if each["name"] == "x"]
    assert (found["probe"], found["votes"]) == (expected, votes)
    assert probe_members.ids(info) == ({node_id} if expected else set())
    info["node_id"] = node_id
    own = {"hostname": "x", "corosync": info, "packages": {"pve-manager": None}}
    assert probe_members.is_one(own) is expected
    # A machine with the services of a node is none, whatever its votes.
    assert not probe_members.is_one({**own, "packages": {"pve-manager": "9.0"}})


def test_the_placeholder_that_is_made_is_known_again() -> None:
    made = probe_home.certificate("watch1")
    assert probe_home.is_placeholder(made) and probe_home.is_placeholder(b"text\n" + made)
    broken = b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"
    for other in (b"", broken, pem(b"CN=pve1"), probe_home.MARK.encode()):
        assert not probe_home.is_placeholder(other)


# --- inventory


def host(node_id: int | None, address: str, cluster: str | None = "c") -> dict[str, Any]:
    found = {"corosync_node_id": node_id, "corosync_links": [address], "corosync_cluster_name": cluster}
    return {name: value for name, value in found.items() if value is not None}


NODES = {"a": host(1, "10.0.0.1"), "b": host(2, "10.0.0.2")}
GROUPS = {"watch1": ["all", "pve_probe"]}


def test_a_probe_in_the_inventory() -> None:
    for node_id in (3, 1000, 65535):
        assert inventory_errors({**NODES, "watch1": host(node_id, "10.0.0.9")}, host_groups=GROUPS) == []
    # A member may have any id too.
    assert inventory_errors({**NODES, "c": host(1000, "10.0.0.9")}) == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (host(2, "10.0.0.9"), "corosync_node_id 2 is set for b and watch1"),
        (host(65536, "10.0.0.9"), "corosync_node_id 65536 is not a whole number from 1 to 65535"),
        (host(1000, "10.0.0.2"), "10.0.0.2 of corosync_links is used by"),
        ({}, "have no ring that a probe could watch"),
        (host(1000, "10.0.0.9", "other"), "of which the inventory has no node"),
    ],
)
def test_each_mistake_of_a_probe_is_named(entry: dict[str, Any], words: str) -> None:
    (error,) = inventory_errors({**NODES, "watch1": entry}, host_groups=GROUPS)
    assert words in error


# --- what becomes of each host


def plan(nodes: dict[str, Any], watch: Any, joining: str | None = None) -> Any:
    named = {name: {**node, "hostname": name if node["hostname"] == "x" else node["hostname"]} for name, node in nodes.items()}
    hosts: dict[str, Any] = {name: {"cluster": "c", "node": node} for name, node in named.items()}
    hosts = {"watch1": {"cluster": "c", "node": watch, "probe": True}, **hosts}
    return cluster_plan(hosts, list(hosts), joining_probe=joining)


def test_site_yml_leaves_a_probe_out_also_where_it_stands_first() -> None:
    plans = plan({"a": facts(), "b": facts()}, facts())
    assert {name: each["action"] for name, each in plans.items()} == {"watch1": "probe", "a": "bootstrap", "b": "join"}
    assert plans["b"]["seed"] == "a" and plans["a"]["members"] == []


def test_it_joins_when_it_is_asked_to_and_through_a_member() -> None:
    plans = plan({"a": facts(conf(2), quorate=False), "b": facts(conf(2))}, facts(), "watch1")
    assert (plans["watch1"]["action"], plans["watch1"]["seed"]) == ("join", "b")
    assert plans["watch1"]["members"] == ["a", "b"] == plans["a"]["members"]


def test_nodes_by_themselves_have_no_ring() -> None:
    plans = plan({"a": facts(), "b": facts()}, facts(), "watch1")
    assert plans["watch1"]["action"] == "refuse" and "no ring that a probe could watch" in plans["watch1"]["reason"]


def test_a_live_probe_is_a_member_that_nobody_joins_through() -> None:
    text = conf(2, probe_votes=0)
    nodes = {"a": facts(text), "b": facts(text), "d": facts()}
    plans = plan(nodes, facts(text))
    assert plans["watch1"]["action"] == "adopt" and plans["a"]["members"] == ["a", "b", "watch1"]
    assert (plans["d"]["action"], plans["d"]["seed"]) == ("join", "a")


def test_a_probe_of_another_cluster_or_with_content_is_refused() -> None:
    other = facts(conf(2).replace("cluster_name: c\n", "cluster_name: d\n"))
    other["corosync"]["cluster_name"] = "d"
    assert "a member of 'd'" in plan({"a": facts(conf(2))}, other, "watch1")["watch1"]["reason"]
    held = facts(pmxcfs={"guests": [100]})
    assert "guests 100" in plan({"a": facts(conf(2))}, held, "watch1")["watch1"]["reason"]


def test_a_probe_that_is_off_holds_up_nothing() -> None:
    plans = plan({"a": facts(conf(2)), "b": facts(conf(2)), "d": facts()}, None)
    assert [plans[name]["action"] for name in "abd"] == ["adopt", "adopt", "join"]
    # It founds no second cluster either where members wait to be formed.
    assert plan({"a": facts()}, None)["a"]["action"] == "bootstrap"


def test_a_join_that_was_interrupted_goes_on_beside_a_probe_that_is_off() -> None:
    text = conf(2, probe_votes=0)
    founder = facts(text, quorate=False)
    founder["corosync"].update(running=True, live_member_ids=[1])
    plans = plan({"pve1": founder, "192.0.2.2": facts(hostname="pve2")}, None)
    assert (plans["192.0.2.2"]["action"], plans["192.0.2.2"]["seed"]) == ("join", "pve1")


def test_a_probe_without_a_vote_is_no_mistake_in_a_change_and_a_member_without_one_is() -> None:
    wanted = corosync_wish.Wanted(cluster_name="c", token_ms=4000)
    text = conf(3, probe_votes=0)
    assert corosync_wish.merge(text, wanted, {NUMBER})[1] == []
    assert corosync_wish.merge(text, wanted)[1] == ["watch1 has no vote"]
    listed = {"name": "watch2", "node_id": 12, "links": ["10.0.0.12"], "votes": 0}
    assert corosync_wish.merge(text, corosync_wish.Wanted("c", [listed]), {NUMBER})[1] == []


# --- what the others say of it


def test_a_probe_that_is_off_is_said_to_matter_to_nobody() -> None:
    text = conf(2, probe_votes=0)
    nodes = {name: facts(text) for name in ("pve1", "pve2")}
    for number, (name, node) in enumerate(nodes.items(), 1):
        node["hostname"] = name
        node["corosync"].update(node_id=number, running=True, live_member_ids=[1, 2], copies_equal=True)
        node["corosync"].update(running_config_version=4, authkey_sha256="k" * 64)
    (cluster,) = corosync_compare.compare(nodes)
    # By the inventory it may be one with a vote, or a node without one.
    described = {**nodes, "watch1": None}
    wanted = dict.fromkeys(described, "c")
    for probes, kind in ((["watch1"], "a probe that was not asked, and it is off"), ([], "not asked in this run, and no")):
        (each,) = corosync_compare.compare(described, wanted, probes)
        assert [row["seen"][: len(kind)] for row in each["findings"]] == [kind]
    (finding,) = [each for each in cluster["findings"] if "watch1" in each["nodes"]]
    assert cluster["agree"] and finding["means"] == "nothing depends on a probe without a vote"
    assert "leave_dead=true" in finding["helps"]
    seen = {**nodes["pve1"], "pmxcfs": {"mode": "cluster", "has_corosync_conf": True}}
    texts = [each.text for each in node_findings._corosync(seen)]
    assert texts == ["member of c: 2 of 2 members up, quorate"]


def test_its_leave_costs_no_quorum_and_waits_for_no_watchdog() -> None:
    text = conf(2, probe_votes=0)
    info = {"live_member_ids": [1, 2, NUMBER], "expected_votes": 2, "running": True, "authkey_sha256": "k"}
    names = {"pve1": 1, "pve2": 2, "watch1": NUMBER}
    hosts = {}
    for name, number in names.items():
        node = hosts[name] = facts(text)
        node["hostname"], node["pmxcfs"]["quorate"] = name, True
        node["corosync"].update(info, node_id=number, example_conf=False)
        node["ha"] = {"installed": name != "watch1", "watchdog_active": name != "watch1", "resources": ["vm:100"]}
    found = leave.decide("watch1", hosts, list(hosts))
    assert found["refusals"] == [] and found["notes"] == [] and found["members"] == ["pve1", "pve2"] and found["probe"]
    # A member's leave is judged as before, and goes through a member even where the probe stands first.
    hosts = {"watch1": hosts["watch1"], "pve1": hosts["pve1"], "pve2": hosts["pve2"]}
    member = leave.decide("pve1", hosts, list(hosts))
    assert member["seed"] == "pve2" and any("HA is armed" in refusal for refusal in member["refusals"])
    # With one member left the probe is no cluster.
    single = {name: hosts[name] for name in ("watch1", "pve1")}
    alone = text.replace("pve2", "watch2").replace("nodeid: 2", "nodeid: 10").replace("quorum_votes: 1", "quorum_votes: 0")
    for node in single.values():
        node["corosync"]["cluster"] = {**node["corosync"]["cluster"], "text": alone}
        node["corosync"]["members"] = [{**each, "probe": each["name"] != "pve1"} for each in members(alone)]
    last = leave.decide("pve1", single, list(single))
    assert any("last member" in refusal for refusal in last["refusals"])


# --- the other roles


def test_no_step_of_another_node_waits_for_a_probe() -> None:
    listed = [{"id": 1, "probe": False}, {"id": 2, "probe": False}, {"id": NUMBER, "probe": True}]

    def variables(number: int, *groups: str) -> dict[str, Any]:
        corosync = {"cluster_name": "c", "node_id": number, "members": listed}
        node = {"corosync": corosync, "pmxcfs": {"mode": "cluster", "quorate": True}}
        return {"pveguard_node": {"node": node}, "group_names": list(groups)}

    hostvars = {"watch1": variables(NUMBER), "a": variables(1), "b": variables(2)}
    # One with a vote is known by the inventory.
    voting = {**hostvars, "watch1": variables(3, "pve_probe")}
    assert pveguard_units.cluster_peers(voting, list(voting), "a") == ["a", "b"]
    assert pveguard_units.cluster_peers(hostvars, list(hostvars), "a") == ["a", "b"]
    assert pveguard_units.cluster_peers(hostvars, list(hostvars), "watch1") == ["watch1", "a", "b"]
    facts_of = {name: value["pveguard_node"]["node"] for name, value in hostvars.items()}
    assert write_amplification.measuring_hosts(facts_of) == ["a"]


def test_members_with_the_ids_that_probes_once_had_are_counted_and_waited_for() -> None:
    listed = [{"name": f"pve{n}", "node_id": 998 + n, "links": [f"10.0.0.{n}"]} for n in range(1, 4)]
    text = corosync_edit.render_new("c", listed, config_version=4)
    hosts = {}
    for each in listed:
        hosts[each["name"]] = one = facts(text, hostname=each["name"])
        one["corosync"].update(node_id=each["node_id"], running=True, live_member_ids=[999, 1000])
        one["pmxcfs"].update(mode="cluster", quorate=True, mounted=True)
    found = report_table._cluster(hosts["pve2"], None)
    assert (found["members"], found["live"], found["probe"]) == (3, 2, False)
    texts = [each.text for each in node_findings._corosync(hosts["pve2"])]
    assert any("1 of 3 members of c are not up" in each for each in texts) and not any("probe" in each for each in texts)
    hostvars = {host: {"pveguard_node": {"node": one}} for host, one in hosts.items()}
    assert pveguard_units.cluster_peers(hostvars, list(hosts), "pve1") == ["pve1", "pve2", "pve3"]
    assert write_amplification.measuring_hosts({"pve2": hosts["pve2"]}) == ["pve2"]
    (cluster,) = corosync_compare.compare({"pve1": hosts["pve1"], "pve2": None, "pve3": hosts["pve3"]})
    assert all("probe" not in each["seen"] for each in cluster["findings"])


def test_the_report_counts_members_and_marks_the_probe() -> None:
    node = facts(conf(2, probe_votes=0))
    node["corosync"].update(node_id=1, live_member_ids=[1, 2])
    found = report_table._cluster(node, None)
    assert (found["members"], found["live"], found["probe"]) == (2, 2, False)
    node["corosync"].update(node_id=NUMBER)
    assert report_table._cluster(node, None)["probe"] is True
    assert report_table._cluster(facts(), {"action": "probe"})["probe"] is True


def test_a_probe_that_has_left_is_not_told_to_protect_what_it_stores() -> None:
    node = facts(
        units={}, ram_state={"state": "absent"}, login={"authorized_keys_depends_on_pve": False}, resolved_address="10.0.0.9"
    )
    node["packages"]["pve-cluster"] = "9.0"
    node["pmxcfs"].update(mounted=True, mode="local", quorate=True)
    texts = [each.text for each in assess.findings(node)]
    assert any("database is on disk" in text for text in texts)
    assert not any("database is on disk" in each.text for each in assess.findings(node, {"action": "probe"}))
