# SPDX-License-Identifier: Apache-2.0
"""Statistics of nodes, guests and storages: taken from pvestatd, sent to all members, given to rrdcached by each.

A record is one line, ``KEY TIME:VALUE:VALUE...``. KEY is the file's path below rrdcached's folder, such as
``pve-vm-9.0/100``, ``pve-node-9.0/pve1`` or ``pve-storage-9.0/pve1/local``; TIME is in seconds since 1970; a VALUE is a
number or ``U``. Records come as datagrams, at `SOCKET`. (The real daemon takes them by an interface of its own.)

Every member stores every record, its own and the others'. A file that is not there yet is made. Where the folder of a
kind is missing, which pve-manager makes, each record is complained about.
"""

from __future__ import annotations

import os
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .log import Log

SOCKET = "/run/pmxcfs-lab-statistics.sock"
RRDCACHED = "/run/rrdcached.sock"
FOLDER = "/var/lib/rrdcached/db"
STEP = 60  # seconds
HEARTBEAT = 2 * STEP  # seconds without a record until a source is unknown
#: How many steps a row of an archive holds, and its rows: a day, a month, a year, eleven years. Averages and maxima.
ARCHIVES = ((1, 1440), (30, 1440), (360, 1440), (10080, 570))
NODE = (
    "loadavg maxcpu cpu iowait memtotal memused swaptotal swapused roottotal rootused netin netout memavailable arcsize "
    "cpusome iosome iofull memsome memfull"
).split()
GUEST = (
    "maxcpu cpu maxmem mem maxdisk disk netin netout diskread diskwrite memhost cpusome cpufull iosome iofull memsome "
    "memfull uptime"
).split()
STORAGE = "total used".split()
#: The folder of a kind -> its sources, in the order of a record's values.
KINDS = {"pve-node-9.0": NODE, "pve-vm-9.0": GUEST, "pve-storage-9.0": STORAGE}
DATAGRAM = 64 * 1024
WAITING = 64  # datagrams that may wait for rrdcached; those that come then are lost
ANSWER_SECONDS = 30.0

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_RECORD = re.compile(
    rf"(?P<key>(?P<kind>[a-z0-9.-]+)/{_NAME}(?:/{_NAME})?) (?P<time>[0-9]+)(?P<values>(?::(?:U|-?[0-9.]+(?:e[+-]?[0-9]+)?))+)"
)
_ANSWER = re.compile(rb"(-?[0-9]+) (.*)\n")


class Record(NamedTuple):
    key: str
    kind: str
    time: int
    values: str  # with a colon before each


def parse(text: str) -> tuple[list[Record], list[str]]:
    """Records, and the lines that are none: of an unknown kind, with too few or too many values, a path that leads away."""
    records, wrong = [], []
    for line in text.splitlines():
        found = _RECORD.fullmatch(line)
        if found is None or found["values"].count(":") != len(KINDS.get(found["kind"], ())):
            wrong.append(line)
        else:
            records.append(Record(found["key"], found["kind"], int(found["time"]), found["values"]))
    return records, wrong


def create_command(record: Record) -> str:
    """What makes the file of a record, which begins a step before it and leaves one that is there alone."""
    sources = " ".join(f"DS:{name}:GAUGE:{HEARTBEAT}:0:U" for name in KINDS[record.kind])
    archives = " ".join(f"RRA:{kind}:0.5:{steps}:{rows}" for kind in ("AVERAGE", "MAX") for steps, rows in ARCHIVES)
    return f"CREATE {record.key} -s {STEP} -b {record.time - STEP} -O {sources} {archives}"


class Connection:
    """To rrdcached; any trouble with it is an OSError."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_SECONDS)
        self._left = b""
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def ask(self, command: str) -> tuple[int, str]:
        """Its answer: 0 or more is success, then the text."""
        self._socket.sendall(command.encode() + b"\n")
        while True:
            found = _ANSWER.match(self._left)
            if found is not None:
                self._left = self._left[found.end() :]
                return int(found[1]), found[2].decode(errors="replace")
            line, newline, rest = self._left.partition(b"\n")
            if newline:
                self._left = rest  # the second line of an answer before
                continue
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionResetError("rrdcached has closed the connection")
            self._left = line + more

    def close(self) -> None:
        self._socket.close()


class Store:
    """Gives records to rrdcached, in a thread of its own: a daemon that does not answer holds up nobody on /etc/pve."""

    def __init__(self, log: Log, address: str = RRDCACHED, folder: str = FOLDER) -> None:
        self.log = log
        self.address = address
        self.folder = folder
        self._queue: queue.Queue[str] = queue.Queue(WAITING)
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()

    def put(self, text: str) -> None:
        """Never waits. The first call starts the thread, so that a node without statistics has none."""
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self._tell("too many updates wait for rrdcached: some are lost")
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rrd", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            self.store(self._queue.get())

    def store(self, text: str) -> None:
        """Store records, in order. What cannot be stored is lost, and said."""
        records, wrong = parse(text)
        for line in wrong:
            self.log.notice("status", f"no statistics: {line[:100]!r}")
        try:
            if self._connection is None:
                self._connection = Connection(self.address)
            for record in records:
                self._update(self._connection, record)
        except OSError as error:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._tell(f"rrdcached at {self.address}: {error.strerror or error}")
        else:
            self._told.clear()

    def _update(self, connection: Connection, record: Record) -> None:
        update = f"UPDATE {record.key} {record.time}{record.values}"
        code, said = connection.ask(update)
        if code < 0 and said.startswith("No such file"):
            # A storage's files are in a folder of their node; the folder of the kind is not made here.
            if os.path.isdir(os.path.join(self.folder, record.kind)):
                os.makedirs(os.path.dirname(os.path.join(self.folder, record.key)), exist_ok=True)
            code, said = connection.ask(create_command(record))
            if code >= 0:
                code, said = connection.ask(update)
        if code < 0:
            self.log.notice("status", f"RRD update error {record.key}: {said}")

    def _tell(self, text: str) -> None:
        """Once, until it went well again."""
        if text not in self._told:
            self._told.add(text)
            self.log.notice("status", text)


class Inlet:
    """Where pvestatd sends its records."""

    def __init__(self, path: str = SOCKET) -> None:
        self.path = path
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(path)
        os.chmod(path, 0o600)
        self.fd = self._socket.fileno()

    def take(self) -> Iterable[bytes]:
        """The datagrams that are there."""
        while True:
            try:
                data = self._socket.recv(DATAGRAM)
            except BlockingIOError:
                return
            if data:
                yield data

    def close(self) -> None:
        self._socket.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass


class Statistics:
    """The way of a record: from this node's pvestatd to `send`, which hands it to `deliver` of every member."""

    def __init__(self, inlet: Inlet, store: Store) -> None:
        self.inlet = inlet
        self.store = store
        #: Takes a datagram to every member, this one included; False = not now, and it is lost.
        self.send: Callable[[bytes], bool] = self._alone

    @property
    def fd(self) -> int:
        return self.inlet.fd

    def pump(self) -> None:
        """Take what pvestatd sent. Without other members the records are stored here only."""
        for data in self.inlet.take():
            if not self.send(data):
                self.deliver(data)

    def deliver(self, data: bytes) -> None:
        """From a member, or this one."""
        self.store.put(data.decode(errors="replace"))

    def _alone(self, data: bytes) -> bool:
        return False

    def close(self) -> None:
        self.inlet.close()
