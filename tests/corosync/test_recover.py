# SPDX-License-Identifier: Apache-2.0
"""Each disorder of a cluster has its step, and no plan does what would lose a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ansible.module_utils.pveguard.cluster import recovery_plan
from ansible.module_utils.pveguard.formats import corosync_conf
from hypothesis import given, settings
from hypothesis import strategies as st

from .cluster_facts import NAME, conf, healthy, node

Facts = Mapping[str, dict[str, Any] | None]
BROKEN = "totem {\n  version\n"


def one(nodes: Facts, **more: Any) -> dict[str, Any]:
    (found,) = recovery_plan.plan(nodes, dict.fromkeys(nodes, NAME), **more)
    return found


def words(nodes: Facts, **more: Any) -> list[str]:
    return [step["word"] for step in one(nodes, **more)["steps"]]


def first(nodes: Facts, **more: Any) -> dict[str, Any]:
    step: dict[str, Any] = one(nodes, **more)["steps"][0]
    assert step["what"] and step["why"] and step["command"] and step["actions"]
    return step


def written(step: Mapping[str, Any]) -> int:
    (version,) = {corosync_conf.parse(action["text"]).config_version for action in step["actions"]}
    assert version
    return version


def still(nodes: Facts, **more: Any) -> str:
    found = one(nodes, **more)
    assert found["steps"] == [], "nothing is done"
    assert found["open"] and not found["healthy"]
    return "\n".join(found["open"])


def down(number: int, **more: Any) -> dict[str, Any]:
    """A node whose daemon does not run, so /etc/pve is not there."""
    pmxcfs = {"has_corosync_conf": True, **more.pop("pmxcfs", {})}
    return node(number, None, more.pop("host", ""), mode="down", pmxcfs=pmxcfs, **more)


# With quorum


def test_a_healthy_cluster_has_no_step() -> None:
    found = one(healthy())
    assert found["healthy"] and found["steps"] == [] and found["open"] == []
    assert one(healthy() | {"pve3": None})["steps"] == [], "a node that was not asked is no reason to change another"
    assert recovery_plan.plan({"pve1": None}) == []


def test_equal_version_with_different_text_gets_one_with_a_higher_version() -> None:
    nodes = healthy() | {"pve2": node(2, conf(), conf(note="by hand"))}
    step = first(nodes)
    assert words(nodes) == [f"publish:{NAME}"] and written(step) == 6
    assert "/etc/corosync/corosync.conf of pve2: 5 " in step["lost"]
    (action,) = step["actions"]
    assert (action["host"], action["step"], action["live_member_ids"]) == ("pve1", "publish", [1, 2, 3])


def test_a_newer_host_copy_is_outdone() -> None:
    nodes = healthy() | {"pve3": node(3, conf(), conf(8, note="by hand"))}
    assert words(nodes) == [f"publish:{NAME}"] and written(first(nodes)) == 9


def test_an_older_host_copy_and_a_missing_one() -> None:
    for host in (conf(4), None):
        nodes = healthy() | {"pve3": node(3, conf(), host)}
        assert words(nodes)[0] == f"publish:{NAME}" and written(first(nodes)) == 6, "a daemon copies what is written"


def test_what_all_run_by_hand_is_brought_to_the_cluster() -> None:
    newer = conf(7, note="edited alike")
    nodes = {f"pve{n}": node(n, conf(), newer, runs=7) for n in (1, 2, 3)}
    step = first(nodes)
    assert step["kind"] == "publish" and written(step) == 8 and "edited alike" in step["actions"][0]["text"]


def test_a_version_that_runs_and_is_in_no_file_is_outdone() -> None:
    nodes = {f"pve{n}": node(n, runs=11) for n in (1, 2, 3)}
    assert words(nodes) == [f"publish:{NAME}"] and written(first(nodes)) == 12


def test_a_lagging_cmap_is_reloaded_and_then_restarted() -> None:
    nodes = healthy() | {"pve2": node(2, runs=4)}
    step = first(nodes)
    assert words(nodes) == [f"reload:{NAME}"] and step["command"] == "on pve2: corosync-cfgtool -R"
    done = [f"reload:{NAME}"]
    assert words(nodes, done=done) == ["restart:pve2"]
    assert "did not help" in still(nodes, done=[*done, "restart:pve2"])
    nodes["pve3"] = node(3, packages={"corosync": "3.1.7", "pve-cluster": "9"})
    assert "different versions of corosync (3.1.7, 3.1.9)" in still(nodes)
    armed = healthy() | {"pve2": node(2, runs=4, ha={"resources": ["vm:100"]})}
    assert "HA resources (vm:100)" in still(armed, done=done)


def test_corosync_that_cannot_start_gets_the_text_of_the_others_first() -> None:
    nodes = {n: node(int(n[-1]), live=(1, 2)) for n in ("pve1", "pve2")}
    nodes["pve3"] = node(3, conf(), BROKEN, running=False)
    assert words(nodes) == ["host_copy:pve3", "start:pve3"]
    step = first(nodes)
    assert step["actions"][0]["text"] == conf() and step["actions"][0]["host"] == "pve3"
    assert "line 2" in step["why"]
    # Its own newer version is outdone on the others first.
    nodes["pve3"] = node(3, conf(), conf(40), running=False)
    assert words(nodes) == [f"publish:{NAME}", "host_copy:pve3", "start:pve3"] and written(first(nodes)) == 41
    nodes["pve3"] = node(3, running=False, authkey="b" * 64)
    assert "authkey is another one" in still(nodes)
    nodes["pve3"] = node(3, running=False, ha={"watchdog_active": True})
    assert "watchdog" in still(nodes)


def test_a_node_with_the_same_text_and_no_way_to_the_others() -> None:
    nodes = {n: node(int(n[-1]), live=(1, 2)) for n in ("pve1", "pve2")}
    nodes["pve3"] = node(3, live=(3,), quorate=False)
    assert "repair the links" in still(nodes)


def test_a_false_leader_is_stopped_before_it_meets_the_others() -> None:
    nodes = {n: node(int(n[-1]), live=(1, 2), root_version=900) for n in ("pve1", "pve2")}
    nodes["pve3"] = node(3, live=(3,), quorate=False, root_version=1000)
    found = one(nodes)
    (step,) = found["steps"]
    assert step["word"] == "isolate:pve3"
    assert "root version 1000, the running members have at most 900 (pve1, pve2)" in step["why"]
    assert "repair the links" in found["open"][0]
    # With its Corosync down nothing keeps it apart but that: stop, start, fetch.
    nodes["pve3"] = node(3, running=False, root_version=1000)
    assert words(nodes) == ["isolate:pve3", "start:pve3", "resync:pve3"]
    # Its replica on disk counts as well.
    nodes["pve3"] = node(3, running=False, root_version=100, ram_state={"saved_root_version": 1000})
    assert words(nodes)[0] == "isolate:pve3"
    # One that is behind comes back by itself.
    nodes["pve3"] = node(3, running=False, root_version=800)
    assert words(nodes) == ["start:pve3"]
    # Already stopped: it must fetch, never start on what it has.
    nodes = {f"pve{n}": node(n, root_version=900) for n in (1, 2)} | {"pve3": down(3, root_version=1000)}
    assert words(nodes) == ["resync:pve3"] and "it is saved before" in first(nodes)["lost"]


def test_a_lost_database_is_fetched_from_the_members() -> None:
    def third(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {f"pve{n}": node(n) for n in (1, 2)} | {"pve3": facts}

    missing = down(3, root_version=None, pmxcfs={"database_bytes": None})
    assert words(third(missing)) == ["resync:pve3"] and "database is lost" in first(third(missing))["why"]
    # Empty and alone: stopped first.
    empty = node(3, None, mode="local", root_version=3)
    assert words(third(empty)) == ["isolate:pve3", "resync:pve3"]
    # Damaged: nobody can tell its version.
    assert words(third(down(3, root_version=None))) == ["resync:pve3"]
    # Whole and behind: it is only started.
    assert words(third(down(3, root_version=900))) == ["daemon:pve3"]
    # The same version with another content would be decided by the clock.
    assert words(third(down(3, tree="other"))) == ["resync:pve3"]
    # With RAM state and its mount away there is a text in the place of the database; the unit restores the replica. Once a
    # database was removed it restores nothing.
    ram = down(3, root_version=None, ram_state={"saved_root_version": 900})
    assert words(third(ram)) == ["daemon:pve3"]
    ram["pmxcfs"]["database_bytes"] = None
    assert words(third(ram)) == ["resync:pve3"]


def test_members_with_different_content_are_left_to_a_person() -> None:
    nodes = healthy() | {"pve3": node(3, tree="other")}
    assert "-e ram_state_restore_resync=true" in still(nodes)


def test_two_sides_with_quorum_are_left_to_a_person() -> None:
    nodes = {"pve1": node(1, live=(1,), root_version=7), "pve2": node(2, conf(6), conf(6), live=(2,), runs=6)}
    text = still(nodes)
    assert "pve1 sees 1, root version 7" in text and "systemctl stop pve-cluster" in text


def test_views_that_overlap_are_looked_at_again() -> None:
    nodes = healthy() | {"pve3": node(3, live=(2, 3), quorate=False)}
    assert "look again" in still(nodes)


def test_a_host_of_another_cluster_is_left_alone() -> None:
    other = conf(9, name="other")
    found = one(healthy() | {"pve3": node(3, other, other)})
    assert found["steps"] == [] and "'other'" in found["open"][0]


def test_a_reinstalled_node_does_not_come_back_as_it_is() -> None:
    nodes = {f"pve{n}": node(n, live=(1, 2)) for n in (1, 2)}
    nodes["pve3"] = node(3, None, None, running=False, mode="local", authkey=None)
    assert "playbooks/join.yml" in still(nodes)
    for n in (1, 2):
        nodes[f"pve{n}"] = node(n, running=False)
    assert words(nodes) == ["start:pve1", "start:pve2"]


def test_a_person_decides_between_equal_versions_and_may_name_one() -> None:
    nodes = {f"pve{n}": node(n, conf(note=str(n)), conf(note=str(n)), live=(1, 2, 3)) for n in (1, 2, 3)}
    assert "recover_survivor=NODE" in still(nodes)
    step = first(nodes, choice="pve2")
    assert step["node"] == "pve2" and written(step) == 6 and "# 2" in step["actions"][0]["text"]
    nodes["pve2"] = node(2, conf(), BROKEN)
    assert "cannot be used" in still(nodes, choice="pve2:host")


# Without quorum


def test_no_corosync_starts_because_of_a_bad_text_on_every_node() -> None:
    nodes = {f"pve{n}": node(n, conf(), BROKEN, running=False) for n in (1, 2, 3)}
    assert words(nodes) == [f"host_copies:{NAME}", "start:pve1", "start:pve2", "start:pve3"]
    step = first(nodes)
    assert [action["host"] for action in step["actions"]] == ["pve1", "pve2", "pve3"] and written(step) == 5
    assert all(action["step"] == "host_copy" for action in step["actions"])


def test_the_node_that_will_lead_is_named_and_started_first() -> None:
    nodes = {f"pve{n}": node(n, running=False, root_version=1000 + n) for n in (1, 2, 3)}
    assert words(nodes) == ["start:pve3", "start:pve2", "start:pve1"]
    assert "the state of pve3" in first(nodes)["lost"] and "pve1: 1001" in first(nodes)["lost"]
    nodes = {f"pve{n}": node(n, running=False, tree=str(n)) for n in (1, 2, 3)}
    assert "the clock decides" in still(nodes)


def lone(**more: Any) -> dict[str, dict[str, Any] | None]:
    return {"pve1": node(1, live=(1,), quorate=False, **more), "pve2": None, "pve3": None}


def test_a_lone_node_gets_quorum_only_by_the_word_that_says_so() -> None:
    # Its copy is one of three: a person says that the others hold nothing newer only by confirming.
    step = first(lone())
    assert words(lone()) == ["quorum:pve1"]
    assert "CONFIRM ONLY IF pve2, pve3 ARE SWITCHED OFF" in step["why"]
    (action,) = step["actions"]
    assert action["votes"] == 1 and action["others"] == ["10.0.0.2", "10.0.0.3", "10.1.0.2", "10.1.0.3"]


def test_quorum_is_never_forced_beside_a_node_that_answers() -> None:
    apart = {f"pve{n}": node(n, live=(n,), quorate=False) for n in (1, 2)} | {"pve3": None}
    assert "repair the links" in still(apart)
    # One that answers and whose Corosync is down is started instead.
    assert words({**lone(), "pve2": node(2, running=False)}) == ["start:pve2"]
    # Nor beside one that cannot be started.
    stuck = {**lone(), "pve2": node(2, running=False, authkey="b" * 64)}
    assert "authkey" in still(stuck)
    # Nor beside a daemon that works alone, nor on it.
    alone = {**lone(), "pve2": node(2, None, live=(1, 2), mode="local", quorate=False)}
    alone["pve1"] = node(1, conf(nodes=4), conf(nodes=4), live=(1, 2), quorate=False)
    alone["pve2"] = node(2, None, conf(nodes=4), live=(1, 2), mode="local", quorate=False)
    assert "two parts would take writes" in still(alone)
    qdevice = conf().replace("quorum {", "quorum {\n  device {\n    model: net\n  }")
    assert "QDevice" in still({**lone(), "pve1": node(1, qdevice, qdevice, live=(1,), quorate=False)})


def test_all_databases_lost_is_no_reason_to_start_empty() -> None:
    lost = {f"pve{n}": down(n, root_version=None, pmxcfs={"database_bytes": None}) for n in (1, 2, 3)}
    assert "playbooks/restore.yml" in still(lost)
    for facts in lost.values():
        facts["ram_state"]["saved_root_version"] = 700
    assert "playbooks/restore.yml" in still(lost), "what is saved is not what a daemon would start with"
    for facts in lost.values():
        del facts["ram_state"]["saved_root_version"]
    # One of them has it: that one first, the others fetch it.
    lost["pve2"] = down(2, root_version=500)
    assert words(lost)[0] == "daemon:pve2" and {"resync:pve1", "resync:pve3"} <= set(words(lost))
    # But not while one that was not asked may run.
    lost["pve3"] = None  # type: ignore[assignment]
    assert "Make it reachable" in still(lost)


# What every plan keeps


@st.composite
def disorder(draw: st.DrawFn) -> dict[str, dict[str, Any] | None]:
    count = draw(st.integers(2, 4))
    texts = [None, BROKEN, *(conf(v, count, note) for v in (4, 5, 6) for note in ("", "other"))]
    usual = conf(5, count)
    numbers = list(range(1, count + 1))
    cut = draw(st.integers(0, count))
    sides = [tuple(numbers[:cut]), tuple(numbers[cut:])]
    nodes: dict[str, dict[str, Any] | None] = {}
    for n in numbers:
        side = next(side for side in sides if n in side)
        live = draw(st.sampled_from([side, side, (n,)]))
        text = st.one_of(st.just(usual), st.sampled_from(texts))
        mode = draw(st.sampled_from(["cluster", "cluster", "cluster", "local", "down"]))
        version = draw(st.sampled_from([None, 900, 1000, 1000, 1100]))
        database = {} if version else {"pmxcfs": {"database_bytes": draw(st.sampled_from([None, 4096]))}}
        facts = node(
            n,
            draw(text) if mode != "down" else None,
            draw(text),
            live=live,
            quorate=draw(st.sampled_from([len(live) * 2 > count, len(live) * 2 > count, True])),
            running=draw(st.booleans() | st.just(True)),
            runs=draw(st.sampled_from([4, 5, 5, 6])),
            mode=mode,
            root_version=version,
            tree=draw(st.sampled_from(["t", "t", "u"])),
            authkey=draw(st.sampled_from(["a" * 64] * 4 + [None, "b" * 64])),
            **database,
        )
        nodes[f"pve{n}"] = draw(st.sampled_from([facts, facts, facts, None]))
    return nodes


def versions(facts: Mapping[str, Any]) -> list[int]:
    info = facts["corosync"]
    found = [(info[key] or {}).get("config_version") for key in ("host", "cluster")]
    return [v or 0 for v in [*found, info["running_config_version"]]]


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(disorder(), st.sampled_from(["", "", "pve1", "pve2:host"]))
def test_no_plan_loses_a_cluster(nodes: dict[str, dict[str, Any] | None], choice: str) -> None:
    asked = {name: facts for name, facts in nodes.items() if facts}
    for found in recovery_plan.plan(nodes, dict.fromkeys(nodes, NAME), choice=choice):
        steps = found["steps"]
        assert len({step["word"] for step in steps}) == len(steps), "no step comes again"
        assert sum(step["kind"] == "quorum" for step in steps) <= 1, "quorum is forced on one node at most"
        counting = {
            name: facts
            for name, facts in asked.items()
            if facts["corosync"]["quorate"] and facts["corosync"]["running"] and facts["pmxcfs"]["mode"] == "cluster"
        }
        sides = {tuple(facts["corosync"]["live_member_ids"]) for facts in counting.values()}
        if len(sides) > 1:
            assert steps == [], "nothing is decided between two sides with quorum"
        best = max((facts["pmxcfs"]["root_version"] or 0 for facts in counting.values()), default=None)
        stopped: set[str] = set()
        for position, step in enumerate(steps):
            own = nodes.get(step["node"]) or {}
            if step["kind"] == "publish":
                assert written(step) >= max(version for facts in asked.values() for version in versions(facts))
                # A copy with another text loses; only the same text may have the same version.
                texts = {action["text"] for action in step["actions"]}
                copies = [facts["corosync"][key] or {} for facts in asked.values() for key in ("host", "cluster")]
                others = [copy.get("config_version") or 0 for copy in copies if copy.get("text") not in texts]
                assert written(step) > max(others, default=0)
            if step["kind"] in ("publish", "host_copy", "host_copies"):
                for action in step["actions"]:
                    assert (written(step)) >= ((asked[action["host"]]["corosync"]["host"] or {}).get("config_version") or 0)
            if step["kind"] == "isolate":
                stopped.add(step["node"])
            above = best is not None and (own.get("pmxcfs") or {}).get("root_version", 0) not in range(best + 1)
            if step["kind"] == "start" and own["pmxcfs"]["mode"] == "cluster" and above:
                assert step["node"] in stopped, "a false leader is stopped before it meets the members"
            if step["kind"] == "daemon" and best is not None and position == 0:
                assert not above, "no daemon is started that would roll the members back"
            if step["kind"] == "quorum":
                live = set(step["actions"][0]["live_member_ids"])
                assert all(facts["pmxcfs"]["mode"] != "local" for facts in asked.values())
                assert {int(name[3:]) for name in asked} <= live, "everybody else is silent"
                assert not counting
            assert all(action["host"] in asked for action in step["actions"])
            assert step["lines"] and step["lines"][0].startswith(step["word"])
        if found["healthy"]:
            assert steps == [] and found["open"] == []
        elif not steps:
            assert found["open"], "what no step repairs is said"


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_a_healthy_cluster_of_any_size(nodes: int) -> None:
    assert one(healthy(nodes))["healthy"]
