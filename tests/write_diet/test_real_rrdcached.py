# SPDX-License-Identifier: Apache-2.0
"""The same with Debian's rrdcached, where it is installed: it runs as a process of the test's own, with the node's folders."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.diet import measures, rrd_flush, write_diet

from tests.write_diet.node import Node, options

PROGRAMS = {name: shutil.which(name) for name in ("rrdcached", "rrdtool")}
pytestmark = pytest.mark.skipif(None in PROGRAMS.values(), reason="rrdcached and rrdtool are not installed here")
START = 1700000000
FILES = 40


class RealNode(Node):
    """With the real daemon; its start script's stop: asked to end, and killed after five seconds."""

    process: subprocess.Popen[bytes] | None = None

    def start_rrdcached(self) -> None:
        if self.process is not None:
            return
        argv = self.command()
        here = [str(PROGRAMS["rrdcached"]), "-g"]
        for option, value in zip(argv, argv[1:], strict=False):
            if option in ("-b", "-j", "-p", "-l"):
                here += [option, f"unix:{self.at_root(value[5:])}" if option == "-l" else self.at_root(value)]
            elif option in ("-w", "-z", "-f"):
                here += [option, value]
            elif option in ("-B", "-F"):
                here.append(option)
        (self.root / "var/run").mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(here, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait()
        group = self.root / "sys/fs/cgroup/system.slice/rrdcached.service"
        group.mkdir(parents=True, exist_ok=True)
        (group / "cgroup.procs").write_text("4242\n")
        self.write("/proc/4242/cmdline", "\0".join(argv) + "\0")
        self.units["rrdcached.service"]["ActiveState"] = "active"

    def at_root(self, path: str) -> str:
        return str(self.root / path.lstrip("/"))

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.ask("PING")
                return
            except OSError:
                assert self.process is not None and self.process.poll() is None, "rrdcached ended"
                assert time.monotonic() < deadline, "rrdcached does not answer"
                time.sleep(0.05)

    def ask(self, *commands: str) -> None:
        daemon = rrd_flush.Daemon(self.at_root("/run/rrdcached.sock"))
        for command in commands:
            daemon.ask(command)
        daemon.close()

    def stop_rrdcached(self) -> None:
        if self.process is not None:
            self.flush_program()
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.kill_rrdcached()

    def kill_rrdcached(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            (self.root / "run/rrdcached.sock").unlink(missing_ok=True)
        super().kill_rrdcached()


@pytest.fixture
def node(make: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    import tempfile

    node = RealNode(Path(tempfile.mkdtemp(prefix="diet-")))
    folder = node.root / "var/lib/rrdcached/db/pve-vm-9.0"
    folder.mkdir()
    for number in range(FILES):
        made = ["create", folder / str(number), "-b", str(START), "--step", "10", "DS:a:GAUGE:60:U:U", "RRA:LAST:0.5:1:1000"]
        subprocess.run([str(PROGRAMS["rrdtool"]), *map(str, made)], check=True)
    node.start_rrdcached()
    yield node
    node.kill_rrdcached()
    shutil.rmtree(node.root)


def test_every_value_arrives(node: RealNode) -> None:
    """Through the change, a reboot, a daemon that is killed, and the way back."""
    now = [START]

    def send(count: int) -> None:
        for _ in range(count):
            now[0] += 10
            node.ask(*(f"UPDATE pve-vm-9.0/{number} {now[0]}:{now[0] - START + number}" for number in range(FILES)))

    before = node.picture()
    send(5)
    wanted = {"rrdcached": options()}
    write_diet.apply(wanted, False, node.run, node.root)
    assert not write_diet.apply(wanted, False, node.run, node.root).changed
    send(5)
    node.reboot()
    send(5)
    node.kill_rrdcached()
    assert write_diet.apply(wanted, False, node.run, node.root).todo == ["start rrdcached, which does not run"]
    send(5)
    found = measures.collect(node.run, node.root)["rrdcached"]
    assert found["rrd"]["files"] == FILES and found["running"]["write_s"] == 3600
    write_diet.revert(run=node.run, root=node.root)
    assert node.picture() == before
    send(5)
    node.ask("FLUSHALL")
    node.stop_rrdcached()
    node.start_rrdcached()
    rrd_flush.flush(node.at_root("/run/rrdcached.sock"))
    kept = []
    for number in range(FILES):
        path = node.root / f"var/lib/rrdcached/db/pve-vm-9.0/{number}"
        asked = [str(PROGRAMS["rrdtool"]), "fetch", str(path), "LAST", "-r", "10", "-s", str(START), "-e", str(now[0] - 10)]
        out = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
        values = {line.split(":")[0]: float(line.split()[1]) for line in out.splitlines() if line.startswith("17")}
        right = [step for step in range(1, 26) if values.get(str(START + 10 * step)) == 10.0 * step + number]
        # The daemon writes its journal through a buffer: one that is killed loses the end of what came since it started.
        assert set(range(1, 26)) - set(right) <= {12, 13, 14, 15}, (number, right)
        kept.append(right)
    assert any(11 in right and 12 in right for right in kept)
