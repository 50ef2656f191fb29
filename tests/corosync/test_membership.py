# SPDX-License-Identifier: Apache-2.0
"""Founding, joining and the way back, with real corosync and the double of pmxcfs in namespaces."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.formats import corosync_conf, corosync_edit

from lab.tests.doubles.harness import wait_for, why_not

from .nodes import Member, Switch

pytestmark = [pytest.mark.slow, pytest.mark.root]


@pytest.fixture
def members() -> Iterator[Callable[..., Member]]:
    reason = why_not() or (None if shutil.which("corosync") else "needs corosync")
    if reason:
        pytest.skip(reason)
    switch = Switch()
    made: list[Member] = []

    def make(number: int, name: str | None = None, at: int | None = None) -> Member:
        made.append(Member(number, name, at))
        switch.plug(made[-1])
        return made[-1]

    yield make
    for node in made:
        node.close()
    switch.close()


def founded(node: Member) -> Member:
    conf = corosync_edit.render_new("pvelab", [node.listed()])
    result = node.member(state="bootstrapped", conf=conf, authkey=None, tree_sha256=None)
    assert result.get("error") is None, result
    return node


def join(seed: Member, node: Member, **more: Any) -> dict[str, Any]:
    listed = seed.change(cluster_name="pvelab", nodes=[node.listed()])
    assert listed.get("error") is None, listed
    request = {
        "state": "joined",
        "conf": listed["after"],
        "authkey": seed.authkey(),
        "expected_ids": [*listed["live"], node.number],
        "tree_sha256": None,
        **more,
    }
    return node.member(**request)


def wait_equal(*nodes: Member) -> None:
    """Each member takes the same changes, at its own time: also the trial of a node that has just joined."""
    wait_for("equal trees", lambda: all(node.tree() == nodes[0].tree() for node in nodes[1:]))


def put_guest(node: Member, number: int) -> None:
    (node.pve / f"nodes/{node.name}/qemu-server").mkdir(parents=True)
    (node.pve / f"nodes/{node.name}/qemu-server/{number}.conf").write_text("memory: 512\n")


def test_the_founder_keeps_what_it_has(members: Callable[[int], Member]) -> None:
    node = members(1)
    put_guest(node, 100)
    before = node.tree()
    founded(node)
    info = node.info()
    assert info["quorate"] and info["copies_equal"] and info["running_config_version"] == 1
    assert info["live_member_ids"] == [1]
    assert (node.root / "etc/corosync/authkey").stat().st_mode & 0o777 == 0o400
    assert {path: data for path, data in node.tree().items() if path != "corosync.conf"} == before
    store = node.root / "var/lib/pveguard/state/generations"
    (manifest,) = store.glob("*-before-bootstrap.json")
    facts = json.loads(manifest.read_text())
    assert facts["mode"] == "standalone" and facts["node"] == "pve1" and facts["config_version"] is None
    data = manifest.with_suffix(".db").read_bytes()
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert store.stat().st_mode & 0o777 == 0o700


def test_two_nodes_join_one_after_the_other(members: Callable[[int], Member]) -> None:
    first = founded(members(1))
    second, third = members(2), members(3)
    # Protection is already on the second: its watcher must not hold the old database.
    second.systemctl("start", "pveguard-state-watch.service")
    (second.pve / "own.cfg").write_text("given up\n")
    result = join(first, second)
    assert result.get("error") is None, result
    assert result["live_member_ids"] == [1, 2]
    assert second.running("pveguard-state-watch.service")
    calls = (second.root / "run/systemctl.log").read_text().splitlines()
    assert calls.index("stop pveguard-state-watch.service") < calls.index("stop pve-cluster.service")
    result = join(first, third)
    assert result.get("error") is None, result
    assert result["live_member_ids"] == [1, 2, 3]
    nodes = (first, second, third)
    for node in nodes:
        info = node.info()
        assert info["copies_equal"] and info["quorate"] and info["running_config_version"] == 3, info
        assert info["member_config_versions"] == {"1": 3, "2": 3, "3": 3}
    wait_equal(first, second, third)
    assert "own.cfg" not in first.tree()
    assert list((second.state / "backup").glob("config-*.sql.gz"))
    assert list((second.root / "var/lib/pveguard/state/generations").glob("*-before-join.db"))
    # A second time nothing is there to be done, and the module sees it before it starts anything.
    again = first.change(cluster_name="pvelab", nodes=[second.listed()])
    assert again["changed"] is False


def test_a_join_that_fails_leaves_both_sides_as_they_were(members: Callable[[int], Member]) -> None:
    first, second = founded(members(1)), members(2)
    (second.pve / "own.cfg").write_text("kept\n")
    before = second.rows()
    # A wrong key: the node never sees the founder.
    wrong = base64.b64encode(b"w" * 256).decode()
    result = join(first, second, authkey=wrong, deadline_s=20)
    assert result["restored"] is True and "The node is as it was before" in result["error"]
    assert "no quorum" in result["error"]
    assert second.rows() == before
    assert (second.pve / "own.cfg").read_text() == "kept\n"
    assert second.writable()
    assert not (second.root / "etc/corosync/corosync.conf").exists()
    assert not (second.root / "etc/corosync/authkey").exists()
    assert not second.running("corosync.service")
    # Its vote has cost the founder its quorum; taking it off the list brings it back.
    assert first.info()["quorate"] is False
    # A run that starts from here finds it listed, writes nothing and needs no quorum for that.
    again = first.change(cluster_name="pvelab", nodes=[second.listed()])
    assert (again.get("error"), again.get("changed"), again.get("live")) == (None, False, [1])
    result = first.change(cluster_name="pvelab", nodes=[{"name": "pve2"}], absent=True)
    assert result.get("error") is None, result
    info = first.info()
    assert info["quorate"] and info["cluster"]["config_version"] == 3 and len(info["members"]) == 1
    assert first.writable()
    # And now it works.
    assert join(first, second).get("error") is None


@pytest.mark.parametrize("unit", ["corosync.service", "pve-cluster.service"])
def test_a_unit_that_does_not_start(members: Callable[[int], Member], unit: str) -> None:
    node = members(1)
    put_guest(node, 100)
    before = node.tree()
    verb = "restart" if unit == "corosync.service" else "start"
    marker = node.root / f"run/fail-{verb}-{unit}"
    marker.touch()
    conf = corosync_edit.render_new("pvelab", [node.listed()])
    result = node.member(state="bootstrapped", conf=conf, authkey=None, tree_sha256=None)
    assert f"systemctl {verb} {unit} failed" in result["error"]
    if unit == "pve-cluster.service":
        # The way back needs that unit too: what could not be done is said, with the database's place.
        assert result["restored"] is False
        assert "NOT everything" in result["error"] and "before-bootstrap" in result["error"]
        marker.unlink()
        node.systemctl("start", unit)
    else:
        assert result["restored"] is True
    assert node.tree() == before
    assert node.writable()
    assert not (node.root / "etc/corosync/corosync.conf").exists()


def test_a_database_that_changed_after_it_was_judged(members: Callable[[int], Member]) -> None:
    first, second = founded(members(1)), members(2)
    judged = second.python("from pveguard.pmxcfs import pmxcfs\nresult = pmxcfs.collect()")["tree_sha256"]
    put_guest(second, 101)
    result = join(first, second, tree_sha256=judged)
    assert "changed while" in result["error"]
    assert "101.conf" in "".join(second.tree()) and second.writable()
    assert "stop pve-cluster.service" not in (second.root / "run/systemctl.log").read_text()


def test_login_keys_that_the_cluster_does_not_know_stay_valid_here(members: Callable[[int], Member]) -> None:
    first, second = founded(members(1)), members(2)
    for node, key in (
        (first, "ssh-ed25519 AAAA shared"),
        (second, "ssh-ed25519 AAAA shared\nssh-ed25519 BBBB own"),
    ):
        (node.pve / "priv").mkdir(exist_ok=True)
        (node.pve / "priv/authorized_keys").write_text(key + "\n")
        (node.root / "root/.ssh/authorized_keys").symlink_to("/etc/pve/priv/authorized_keys")
    result = join(first, second)
    assert result.get("error") is None, result
    local = second.root / "root/.ssh/authorized_keys2"
    assert local.read_text() == "ssh-ed25519 BBBB own\n"
    assert local.stat().st_mode & 0o777 == 0o600
    assert "authorized_keys2" in result["warnings"][0]
    assert (first.pve / "priv/authorized_keys").read_text() == "ssh-ed25519 AAAA shared\n"


def test_token_and_refusals_of_a_change(members: Callable[[int], Member], tmp_path: Path) -> None:
    first = founded(members(1))
    assert first.change(token_ms=4000)["changed"] is True
    info = first.info()
    assert info["token_ms"] == 4000 and info["running_config_version"] == 2
    assert (first.pve / "corosync.conf.bak").read_text().count("token: 3000") == 1
    assert not (first.pve / "corosync.conf.new").exists()
    assert not (first.pve / "priv/lock/file-corosync_conf").exists()
    text = (first.pve / "corosync.conf").read_bytes()
    for wanted, message in (
        ({"cluster_name": "other", "token_ms": 5000}, "is of the cluster 'pvelab'"),
        ({"nodes": [{"name": "pve2", "node_id": 1, "links": ["10.77.0.2"]}]}, "already has node pve1"),
        ({"token_ms": 1}, "corosync.conf would be wrong: totem.token is 1"),
    ):
        assert message in first.change(**wanted)["error"]
    assert (first.pve / "corosync.conf").read_bytes() == text
    (first.root / "etc/corosync/corosync.conf").write_bytes(text + b"# edited by hand\n")
    assert "differs from /etc/pve/corosync.conf" in first.change(token_ms=5000)["error"]
    first.systemctl("stop", "corosync.service")
    assert "corosync is not running" in first.change(token_ms=5000)["error"]


def test_links_come_move_and_go_while_the_cluster_stays(members: Callable[[int], Member]) -> None:
    """What the change core knows of reloads, tried on real corosync: each step arrives on both nodes."""
    first, second = founded(members(1)), members(2)
    assert join(first, second).get("error") is None
    for node in (first, second):
        for net in (88, 99):
            node.sh(f"ip addr add 10.{net}.0.{node.number}/24 dev e0")

    def links(node: Member) -> dict[int, str]:
        return {link["link"]: link["address"] for link in node.info()["links"]}

    def change(**wanted: Any) -> dict[str, Any]:
        result = first.change(**wanted)
        assert result.get("error") is None, result
        for node in (first, second):
            info = node.info()
            assert info["quorate"] and info["copies_equal"] and info["live_member_ids"] == [1, 2], info
            assert info["running_config_version"] == info["cluster"]["config_version"]
        return result

    change(links=[{"number": 1, "addresses": {"pve1": "10.88.0.1", "pve2": "10.88.0.2"}, "priority": 9}])
    assert links(second) == {0: "10.77.0.2", 1: "10.88.0.2"}
    nodes = [{"name": f"pve{n}", "node_id": n, "links": [f"10.99.0.{n}", f"10.88.0.{n}"]} for n in (1, 2)]
    change(nodes=nodes, update_nodes=True, token_ms=4000, logging={"debug": False})
    assert links(second) == {0: "10.99.0.2", 1: "10.88.0.2"}
    assert first.info()["token_ms"] == second.info()["token_ms"] == 4000
    change(links=[{"number": 0, "absent": True}])
    assert links(first) == {1: "10.88.0.1"} and links(second) == {1: "10.88.0.2"}
    # Encryption, without a restart.
    change(crypto={"cipher": "aes128", "hash": "sha512"}, allow_crypto_change=True)
    change(crypto={"cipher": "none", "hash": "none"}, allow_crypto_change=True)
    change(crypto={"cipher": "aes256", "hash": "sha256"}, allow_crypto_change=True)
    assert change(crypto={"cipher": "aes256", "hash": "sha256"})["changed"] is False


def test_a_link_that_does_not_come_up_is_undone(members: Callable[[int], Member]) -> None:
    first, second = founded(members(1)), members(2)
    assert join(first, second).get("error") is None
    before = (first.pve / "corosync.conf").read_text()
    # The second node does not have its address.
    first.sh("ip addr add 10.88.0.1/24 dev e0")
    wanted = {"number": 1, "addresses": {"pve1": "10.88.0.1", "pve2": "10.88.0.2"}}
    error = first.change(links=[wanted], timeout_s=20)["error"]
    assert "link 1 is not up to node ids 2" in error and "is in force on every live member" in error, error
    assert "+    ring1_addr: 10.88.0.2" in error
    version = corosync_conf.parse(before).config_version or 0
    for node in (first, second):
        text = (node.root / "etc/corosync/corosync.conf").read_text()
        assert text == before.replace(f"config_version: {version}", f"config_version: {version + 2}")
        info = node.info()
        assert info["quorate"] and info["running_config_version"] == version + 2
        assert info["live_member_ids"] == [1, 2] and [link["link"] for link in info["links"]] == [0]


def test_a_setting_that_is_taken_at_a_restart(members: Callable[[int], Member]) -> None:
    first, second = founded(members(1)), members(2)
    assert join(first, second).get("error") is None
    script = "from pveguard.corosync import corosync_restart\nresult = corosync_restart.restart(60, *args)"
    changed = first.change(totem={"link_mode": "rr"})
    assert changed["restart"] == ["totem.link_mode"], changed
    # With two nodes one of them is no majority.
    assert "loses its quorum while corosync restarts" in second.python(script)["error"]
    for node in (first, second):
        pid = (node.root / "run/corosync.pid").read_text()
        info = node.python(script, True)
        assert info.get("error") is None, info
        assert info["quorate"] and info["live_member_ids"] == [1, 2] and info["running_config_version"] == 3
        assert (node.root / "run/corosync.pid").read_text() != pid
    # The daemon connects to the new corosync at its own time.
    for node in (first, second):
        wait_for(f"a writable {node.name}", node.writable)


def test_a_ring_that_is_cut_during_a_change(members: Callable[[int], Member]) -> None:
    first = founded(members(1))
    second, third = members(2), members(3)
    for node in (second, third):
        assert join(first, node).get("error") is None
    # Long enough that the change begins before anyone has noticed the cut.
    assert first.change(token_ms=8000).get("error") is None
    before = (first.pve / "corosync.conf").read_text()
    version = corosync_conf.parse(before).config_version or 0
    third.sh("ip link set e0 down")
    error = first.change(token_ms=9000, timeout_s=30)["error"]
    assert "node ids 3 are not in the membership [1, 2]" in error and "Node ids 3 have not come back" in error, error
    wanted = before.replace(f"config_version: {version}", f"config_version: {version + 2}")
    for node in (first, second):
        info = node.info()
        assert info["quorate"] and info["copies_equal"] and info["running_config_version"] == version + 2, info
        assert (node.root / "etc/corosync/corosync.conf").read_text() == wanted
        wait_for(f"a writable {node.name}", node.writable)
    third.sh("ip link set e0 up; ip addr replace 10.77.0.3/24 dev e0")
    wait_for("the third node", lambda: first.info()["live_member_ids"] == [1, 2, 3], 90)
    wait_for("its copy", lambda: (third.root / "etc/corosync/corosync.conf").read_text() == wanted)
    wait_for("a writable third node", third.writable)
