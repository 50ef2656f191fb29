# SPDX-License-Identifier: Apache-2.0
"""A node for the write diet: files under a root, a systemctl that mounts, starts and stops, and an rrdcached that keeps values.

The daemon's double does what the real one was seen to do: with a journal and without -F it leaves what waits in the journal and
reads that at its next start; its start script asks it to end and kills it five seconds later, flushed or not.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.diet.parts import mount_unit

STOCK_DEFAULTS = """\
# /etc/default file for RRD cache daemon
DAEMON=/usr/bin/rrdcached
#WRITE_TIMEOUT=300
BASE_PATH=/var/lib/rrdcached/db/
JOURNAL_PATH=/var/lib/rrdcached/journal/
PIDFILE=/var/run/rrdcached.pid
SOCKFILE=/run/rrdcached.sock
BASE_OPTIONS="-B"
"""
GENERATED = """\
[Unit]
SourcePath=/etc/init.d/rrdcached
[Service]
Type=forking
ExecStart=/etc/init.d/rrdcached start
ExecStop=/etc/init.d/rrdcached stop
"""
NATIVE = """\
[Service]
EnvironmentFile=-/etc/default/rrdcached
ExecStart=/usr/bin/rrdcached -g -B -b /var/lib/rrdcached/db/ \\
  -j ${JOURNAL_PATH} -l unix:/run/rrdcached.sock
"""
JOURNAL = "/var/lib/rrdcached/journal"


class Node:
    """``calls`` holds every argument vector. ``hook`` is asked before each command and may fail it."""

    def __init__(self, root: Path, kind: str = "sysv") -> None:
        self.root = root
        self.calls: list[list[str]] = []
        self.hook: Callable[[list[str]], Result | None] = lambda argv: None
        self.units: dict[str, dict[str, str]] = {}
        self.memory: dict[str, Path] = {}
        self.mounts = ["29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
        for folder in ("proc/self", "run", "etc/default", "var/lib/rrdcached/db", JOURNAL[1:], "sys/fs/cgroup"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self.show_mounts()
        #: Swap in use, KiB used by its name; units that bring swap in zram.
        self.swaps: dict[str, int] = {}
        #: What the swap lines of fstab lead to in this boot.
        self.fstab_swaps: tuple[str, ...] = ()
        self.zram_units: tuple[str, ...] = ()
        #: Units that a link enables.
        self.links: dict[str, str] = {}
        self.rrd: Rrdcached | None = None
        self.values = Values()
        self.kind = kind
        self.native = NATIVE
        self.write("/etc/default/rrdcached", STOCK_DEFAULTS)
        if kind != "none":
            folder = "/run/systemd/generator.late" if kind == "sysv" else "/usr/lib/systemd/system"
            path = f"{folder}/rrdcached.service"
            self.write(path, GENERATED if kind == "sysv" else NATIVE)
            self.unit("rrdcached.service", path, source="/etc/init.d/rrdcached" if kind == "sysv" else "")
        self.unit("systemd-journald.service", "/usr/lib/systemd/system/systemd-journald.service", state="static")
        (root / "var/log/journal").mkdir(parents=True)

    def write(self, path: str, content: str) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return file

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root / path.lstrip("/"))

    def unit(self, name: str, fragment: str = "", state: str = "enabled", source: str = "", active: bool = False) -> None:
        self.units[name] = {
            "Id": name,
            "LoadState": "loaded",
            "ActiveState": "active" if active or name == "systemd-journald.service" else "inactive",
            "UnitFileState": "generated" if source else state,
            "ControlGroup": f"/system.slice/{name}",
            "FragmentPath": fragment,
            "SourcePath": source,
        }

    def picture(self) -> dict[str, bytes | str]:
        """What is below /etc and /usr, where everything has to come back to."""
        found: dict[str, bytes | str] = {}
        for top in ("etc", "usr"):
            for path in sorted((self.root / top).rglob("*")):
                if path.is_symlink():
                    found[str(path.relative_to(self.root))] = f"link {os.readlink(path)}"
                elif path.is_file():
                    mode = f"{path.stat().st_mode & 0o7777:o} ".encode()
                    found[str(path.relative_to(self.root))] = mode + path.read_bytes()
        return found

    # -- commands

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        command = list(argv)
        self.calls.append(command)
        given = self.hook(command)
        if given is not None:
            return given
        handler = getattr(self, f"do_{command[0].replace('-', '_')}", None)
        assert handler is not None, f"the node knows no {command}"
        result = handler(command[1:])
        return result if isinstance(result, Result) else Result(0, result or "")

    def changing(self) -> list[list[str]]:
        """The commands that were more than a question."""
        return [argv for argv in self.calls if argv[:2] != ["systemctl", "show"] and argv[0] != "zfs"]

    def do_zfs(self, arguments: list[str]) -> str:
        return "standard\n"

    def do_journalctl(self, arguments: list[str]) -> None:
        assert arguments == ["--sync"]

    def do_systemctl(self, arguments: list[str]) -> str | Result | None:
        verb, *rest = [each for each in arguments if each != "--now"]
        if verb == "show":
            return "\n\n".join(self._shown(unit) for unit in rest[2:]) + "\n"
        if verb == "daemon-reload":
            return None
        for unit in rest:
            if unit.endswith(".mount"):
                self._mount_unit(verb, unit)
            elif unit == "rrdcached.service":
                if verb in ("stop", "restart"):
                    self.stop_rrdcached()
                if verb in ("start", "restart"):
                    self.start_rrdcached()
            elif unit in self.zram_units:
                self.swaps.pop("/dev/zram0", None)
                self.swaps.update({} if verb == "stop" else {"/dev/zram0": 0})
                self.show_swaps()
            elif unit in self.units:
                self.units[unit]["ActiveState"] = "inactive" if verb == "stop" else "active"
            else:
                return Result(5, "", f"Unit {unit} not loaded.")
        return None

    def link_enables(self, unit: str, link: str) -> None:
        self.links[unit] = link

    def _shown(self, unit: str) -> str:
        if unit in self.links:
            self.units[unit]["UnitFileState"] = "enabled" if self.exists(self.links[unit]) else "disabled"
        known = self.units.get(unit, {"Id": unit, "LoadState": "not-found", "ActiveState": "inactive"})
        folder = self.root / f"etc/systemd/system/{unit}.d"
        dropins = " ".join(f"/etc/systemd/system/{unit}.d/{path.name}" for path in sorted(folder.glob("*.conf")))
        return "\n".join(f"{key}={value}" for key, value in {**known, "DropInPaths": dropins}.items())

    # -- swap

    def show_swaps(self) -> None:
        lines = [f"{name:<40}partition\t2000000\t{used}\t-2" for name, used in self.swaps.items()]
        self.write("/proc/swaps", "\n".join(["Filename\tType\tSize\tUsed\tPriority", *lines]) + "\n")

    def do_swapoff(self, arguments: list[str]) -> None:
        (name,) = arguments
        del self.swaps[name]
        self.show_swaps()

    def do_swapon(self, arguments: list[str]) -> None:
        for name in self.fstab_swaps if arguments == ["--all"] else arguments:
            self.swaps.setdefault(name, 0)
        self.show_swaps()

    # -- mounts

    def do_mount(self, arguments: list[str]) -> Result | None:
        """``-o remount[,bind],OPTIONS SOURCE POINT``: the mount's own options, and of ext4 its commit."""
        flag, given, source, point = arguments
        assert flag == "-o" and given.startswith("remount,")
        for index, line in enumerate(self.mounts):
            fields = line.split(" ")
            if fields[4] != point:
                continue
            options = given.split(",")[1:]
            dash = fields.index("-")
            assert fields[dash + 2] == source, f"{point} is not mounted from {source}"
            commit = [each for each in options if each.startswith("commit=")]
            if commit:
                assert "bind" not in options and fields[dash + 1] == "ext4"
                kept = [each for each in fields[dash + 3].split(",") if not each.startswith("commit=")]
                fields[dash + 3] = ",".join([*kept, *(commit if commit != ["commit=5"] else [])])
            fields[5] = ",".join(each for each in options if each != "bind" and each not in commit)
            self.mounts[index] = " ".join(fields)
            self.show_mounts()
            return None
        return Result(32, "", f"mount: {point} not mounted.")

    def show_mounts(self) -> None:
        (self.root / "proc/self/mountinfo").write_text("\n".join(self.mounts) + "\n")

    def _mount_unit(self, verb: str, unit: str) -> None:
        text = self.read(f"/etc/systemd/system/{unit}") if self.exists(f"/etc/systemd/system/{unit}") else ""
        if verb == "start" and unit not in self.memory:
            where = next(line for line in text.splitlines() if line.startswith("Where=")).partition("=")[2]
            options = next(line for line in text.splitlines() if line.startswith("Options=")).partition("=")[2]
            assert mount_unit(where) == unit
            what = next(line for line in text.splitlines() if line.startswith("What=")).partition("=")[2]
            size = next(each for each in options.split(",") if each.startswith("size=")).removeprefix("size=").removesuffix("m")
            place = self.root / where.lstrip("/")
            beneath = self.root / f"beneath-{unit}"
            place.rename(beneath)
            place.mkdir()
            self.memory[unit] = beneath
            self.mounts.append(f"90 29 0:99 / {where} rw,nosuid - tmpfs {what} rw,size={int(size) * 1024}k,mode=755")
        elif verb == "stop" and unit in self.memory:
            # As after a reboot: what was in RAM is gone, what lay beneath is there.
            where = next(line.split()[4] for line in self.mounts if mount_unit(line.split()[4]) == unit)
            place = self.root / where.lstrip("/")
            shutil.rmtree(place)
            self.memory.pop(unit).rename(place)
            self.mounts = [line for line in self.mounts if line.split()[4] != where]
        self.show_mounts()

    # -- rrdcached

    def command(self) -> list[str]:
        """The command line that the next start gives, as the script or the unit makes it."""
        values: dict[str, str] = {}
        for name in ("WRITE_TIMEOUT", "WRITE_JITTER", "BASE_PATH", "JOURNAL_PATH", "BASE_OPTIONS", "SOCKFILE"):
            asked = ["sh", "-c", f'. "$0"; printf %s "${name}"', str(self.root / "etc/default/rrdcached")]
            values[name] = subprocess.run(asked, env={}, capture_output=True, text=True, check=True).stdout
        dropin = self.root / "etc/systemd/system/rrdcached.service.d/pveguard.conf"
        own = dropin.read_text() if dropin.exists() else ""
        if self.kind == "sysv":
            assert "ExecStart" not in own
            argv = ["/usr/bin/rrdcached", *values["BASE_OPTIONS"].split()]
            for option, name in (("-w", "WRITE_TIMEOUT"), ("-z", "WRITE_JITTER"), ("-b", "BASE_PATH"), ("-j", "JOURNAL_PATH")):
                argv += [option, values[name]] if values[name] else []
            return [*argv, "-p", "/var/run/rrdcached.pid", "-l", f"unix:{values['SOCKFILE']}"]
        starts = [line.partition("=")[2] for line in own.splitlines() if line.startswith("ExecStart=")]
        start = starts[-1] if starts else " ".join(self.native.partition("ExecStart=")[2].replace("\\\n", " ").split())
        return shlex.split(start.replace("${JOURNAL_PATH}", values["JOURNAL_PATH"]))

    def start_rrdcached(self) -> None:
        if self.rrd is None:
            argv = self.command()
            self.rrd = Rrdcached(self, argv)
            group = self.root / "sys/fs/cgroup/system.slice/rrdcached.service"
            group.mkdir(parents=True, exist_ok=True)
            (group / "cgroup.procs").write_text("4242\n")
            self.write("/proc/4242/cmdline", "\0".join(argv) + "\0")
        self.units["rrdcached.service"]["ActiveState"] = "active"

    def stop_rrdcached(self) -> None:
        if self.rrd is not None:
            self.flush_program()
            self.rrd.end()
        self.kill_rrdcached()

    def flush_program(self) -> None:
        """What the drop-in runs before a stop, as it lies on the node, in a process of its own."""
        dropin = self.root / "etc/systemd/system/rrdcached.service.d/pveguard.conf"
        for line in dropin.read_text().splitlines() if dropin.exists() else []:
            if line.startswith("ExecStop=-/usr/bin/python3"):
                _, flags, program, socket = line.removeprefix("ExecStop=-").split()
                argv = [sys.executable, flags, self.root / program.lstrip("/"), self.root / socket.lstrip("/")]
                subprocess.run(argv, check=True)

    def kill_rrdcached(self) -> None:
        if self.rrd is not None:
            self.rrd.close()
            self.rrd = None
        (self.root / "sys/fs/cgroup/system.slice/rrdcached.service/cgroup.procs").unlink(missing_ok=True)
        self.units["rrdcached.service"]["ActiveState"] = "inactive"

    def reboot(self) -> None:
        """An orderly one: services stop, what is in RAM is gone, what units want is mounted, services start."""
        self.stop_rrdcached()
        for unit in list(self.memory):
            self._mount_unit("stop", unit)
        shutil.rmtree(self.root / "run/pveguard", ignore_errors=True)
        dropin = self.root / "etc/systemd/system/rrdcached.service.d/pveguard.conf"
        for line in dropin.read_text().splitlines() if dropin.exists() else []:
            if line.startswith("Wants="):
                self._mount_unit("start", line.removeprefix("Wants="))
        self.start_rrdcached()


class Values:
    """What was sent to the daemon, and what has reached RRD files."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.written: list[str] = []

    @property
    def missing(self) -> list[str]:
        return [value for value in self.sent if value not in self.written]


class Rrdcached:
    """The daemon's double: a socket, a journal, values that wait. ``slow``: at a stop only so many are written before it is
    killed, without the question by the flush program.
    """

    slow = 1

    def __init__(self, node: Node, argv: list[str]) -> None:
        self.node, self.argv = node, argv
        self.waiting: list[str] = []
        journal = argv[argv.index("-j") + 1] if "-j" in argv else ""
        self.journal = node.root / journal.strip("/") / "rrd.journal.1" if journal else None
        if self.journal is not None:
            for path in sorted(self.journal.parent.glob("rrd.journal.*")):
                node.values.written += [line for line in path.read_text().splitlines() if line not in node.values.written]
                path.unlink()
        address = next(word for word in argv if word.startswith("unix:")).removeprefix("unix:")
        self.path = node.root / address.lstrip("/")
        self.path.unlink(missing_ok=True)
        daemon = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    self.wfile.write(daemon.answer(line.decode().strip()).encode())

        self.server = socketserver.ThreadingUnixStreamServer(str(self.path), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, command: str) -> str:
        if command == "STATS":
            lines = [f"QueueLength: {0}", f"UpdatesWritten: {len(self.node.values.written)}"]
            return f"{len(lines)} Statistics follow\n" + "\n".join(lines) + "\n"
        if command == "FLUSHALL":
            self.flush()
            return "0 Started flush.\n"
        return f"-1 Unknown command: {command}\n"

    def update(self, value: str) -> None:
        self.node.values.sent.append(value)
        self.waiting.append(value)
        if self.journal is not None:
            with self.journal.open("a") as handle:
                handle.write(f"{value}\n")

    def flush(self, limit: int | None = None) -> None:
        done, self.waiting = self.waiting[:limit], self.waiting[limit:] if limit is not None else []
        self.node.values.written += done

    def end(self) -> None:
        if self.journal is not None and "-F" not in self.argv:
            return
        self.flush(self.slow)
        if not self.waiting and self.journal is not None:
            self.journal.unlink(missing_ok=True)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.path.unlink(missing_ok=True)


def options(**more: Any) -> dict[str, Any]:
    return {"enabled": True, **more}
