# SPDX-License-Identifier: Apache-2.0
"""Where nodes differ is named with its consequence and a way out, and the copy to keep is proposed only on good grounds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from ansible.module_utils.pveguard.cluster import corosync_compare, corosync_views
from ansible.module_utils.pveguard.cluster.corosync_compare import CLUSTER_COPY, HOST_COPY, PROBLEM, WARNING
from hypothesis import given
from hypothesis import strategies as st

from tests import findings

from .cluster_facts import NAME, a_copy, assert_shape_is_that_of_the_module, conf, healthy, node

Facts = Mapping[str, dict[str, Any] | None]


def one(nodes: Facts, wanted: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    (cluster,) = corosync_compare.compare(nodes, wanted)
    return cluster


def kinds(nodes: Facts) -> dict[str, list[str]]:
    return {each["id"]: each["nodes"] for each in one(nodes)["findings"]}


def finding(nodes: Facts, id: str) -> dict[str, Any]:
    (found,) = [each for each in one(nodes)["findings"] if each["id"] == id]
    assert found["seen"] and found["means"] and found["helps"]
    return dict(found)


def keep(nodes: Facts) -> dict[str, Any]:
    return dict(one(nodes)["survivor"])


# What differs


def test_the_facts_of_these_tests_are_those_of_the_module() -> None:
    assert_shape_is_that_of_the_module()


def test_nodes_that_agree_have_nothing_to_say() -> None:
    found = one(healthy())
    assert found["cluster"] == NAME and found["findings"] == []
    assert found["survivor"]["needed"] is False and "config_version 5" in found["survivor"]["reason"]
    assert found["lines"][-1] == "  [ok] the nodes agree" and found["agree"] is True
    assert one(healthy() | {"pve3": None})["agree"] is True
    assert one(healthy() | {"pve3": node(3, runs=4)})["agree"] is False


def test_equal_version_with_different_text() -> None:
    nodes = healthy() | {"pve2": node(2, conf(), conf(note="edited by hand"))}
    found = finding(nodes, "corosync-copies-same-version")
    assert (found["severity"], found["nodes"]) == (PROBLEM, ["pve2"])
    assert "config_version 5 and different text" in found["seen"] and "overwrites the host's copy" in found["means"]
    assert "config_version 6" in found["helps"] and "systemctl restart pve-cluster" in found["helps"]
    assert kinds(nodes) == {"corosync-copies-same-version": ["pve2"]}


def test_a_cluster_copy_that_is_older() -> None:
    nodes = healthy() | {"pve3": node(3, conf(), conf(8))}
    found = finding(nodes, "corosync-host-copy-newer")
    assert (found["severity"], found["nodes"]) == (PROBLEM, ["pve3"])
    assert found["seen"] == f"{CLUSTER_COPY} has config_version 5, {HOST_COPY} has 8"
    assert "stay different" in found["means"] and "config_version 9" in found["helps"]


@pytest.mark.parametrize(("quorate", "severity"), [(True, PROBLEM), (False, WARNING)])
def test_a_host_copy_that_is_older(quorate: bool, severity: str) -> None:
    nodes = {f"pve{n}": node(n, host=conf(4), quorate=quorate, runs=4) for n in (1, 2, 3)}
    found = finding(nodes, "corosync-host-copy-older")
    # One finding for all three: they have the same.
    assert (found["severity"], found["nodes"]) == (severity, ["pve1", "pve2", "pve3"])


def test_a_copy_that_cannot_be_read_is_quoted() -> None:
    nodes = healthy() | {"pve1": node(1, conf(), "totem {\n  version\n")}
    found = finding(nodes, "cluster-copy-unreadable")
    assert f"{HOST_COPY}: line 2, column 3" in found["seen"] and "does not start with it" in found["means"]
    nodes = healthy() | {"pve1": node(1, conf().replace("config_version: 5", "config_version: 0"))}
    assert "config_version is missing or 0" in finding(nodes, "cluster-copy-unreadable")["seen"]
    denied = node(1, conf(), None, corosync={"errors": [f"{HOST_COPY}: Permission denied"]})
    denied["corosync"] = {**node(1, conf(), None)["corosync"], **denied["corosync"]}
    assert finding(healthy() | {"pve1": denied}, "cluster-copy-unreadable")["seen"] == f"{HOST_COPY}: Permission denied"


def test_nodes_split_on_versions() -> None:
    nodes = {
        "pve1": node(1, live=(1, 2)),
        "pve2": node(2, live=(1, 2)),
        "pve3": node(3, conf(4), conf(4), live=(3,), quorate=False, runs=4),
    }
    found = finding(nodes, "cluster-copies-split")
    assert "pve1, pve2: 5 " in found["seen"] and "pve3: 4 " in found["seen"]
    split = finding(nodes, "cluster-membership-split")
    assert split["seen"] == "pve1, pve2 see 1 2 (quorate); pve3 sees 3 (no quorum)"
    assert "read-only" in split["means"]
    assert kinds(nodes)["quorum-alone"] == ["pve3"]


def test_host_copies_that_differ_where_each_node_agrees_with_itself() -> None:
    nodes = {"pve1": node(1, None, conf()), "pve2": node(2, None, conf(note="another"))}
    found = finding(nodes, "cluster-host-copies-split")
    assert found["nodes"] == ["pve1", "pve2"] and f"make {HOST_COPY} alike by hand" in found["helps"]


def test_two_halves_with_quorum_are_the_worst() -> None:
    nodes = {
        "pve1": node(1, live=(1,)),
        "pve2": node(2, conf(6), conf(6), live=(2,), runs=6),
    }
    found = finding(nodes, "cluster-membership-split")
    assert "lost" in found["means"] and "systemctl stop pve-cluster" in found["helps"]
    survivor = keep(nodes)
    assert survivor["node"] is None and "two parts of the cluster have quorum" in survivor["reason"]


def test_views_that_overlap_are_a_moment_or_a_one_way_link() -> None:
    nodes = healthy() | {"pve3": node(3, live=(2, 3))}
    assert "one direction" in finding(nodes, "cluster-membership-split")["means"]


def test_nobody_has_quorum() -> None:
    nodes = {"pve1": node(1, live=(1,), quorate=False), "pve2": None, "pve3": None}
    silent = [each["nodes"] for each in one(nodes)["findings"] if each["id"] == "cluster-not-asked"]
    assert kinds(nodes)["quorum-alone"] == ["pve1"] and silent == [["pve2", "pve3"]]
    assert "corosync-quorumtool -e 1" in finding(nodes, "quorum-alone")["helps"]
    assert "corosync-down" not in kinds(nodes)
    # Where others have quorum, votes must not be lowered here.
    cut_off = {"pve1": node(1, live=(1, 2)), "pve2": node(2, live=(1, 2)), "pve3": node(3, live=(3,), quorate=False)}
    assert "never 'corosync-quorumtool -e'" in finding(cut_off, "quorum-alone")["helps"]
    both = {f"pve{n}": node(n, conf(nodes=4), conf(nodes=4), live=(1, 2), quorate=False) for n in (1, 2)}
    assert kinds(both)["quorum-missing"] == ["pve1", "pve2"]


def test_corosync_that_does_not_run() -> None:
    nodes = healthy() | {"pve2": node(2, conf(), "totem {\n", running=False)}
    found = finding(nodes, "corosync-down")
    assert found["nodes"] == ["pve2"] and "line 1" in found["seen"] and "corosync -t" in found["helps"]
    gone = healthy() | {"pve2": node(2, conf(), None, running=False)}
    assert f"there is no {HOST_COPY}" in finding(gone, "corosync-down")["seen"]


def test_the_running_version_lags() -> None:
    nodes = healthy() | {"pve2": node(2, runs=4)}
    found = finding(nodes, "corosync-running-differs")
    assert (found["severity"], found["nodes"]) == (WARNING, ["pve2"])
    assert "runs config_version 4, the file has 5" in found["seen"] and "corosync-cfgtool -R" in found["helps"]


def test_the_running_version_of_a_node_nobody_asked_is_known_by_the_others() -> None:
    seen = {"member_config_versions": {"1": 5, "2": 5, "3": 4}}
    nodes = {f"pve{n}": node(n) for n in (1, 2)}
    for facts in nodes.values():
        facts["corosync"].update(seen)
    assert finding(nodes, "corosync-running-differs")["nodes"] == ["pve3"]
    # pve3 is not in the inventory, corosync lists it.
    assert "not in the inventory, corosync of the others sees it" in finding(nodes, "cluster-not-asked")["seen"]


def test_authkeys() -> None:
    nodes = healthy() | {"pve2": node(2, authkey="b" * 64), "pve3": node(3, authkey=None, running=False)}
    assert "pve1: aaaaaaaa; pve2: bbbbbbbb" in finding(nodes, "cluster-authkey-differs")["seen"]
    assert finding(nodes, "cluster-authkey-missing")["nodes"] == ["pve3"]


def test_a_node_whose_database_was_lost() -> None:
    nodes = healthy() | {"pve3": node(3, None, mode="local", root_version=3)}
    found = finding(nodes, "cluster-database-lost")
    assert found["nodes"] == ["pve3"] and "rolls the whole cluster back" in found["means"]
    assert "cluster-false-leader" not in kinds(nodes)
    # Both files of the node are gone: the others list it, so it is no stranger.
    bare = healthy() | {"pve3": node(3, None, None, mode="local", running=False, root_version=1, authkey=None)}
    assert kinds(bare)["cluster-database-lost"] == ["pve3"]
    down = node(3, None, mode="down", root_version=None, pmxcfs={"database_bytes": None})
    assert kinds(healthy() | {"pve3": down})["pmxcfs-database-missing"] == ["pve3"]
    assert kinds(healthy() | {"pve3": node(3, None, mode="down")})["pmxcfs-not-mounted"] == ["pve3"]


def test_the_daemon_started_apart() -> None:
    found = finding(healthy() | {"pve3": node(3, mode="local")}, "cluster-local-mode")
    assert found["nodes"] == ["pve3"] and "pve-state restore --resync" in found["helps"]


def test_a_state_that_went_back() -> None:
    nodes = healthy() | {"pve1": node(1, root_version=12, ram_state={"state": "enabled", "saved_root_version": 1000})}
    assert "root version 12, its replica on disk has 1000" in finding(nodes, "cluster-went-back")["seen"]


@pytest.mark.parametrize(
    "third",
    [
        node(3, live=(3,), quorate=False, root_version=1500),
        node(3, mode="local", root_version=1500),
        node(3, mode="down", running=False, root_version=1500),
        node(3, mode="down", running=False, root_version=None, ram_state={"saved_root_version": 1500}),
    ],
)
def test_a_false_leader_is_named_before_it_leads(third: dict[str, Any]) -> None:
    nodes = {"pve1": node(1, live=(1, 2)), "pve2": node(2, live=(1, 2), root_version=1003), "pve3": third}
    found = finding(nodes, "cluster-false-leader")
    assert (found["severity"], found["nodes"]) == (PROBLEM, ["pve3"])
    assert found["seen"] == "root version 1500, the quorate members have at most 1003"


def test_a_node_that_is_behind_is_no_false_leader() -> None:
    nodes = {"pve1": node(1, live=(1, 2)), "pve2": node(2, live=(1, 2)), "pve3": node(3, live=(3,), quorate=False)}
    assert "cluster-false-leader" not in kinds(nodes)


def test_without_quorum_it_is_said_who_would_lead() -> None:
    apart = {"quorate": False}
    nodes = {f"pve{n}": node(n, live=(n,), root_version=900 + n, **apart) for n in (1, 2)}
    found = finding(nodes, "cluster-leader-to-be")
    assert found["nodes"] == ["pve2"] and found["seen"].endswith("pve2: 902; pve1: 901") and found["severity"] == WARNING
    tie = {f"pve{n}": node(n, live=(n,), tree=f"tree {n}", **apart) for n in (1, 2)}
    found = finding(tie, "cluster-leader-to-be")
    assert found["severity"] == PROBLEM and "changed later by the clock" in found["means"]


def test_quorate_members_with_different_content() -> None:
    found = finding(healthy() | {"pve2": node(2, tree="other")}, "cluster-trees-differ")
    assert found["nodes"] == ["pve1", "pve2", "pve3"] and "ram_state_restore_resync=true" in found["helps"]
    # Asked a moment later the tree may have changed, and then the version has.
    assert kinds(healthy() | {"pve2": node(2, tree="other", root_version=1001)}) == {}


def test_a_node_of_another_cluster_in_the_group() -> None:
    other = conf(name="lab", nodes=1)
    nodes = healthy() | {"pve9": node(9, other, other, live=(9,))}
    found = one(nodes, dict.fromkeys(nodes, NAME))
    assert [each["nodes"] for each in found["findings"] if each["id"] == "cluster-other-name"] == [["pve9"]]
    views = corosync_compare.group(nodes, dict.fromkeys(nodes, NAME))[NAME]
    said = findings.finding(corosync_compare.findings(NAME, views), "cluster-other-name")
    assert "'lab', wanted 'production'" in said.text and "corosync_cluster_name" in said.helps
    # Without a wish there are two clusters.
    assert [each["cluster"] for each in corosync_compare.compare(nodes)] == [NAME, "lab"]


def test_a_node_that_is_to_join_is_no_member() -> None:
    fresh = node(4, None, None, mode="local", running=False, authkey=None)
    nodes = healthy() | {"pve4": fresh, "pve5": None}
    found = one(nodes, dict.fromkeys(nodes, NAME))
    assert [each["node"] for each in found["nodes"]] == ["pve1", "pve2", "pve3"] and found["findings"] == []
    assert corosync_compare.compare({"pve4": fresh}, {"pve4": NAME}) == []


def test_two_clusters_whose_nodes_have_the_same_names() -> None:
    text = conf(name="second")
    second = {f"{name}.second": node(n, text, text) for n, name in enumerate(("pve1", "pve2"), 1)}
    found = corosync_compare.compare(healthy() | second | {"pve3.second": None}, {"pve3.second": "second"})
    assert [[row["host"] for row in each["nodes"]] for each in found] == [
        ["pve1", "pve2", "pve3"],
        ["pve1.second", "pve2.second", "pve3.second"],
    ]


def test_a_silent_host_of_another_cluster_is_not_taken_for_a_member_of_its_name() -> None:
    nodes = {"pve1": node(1), "pve2": node(2), "pve3": None}
    (found,) = corosync_compare.compare(nodes, {"pve1": NAME, "pve2": NAME, "pve3": "second"})
    assert [row["host"] for row in found["nodes"]] == ["pve1", "pve2", None]


def test_a_corosync_that_does_not_answer_about_quorum_is_no_part_of_a_split() -> None:
    assert "cluster-membership-split" not in kinds(healthy() | {"pve3": node(3, live=(), quorate=None)})


def test_a_node_without_the_cluster_file_system_has_no_daemon_that_is_down() -> None:
    nodes = {f"pve{n}": node(n, None, mode="down", packages={"pve-cluster": None}) for n in (1, 2, 3)}
    assert kinds(nodes) == {}


def test_corosync_alone_is_judged_too() -> None:
    nodes = {host: {"corosync": facts["corosync"]} for host, facts in healthy().items()}
    assert one(nodes)["findings"] == []


def test_debians_example_is_no_cluster() -> None:
    facts = node(1, None, conf())
    facts["corosync"]["example_conf"] = True
    assert corosync_compare.compare({"pve1": facts}) == []


def test_the_table_shows_what_each_node_has() -> None:
    nodes = healthy() | {"pve2": node(2, conf(6), None, runs=None, mode="down"), "pve3": None}
    (header, _, first, second, third) = one(nodes)["lines"][1:6]
    assert header.split() == "node /etc/pve /etc/corosync runs sees quorum authkey daemon root version".split()
    sha = a_copy(conf())
    assert sha is not None
    assert first.split()[:5] == ["pve1", "5", sha["sha256"][:8], "5", sha["sha256"][:8]]
    assert second.split()[0] == "pve2" and "  -  " in second and " ? " in second
    assert third.split() == ["pve3", "not", "asked"]


def test_names_cannot_command_a_terminal() -> None:
    facts = healthy()
    facts["pve1"]["corosync"]["errors"] = [f"{HOST_COPY}: \x1b[31mred"]
    facts["pve1"]["corosync"]["host"] = None
    assert not any("\x1b" in line for line in one(facts)["lines"])


# Which copy to keep


def test_the_quorate_members_copy_is_kept_over_a_newer_one_by_hand() -> None:
    nodes = healthy() | {"pve3": node(3, conf(), conf(8, note="pushed by hand"))}
    found = keep(nodes)
    assert (found["node"], found["copy"], found["path"]) == ("pve1", "cluster", CLUSTER_COPY)
    # It has to win over version 8, which stays on pve3 otherwise.
    assert (found["config_version"], found["write_version"]) == (5, 9)


def test_what_all_members_run_is_kept_where_it_was_edited_alike_on_all() -> None:
    nodes = {f"pve{n}": node(n, conf(5), conf(6), runs=6) for n in (1, 2, 3)}
    found = keep(nodes)
    assert (found["copy"], found["config_version"], found["write_version"]) == ("host", 6, 6)
    # Only two of the three run it, or only two were asked: then it is not known to work.
    assert keep(nodes | {"pve3": node(3, conf(5), conf(6), runs=5)})["copy"] == "cluster"
    assert keep({**nodes, "pve3": None})["copy"] == "cluster"


def test_a_bad_text_on_pve_gives_way_to_what_runs() -> None:
    bad = conf(6).replace("nodelist {", "nodelist")
    nodes = {f"pve{n}": node(n, bad, conf(5)) for n in (1, 2, 3)}
    found = keep(nodes)
    assert (found["copy"], found["config_version"]) == ("host", 5)
    everywhere = {f"pve{n}": node(n, bad, bad) for n in (1, 2, 3)}
    for facts in everywhere.values():
        facts["corosync"].update(cluster_name=NAME)
    assert keep(everywhere)["node"] is None and "corosync.conf.bak" in keep(everywhere)["reason"]


def test_a_node_that_returns_with_an_old_copy_changes_nothing() -> None:
    nodes = {
        "pve1": node(1, live=(1, 2)),
        "pve2": node(2, live=(1, 2)),
        "pve3": node(3, conf(2), conf(2), live=(3,), quorate=False, runs=2),
    }
    found = keep(nodes)
    assert (found["node"], found["config_version"], found["write_version"]) == ("pve1", 5, 5)
    # A node that was edited alone, to any version, does not win either.
    nodes["pve3"] = node(3, conf(50), conf(50), live=(3,), quorate=False, runs=50)
    found = keep(nodes)
    assert (found["node"], found["config_version"], found["write_version"]) == ("pve1", 5, 51)


def test_a_quorum_that_was_forced_is_no_proof_while_others_are_silent() -> None:
    forced = node(1, conf(6), conf(5), live=(1,))
    found = keep({"pve1": forced, "pve2": None, "pve3": None})
    assert found["node"] is None and "1 of 3 votes" in found["reason"] and "pve2, pve3 may have it too" in found["reason"]
    # Once they were asked and have none, it is the only one.
    others = {f"pve{n}": node(n, live=(n,), quorate=False) for n in (2, 3)}
    assert keep({"pve1": forced, **others})["node"] == "pve1"
    # A QDevice votes for one side only.
    device = "quorum {\n  device {\n    model: net\n  }\n}\n"
    with_device = node(1, conf(6) + device, conf(5) + device, live=(1,))
    assert keep({"pve1": with_device, "pve2": None, "pve3": None})["node"] == "pve1"


def test_quorate_members_that_differ_at_one_version_need_a_person() -> None:
    found = keep(healthy() | {"pve2": node(2, conf(note="other"), conf(note="other"))})
    assert found["needed"] and found["node"] is None and "config_version 5 with different text" in found["reason"]


def down(number: int, cluster: str | None, host: str | None, **more: Any) -> dict[str, Any]:
    return node(number, cluster, host, running=False, quorate=None, **more)


def test_without_quorum_the_highest_of_a_majority_is_kept() -> None:
    nodes: Facts = {"pve1": down(1, conf(7), conf(7)), "pve2": down(2, conf(6), conf(6)), "pve3": None}
    found = keep(nodes)
    assert (found["node"], found["copy"], found["config_version"]) == ("pve1", "cluster", 7)
    assert "2 of 3 votes" in found["reason"]


def test_without_a_majority_a_newer_one_may_be_elsewhere() -> None:
    found = keep({"pve1": down(1, conf(7), conf(6)), "pve2": None, "pve3": None})
    assert found["node"] is None and "1 of 3 votes" in found["reason"] and "pve2, pve3" in found["reason"]


def test_a_copy_made_by_hand_needs_a_majority() -> None:
    two = {"pve1": down(1, conf(5), conf(9)), "pve2": down(2, conf(5), conf(9)), "pve3": down(3, conf(5), conf(5))}
    found = keep(two)
    assert (found["node"], found["copy"], found["config_version"]) == ("pve1", "host", 9)
    found = keep({**two, "pve2": down(2, conf(5), conf(5))})
    assert found["node"] is None and "pve1 only" in found["reason"]


def test_a_daemon_that_works_alone_is_no_witness() -> None:
    alone = down(3, conf(9), conf(5), mode="local")
    found = keep({"pve1": down(1, conf(5), conf(4)), "pve2": down(2, conf(5), conf(5)), "pve3": alone})
    assert (found["node"], found["config_version"], found["write_version"]) == ("pve1", 5, 10)


def test_the_copy_of_another_cluster_is_never_kept() -> None:
    foreign = conf(9, name="lab")
    nodes = {"pve1": down(1, conf(5), conf(4)), "pve2": down(2, conf(5), conf(5)), "pve3": down(3, foreign, foreign)}
    found = one(nodes, dict.fromkeys(nodes, NAME))["survivor"]
    assert (found["node"], found["config_version"]) == ("pve1", 5)


def test_different_texts_without_quorum() -> None:
    same, other = conf(7), conf(7, note="other")
    found = keep({"pve1": down(1, same, same), "pve2": down(2, same, same), "pve3": down(3, other, other)})
    assert (found["node"], found["write_version"]) == ("pve1", 8)
    found = keep({"pve1": down(1, same, same), "pve2": down(2, other, other), "pve3": None})
    assert found["node"] is None and "none of a majority" in found["reason"]


def test_a_missing_host_copy_is_brought_back() -> None:
    found = keep(healthy() | {"pve3": node(3, conf(), None, running=False)})
    assert found["needed"] and (found["node"], found["write_version"]) == ("pve1", 5)


def test_two_node_is_a_bad_idea_and_still_a_cluster() -> None:
    text = conf(nodes=2).replace("corosync_votequorum\n", "corosync_votequorum\n  two_node: 1\n")
    nodes = {"pve1": node(1, text, text, live=(1, 2)), "pve2": node(2, text, text + "# other\n", live=(1, 2))}
    assert keep(nodes)["node"] == "pve1"


TEXTS = st.sampled_from([conf(v, note=note) for v in (3, 4, 5) for note in ("", "other")] + ["totem {\n", None])
MODES = st.sampled_from(["cluster", "local", "down"])
SIDES = st.sampled_from([(1, 2, 3, 4, 5), (1, 2, 3), (4, 5), (1,), ()])


@st.composite
def disorder(draw: st.DrawFn) -> dict[str, dict[str, Any] | None]:
    nodes: dict[str, dict[str, Any] | None] = {}
    for n in range(1, 6):
        nodes[f"pve{n}"] = draw(
            st.none()
            | st.builds(
                node, st.just(n), TEXTS, TEXTS, live=SIDES, quorate=st.sampled_from([True, False, None]), running=st.booleans(),
                runs=st.sampled_from([None, 3, 4, 5, 6]), mode=MODES, root_version=st.sampled_from([None, 900, 1000]),
                tree=st.sampled_from(["t", "u"]), authkey=st.sampled_from([None, "a" * 64, "b" * 64]),
            )
        )  # fmt: skip
    return nodes


@given(disorder(), st.randoms(use_true_random=False))
def test_a_proposal_is_a_copy_that_was_seen_and_wins(nodes: dict[str, Any], shuffler: random.Random) -> None:
    for cluster in corosync_compare.compare(nodes):
        best = cluster["survivor"]
        assert best["reason"] and all(each["seen"] and each["means"] and each["helps"] for each in cluster["findings"])
        order = list(nodes)
        shuffler.shuffle(order)
        again = {each["cluster"]: each for each in corosync_compare.compare({host: nodes[host] for host in order})}
        assert again[cluster["cluster"]]["survivor"]["sha256"] == best["sha256"]
        if not best["node"]:
            assert best["write_version"] is None
            continue
        asked = {facts["hostname"]: facts["corosync"] for facts in nodes.values() if facts}
        kept = asked[best["node"]][best["copy"]]
        assert kept["sha256"] == best["sha256"] and corosync_views.unusable(kept["text"]) == ""
        for info in asked.values():
            for copy in (info["cluster"], info["host"]):
                if copy and copy["sha256"] != best["sha256"]:
                    assert (copy["config_version"] or 0) < best["write_version"]
            assert (info["running_config_version"] or 0) <= best["write_version"]


@pytest.mark.slow
@given(disorder())
def test_one_healthy_majority_decides_whatever_the_others_say(nodes: dict[str, Any]) -> None:
    for n in (1, 2, 3):
        nodes[f"pve{n}"] = node(n, conf(4, nodes=5), conf(4, nodes=5), live=(1, 2, 3), runs=4)
    for n in (4, 5):
        facts = nodes[f"pve{n}"]
        if facts:
            facts["corosync"]["quorate"] = False
    best = next(each for each in corosync_compare.compare(nodes) if each["cluster"] == NAME)["survivor"]
    if best["needed"]:
        assert best["sha256"] == (a_copy(conf(4, nodes=5)) or {})["sha256"]


@given(disorder())
def test_a_minority_without_quorum_never_decides(nodes: dict[str, Any]) -> None:
    text = conf(4, nodes=5)
    for n in (1, 2):
        nodes[f"pve{n}"] = down(n, text, conf(5, nodes=5))
    nodes |= {f"pve{n}": None for n in (3, 4, 5)}
    (cluster,) = corosync_compare.compare(nodes)
    assert cluster["survivor"]["needed"] and cluster["survivor"]["node"] is None


# Hosts named by address


@pytest.mark.parametrize("name", ["10.0.0.3", "192.0.2.3", "10.1.0.3"])
def test_a_silent_host_named_by_its_address_is_the_member_that_has_it(name: str) -> None:
    nodes: dict[str, Any] = healthy()
    del nodes["pve3"]
    nodes[name] = None
    found = finding(nodes, "cluster-not-asked")
    assert found["nodes"] == ["pve3"] and found["seen"].startswith("not asked in this run")
    (row,) = [each for each in one(nodes)["nodes"] if not each["asked"]]
    assert (row["node"], row["host"], row["node_id"]) == ("pve3", name, 3)


def test_a_silent_host_with_an_unknown_address_is_nobody() -> None:
    nodes: dict[str, Any] = {**healthy(), "10.0.0.99": None}
    assert one(nodes)["agree"] and {each["host"] for each in one(nodes)["nodes"]} == {"pve1", "pve2", "pve3"}


def test_an_asked_host_named_by_its_address_has_its_own_name() -> None:
    nodes = {f"2001:db8::{number}": facts for number, facts in enumerate(healthy().values(), 1)}
    assert [(each["node"], each["host"]) for each in one(nodes)["nodes"]] == [
        (f"pve{number}", f"2001:db8::{number}") for number in (1, 2, 3)
    ]


def test_the_highest_config_version_is_not_raised() -> None:
    highest = 2**64 - 1
    nodes = healthy()
    text = conf(highest)
    nodes["pve1"] = node(1, text, text, runs=highest)
    cluster = one(nodes)
    assert cluster["survivor"]["write_version"] is None or cluster["survivor"]["write_version"] <= highest
