# SPDX-License-Identifier: Apache-2.0
"""playbooks/probe.yml as it is, on real corosync and the double of pmxcfs in namespaces, watched on the members."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.formats import corosync_conf
from ansible.module_utils.pveguard.writes import ring_events

from lab.tests.doubles.harness import wait_for
from tests.corosync.nodes import Member
from tests.corosync.test_leave_end_to_end import changed

from .cluster import NAME, NUMBER, Watch, make, members, place, power_cut, power_on, run, watch1

__all__ = ["members", "place", "watch1"]  # the fixtures
pytestmark = [pytest.mark.slow, pytest.mark.root]

Make = Callable[..., Member]
Add = Callable[[list[Member]], Member]


def live(node: Member) -> list[int]:
    found: list[int] = node.info()["live_member_ids"]
    return found


def sha256(node: Member, path: str) -> str:
    return hashlib.sha256((node.root / path).read_bytes()).hexdigest()


def wait_gone(node: Member, path: str) -> None:
    """A member takes what another one removed at its own time."""
    wait_for(f"{node.name} without {path}", lambda: not (node.pve / path).exists())


def listed(node: Member) -> corosync_conf.Node | None:
    return corosync_conf.parse(node.cluster_conf.read_text()).node(NAME)


def test_members_notice_nothing_of_a_probe(members: Make, watch1: Add, place: Path) -> None:
    """The smallest cluster has the least to lose: two members, both needed."""
    nodes = make(members, 2)
    probe = watch1(nodes)
    first = nodes[0]
    (first.pve / "shared.cfg").write_text("of the cluster\n")
    watch = Watch(nodes)
    first.syslog.take()

    code, output = run(place, nodes, probe, "--check", probe_state="present")
    assert code == 0 and changed(output) > 0 and listed(first) is None, output
    code, output = run(place, nodes, probe, probe_state="present")
    assert code == 0, output
    assert live(first) == [1, 2, NUMBER] == live(probe)
    found = listed(first)
    assert found is not None and (found.node_id, found.votes) == (NUMBER, 0)
    assert sha256(probe, "etc/corosync/authkey") == sha256(first, "etc/corosync/authkey")
    assert (probe.pve / "shared.cfg").read_text() == "of the cluster\n"
    # Written on the probe; the member takes it at its own time.
    placed = first.pve / f"nodes/{NAME}/pve-ssl.pem"
    wait_for("the certificate", lambda: placed.exists() and placed.read_bytes())
    certificate = placed.read_bytes()
    assert certificate.startswith(b"-----BEGIN CERTIFICATE-----") and b"PRIVATE" not in certificate
    assert (probe.root / "var/lib/rrdcached/db/pve-node-9.0").is_dir()

    code, output = run(place, nodes, probe, probe_state="present")
    assert code == 0 and changed(output) == 0, output

    power_cut(probe)
    wait_for("the members to miss it", lambda: live(first) == [1, 2])
    (first.pve / "meanwhile.cfg").write_text("written without it\n")
    power_on(probe)
    wait_for("its return", lambda: live(first) == [1, 2, NUMBER], 90)
    wait_for("what was written meanwhile", lambda: (probe.pve / "meanwhile.cfg").exists())

    code, output = run(place, nodes, probe, "--check", probe_state="absent")
    assert code == 0 and listed(first) is not None, output
    code, output = run(place, nodes, probe, probe_state="absent")
    assert code == 0, output
    for node in nodes:
        assert live(node) == [1, 2] and listed(node) is None
        wait_gone(node, f"nodes/{NAME}")
        wait_gone(node, "priv/lock/pveguard")
    assert not (probe.root / "etc/corosync/authkey").exists() and "shared.cfg" not in probe.tree()
    assert not (probe.root / "var/lib/rrdcached/db/pve-node-9.0").exists()
    code, output = run(place, nodes, probe, probe_state="absent")
    assert code == 0 and changed(output) == 0, output

    assert watch.end() >= {(1, 2), (1, 2, NUMBER)}
    # What corosync and the daemon said of it is understood, and nothing else happened to the ring.
    said = [(line.partition("[")[0].split()[-1], line.partition("]: ")[2]) for line in first.syslog.take() if "]: " in line]
    found = ring_events.events(ring_events.Line(who, number, text) for number, (who, text) in enumerate(said))
    ring = ring_events.summary(found, 1)
    assert ring["joined"] == [NUMBER, NUMBER] and ring["left"] == [NUMBER, NUMBER], said
    assert ring["counts"]["membership"] == 4 and ring["counts"]["quorum_lost"] == 0
    assert ring["counts"]["reload"] >= 1 and ring["counts"]["sync"] >= 2
    assert ring["leaders"] and NUMBER not in ring["leaders"]


@pytest.mark.campaign
def test_a_probe_alone_is_never_quorate_and_its_vote_is_asked_for(members: Make, watch1: Add, place: Path) -> None:
    nodes = make(members, 2)
    probe = watch1(nodes)
    first, second = nodes
    assert run(place, nodes, probe, probe_state="present")[0] == 0
    # Cut from a cluster in which it has no vote it is read-only, whatever it is told to expect.
    probe.cut()
    wait_for("the probe to be alone", lambda: live(probe) == [NUMBER])
    probe.tool("corosync-quorumtool", "-e", "1")
    assert probe.info()["quorate"] is False and not probe.writable()
    probe.heal()
    wait_for("its return", lambda: live(first) == [1, 2, NUMBER], 90)

    # With a vote it is the third: one member and the probe go on without the other.
    code, output = run(place, nodes, probe, probe_state="present", probe_votes=1)
    assert code == 0 and changed(output) == 1, output
    info = first.info()
    assert (info["expected_votes"], info["total_votes"], info["quorate"]) == (3, 3, True)
    code, output = run(place, nodes, probe, probe_state="present", probe_votes=1)
    assert code == 0 and changed(output) == 0, output
    second.cut()
    wait_for("the loss of a member", lambda: live(first) == [1, NUMBER])
    assert first.info()["quorate"] is True
    second.heal()
    wait_for("its return", lambda: live(first) == [1, 2, NUMBER], 90)
    wait_for("quorum on it", lambda: second.info()["quorate"])
    # Members alone are as they were without it.
    power_cut(probe)
    wait_for("the loss of the probe", lambda: live(first) == [1, 2])
    assert first.info()["quorate"] is True
    power_on(probe)
    wait_for("its return", lambda: live(first) == [1, 2, NUMBER], 90)

    code, output = run(place, nodes, probe, probe_state="present", probe_votes=0)
    assert code == 0 and first.info()["expected_votes"] == 2, output


def test_what_is_refused_changes_nothing(members: Make, watch1: Add, place: Path) -> None:
    nodes = make(members, 3)
    probe = watch1(nodes)
    first = nodes[0]
    before = first.cluster_conf.read_text()

    def refused(words: str, *arguments: str, **variables: Any) -> None:
        code, output = run(place, nodes, probe, *arguments, **{"probe_state": "present", **variables})
        assert code != 0 and words in output, output
        assert first.cluster_conf.read_text() == before
        assert not (probe.root / "etc/corosync/authkey").exists()
        wait_gone(first, "priv/lock/pveguard")

    refused("need 3 of 4", probe_votes=1)
    refused("is not one of present, absent", probe_state="maybe")
    code, output = run(place, nodes, probe)
    assert code != 0 and "say what is to be done: -e probe_state=present or" in output, output
    refused("the group pve_probe has watch1", probe_host="pve1")
    dpkg_query = probe.root / "run/bin/dpkg-query"
    dpkg_query.write_text(dpkg_query.read_text() + 'echo "pve-manager installed 9.0.0"\n')
    refused("pve-manager is installed on it")


def test_nodes_by_themselves_are_refused_with_the_reason(members: Make, watch1: Add, place: Path) -> None:
    alone = members(1)
    probe = watch1([alone])
    code, output = run(place, [alone], probe, probe_state="present")
    assert code != 0 and "nodes by themselves have no ring that a probe could watch" in output, output
    assert "corosync.conf" not in probe.tree()


@pytest.mark.campaign
def test_the_other_playbooks_go_on_with_a_probe_up_and_off(members: Make, watch1: Add, place: Path) -> None:
    nodes = make(members, 2)
    probe = watch1(nodes)
    first = nodes[0]
    assert run(place, nodes, probe, probe_state="present")[0] == 0

    # A change of corosync.conf is no change of its vote, and it takes it as the members do.
    code, output = run(place, nodes, probe, playbook="corosync.yml", corosync_token=5000, corosync_update_nodes=True)
    assert code == 0 and changed(output) == 1, output
    found = listed(probe)
    assert found is not None and found.votes == 0
    wait_for("the change on the probe", lambda: "token: 5000" in probe.host_conf.read_text())
    code, output = run(place, nodes, probe, playbook="corosync.yml", corosync_token=5000, corosync_update_nodes=True)
    assert code == 0 and changed(output) == 0, output
    code, output = run(place, nodes, probe, playbook="assess.yml")
    assert code == 0 and "a probe of pvelab: it watches, and nothing depends on it" in output, output
    assert "2 of 2 members up" in output and "even split" not in output

    power_cut(probe)
    wait_for("the members to miss it", lambda: live(first) == [1, 2])
    # It is not there, and that is an error of the run, not of the cluster.
    code, output = run(place, nodes, probe, playbook="corosync.yml", away=True, corosync_token=4000)
    assert "token: 4000" in first.cluster_conf.read_text(), output
    code, output = run(place, nodes, probe, probe_state="absent", away=True)
    assert code != 0 and "leave_dead=true" in output and listed(first) is not None, output
    code, output = run(place, nodes, probe, probe_state="absent", leave_dead=True, away=True)
    assert code == 0 and listed(first) is None and live(first) == [1, 2], output


def test_the_gates_hold_for_a_probe(members: Make, watch1: Add, place: Path) -> None:
    nodes = make(members, 2)
    probe = watch1(nodes)
    before = nodes[0].cluster_conf.read_text()
    gates = {"pveguard_gate_enforce": "joining", "link_gate_duration": 2, "link_gate_load": False, "fsync_gate_duration": 1}
    # What a tmpfs does is nothing that the disk's gate is asked here.
    gates |= {"fsync_gate_min_fsyncs": 1}
    # Nor how fast this machine answers: the size of the packets is what is refused.
    gates |= {"link_gate_rtt_fail_ms": 5000, "link_gate_jitter_fail_ms": 5000, "link_gate_loss_fail_percent": 50}
    code, output = run(place, nodes, probe, probe_state="present", **gates, link_gate_mtu_min=9000)
    assert code != 0 and "link_gate_mtu_min" in output, output
    assert nodes[0].cluster_conf.read_text() == before and "corosync.conf" not in probe.tree()
    code, output = run(place, nodes, probe, probe_state="present", **gates)
    assert code == 0 and live(nodes[0]) == [1, 2, NUMBER], output
