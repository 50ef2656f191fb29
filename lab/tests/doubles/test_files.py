# SPDX-License-Identifier: Apache-2.0
"""Files on /etc/pve of a stand-alone node: the table of writes row by row, modes, limits, virtual files."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.tests.doubles.harness import IS_DOUBLE, Node, wait_for

pytestmark = pytest.mark.root

WWW_DATA = 33


def error_of(action: Callable[[], object]) -> int:
    """errno that the action ends with, 0 for none."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def touch(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    os.utime(descriptor)
    os.close(descriptor)


# row of the table: preparation, operation, transactions, backend_write_inode lines, delete lines
ROWS = {
    "create an empty file": ("", "touch new", 2, 4, 0),
    "touch an existing file": ("touch x", "touch x", 1, 2, 0),
    "echo > an existing file": ("echo s > x", "echo t > x", 2, 4, 0),
    "echo > an existing empty file": ("touch x", "echo t > x", 2, 4, 0),
    "echo >>": ("echo s > x", "echo t >> x", 1, 2, 0),
    "mv": ("touch x", "mv x y", 1, 2, 0),
    "mv over an existing file": ("touch x y", "mv x y", 1, 2, 1),
    "mv of an empty directory": ("mkdir d", "mv d e", 1, 2, 0),
    "rm": ("touch x", "rm x", 1, 1, 1),
    "rmdir": ("mkdir d", "rmdir d", 1, 1, 1),
    "mkdir": ("", "mkdir d", 1, 2, 0),
    "truncate": ("echo s > x", "truncate -s 1 x", 1, 2, 0),
    "chmod": ("touch x", "chmod 640 x", 0, 0, 0),
    "chown": ("touch x", "chown root:www-data x", 0, 0, 0),
    "cat": ("echo s > x", "cat x", 0, 0, 0),
    "ls": ("echo s > x", "ls -la", 0, 0, 0),
    "heartbeat of an LRM": (
        "mkdir -p nodes/pve1; echo s > nodes/pve1/lrm_status",
        "head -c 83 /dev/zero > nodes/pve1/lrm_status.tmp.7; mv nodes/pve1/lrm_status.tmp.7 nodes/pve1/lrm_status",
        3,
        6,
        1,
    ),
    "lock and unlock": (
        "mkdir -p priv/lock",
        "mkdir priv/lock/file-jobs_cfg; rmdir priv/lock/file-jobs_cfg",
        2,
        3,
        1,
    ),
}


def test_every_row_of_the_table_of_writes(node: Node) -> None:
    found, wanted = {}, {}
    for number, (row, (prepare, operate, *numbers)) in enumerate(ROWS.items()):
        folder = f"/etc/pve/t{number}"
        node.sh(f"mkdir {folder}; cd {folder}; {prepare}")
        with node.counting() as count:
            node.sh(f"cd {folder}; {operate}")
        found[row] = [count.transactions, count.write_lines, count.delete_lines]
        wanted[row] = numbers
        assert count.version_lines == count.transactions, row
    assert found == wanted


@pytest.mark.parametrize(
    ("block", "transactions"),
    [pytest.param(512, 2049, marks=pytest.mark.slow), (4096, 257), (131072, 9), (1048576, 9)],
)
def test_transactions_of_one_mebibyte(node: Node, block: int, transactions: int) -> None:
    data = os.urandom(1048576)
    before = node.version()
    descriptor = os.open(node.pve / "big", os.O_WRONLY | os.O_CREAT)
    for start in range(0, len(data), block):
        assert os.write(descriptor, data[start : start + block]) == block
    os.close(descriptor)
    assert node.version() - before == transactions
    assert (node.pve / "big").read_bytes() == data
    assert node.tree()["big"] == data


def test_debug_lines(node: Node) -> None:
    with node.counting() as count:
        (node.pve / "x").write_text("hello")
        (node.pve / "x").unlink()
    heads = [line.partition(" (database.c:")[0] for line in count.lines]
    assert heads == [
        "[database] debug: enter backend_write_inode 0000000000000002 'x', size 0",
        "[database] debug: enter backend_write_inode 0000000000000000 '__version__', size 0",
        "[database] debug: enter backend_write_inode 0000000000000002 'x', size 5",
        "[database] debug: enter backend_write_inode 0000000000000000 '__version__', size 0",
        "[database] debug: enter dbd_backend_delete_inode",
        "[database] debug: enter backend_write_inode 0000000000000000 '__version__', size 0",
    ]


def test_debug_switch_takes_exactly_two_texts(node: Node) -> None:
    switch = node.pve / ".debug"
    assert switch.read_text() == "0\n"
    switch.write_text("1\n")
    assert switch.read_text() == "1\n"
    for text in ("1", "0", "2\n", "1\n\n", "on\n", "10\n"):
        assert error_of(lambda text=text: switch.write_text(text)) == errno.EIO, text
    assert switch.read_text() == "1\n"
    before = node.version()
    switch.write_text("0\n")
    assert switch.read_text() == "0\n"
    assert node.version() == before
    node.log()
    (node.pve / "x").touch()
    assert not node.log()


def test_rows_of_the_database(node: Node) -> None:
    node.sh("mkdir /etc/pve/d; printf abc > /etc/pve/d/f; touch -d @1000 /etc/pve/d/f")
    rows = {row[6]: row for row in node.rows()}
    (_, _, version, writer, mtime, kind, _, data) = rows["__version__"]
    assert (version, writer, mtime, kind, data) == (node.version(), 0, 1000, 8, None)
    inode, parent, version_d, _, _, kind, _, data = rows["d"]
    assert (inode, parent, version_d, kind, data) == (2, 0, 2, 4, None)
    inode, parent, version_f, _, mtime, kind, _, data = rows["f"]
    assert (inode, parent, version_f, mtime, kind, data) == (3, 2, version, 1000, 8, b"abc")
    assert isinstance(data, bytes)


def test_a_new_inode_is_the_new_root_version(node: Node) -> None:
    for name in ("a", "b", "c"):
        node.sh(f"echo t > /etc/pve/{name}; echo t > /etc/pve/{name}")
        inode = next(row[0] for row in node.rows() if row[6] == name)
        assert inode == node.version() - 3


def test_schema_and_pragmas(node: Node) -> None:
    (node.pve / "x").touch()
    assert node.database.stat().st_size == 4096
    node.stop()
    out = node.sh(
        "cd /var/lib/pve-cluster; "
        "/usr/bin/python3 -c \"import sqlite3; c = sqlite3.connect('config.db');"
        "print([r[1:4] for r in c.execute('pragma table_info(tree)')], "
        "*[c.execute('pragma ' + p).fetchone()[0] for p in ('journal_mode', 'page_size', 'auto_vacuum')])\""
    )
    columns = "".join(
        f"('{name}', 'INTEGER', 1), " for name in ("inode", "parent", "version", "writer", "mtime", "type")
    )
    assert out == f"[{columns}('name', 'TEXT', 1), ('data', 'BLOB', 0)] wal 4096 0\n"
    bad = node.run(
        "/usr/bin/python3",
        "-c",
        "import sqlite3; c = sqlite3.connect('/var/lib/pve-cluster/config.db');"
        "c.execute('insert into tree values (99, 0, ?, 0, 0, 8, ?, null)', ('text', 'n'))",
    )
    assert "CHECK constraint failed" in bad.stderr


def test_modes_and_owner_are_given_by_the_path(node: Node) -> None:
    node.sh(
        "cd /etc/pve; umask 0; mkdir -p a priv/lock nodes/pve1/priv; touch f a/f priv/f nodes/pve1/priv/f"
    )
    modes = {"f": 0o640, "a/f": 0o640, "priv/f": 0o600, "nodes/pve1/priv/f": 0o600}
    for name, mode in modes.items():
        status = (node.pve / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, 0, WWW_DATA), name
        (node.pve / name).chmod(mode)
        for other in (0o600, 0o640, 0o644, 0o755, 0o4640):
            if other != mode:
                assert error_of(lambda n=name, o=other: (node.pve / n).chmod(o)) == errno.EPERM, (
                    name,
                    oct(other),
                )
    assert stat.S_IMODE((node.pve / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((node.pve / "priv/lock").stat().st_mode) == 0o700
    os.chown(node.pve / "f", 0, WWW_DATA)
    os.chown(node.pve / "f", -1, -1)
    assert error_of(lambda: os.chown(node.pve / "f", 1, WWW_DATA)) == errno.EPERM
    assert error_of(lambda: os.chown(node.pve / "f", 0, 0)) == errno.EPERM


def test_file_maximum_is_one_mebibyte(node: Node) -> None:
    path = node.pve / "big"
    path.write_bytes(bytes(1048576))
    before = node.version()
    descriptor = os.open(path, os.O_WRONLY)
    assert error_of(lambda: os.pwrite(descriptor, b"x", 1048576)) == errno.EFBIG
    os.close(descriptor)
    assert error_of(lambda: os.truncate(path, 1048577)) == errno.EFBIG
    assert path.stat().st_size == 1048576
    assert node.version() == before


def test_total_size_is_advertised_and_not_enforced(node: Node) -> None:
    status = os.statvfs(node.pve)
    assert status.f_blocks * status.f_frsize == 128 << 20
    assert status.f_files == 262144
    for number in range(3):
        (node.pve / f"big{number}").write_bytes(bytes(1048576))
    later = os.statvfs(node.pve)
    assert (status.f_bfree - later.f_bfree) * status.f_frsize == 3 << 20


def test_what_does_not_exist_here(node: Node) -> None:
    (node.pve / "f").touch()
    assert error_of(lambda: os.symlink("f", node.pve / "l")) in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP)
    assert error_of(lambda: os.link(node.pve / "f", node.pve / "l")) in (
        errno.ENOSYS,
        errno.EPERM,
        errno.EOPNOTSUPP,
    )
    assert error_of(lambda: os.mkfifo(node.pve / "p")) != 0
    assert sorted(node.tree()) == ["f"]


def test_errors_of_ordinary_operations(node: Node) -> None:
    pve = node.pve
    node.sh("cd /etc/pve; mkdir d; touch d/f f; mkdir e")
    before = node.version()
    assert error_of(lambda: os.mkdir(pve / "d")) == errno.EEXIST
    assert error_of(lambda: os.rmdir(pve / "d")) == errno.ENOTEMPTY
    assert error_of(lambda: os.unlink(pve / "missing")) == errno.ENOENT
    assert error_of(lambda: os.mkdir(pve / "no/such")) == errno.ENOENT
    assert error_of(lambda: os.rename(pve / "e", pve / "d")) == errno.ENOTEMPTY
    assert error_of(lambda: os.rename(pve / "d", pve / "d/f")) != 0
    assert error_of(lambda: os.rename(pve / "f", pve / "d")) == errno.EISDIR
    assert error_of(lambda: os.open(pve / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)) == errno.EEXIST
    assert error_of(lambda: os.rename(pve / "d", pve / "e")) == errno.ENOTEMPTY, "what has content stays"
    assert error_of(lambda: os.rename(pve / "d", pve / "g")) == errno.ENOTEMPTY
    assert node.version() == before
    os.mkdir(pve / ("n" * 300))
    assert "n" * 300 in os.listdir(pve)


def test_writes_at_offsets(node: Node) -> None:
    path = node.pve / "f"
    path.write_bytes(b"0123456789")
    with open(path, "r+b", buffering=0) as stream:
        stream.seek(3)
        stream.write(b"abc")
        stream.seek(15)
        stream.write(b"z")
    assert path.read_bytes() == b"012abc6789" + bytes(5) + b"z"
    os.truncate(path, 4)
    os.truncate(path, 6)
    assert path.read_bytes() == b"012a\0\0"
    node.restart()
    assert path.read_bytes() == b"012a\0\0"


def hidden(node: Node) -> dict[str, bytes | None]:
    return {path: data for path, data in node.tree().items() if path.rpartition("/")[2].startswith(".fuse_hidden")}


def test_an_open_file_follows_a_rename(node: Node) -> None:
    with open(node.pve / "a", "wb", buffering=0) as stream:
        stream.write(b"1")
        os.rename(node.pve / "a", node.pve / "b")
        stream.write(b"2")
        assert (node.pve / "b").read_bytes() == b"12"
    assert node.tree() == {"b": b"12"}


def test_a_removed_file_that_is_open_stays_as_a_hidden_row_until_it_is_closed(node: Node) -> None:
    (node.pve / "d").mkdir()
    with open(node.pve / "d/b", "wb", buffering=0) as stream, open(node.pve / "d/b", "rb") as reader:
        stream.write(b"12")
        with node.counting() as count:
            os.unlink(node.pve / "d/b")
        assert (count.transactions, count.write_lines, count.delete_lines) == (1, 2, 0), "it is a rename"
        assert not (node.pve / "d/b").exists()
        assert list(hidden(node).values()) == [b"12"]
        assert [name for name in os.listdir(node.pve / "d") if name.startswith(".fuse_hidden")]
        stream.write(b"3")
        assert list(hidden(node).values()) == [b"123"]
        assert error_of(lambda: os.rmdir(node.pve / "d")) == errno.ENOTEMPTY
        (node.pve / "d/b").write_text("another")
        reader.close()
        assert len(hidden(node)) == 1, "somebody else has it open"
        before = node.version()
    wait_for("the hidden file to go", lambda: not hidden(node))
    assert node.version() == before + 1
    assert node.tree() == {"d": None, "d/b": b"another"}
    with open(node.pve / "d/b") as reader:
        reader.read()
    os.unlink(node.pve / "d/b")
    assert node.tree() == {"d": None}, "a file that was closed is removed at once"


def test_a_guest_whose_configuration_is_open_is_gone_when_it_is_removed(node: Node) -> None:
    node.sh("cd /etc/pve; mkdir -p nodes/pve1/qemu-server; echo 1 > nodes/pve1/qemu-server/100.conf")
    with open(node.pve / "nodes/pve1/qemu-server/100.conf"):
        os.unlink(node.pve / "nodes/pve1/qemu-server/100.conf")
        assert len(hidden(node)) == 1
        assert json.loads((node.pve / ".vmlist").read_text())["ids"] == {}
        (node.pve / "nodes/pve1/qemu-server/100.conf").write_text("2")
    wait_for("the hidden file to go", lambda: not hidden(node))
    assert node.tree()["nodes/pve1/qemu-server/100.conf"] == b"2"


def test_a_killed_daemon_leaves_the_hidden_row_behind(node: Node) -> None:
    descriptor = os.open(node.pve / "b", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"1")
    os.unlink(node.pve / "b")
    node.stop(signal.SIGKILL)
    error_of(lambda: os.close(descriptor))
    node.start()
    assert list(hidden(node).values()) == [b"1"]


@pytest.mark.skipif(not IS_DOUBLE, reason="as libfuse describes itself; not seen on the real daemon")
def test_an_open_file_that_another_one_replaces_is_hidden_too(node: Node) -> None:
    node.sh("cd /etc/pve; echo old > a; echo new > b; mkdir d")
    with open(node.pve / "a", "rb") as reader:
        with node.counting() as count:
            os.rename(node.pve / "b", node.pve / "a")
        assert (count.transactions, count.write_lines, count.delete_lines) == (2, 4, 0)
        assert reader.read() == b"old\n"
        assert list(hidden(node).values()) == [b"old\n"]
        assert error_of(lambda: os.rename(node.pve / "a", node.pve / "a")) == 0
    wait_for("the hidden file to go", lambda: not hidden(node))
    assert node.tree() == {"a": b"new\n", "d": None}


def test_touch_with_a_date(node: Node) -> None:
    node.sh("cd /etc/pve; touch f; touch -d @1234567890 f; mkdir d; touch -d @5 d")
    assert (node.pve / "f").stat().st_mtime == 1234567890
    assert (node.pve / "d").stat().st_mtime == 5
    node.restart()
    assert (node.pve / "f").stat().st_mtime == 1234567890
    before = time.time()
    (node.pve / "f").write_text("now")
    assert (node.pve / "f").stat().st_mtime >= int(before)


def test_virtual_files_and_links(node: Node) -> None:
    for name in (".version", ".members", ".vmlist", ".rrd", ".clusterlog"):
        assert stat.S_IMODE((node.pve / name).stat().st_mode) == 0o440, name
        assert error_of(lambda name=name: (node.pve / name).write_text("x")) == errno.EIO, name
        assert error_of(lambda name=name: (node.pve / name).unlink()) != 0, name
        (node.pve / name).read_bytes()
    assert stat.S_IMODE((node.pve / ".debug").stat().st_mode) == 0o640
    links = {"local": "", "qemu-server": "/qemu-server", "openvz": "/openvz", "lxc": "/lxc"}
    for name, tail in links.items():
        assert os.readlink(node.pve / name) == f"nodes/pve1{tail}"
        assert error_of(lambda name=name: (node.pve / name).mkdir()) == errno.EEXIST
    assert os.lstat(node.pve / "local").st_mode & 0o222
    assert json.loads((node.pve / ".members").read_text()) == {"nodename": "pve1", "version": 0}
    listing = {entry for entry in os.listdir(node.pve) if entry.startswith(".")}
    assert listing == {".version", ".members", ".vmlist", ".rrd", ".clusterlog", ".debug"}
    assert not node.tree()


def test_a_stale_lock_is_removed_only_when_asked(node: Node) -> None:
    node.sh("cd /etc/pve; mkdir -p priv/lock/file-a priv/lock/file-full/x priv/lock/file-a2 priv/other")
    locks = node.pve / "priv/lock"
    old = int(time.time()) - 125

    def asked(path: Path) -> int:
        """Ask for a lock; how many transactions that takes."""
        before = node.version()
        os.utime(path, (0, 0))
        return node.version() - before

    for name in ("file-a", "file-full", "file-a2"):
        assert asked(locks / name) == 0, "it is not old"
        assert (locks / name).stat().st_mtime > old
        os.utime(locks / name, (old, old))
        assert (locks / name).stat().st_mtime == old, "any other time is set"
    (node.pve / "x").touch()
    assert (locks / "file-a").is_dir(), "nothing is removed unasked"
    with node.counting() as count:
        os.utime(locks / "file-a", (0, 0))
    assert (count.transactions, count.write_lines, count.delete_lines) == (1, 1, 1)
    assert "priv/lock/file-a" not in node.tree()
    assert error_of(lambda: os.rmdir(locks / "file-a")) == errno.ENOENT
    assert asked(locks / "file-full") == 0, "it is not empty"
    assert (locks / "file-full").stat().st_mtime == old
    os.utime(locks / "file-a2")  # its holder is still there
    assert asked(locks / "file-a2") == 0
    assert (locks / "file-a2").is_dir()
    for path in (node.pve / "priv/other", locks, locks / "file-full/x", node.pve / "x"):
        assert asked(path) == 1, "no lock"
        assert path.stat().st_mtime == 0


@pytest.mark.skipif(not IS_DOUBLE, reason="a variable of the double")
def test_the_age_of_a_stale_lock_can_be_shortened(empty_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMXCFS_LAB_LOCK_SECONDS", "0")
    empty_node.start()
    lock = empty_node.pve / "priv/lock/file-a"
    lock.parent.mkdir(parents=True)
    lock.mkdir()

    def gone() -> bool:
        os.utime(lock, (0, 0))
        return "priv/lock/file-a" not in empty_node.tree()

    wait_for("a lock of more than no second", gone)


def test_vmlist_follows_guests(node: Node) -> None:
    def guests() -> dict[str, tuple[str, str]]:
        ids = json.loads((node.pve / ".vmlist").read_text())["ids"]
        return {number: (guest["node"], guest["type"]) for number, guest in ids.items()}

    node.sh("cd /etc/pve; mkdir -p nodes/pve{1,2}/{qemu-server,lxc}; touch qemu-server/100.conf lxc/200.conf")
    assert guests() == {"100": ("pve1", "qemu"), "200": ("pve1", "lxc")}
    node.sh(
        "cd /etc/pve; mv nodes/pve1/qemu-server/100.conf nodes/pve2/qemu-server/100.conf; touch lxc/x.conf"
    )
    assert guests() == {"100": ("pve2", "qemu"), "200": ("pve1", "lxc")}
    assert error_of(lambda: (node.pve / "lxc/100.conf").touch()) == errno.EEXIST
    node.sh("cd /etc/pve; rm lxc/200.conf")
    assert guests() == {"100": ("pve2", "qemu")}
    node.restart()
    assert guests() == {"100": ("pve2", "qemu")}


def test_long_listings(node: Node) -> None:
    names = {f"file-{number:03}-{'x' * 60}" for number in range(200)}
    (node.pve / "d").mkdir()
    for name in names:
        (node.pve / "d" / name).touch()
    assert set(os.listdir(node.pve / "d")) == names
    assert len(node.sh("ls -la /etc/pve/d").splitlines()) == 203


def test_www_data_may_read_and_not_write(node: Node) -> None:
    node.sh("cd /etc/pve; mkdir priv; echo s > f; echo s > priv/f")
    assert (
        node.run("setpriv", "--reuid=33", "--regid=33", "--clear-groups", "cat", "/etc/pve/f").stdout == "s\n"
    )
    for command in ("cat /etc/pve/priv/f", "touch /etc/pve/f", "touch /etc/pve/g"):
        result = node.run("setpriv", "--reuid=33", "--regid=33", "--clear-groups", *command.split())
        assert "Permission denied" in result.stderr, command
    nobody = node.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", "/etc/pve/f")
    assert "Permission denied" in nobody.stderr
