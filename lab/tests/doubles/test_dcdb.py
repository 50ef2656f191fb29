# SPDX-License-Identifier: Apache-2.0
"""Members on an in-memory bus: order, leaders, synchronisation, splits."""

from __future__ import annotations

import errno
import random
from collections import deque
from pathlib import Path

import pytest

from lab.tests.doubles import conftest  # noqa: F401  (makes pmxcfs_lab importable)
from lab.tests.doubles.test_memdb import Quiet
from pmxcfs_lab.dcdb import Dcdb, Member, State, choose_leader
from pmxcfs_lab.memdb import MemDB, Op, Update


class Bus:
    """A network of closed process groups: one queue of events for each partition, the same for all in it."""

    def __init__(self, folder: Path, count: int, quorum: int | None = None) -> None:
        self.folder = folder
        self.quorum = quorum or count // 2 + 1
        self.members: dict[int, FakeMember] = {}
        self.partitions: list[set[int]] = []
        self.refuse = 0.0
        self.lossy = False
        self.keep = 0.2  # chance that a message which could be lost is not
        self.random = random.Random(1)
        for number in range(1, count + 1):
            self.members[number] = FakeMember(self, number)

    def partition(self, *groups: set[int]) -> None:
        """Form these groups; who is in none of them has left.

        As in corosync, members that go from one group to the next together have delivered the same messages before
        they see the change. A message that nobody in the new group has delivered yet may be lost to it (`lossy`),
        unless one of them sent it: then it is delivered after the change.
        """
        old_groups, self.partitions = self.partitions, [set(group) for group in groups]
        for group in self.partitions:
            late: list[tuple[Member, bytes]] = []
            for old in old_groups:
                late += self._cut_tail([self.members[number] for number in sorted(group & old)], group)
            present = [self.members[number] for number in sorted(group)]
            for member in present:
                member.connected = True
                member.queue.append(sorted(other.me for other in present))
                member.queue.extend(late)
                member.quorate = len(group) >= self.quorum
        grouped = set().union(*self.partitions)
        for number, member in self.members.items():
            if number not in grouped and member.connected:
                member.leave()

    def _cut_tail(self, together: list[FakeMember], group: set[int]) -> list[tuple[Member, bytes]]:
        if not together:
            return []
        tail: list[tuple[Member, bytes]] = []
        for event in reversed(min((member.queue for member in together), key=len)):
            if isinstance(event, list) or self.random.random() < self.keep:
                break
            tail.insert(0, event)
        if not self.lossy:
            return []
        for member in together:
            for _ in tail:
                member.queue.pop()
        return [event for event in tail if event[0][0] in group]

    def send(self, sender: FakeMember, message: bytes) -> None:
        for group in self.partitions:
            if sender.me[0] in group:
                for number in group:
                    self.members[number].queue.append((sender.me, message))

    def step(self) -> bool:
        """One event at one member, chosen at random. False = nothing is under way."""
        flushed = [member.dcdb.flush() for member in self.members.values()]
        waiting = [member for member in self.members.values() if member.queue]
        if not waiting:
            return not all(flushed)
        member = self.random.choice(waiting)
        event = member.queue.popleft()
        if isinstance(event, list):
            member.dcdb.membership(event)
        else:
            member.dcdb.deliver(*event)
        return True

    def settle(self) -> None:
        for _ in range(100_000):
            if not self.step():
                return
        raise AssertionError("no end of messages")


class FakeMember:
    """One member; implements dcdb.Transport."""

    def __init__(self, bus: Bus, number: int) -> None:
        self.bus = bus
        self.me: Member = (number, 1000 + number)
        self.queue: deque[tuple[Member, bytes] | list[Member]] = deque()
        self.connected = False
        self.quorate = False
        self.log = Quiet()
        self.memdb = MemDB(str(bus.folder / f"{number}.db"), self.log)
        self.dcdb = Dcdb(self.memdb, self.log, lambda: self.quorate)
        self.dcdb.connect(self)
        self.results: list[int] = []

    def mcast(self, message: bytes) -> bool:
        if self.bus.random.random() < self.bus.refuse:
            return False
        self.bus.send(self, message)
        return True

    def leave(self) -> None:
        self.connected = self.quorate = False
        self.queue.clear()
        self.dcdb.disconnect()
        self.dcdb.connect(self)

    def local(self, op: int, path: str, **fields: object) -> None:
        """An update as in local mode: this database only."""
        assert self.memdb.apply(Update(op, path, 100, **fields), 0) == 0  # type: ignore[arg-type]

    def submit(self, op: int, path: str, **fields: object) -> None:
        self.dcdb.submit(Update(op, path, 200, **fields), self.results.append)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        return sorted(entry.path() for entry in self.memdb.handles.values() if entry.parent)


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    return Bus(tmp_path, 3)


def equal(bus: Bus, *numbers: int) -> bool:
    trees = [sorted(bus.members[number].memdb.rows()) for number in numbers or bus.members]
    return all(tree == trees[0] for tree in trees)


def test_the_leader() -> None:
    def state(version: int, mtime: int) -> State:
        return State(version, mtime, {})

    one, two, three = (1, 9), (2, 8), (3, 7)
    assert choose_leader({one: state(5, 9), two: state(6, 1), three: state(5, 9)}) == two
    assert choose_leader({one: state(6, 1), two: state(6, 2), three: state(6, 1)}) == two
    assert choose_leader({one: state(6, 2), two: state(6, 2), three: state(6, 2)}) == one


def test_updates_reach_all_in_one_order(bus: Bus) -> None:
    bus.partition({1, 2, 3})
    bus.settle()
    for number, member in bus.members.items():
        member.submit(Op.MKDIR, "lock")
        member.submit(Op.CREATE, f"f{number}", data=b"x" * number)
    bus.settle()
    assert equal(bus)
    assert sorted(member.results[0] for member in bus.members.values()) == [0, errno.EEXIST, errno.EEXIST]
    assert bus.members[1].memdb.root.version == 1 + 1 + 3
    writers = {row[6]: row[3] for row in bus.members[1].memdb.rows()}
    assert [writers[f"f{number}"] for number in (1, 2, 3)] == [1, 2, 3]


def test_highest_version_wins_and_the_others_roll_back(bus: Bus) -> None:
    for name in ("a", "b", "c"):
        bus.members[3].local(Op.CREATE, name)
    bus.members[1].local(Op.CREATE, "good")
    bus.members[2].local(Op.CREATE, "good")
    bus.partition({1, 2, 3})
    bus.settle()
    assert equal(bus)
    assert bus.members[1].names() == ["a", "b", "c"]
    assert bus.members[1].memdb.root.version == 4


def test_equal_versions_are_decided_by_mtime(bus: Bus) -> None:
    for number, mtime in ((1, 50), (2, 70), (3, 60)):
        assert bus.members[number].memdb.apply(Update(Op.CREATE, f"of{number}", mtime), 0) == 0
    bus.partition({1, 2, 3})
    bus.settle()
    assert equal(bus)
    assert bus.members[3].names() == ["of2"]


def test_equal_versions_and_mtimes_are_decided_by_node_order(bus: Bus) -> None:
    for number in (1, 2, 3):
        bus.members[number].local(Op.CREATE, f"of{number}")
    bus.partition({1, 2, 3})
    bus.settle()
    assert equal(bus) and bus.members[3].names() == ["of1"]


def test_without_quorum_nothing_is_written(bus: Bus) -> None:
    bus.partition({1}, {2, 3})
    bus.settle()
    bus.members[1].submit(Op.CREATE, "x")
    bus.members[2].submit(Op.CREATE, "y")
    bus.settle()
    assert bus.members[1].results == [errno.EACCES] and bus.members[1].names() == []
    assert bus.members[2].results == [0] and equal(bus, 2, 3)
    bus.partition({1, 2, 3})
    bus.settle()
    assert equal(bus) and bus.members[1].names() == ["y"]


def test_an_update_under_way_when_quorum_is_lost_is_refused(bus: Bus) -> None:
    bus.partition({1, 2, 3})
    bus.settle()
    bus.lossy, bus.keep = True, 0.0
    bus.members[1].submit(Op.CREATE, "x")
    bus.partition({1}, {2, 3})
    bus.settle()
    assert bus.members[1].results == [errno.EACCES]
    assert all(member.names() == [] for member in bus.members.values())


def test_an_update_that_the_transport_held_back_until_quorum_was_lost_is_refused(bus: Bus) -> None:
    bus.partition({1, 2, 3})
    bus.settle()
    bus.refuse = 1.0
    bus.members[1].submit(Op.CREATE, "x")
    bus.partition({1}, {2, 3})
    bus.refuse = 0.0
    bus.settle()
    assert bus.members[1].results == [errno.EACCES]
    assert bus.members[1].names() == []


def test_an_update_under_way_at_a_membership_change_is_sent_again(bus: Bus) -> None:
    bus.partition({1, 2}, {3})
    bus.settle()
    bus.members[1].submit(Op.CREATE, "x")
    bus.partition({1, 2, 3})
    bus.members[2].submit(Op.CREATE, "y")  # before the synchronisation
    bus.settle()
    assert bus.members[1].results == [0] and bus.members[2].results == [0]
    assert equal(bus) and bus.members[3].names() == ["x", "y"]


def test_equal_trees_cost_no_transaction(bus: Bus) -> None:
    bus.partition({1, 2, 3})
    bus.settle()
    statements: list[str] = []
    for member in bus.members.values():
        member.memdb._db.set_trace_callback(statements.append)
    bus.partition({1, 2}, {3})
    bus.settle()
    bus.partition({1, 2, 3})
    bus.settle()
    assert statements == []


def test_only_differing_rows_travel(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        bus.members[1].local(Op.CREATE, f"f{number}", data=bytes(1000))
    bus.partition({1, 2, 3})
    bus.settle()
    bus.partition({1, 2}, {3})
    bus.settle()
    bus.members[1].submit(Op.WRITE, "f7", data=b"new")
    bus.settle()
    sent: list[int] = []
    monkeypatch.setattr(
        bus, "send", lambda sender, message, send=bus.send: (sent.append(len(message)), send(sender, message))
    )
    bus.partition({1, 2, 3})
    bus.settle()
    assert equal(bus)
    # three indexes of 52 rows and 16 bytes a row, and two rows
    assert sum(sent) < 3 * 52 * 16 + 2500


def test_names_that_are_not_utf8_travel(bus: Bus) -> None:
    bus.members[2].local(Op.MKDIR, "d\udcff")
    bus.partition({1, 2, 3})
    bus.settle()
    bus.members[1].submit(Op.CREATE, "d\udcff/f\udcfc")
    bus.settle()
    assert bus.members[1].results == [0]
    assert equal(bus) and bus.members[3].names() == ["d\udcff", "d\udcff/f\udcfc"]
    stored = MemDB(str(bus.folder / "3.db"), Quiet())
    assert sorted(stored.rows()) == sorted(bus.members[3].memdb.rows())


def test_large_states_travel_in_pieces(bus: Bus) -> None:
    for number in range(4):
        bus.members[2].local(Op.CREATE, f"big{number}", data=bytes([number]) * 1_000_000)
    bus.partition({1, 2, 3})
    bus.settle()
    assert equal(bus)


def test_a_full_disk_stops_only_that_member(bus: Bus) -> None:
    bus.partition({1, 2, 3})
    bus.settle()
    victim = bus.members[3]
    victim.memdb.failed = True
    bus.members[1].submit(Op.CREATE, "x")
    bus.settle()
    assert bus.members[1].results == [0] and equal(bus, 1, 2)
    assert victim.dcdb.broken
    assert "[dcdb] crit: serious internal error - stop cluster connection" in victim.log.lines
    victim.submit(Op.CREATE, "y")
    bus.settle()
    assert victim.results == [], "a write there never returns"
    assert victim.quorate and victim.names() == []


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_any_history_ends_with_equal_members(tmp_path: Path, seed: int, lossy: bool) -> None:
    """Random updates, splits, departures and a transport that refuses now and then.

    Agreed order lets a member deliver its own message before anybody else has it. So a write may be acknowledged and
    then lost with the partition (`lossy`), here as in the real daemon; else an acknowledged write stays.
    """
    bus = Bus(tmp_path, 3)
    bus.random = chance = random.Random(seed)
    bus.refuse = 0.2
    bus.lossy = lossy
    acknowledged: set[str] = set()
    splits = [
        ({1, 2, 3},),
        ({1, 2}, {3}),
        ({1}, {2, 3}),
        ({1, 3}, {2}),
        ({1}, {2}, {3}),
        ({2, 3},),
        ({1, 2},),
    ]
    bus.partition({1, 2, 3})
    for number in range(120):
        member = bus.members[chance.choice([1, 2, 3])]
        if member.connected:
            name = f"f{number}"
            update = Update(Op.CREATE, name, number, data=name.encode())
            member.dcdb.submit(update, lambda error, name=name: error or acknowledged.add(name))
        for _ in range(chance.randrange(12)):
            bus.step()
        if chance.random() < 0.12:
            bus.partition(*chance.choice(splits))
            if chance.random() < 0.5:
                bus.settle()
                for group in bus.partitions:
                    assert equal(bus, *group)
    bus.partition({1, 2, 3})
    bus.settle()
    assert equal(bus)
    if not lossy:
        assert acknowledged <= set(bus.members[1].names())
    assert len(acknowledged) > 10
    stored = MemDB(str(tmp_path / "1.db"), Quiet())
    assert sorted(stored.rows()) == sorted(bus.members[1].memdb.rows())
