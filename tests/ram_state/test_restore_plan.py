# SPDX-License-Identifier: Apache-2.0
"""Which restores are proposed, which are refused, and what an operator is told before he answers."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.pveguard.state import restore_plan
from ansible.module_utils.pveguard.state.restore_plan import Peer

COMMAND = restore_plan.command(["inventory/mine"], "pve1")


def member(number: int) -> dict[str, Any]:
    return {"id": number, "name": f"pve{number}", "addresses": [f"10.0.0.{number}"]}


def node(name: str = "pve1", cluster: bool = True, **pmxcfs: Any) -> dict[str, Any]:
    """Facts of a node as node_info gives them, as far as they are judged."""
    facts = {"mode": "down", "quorate": None, "root_version": 500, "tree_sha256": "t", "writable": False}
    return {
        "hostname": name,
        "pmxcfs": {**facts, **pmxcfs},
        "corosync": {
            "members": [member(1), member(2), member(3)] if cluster else [],
            "live_member_ids": [1, 2],
            "running": True,
            "example_conf": False,
        },
        "ram_state": {"state": "absent"},
    }


def running(name: str, version: int, quorate: bool = True) -> dict[str, Any]:
    return node(name, mode="cluster", quorate=quorate, root_version=version)


def entry(path: str, change: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"path": path, "type": "file", "change": change, "writer_now": 2, **more}
    for when, there in (("now", change != "removed"), ("then", change != "added")):
        made[f"bytes_{when}"] = 10 if there else None
        made[f"version_{when}"] = 7 if there else None
        made[f"mtime_{when}"] = "2026-11-20T08:00:00Z" if there else None
        made[f"sha256_{when}"] = when if there else None
    return made


FILES = [
    entry("corosync.conf", "changed"),
    entry("new.cfg", "added"),
    entry("old.cfg", "removed"),
    entry("storage.cfg", "changed"),
]


def found(way: str = "whole", version: int = 500, is_member: bool = True, **more: Any) -> dict[str, Any]:
    generation = {
        "name": "20261120T080000Z-v500-daily",
        "root_version": version,
        "lineage": 1,
        "mode": "member" if is_member else "standalone",
        "time": "2026-11-20T08:00:00Z",
        "reason": "daily",
        "config_version": 3,
    }
    return {
        "way": way,
        "path": "",
        "generation": None if way == "resync" else generation,
        "generations": [generation],
        "now": {"source": "live", "version": 600},
        "files": None if way == "resync" else FILES,
        "files_error": "",
        "left": [],
        "judged": {"member": is_member, "config_version": 3, "in_ram": True},
        "refusals": [],
        "warnings": [],
        **more,
    }


def propose(found_: dict[str, Any], others: list[Peer], **facts: Any) -> dict[str, Any]:
    return restore_plan.propose("pve1", node(**facts), found_, others, COMMAND)


DOWN2 = Peer("pve2", "pve2", asked=True, runs=False, up=True, version=400, version_from="its last save")
DOWN3 = Peer("pve3", "pve3", asked=True, runs=False, up=False, version=500, version_from="its database")
RUNS2 = Peer(
    "pve2", "pve2", asked=True, runs=True, quorate=True, up=True, version=600, version_from="its database"
)


def test_a_stand_alone_node_is_shown_file_by_file() -> None:
    made = propose(found(is_member=False), [], cluster=False)
    text = "\n".join(made["lines"])
    assert made["refusals"] == [] and made["change"] and "other members" not in text
    assert "lost         new.cfg  (now 10 bytes, version 7, 2026-11-20T08:00:00Z, written by node 2)" in text
    assert "comes back   old.cfg  (then 10 bytes, version 7" in text
    assert "overwritten  storage.cfg  (now 10 bytes" in text and "; then 10 bytes" in text
    assert "4 files differ: 1 lost, 2 overwritten, 1 comes back" in text


@pytest.mark.parametrize(
    ("version", "outcome"),
    [(500, "overwritten by them at once"), (600, "overwritten by them"), (601, "roll all members back")],
)
def test_a_whole_state_is_refused_while_another_member_runs(version: int, outcome: str) -> None:
    made = propose(found(version=version), [RUNS2, DOWN3])
    assert len(made["refusals"]) == 1 and not made["peers_down"]
    assert "the daemon runs on pve2" in made["refusals"][0] and outcome in made["refusals"][0]
    assert "(600):" in made["refusals"][0]
    offers = "\n".join(made["offers"])
    base = f"{COMMAND} -e ram_state_restore_generation=20261120T080000Z-v500-daily"
    for path in ("old.cfg", "storage.cfg", "/"):
        assert f"{base} -e ram_state_restore_path={path}\n" in offers
    assert "path=new.cfg" not in offers and "path=corosync.conf" not in offers
    assert offers.endswith(f"{COMMAND} -e ram_state_restore_resync=true")


def test_a_running_member_without_quorum_wins_as_well() -> None:
    apart = Peer("pve2", "pve2", asked=True, runs=True, quorate=False, up=True, version=600)
    assert "the daemon runs on pve2" in propose(found(), [apart, DOWN3])["refusals"][0]


def test_a_member_alone_is_restored_with_what_would_win_named() -> None:
    higher = Peer("pve3", "pve3", asked=True, runs=False, up=False, version=700, version_from="its last save")
    made = propose(found(), [DOWN2, higher])
    text = "\n".join(made["lines"])
    assert made["refusals"] == [] and made["peers_down"]
    assert "pve2  daemon down, version 400 (its last save), below the generation's" in text
    assert "pve3  daemon down, version 700 (its last save), above the generation's" in text
    assert "mind: pve3 holds version 700, above 500: when its daemon starts, its state wins" in text
    assert "'pve-state restore --resync' on pve3" in text and "pve2 holds" not in text
    assert "mtime" in "\n".join(propose(found(), [DOWN2, DOWN3])["lines"])


@pytest.mark.parametrize(
    ("peer", "version", "message"),
    [
        (Peer("pve3", "pve3", up=True), 500, "could not be asked (pve3), but corosync sees it"),
        (Peer("pve3", None, up=True), 500, "is not in the inventory, but corosync sees it"),
        (Peer("pve3", None, up=None), 500, "corosync does not run on pve1"),
        (Peer("pve3", None, up=False), 501, "it would be rolled back later"),
    ],
)
def test_a_member_that_nobody_asked_is_not_taken_for_down(peer: Peer, version: int, message: str) -> None:
    refusals = propose(found(version=version), [DOWN2, peer])["refusals"]
    assert len(refusals) == 1 and message in refusals[0]


def test_a_member_that_is_switched_off_is_only_warned_of() -> None:
    made = propose(found(), [DOWN2, Peer("pve3", "pve3", up=False)])
    assert made["refusals"] == [] and made["peers_down"]
    assert "pve3 could not be asked (pve3): if it holds a version above 500" in "\n".join(made["lines"])


def test_a_member_whose_nodelist_is_unknown_is_refused() -> None:
    assert "does not name pve1" in propose(found(), [], cluster=False)["refusals"][0]


def test_another_config_version_is_named() -> None:
    judged = {"member": True, "config_version": 5}
    text = "\n".join(propose(found(judged=judged), [DOWN2, DOWN3])["lines"])
    assert "config_version 3, /etc/corosync/corosync.conf has 5" in text


def test_a_resync_wants_somebody_to_fetch_from() -> None:
    assert propose(found("resync"), [RUNS2, DOWN3])["refusals"] == []
    for others in ([DOWN2, DOWN3], [Peer("pve2", None, up=True)], []):
        assert "nobody to fetch the state from" in propose(found("resync"), others)["refusals"][0]
    apart = Peer("pve2", "pve2", asked=True, runs=True, quorate=False, up=True, version=600)
    assert "daemon runs, no quorum" in propose(found("resync"), [apart])["refusals"][0]
    newer = "\n".join(propose(found("resync"), [RUNS2], root_version=900)["lines"])
    assert "this node holds version 900, above the 600 of pve2" in newer


def test_files_of_a_running_cluster_are_proposed() -> None:
    left = [{"path": "corosync.conf", "why": "not by a copy"}]
    made = propose(found("path", path="/", judged=None, left=left), [RUNS2], tree_sha256="t")
    text = "\n".join(made["lines"])
    assert made["refusals"] == [] and made["change"]
    assert "stays        new.cfg" in text and "is left      corosync.conf  (not by a copy)" in text
    assert "pve2  daemon runs, quorate, version 600" in text and "another tree" not in text
    only = [entry("new.cfg", "added")]
    assert not propose(found("path", path="new.cfg", judged=None, files=only), [RUNS2])["change"]


def test_members_that_do_not_agree_are_named() -> None:
    other = Peer("pve2", "pve2", asked=True, runs=True, quorate=True, version=1, tree_sha256="x")
    assert "another tree" in "\n".join(propose(found("path", judged=None, path="/"), [other])["lines"])


def test_nothing_differs() -> None:
    made = propose(found(is_member=False, files=[]), [], cluster=False)
    assert not made["change"] and "Nothing differs." in made["lines"]


def test_what_cannot_be_read_is_said_and_still_may_be_replaced() -> None:
    made = propose(found(is_member=False, files=None, files_error="the replica is damaged", now=None), [])
    assert made["change"] and any("the replica is damaged" in line for line in made["lines"])


def test_without_a_generation_all_are_listed() -> None:
    made = propose(found("list", files=None), [RUNS2])
    assert made["lines"] == [] and "20261120T080000Z-v500-daily  version 500" in made["refusals"][0]
    assert "pve1 has none" in propose(found("list", generations=[]), [])["refusals"][0]


def test_names_that_command_a_terminal_are_harmless() -> None:
    made = propose(found(is_member=False, files=[entry("a\x1b[2Jb\n", "added")]), [], cluster=False)
    assert r"a\x1b[2Jb\n" in "\n".join(made["lines"]) and "\x1b" not in "\n".join(made["lines"])


def test_many_files_are_counted() -> None:
    files = [entry(f"f{number:04}", "changed") for number in range(restore_plan.MAX_FILES + 20)]
    lines = propose(found(is_member=False, files=files), [], cluster=False)["lines"]
    assert (
        "and 20 more; 'pve-state show' has them all" in lines and "520 files differ: 520 overwritten" in lines
    )


def test_peers_are_found_by_name_and_by_address() -> None:
    inventory: dict[str, dict[str, Any]] = {
        "pve1": {},
        "pve2.example.org": {"ansible_host": "192.0.2.2"},
        "third": {"ansible_host": "10.0.0.3"},
        "linked": {"corosync_links": ["10.0.0.3"]},
        "stranger": {"ansible_host": "10.0.0.9"},
    }
    assert restore_plan.peer_hosts(node(), inventory, "pve1") == ["linked", "pve2.example.org", "third"]
    assert restore_plan.peer_hosts(node(cluster=False), inventory, "pve1") == []


def test_peers_named_by_their_address_in_any_form() -> None:
    asked = node()
    asked["corosync"]["members"][1]["addresses"] = ["2001:DB8:0:0::2"]
    inventory: dict[str, dict[str, Any]] = {"pve1": {}, "2001:db8::2": {}, "10.0.0.3": {}, "10.0.0.33": {}}
    assert restore_plan.peer_hosts(asked, inventory, "pve1") == ["10.0.0.3", "2001:db8::2"]
    silent, answered = restore_plan.peers(asked, {"2001:db8::2": None, "10.0.0.3": node("pve3.example.org")})
    assert (silent.name, silent.host, silent.asked) == ("pve2", "2001:db8::2", False)
    assert (answered.name, answered.host, answered.asked) == ("pve3", "10.0.0.3", True)


def test_what_is_known_of_peers() -> None:
    saved = {**node("pve3", root_version=None), "ram_state": {"saved_root_version": 450}}
    answers = {"third": saved, "pve2.example.org": None, "stranger": node("other")}
    two, three = restore_plan.peers(node(), answers)
    assert (two.name, two.host, two.asked, two.up) == ("pve2", "pve2.example.org", False, True)
    assert (three.name, three.host, three.runs, three.up) == ("pve3", "third", False, False)
    assert (three.version, three.version_from) == (450, "its last save")
    quiet = node()
    quiet["corosync"]["running"] = False
    assert restore_plan.peers(quiet, {})[0].up is None


@pytest.mark.parametrize("way", ["whole", "path", "resync"])
def test_the_way_back_is_an_exact_command(way: str) -> None:
    done = found(way, path="/" if way == "path" else "", files=FILES[1:])
    lines = restore_plan.way_back("pve1", done, "F", COMMAND)
    base = f"  {COMMAND} -e ram_state_restore_generation=F"
    expected = {
        "whole": [base, "  pve-state restore --generation F --take-down --peers-down    # on pve1, by hand"],
        "path": [
            f"{base} -e ram_state_restore_path=/",
            "  rm /etc/pve/old.cfg    # on pve1; it was not there",
        ],
        "resync": ["  single files of it, through /etc/pve:", f"{base} -e ram_state_restore_path=PATH"],
    }
    assert lines[1:] == expected[way]
    done["judged"] = {"member": False, "in_ram": False}
    assert not any("pve-state" in line for line in restore_plan.way_back("pve1", done, "F", COMMAND))
    assert "none to go back to" in restore_plan.way_back("pve1", done, None, COMMAND)[0]


def test_the_command_line() -> None:
    assert restore_plan.command(["a b", "c"], "pve1") == (
        "ansible-playbook -i 'a b' -i c playbooks/restore.yml --limit pve1"
    )
