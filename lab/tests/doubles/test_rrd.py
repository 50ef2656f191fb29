# SPDX-License-Identifier: Apache-2.0
"""Statistics: from a datagram through all members into rrdcached, a real one where there is one.

RRDCACHED names the daemon, where it is not in the PATH.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.tests.doubles import conftest  # noqa: F401  (makes pmxcfs_lab importable)
from lab.tests.doubles.harness import IS_DOUBLE, Node, wait_for
from lab.tests.doubles.test_dcdb import Bus
from lab.tests.doubles.test_memdb import Quiet
from pmxcfs_lab import rrd
from pmxcfs_lab.dcdb import NOTES
from pmxcfs_lab.memdb import Op

DAEMON = os.environ.get("RRDCACHED") or shutil.which("rrdcached")


def record(key: str, when: int = 1_764_500_000) -> str:
    count = len(rrd.KINDS[key.partition("/")[0]])
    return f"{key} {when}{':0.5' * count}"


# records


@pytest.mark.parametrize("key", ["pve-node-9.0/pve1", "pve-vm-9.0/100", "pve-storage-9.0/pve1/local-lvm"])
def test_a_record(key: str) -> None:
    (found,), wrong = rrd.parse(record(key) + "\n")
    assert (found.key, found.kind, found.time) == (key, key.partition("/")[0], 1_764_500_000) and not wrong


@pytest.mark.parametrize(
    "line",
    [
        "",
        "pve-vm-9.0/100",
        record("pve-vm-9.0/100") + ":1",
        record("pve-vm-9.0/100")[:-4],
        record("pve-vm-9.0/100").replace("pve-vm-9.0", "pve-vm-8.0"),
        record("pve-vm-9.0/../x"),
        record("pve-vm-9.0/a/b/c"),
        record("pve-vm-9.0/100").replace(":0.5", ":x", 1),
        record("pve-vm-9.0/100").replace(":0.5", ":1 2", 1),
    ],
)
def test_what_is_no_record_is_left_out_and_named(line: str) -> None:
    found, wrong = rrd.parse(f"{record('pve-vm-9.0/1')}\n{line}\n{record('pve-vm-9.0/2')}\n")
    assert [each.key for each in found] == ["pve-vm-9.0/1", "pve-vm-9.0/2"] and wrong == [line]


def test_files_have_the_sizes_of_real_ones() -> None:
    """A row is 8 bytes a source: about 1.5 MB a node and 1.4 MB a guest."""
    rows = 2 * sum(rows for _, rows in rrd.ARCHIVES)
    sizes = {kind: rows * 8 * len(sources) for kind, sources in rrd.KINDS.items()}
    assert round(sizes["pve-node-9.0"], -5) == 1_500_000 and round(sizes["pve-vm-9.0"], -5) == 1_400_000
    (found,), _ = rrd.parse(record("pve-vm-9.0/100"))
    words = rrd.create_command(found).split()
    assert sum(word.startswith("RRA:") for word in words) == 8 and "-s 60" in rrd.create_command(found)
    assert all(len(set(sources)) == len(sources) for sources in rrd.KINDS.values())
    assert all(len(name) < 20 for sources in rrd.KINDS.values() for name in sources), "rrdtool takes no longer ones"


# from member to member


def notes_of(bus: Bus) -> dict[int, list[bytes]]:
    got: dict[int, list[bytes]] = {}
    for number, member in bus.members.items():
        got[number] = []
        member.dcdb.on_note = got[number].append
    return got


def test_a_note_reaches_every_member_also_without_quorum_and_changes_no_tree(tmp_path: Path) -> None:
    bus = Bus(tmp_path, 3)
    got = notes_of(bus)
    bus.partition({1, 2}, {3})
    bus.settle()
    assert bus.members[1].dcdb.note(b"one") and bus.members[3].dcdb.note(b"three")
    bus.settle()
    assert got == {1: [b"one"], 2: [b"one"], 3: [b"three"]}
    assert [member.memdb.root.version for member in bus.members.values()] == [1, 1, 1]


def test_a_note_in_the_midst_of_a_synchronisation_disturbs_it_not(tmp_path: Path) -> None:
    bus = Bus(tmp_path, 3)
    got = notes_of(bus)
    bus.members[2].local(Op.CREATE, "a", data=b"x" * 300_000)
    bus.partition({1, 2, 3})
    sent = 0
    for round_number in range(200):
        bus.step()
        sent += bus.members[round_number % 3 + 1].dcdb.note(b"n%d" % round_number)
    bus.settle()
    assert sent and [member.names() for member in bus.members.values()] == [["a"]] * 3
    assert got[1] == got[2] == got[3] and len(got[1]) == sent


def test_a_note_is_refused_where_nobody_would_get_it(tmp_path: Path) -> None:
    bus = Bus(tmp_path, 3)
    assert not bus.members[1].dcdb.note(b"x"), "in no group"
    bus.partition({1, 2, 3})
    bus.settle()
    bus.refuse = 1.0
    taken = 0
    while bus.members[1].dcdb.note(b"x"):
        taken += 1
    assert taken == NOTES
    bus.members[1].dcdb.disconnect()
    assert not bus.members[1].dcdb.note(b"x")


# into rrdcached


class FakeRrdcached:
    """Takes one connection after the other, and answers each line."""

    def __init__(self, path: Path) -> None:
        self.lines: list[str] = []
        self.files: set[str] = set()
        self.connections = 0
        self.answer: Callable[[str], bytes | None] = self.usual
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def usual(self, line: str) -> bytes:
        command, name, *_ = line.split(" ")
        if command == "CREATE":
            self.files.add(name)
            return b"0 RRD created OK\n"
        return b"0 errors, enqueued 1 value(s).\n" if name in self.files else b"-1 No such file: /x/%s\n" % name.encode()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with connection, connection.makefile("rwb", buffering=0) as stream:
                for line in stream:
                    self.lines.append(line.decode().rstrip("\n"))
                    said = self.answer(self.lines[-1])
                    if said is None:
                        break
                    stream.write(said)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.fixture
def rrdcached(tmp_path: Path) -> Iterator[FakeRrdcached]:
    fake = FakeRrdcached(tmp_path / "s")
    yield fake
    fake.close()


@pytest.fixture
def store(tmp_path: Path) -> rrd.Store:
    (tmp_path / "db/pve-storage-9.0").mkdir(parents=True)
    return rrd.Store(Quiet(), str(tmp_path / "s"), str(tmp_path / "db"))


def said(store: rrd.Store) -> list[str]:
    assert isinstance(store.log, Quiet)
    return store.log.lines


def test_a_file_is_made_once_and_every_record_is_stored(rrdcached: FakeRrdcached, store: rrd.Store) -> None:
    store.store(record("pve-vm-9.0/100", 1000) + "\n")
    store.store(record("pve-vm-9.0/100", 1010) + "\n")
    commands = [line.split(" ")[:2] for line in rrdcached.lines]
    assert commands == [[word, "pve-vm-9.0/100"] for word in ("UPDATE", "CREATE", "UPDATE", "UPDATE")]
    assert rrdcached.lines[1].startswith("CREATE pve-vm-9.0/100 -s 60 -b 940 -O DS:maxcpu:GAUGE:120:0:U DS:")
    assert rrdcached.lines[3] == "UPDATE pve-vm-9.0/100 1010" + ":0.5" * 18
    assert rrdcached.connections == 1 and said(store) == []


def test_the_folder_of_a_nodes_storages_is_made_and_that_of_a_kind_is_not(
    rrdcached: FakeRrdcached, store: rrd.Store, tmp_path: Path
) -> None:
    store.store(f"{record('pve-storage-9.0/pve1/local')}\n{record('pve-vm-9.0/1')}\n")
    assert sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "db").rglob("*")) == [
        "db/pve-storage-9.0",
        "db/pve-storage-9.0/pve1",
    ]


def test_a_refused_record_is_said_each_time_and_the_next_one_stored(rrdcached: FakeRrdcached, store: rrd.Store) -> None:
    def answer(line: str) -> bytes:
        # As rrdcached says it: in two lines.
        return b"-1 No permission: /x\nDid you pass -R to the daemon?\n" if "/bad" in line else rrdcached.usual(line)

    rrdcached.answer = answer
    for when in (1000, 1010):
        store.store(f"{record('pve-vm-9.0/bad', when)}\n{record('pve-vm-9.0/7', when)}\n")
    assert [line for line in said(store) if "No permission" in line] == [
        "[status] notice: RRD update error pve-vm-9.0/bad: No permission: /x"
    ] * 2
    assert [line.split(" ")[2].partition(":")[0] for line in rrdcached.lines if line.startswith("UPDATE pve-vm-9.0/7")] == [
        "1000", "1000", "1010",
    ]  # fmt: skip


def test_without_rrdcached_records_are_lost_and_it_is_said_once(tmp_path: Path, store: rrd.Store) -> None:
    for when in (1000, 1010):
        store.store(record("pve-vm-9.0/1", when))
    assert said(store) == [f"[status] notice: rrdcached at {tmp_path}/s: No such file or directory"]
    fake = FakeRrdcached(tmp_path / "s")
    store.store(record("pve-vm-9.0/1", 1020))
    assert fake.lines[-1].startswith("UPDATE pve-vm-9.0/1 1020:"), "found again by itself"
    fake.answer = lambda line: None  # it ends
    store.store(record("pve-vm-9.0/1", 1030))
    store.store(record("pve-vm-9.0/1", 1040))
    assert fake.connections >= 2 and len(said(store)) == 2, said(store)
    fake.close()


def test_put_never_waits_for_a_daemon_that_does_not_answer(rrdcached: FakeRrdcached, store: rrd.Store) -> None:
    free = threading.Event()

    def answer(line: str) -> bytes:
        free.wait(60)
        return rrdcached.usual(line)

    rrdcached.answer = answer
    for when in range(1000, 1000 + 3 * rrd.WAITING):
        store.put(record("pve-vm-9.0/1", when))
    free.set()
    wait_for("the first record", lambda: any(line.startswith("CREATE") for line in rrdcached.lines))
    assert said(store) == ["[status] notice: too many updates wait for rrdcached: some are lost"]


# the whole daemon, with a real rrdcached

real = pytest.mark.skipif(DAEMON is None or not IS_DOUBLE, reason="needs rrdcached (RRDCACHED=/path), and the double")


def ask(path: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        # A path below /proc/PID/root is longer than an address may be.
        folder = os.open(path.parent, os.O_PATH)
        try:
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        connection.sendall(command.encode() + b"\n")
        with connection.makefile() as stream:
            first = stream.readline()
            more = max(0, int(first.split()[0])) if command == "STATS" else 0
            return first + "".join(stream.readline() for _ in range(more))


def start_rrdcached(node: Node) -> None:
    assert DAEMON is not None
    node.sh("mkdir -p /var/lib/rrdcached/journal; cd /var/lib/rrdcached; mkdir -p db/pve-{node,vm,storage}-9.0")
    node.spawn(
        DAEMON, "-g", "-B", "-b", "/var/lib/rrdcached/db", "-j", "/var/lib/rrdcached/journal", "-p", "/run/rrdcached.pid",
        "-l", "unix:/run/rrdcached.sock", log="/run/rrdcached.out",
    )  # fmt: skip
    wait_for("rrdcached", (node.root / "run/rrdcached.sock").exists)


def start_pvestatd(node: Node, guests: str) -> subprocess.Popen[bytes]:
    source = Path(__file__).parents[2] / "packages/pve-manager/root/usr/bin/pvestatd"
    shutil.copy(source, node.root / "run/harness/pvestatd")
    (node.root / "etc/pvestatd-lab.conf").write_text(f"guests={guests}\nstorages=local\nseconds=1\n")
    return node.spawn("/run/harness/pvestatd", log="/run/pvestatd.out")


def files(node: Node) -> dict[str, int]:
    top = node.root / "var/lib/rrdcached/db"
    return {str(path.relative_to(top)): path.stat().st_size for path in top.rglob("*") if path.is_file()}


@pytest.mark.slow
@real
def test_files_of_a_node_of_guests_and_of_storages(node: Node) -> None:
    start_rrdcached(node)
    start_pvestatd(node, "100 101")
    wanted = {"pve-node-9.0/pve1", "pve-vm-9.0/100", "pve-vm-9.0/101", "pve-storage-9.0/pve1/local"}
    wait_for("the files", lambda: set(files(node)) == wanted)
    sizes = {name.partition("/")[0]: round(size, -4) for name, size in files(node).items()}
    assert sizes == {"pve-node-9.0": 1_500_000, "pve-vm-9.0": 1_430_000, "pve-storage-9.0": 160_000}

    def written() -> int:
        stats = ask(node.root / "run/rrdcached.sock", "STATS").splitlines()
        return int(next(line for line in stats if line.startswith("UpdatesWritten")).split()[1])

    def flushed() -> bool:
        ask(node.root / "run/rrdcached.sock", "FLUSHALL")
        return written() >= 8  # twice each: later rounds are stored as well

    wait_for("values on the disk", flushed)
    assert "lab double" in (node.root / "run/pvestatd.out").read_text()
    assert not [line for line in node.log() if "[status]" in line]
    assert node.tree() == {}, "statistics are not in the database"


@pytest.mark.slow
@real
def test_a_hanging_rrdcached_holds_up_nobody(node: Node) -> None:
    start_rrdcached(node)
    pid = int((node.root / "run/rrdcached.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        start_pvestatd(node, "100")
        wait_for("a record on its way", lambda: len(os.listdir(f"/proc/{node.pid_of_daemon}/task")) > 1)
        (node.pve / "file").write_text("x")
        assert (node.pve / "file").read_text() == "x"
        node.stop()  # and the daemon ends
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.skipif(not IS_DOUBLE, reason="the double's own way for statistics")
def test_a_missing_folder_is_complained_about_each_time(node: Node) -> None:
    start_pvestatd(node, "100")
    node.wait_for_log("rrdcached at /run/rrdcached.sock: No such file or directory")
    if DAEMON is None:
        return
    start_rrdcached(node)
    (node.root / "var/lib/rrdcached/db/pve-vm-9.0").rmdir()
    for _ in range(2):
        node.wait_for_log("RRD update error pve-vm-9.0/100")
    assert set(files(node)) == {"pve-node-9.0/pve1", "pve-storage-9.0/pve1/local"}
