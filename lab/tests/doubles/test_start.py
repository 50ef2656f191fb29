# SPDX-License-Identifier: Apache-2.0
"""Start, stop and failure of a daemon that stands alone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.tests.doubles.harness import DOUBLE, IS_DOUBLE, Node, wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

EXAMPLE = """# Please read the corosync.conf.5 manual page
totem {
\tversion: 2
\tcluster_name: debian
\tcrypto_cipher: none
}
quorum {
\tprovider: corosync_votequorum
}
nodelist {
\tnode {
\t\tname: node1
\t\tnodeid: 1
\t\tring0_addr: 127.0.0.1
\t}
}
"""


def config(version: int) -> str:
    return EXAMPLE.replace("cluster_name: debian", f"cluster_name: pvelab\n\tconfig_version: {version}")


def error_of(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def refuses(node: Node, *texts: str) -> str:
    """The daemon does not start: exit code 255, and each text in what it says. Returns all it said."""
    result = node.try_start()
    said = result.stderr + "\n".join(node.log())
    assert result.returncode == 255, said
    for text in texts:
        assert text in said, f"{text!r} is not in: {said}"
    assert not os.path.exists(node.root / "run/pve-cluster.pid")
    assert os.listdir(node.pve) == [] or not node.pve.is_mount()
    return said


@pytest.mark.skipif(not IS_DOUBLE, reason="only the double says so")
def test_says_that_it_is_a_double(empty_node: Node) -> None:
    result = empty_node.try_start()
    assert "lab double" in result.stderr
    empty_node.wait_for_log("lab double")
    assert "For tests only" in Path(DOUBLE).read_text()


def test_without_a_database_and_without_corosync_conf(node: Node) -> None:
    assert node.tree() == {}
    assert node.version() == 1
    (node.pve / "x").write_text("t")
    assert not node.host_conf.exists()
    assert (node.root / "run/pve-cluster.pid").read_text().strip() == str(node.pid_of_daemon)
    mounts = (Path(f"/proc/{node.pid}/mounts")).read_text()
    assert " /etc/pve fuse rw,nosuid,nodev," in mounts


def test_content_survives_a_restart_and_a_kill(node: Node) -> None:
    node.sh("cd /etc/pve; mkdir -p d/e priv; echo 1 > d/e/f; echo 2 > priv/g; touch empty")
    tree, version = node.tree(), node.version()
    node.restart()
    assert (node.tree(), node.version()) == (tree, version)
    node.stop(signal.SIGKILL)
    assert error_of(lambda: os.listdir(node.pve)) == errno.ENOTCONN
    node.start()
    assert (node.tree(), node.version()) == (tree, version)
    assert node.sh("cat /etc/pve/d/e/f /etc/pve/priv/g") == "1\n2\n"


def test_stop_unmounts_and_leaves_no_wal(node: Node) -> None:
    (node.pve / "x").touch()
    node.stop()
    assert not (node.root / "run/pve-cluster.pid").exists()
    assert " /etc/pve fuse" not in Path(f"/proc/{node.pid}/mounts").read_text()
    assert sorted(os.listdir(node.state)) == [".pmxcfs.lockfile", "config.db"]


def test_a_busy_mount_does_not_prevent_the_stop(node: Node) -> None:
    (node.pve / "x").touch()
    descriptor = os.open(node.pve / "x", os.O_RDONLY)
    node.stop()
    assert error_of(lambda: os.close(descriptor)) in (0, errno.ENOTCONN)
    node.start()
    assert (node.pve / "x").exists()


def test_imports_corosync_conf_of_the_host_at_the_first_start_only(empty_node: Node) -> None:
    node = empty_node
    node.host_conf.write_text(config(4))
    node.start()
    assert node.cluster_conf.read_text() == config(4)
    # cluster mode without corosync: it runs and is read-only
    for action in (
        lambda: (node.pve / "x").touch(),
        lambda: (node.pve / "d").mkdir(),
        lambda: node.cluster_conf.write_text("x"),
        lambda: node.cluster_conf.unlink(),
        lambda: node.cluster_conf.rename(node.pve / "y"),
        lambda: os.utime(node.cluster_conf),
    ):
        assert error_of(action) == errno.EACCES
    assert not os.lstat(node.pve / "local").st_mode & 0o222
    members = json.loads((node.pve / ".members").read_text())
    assert members.keys() == {"nodename", "version"}, "no cluster before corosync has run"
    node.stop()
    node.sh("rm /var/lib/pve-cluster/config.db")
    node.host_conf.unlink()
    node.start()
    assert node.tree() == {}
    node.stop()
    node.host_conf.write_text(config(4))
    node.start()
    assert node.tree() == {}, "an existing database takes nothing over from the host"


def test_debug_can_be_switched_without_quorum(empty_node: Node) -> None:
    node = empty_node
    node.host_conf.write_text(config(4))
    node.start()
    assert error_of(lambda: (node.pve / "x").touch()) == errno.EACCES
    (node.pve / ".debug").write_text("1\n")
    assert (node.pve / ".debug").read_text() == "1\n"


def test_debians_example_configuration_makes_it_read_only(empty_node: Node) -> None:
    node = empty_node
    node.host_conf.write_text(EXAMPLE)
    node.start()
    assert node.cluster_conf.read_text() == EXAMPLE
    assert error_of(lambda: (node.pve / "x").touch()) == errno.EACCES


def test_forced_local_mode_is_writable_in_a_cluster(empty_node: Node) -> None:
    node = empty_node
    node.host_conf.write_text(config(4))
    node.start()
    node.restart("-l")
    (node.pve / "x").touch()
    assert os.lstat(node.pve / "local").st_mode & 0o222
    node.restart()
    assert error_of(lambda: (node.pve / "y").touch()) == errno.EACCES


def test_forced_local_mode_never_imports_corosync_conf_of_the_host(empty_node: Node) -> None:
    node = empty_node
    node.host_conf.write_text(config(4))
    node.start("-l")
    assert node.tree() == {}
    (node.pve / "x").touch()
    node.restart()
    assert node.tree() == {"x": b""}, "the database exists now"
    assert node.host_conf.read_text() == config(4)


def test_empty_database_file_is_local_mode(empty_node: Node) -> None:
    node = empty_node
    node.host_conf.write_text(config(4))
    node.sh(": > /var/lib/pve-cluster/config.db")
    node.start()
    assert node.tree() == {}
    (node.pve / "x").touch()


def test_garbage_is_refused(empty_node: Node) -> None:
    empty_node.sh("head -c 20000 /dev/urandom > /var/lib/pve-cluster/config.db")
    refuses(empty_node, "[database] crit:", "memdb_open failed")


def test_text_is_refused(empty_node: Node) -> None:
    empty_node.sh("echo 'this is no database' > /var/lib/pve-cluster/config.db")
    refuses(empty_node, "[database] crit:", "memdb_open failed")


def test_a_truncated_database_is_refused(node: Node) -> None:
    for number in range(40):
        (node.pve / f"f{number}").write_bytes(os.urandom(9000))
    node.stop()
    size = node.database.stat().st_size
    os.truncate(node.database, size // 2 // 4096 * 4096)
    refuses(node, "[database] crit:", "memdb_open failed")


def test_a_damaged_page_is_refused(node: Node) -> None:
    for number in range(40):
        (node.pve / f"f{number}").write_bytes(os.urandom(9000))
    node.stop()
    with open(node.database, "r+b") as stream:
        stream.seek(4096)
        stream.write(os.urandom(4096))
    refuses(node, "[database] crit:", "memdb_open failed")


def change(node: Node, sql: str) -> None:
    """Change the database of a node whose daemon does not run."""
    script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])"
    result = node.run("/usr/bin/python3", "-c", script, "/var/lib/pve-cluster/config.db", sql)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("insert into tree values (50, 0, 50, 0, 0, 8, 'f', null)", "duplicate"),
        ("insert into tree values (50, 77, 50, 0, 0, 8, 'g', null)", "parent"),
        ("insert into tree select 50, inode, 50, 0, 0, 8, 'g', null from tree where name = 'f'", "parent"),
        ("update tree set inode = 99 where name = 'nodes'", "parent"),
        ("update tree set data = x'00' where name = 'nodes'", "data"),
    ],
)
def test_a_database_that_contradicts_itself_is_refused(node: Node, sql: str, text: str) -> None:
    node.sh(
        "cd /etc/pve; touch f; mkdir -p nodes/pve1/qemu-server nodes/pve2/lxc; touch qemu-server/100.conf"
    )
    node.stop()
    change(node, sql)
    said = refuses(node, "[database] crit:", text if IS_DOUBLE else "", "[main] crit: memdb_open failed")
    assert said.index("[database] crit:") < said.index("[main] crit: memdb_open failed")


def test_a_duplicate_guest_is_refused_by_its_id(node: Node) -> None:
    node.sh("cd /etc/pve; mkdir -p nodes/pve1/qemu-server nodes/pve2/lxc; touch qemu-server/100.conf")
    node.stop()
    change(
        node, "insert into tree select 50, inode, 50, 0, 0, 8, '100.conf', null from tree where name = 'lxc'"
    )
    said = refuses(node, "[status] crit: detected duplicate VMID 100", "[main] crit: memdb_open failed")
    assert said.index("[status] crit") < said.index("[main] crit: memdb_open failed")
    assert "[database] crit" not in said


# As the real daemon writes it, with a copy of a node's folder made by hand at /etc/pve/backup/pve1.
COPY_OUTSIDE_NODES = """
INSERT INTO tree VALUES(0,0,11,1,1700000011,4,'__version__',NULL);
INSERT INTO tree VALUES(2,0,2,1,1700000002,8,'storage.cfg',x'6469723a206c6f63616c0a');
INSERT INTO tree VALUES(3,0,3,1,1700000003,4,'nodes',NULL);
INSERT INTO tree VALUES(4,3,4,1,1700000004,4,'pve1',NULL);
INSERT INTO tree VALUES(5,4,5,1,1700000005,4,'qemu-server',NULL);
INSERT INTO tree VALUES(6,5,6,1,1700000006,8,'100.conf',x'6e616d653a20610a');
INSERT INTO tree VALUES(7,0,7,1,1700000007,4,'backup',NULL);
INSERT INTO tree VALUES(8,7,8,1,1700000008,4,'pve1',NULL);
INSERT INTO tree VALUES(9,8,9,1,1700000009,4,'qemu-server',NULL);
INSERT INTO tree VALUES(10,9,11,1,1700000011,8,'100.conf',x'6e616d653a20610a');
"""


def test_copies_of_guests_outside_the_nodes_folders_do_not_count(node: Node) -> None:
    node.stop()
    change(node, f"DELETE FROM tree; {COPY_OUTSIDE_NODES}")
    node.start()
    node.sh(
        "cd /etc/pve; mkdir -p nodes/pve1.old/qemu-server lxc2/lxc; cd nodes; "
        "for f in pve1.old/qemu-server/100.conf ../lxc2/lxc/100.conf pve1/qemu-server/0100.conf; do "
        "cp pve1/qemu-server/100.conf $f; done"
    )
    for _ in range(2):
        found = node.sh("cd /etc/pve; find . -name '*100.conf' | sort; cat $(find . -name '*100.conf')")
        assert found == (
            "./backup/pve1/qemu-server/100.conf\n./lxc2/lxc/100.conf\n./nodes/pve1.old/qemu-server/100.conf\n"
            "./nodes/pve1/qemu-server/0100.conf\n./nodes/pve1/qemu-server/100.conf\n" + 5 * "name: a\n"
        )
        guests = json.loads((node.pve / ".vmlist").read_text())["ids"]
        assert {number: guest["node"] for number, guest in guests.items()} == {"100": "pve1"}
        node.restart()
    node.sh("mkdir -p /etc/pve/nodes/pve2/lxc")
    assert error_of(lambda: (node.pve / "nodes/pve2/lxc/100.conf").touch()) == errno.EEXIST


def test_a_database_without_version_row_loads_and_the_first_write_makes_it(node: Node) -> None:
    (node.pve / "a").write_text("t")
    node.stop()
    change(node, "delete from tree where inode = 0")
    node.start()
    assert (node.pve / "a").read_text() == "t"
    assert node.query("SELECT count(*) FROM tree WHERE inode = 0") == [(0,)]
    (node.pve / "d").mkdir()
    assert node.version() == 1


def test_names_that_are_not_utf8_are_loaded_served_and_written_back(node: Node) -> None:
    node.stop()
    change(
        node,
        "insert into tree values (50, 0, 50, 0, 0, 8, cast(x'66fc' as text), x'61');"
        f"insert into tree values (51, 0, 51, 0, 0, 8, '{'n' * 300}', 'text');"
        "update tree set version = 60 where inode = 0",
    )
    node.start()
    folder = os.fsencode(node.pve)

    def read(name: bytes) -> bytes:
        with open(folder + b"/" + name, "rb") as stream:
            return stream.read()

    assert read(b"f\xfc") == b"a"
    assert read(b"n" * 300) == b"text"
    with open(folder + b"/f\xfc", "ab") as stream:
        stream.write(b"b")
    os.mkdir(folder + b"/d\xff")
    os.rename(folder + b"/f\xfc", folder + b"/d\xff/g\xfc")
    for _ in range(2):
        assert {b"n" * 300, b"d\xff"} <= set(os.listdir(folder))
        assert read(b"d\xff/g\xfc") == b"ab"
        stored = node.query("SELECT hex(name), typeof(name), typeof(data) FROM tree WHERE inode IN (50, 62)")
        assert stored == [("67FC", "text", "blob"), ("64FF", "text", "null")]
        node.restart()


def test_a_root_version_below_an_inode_lets_later_writes_replace_files(node: Node) -> None:
    node.sh("cd /etc/pve; echo victim > a; echo other > b")
    node.stop()
    change(node, "update tree set version = 1 where inode = 0")
    node.start()
    (node.pve / "new").touch()  # takes inode 2, which is a's
    node.restart()
    assert not (node.pve / "a").exists()
    assert (node.pve / "b").read_text() == "other\n"


def test_a_plain_copy_of_a_live_database_is_not_a_copy(node: Node) -> None:
    (node.pve / "x").write_text("t")
    node.sh("cp /var/lib/pve-cluster/config.db /run/copy.db; ls -s /run/copy.db")
    assert (node.root / "run/copy.db").stat().st_size == 4096
    node.sh(
        "/usr/bin/python3 -c \"import sys; sys.path.insert(0, '/run/harness'); import live_database, sqlite3;"
        "a = live_database.snapshot('/var/lib/pve-cluster/config.db');"
        "b = sqlite3.connect('/run/good.db'); a.backup(b)\""
    )
    node.stop()
    node.sh("mv /run/good.db /var/lib/pve-cluster/config.db")
    node.start()
    assert (node.pve / "x").read_text() == "t"


def test_an_old_database_beside_a_stale_wal_replays_or_is_refused(node: Node) -> None:
    (node.pve / "old").write_text("t")
    node.restart()
    node.sh("cp /var/lib/pve-cluster/config.db /run/old.db")
    (node.pve / "new").write_text("t")
    node.stop(signal.SIGKILL)
    node.sh("rm -f /var/lib/pve-cluster/config.db-shm; cp /run/old.db /var/lib/pve-cluster/config.db")
    result = node.try_start()
    assert result.returncode == 255 or (node.pve / "new").exists(), "the stale WAL had no effect"


def test_a_mount_point_that_is_not_empty_prevents_the_start(empty_node: Node) -> None:
    (empty_node.root / "etc/pve/nodes").mkdir()
    refuses(empty_node, "[main] crit: fuse_mount error")
    (empty_node.root / "etc/pve/nodes").rmdir()
    empty_node.start()


def test_host_name_must_resolve(new_node: Callable[..., Node]) -> None:
    refuses(new_node(hosts="10.77.0.9 other"), "pve1", "non-loopback")


def test_host_name_on_loopback_is_refused(new_node: Callable[..., Node]) -> None:
    node = new_node(hosts="127.0.1.1 pve1.example pve1")
    refuses(node, "pve1", "non-loopback")
    assert os.listdir(node.state) == []


def test_lock_is_waited_for_ten_seconds(empty_node: Node) -> None:
    node = empty_node
    with open(node.state / ".pmxcfs.lockfile", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        timer = threading.Timer(1.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        timer.start()
        begin = time.monotonic()
        node.start()
        assert time.monotonic() - begin > 0.8
        timer.join()
    assert node.alive()


def test_a_second_daemon_gives_up_after_ten_seconds(node: Node) -> None:
    begin = time.monotonic()
    result = node.run(node.daemon_path)
    assert result.returncode == 255
    assert "lock" in result.stderr + "\n".join(node.log())
    assert time.monotonic() - begin > 9
    assert node.alive()
    (node.pve / "x").touch()


def test_a_full_disk_is_an_io_error_until_restart(empty_node: Node) -> None:
    node = empty_node
    node.sh("mount -t tmpfs -o size=2m ram /var/lib/pve-cluster")
    node.start()
    (node.pve / "kept").write_text("t")
    path = node.pve / "big"

    def fill() -> None:
        for number in range(64):
            (node.pve / f"big{number}").write_bytes(bytes(131072))

    assert error_of(fill) == errno.EIO
    node.wait_for_log("[database] crit:")
    node.sh("mount -o remount,size=64m /var/lib/pve-cluster")
    assert error_of(lambda: path.touch()) == errno.EIO
    assert error_of(lambda: (node.pve / "kept").unlink()) == errno.EIO
    assert (node.pve / "kept").read_text() == "t"
    node.restart()
    path.write_text("works again")
    assert (node.pve / "kept").read_text() == "t"


def test_corosync_conf_written_in_local_mode_is_copied_at_the_next_start(node: Node) -> None:
    node.cluster_conf.write_text(config(1))
    assert not node.host_conf.exists()
    node.restart()
    assert node.host_conf.read_text() == config(1)
    assert error_of(lambda: (node.pve / "x").touch()) == errno.EACCES  # cluster mode now


@pytest.mark.parametrize(
    ("cluster", "host", "copied"),
    [
        (config(5), config(4), True),
        (config(5), None, True),
        (config(5), config(5) + "# edited\n", True),
        (config(5), config(6), False),
        (config(0), config(0) + "# edited\n", False),
        (EXAMPLE, EXAMPLE + "# edited\n", False),
    ],
)
def test_version_rules_of_the_copy(node: Node, cluster: str, host: str | None, copied: bool) -> None:
    node.cluster_conf.write_text(cluster)
    if host is not None:
        node.host_conf.write_text(host)
    node.log()
    node.restart()
    assert (node.host_conf.read_text() if node.host_conf.exists() else None) == (cluster if copied else host)
    assert node.cluster_conf.read_text() == cluster, "never the other way"
    if host == config(6):
        node.wait_for_log("local corosync.conf is newer")


def test_a_pinned_reader_makes_the_log_grow(node: Node) -> None:
    """One that was there before the daemon: opened beside it, it may kill it."""
    (node.pve / "x").write_text("t")
    node.stop()
    reader = node.spawn(
        "/usr/bin/python3",
        "-c",
        "import sqlite3, time; c = sqlite3.connect('/var/lib/pve-cluster/config.db'); c.execute('begin');"
        "c.execute('select * from tree').fetchall(); open('/run/reading', 'w'); time.sleep(3600)",
    )
    wait_for("the reader", lambda: (node.root / "run/reading").exists())
    node.start()
    for number in range(8):
        (node.pve / "x").write_bytes(bytes([number]) * 1048576)
    assert (node.state / "config.db-wal").stat().st_size > 8 << 20
    reader.kill()
    assert node.alive()


# Runs a daemon as its init would: the exit code of the start is the first line, how the daemon ended the second.
INIT = """
import ctypes, os, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
print(subprocess.call(sys.argv[1:]), flush=True)
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""

# What any program with SQLite does, again and again until the daemon is dead.
OPENER = """
import os, random, sqlite3, sys, time
for opens in range(1, 2001):
    time.sleep(random.random() / 1000)  # so that the two do not run in step
    if not os.path.exists(f"/proc/{sys.argv[1]}"):
        break
    connection = sqlite3.connect("file:/var/lib/pve-cluster/config.db?mode=ro", uri=True, timeout=10)
    try:
        connection.execute("select version from tree where inode = 0").fetchall()
    except sqlite3.Error:
        pass
    connection.close()
print(opens)
"""

WRITER = """
import os
descriptor = os.open("/etc/pve/x", os.O_WRONLY | os.O_CREAT)
while True:
    os.pwrite(descriptor, b"t", 0)
"""


def test_ordinary_openers_of_the_live_database_kill_the_daemon(empty_node: Node) -> None:
    node = empty_node
    init = node.spawn("/usr/bin/python3", "-c", INIT, node.daemon_path, log="/run/init")

    def said() -> list[str]:
        lines = (node.root / "run/init").read_text().splitlines()
        return [line for line in lines if line.lstrip("-").isdigit()]

    wait_for("the start", lambda: said() == ["0"])
    node.pid_of_daemon = int((node.root / "run/pve-cluster.pid").read_text())
    node.spawn("/usr/bin/python3", "-c", WRITER)
    before = node.version()
    wait_for("a thousand writes", lambda: node.version() > before + 1000)
    assert node.alive(), "one who reads without an effect does no harm"
    opener = node.run("/usr/bin/python3", "-c", OPENER, str(node.pid_of_daemon))
    assert opener.returncode == 0, opener.stderr
    wait_for(f"the end of the daemon after {opener.stdout.strip()} opens", lambda: init.poll() is not None)
    assert said() == ["0", str(-signal.SIGBUS)]
    assert error_of(lambda: os.listdir(node.pve)) == errno.ENOTCONN
    node.start()
    assert (node.pve / "x").read_text() == "t"


def locks_on(node: Node, path: Path) -> list[str]:
    status = path.stat()
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [line[1] for line in lines if line[4:6] == [str(node.pid_of_daemon), place]]


def test_after_its_fork_the_daemon_holds_none_of_sqlites_locks(node: Node) -> None:
    for suffix in ("", "-wal", "-shm"):
        assert "POSIX" not in locks_on(node, node.state / f"config.db{suffix}")
    (node.pve / "x").write_text("t")
    assert "POSIX" not in locks_on(node, node.state / "config.db-shm"), "nor after a transaction"


def test_its_own_lock_survives_the_fork(node: Node) -> None:
    lock = node.state / ".pmxcfs.lockfile"
    with open(lock) as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    descriptors = Path(f"/proc/{node.pid_of_daemon}/fd").iterdir()
    assert any(os.path.samestat(descriptor.stat(), lock.stat()) for descriptor in descriptors)
    node.stop()
    with open(lock) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.skipif(not IS_DOUBLE, reason="the real daemon's moment is not known")
def test_a_signal_right_after_the_start_ends_it_in_order(empty_node: Node) -> None:
    node = empty_node
    package = node.root / "run/early/pmxcfs_lab"
    shutil.copytree(f"{node.root}/run/double/usr/lib/pve-cluster-lab/pmxcfs_lab", package)
    # The daemon gets its signal between telling that it runs and its event loop.
    (package / "daemon.py").write_text(
        (package / "daemon.py").read_text().replace("    on_ready()\n", "    on_ready()\n    os.kill(os.getpid(), 15)\n")
    )
    code = "import sys; sys.path.insert(0, '/run/early'); from pmxcfs_lab.daemon import main; sys.exit(main([]))"
    assert node.run("/usr/bin/python3", "-c", code).returncode == 0
    wait_for("its end", lambda: not (node.root / "run/pve-cluster.pid").exists())
    assert " /etc/pve fuse" not in Path(f"/proc/{node.pid}/mounts").read_text()
    node.start()  # its lock is free


@pytest.mark.skipif(not IS_DOUBLE, reason="variables of the double")
def test_the_double_can_be_made_as_slow_as_the_real_daemon(
    empty_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMXCFS_LAB_START_SECONDS", "0.5")
    monkeypatch.setenv("PMXCFS_LAB_STOP_SECONDS", "0.5")
    begin = time.monotonic()
    empty_node.start()
    assert time.monotonic() - begin >= 0.5
    begin = time.monotonic()
    empty_node.stop()
    assert time.monotonic() - begin >= 0.5
    assert not (empty_node.root / "run/pve-cluster.pid").exists()


@pytest.mark.skipif(not IS_DOUBLE, reason="a way of the double")
def test_in_the_foreground_sqlites_locks_are_held(empty_node: Node) -> None:
    node = empty_node
    node.spawn(node.daemon_path, "-f")
    node.started()
    assert "POSIX" in locks_on(node, node.state / "config.db-shm"), "kinder than what runs on a node"


def test_foreground_and_wrong_arguments(empty_node: Node) -> None:
    assert empty_node.run(empty_node.daemon_path, "--nonsense").returncode != 0
    process = empty_node.spawn(empty_node.daemon_path, "-f", log="/run/out")
    empty_node.started()
    (empty_node.pve / "x").touch()
    empty_node.stop()
    assert process.wait(60) == 0
