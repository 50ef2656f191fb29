# SPDX-License-Identifier: Apache-2.0
"""A cluster with a probe beside it in namespaces, and a watch on its members that misses nothing that lasts."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.tests.doubles.harness import wait_for
from tests.corosync.nodes import Member
from tests.corosync.test_leave_end_to_end import SYSTEMD_RUN, play
from tests.corosync.test_membership import founded, join, members

__all__ = ["NAME", "Watch", "make", "members", "place", "run", "watch1"]

NAME, NUMBER = "watch1", 7
# What is installed on a member here, and on the probe.
DPKG_QUERY = '#!/bin/sh\necho "corosync installed 3.1.7-1"\necho "pve-cluster installed 9.0.0"\n'
#: The quorum of a member, several times a second, one line each: votes, whether there is quorum, node ids.
SAMPLE = r"""
while :; do
    LC_ALL=C corosync-quorumtool -s 2>/dev/null | awk '
        /^Quorate:/ { q = $2 } /^Expected votes:/ { e = $3 } /^Total votes:/ { t = $3 } /^Quorum:/ { n = $2 }
        /^ +[0-9]+ +[0-9]+ / { i = i "," $1 } END { print q, e, t, n, substr(i, 2) }'
    sleep 0.2
done
"""


def make(members: Callable[..., Member], number: int) -> list[Member]:
    nodes = [founded(members(1))]
    for each in range(2, number + 1):
        nodes.append(members(each))
        result = join(nodes[0], nodes[-1])
        assert result.get("error") is None, result
    return nodes


@pytest.fixture
def place() -> Iterator[Path]:
    # Below /dev/shm or /run the nodes would not see it: these are their own.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def watch1(members: Callable[..., Member]) -> Callable[[list[Member]], Member]:
    """A plain machine on the network of ``members``: ``watch1(nodes)``; it and they get what the playbooks call."""

    def add(nodes: list[Member]) -> Member:
        probe = members(NUMBER, NAME, 100)
        for node in [*nodes, probe]:
            node.sh("mount -t tmpfs none /usr/local")  # what is installed there is the node's alone
            for name, text in (("systemd-run", SYSTEMD_RUN), ("dpkg-query", DPKG_QUERY)):
                (node.root / "run/bin" / name).write_text(text)
                (node.root / "run/bin" / name).chmod(0o755)
        return probe

    return add


def inventory(nodes: list[Member], probe: Member, away: bool = False) -> dict[str, Any]:
    """``away``: nothing answers where the probe was."""

    def own(node: Member) -> dict[str, Any]:
        return {"corosync_node_id": node.number, "corosync_links": [node.address]}

    cluster = {node.name: own(node) for node in nodes}
    nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1} if away else {}
    return {
        "vars": {"corosync_cluster_name": "pvelab", "pveguard_gate_enforce": "never"},
        "children": {"production": {"hosts": cluster}, "pve_probe": {"hosts": {probe.name: own(probe) | nowhere}}},
    }


def run(
    place: Path,
    nodes: list[Member],
    probe: Member,
    *arguments: str,
    playbook: str = "probe.yml",
    away: bool = False,
    **variables: Any,
) -> tuple[int, str]:
    more = {"pveguard_reports_dir": str(place / "reports"), **variables}
    reached = nodes if away else [*nodes, probe]
    return play(place, reached, playbook, *arguments, inventory=inventory(nodes, probe, away), **more)


class Watch:
    """Samples the quorum of every member until :meth:`end`, which asserts that it never was anything else."""

    def __init__(self, nodes: list[Member]) -> None:
        self.nodes = nodes
        self.before = self._processes()
        self.samplers = [node.spawn("bash", "-c", SAMPLE, log="/run/quorum.log") for node in nodes]
        wait_for("the first samples", lambda: all(self.samples(node) for node in nodes))

    def _processes(self) -> dict[str, tuple[str, str]]:
        return {
            node.name: ((node.root / "run/corosync.pid").read_text(), (node.root / "run/pve-cluster.pid").read_text())
            for node in self.nodes
        }

    def samples(self, node: Member) -> list[str]:
        return [line.strip() for line in (node.root / "run/quorum.log").read_text().splitlines(keepends=True) if line[-1] == "\n"]

    def end(self) -> set[tuple[int, ...]]:
        """The memberships that were seen. No member was restarted, and none lost a vote or the quorum."""
        for sampler in self.samplers:
            sampler.terminate()
            sampler.wait()
        seen = set()
        votes = len(self.nodes)
        ids = {node.number for node in self.nodes}
        for node in self.nodes:
            for line in self.samples(node):
                quorate, expected, total, quorum, live = line.split(" ")
                assert (quorate, expected, total, quorum) == ("Yes", str(votes), str(votes), str(votes // 2 + 1)), line
                seen.add(tuple(int(number) for number in live.split(",")))
        assert self._processes() == self.before
        assert all(ids <= set(each) for each in seen), seen
        return seen


def power_cut(node: Member) -> None:
    """Everything of the node ends at once, as nothing could be sent after it."""
    node.sh("ip link set e0 down")
    for unit in ("corosync", "pve-cluster"):
        os.kill(int(re.sub(r"\D", "", (node.root / f"run/{unit}.pid").read_text())), signal.SIGKILL)
    node.run("umount", "-l", "/etc/pve")


def power_on(node: Member) -> None:
    node.heal()
    node.systemctl("start", "pve-cluster.service", "corosync.service")
