# SPDX-License-Identifier: Apache-2.0
"""Ordered updates and state synchronisation between members.

Every member sees the same sequence of messages and membership changes (a closed process group in agreed
order), so every decision below falls the same way on each of them:

- A membership change ends the present epoch. The first member announces a new one (START), each answers with
  its root version and mtime and a digest of every row (STATE). The leader is the highest root version, then the
  highest root mtime, then node order. It sends the rows that anybody lacks (ROWS) and END. A member that
  differs takes the leader's tree over in one transaction, deletions included.
- An update that is delivered between a membership change and END is dropped by every member, and its sender
  sends it again after END if the node is still quorate. (An update sent before the change cannot arrive after
  END: messages of one sender keep their order, and END comes after the STATE of each.) So an update never
  changes only a part of the members, nor a part that lost quorum.

A NOTE is for whoever is there, with or without quorum and in the midst of a synchronisation: it changes no tree.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from .log import Log
from .memdb import MemDB, Row, Update, decode, encode

Member = tuple[int, int]  # node id, process id

START, STATE, ROWS, END, UPDATE, NOTE = 1, 2, 3, 4, 5, 6
CHUNK = 128 * 1024
NOTES = 64  # messages that wait to be sent, from which on notes are refused

_HEAD = struct.Struct("<BBxxQQ")  # kind, last fragment, epoch, sequence
_STATE = struct.Struct("<qqI")
_INDEX = struct.Struct("<q8s")
_ROW = struct.Struct("<6qHI")
NO_DATA = 0xFFFFFFFF


class Transport(Protocol):
    """A closed process group with agreed order. The owner calls `Dcdb.deliver` and `Dcdb.membership`."""

    @property
    def me(self) -> Member: ...

    def mcast(self, message: bytes) -> bool:
        """False = try again later. Raises OSError when the connection is lost."""


class State(NamedTuple):
    version: int
    mtime: int
    digests: dict[int, bytes]


class Pending(NamedTuple):
    update: Update
    done: Callable[[int], None]


def pack_rows(rows: list[Row]) -> bytes:
    parts: list[bytes] = []
    for row in rows:
        name, data = encode(row[6]), row[7]
        parts += (_ROW.pack(*row[:6], len(name), NO_DATA if data is None else len(data)), name, data or b"")
    return b"".join(parts)


def unpack_rows(message: bytes) -> list[Row]:
    rows: list[Row] = []
    position = 0
    while position < len(message):
        inode, parent, version, writer, mtime, kind, name_size, size = _ROW.unpack_from(message, position)
        position += _ROW.size
        name = decode(message[position : position + name_size])
        position += name_size
        data = None
        if size != NO_DATA:
            data = message[position : position + size]
            position += size
        rows.append((inode, parent, version, writer, mtime, kind, name, data))
    return rows


def choose_leader(states: dict[Member, State]) -> Member:
    """Highest root version, then highest root mtime, then the lowest node id."""
    return min(states, key=lambda member: (-states[member].version, -states[member].mtime, member))


class Dcdb:
    def __init__(self, memdb: MemDB, log: Log, is_quorate: Callable[[], bool]) -> None:
        self.memdb = memdb
        self.log = log
        self.is_quorate = is_quorate
        self.on_synced: Callable[[], None] = lambda: None
        #: Gets an update of this member that was carried out, and what answers it: now or later.
        self.on_own_update: Callable[[Update, Callable[[], None]], None] = lambda update, answer: answer()
        #: Gets what a member, or this one, sent by `note`.
        self.on_note: Callable[[bytes], None] = lambda payload: None
        self.transport: Transport | None = None
        self.members: list[Member] = []
        self.synced = False
        self.broken = False  # after a fatal error: no connection, stale reads, writes that never return
        self._epoch = 0
        self._states: dict[Member, State] = {}
        self._fragments: dict[tuple[Member, int], list[bytes]] = {}
        self._rows: list[Row] = []
        self._out: deque[bytes] = deque()
        self._sequence = 0
        self._sent: dict[int, Pending] = {}
        self._parked: list[Pending] = []

    # from the file system

    def submit(self, update: Update, done: Callable[[int], None]) -> None:
        if self.broken:
            return
        if not self.is_quorate() or self.transport is None:
            done(errno.EACCES)
        elif not self.synced:
            self._parked.append(Pending(update, done))
        else:
            self._send_update(Pending(update, done))

    def note(self, payload: bytes) -> bool:
        """Queue something for all members, this one included; at most CHUNK bytes. False = nobody would get it."""
        if self.transport is None or self.transport.me not in self.members or len(self._out) >= NOTES:
            return False
        self._out.append(_HEAD.pack(NOTE, 1, 0, 0) + payload)
        return True

    def _send_update(self, pending: Pending) -> None:
        self._sequence += 1
        self._sent[self._sequence] = pending
        self._send(UPDATE, pending.update.pack(), self._sequence)

    # to and from the transport

    def connect(self, transport: Transport) -> None:
        self.transport = transport

    def disconnect(self) -> None:
        """The connection is lost: what was under way fails."""
        self.transport = None
        self.members = []
        self.synced = False
        self._out.clear()
        if not self.broken:
            self._refuse([*self._sent.values(), *self._parked])
        self._sent.clear()
        self._parked.clear()

    def _refuse(self, pending: list[Pending]) -> None:
        for item in pending:
            item.done(errno.EACCES)

    def _send(self, kind: int, payload: bytes, sequence: int = 0) -> None:
        pieces = [payload]
        if kind != UPDATE and len(payload) > CHUNK:
            pieces = [payload[start : start + CHUNK] for start in range(0, len(payload), CHUNK)]
        for number, piece in enumerate(pieces, start=1):
            self._out.append(_HEAD.pack(kind, number == len(pieces), self._epoch, sequence) + piece)
        self.flush()

    def flush(self) -> bool:
        """Send what waits. False = the transport is full, call again soon."""
        while self._out and self.transport is not None:
            if not self.transport.mcast(self._out[0]):
                return False
            if self._out:
                self._out.popleft()
        return True

    def membership(self, members: list[Member]) -> None:
        self.members = sorted(members)
        self.synced = False
        self._states.clear()
        names = ", ".join(f"{node}/{process}" for node, process in self.members)
        self.log.notice("dcdb", f"members: {names}")
        if self.transport is None or self.transport.me not in self.members:
            return
        if self.members[0] == self.transport.me:
            self.log.notice("dcdb", "starting data syncronisation")
            self._out.append(_HEAD.pack(START, 1, int.from_bytes(os.urandom(8), "little"), 0))
            self.flush()

    def deliver(self, sender: Member, message: bytes) -> None:
        if self.broken:
            return
        kind, last, epoch, sequence = _HEAD.unpack_from(message)
        body = message[_HEAD.size :]
        if kind == UPDATE:
            self._deliver_update(sender, sequence, body)
            return
        if kind == NOTE:
            self.on_note(body)
            return
        if kind == START:
            if self.members and sender == self.members[0]:
                self._start(epoch)
            return
        if epoch != self._epoch or sender not in self.members:
            return
        fragments = self._fragments.setdefault((sender, kind), [])
        fragments.append(body)
        if not last:
            return
        payload = b"".join(self._fragments.pop((sender, kind)))
        if kind == STATE:
            self._deliver_state(sender, payload)
        elif kind == ROWS:
            self._rows = unpack_rows(payload)
        elif kind == END:
            self._finish(sender)

    # synchronisation

    def _start(self, epoch: int) -> None:
        self._epoch = epoch
        self.synced = False
        self._states.clear()
        self._fragments.clear()
        self._rows = []
        root, index = self.memdb.root, self.memdb.index()
        parts = [_STATE.pack(root.version, root.mtime, len(index))]
        parts += [_INDEX.pack(inode, digest) for inode, digest in index.items()]
        self._send(STATE, b"".join(parts))

    def _deliver_state(self, sender: Member, payload: bytes) -> None:
        version, mtime, _ = _STATE.unpack_from(payload)
        index = dict(_INDEX.iter_unpack(payload[_STATE.size :]))
        self._states[sender] = State(version, mtime, index)
        if self.transport is None or len(self._states) < len(self.members):
            return
        self.log.notice("dcdb", "received all states")
        leader = choose_leader(self._states)
        self.log.notice("dcdb", f"leader is {leader[0]}/{leader[1]}")
        if leader != self.transport.me:
            return
        mine = self._states[leader].digests
        lacking = {
            inode
            for state in self._states.values()
            for inode, digest in mine.items()
            if state.digests.get(inode) != digest
        }
        if lacking:
            self.log.notice("dcdb", f"start sending inode updates: {len(lacking)}")
            self._send(ROWS, pack_rows([row for row in self.memdb.rows() if row[0] in lacking]))
        self._send(END, b"")

    def _finish(self, leader: Member) -> None:
        if self.transport is None or leader not in self._states:
            return
        theirs = self._states[leader].digests
        mine = self._states[self.transport.me].digests
        if mine == theirs:
            self.log.notice("dcdb", "all data is up to date")
        else:
            rows = [row for row in self._rows if mine.get(row[0]) != theirs[row[0]]]
            deleted = [inode for inode in mine if inode not in theirs]
            self.log.notice("dcdb", f"update complete - trying to commit (got {len(rows)} inode updates)")
            if self.memdb.replace(rows, deleted):
                self._break()
                return
            self.log.notice("dcdb", "all data is up to date")
        self._rows = []
        self._states.clear()
        self.synced = True
        self.on_synced()
        parked, self._parked = self._parked, []
        for item in parked:
            self.submit(item.update, item.done)

    # updates

    def _deliver_update(self, sender: Member, sequence: int, body: bytes) -> None:
        mine = self.transport is not None and sender == self.transport.me
        pending = self._sent.pop(sequence, None) if mine else None
        if not self.synced:
            if pending is not None:
                self.submit(pending.update, pending.done)
            return
        update = pending.update if pending is not None else Update.unpack(body)
        error = self.memdb.apply(update, sender[0])
        if self.memdb.failed:
            self._break()
        elif pending is not None and error:
            pending.done(error)
        elif pending is not None:
            done = pending.done
            self.on_own_update(update, lambda: done(0))

    def _break(self) -> None:
        self.log.crit("dcdb", "serious internal error - stop cluster connection")
        self.broken = True
