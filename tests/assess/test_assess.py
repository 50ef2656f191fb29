"""The first run on nodes that already work says what is wrong, and what would change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.findings import GOOD, PROBLEM, WARNING
from ansible.module_utils.pveguard.cluster import assess, corosync_compare
from ansible.module_utils.pveguard.cluster.assess import (
    across,
    findings,
    render,
    render_clusters,
)
from ansible.module_utils.pveguard.ha import ha_changes
from ansible.module_utils.pveguard.state import ram_changes

from tests.corosync import cluster_facts
from tests.findings import finding
from tests.loading import load_filters
from tests.write_report import sample

HA_UNITS = ("pve-ha-crm.service", "pve-ha-lrm.service", "watchdog-mux.service")


def node(**over: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "hostname": "a",
        "resolved_address": "10.0.0.1",
        "kernel": "6.14",
        "machine_codename": "trixie",
        "packages": {"pve-cluster": "9.1.6", "pve-manager": "9.1.4", "corosync": "3.1.9", "pve-ha-manager": "5.1"},
        "units": {unit: {"load": "loaded", "active": "active", "enabled": "enabled"} for unit in HA_UNITS},
        "pmxcfs": {
            "mounted": True, "mode": "cluster", "quorate": True, "guests": [100], "has_corosync_conf": True,
            "database_bytes": 40960, "error": None,
        },
        "corosync": {
            "running": True, "cluster_name": "c", "host": {"config_version": 3}, "cluster": {"config_version": 3},
            "copies_equal": True, "running_config_version": 3, "members": [{}, {}, {}], "live_member_ids": [1, 2, 3],
            "quorate": True, "two_node": False, "qdevice": False,
        },
        "ha": {"installed": True, "resources": [], "watchdog_active": False},
        "ram_state": {"state": "absent"},
        "login": {"authorized_keys_depends_on_pve": True},
    }  # fmt: skip
    base = copy.deepcopy(base)
    for key, value in over.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base[key], dict) else value
    return base


def texts(level: str, facts: dict[str, Any]) -> str:
    return "\n".join(finding.sentence for finding in findings(facts) if finding.severity == level)


ADOPT = {"action": "adopt", "reason": ""}


def changes(facts: dict[str, Any], plan: dict[str, Any], ha: str = "auto", ram_state: bool = True) -> list[str]:
    """What the roles say that a run would change, of a host with these switches."""
    parts = [ha_changes.changes, ram_changes.changes]
    return assess.changes(facts, plan, {"ha": ha, "ram_state": ram_state}, parts)


def test_a_stock_member_would_lose_ha_and_move_to_ram() -> None:
    todo = "\n".join(changes(node(), ADOPT))
    assert "pve-ha-lrm.service" in todo and "/var/lib/pve-cluster to RAM" in todo and "authorized_keys2" in todo
    assert texts(PROBLEM, node()) == ""
    assert "36 transactions a minute" in texts(WARNING, node())


@pytest.mark.parametrize("text", ["3", "three", "", [], {}, None, 1.5])
def test_a_version_that_is_no_number_does_not_end_it(text: Any) -> None:
    """Facts may be text by the time that they are judged; what is no number is not known."""
    same = findings(node(corosync={"running_config_version": text}))
    assert not [each for each in same if each.id == "corosync-running-differs"]
    both = node(corosync={"copies_equal": False, "host": {"config_version": text}, "cluster": {"config_version": 2}})
    wanted = "corosync-host-copy-newer" if text == "3" else "corosync-copies-differ"
    assert finding(findings(both), wanted).severity == PROBLEM
    differs = finding(findings(node(corosync={"running_config_version": "2"})), "corosync-running-differs")
    assert differs.text == "corosync runs config_version 2, the file has 3"


@pytest.mark.parametrize("lag", ["90", "late", "", None, [], {}])
def test_a_lag_that_is_no_number_does_not_end_it(lag: Any) -> None:
    enabled = {"state": "enabled", "installed": True, "mounted": True, "ready": True, "lag_seconds": lag}
    assert not [each for each in findings(node(ram_state=enabled)) if each.id == "state-save-late"]
    assert finding(findings(node(ram_state={**enabled, "lag_seconds": 90})), "state-save-late").text


def test_switches_are_respected() -> None:
    assert changes(node(), ADOPT, ha="keep", ram_state=False) == []
    left = node(ha={"leftovers": ["ha/manager_status"]})
    for unit in HA_UNITS:
        left["units"][unit] = {"load": "masked", "active": "inactive", "enabled": "masked"}
    assert any("ha/manager_status" in each for each in changes(left, ADOPT))


def test_ha_in_use_keeps_everything() -> None:
    left = findings(node(ha={"resources": ["vm:100"], "unattended": ["vm:100"]}))
    assert any(each.severity == PROBLEM and "nothing recovers them" in each.sentence for each in left)
    back = findings(node(ha={"returned": ["pve-ha-lrm.service"]}))
    assert any("HA was switched off and came back (pve-ha-lrm.service)" in each.sentence for each in back)
    used = node(ha={"resources": ["vm:100"]})
    assert changes(used, ADOPT, ram_state=False) == []
    assert "set ram_state_enabled: false" in "".join(changes(used, ADOPT))
    assert "vm:100" in texts(GOOD, used)


def test_a_protected_node_changes_nothing() -> None:
    masked = {unit: {"load": "masked", "active": "inactive", "enabled": "masked"} for unit in HA_UNITS}
    done = node(units=masked, ram_state={"state": "enabled"})
    assert changes(done, ADOPT) == []
    assert "HA is off" in texts(GOOD, done)


def test_problems_are_named_first() -> None:
    bad = node(
        resolved_address="127.0.1.1",
        pmxcfs={"quorate": False},
        corosync={"copies_equal": False, "cluster": {"config_version": 2}, "live_member_ids": [1]},
    )
    assert [finding.severity for finding in findings(bad)][:3] == [PROBLEM] * 3
    for words in ("127.0.1.1", "no quorum", "config_version 2, /etc/corosync/corosync.conf has 3"):
        assert words in texts(PROBLEM, bad)
    assert "2 of 3 members" in texts(WARNING, bad)


def test_one_look_tells_who_writes_since_boot() -> None:
    units = {"pve-cluster.service": 9000 * 1024, "systemd-journald.service": 1000 * 1024}
    counters = {"league": sample.reading(3000.0, units, 500 * 1024, 20000 * 1024)}
    text = render("a", {**node(), "counters": counters}, {}, [], None)
    assert "  [  ] who writes to nvme0n1: 400 KiB/min over 50 min since boot" in text
    assert "         ≈ 180 KiB/min  cluster file system (pmxcfs) (pve-cluster.service)\n" in text
    assert "10 KiB/min  guests, which are not judged" in text
    assert "who writes" not in render("a", node(), {}, [], None), "of an earlier release, or not looked at"


def test_statistics_are_told_with_what_a_flush_costs() -> None:
    rrd = {"files": 1, "bytes": 1024, "flush_bytes": 1024}
    facts = {"write_diet": {"rrdcached": {"rrd": rrd, "running": {"write_s": 300, "jitter_s": 0}}}}
    told = "  [  ] statistics: 1 file, 1 KiB; a flush of all writes about 1 KiB, every 5 min\n"
    assert told in render("a", {**node(), **facts}, {}, [], None)
    assert "statistics" not in render("a", node(), {}, [], None)


def test_a_starting_node_is_no_problem() -> None:
    starting = node(ram_state={"state": "starting", "reason": "the watcher is being started"})
    assert "being started. Look again" in texts(WARNING, starting) and texts(PROBLEM, starting) == ""


def test_a_join_is_announced_and_a_refusal_too() -> None:
    fresh = node(packages={"pve-cluster": None}, pmxcfs={"mounted": False, "mode": "down", "has_corosync_conf": False})
    todo = changes(fresh, {"action": "join", "cluster": "c", "seed": "b"})
    assert todo[0].startswith("install pve-cluster") and "through b" in todo[1]
    (refused,) = changes(fresh, {"action": "refuse", "reason": "it holds guests"})
    assert "it holds guests" in refused


def test_the_text_names_the_node_and_says_nothing_when_nothing_is_to_do() -> None:
    masked = {unit: {"load": "masked", "active": "inactive", "enabled": "masked"} for unit in HA_UNITS}
    done = node(units=masked, ram_state={"state": "enabled"})
    text = render("a", done, ADOPT, changes(done, ADOPT), None)
    assert text.startswith("a: trixie") and text.endswith("site.yml would change: nothing")


def test_nodes_that_agree_are_one_line() -> None:
    compared = corosync_compare.compare(cluster_facts.healthy())
    assert render_clusters(compared) == [
        "cluster production: 3 of 3 nodes were asked and agree on corosync.conf, its key and the membership"
    ]
    assert across("pve1", compared) == []
    # One member alone says nothing of the others, and a node alone has nobody to agree with.
    assert render_clusters(corosync_compare.compare({"pve1": cluster_facts.node(1)})) == []
    assert render_clusters(corosync_compare.compare(cluster_facts.healthy(1))) == []


def test_nodes_that_differ_are_shown_side_by_side() -> None:
    apart = cluster_facts.node(3, live=(3,), quorate=False, root_version=1500)
    nodes = {
        "pve1.example.com": cluster_facts.node(1, live=(1, 2)),
        "pve2": cluster_facts.node(2, live=(1, 2), authkey="b" * 64),
        "pve3": apart,
    }
    compared = corosync_compare.compare(nodes)
    (text,) = render_clusters(compared)
    assert "root version 1500" in text and "authkey" in text
    (leader, split, key) = across("pve3", compared)
    assert leader.severity == PROBLEM and leader.sentence.startswith("root version 1500, the quorate members have at most 1000: ")
    assert "pve3 sees 3" in split.sentence and "hashes of /etc/corosync/authkey" in key.sentence
    # What the node's own facts say already is not said twice.
    assert not any("alone and without quorum" in each.sentence for each in across("pve3", compared))
    assert [each.sentence for each in across("pve1.example.com", compared)] == [split.sentence, key.sentence]


def test_the_filters_of_the_playbook_compare_the_nodes() -> None:
    module = load_filters("playbooks")
    filters = module.FILTERS
    variables: dict[str, Any] = {"pve3": {"corosync_cluster_name": "production"}}
    for n, key in ((1, "a"), (2, "b")):
        facts = node(**cluster_facts.node(n, authkey=key * 64))
        variables[f"pve{n}"] = {"corosync_cluster_name": "production", "pveguard_node": {"node": facts}}
    text = filters["pveguard_assessment"](variables, list(variables))
    assert text.split("\n\n")[-1].startswith("cluster production:\n") and "pve1: aaaaaaaa; pve2: bbbbbbbb" in text
    told = filters["pveguard_assessments"](variables, list(variables))
    assert told["pve1"]["findings"][0]["text"].startswith("hashes of /etc/corosync/authkey: ")


def test_a_key_that_others_can_read_is_a_problem_that_the_role_mends() -> None:
    exposed = node(corosync={"authkey_exposed": True, "authkey_mode": "0644"})
    assert "authkey has mode 0644" in texts(PROBLEM, exposed) and "authkey.yml" in texts(PROBLEM, exposed)
    assert any("mode 0400" in each for each in changes(exposed, ADOPT))
    closed = node(corosync={"authkey_exposed": False, "authkey_mode": "0400"})
    assert "authkey" not in texts(PROBLEM, closed) and not any("0400" in each for each in changes(closed, ADOPT))


def test_what_is_left_of_a_node_is_a_warning() -> None:
    left = {"name": "pve4", "guests": [], "files": 2, "private_key": True, "authorized_key": False}
    assert "rm -r /etc/pve/nodes/pve4" in texts(WARNING, node(pmxcfs={"left_nodes": [left]}))
