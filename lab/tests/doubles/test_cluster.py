# SPDX-License-Identifier: Apache-2.0
"""Three nodes with real corosync on a bridge of their own: quorum, leaders, both copies of corosync.conf."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.tests.doubles import harness
from lab.tests.doubles.conftest import why_not
from lab.tests.doubles.harness import SECONDS, Node, wait_for
from lab.tests.doubles.test_rrd import FakeRrdcached

pytestmark = [pytest.mark.root, pytest.mark.slow]

ALL = bool(os.environ.get("DOUBLES_ALL"))

COUNTER = """#!/bin/sh
echo "$@" >> /run/cfgtool.calls
exec /usr/sbin/corosync-cfgtool "$@"
"""


def config(version: int, numbers: tuple[int, ...] = (1, 2, 3)) -> str:
    nodes = "".join(
        f"  node {{\n    name: pve{n}\n    nodeid: {n}\n    quorum_votes: 1\n    ring0_addr: 10.77.0.{n}\n  }}\n"
        for n in numbers
    )
    return (
        f"totem {{\n  version: 2\n  cluster_name: pvelab\n  config_version: {version}\n  secauth: on\n"
        "  ip_version: ipv4-6\n  link_mode: passive\n  token: 1000\n}\n"
        "logging {\n  to_syslog: no\n  to_stderr: yes\n}\n"
        f"quorum {{\n  provider: corosync_votequorum\n}}\nnodelist {{\n{nodes}}}\n"
    )


def error_of(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


class Cluster:
    def __init__(self) -> None:
        self.bridge = f"cfs{os.getpid() % 1000000}"
        self.nodes: list[Node] = []
        harness.ip("link", "add", self.bridge, "type", "bridge")
        try:
            harness.ip("link", "set", self.bridge, "up")
            key = os.urandom(256)
            for number in (1, 2, 3):
                node = Node(f"pve{number}", number)
                self.nodes.append(node)
                node.plug(self.bridge)
                (node.root / "etc/corosync/authkey").write_bytes(key)
                (node.root / "run/bin").mkdir()
                (node.root / "run/bin/corosync-cfgtool").write_text(COUNTER)
                (node.root / "run/bin/corosync-cfgtool").chmod(0o755)
        except BaseException:
            self.close()
            raise

    def reset(self) -> None:
        """Empty databases, corosync.conf of version 3 on each host, corosync running, all in one partition."""
        for node in self.nodes:
            node.stop(signal.SIGKILL)
            node.sh(
                "while umount -l /var/lib/pve-cluster 2>/dev/null; do :; done; umount -l /etc/pve 2>/dev/null;"
                "rm -rf /var/lib/pve-cluster/* /run/cfgtool.calls; ip link set e0 up"
            )
            node.host_conf.write_text(config(3))
            if not hasattr(node, "corosync") or node.corosync.poll() is not None:
                node.start_corosync()
        for node in self.nodes:
            wait_for("a quorum of 3", lambda n=node: "Nodes:            3" in self.quorumtool(n))

    @staticmethod
    def quorumtool(node: Node) -> str:
        return node.run("corosync-quorumtool", "-s").stdout

    def start(self, *numbers: int) -> None:
        for number in numbers or (1, 2, 3):
            self[number].start()
        for number in numbers or (1, 2, 3):
            wait_for(f"a writable pve{number}", self[number].writable)
        wait_for("equal members", lambda: self.equal(*numbers))

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number - 1]

    def equal(self, *numbers: int) -> bool:
        rows = [self[number].shared_rows() for number in numbers or (1, 2, 3)]
        return all(other == rows[0] for other in rows)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)


@contextmanager
def made() -> Iterator[Cluster]:
    """Three nodes with corosync; the test is skipped where that cannot be."""
    reason = why_not()
    if reason is None and shutil.which("corosync", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        reason = "needs corosync"
    if reason is None:
        reason = harness.why_no_network()
    if reason:
        pytest.skip(reason)
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with made() as cluster:
        yield cluster


@pytest.fixture
def cluster(three: Cluster) -> Cluster:
    """Corosync is quorate; no daemon runs yet."""
    three.reset()
    return three


def local_edit(node: Node, script: str) -> None:
    """Change a stopped node's database in local mode."""
    if not node.database.exists():
        node.start()  # takes corosync.conf of the host over, which a start in local mode never does
        node.stop()
    node.start("-l")
    node.sh(f"cd /etc/pve; {script}")
    node.stop()


def names(node: Node) -> list[str]:
    return sorted(name for name in node.tree() if name != "corosync.conf")


def test_all_databases_lost_leaves_only_corosync_conf(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.start()
    for node in cluster.nodes:
        wait_for("quorum", node.quorate)
    wait_for("equal members", cluster.equal)
    assert list(cluster[1].tree()) == ["corosync.conf"]


def test_writes_reach_every_member_and_every_member_pays(cluster: Cluster) -> None:
    cluster.start()
    before = [node.version() for node in cluster.nodes]
    assert len(set(before)) == 1
    for node in cluster.nodes:
        (node.pve / f"of-{node.name}").write_text(node.name)
        # the heartbeat of an LRM: 3 transactions
        (node.pve / f"tmp-{node.name}").write_bytes(bytes(83))
        os.rename(node.pve / f"tmp-{node.name}", node.pve / f"status-{node.name}")
    wait_for("equal members", cluster.equal)
    assert [node.version() - before[0] for node in cluster.nodes] == [15, 15, 15]
    writers = {row[6]: row[3] for row in cluster[2].rows()}
    assert [writers[f"of-pve{number}"] for number in (1, 2, 3)] == [1, 2, 3]
    assert (cluster[1].pve / "of-pve3").read_text() == "pve3"
    cluster[3].restart()
    assert cluster.equal()


@pytest.mark.parametrize(
    ("block", "transactions"),
    [
        pytest.param(
            512, 2049, marks=pytest.mark.skipif(not ALL, reason="half a minute; DOUBLES_ALL=1 runs it")
        ),
        (4096, 257),
        (131072, 9),
        (1048576, 9),
    ],
)
def test_transactions_of_one_mebibyte_on_each_node(cluster: Cluster, block: int, transactions: int) -> None:
    cluster.start()
    before = cluster[2].version()
    data = os.urandom(1048576)
    with open(cluster[1].pve / "big", "wb", buffering=0) as stream:
        for start in range(0, len(data), block):
            stream.write(data[start : start + block])
    wait_for("equal members", cluster.equal)
    assert [node.version() - before for node in cluster.nodes] == [transactions] * 3
    assert (cluster[3].pve / "big").read_bytes() == data


def test_one_of_two_takes_a_lock(cluster: Cluster) -> None:
    cluster.start()
    (cluster[1].pve / "priv").mkdir()
    (cluster[1].pve / "priv/lock").mkdir()
    wait_for("the folder", lambda: (cluster[2].pve / "priv/lock").is_dir())
    script = "for i in $(seq 20); do mkdir /etc/pve/priv/lock/file-x 2>/dev/null && echo got; done; true"
    command = ["bash", "-c", script]
    runs = [
        subprocess.Popen(node.enter(command), stdout=subprocess.PIPE, text=True) for node in cluster.nodes
    ]
    assert sum(run.communicate(timeout=60)[0].count("got") for run in runs) == 1
    wait_for("equal members", cluster.equal)


def test_a_cut_node_is_read_only_and_catches_up(cluster: Cluster) -> None:
    cluster.start()
    (cluster[1].pve / "f").write_text("1")
    wait_for("equal members", cluster.equal)
    cluster[3].cut()
    wait_for("the loss of quorum", lambda: not cluster[3].quorate())
    assert error_of(lambda: (cluster[3].pve / "x").touch()) == errno.EACCES
    assert error_of(lambda: (cluster[3].pve / "f").unlink()) == errno.EACCES
    assert (cluster[3].pve / "f").read_text() == "1"
    assert not os.lstat(cluster[3].pve / "local").st_mode & 0o222
    (cluster[3].pve / ".debug").write_text("1\n")
    (cluster[3].pve / ".debug").write_text("0\n")
    wait_for("the others", cluster[1].writable)
    (cluster[1].pve / "f").write_text("2")
    (cluster[2].pve / "g").write_text("3")
    assert names(cluster[3]) == ["f"]
    cluster[3].heal()
    wait_for("the return", cluster[3].writable)
    wait_for("equal members", cluster.equal)
    assert (cluster[3].pve / "f").read_text() == "2"
    assert os.lstat(cluster[3].pve / "local").st_mode & 0o222


def test_an_old_snapshot_on_one_node_is_overwritten(cluster: Cluster) -> None:
    cluster.start()
    (cluster[1].pve / "old").write_text("t")
    wait_for("equal members", cluster.equal)
    cluster[3].stop()
    cluster[3].sh("cp /var/lib/pve-cluster/config.db /run/old.db")
    cluster[3].start()
    wait_for("the return", cluster[3].writable)
    (cluster[1].pve / "old").unlink()
    (cluster[1].pve / "new").write_text("t")
    cluster[3].stop()
    cluster[3].sh("cp /run/old.db /var/lib/pve-cluster/config.db")
    cluster[3].start()
    wait_for("the return", cluster[3].writable)
    wait_for("equal members", cluster.equal)
    assert names(cluster[3]) == ["new"]


def test_a_node_edited_in_local_mode_rolls_the_cluster_back(cluster: Cluster) -> None:
    cluster.start()
    (cluster[1].pve / "shared").write_text("t")
    wait_for("equal members", cluster.equal)
    cluster[3].stop()
    (cluster[1].pve / "precious").write_text("t")
    local_edit(cluster[3], "for i in $(seq 20); do echo $i > mine; done")
    for node in cluster.nodes:
        node.log()
    cluster[3].start()
    wait_for("the return", cluster[3].writable)
    wait_for("equal members", cluster.equal)
    assert names(cluster[1]) == ["mine", "shared"]
    assert not any("crit" in line for node in cluster.nodes for line in node.log()), "it is silent"


def test_highest_version_of_different_old_snapshots_wins(cluster: Cluster) -> None:
    for node, count in zip(cluster.nodes, (2, 5, 3), strict=True):
        local_edit(node, f"for i in $(seq {count}); do mkdir of-{node.name}-$i; done")
    cluster.start()
    wait_for("equal members", cluster.equal)
    assert names(cluster[1]) == [f"of-pve2-{number}" for number in range(1, 6)]


def test_ties_are_decided_by_mtime_then_by_node_order(cluster: Cluster) -> None:
    for node, date in zip(cluster.nodes, (100, 300, 200), strict=True):
        local_edit(node, f"touch of-{node.name}; touch -d @{date} of-{node.name}")
    cluster.start()
    wait_for("equal members", cluster.equal)
    assert names(cluster[1]) == ["of-pve2"]
    cluster.reset()
    for node in cluster.nodes:
        local_edit(node, f"touch of-{node.name}; touch -d @100 of-{node.name}")
    cluster.start()
    wait_for("equal members", cluster.equal)
    assert names(cluster[3]) == ["of-pve1"]


def test_a_full_resync_is_one_transaction(cluster: Cluster) -> None:
    local_edit(
        cluster[1], "for i in $(seq 8); do dd if=/dev/urandom of=big$i bs=1M count=1 status=none; done"
    )
    cluster.start(1, 2)
    wal = cluster[3].state / "config.db-wal"
    cluster[3].start()
    wait_for("the return", cluster[3].writable)
    wait_for("equal members", cluster.equal)
    # a single transaction cannot be checkpointed before it ends, so the WAL holds all of it
    assert wal.stat().st_size > 8_000_000


def test_without_corosync_conf_or_with_an_empty_database_it_is_local(cluster: Cluster) -> None:
    cluster.start(1, 2)
    cluster[3].sh(": > /var/lib/pve-cluster/config.db")
    cluster[3].start()
    time.sleep(1.5)
    assert cluster[3].writable()
    assert list(cluster[3].tree()) == []
    assert '"cluster"' not in (cluster[3].pve / ".members").read_text()
    assert "corosync.conf" in cluster[1].tree()


def test_join_takes_the_state_of_the_cluster(cluster: Cluster) -> None:
    cluster.start(1, 2)
    for number in range(5):
        (cluster[1].pve / f"f{number}").write_text("t" * number)
    local_edit(cluster[3], "touch stale")
    cluster[3].sh("rm /var/lib/pve-cluster/config.db")
    cluster[3].start()
    wait_for("the return", cluster[3].writable)
    wait_for("equal members", cluster.equal)
    assert names(cluster[3]) == [f"f{number}" for number in range(5)]


def test_after_a_join_the_content_lies_in_the_log(cluster: Cluster) -> None:
    cluster.start(1, 2)
    for number in range(12):
        (cluster[1].pve / f"f{number}").write_bytes(os.urandom(100_000))
    node = cluster[3]
    node.sh("rm -f /var/lib/pve-cluster/config.db")
    node.start()
    wait_for("the return", node.writable)
    wait_for("equal members", cluster.equal)
    assert node.database.stat().st_size == 4096
    assert 1_200_000 < (node.state / "config.db-wal").stat().st_size < 1_700_000


def test_without_corosync_a_member_is_read_only_until_it_is_back(cluster: Cluster) -> None:
    cluster.start()
    cluster[2].stop_corosync()
    wait_for("the loss of quorum", lambda: not cluster[2].quorate())
    assert error_of(lambda: (cluster[2].pve / "x").touch()) == errno.EACCES
    members = json.loads((cluster[2].pve / ".members").read_text())
    assert members["cluster"]["quorate"] == 0, "once corosync has run it is told what it said last"
    assert members["nodelist"].keys() == {"pve1", "pve2", "pve3"}
    wait_for("the others", cluster[1].writable)
    (cluster[1].pve / "y").touch()
    cluster[2].start_corosync()
    wait_for("the return", cluster[2].writable)
    wait_for("equal members", cluster.equal)
    assert names(cluster[2]) == ["y"]


def calls(node: Node) -> list[str]:
    path: Path = node.root / "run/cfgtool.calls"
    return path.read_text().splitlines() if path.exists() else []


def test_a_new_corosync_conf_is_copied_everywhere_and_reloaded_by_the_writer(cluster: Cluster) -> None:
    cluster.start()
    (cluster[2].pve / "corosync.conf.new").write_text(config(4))
    assert all(node.host_conf.read_text() == config(3) for node in cluster.nodes)
    begin = time.monotonic()
    os.rename(cluster[2].pve / "corosync.conf.new", cluster[2].cluster_conf)
    assert time.monotonic() - begin > 1.0, "a second and the reload are before the answer"
    assert calls(cluster[2]) == ["-R"]
    wait_for("the copies", lambda: all(node.host_conf.read_text() == config(4) for node in cluster.nodes))
    time.sleep(1.5)
    assert [calls(node) for node in cluster.nodes] == [[], ["-R"], []]
    running = ["totem.config_version", "(u64)", "=", "4"]
    show = "corosync-cmapctl -g totem.config_version"
    wait_for("the version that runs", lambda: cluster[3].sh(show).split() == running)


@pytest.mark.skipif(not harness.IS_DOUBLE, reason="the real daemon sleeps; what it serves meanwhile is not known")
def test_while_a_change_waits_for_its_reload_everything_else_is_served(cluster: Cluster) -> None:
    cluster.start()
    node, tool = cluster[2], cluster[2].root / "run/bin/corosync-cfgtool"
    (node.pve / "d").mkdir()
    (node.pve / "corosync.conf.new").write_text(config(4))
    # Not in the root: the kernel itself holds the folder of the rename.
    tool.write_text("#!/bin/sh\nmkdir /etc/pve/d/x && touch /run/went\n")
    try:
        os.rename(node.pve / "corosync.conf.new", node.cluster_conf)
        assert (node.root / "run/went").exists()
        wait_for("equal members", cluster.equal)
        assert "d/x" in cluster[3].tree()
    finally:
        tool.write_text(COUNTER)


def test_one_node_whose_new_text_lists_two_loses_quorum_before_it_can_unlock(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.stop_corosync()
    node, lock = cluster[1], cluster[1].pve / "priv/lock/file-corosync_conf"
    try:
        node.host_conf.write_text(config(1, (1,)))
        node.start_corosync()
        node.start()
        wait_for("a writable node", node.writable)
        lock.mkdir(parents=True)
        (node.pve / "corosync.conf.new").write_text(config(2, (1, 2)))
        begin = time.monotonic()
        os.rename(node.pve / "corosync.conf.new", node.cluster_conf)
        assert time.monotonic() - begin >= 1.0
        assert calls(node) == ["-R"]
        assert error_of(lock.rmdir) == errno.EACCES
        assert lock.is_dir()
        assert "priv/lock/file-corosync_conf" in node.tree()
    finally:
        node.stop_corosync()


def test_version_rules_of_the_copy(cluster: Cluster) -> None:
    cluster.start()
    cluster[1].host_conf.write_text(config(9))  # newer on this host only
    cluster[2].host_conf.write_text(config(5) + "# same version, other text\n")
    cluster[1].log()
    (cluster[3].pve / "corosync.conf.new").write_text(config(5))
    os.rename(cluster[3].pve / "corosync.conf.new", cluster[3].cluster_conf)
    wait_for("the copies", lambda: all(cluster[n].host_conf.read_text() == config(5) for n in (2, 3)))
    assert cluster[1].host_conf.read_text() == config(9), "the two differ for good"
    cluster[1].wait_for_log("local corosync.conf is newer")
    assert cluster[1].cluster_conf.read_text() == config(5), "never the other way"
    cluster[2].cluster_conf.write_text("totem {\n}\n")  # no version: not copied
    time.sleep(0.3)
    assert cluster[2].host_conf.read_text() == config(5)
    wait_for("the reload", lambda: calls(cluster[3]))
    time.sleep(1.5)
    assert [len(calls(node)) for node in cluster.nodes] == [0, 0, 1], "a reload follows a copy only"


def test_a_corosync_conf_without_version_leaves_a_quorate_node_writable(cluster: Cluster) -> None:
    node, text = cluster[1], config(3).replace("  config_version: 3\n", "")
    node.host_conf.write_text(text)
    node.start()
    wait_for("a writable node", node.writable)
    assert node.cluster_conf.read_text() == text
    (node.pve / "x").write_text("t")
    node.cluster_conf.write_text(text + "# edited\n")
    (node.pve / "y").write_text("t")
    assert node.host_conf.read_text() == text, "nothing is copied"
    assert calls(node) == []


def test_a_removed_file_that_is_open_is_a_hidden_row_on_every_member(cluster: Cluster) -> None:
    cluster.start()
    with open(cluster[2].pve / "f", "wb", buffering=0) as stream:
        stream.write(b"1")
        os.unlink(cluster[2].pve / "f")
        stream.write(b"2")
        wait_for("equal members", cluster.equal)
        (name,) = names(cluster[3])
        assert name.startswith(".fuse_hidden") and cluster[3].tree()[name] == b"12"
    wait_for("the hidden file to go", lambda: names(cluster[2]) == [])
    wait_for("equal members", cluster.equal)


def test_the_version_row_has_type_4_after_a_sync_until_the_next_write(cluster: Cluster) -> None:
    def types() -> list[int]:
        return [node.query("SELECT type FROM tree WHERE inode = 0")[0][0] for node in cluster.nodes]

    cluster[1].start()
    wait_for("a writable node", cluster[1].writable)
    (cluster[1].pve / "x").touch()
    for number in (2, 3):
        cluster[number].start()
        wait_for("quorum", cluster[number].quorate)
    wait_for("equal members", cluster.equal)
    assert types() == [8, 4, 4]
    (cluster[1].pve / "y").touch()
    wait_for("equal members", cluster.equal)
    assert types() == [8, 8, 8]


def test_after_a_sync_the_copy_of_the_host_follows(cluster: Cluster) -> None:
    cluster.start()
    cluster[3].stop()
    (cluster[1].pve / "corosync.conf.new").write_text(config(4))
    os.rename(cluster[1].pve / "corosync.conf.new", cluster[1].cluster_conf)
    wait_for("the copy", lambda: cluster[2].host_conf.read_text() == config(4))
    assert cluster[3].host_conf.read_text() == config(3)
    cluster[3].start()
    wait_for("the copy after the sync", lambda: cluster[3].host_conf.read_text() == config(4))
    assert calls(cluster[3]) == []


def test_a_full_backend_stops_the_member_and_blocks_its_writers(cluster: Cluster) -> None:
    victim = cluster[3]
    victim.sh("mount -t tmpfs -o size=3m ram /var/lib/pve-cluster")
    cluster.start()
    (victim.pve / "f").write_text("before")
    wait_for("equal members", cluster.equal)
    victim.log()
    for number in range(6):
        (cluster[1].pve / f"big{number}").write_bytes(os.urandom(1048576))
    wait_for("the failure", lambda: victim.version() != cluster[1].version())
    victim.wait_for_log("[dcdb] crit: serious internal error - stop cluster connection")
    assert victim.quorate(), "it still reports quorum"
    (cluster[1].pve / "f").write_text("after")
    wait_for("the others", lambda: (cluster[2].pve / "f").read_text() == "after")
    assert (victim.pve / "f").read_text() == "before", "stale"
    writer = victim.spawn("touch", "/etc/pve/x")
    victim.sh("mount -o remount,size=64m /var/lib/pve-cluster")
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(2.5)
    assert victim.alive()
    victim.stop(signal.SIGKILL)
    assert writer.wait(SECONDS) != 0
    victim.start()
    wait_for("the return", victim.writable)
    wait_for("equal members", cluster.equal)


@pytest.mark.skipif(not harness.IS_DOUBLE, reason="the double's own way for statistics")
def test_statistics_of_each_member_are_stored_by_all_and_are_no_transactions(cluster: Cluster) -> None:
    daemons = [FakeRrdcached(node.root / "run/rrdcached.sock") for node in cluster.nodes]
    try:
        cluster.start()
        versions = [node.version() for node in cluster.nodes]
        cluster[3].cut()
        wait_for("the loss of quorum", lambda: not cluster[3].quorate())
        for node in cluster.nodes:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.connect(f"{node.root}/run/pmxcfs-lab-statistics.sock")
                out.send(f"pve-storage-9.0/{node.name}/local 1000:1:2\n".encode())

        def stored(number: int) -> set[str]:
            return {line.split(" ")[1] for line in daemons[number - 1].lines if line.endswith(" 1000:1:2")}

        both = {"pve-storage-9.0/pve1/local", "pve-storage-9.0/pve2/local"}
        wait_for("those of the majority", lambda: stored(1) == stored(2) == both)
        wait_for("those of the node that is alone", lambda: stored(3) == {"pve-storage-9.0/pve3/local"})
        cluster[3].heal()
        wait_for("equal members", cluster.equal)
        assert [node.version() for node in cluster.nodes] == versions
    finally:
        for daemon in daemons:
            daemon.close()


def test_a_power_cut_of_all_three(cluster: Cluster) -> None:
    cluster.start()
    for number in range(10):
        (cluster[1 + number % 3].pve / f"f{number}").write_text("t")
    wait_for("equal members", cluster.equal)
    for node in cluster.nodes:
        node.stop(signal.SIGKILL)
    cluster.start()
    wait_for("equal members", cluster.equal)
    assert names(cluster[1]) == [f"f{number}" for number in range(10)]
