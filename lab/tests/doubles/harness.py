# SPDX-License-Identifier: Apache-2.0
"""Nodes for tests: private namespaces in which a pmxcfs runs with its standard paths.

`Node` owns mount, UTS, IPC and network namespaces with a private /etc, /run, /dev, /dev/shm, /var/lib and /root/.ssh.
Its files are reached from the test through /proc/PID/root. `PMXCFS` in the environment names the daemon to test;
without it the double in lab/packages is used. Whatever starts a daemon, here or in other tests, starts `DAEMON`.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "lab/packages/pve-cluster"
DOUBLE = PACKAGE / "root/usr/bin/pmxcfs"
LIVE_DATABASE = ROOT / "module_utils/pveguard/pmxcfs/live_database.py"
PMXCFS = Path(os.environ.get("PMXCFS") or DOUBLE).resolve()
IS_DOUBLE = PMXCFS == DOUBLE
PVECM = PACKAGE / "root/usr/bin/pvecm"
RUN_AT = "/run/double"  # where the tree of the double is seen inside a node
#: The daemon's path inside a node. Another program than the double is seen there where it is.
DAEMON = f"{RUN_AT}/usr/bin/pmxcfs" if IS_DOUBLE else str(PMXCFS)
#: Where a node has something of its own, with nothing of this machine in it.
PRIVATE = ("/etc", "/run", "/dev", "/var/lib", "/root")


def shown() -> str:
    """What of a private folder must be seen in a node nevertheless, because the daemon is in it; "" = nothing."""
    for folder in PRIVATE:
        if not IS_DOUBLE and PMXCFS.is_relative_to(folder):
            return f"{folder}/{PMXCFS.relative_to(folder).parts[0]}"
    return ""


# Runs in new namespaces. Nothing it does is seen outside; the files it binds over are only places to mount on.
SETUP = """
set -e
mount --make-rprivate /
exec 8< "$TREE" 9< "${SHOWN:-/}"
case "$CHECKOUT" in /root/* | /var/lib/*) mount --rbind "$CHECKOUT" /mnt ;; *) CHECKOUT= ;; esac
mount -t tmpfs -o mode=755 node /run
mkdir -p /run/n/etc /run/n/dev /run/n/ssh /run/double /run/harness
mount -c --bind /proc/self/fd/8 /run/double
for f in passwd group nsswitch.conf ld.so.cache ld.so.conf alternatives ssl protocols services; do
    [ ! -e /etc/$f ] || cp -a /etc/$f /run/n/etc/
done
mkdir -p /run/n/etc/pve /run/n/etc/corosync/uidgid.d
printf '127.0.0.1 localhost\\n%s\\n' "$HOSTS" > /run/n/etc/hosts
for f in null zero full random urandom tty fuse; do touch /run/n/dev/$f; mount --bind /dev/$f /run/n/dev/$f; done
mkdir /run/n/dev/shm /run/n/dev/pts; mount -t tmpfs node /run/n/dev/shm
ln -s /proc/self/fd /run/n/dev/fd
mount -t tmpfs -o mode=755 node /var/lib
mkdir -p /var/lib/pve-cluster /var/lib/corosync
mount --rbind /run/n/dev /dev
mount --bind /run/n/etc /etc
if [ -d /root ]; then
    mount -t tmpfs -o mode=700 node /root || true
    mkdir -p /root/.ssh
fi
if [ -n "$SHOWN" ]; then
    if [ -d /proc/self/fd/9 ]; then mkdir -p "$SHOWN"; else touch "$SHOWN"; fi
    mount -c --bind /proc/self/fd/9 "$SHOWN"
fi
exec 8<&- 9<&-
# The programs under test are run by their paths.
[ -z "$CHECKOUT" ] || { mkdir -p "$CHECKOUT"; mount --move /mnt "$CHECKOUT"; }
hostname "$NAME"
ip link set lo up 2>/dev/null || true
echo ready
exec sleep infinity
"""


# An ordinary opener of the live database kills the daemon. Names need not be UTF-8.
READER = """
import pickle, sqlite3, sys
sys.path.insert(0, "/run/harness")
import live_database
def rows(connection):
    connection.text_factory = lambda name: name.decode("utf-8", "surrogateescape")
    return connection.execute(line).fetchall()
for line in sys.stdin:
    try:
        result = live_database.look("/var/lib/pve-cluster/config.db", rows)
    except (sqlite3.Error, live_database.Unreadable) as error:
        result = str(error)
    pickle.dump(result, sys.stdout.buffer)
    sys.stdout.flush()
"""


def why_not() -> str | None:
    """Why nodes cannot be made here; None when they can."""
    if os.geteuid() != 0:
        return "needs root (mounts, namespaces)"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    for tool in ("unshare", "nsenter", "mount"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    probe = subprocess.run(
        ["unshare", "-m", "-u", "-i", "-n", "mount", "-t", "tmpfs", "probe", "/mnt"],
        capture_output=True,
        text=True,
    )
    return None if probe.returncode == 0 else f"no namespaces here: {probe.stderr.strip()}"


def why_no_network() -> str | None:
    """Why nodes cannot be connected here; None when they can."""
    if shutil.which("ip") is None:
        return "needs iproute2"
    name = f"cfp{os.getpid() % 1000000}"
    for kind in ("bridge", "veth"):
        probe = subprocess.run(["ip", "link", "add", name, "type", kind], capture_output=True, text=True)
        if probe.returncode != 0:
            return f"no network links of type {kind} here: {probe.stderr.strip()}"
        ip("link", "del", name)
    return None


#: Until a program has started, done something, said it or ended, on a busy machine.
SECONDS = 60.0


def wait_for(what: str, condition: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for: {what}")
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def why_it_stays(pid: int) -> str:
    """What a process that should have ended waits for, and who else has its file system; for messages."""

    def read(path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError:
            return "?"

    process = Path(f"/proc/{pid}")
    lines = []
    for task in sorted(process.glob("task/*")):
        status = dict(line.partition(":\t")[::2] for line in read(task / "status").splitlines())
        signals = ", ".join(f"{name} {status.get(name, '?')}" for name in ("SigPnd", "ShdPnd", "SigBlk"))
        call = read(task / "syscall").partition(" ")[0]
        lines.append(f"thread {task.name}: {status.get('State', '?')}, in {read(task / 'wchan')}, call {call}, {signals}")

    def mounts(of: Path) -> list[list[str]]:
        return [line.split() for line in read(of / "mountinfo").splitlines() if " - " in line]

    here = [fields for fields in mounts(process) if fields[4] == "/etc/pve"]
    numbers, devices = {fields[0] for fields in here}, {fields[2] for fields in here}
    for other in Path("/proc").glob("[0-9]*"):
        command = f"{other.name} {read(other / 'cmdline').replace(chr(0), ' ')[:80]}"
        seen = bool(devices & {fields[2] for fields in mounts(other)})
        if seen:
            lines.append(f"has the mount: {command}")
        # By the number of the mount: to look at the file itself could wait for the daemon.
        for info in other.glob("fdinfo/*"):
            if numbers & set(re.findall(r"^mnt_id:\t(\d+)$", read(info), re.MULTILINE)):
                lines.append(f"has it open as {info.name}: {command}")
        try:
            folder = os.readlink(other / "cwd")
        except OSError:
            continue
        if seen and folder.startswith("/etc/pve"):
            lines.append(f"is in {folder}: {command}")
    return "\n".join(lines)


class SysLog:
    """Receives what is sent to /dev/log of a node."""

    def __init__(self, path: str) -> None:
        self.lines: list[str] = []
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        os.chmod(path, 0o666)
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while True:
            try:
                message = self._socket.recv(65536)
            except OSError:
                return
            if not message:
                return
            with self._lock:
                self.lines.append(message.decode(errors="replace"))

    def take(self) -> list[str]:
        """Lines since the last call. All that was sent before the call is in them."""
        marker = f"marker {time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(self._socket.getsockname())
            sender.send(marker.encode())
        # Not necessarily as the last line: the node may have said more since.
        wait_for("the log", lambda: marker in self.lines)
        with self._lock:
            end = self.lines.index(marker)
            lines, self.lines = self.lines[:end], self.lines[end + 1 :]
        return lines

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


class Node:
    def __init__(self, name: str = "pve1", number: int = 1, hosts: str | None = None) -> None:
        """`hosts` replaces the lines of /etc/hosts after localhost (default: pve1 to pve4 in 10.77.0.0/24)."""
        self.name = name
        self.number = number
        self.address = f"10.77.0.{number}"
        if hosts is None:
            hosts = "\n".join(f"10.77.0.{other} pve{other}" for other in range(1, 5))
        self.pid_of_daemon = 0
        self._children: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self._reader: subprocess.Popen[bytes] | None = None
        places = {"CHECKOUT": str(ROOT), "TREE": str(PACKAGE / "root"), "SHOWN": shown()}
        environment = {**os.environ, **places, "HOSTS": hosts, "NAME": name}
        self._holder = subprocess.Popen(
            ["unshare", "-m", "-u", "-i", "-n", "bash", "-c", SETUP],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise AssertionError(f"no node: {self._holder.stderr.read().decode()}")
        self.pid = self._holder.pid
        self.root = Path(f"/proc/{self.pid}/root")
        self.syslog = SysLog(f"/proc/{self.pid}/root/dev/log")
        self.pve = self.root / "etc/pve"
        self.state = self.root / "var/lib/pve-cluster"
        self.database = self.state / "config.db"
        self.host_conf = self.root / "etc/corosync/corosync.conf"
        self.cluster_conf = self.pve / "corosync.conf"
        shutil.copy(LIVE_DATABASE, self.root / "run/harness")

    # commands

    def enter(self, command: list[str]) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "--", *command]

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.enter(list(command)), capture_output=True, text=True, timeout=timeout)

    def sh(self, script: str) -> str:
        """Output of a script that must succeed."""
        result = self.run("bash", "-c", script)
        assert result.returncode == 0, f"{script}: {result.stderr or result.stdout}"
        return result.stdout

    def spawn(self, *command: str, log: str = "/dev/null") -> subprocess.Popen[bytes]:
        with open(f"{self.root}{log}", "ab") as output:
            process = subprocess.Popen(
                self.enter(list(command)), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._children.append(process)
        return process

    # the daemon

    @property
    def daemon_path(self) -> str:
        return DAEMON

    def start(self, *options: str) -> None:
        result = self.try_start(*options)
        assert result.returncode == 0, f"pmxcfs exits with {result.returncode}: {result.stderr}"

    def try_start(self, *options: str) -> subprocess.CompletedProcess[str]:
        # /run/bin may hold stand-ins for programs that the daemon starts
        result = self.run("env", f"PATH=/run/bin:{os.environ['PATH']}", self.daemon_path, *options)
        if result.returncode == 0:
            self.pid_of_daemon = int((self.root / "run/pve-cluster.pid").read_text())
        return result

    def started(self) -> None:
        """Waits for a daemon that something else starts: the mount, and a PID file that is not empty any more."""
        wait_for("the mount", (self.pve / ".version").exists)
        path = self.root / "run/pve-cluster.pid"
        wait_for("the PID file", lambda: path.exists() and path.read_text().endswith("\n"))
        self.pid_of_daemon = int(path.read_text())

    def alive(self) -> bool:
        return self.pid_of_daemon > 0 and alive(self.pid_of_daemon) and self.has(self.pid_of_daemon)

    def has(self, pid: int) -> bool:
        """Whether it is a process of this node: numbers are used again, and the one in a file may be a stranger's."""
        try:
            return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink(f"/proc/{self.pid}/ns/mnt")
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        if not self.pid_of_daemon:
            return
        if self.alive():
            os.kill(self.pid_of_daemon, number)
        try:
            wait_for("the end of pmxcfs", lambda: not self.alive())
        except AssertionError as error:
            self._say_why_it_stays(str(error))
        self.pid_of_daemon = 0

    def _say_why_it_stays(self, error: str) -> None:
        said = why_it_stays(self.pid_of_daemon)
        # A daemon that looks at its end only between two requests needs one more.
        knock = self.spawn("stat", "/etc/pve/.version")
        try:
            wait_for("the end", lambda: not self.alive(), 10)
            error += "; it ended when /etc/pve was looked at"
        except AssertionError:
            knock.kill()
        raise AssertionError(f"{error}\n{said}")

    def restart(self, *options: str) -> None:
        self.stop()
        self.start(*options)

    # observation

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the live database, read by another process without any effect on the daemon.

        In a process in the node, because SQLite resolves /proc/PID/root to a path of this machine.
        """
        if self._reader is None:
            command = self.enter(["/usr/bin/python3", "-c", READER])
            self._reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._children.append(self._reader)
        assert self._reader.stdin is not None and self._reader.stdout is not None
        self._reader.stdin.write(sql.encode() + b"\n")
        self._reader.stdin.flush()
        result: list[tuple[Any, ...]] | str = pickle.load(self._reader.stdout)
        if isinstance(result, str):
            raise AssertionError(f"{sql}: {result}")
        return result

    def rows(self) -> list[tuple[Any, ...]]:
        return self.query(
            "SELECT inode, parent, version, writer, mtime, type, name, data FROM tree ORDER BY inode"
        )

    def shared_rows(self) -> list[tuple[Any, ...]]:
        """`rows` without what may differ between equal members: the type of the root's row."""
        return [row if row[0] else (*row[:5], None, *row[6:]) for row in self.rows()]

    def version(self) -> int:
        return int(self.query("SELECT version FROM tree WHERE inode = 0")[0][0])

    def tree(self) -> dict[str, bytes | None]:
        """Path -> content (None for a directory) of the database, the root row aside."""
        rows = {row[0]: row for row in self.rows()}
        result: dict[str, bytes | None] = {}
        for inode, row in rows.items():
            names: list[str] = []
            while inode:
                names.append(rows[inode][6])
                inode = rows[inode][1]
            if names:
                result["/".join(reversed(names))] = None if row[5] == 4 else (row[7] or b"")
        return result

    def io_bytes(self) -> int:
        """write_bytes of the daemon since its start."""
        for line in Path(f"/proc/{self.pid_of_daemon}/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
        raise AssertionError("no write_bytes")

    def log(self) -> list[str]:
        """Lines of pmxcfs in syslog since the last call, without priority and time."""
        return [line.partition("]: ")[2] for line in self.syslog.take() if " pmxcfs[" in line]

    def wait_for_log(self, text: str) -> None:
        """Waits for a line of pmxcfs with this text since the last call of `log`; takes the lines before it, too."""
        wait_for(f"{text!r} in the log", lambda: any(text in line for line in self.log()))

    @contextmanager
    def counting(self) -> Iterator[Count]:
        """Counts transactions and debug lines of what is done inside."""
        count = Count()
        (self.pve / ".debug").write_text("1\n")
        self.log()
        before = self.version()
        yield count
        count.transactions = self.version() - before
        (self.pve / ".debug").write_text("0\n")
        lines = self.log()
        count.write_lines = sum("enter backend_write_inode" in line for line in lines)
        count.version_lines = sum("'__version__'" in line for line in lines)
        count.delete_lines = sum("enter dbd_backend_delete_inode" in line for line in lines)
        count.lines = [line for line in lines if line.startswith("[database] debug")]

    # the network and corosync, for clusters

    def plug(self, bridge: str) -> None:
        """A network card e0 with the node's address on a bridge of the host."""
        link = f"{bridge}n{self.number}"
        ip("link", "add", link, "type", "veth", "peer", "name", "e0", "netns", str(self.pid))
        ip("link", "set", link, "master", bridge, "up")
        self.sh(f"ip link set e0 up; ip addr add {self.address}/24 dev e0")

    def cut(self) -> None:
        self.sh("ip link set e0 down")

    def heal(self) -> None:
        self.sh(f"ip link set e0 up; ip addr replace {self.address}/24 dev e0")

    def start_corosync(self) -> None:
        self.corosync = self.spawn("corosync", "-f", log="/run/corosync.out")

    def stop_corosync(self) -> None:
        self.corosync.terminate()
        self.corosync.wait(SECONDS)

    def quorate(self) -> bool:
        try:
            return '"quorate": 1' in (self.pve / ".members").read_text()
        except OSError:
            return False

    def writable(self) -> bool:
        probe = self.pve / f"probe-{self.name}"
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError:
            return False
        return True

    # end

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        namespace = os.readlink(f"/proc/{self.pid}/ns/mnt")
        try:
            self.stop(signal.SIGKILL)
        except AssertionError:
            pass
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self.pid:
                continue
            try:
                if os.readlink(f"/proc/{entry}/ns/mnt") == namespace:
                    os.kill(int(entry), signal.SIGKILL)
            except OSError:
                continue
        self.syslog.close()
        self._holder.kill()
        self._holder.wait()
        for stream in (self._holder.stdout, self._holder.stderr):
            if stream is not None:
                stream.close()
        for child in self._children:
            child.wait(SECONDS)
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


_libc = ctypes.CDLL(None, use_errno=True)


class Count:
    """`write_lines` includes those of `__version__`, as in the table of writes."""

    transactions = 0
    write_lines = 0
    version_lines = 0
    delete_lines = 0
    lines: list[str] = []


def ip(*arguments: str) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, f"ip {' '.join(arguments)}: {result.stderr}"


#: How to make each file system on an image, without work of its own that is left for later.
MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "btrfs": ["mkfs.btrfs", "-q"],
}


class LoopDevice:
    """A file system on a loop device of its own, in memory, so that its bytes can be counted."""

    def __init__(self, folder: Path, mebibytes: int = 256, filesystem: str = "ext4") -> None:
        self.image = folder / "disk.img"
        with open(self.image, "wb") as stream:
            stream.truncate(mebibytes << 20)
        subprocess.run([*MKFS[filesystem], str(self.image)], check=True, stdout=subprocess.DEVNULL)
        found = subprocess.run(
            ["losetup", "--find", "--show", str(self.image)], check=True, capture_output=True, text=True
        )
        self.device = found.stdout.strip()
        self._mounted = -1

    def mount(self, node: Node, folder: str, options: str = "noatime,commit=600") -> None:
        """Mount in a node. By default timed commits of the journal are off: they would add blocks at random."""
        number = os.stat(self.device)
        os.mknod(f"{node.root}{self.device}", number.st_mode, number.st_rdev)
        node.sh(f"mount -o {options} {self.device} {folder}; rm -df {folder}/lost+found")
        self._mounted = os.open(f"{node.root}{folder}", os.O_RDONLY)

    def unpin(self) -> None:
        """Needed before the node ends, for the file system to be unmounted with it."""
        if self._mounted >= 0:
            os.close(self._mounted)
            self._mounted = -1

    def written(self) -> int:
        """Bytes written to the device, after a sync of its file system (a sync of all would wait for all)."""
        assert _libc.syncfs(self._mounted) == 0, "syncfs"
        fields = Path(f"/sys/block/{os.path.basename(self.device)}/stat").read_text().split()
        return int(fields[6]) * 512

    def settled(self) -> int:
        """`written` once it stays the same: the file system has nothing of its own left to write."""
        last = -1
        for _ in range(20):
            now = self.written()
            if now == last:
                return now
            last = now
            time.sleep(0.5)
        raise AssertionError(f"{self.device} is written all the time")

    def close(self) -> None:
        subprocess.run(["losetup", "--detach", self.device], check=True)
        self.image.unlink()
