# SPDX-License-Identifier: Apache-2.0
"""A change of a cluster's corosync.conf: what is written, in which steps, what is refused, and the way back."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.corosync import corosync_change
from ansible.module_utils.pveguard.corosync.corosync_change import ChangeFailed, Wanted
from ansible.module_utils.pveguard.formats import corosync_conf, corosync_edit
from ansible.module_utils.pveguard.pmxcfs import pve_file, pve_lock

from .cluster import Cluster, text_of

Make = Callable[..., Cluster]
RunModule = Callable[..., dict[str, Any]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda **shape: Cluster(tmp_path / "node", monkeypatch, **shape)


def node(number: int, *links: str, **more: Any) -> dict[str, Any]:
    return {"name": f"pve{number}", "node_id": number, "links": list(links) or [f"10.70.0.{number}"], **more}


def links_of(texts: list[str]) -> list[dict[int, str]]:
    return [corosync_conf.parse(text).nodes()[0].addresses for text in texts]


#: Every kind of wish on a cluster of three nodes with two links, and what it makes of the text.
WISHES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"token_ms": 5000}, [("token: 3000", "token: 5000")]),
    ({"token_coefficient_ms": 650}, [("token_coefficient: 125", "token_coefficient: 650")]),
    ({"logging": {"debug": True}}, [("debug: off", "debug: on")]),
    ({"logging": {"debug": None}}, [("  debug: off\n", "")]),
    ({"quorum": {"expected_votes": 3}}, [("_votequorum\n", "_votequorum\n  expected_votes: 3\n")]),
    ({"totem": {"knet_mtu": 1400}}, [("  version: 2\n", "  version: 2\n  knet_mtu: 1400\n")]),
    (
        {"links": [{"number": 1, "priority": 9}, {"number": 0, "pong_count": 4}]},
        [
            ("linknumber: 1\n", "linknumber: 1\n    knet_link_priority: 9\n"),
            ("linknumber: 0\n", "linknumber: 0\n    knet_pong_count: 4\n"),
        ],
    ),
    (
        {"update_nodes": True, "nodes": [node(2, "10.70.0.2", "10.71.0.2", votes=3)]},
        [("nodeid: 2\n    quorum_votes: 1", "nodeid: 2\n    quorum_votes: 3")],
    ),
]


@pytest.mark.parametrize(("wanted", "edits"), WISHES)
def test_what_is_wanted_is_merged_written_and_awaited(
    cluster: Make, wanted: dict[str, Any], edits: list[tuple[str, str]]
) -> None:
    member = cluster(links=2)
    before, after = member.text, member.text.replace("config_version: 4", "config_version: 5")
    for old, new in edits:
        assert after.count(old) == 1
        after = after.replace(old, new)
    foreseen = member.plan(**wanted)
    assert (foreseen.changed, foreseen.after, foreseen.steps) == (True, after, 1)
    assert member.text == before and member.texts == []
    outcome = member.change(**wanted)
    assert (outcome.changed, outcome.before, outcome.after) == (True, before, after)
    assert member.text == member.running == after
    assert member.pve.with_name("corosync.conf.bak").read_text() == before
    assert not (member.root / "etc/pve/priv/lock/file-corosync_conf").exists()
    assert outcome.restart_needed == []
    # A second time nothing is there to be done.
    assert member.plan(**wanted).changed is False
    again = member.change(**wanted)
    assert (again.changed, again.reloaded, member.text) == (False, False, after)


def test_all_wishes_at_once_are_one_change(cluster: Make) -> None:
    member = cluster(links=2)
    wanted: dict[str, Any] = {}
    for wish, _ in WISHES:
        for key, value in wish.items():
            wanted[key] = {**wanted.get(key, {}), **value} if isinstance(value, dict) else value
    outcome = member.change(**wanted)
    assert outcome.steps == 1 and corosync_conf.parse(member.text).config_version == 5
    assert member.plan(**wanted).changed is False


def test_a_listed_node_is_updated_only_where_asked(cluster: Make) -> None:
    member = cluster(links=2)
    wanted = {"nodes": [node(2, "10.80.0.2", "10.71.0.2")]}
    with pytest.raises(PveguardError, match="already has node pve2"):
        member.change(**wanted)
    with pytest.raises(PveguardError, match="already has node pve2 with id 2"):
        member.change(nodes=[{**wanted["nodes"][0], "node_id": 7}], update_nodes=True)
    assert member.texts == []


def test_a_new_address_takes_the_link_off_and_on_again(cluster: Make) -> None:
    member = cluster(links=2)
    wanted = {"nodes": [node(2, "10.80.0.2", "10.71.0.2")], "update_nodes": True}
    assert member.plan(**wanted).steps == 2
    outcome = member.change(**wanted)
    assert links_of(member.texts) == [{1: "10.71.0.1"}, {0: "10.70.0.1", 1: "10.71.0.1"}]
    assert corosync_conf.parse(member.text).nodes()[1].addresses == {0: "10.80.0.2", 1: "10.71.0.2"}
    assert (outcome.steps, corosync_conf.parse(member.text).config_version) == (2, 6)
    # The former text is still the one that is kept, not the one in between.
    assert member.pve.with_name("corosync.conf.bak").read_text() == outcome.before == text_of(3, 2)
    assert member.text == outcome.before.replace("ring0_addr: 10.70.0.2", "ring0_addr: 10.80.0.2").replace(
        "config_version: 4", "config_version: 6"
    )


def test_a_link_is_added_awaited_and_removed(cluster: Make) -> None:
    member = cluster()
    addresses = {f"pve{n}": f"10.81.0.{n}" for n in (1, 2, 3)}
    member.down = {1}
    member.effect = lambda _text: member.later.append((member.now + 3, member.down.clear))
    before = member.text
    outcome = member.change(links=[{"number": 1, "addresses": addresses, "priority": 3}])
    assert member.now > 3 and outcome.steps == 1
    assert corosync_edit.addresses_of(corosync_conf.parse(member.text))[1] == addresses
    assert "  interface {\n    linknumber: 1\n    knet_link_priority: 3\n  }\n" in member.text
    member.change(links=[{"number": 1, "absent": True}])
    assert member.text == before.replace("config_version: 4", "config_version: 6")
    assert member.plan(links=[{"number": 1, "absent": True}]).changed is False


def test_the_only_link_is_replaced_by_another_one(cluster: Make) -> None:
    member = cluster()
    addresses = {f"pve{n}": f"10.81.0.{n}" for n in (1, 2, 3)}
    member.change(links=[{"number": 2, "addresses": addresses}, {"number": 0, "absent": True}])
    assert links_of(member.texts) == [{0: "10.70.0.1", 2: "10.81.0.1"}, {2: "10.81.0.1"}]
    # A node may say that it has no link 0.
    assert member.plan(nodes=[node(1, "", "", "10.81.0.1")]).changed is False


def test_all_addresses_are_replaced_one_link_at_a_time(cluster: Make) -> None:
    member = cluster(links=2)
    nodes = [node(n, f"10.90.0.{n}", f"10.91.0.{n}") for n in (1, 2, 3)]
    outcome = member.change(nodes=nodes, update_nodes=True)
    assert links_of(member.texts) == [
        {1: "10.71.0.1"},
        {0: "10.90.0.1", 1: "10.71.0.1"},
        {0: "10.90.0.1"},
        {0: "10.90.0.1", 1: "10.91.0.1"},
    ]
    assert outcome.steps == 4 and corosync_conf.parse(member.text).config_version == 8


def test_a_link_that_goes_down_while_the_lock_is_awaited(cluster: Make) -> None:
    member = cluster(links=2)
    before = member.text
    lock = member.root / "etc/pve/priv/lock/file-corosync_conf"
    lock.mkdir(parents=True)
    member.later += [(3, lambda: member.down.add(1)), (5, lock.rmdir)]
    with pytest.raises(PveguardError, match="link 0 cannot be taken away.*link 1 is not up"):
        member.change(links=[{"number": 0, "absent": True}])
    assert member.text == before and not lock.exists()


def two_node(member: Cluster) -> None:
    text = member.text.replace("_votequorum\n", "_votequorum\n  two_node: 1\n")
    for path in (member.pve, member.host):
        path.write_text(text)
    member.running = text


def qdevice(member: Cluster) -> None:
    device = "_votequorum\n  device {\n    model: net\n    votes: 1\n  }\n"
    text = member.text.replace("_votequorum\n", device)
    for path in (member.pve, member.host):
        path.write_text(text)
    member.running = text


def without_crypto(member: Cluster) -> None:
    text = member.text.replace("secauth: on", "secauth: off")
    for path in (member.pve, member.host):
        path.write_text(text)
    member.running = text


def resources(member: Cluster) -> None:
    (member.root / "etc/pve/ha").mkdir()
    (member.root / "etc/pve/ha/resources.cfg").write_text("vm: 100\n\tstate started\n")


def watchdog(member: Cluster) -> None:
    (member.root / "run/watchdog-mux.active").mkdir()


REFUSED: list[tuple[dict[str, int], Callable[[Cluster], Any] | None, dict[str, Any], str]] = [
    ({}, None, {"cluster_name": "other", "token_ms": 9000}, "is of the cluster 'lab', wanted 'other'.*keeps its name"),
    ({}, None, {"crypto": {"cipher": "none", "hash": "none"}}, "aes256/sha256 to none/none on a live cluster.*corosync_allow"),
    ({}, None, {"crypto": {"cipher": "aes128"}}, "would change from aes256/sha256 to aes128/sha256"),
    ({}, without_crypto, {"crypto": {"cipher": "aes256", "hash": "sha256"}}, "none/none to aes256/sha256"),
    ({}, None, {"update_nodes": True, "nodes": [node(1, "10.80.0.1")]}, "would replace link 0, all.*add a link with the new"),
    ({}, None, {"links": [{"number": 0, "transport": "sctp"}]}, "would replace link 0, all that"),
    ({"links": 2}, None, {"links": [{"number": 0, "absent": True}, {"number": 1, "absent": True}]}, "has no ring0_addr"),
    (
        {"links": 2},
        lambda member: member.down.add(1),
        {"links": [{"number": 0, "absent": True}]},
        "link 0 cannot be taken away, no link that stays.*link 1 is not up to node ids 2, 3",
    ),
    (
        {"links": 2},
        lambda member: member.down.add(1),
        {"update_nodes": True, "nodes": [node(1, "10.80.0.1", "10.71.0.1")]},
        "link 0 cannot be taken away",
    ),
    ({}, None, {"quorum": {"two_node": 1}}, "two_node is 1 with 3 nodes"),
    ({"nodes": 2}, None, {"quorum": {"two_node": 1}}, "QDevice"),
    (
        {},
        lambda member: member.live.discard(3),
        {"update_nodes": True, "nodes": [node(3, votes=3)]},
        "the 2 of the live members would be no majority of 5",
    ),
    ({}, None, {"quorum": {"expected_votes": 6}}, "no majority of 6"),
    ({}, qdevice, {"nodes": [node(4)]}, "remove it with 'pvecm qdevice remove'"),
    ({}, resources, {"totem": {"link_mode": "rr"}}, "totem.link_mode is taken only at a restart.*resources .vm:100.*ha-manager"),
    ({}, watchdog, {"quorum": {"wait_for_all": 1}}, "quorum.wait_for_all is taken only.*watchdog"),
    ({}, None, {"totem": {"transport": "udpu"}}, "every member would have to be stopped"),
    ({}, None, {"totem": {"link_mode": "best"}}, "corosync.conf would be wrong: totem.link_mode is 'best'"),
    ({}, None, {"links": [{"number": 5, "priority": 3}]}, "link 5 is not in corosync.conf, which has 0"),
    ({}, None, {"links": [{"number": 1, "addresses": {"pve1": "10.81.0.1"}}]}, "pve2 has no ring1_addr"),
    ({}, None, {"links": [{"number": 1, "addresses": {"pve9": "10.81.0.1"}}]}, "lists no node 'pve9'"),
]


@pytest.mark.parametrize(("shape", "state", "wanted", "message"), REFUSED)
def test_what_is_refused_changes_nothing(
    cluster: Make, shape: dict[str, int], state: Callable[[Cluster], Any] | None, wanted: dict[str, Any], message: str
) -> None:
    member = cluster(**shape)
    if state:
        state(member)
    before = {path: path.read_bytes() for path in member.root.rglob("*") if path.is_file()}
    for change in (member.plan, member.change):
        with pytest.raises(PveguardError, match=message):
            change(**wanted)
    assert {path: path.read_bytes() for path in member.root.rglob("*") if path.is_file()} == before
    assert member.texts == []


@pytest.mark.parametrize(
    ("version", "live", "key", "message"),
    [
        ("3.1.9", (1, 2, 3), True, None),
        ("3.0.4", (1, 2, 3), True, "version '3.0; only 3.1 and later"),
        ("3.1.9", (1, 2), True, "pve3 is away and could not come back"),
        ("3.1.9", (1, 2, 3), False, "authkey does not exist on this node"),
    ],
)
def test_crypto_is_changed_only_where_it_can_be(
    cluster: Make, version: str, live: tuple[int, ...], key: bool, message: str | None
) -> None:
    member = cluster()
    without_crypto(member)
    member.version, member.live = version, set(live)
    if not key:
        (member.root / "etc/corosync/authkey").unlink()
    wanted = {"crypto": {"cipher": "aes256", "hash": "sha512"}, "allow_crypto_change": True}
    if message:
        with pytest.raises(PveguardError, match=message):
            member.change(**wanted)
        assert member.texts == []
        return
    outcome = member.change(**wanted)
    assert corosync_conf.parse(member.text).crypto == ("aes256", "sha512") and outcome.restart_needed == []
    assert member.plan(**wanted).changed is False


def test_what_is_kept(cluster: Make) -> None:
    member = cluster(nodes=2)
    two_node(member)
    outcome = member.change(token_ms=5000)
    assert "two_node: 1" in member.text and any("two_node" in warning for warning in outcome.warnings)
    qdevice(member)
    member.change(token_ms=6000)
    assert "  device {\n    model: net\n" in member.text


def test_votes_with_a_qdevice(cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes and a QDevice with one of them away: the device's vote counts."""
    member = cluster(nodes=2)
    qdevice(member)
    monkeypatch.setattr(Cluster, "quorate", True)
    member.live = {1}
    member.answer = lambda _argv, said: re.sub(
        "Total votes:.*", "Total votes: 2", re.sub("Expected votes:.*", "Expected votes: 3", said)
    )
    assert member.plan(nodes=[node(2, votes=0)], update_nodes=True).changed
    with pytest.raises(PveguardError, match="the 2 of the live members would be no majority of 6"):
        member.plan(nodes=[node(2, votes=4)], update_nodes=True)


def test_what_needs_a_restart_is_said(cluster: Make) -> None:
    member = cluster()
    outcome = member.change(totem={"link_mode": "active", "window_size": 60}, quorum={"wait_for_all": True})
    assert outcome.restart_needed == ["quorum.wait_for_all", "totem.link_mode"]
    assert member.plan(totem={"link_mode": "active"}).restart_needed == []


def test_bytes_that_are_not_text_stay(cluster: Make) -> None:
    member = cluster()
    data = b"# gr\xfc\xdfe\n" + member.pve.read_bytes()
    for path in (member.pve, member.host):
        path.write_bytes(data)
    member.running = data.decode("utf-8", "surrogateescape")
    member.change(token_ms=5000)
    wanted = data.replace(b"token: 3000", b"token: 5000").replace(b"config_version: 4", b"config_version: 5")
    assert member.pve.read_bytes() == wanted
    assert member.pve.with_name("corosync.conf.bak").read_bytes() == data


# The way back


def failed(member: Cluster, **wanted: Any) -> ChangeFailed:
    with pytest.raises(ChangeFailed) as caught:
        member.change(**wanted)
    return caught.value


def test_a_change_that_a_member_does_not_take_is_undone(cluster: Make) -> None:
    member = cluster()
    before = member.text
    member.accept = lambda text: "token: 5000" not in text
    member.journal = ["corosync[1]: notice all is well", "corosync[1]: error [CFG] Cannot configure new interface"]
    error = failed(member, token_ms=5000)
    assert error.rolled_back is True
    assert member.text == member.running == before.replace("config_version: 4", "config_version: 6")
    assert member.pve.with_name("corosync.conf.bak").read_text() == before
    assert (error.before, error.after) == (
        before,
        before.replace("token: 3000", "token: 5000").replace("config_version: 4", "config_version: 5"),
    )
    assert error.journal == ["corosync[1]: error [CFG] Cannot configure new interface"]
    for part in (
        "(config_version 5) has not arrived everywhere after 20 s: corosync runs config_version 4, wanted 5",
        "put back with config_version 6 and is in force",
        "-  token: 3000\n+  token: 5000",
        "Cannot configure new interface",
    ):
        assert part in str(error)
    # One more attempt, when members take it again.
    member.accept = lambda _text: True
    assert member.change(token_ms=5000).changed and "config_version: 7" in member.text


def test_a_member_that_is_lost_by_the_change_brings_the_way_back(cluster: Make) -> None:
    member = cluster()
    before = member.text

    def effect(text: str) -> None:
        member.live = {1, 2} if "token: 5000" in text else {1, 2, 3}

    member.effect = effect
    error = failed(member, token_ms=5000)
    assert error.rolled_back and "node ids 3 are not in the membership [1, 2]" in str(error)
    assert member.running == before.replace("config_version: 4", "config_version: 6")


def test_a_member_that_stays_away_does_not_hold_up_the_way_back(cluster: Make) -> None:
    """The ring was cut during the change, which is not what cut it."""
    member = cluster()
    member.effect = lambda _text: member.live.discard(3)
    error = failed(member, token_ms=5000)
    assert error.rolled_back and "token: 3000" in member.running
    assert "in force on every live member. Node ids 3 have not come back and get it when they do" in str(error)


def test_a_version_that_ran_somewhere_is_passed(cluster: Make) -> None:
    member = cluster()
    member.accept = lambda text: "token: 5000" not in text

    def answer(_argv: list[str], said: str) -> str:
        three = "members.3.config_version (u64) ="
        return said.replace(f"{three} 4", f"{three} 9") if "token: 5000" in member.text else said

    member.answer = answer
    assert failed(member, token_ms=5000).rolled_back
    assert corosync_conf.parse(member.text).config_version == 10


def test_a_link_that_does_not_come_up_is_taken_back_step_by_step(cluster: Make) -> None:
    member = cluster(links=2)
    before = member.text

    def effect(text: str) -> None:
        member.down = {0} if "10.80.0.1" in text else set()

    member.effect = effect
    error = failed(member, nodes=[node(n, f"10.80.0.{n}", f"10.71.0.{n}") for n in (1, 2, 3)], update_nodes=True)
    assert error.rolled_back and "link 0 is not up to node ids 2, 3" in str(error)
    assert links_of(member.texts) == [
        {1: "10.71.0.1"},
        {0: "10.80.0.1", 1: "10.71.0.1"},
        {1: "10.71.0.1"},
        {0: "10.70.0.1", 1: "10.71.0.1"},
    ]
    assert member.running == member.text == before.replace("config_version: 4", "config_version: 8")


def test_quorum_that_comes_back_in_time(cluster: Make) -> None:
    member = cluster()

    def effect(text: str) -> None:
        if "token: 5000" in text:
            member.live = {1}
            member.later.append((member.now + 30, lambda: member.live.update({2, 3})))

    member.effect = effect
    assert failed(member, token_ms=5000).rolled_back
    assert "token: 3000" in member.text and member.text == member.running


def test_quorum_that_stays_lost_leaves_a_file_and_says_what_to_do(cluster: Make) -> None:
    member = cluster()
    before = member.text

    def effect(text: str) -> None:
        if "token: 5000" in text:
            member.live = {1}

    member.effect = effect
    error = failed(member, token_ms=5000)
    assert error.rolled_back is False and "token: 5000" in member.text
    copy = member.root / "var/lib/pveguard/corosync.conf.rollback"
    assert copy.read_text() == before.replace("config_version: 4", "config_version: 6")
    assert copy.stat().st_mode & 0o777 == 0o600
    for part in ("could NOT be put back", "EVERY node", "systemctl restart corosync", "corosync-quorumtool -e 1"):
        assert part in str(error)


def test_another_ones_change_is_not_undone(cluster: Make) -> None:
    member = cluster()

    def effect(text: str) -> None:
        member.live = {1, 2}
        member.pve.write_text(text.replace("config_version: 5", "config_version: 6").replace("to_syslog", "to_stderr"))

    member.effect = effect
    error = failed(member, token_ms=5000)
    assert error.rolled_back is False and "someone else has changed" in str(error)
    assert "to_stderr" in member.text and "token: 5000" in member.text


def test_a_way_back_that_does_not_arrive_says_both(cluster: Make) -> None:
    member = cluster()
    member.accept = lambda _text: False
    error = failed(member, token_ms=5000)
    assert error.rolled_back is False
    assert "wanted 5" in str(error) and "has not arrived either" in str(error) and "wanted 6" in str(error)


def test_nothing_is_undone_where_nothing_was_written(cluster: Make) -> None:
    member = cluster()
    before = member.text
    member.live = {1, 2}
    with pytest.raises(PveguardError, match="node ids 3 are not in") as caught:
        member.change(expected_ids=[1, 2, 3])
    assert not isinstance(caught.value, ChangeFailed) and member.text == before
    member.valid = lambda text: "parse error in config" if "token: 5000" in text else ""
    with pytest.raises(PveguardError, match="corosync refuses the new corosync.conf.*parse error"):
        member.change(token_ms=5000)
    assert member.text == before and not member.pve.with_name("corosync.conf.bak").exists()


# Joins


def test_a_listed_node_that_never_comes_is_not_waited_for_and_can_be_taken_off(cluster: Make) -> None:
    member = cluster(nodes=1)
    before = member.text
    outcome = member.change(nodes=[node(2)])
    assert outcome.changed and member.quorate is False and outcome.info["live_member_ids"] == [1]
    with pytest.raises(PveguardError, match="node ids 2 are not in") as caught:
        member.change(nodes=[node(2)], expected_ids=[1, 2])
    assert not isinstance(caught.value, ChangeFailed) and "name: pve2" in member.text
    member.change(nodes=[{"name": "pve2"}], absent=True)
    assert member.quorate and member.text == before.replace("config_version: 4", "config_version: 6")


def test_a_listing_that_fails_is_undone_although_it_cost_the_quorum(cluster: Make) -> None:
    """The founder of a cluster of one has no quorum any more: the vote of the node that is not there is taken off."""
    member = cluster(nodes=1)
    before = member.text

    def answer(_argv: list[str], said: str) -> str:
        one = "members.1.config_version (u64) ="
        return said.replace(f"{one} 5", f"{one} 4") if "name: pve2" in member.text else said

    member.answer = answer
    error = failed(member, nodes=[node(2)])
    assert error.rolled_back, error
    assert ["corosync-quorumtool", "-e", "1"] in member.calls
    assert member.quorate and member.text == before.replace("config_version: 4", "config_version: 6")
    # What join.yml does next finds nothing to take off.
    assert member.change(nodes=[{"name": "pve2"}], absent=True).changed is False


def test_a_node_that_came_after_all_is_not_taken_off_by_the_way_back(cluster: Make) -> None:
    member = cluster(nodes=2)

    def effect(_text: str) -> None:
        member.live = {1, 3}
        member.later.append((member.now + 1, lambda: member.live.add(3)))

    member.effect = effect
    error = failed(member, nodes=[node(3)])
    assert error.rolled_back is False and "because pve3, which it lists, is a live member by now" in str(error)
    assert "name: pve3" in member.text


def test_a_removal_is_not_undone(cluster: Make) -> None:
    member = cluster()
    member.live = {1, 2}
    member.accept = lambda _text: False
    with pytest.raises(PveguardError, match="has not arrived everywhere") as caught:
        member.change(nodes=[{"name": "pve3"}], absent=True)
    assert not isinstance(caught.value, ChangeFailed) and "pve3" not in member.text


# A text put back


def restore(member: Cluster, text: str, **more: Any) -> corosync_change.Outcome:
    return corosync_change.restore(
        text, 20, run=member.run, root=member.root, sleep=member.sleep, clock=lambda: member.now, **more
    )


def test_a_former_text_is_put_back_with_a_higher_version(cluster: Make) -> None:
    member = cluster(links=2)
    nodes = [node(n, f"10.80.0.{n}", f"10.71.0.{n}") for n in (1, 2, 3)]
    outcome = member.change(nodes=nodes, update_nodes=True, token_ms=5000)
    assert restore(member, outcome.before, check_mode=True).changed and "token: 5000" in member.text
    back = restore(member, outcome.before)
    assert (back.changed, back.steps) == (True, 2)
    assert member.text == member.running == outcome.before.replace("config_version: 4", "config_version: 8")
    again = restore(member, outcome.before)
    assert again.changed is False and "config_version: 8" in member.text


def test_a_text_that_must_not_be_put_back(cluster: Make) -> None:
    member = cluster()
    before = member.text
    with pytest.raises(PveguardError, match="of the cluster 'other', this is 'lab'"):
        restore(member, before.replace("cluster_name: lab", "cluster_name: other"))
    with pytest.raises(PveguardError, match="the text to be restored: line 1, column 1"):
        restore(member, "nonsense\n")
    member.valid = lambda _text: "parse error"
    with pytest.raises(PveguardError, match="corosync refuses"):
        restore(member, before.replace("3000", "4000"))
    assert member.text == before


# The module


def test_the_module_hands_everything_on(run_module: RunModule, monkeypatch: pytest.MonkeyPatch, cluster: Make) -> None:
    member = cluster(links=2)
    seen: list[Wanted] = []
    real = corosync_change.plan
    monkeypatch.setattr(
        corosync_change, "plan", lambda wanted: (seen.append(wanted), real(wanted, member.run, member.root))[1]
    )
    result = run_module(
        "corosync_conf",
        _ansible_check_mode=True,
        token_coefficient=200,
        update_nodes=True,
        nodes=[node(1, "10.70.0.1", "10.71.0.9")],
        links=[{"number": 0, "priority": 7}],
        totem={"link_mode": "rr"},
        logging={"debug": True},
        quorum={"wait_for_all": False},
        crypto={"hash": "sha256"},
    )
    assert (result["changed"], result["steps"], result["config_version"]) == (True, 2, 6), result
    assert result["restart_needed"] == ["quorum.wait_for_all", "totem.link_mode"]
    for line in ("token_coefficient: 200", "ring1_addr: 10.71.0.9", "knet_link_priority: 7", "debug: on", "wait_for_all: 0"):
        assert line in result["diff"]["after"] and line not in result["diff"]["before"]
    assert seen[0].crypto == {"cipher": None, "hash": "sha256"} and seen[0].nodes[0]["votes"] is None
    result = run_module("corosync_conf", token=5000, restore="totem {\n}\n")
    assert result["failed"] and "takes no other wish" in result["msg"]
    result = run_module("corosync_conf", _ansible_check_mode=True, links=[{"number": 1, "state": "absent"}])
    assert "ring1_addr" not in result["text"] and result["changed"]


def test_the_module_fails_with_both_texts(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch, cluster: Make
) -> None:
    member = cluster()
    member.accept = lambda text: "token: 5000" not in text
    member.journal = ["corosync[1]: error x"]
    monkeypatch.setattr(
        corosync_change,
        "apply",
        lambda wanted, deadline, expected, real=corosync_change.apply: real(
            wanted, 5, expected, member.run, member.root, member.sleep, lambda: member.now
        ),
    )
    result = run_module("corosync_conf", token=5000)
    assert result["failed"] and result["rolled_back"] is True and "is in force" in result["msg"]
    assert "token: 3000" in result["before"] and "token: 5000" in result["after"]
    assert result["journal"] == ["corosync[1]: error x"]


def test_a_probe_that_dies_while_a_change_arrives_undoes_nothing(cluster: Make) -> None:
    member = cluster()
    member.change(nodes=[{"name": "watch1", "node_id": 9, "links": ["10.70.0.100"], "votes": 0}])
    member.live.add(9)
    member.effect = lambda _text: member.live.discard(9)
    assert member.change(token_ms=5000).changed and "token: 5000" in member.text
    # A member that is lost does, also without a vote; and so does one with the id that probes once had.
    member.effect = lambda text: member.live.discard(3) if "token: 6000" in text else None
    with pytest.raises(ChangeFailed):
        member.change(token_ms=6000)
    member.live.add(3)
    for node_id, votes in ((1000, 1), (12, 0)):
        name = f"pve{node_id}"
        member.change(nodes=[{"name": name, "node_id": node_id, "links": [f"10.70.0.{node_id % 255}"], "votes": votes}])
        (member.root / "etc/pve/nodes" / name).mkdir(parents=True)
        (member.root / "etc/pve/nodes" / name / "lrm_status").touch()
        member.live.add(node_id)
        member.effect = lambda text, lost=node_id: member.live.discard(lost) if "token: 7000" in text else None
        with pytest.raises(ChangeFailed):
            member.change(token_ms=7000)
        member.live.add(node_id)


# The lock on corosync.conf


LOCK = "etc/pve/priv/lock/file-corosync_conf"


def test_a_listing_that_costs_the_quorum_leaves_its_lock_for_later(cluster: Make) -> None:
    """As on the real daemon, which answers the rename after a second: the new text runs by then."""
    member = cluster(nodes=1)
    member.takes_locks = lambda: member.quorate and "name: pve2" not in member.text
    outcome = member.change(nodes=[node(2)])
    (kept,) = outcome.lock_kept
    assert outcome.changed and kept.shown() == {"path": f"/{LOCK}", "reason": "Permission denied"}
    assert (member.root / LOCK).is_dir() and pve_lock.noted(member.root) == [kept]
    # A look costs nothing more while it cannot be given back.
    began = member.now
    assert member.change().lock_kept == [kept] and member.now == began
    # The node has joined: the next call here, which changes nothing, gives it back.
    member.live.add(2)
    member.takes_locks = lambda: True
    again = member.change(nodes=[node(2)], expected_ids=[1, 2])
    assert (again.changed, again.lock_kept) == (False, [])
    assert not (member.root / LOCK).exists() and pve_lock.noted(member.root) == []


def test_the_lock_of_a_listing_whose_node_never_came_goes_when_it_is_taken_off(cluster: Make) -> None:
    member = cluster(nodes=1)
    member.takes_locks = lambda: member.quorate and "name: pve2" not in member.text
    assert member.change(nodes=[node(2)]).lock_kept
    member.takes_locks = lambda: member.quorate
    outcome = member.change(nodes=[{"name": "pve2"}], absent=True)
    assert outcome.changed and outcome.lock_kept == [] and not (member.root / LOCK).exists()


def test_a_failed_change_gives_its_lock_back_or_notes_it(cluster: Make) -> None:
    member = cluster()
    member.accept = lambda text: "token: 5000" not in text
    failing = iter([True, False, False])  # mkdir, rmdir, rmdir at the end of the call ...
    member.takes_locks = lambda: next(failing, True)
    assert failed(member, token_ms=5000).rolled_back
    assert not (member.root / LOCK).exists() and pve_lock.noted(member.root) == []

    def effect(text: str) -> None:
        if "token: 6000" in text:
            member.live = {1}

    member.effect, member.accept = effect, lambda _text: True
    member.takes_locks = lambda: "token: 6000" not in member.text
    assert failed(member, token_ms=6000).rolled_back is False
    (kept,) = pve_lock.noted(member.root)
    assert kept.reason == "Permission denied" and (member.root / LOCK).is_dir()


def test_a_lock_of_a_dead_holder_holds_up_no_change(cluster: Make) -> None:
    """A lock of a killed run, fresh or old: the daemon drops it when it is asked to, 120 s after it was made."""
    member = cluster()
    lock = member.root / LOCK
    lock.mkdir(parents=True)
    member.later.append((125, lock.rmdir))
    assert member.change(token_ms=5000).changed and 125 <= member.now < 140
    assert ["touch", "-c", "-d", "@0", str(lock)] in member.calls and not lock.exists()


def test_check_mode_neither_takes_nor_gives_back(cluster: Make) -> None:
    member = cluster(nodes=1)
    member.takes_locks = lambda: member.quorate and "name: pve2" not in member.text
    member.change(nodes=[node(2)])
    member.live.add(2)
    before = {path: path.stat().st_mtime_ns for path in member.root.rglob("*")}
    member.calls.clear()
    member.plan(token_ms=5000)
    restore(member, text_of(2), check_mode=True)
    corosync_change.publish(member.text, 20, check_mode=True, run=member.run, root=member.root)
    assert {path: path.stat().st_mtime_ns for path in member.root.rglob("*") if "candidate" not in path.name} == before
    assert not {"mkdir", "rmdir", "touch"} & {argv[0] for argv in member.calls}


def test_an_error_of_the_rename_does_not_say_that_it_was_not_done(cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    member = cluster()
    real = os.rename

    def lost(source: Any, target: Any) -> None:
        real(source, target)
        if str(target).endswith("etc/pve/corosync.conf"):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "rename", lost)
    assert member.change(token_ms=5000).changed and "token: 5000" in member.running


def test_a_write_that_a_passing_loss_of_quorum_refuses_is_done_again(cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    member = cluster()
    real = os.rename
    until = [3.0]

    def refuse(source: Any, target: Any) -> None:
        if str(target).endswith("etc/pve/corosync.conf") and member.now < until[0]:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    assert member.change(token_ms=5000).changed and member.now >= 3
    # One that lasts is told, nothing stays beside the file.
    until[0] = 1e9
    before = member.text
    with pytest.raises(PveguardError, match="corosync.conf: Permission denied: quorum may have been lost"):
        member.change(token_ms=6000)
    assert member.text == before and not member.pve.with_name("corosync.conf.new").exists()
    assert not (member.root / LOCK).exists()


def test_a_daemon_that_never_answers_a_write_does_not_hang_the_change(cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    member = cluster()
    monkeypatch.setattr(pve_file, "ANSWER_S", 0.2)
    monkeypatch.setattr(pve_file.answered, "__defaults__", (0.2,))
    monkeypatch.setattr(pve_file, "write_in_place", lambda *_: time.sleep(3600))
    with pytest.raises(PveguardError, match="no answer from the daemon within"):
        member.change(token_ms=5000)


def test_the_module_says_which_lock_it_left(run_module: RunModule, monkeypatch: pytest.MonkeyPatch, cluster: Make) -> None:
    member = cluster(nodes=1)
    member.takes_locks = lambda: member.quorate and "name: pve2" not in member.text
    real, noted = corosync_change.apply, pve_lock.noted
    monkeypatch.setattr(
        corosync_change,
        "apply",
        lambda wanted, deadline, expected: real(
            wanted, deadline, expected, member.run, member.root, member.sleep, lambda: member.now
        ),
    )
    monkeypatch.setattr(pve_lock, "noted", lambda root=member.root: noted(root))
    result = run_module("corosync_conf", nodes=[node(2)], deadline_seconds=5)
    expected = [{"path": f"/{LOCK}", "reason": "Permission denied"}]
    assert result["changed"] and result["lock_kept"] == expected, result
    assert not result.get("warnings")
    # Also where the call fails, and then whoever reads the failure is told.
    result = run_module("corosync_conf", nodes=[node(2)], expected_ids=[1, 2], deadline_seconds=5)
    assert result["failed"] and result["lock_kept"] == expected, result
    assert f"/{LOCK} could not be given back: Permission denied" in str(result["warnings"])
