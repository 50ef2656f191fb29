# SPDX-License-Identifier: Apache-2.0
"""Start, event loop and stop of the daemon."""

from __future__ import annotations

import errno
import fcntl
import getopt
import grp
import ipaddress
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from . import fuse, hostconf, rrd
from .corosync import CorosyncError, Cpg, Quorum
from .dcdb import Dcdb
from .filesystem import FileSystem, Virtual
from .log import Log
from .memdb import DIRECTORY, FILE, DatabaseFailure, MemDB, Op, Update

MOUNTPOINT = "/etc/pve"
STATE_DIR = "/var/lib/pve-cluster"
DATABASE = f"{STATE_DIR}/config.db"
LOCK_FILE = f"{STATE_DIR}/.pmxcfs.lockfile"
PID_FILE = "/run/pve-cluster.pid"
LOCK_SECONDS = 10.0
RELOAD_DELAY = 1.02  # from a change of corosync.conf to corosync-cfgtool -R, which is before the answer
RELOAD_SECONDS = 5.0  # how long the answer waits for that command
RELOAD_POLL = 0.02
RECONNECT_SECONDS = 1.0
RESEND_SECONDS = 0.005
# The real daemon takes about 1.0 s to start and 3.9 s to stop. To wait as long at each of hundreds of starts would prove
# nothing; the variables make this double as slow, to try what only a slow daemon shows.
START_SECONDS = float(os.environ.get("PMXCFS_LAB_START_SECONDS", "0"))
STOP_SECONDS = float(os.environ.get("PMXCFS_LAB_STOP_SECONDS", "0"))
GROUP = "www-data"
BANNER = "lab double of pmxcfs: for tests only, not the software of Proxmox"
USAGE = """usage: pmxcfs [-f] [-l] [-d]
  -f  stay in the foreground
  -l  force local mode
  -d  debug messages
"""


class StartFailure(Exception):
    """(domain, text) of the last log line; the exit code is 255."""


def node_name() -> str:
    return socket.gethostname().split(".")[0]


def resolve(name: str) -> str:
    """The first non-loopback address of the host name. Raises StartFailure."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    for item in found:
        address = str(item[4][0])
        if not ipaddress.ip_address(address.split("%")[0]).is_loopback:
            return address
    reason = "missing entry in '/etc/hosts' or DNS?"
    raise StartFailure(
        "main", f"Unable to resolve node name '{name}' to a non-loopback IP address - {reason}"
    )


class Reload:
    """A change of corosync.conf that was made on this node and is not answered yet."""

    def __init__(self, answer: Callable[[], None]) -> None:
        self.answer = answer
        self.due = time.monotonic() + RELOAD_DELAY
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run the command. Raises OSError."""
        self.due = time.monotonic() + RELOAD_SECONDS
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(["corosync-cfgtool", "-R"], stdin=null, stdout=null, stderr=null)

    def over(self) -> bool:
        """Whether the command, once started, has ended or had its time."""
        return self.process is not None and (self.process.poll() is not None or time.monotonic() >= self.due)


class Daemon:
    def __init__(self, log: Log, *, local: bool) -> None:
        self.log = log
        self.force_local = local
        self.name = node_name()
        self.started = int(time.time())
        self.cluster_mode = False
        self.config = hostconf.Config(0, "", [])
        self.info_version = 0
        self.online: list[int] = []
        self.dcdb: Dcdb | None = None
        self._quorate = False
        self._quorum: Quorum | None = None
        self._cpg: Cpg | None = None
        self._cpg_joined = False
        self._host_written = False
        self._reloads: list[Reload] = []
        self._followed = False
        self._connect_at = 0.0
        self._connect_failed: set[str] = set()
        self._resend = False
        self._stopping = False

    # start

    def open(self) -> None:
        """Everything up to a loaded database, before the fork. Raises StartFailure."""
        resolve(self.name)
        try:
            self.group = grp.getgrnam(GROUP).gr_gid
        except KeyError as error:
            raise StartFailure("main", f"Unable to get group '{GROUP}'") from error
        os.makedirs(STATE_DIR, exist_ok=True)
        self._take_lock()
        self.memdb = self._open_database()

    def start(self) -> None:
        """Everything from there to a served mount point, after the fork. Raises StartFailure."""
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        # Before anybody is told that it runs: without them a signal would leave a dead mount and the PID file behind.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: setattr(self, "_stopping", True))
        time.sleep(START_SECONDS)
        entry = self.memdb.lookup(hostconf.NAME)
        if entry is not None:
            self._read_config()
            # Not only when quorate: corosync cannot start before the host has the file.
            hostconf.copy_to_host(entry.data, self.log)
            self.cluster_mode = not self.force_local
        if self.cluster_mode:
            self.dcdb = Dcdb(self.memdb, self.log, lambda: self._quorate)
            self.dcdb.on_synced = self._synced
            self.dcdb.on_own_update = self._own_update
        else:
            self.log.notice("main", "forcing local mode (corosync.conf exists)" if entry else "local mode")
        self.memdb.on_update = self._updated
        self._mount()
        self.statistics = rrd.Statistics(rrd.Inlet(), rrd.Store(self.log))
        if self.dcdb is not None:
            self.statistics.send = self.dcdb.note
            self.dcdb.on_note = self.statistics.deliver

    def _take_lock(self) -> None:
        self._lock = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_SECONDS
        told = False
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if not told:
                    self.log.notice("main", "unable to acquire pmxcfs lock - trying again")
                    told = True
                if time.monotonic() >= deadline:
                    raise StartFailure("main", f"unable to acquire pmxcfs lock: {error.strerror}") from error
                time.sleep(0.1)

    def _open_database(self) -> MemDB:
        fresh = not os.path.exists(DATABASE)
        try:
            memdb = MemDB(DATABASE, self.log, reserved=self._virtual())
        except DatabaseFailure as failure:
            self.log.crit(failure.domain, str(failure))
            raise StartFailure(
                "main", f"memdb_open failed - unable to open database '{DATABASE}'"
            ) from failure
        host = hostconf.read_host() if fresh and not self.force_local else None
        if host is not None:
            self.log.notice("main", f"importing '{hostconf.HOST_FILE}' into the new database")
            memdb.apply(Update(Op.CREATE, hostconf.NAME, int(time.time()), data=host), 0)
        return memdb

    def _mount(self) -> None:
        try:
            try:
                names = os.listdir(MOUNTPOINT)
            except OSError as error:
                if error.errno == errno.ENOTCONN:
                    fuse.unmount(MOUNTPOINT)  # left behind by a daemon that was killed
                elif error.errno == errno.ENOENT:
                    os.mkdir(MOUNTPOINT, 0o755)
                else:
                    raise
                names = os.listdir(MOUNTPOINT)
        except OSError as error:
            raise StartFailure("main", f"fuse_mount error: {error.strerror}") from error
        if names:
            some = ", ".join(sorted(names)[:5])
            self.log.crit("main", f"mountpoint is not empty: {MOUNTPOINT} holds {some}")
            raise StartFailure("main", "fuse_mount error: File exists")
        try:
            self.session = fuse.Session(MOUNTPOINT)
        except OSError as error:
            raise StartFailure("main", f"fuse_mount error: {error.strerror}") from error
        self.fs = FileSystem(self.memdb, self, self._virtual(), self.group)
        self.fs.reply = self.session.reply
        self.session.on_error = lambda error: self.log.crit("main", f"file operation failed: {error!r}")
        self.session.serve(self.fs)
        while not self.session.ready:
            select.select([self.session.fd], [], [], 1.0)
            self.session.pump(1)

    def _virtual(self) -> dict[str, Virtual]:
        def link(target: str) -> Callable[[], bytes]:
            return lambda: target.encode()  # noqa: PLW0108

        read_only, home = stat.S_IFREG | 0o440, f"nodes/{self.name}"
        files: dict[str, tuple[int, Callable[[], bytes]]] = {
            ".version": (read_only, self._version_file),
            ".members": (read_only, self._members_file),
            ".vmlist": (read_only, self._vmlist_file),
            ".rrd": (read_only, lambda: b""),
            ".clusterlog": (read_only, lambda: b'{\n"data": [\n]\n}\n'),
            ".debug": (stat.S_IFREG | 0o640, lambda: b"1\n" if self.log.debugging else b"0\n"),
            "local": (stat.S_IFLNK | 0o755, link(home)),
            "qemu-server": (stat.S_IFLNK | 0o755, link(f"{home}/qemu-server")),
            "openvz": (stat.S_IFLNK | 0o755, link(f"{home}/openvz")),
            "lxc": (stat.S_IFLNK | 0o755, link(f"{home}/lxc")),
        }
        return {name: Virtual(number, *item) for number, (name, item) in enumerate(files.items(), start=2)}

    # virtual files

    def _version_file(self) -> bytes:
        content = {
            "starttime": self.started,
            "clinfo": self.info_version,
            "vmlist": self.memdb.guests_version,
            "kvstore": {},
        }
        return json.dumps(content).encode() + b"\n"

    def _members_file(self) -> bytes:
        version = self.info_version if self.cluster_mode else 0
        content: dict[str, object] = {"nodename": self.name, "version": version}
        if self.cluster_mode and self._followed:
            content["cluster"] = {
                "name": self.config.cluster,
                "version": self.config.version,
                "nodes": len(self.config.nodes),
                "quorate": int(self._quorate),
            }
            nodes: dict[str, dict[str, object]] = {}
            for node in self.config.nodes:
                online = node.id in self.online
                nodes[node.name] = {"id": node.id, "online": int(online)}
                if online:
                    nodes[node.name]["ip"] = hostconf.address_of(node)
            content["nodelist"] = nodes
        return json.dumps(content, indent=1).encode() + b"\n"

    def _vmlist_file(self) -> bytes:
        ids = {
            str(number): {"node": node, "type": kind, "version": version}
            for number, (node, kind, version) in sorted(self.memdb.guests.items())
        }
        return json.dumps({"version": self.memdb.guests_version, "ids": ids}, indent=1).encode() + b"\n"

    # what the file system asks for

    @property
    def log_debugging(self) -> bool:
        return self.log.debugging

    @log_debugging.setter
    def log_debugging(self, on: bool) -> None:
        self.log.debugging = on

    @property
    def quorate(self) -> bool:
        return self._quorate or not self.cluster_mode

    @property
    def attribute_seconds(self) -> int:
        """How long the kernel may remember entries and attributes. Other members change them in a cluster."""
        return 0 if self.cluster_mode else 1

    def submit(self, update: Update, done: Callable[[int], None]) -> None:
        if self.dcdb is None:
            done(self.memdb.apply(update, 0))
        else:
            self.dcdb.submit(update, done)

    # corosync.conf

    def _read_config(self) -> None:
        entry = self.memdb.lookup(hostconf.NAME)
        if entry is not None and entry.type == FILE:
            self.config = hostconf.parse(entry.data.decode(errors="replace"))
            self.info_version += 1

    def _updated(self, update: Update) -> None:
        self._host_written = False
        if hostconf.NAME in (update.path, update.target):
            self._read_config()
            self._copy_to_host()

    def _copy_to_host(self) -> None:
        entry = self.memdb.lookup(hostconf.NAME)
        if entry is not None and entry.type != DIRECTORY and self.cluster_mode and self._quorate:
            self._host_written = hostconf.copy_to_host(entry.data, self.log)

    def _own_update(self, update: Update, answer: Callable[[], None]) -> None:
        if not self._host_written:
            answer()
            return
        self._host_written = False
        self._reloads.append(Reload(answer))

    def _reload_corosync(self) -> None:
        """Go on with changes of corosync.conf: wait, reload, answer. Everything else is served meanwhile."""
        for reload in self._reloads[:]:
            if reload.process is None and time.monotonic() >= reload.due:
                try:
                    reload.start()
                except OSError as error:
                    self.log.crit("dcdb", f"corosync-cfgtool -R failed: {error.strerror}")
                    self._answer(reload)
            elif reload.over():
                self._answer(reload)

    def _answer(self, reload: Reload) -> None:
        self._reloads.remove(reload)
        # What the reload has done to quorum comes first: the caller's next request is judged by it.
        self._dispatch({self._quorum.fd} if self._quorum is not None else set())
        reload.answer()

    # corosync

    def _synced(self) -> None:
        self._read_config()
        self._copy_to_host()

    def _on_quorum(self, quorate: bool, online: list[int]) -> None:
        self.online = online
        self.info_version += 1
        if quorate != self._quorate:
            self._quorate = quorate
            self.log.notice("status", "node has quorum" if quorate else "node lost quorum")
            if quorate:
                self._copy_to_host()

    def _connect(self) -> None:
        """Connect what is not connected; called once a second while something is missing."""
        assert self.dcdb is not None
        try:
            if self._quorum is None:
                self._quorum = Quorum()
                self._poll.register(self._quorum.fd, select.POLLIN)
                self._followed = True
                self._dispatch_quorum()
            if self._cpg is None and not self.dcdb.broken:
                self._cpg = Cpg()
                self._poll.register(self._cpg.fd, select.POLLIN)
                self._cpg_joined = False
                self.dcdb.connect(self._cpg)
            if self._cpg is not None and not self._cpg_joined:
                self._cpg_joined = self._cpg.join()
            self._connect_failed.clear()
        except CorosyncError as error:
            if error.call not in self._connect_failed:
                self._connect_failed.add(error.call)
                self.log.crit("quorum" if error.call.startswith("quorum") else "dcdb", str(error.strerror))
            self._disconnect()

    def _disconnect(self) -> None:
        for connection in (self._quorum, self._cpg):
            if connection is not None:
                self._poll.unregister(connection.fd)
                connection.close()
        self._quorum = self._cpg = None
        self._on_quorum(False, [])
        assert self.dcdb is not None
        self.dcdb.disconnect()

    def _dispatch_quorum(self) -> None:
        assert self._quorum is not None
        for quorate, online in self._quorum.dispatch():
            self._on_quorum(quorate, online)

    def _missing(self) -> bool:
        assert self.dcdb is not None
        group_wanted = not self.dcdb.broken and (self._cpg is None or not self._cpg_joined)
        return self._quorum is None or group_wanted

    def _dispatch(self, ready: set[int]) -> None:
        """Quorum first, so that an update is judged by the present membership."""
        dcdb = self.dcdb
        assert dcdb is not None
        try:
            group_ready = self._cpg is not None and self._cpg.fd in ready
            if self._quorum is not None and (group_ready or self._quorum.fd in ready):
                self._dispatch_quorum()
            if group_ready:
                assert self._cpg is not None
                for event in self._cpg.dispatch():
                    if isinstance(event, list):
                        dcdb.membership(event)
                    else:
                        dcdb.deliver(*event)
            self._resend = not dcdb.flush()
        except CorosyncError as error:
            self.log.crit("quorum" if error.call.startswith("quorum") else "dcdb", str(error.strerror))
            self._disconnect()
        if dcdb.broken and self._cpg is not None:
            # The group goes on without this node; quorum is still followed.
            self._poll.unregister(self._cpg.fd)
            self._cpg.close()
            self._cpg = None
            dcdb.disconnect()

    # event loop

    def run(self) -> None:
        """Serve until a signal or an unmount."""
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(self.session.fd, select.POLLIN)
        self._poll.register(self.statistics.fd, select.POLLIN)
        pump, poll, dcdb = self.session.pump, self._poll.poll, self.dcdb
        while not self._stopping:
            ready = {number for number, _ in poll(self._timeout())}
            if dcdb is not None:
                self._dispatch(ready)
                if self._missing() and time.monotonic() >= self._connect_at:
                    self._connect_at = time.monotonic() + RECONNECT_SECONDS
                    self._connect()
            if self.session.fd in ready and not pump():
                self.log.notice("main", f"{MOUNTPOINT} was unmounted")
                break
            if self.statistics.fd in ready:
                self.statistics.pump()
            if dcdb is not None and not self._resend:
                self._flush()
            if self._reloads:
                self._reload_corosync()

    def _flush(self) -> None:
        """Send what file operations queued; what the transport refuses is tried again soon."""
        assert self.dcdb is not None
        try:
            self._resend = not self.dcdb.flush()
        except CorosyncError as error:
            self.log.crit("dcdb", str(error.strerror))
            self._disconnect()

    def _timeout(self) -> float | None:
        """Milliseconds until something other than an event is due."""
        waits: list[float] = []
        if self.dcdb is not None:
            if self._resend:
                waits.append(RESEND_SECONDS)
            if self._missing():
                waits.append(max(0.0, self._connect_at - time.monotonic()))
        for reload in self._reloads:
            waits.append(RELOAD_POLL if reload.process else max(0.0, reload.due - time.monotonic()))
        return min(waits) * 1000 + 1 if waits else None

    def stop(self) -> None:
        self.log.notice("main", "teardown filesystem")
        try:
            self.session.unmount()
        except OSError as error:
            self.log.crit("main", f"unmount failed: {error.strerror}")
        if self._cpg is not None:
            self._cpg.close()
        if self._quorum is not None:
            self._quorum.close()
        self.statistics.close()
        time.sleep(STOP_SECONDS)
        self.memdb.close()
        try:
            os.unlink(PID_FILE)
        except OSError:
            pass
        self.log.notice("main", "exit proxmox configuration filesystem (0)")


def serve(daemon: Daemon, *, detach: Callable[[], Callable[[], None]] | None = None) -> int:
    """Start, run and stop. Returns the exit code.

    `detach` forks, returns in the child, and what it returns is called once the daemon is ready.
    """
    log = daemon.log
    log.notice("main", BANNER)
    try:
        daemon.open()
        on_ready = detach() if detach else lambda: None
        daemon.start()
    except StartFailure as failure:
        log.crit(*failure.args)
        log.notice("main", "exit proxmox configuration filesystem (-1)")
        return 255
    with open(PID_FILE, "w") as stream:
        stream.write(f"{os.getpid()}\n")
    on_ready()
    try:
        daemon.run()
    finally:
        daemon.stop()
    return 0


def leave(code: int) -> NoReturn:
    """End this process and nothing else: the database, which it shares with another one, is not closed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def fork(log: Log) -> Callable[[], None]:
    """Go on in a child. The parent waits until what is returned has been called, or the child has ended.

    The database is open by then, and the child goes on with the connection of its parent. SQLite's manual forbids
    that, and it is what the real daemon does: POSIX locks do not survive a fork, so the child holds none, and the
    next ordinary opener of the database believes to be the first.
    """
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child:
        os.close(ready_write)
        if os.read(ready_read, 1):
            leave(0)
        _, status = os.waitpid(child, 0)
        leave(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 255)

    os.close(ready_read)
    os.setsid()
    os.chdir("/")

    def on_ready() -> None:
        log.stderr = False
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        os.write(ready_write, b"1")
        os.close(ready_write)

    return on_ready


def main(argv: list[str]) -> int:
    try:
        options, rest = getopt.getopt(argv, "fldh", ["help"])
    except getopt.GetoptError as error:
        print(f"pmxcfs: {error}\n{USAGE}", file=sys.stderr, end="")
        return 255
    flags = {name for name, _ in options}
    if flags & {"-h", "--help"}:
        print(USAGE, end="")
        return 0
    if rest:
        print(f"pmxcfs: unexpected argument '{rest[0]}'\n{USAGE}", file=sys.stderr, end="")
        return 255
    log = Log()
    log.debugging = "-d" in flags
    os.umask(0o027)
    daemon = Daemon(log, local="-l" in flags)
    if "-f" in flags:
        return serve(daemon)
    try:
        code = serve(daemon, detach=lambda: fork(log))
    except Exception as error:
        log.crit("main", f"unexpected error: {error!r}")
        code = 255
    leave(code)
