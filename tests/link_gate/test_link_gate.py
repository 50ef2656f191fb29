# SPDX-License-Identifier: Apache-2.0
"""Which pairs are measured, whom a bad link is held against, and the advice on the token."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from ansible.module_utils.pveguard.corosync import token_advice
from ansible.module_utils.pveguard.filters import links as pveguard_links
from ansible.module_utils.pveguard.gates import link_gate
from ansible.module_utils.pveguard.gates.link_gate import Node


def cluster(**actions: str | None) -> dict[str, Node]:
    return {
        name: Node("ring", [f"10.0.0.{number}", f"10.1.0.{number}"], action)
        for number, (name, action) in enumerate(actions.items(), 1)
    }


def peers(pairs: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(pair["peer"] for pair in pairs))


def measured(bad: dict[str, str], nodes: dict[str, Node]) -> dict[str, dict[str, Any]]:
    """A result for every node that is to join; ``bad``: 'a-b' -> reason."""
    results = {}
    for host, node in nodes.items():
        if node.action == "adopt":
            continue
        links = []
        for pair in link_gate.pairs(nodes, host):
            reason = bad.get(f"{host}-{pair['peer']}", "ok")
            verdict = "pass" if reason == "ok" else "fail"
            message = f"{host}: link {pair['link']} to {pair['peer']}: {reason}"
            links.append({**pair, "verdict": verdict, "reason": reason, "reasons": [reason], "message": message})
        results[host] = {"verdict": "fail", "reason": "x", "message": "m", "links": links, "rtt_p99_ms": 1.0}
    return results


def both(*edges: str, reason: str = "rtt") -> dict[str, str]:
    found = {}
    for edge in edges:
        one, other = edge.split("-")
        found |= {f"{one}-{other}": reason, f"{other}-{one}": reason}
    return found


def refused(nodes: dict[str, Node], bad: dict[str, str]) -> set[str]:
    results = link_gate.settle(nodes, measured(bad, nodes))
    return {host for host, result in results.items() if result["verdict"] == "fail"}


def test_pairs_touch_the_host_on_every_link() -> None:
    nodes = cluster(a="adopt", b="join", c="join") | {"alone": Node(None), "other": Node("x", ["10.9.0.1"], "join")}
    assert link_gate.pairs(nodes, "b") == [
        {"peer": "a", "link": 0, "source": "10.0.0.2", "target": "10.0.0.1"},
        {"peer": "a", "link": 1, "source": "10.1.0.2", "target": "10.1.0.1"},
        {"peer": "c", "link": 0, "source": "10.0.0.2", "target": "10.0.0.3"},
        {"peer": "c", "link": 1, "source": "10.1.0.2", "target": "10.1.0.3"},
    ]
    assert link_gate.pairs(nodes, "alone") == link_gate.pairs(nodes, "other") == []


def test_hosts_that_do_not_join_are_no_peers() -> None:
    assert peers(link_gate.pairs(cluster(a="bootstrap", b="refuse", c="join", d=None), "a")) == ["c"]
    assert peers(link_gate.pairs(cluster(a=None, b=None), "a")) == ["b"], "without a plan all of the cluster"


def test_the_sample_is_deterministic_and_prefers_members() -> None:
    eight = cluster(**{f"n{number}": "join" for number in range(8)})
    assert len(peers(link_gate.pairs(eight, "n0"))) == 7
    many = cluster(**{f"n{number}": "adopt" if number < 3 else "join" for number in range(40)})
    first = link_gate.pairs(many, "n39")
    assert first == link_gate.pairs(many, "n39") and len(peers(first)) == 7
    assert {"n0", "n1", "n2"} <= set(peers(first))
    samples = {tuple(peers(link_gate.pairs(many, f"n{number}"))) for number in range(3, 40)}
    assert len(samples) > 20, "each node has a sample of its own"
    shuffled = dict(reversed(many.items()))
    assert set(peers(link_gate.pairs(shuffled, "n39"))) == set(peers(first))


def test_the_node_with_the_bad_cable_is_refused_alone() -> None:
    for culprit in "abc":
        nodes = cluster(a="bootstrap", b="join", c="join")
        bad = both(*(f"{culprit}-{other}" for other in "abc" if other != culprit))
        assert refused(nodes, bad) == {culprit}


def test_the_other_ends_are_warned_and_keep_their_figures() -> None:
    nodes = cluster(a="bootstrap", b="join", c="join")
    results = link_gate.settle(nodes, measured(both("a-c", "b-c"), nodes))
    assert (results["c"]["verdict"], results["c"]["reason"]) == ("fail", "rtt")
    assert (results["a"]["verdict"], results["a"]["reason"]) == ("warn", "peer_refused")
    assert "c is refused for it" in results["a"]["message"] and results["a"]["rtt_p99_ms"] == 1.0
    assert [link["verdict"] for link in results["a"]["links"]] == ["pass", "pass", "warn", "warn"]


def test_a_tie_keeps_the_founder_and_says_so() -> None:
    nodes = cluster(b="join", a="bootstrap")
    results = link_gate.settle(nodes, measured(both("a-b"), nodes))
    assert results["b"]["verdict"] == "fail" and "Both ends of this link" in results["b"]["message"]
    assert results["a"]["verdict"] == "warn"
    assert refused(cluster(a="join", b="join"), both("a-b")) == {"b"}


def test_a_member_is_never_refused_for_a_joining_node() -> None:
    nodes = cluster(a="adopt", b="adopt", c="join", d="join")
    assert refused(nodes, {"c-a": "rtt"}) == {"c"}
    assert refused(nodes, {"c-a": "rtt", "d-a": "rtt"}) == {"c", "d"}, "although a has more bad links than each"
    results = measured({}, nodes)
    # Enforced for members too, a has measured: what it sees of c is held against c.
    results["a"] = {"verdict": "fail", "message": "m", "links": [_entry("a", "c")]}
    settled = link_gate.settle(nodes, results)
    assert settled["c"]["verdict"] == "fail" and settled["c"]["reason"] == "rtt"
    assert settled["a"]["verdict"] == "warn"


def _entry(host: str, peer: str) -> dict[str, Any]:
    return {"peer": peer, "link": 0, "verdict": "fail", "reason": "rtt", "message": f"{host} to {peer} is slow"}


def test_what_lies_at_the_node_itself() -> None:
    nodes = cluster(a="bootstrap", b="join", c="join")
    bad = both("a-b", "a-c", reason="no_answer") | {"a-b": "address_missing", "a-c": "address_missing"}
    assert refused(nodes, bad) == {"a"}, "the others cannot reach an address that it does not have"


def test_after_settling_no_bad_link_is_left_in_the_ring() -> None:
    """All 64 sets of bad links of four nodes: enough are refused, and never one without a bad link."""
    names = "abcd"
    every = [f"{one}-{other}" for one, other in itertools.combinations(names, 2)]
    for count in range(len(every) + 1):
        for edges in itertools.combinations(every, count):
            nodes = cluster(a="bootstrap", b="join", c="join", d="join")
            out = refused(nodes, both(*edges))
            assert all(set(edge.split("-")) & out for edge in edges)
            assert all(any(name in edge for edge in edges) for name in out)


def test_filters_with_hostvars() -> None:
    def variables(number: int, **rest: Any) -> dict[str, Any]:
        return {"corosync_cluster_name": "ring", "corosync_links": [f"10.0.0.{number}"], **rest}

    hostvars: dict[str, Any] = {
        "a": variables(1, pveguard_plan={"action": "bootstrap"}),
        "b": variables(2, pveguard_plan={"action": "join"}),
        "alone": {},
    }
    assert pveguard_links.link_pairs(hostvars, "b", 7) == [
        {"peer": "a", "link": 0, "source": "10.0.0.2", "target": "10.0.0.1"}
    ]
    hostvars["b"]["__link_gate_measured"] = {"skipped": True, "changed": False}
    shape = set(pveguard_links.link_result(hostvars, "alone"))
    for host, check, reason in (("alone", False, "no_links"), ("b", True, "check_mode"), ("b", False, "not_asked")):
        result = pveguard_links.link_result(hostvars, host, check)
        assert (result["verdict"], result["reason"]) == ("not measured", reason)
        assert set(result) == shape
    entry = {**_entry("b", "a"), "message": "b to a is slow"}
    hostvars["b"]["__link_gate_measured"] = {
        **dict.fromkeys(pveguard_links._RESULT_KEYS), "links": [entry], "verdict": "fail", "changed": False
    }  # fmt: skip
    result = pveguard_links.link_result(hostvars, "b")
    assert result["verdict"] == "fail" and "b to a is slow" in result["message"]
    assert set(result) == shape
    del hostvars["a"]
    assert pveguard_links.link_result({"a": variables(1)}, "a")["reason"] == "no_peers"


# --- token ----------------------------------------------------------------------------------------------------------


def test_effective_token_is_that_of_corosync_conf_5() -> None:
    assert [token_advice.effective_ms(3000, nodes) for nodes in (1, 2, 3, 4, 10)] == [3000, 3000, 3650, 4300, 8200]
    assert token_advice.effective_ms(1000, 5, 125) == 1375


def test_a_sound_lan_with_ssds_is_safe() -> None:
    advice = token_advice.advise(3, 0.4, {"a": 2.0, "b": 3.0, "c": 2.5})
    assert advice["verdict"] == "pass" and advice["effective_ms"] == 3650
    assert advice["round_ms"] == pytest.approx(8.7) and advice["needed_ms"] == pytest.approx(36.54)
    assert advice["advised_token_ms"] == 3000, "never below corosync's default"


def test_a_slow_disk_makes_the_default_unsafe() -> None:
    advice = token_advice.advise(3, 5, {"a": 10, "b": 10, "c": 1200})
    assert advice["verdict"] == "fail" and advice["needed_ms"] > 3650
    assert f"set token to {advice['advised_token_ms']}" in advice["message"]


def test_what_is_advised_is_safe() -> None:
    for nodes, rtt, disk, coefficient in itertools.product((1, 2, 3, 8, 50), (0.2, 5, 40), (1, 80, 900), (0, 125, 650)):
        disks = dict.fromkeys(map(str, range(nodes)), float(disk))
        first = token_advice.advise(nodes, rtt, disks, coefficient_ms=coefficient)
        again = token_advice.advise(
            nodes, rtt, disks, token_ms=first["advised_token_ms"], coefficient_ms=coefficient
        )
        assert again["verdict"] == "pass" and again["advised_token_ms"] == first["advised_token_ms"]


def test_tight_is_a_warning() -> None:
    advice = token_advice.advise(2, 0, {"a": 300, "b": 300})
    assert advice["needed_ms"] == pytest.approx(2520) and advice["verdict"] == "warn"
    assert advice["advised_token_ms"] == 3400


def test_what_was_not_measured() -> None:
    assert token_advice.advise(3, None, {})["verdict"] == "unknown"
    partly = token_advice.advise(3, 1, {"a": 10.0, "b": None, "c": 20.0})
    assert partly["fsync_p99_ms_sum"] == 50.0 and partly["fsync_measured"] == 2
    none = token_advice.advise(3, 1, {"a": None})
    assert none["fsync_p99_ms_sum"] is None and "no disk was measured" in none["message"]


CONF = "totem {\n  version: 2\n  cluster_name: ring\n  config_version: 3\n  token: 4000\n  token_coefficient: 125\n}\n"


def test_token_filter() -> None:
    def variables(action: str, rtt: float | None, fsync: float | None, **rest: Any) -> dict[str, Any]:
        links = [] if rtt is None else [{"reason": "ok", "rtt_p99_ms": rtt, "load": {"rtt_p99_ms": rtt * 2}}]
        return {
            "corosync_cluster_name": "ring",
            "pveguard_plan": {"action": action},
            "link_gate_result": {"verdict": "pass", "links": links},
            "fsync_gate_result": {} if fsync is None else {"p99_ms": fsync},
            **rest,
        }

    new: dict[str, Any] = {"a": variables("bootstrap", 1.0, 5.0), "b": variables("join", 2.0, 7.0), "alone": {}}
    (advice,) = pveguard_links.token(new, list(new)).values()
    assert (advice["nodes"], advice["rtt_p99_ms"], advice["fsync_p99_ms_sum"]) == (2, 4.0, 12.0)
    assert advice["effective_ms"] == 3000
    # What pveperf's loop waits for is no data.
    new["b"]["fsync_gate_result"]["methods"] = {"pveperf": {"p99_ms": 7.0}, "fdatasync": {"p99_ms": 30.0}}
    assert pveguard_links.token(new, list(new))["ring"]["fsync_p99_ms_sum"] == 35.0
    new["b"]["link_gate_result"]["verdict"] = "fail"
    assert pveguard_links.token(new, list(new))["ring"]["nodes"] == 1
    members = [{"id": number} for number in (1, 2, 3)]
    copy = {"config_version": 3, "text": CONF}
    corosync = {"cluster_name": "ring", "cluster": copy, "members": members}
    old: dict[str, Any] = {
        "a": variables("adopt", None, None, pveguard_node={"node": {"corosync": corosync}}),
        "d": variables("join", 1.0, 5.0),
    }
    advice = pveguard_links.token(old, list(old))["ring"]
    assert advice["nodes"] == 4, "two members are not in the inventory"
    assert advice["effective_ms"] == 4000 + 2 * 125
    old["d"]["corosync_token"] = 6000
    assert pveguard_links.token(old, list(old))["ring"]["effective_ms"] == 6250
    # 0 stands for the default, in the inventory, also as text, and in the file.
    for wish in (0, "0", None):
        old["d"]["corosync_token"] = wish
        corosync["cluster"] = {"config_version": 3, "text": CONF.replace("token: 4000", "token: 0")}
        assert pveguard_links.token(old, list(old))["ring"]["effective_ms"] == 3250
