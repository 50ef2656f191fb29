"""Who founds, who joins, who stays, who is refused."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.pveguard.cluster.plan import cluster_plan, live_cluster


def node(cluster: str | None = None, quorate: bool = True, **pmxcfs: Any) -> dict[str, Any]:
    copy = {"config_version": 3} if cluster else None
    held = {"guests": [], "storage": False, "users": False, "has_corosync_conf": bool(cluster), **pmxcfs}
    return {
        "corosync": {"host": copy, "cluster": copy, "cluster_name": cluster, "quorate": quorate and bool(cluster)},
        "pmxcfs": held,
    }


def plan(nodes: dict[str, Any], play: list[str] | None = None, cluster: str | None = "c", bootstrap: str | None = None) -> Any:
    hosts = {name: {"cluster": cluster, "node": value} for name, value in nodes.items()}
    return cluster_plan(hosts, play if play is not None else list(nodes), bootstrap)


def actions(plans: Any) -> dict[str, str]:
    return {host: entry["action"] for host, entry in plans.items()}


def test_fresh_nodes_found_one_cluster() -> None:
    plans = plan({"a": node(), "b": node(), "c": node()})
    assert actions(plans) == {"a": "bootstrap", "b": "join", "c": "join"}
    assert plans["b"]["seed"] == "a"


def test_the_node_with_guests_founds() -> None:
    plans = plan({"a": node(), "b": node(guests=[100])})
    assert actions(plans) == {"a": "join", "b": "bootstrap"}
    assert plans["a"]["seed"] == "b"


def test_two_nodes_with_content_are_refused_with_all_named() -> None:
    plans = plan({"a": node(guests=[100]), "b": node(storage=True), "c": node()})
    assert set(actions(plans).values()) == {"refuse"}
    assert "a holds guests 100" in plans["c"]["reason"] and "b holds storage" in plans["c"]["reason"]


def test_join_over_content_is_refused_and_the_others_join() -> None:
    plans = plan({"a": node("c"), "b": node(guests=[101, 102]), "c": node()})
    assert actions(plans) == {"a": "adopt", "b": "refuse", "c": "join"}
    assert "guests 101, 102" in plans["b"]["reason"]


def test_an_unheard_host_prevents_a_second_cluster() -> None:
    plans = plan({"a": None, "b": node(), "c": node()}, play=["b", "c"])
    assert set(actions(plans).values()) == {"refuse"}
    assert "corosync_bootstrap=b" in plans["b"]["reason"]
    assert actions(plan({"a": None, "b": node()}, play=["b"], bootstrap="b")) == {"a": "refuse", "b": "bootstrap"}


def test_bootstrap_names_a_host_that_is_gone() -> None:
    plans = plan({"a": None, "b": node()}, play=["b"], bootstrap="a")
    assert actions(plans)["b"] == "refuse"


def test_a_gated_out_host_does_not_found() -> None:
    plans = plan({"a": node(), "b": node(), "c": node()}, play=["b", "c"])
    assert actions(plans) == {"a": "refuse", "b": "bootstrap", "c": "join"}


def test_members_without_quorum_take_nobody() -> None:
    plans = plan({"a": node("c", quorate=False), "b": node()})
    assert actions(plans) == {"a": "adopt", "b": "refuse"}
    assert "quorate" in plans["b"]["reason"]


def test_an_interrupted_join_is_taken_up_again() -> None:
    lone = node("c", quorate=False)
    lone["corosync"] |= {"running": True, "live_member_ids": [1], "members": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    plans = plan({"a": lone, "b": node()})
    assert actions(plans) == {"a": "adopt", "b": "join"} and plans["b"]["seed"] == "a"
    # Another member that is away may hold newer state: that is for the operator.
    lone["corosync"]["members"].append({"id": 3, "name": "x"})
    assert actions(plan({"a": lone, "b": node()}))["b"] == "refuse"


def test_a_quorate_member_is_the_seed() -> None:
    plans = plan({"a": node("c", quorate=False), "b": node("c"), "x": node()})
    assert plans["x"]["seed"] == "b"


def test_two_live_clusters_in_one_group_are_refused() -> None:
    plans = plan({"a": node("c"), "b": node("other"), "x": node()})
    assert set(actions(plans).values()) == {"refuse"}
    assert "b is in other" in plans["x"]["reason"]


def test_hosts_without_a_cluster_stay_as_they_are() -> None:
    plans = plan({"a": node(guests=[1]), "b": node("old"), "c": node("old")}, cluster=None)
    assert actions(plans) == {"a": "standalone", "b": "adopt", "c": "adopt"}
    assert plans["b"]["members"] == ["b", "c"]


def test_debians_example_configuration_is_no_membership() -> None:
    example = {"corosync": {"host": {"config_version": None}, "cluster": None, "cluster_name": "debian"}, "pmxcfs": {}}
    assert live_cluster(example) is None
    assert live_cluster(None) is None


def test_a_second_cluster_of_the_inventory_is_planned_by_itself() -> None:
    hosts = {
        "a": {"cluster": "one", "node": node("one")},
        "b": {"cluster": "two", "node": node()},
        "c": {"cluster": "one", "node": node()},
    }
    plans = cluster_plan(hosts, ["a", "b", "c"])
    assert actions(plans) == {"a": "adopt", "b": "bootstrap", "c": "join"}
    assert plans["c"]["seed"] == "a"


def test_a_host_in_the_inventory_by_its_address_is_the_node_of_its_own_name() -> None:
    founder = {**node("c", quorate=False), "hostname": "pve1"}
    members = [{"id": 1, "name": "pve1", "votes": 1}, {"id": 2, "name": "pve2", "votes": 1}]
    founder["corosync"].update(running=True, live_member_ids=[1], members=members)
    for second in ("192.0.2.2", "2001:db8::2", "other.example.org"):
        plans = plan({"192.0.2.1": founder, second: {**node(), "hostname": "pve2"}})
        assert actions(plans) == {"192.0.2.1": "adopt", second: "join"}, second
        assert plans[second]["seed"] == "192.0.2.1"
    # Another host is not the one that is waited for.
    assert actions(plan({"192.0.2.1": founder, "pve2": {**node(), "hostname": "pve3"}}))["pve2"] == "refuse"


def test_hosts_of_one_name_do_not_join_one_cluster() -> None:
    nodes = {f"192.0.2.{n}": {**node(), "hostname": "debian" if n < 3 else f"pve{n}.example.org"} for n in (1, 2, 3, 4)}
    plans = plan(nodes)
    assert actions(plans) == {"192.0.2.1": "refuse", "192.0.2.2": "refuse", "192.0.2.3": "bootstrap", "192.0.2.4": "join"}
    assert "192.0.2.1 and 192.0.2.2 are both called debian" in plans["192.0.2.1"]["reason"]
    # A member keeps its place.
    plans = plan({"pve1": {**node("c"), "hostname": "pve1"}, "192.0.2.9": {**node(), "hostname": "pve1.example.org"}})
    assert actions(plans) == {"pve1": "adopt", "192.0.2.9": "refuse"}
