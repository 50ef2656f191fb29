# SPDX-License-Identifier: Apache-2.0
"""The doubles of the HA stack, against a plain directory in place of /etc/pve and a file as watchdog."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lab.packages.build import HERE
from lab.tests.doubles.harness import SECONDS, wait_for

ROOT = HERE / "pve-ha-manager/root"
SBIN = ROOT / "usr/sbin"
BEAT = 0.1

# Real programs with real periods.
pytestmark = pytest.mark.slow


class Node:
    """A node's directories and the programs started on it."""

    def __init__(self, root: Path, short: Path) -> None:
        self.pve, self.run, self.device, self.conf = root / "pve", short, root / "watchdog", root / "conf"
        (self.pve / "nodes/pve1").mkdir(parents=True)
        self.device.write_bytes(b"")
        self.log = root / "log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "PVE_LAB_ETC_PVE": str(self.pve),
            "PVE_LAB_NODE": "pve1",
            "PVE_LAB_RUN": str(self.run),
            "PVE_LAB_WATCHDOG": str(self.device),
            "PVE_LAB_HA_CONF": str(self.conf),
            "PVE_LAB_LRM_SECONDS": str(BEAT),
            "PVE_LAB_CRM_SECONDS": str(BEAT),
            "PVE_LAB_IDLE_SECONDS": "0.3",
            "PVE_LAB_STOP_SECONDS": "0.1",
            "PVE_LAB_CALL_SECONDS": "0",
            "PVE_LAB_HA_DEFAULTS": str(root / "defaults"),
        }

    @property
    def status(self) -> Path:
        return self.pve / "nodes/pve1/lrm_status"

    @property
    def armed(self) -> bool:
        return (self.run / "watchdog-mux.active").is_dir()

    def start(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(SBIN / name)], env={**self.environment, **environment}, stderr=self.log.open("ab")
        )
        self.processes.append(process)
        return process

    def start_mux(self, text: str = "feed_interval=0.1\n") -> subprocess.Popen[bytes]:
        self.conf.write_text(text)
        process = self.start("watchdog-mux")
        wait_for("watchdog-mux", (self.run / "watchdog-mux.sock").exists)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        process.send_signal(signal.SIGTERM)
        return process.wait(SECONDS)

    def manager(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SBIN / "ha-manager"), *arguments],
            env={**self.environment, "TZ": "UTC"},
            capture_output=True,
            text=True,
        )

    def add(self, *sids: str) -> None:
        for sid in sids:
            done = self.manager("add", sid)
            assert done.returncode == 0, done.stderr

    def wait_for_food(self) -> None:
        """Until the watchdog is fed once more."""
        size = self.device.stat().st_size
        wait_for("food for the watchdog", lambda: self.device.stat().st_size > size)

    def starves(self) -> bool:
        """Whether the watchdog is fed no more (waits long enough to know)."""
        size = self.device.stat().st_size
        time.sleep(0.35)
        return self.device.stat().st_size == size

    def wait_for_beats(self, number: int) -> None:
        """Until the LRM has written its status so many times more."""
        seen: set[int] = {self.status.stat().st_ino} if self.status.exists() else set()

        def beats() -> int:
            if self.status.exists():
                seen.add(self.status.stat().st_mtime_ns)
            return len(seen)

        wait_for(f"{number} heartbeats", lambda: beats() > number)

    def lines(self) -> list[str]:
        """What ``ha-manager status`` prints, with DATE for the dates."""
        date = r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}"
        return [re.sub(date, "DATE", line) for line in self.manager("status").stdout.splitlines()]

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.pve)) for path in self.pve.rglob("*"))


@pytest.fixture
def node(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    # The socket's path must be short.
    run = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pvg-XXXXXX"], text=True).strip())
    node = Node(tmp_path, run)
    try:
        yield node
    finally:
        for process in node.processes:
            if process.poll() is None:
                process.kill()
            process.wait(SECONDS)
        shutil.rmtree(run)


def load(monkeypatch: pytest.MonkeyPatch, node: Node) -> ModuleType:
    for key, value in node.environment.items():
        if key.startswith("PVE_LAB_"):
            monkeypatch.setenv(key, value)
    path = ROOT / "usr/share/pve-ha-manager/lab-ha"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("lab_ha", str(path))
    spec = importlib.util.spec_from_loader("lab_ha", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


# --- the heartbeat ------------------------------------------------------------------------------------------


def test_heartbeat_is_create_write_rename_and_nothing_else(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(monkeypatch, node)
    lrm = module.Lrm()
    calls: list[tuple[str, object]] = []
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def record(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if name != "open" or int(str(arguments[1])) & writing:
                calls.append((name, arguments[1] if name == "write" else arguments[0]))
            return real(*arguments, **options)

        return call

    changing = (
        "open write pwrite writev rename replace link symlink mkdir rmdir unlink remove utime chmod fchmod "
        "chown truncate ftruncate fsync fdatasync"
    ).split()
    for name in changing:
        monkeypatch.setattr(module.os, name, record(name, getattr(os, name)))
    for _ in range(2):
        calls.clear()
        lrm.step()
        temporary = f"nodes/pve1/lrm_status.tmp.{os.getpid()}"
        assert [name for name, _ in calls] == ["open", "write", "rename"]
        assert (calls[0][1], calls[2][1]) == (temporary, temporary)
        assert isinstance(calls[1][1], bytes) and len(calls[1][1]) == 83
    monkeypatch.undo()
    assert node.files() == ["nodes", "nodes/pve1", "nodes/pve1/lrm_status"]
    assert json.loads(node.status.read_text()).keys() == {"mode", "results", "state", "timestamp"}


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_heartbeat_as_the_kernel_sees_it(node: Node, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    process = subprocess.Popen(
        ["strace", "-D", "-y", "-o", str(trace), "-e", "trace=%file,write,pwrite64,ftruncate,fsync,fdatasync",
         str(SBIN / "pve-ha-lrm")],
        env=node.environment,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    node.processes.append(process)
    try:
        wait_for("some heartbeats", lambda: trace.is_file() and trace.read_text().count('lrm_status")') >= 3)
    finally:
        process.terminate()
        process.wait(SECONDS)
    lines = [line for line in trace.read_text().splitlines() if "lrm_status" in line]
    kinds = [re.match(r"\w+", line)[0] for line in lines]  # type: ignore[index]
    assert len(kinds) >= 9
    assert kinds[:9] == ["openat", "write", "renameat"] * 3
    assert all("O_CREAT" in line for line in lines if line.startswith("openat"))


def test_period_is_kept_without_drift(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of its own: a step takes 1 s, and the fourth is blocked for 12."""
    module = load(monkeypatch, node)
    clock, begun, sent = [0.0], [], []

    class Steps(module.Daemon):  # type: ignore[name-defined]
        period = 5.0

        def step(self) -> None:
            begun.append(clock[0])
            clock[0] += 12 if len(begun) == 4 else 1

        def finish(self) -> None:
            pass

    def rest(_signals: object, seconds: float) -> object:
        if len(begun) == 7 and not sent:
            sent.append(True)
            return object()
        clock[0] += seconds
        return None

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(
        module, "signal", SimpleNamespace(SIG_BLOCK=0, pthread_sigmask=lambda *_: None, sigtimedwait=rest)
    )
    assert Steps().run() == 0
    assert begun == [0, 5, 10, 15, 32, 37, 42], "after the block no beat is made up for"


def test_heart_beats_at_the_period_that_is_set(node: Node) -> None:
    process = node.start("pve-ha-lrm", PVE_LAB_LRM_SECONDS="0.2")
    wait_for("the first heartbeat", node.status.exists)
    seen: list[int] = []

    def beats() -> int:
        now = node.status.stat().st_mtime_ns
        if now not in seen:
            seen.append(now)
        return len(seen)

    wait_for("ten heartbeats", lambda: beats() >= 10)
    assert (seen[-1] - seen[0]) / 1e9 > 9 * 0.2 - 0.3, "not more often; how late they may be depends on the machine"
    assert node.stop(process) == 0


def test_default_period_is_five_seconds(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PVE_LAB_LRM_SECONDS", raising=False)
    del node.environment["PVE_LAB_LRM_SECONDS"]
    module = load(monkeypatch, node)
    assert module.Lrm.period == 5.0


def test_idle_lrm_uses_next_to_no_processor_time(node: Node) -> None:
    process = node.start("pve-ha-lrm", PVE_LAB_LRM_SECONDS="0.05")
    wait_for("the first heartbeat", node.status.exists)

    def ticks() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1)
    # Twenty heartbeats, that is 100 seconds of a real one; emulated guests are about 12 times slower.
    assert (ticks() - before) / os.sysconf("SC_CLK_TCK") <= 0.08


def test_keys_of_the_status_are_in_no_order_and_results_are_filled(node: Node) -> None:
    node.start_mux()
    lrm, crm = node.start("pve-ha-lrm"), node.start("pve-ha-crm")
    node.add("vm:100", "ct:101")
    orders: set[str] = set()

    def results() -> dict[str, dict[str, object]]:
        status = json.loads(node.status.read_text())
        orders.add(" ".join(status))
        return status["results"] if isinstance(status["results"], dict) else {}

    wait_for("results of both", lambda: node.status.exists() and len(results()) == 2)
    wait_for("another order of the keys", lambda: len(results()) == 2 and len(orders) > 1)
    assert sorted(result["sid"] for result in results().values()) == ["ct:101", "vm:100"]
    for uid, result in results().items():
        assert len(uid) == 22 and result.keys() == {"sid", "exit_code", "state"}
    assert (node.stop(lrm), node.stop(crm)) == (0, 0)


@pytest.mark.parametrize("name", ["pve-ha-lrm", "pve-ha-crm"])
def test_a_stop_is_acted_on_only_after_a_while(node: Node, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With a clock of its own: SIGTERM arrives at 7 s, between two steps of every 5 s."""
    module = load(monkeypatch, node)
    clock, begun, sent = [0.0], [], [False]

    class Steps({"pve-ha-lrm": module.Lrm, "pve-ha-crm": module.Crm}[name]):  # type: ignore[misc]
        period = 5.0

        def step(self) -> None:
            begun.append(clock[0])

        def finish(self) -> None:
            begun.append(-clock[0])

    def rest(_signals: object, seconds: float) -> object:
        due = clock[0] + seconds
        if not sent[0] and due >= 7:
            clock[0], sent[0] = 7.0, True
            return object()
        clock[0] = due
        return None

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(
        module, "signal", SimpleNamespace(SIG_BLOCK=0, pthread_sigmask=lambda *_: None, sigtimedwait=rest)
    )
    node.conf.write_text("stop_seconds=12\n")
    assert Steps().run() == 0
    assert begun == [0, 5, 10, 15, -19], "it works on for 12 s"


def test_a_stop_is_never_immediate(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(monkeypatch, node)
    node.conf.write_text("stop_seconds=0\n")
    assert module.stop_seconds() == 0.1
    node.conf.write_text("")
    monkeypatch.delenv("PVE_LAB_STOP_SECONDS")
    assert module.stop_seconds() == 2.0


def test_a_manager_that_was_asked_to_stop_keeps_its_watchdog_until_it_does(node: Node) -> None:
    node.start_mux("feed_interval=0.1\nstop_seconds=600\n")
    node.add("vm:100")
    lrm = node.start("pve-ha-lrm")
    wait_for("the watchdog to be armed", lambda: node.armed)
    lrm.send_signal(signal.SIGTERM)
    node.wait_for_beats(5)
    assert lrm.poll() is None and node.armed
    node.wait_for_food()


def test_stop_writes_one_last_status(node: Node) -> None:
    process = node.start("pve-ha-lrm", PVE_LAB_LRM_SECONDS="60")
    wait_for("the first heartbeat", node.status.exists)
    first = node.status.stat().st_ino
    assert node.stop(process) == 0
    assert node.status.stat().st_ino != first
    status = json.loads(node.status.read_text())
    assert (status["mode"], status["state"]) == ("restart", "wait_for_agent_lock")


def test_starting_says_that_it_is_a_double(node: Node) -> None:
    for name in ("pve-ha-lrm", "pve-ha-crm"):
        process = node.start(name)
        wait_for("the first line", lambda name=name: f"starting {name}: lab double" in node.log.read_text())
        assert node.stop(process) == 0


# --- without /etc/pve, without quorum -----------------------------------------------------------------------


def test_waits_quietly_until_etc_pve_is_there(node: Node) -> None:
    away = node.pve.with_name("away")
    node.pve.rename(away)
    lrm, crm = node.start("pve-ha-lrm"), node.start("pve-ha-crm")
    wait_for("both to wait", lambda: node.log.read_text().count("waiting for") == 2)
    time.sleep(BEAT * 4)
    assert node.log.read_text().count("waiting for") == 2, "said once"
    assert not node.pve.exists()
    away.rename(node.pve)
    wait_for("a heartbeat", node.status.exists)
    assert (node.stop(lrm), node.stop(crm)) == (0, 0)


def test_nothing_is_ever_written_beneath_the_mount_point(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(monkeypatch, node)
    monkeypatch.delenv("PVE_LAB_ETC_PVE")  # now the directory must be a mount, and it is none
    cluster = module.Cluster()
    for act in (
        lambda: cluster.replace("x", "y"),
        lambda: cluster.make_directories("ha"),
        lambda: module.Lock(cluster, "x").acquire(),
        cluster.quorate,
    ):
        with pytest.raises(FileNotFoundError, match="not mounted"):
            act()
    assert node.files() == ["nodes", "nodes/pve1"]


def test_no_directory_of_the_node_is_made_up(node: Node) -> None:
    (node.pve / "nodes/pve1").rmdir()
    process = node.start("pve-ha-lrm")
    wait_for("it to wait", lambda: node.log.exists() and "waiting for" in node.log.read_text())
    assert node.files() == ["nodes"]
    assert node.stop(process) == 0


def test_quorum_is_read_from_the_write_bits_of_local(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(monkeypatch, node)
    cluster = module.Cluster()
    assert cluster.quorate()
    (node.pve / "local").mkdir(mode=0o755)
    assert cluster.quorate()
    (node.pve / "local").chmod(0o555)
    assert not cluster.quorate()
    assert node.manager("status").stdout.splitlines()[0] == "quorum No quorum on node 'pve1'!"
    done = node.manager("add", "vm:100")
    assert done.returncode != 0 and "no quorum" in done.stderr


# --- CRM ----------------------------------------------------------------------------------------------------


def test_crm_writes_nothing_without_resources(node: Node) -> None:
    process = node.start("pve-ha-crm")
    wait_for("the start", lambda: node.log.exists() and "starting" in node.log.read_text())
    time.sleep(BEAT * 5)
    assert node.files() == ["nodes", "nodes/pve1"]
    assert node.stop(process) == 0
    assert node.files() == ["nodes", "nodes/pve1"]


def test_crm_with_resources(node: Node) -> None:
    (node.pve / "nodes/pve2/qemu-server").mkdir(parents=True)
    (node.pve / "nodes/pve2/qemu-server/100.conf").write_text("")
    node.start_mux()
    lrm, crm = node.start("pve-ha-lrm"), node.start("pve-ha-crm")
    wait_for("a heartbeat", node.status.exists)
    node.add("vm:100", "ct:101")
    status = node.pve / "ha/manager_status"
    wait_for("both services", lambda: status.exists() and "ct:101" in status.read_text())
    wait_for("the watchdog to be armed", lambda: node.armed)
    data = json.loads(status.read_text())
    assert data["master_node"] == "pve1"
    assert data["node_status"] == {"pve1": "online", "pve2": "unknown"}
    assert data["service_status"] == {
        "vm:100": {"node": "pve2", "state": "started"},
        "ct:101": {"node": "pve1", "state": "started"},
    }
    assert (node.pve / "priv/lock/ha_manager_lock").is_dir()
    for sid in ("vm:100", "ct:101"):
        assert node.manager("remove", sid).returncode == 0
    wait_for("the manager to rest", lambda: not (node.pve / "priv/lock/ha_manager_lock").exists())
    assert json.loads(status.read_text())["service_status"] == {}
    wait_for("nobody to be armed", lambda: not node.armed)
    rested = status.stat().st_ino
    time.sleep(BEAT * 4)
    assert status.stat().st_ino == rested
    assert (node.stop(lrm), node.stop(crm)) == (0, 0)


def test_only_one_manager(node: Node) -> None:
    node.add("vm:100")
    first = node.start("pve-ha-crm")
    status = node.pve / "ha/manager_status"
    wait_for("the first manager", status.exists)
    second = node.start("pve-ha-crm", PVE_LAB_NODE="pve2")
    time.sleep(BEAT * 4)
    assert json.loads(status.read_text())["master_node"] == "pve1"
    assert node.stop(first) == 0
    wait_for("the other to take over", lambda: json.loads(status.read_text())["master_node"] == "pve2")
    assert node.stop(second) == 0


def test_lock_of_a_dead_manager_is_taken_over(node: Node) -> None:
    node.add("vm:100")
    lock = node.pve / "priv/lock/ha_manager_lock"
    lock.mkdir()
    os.utime(lock, (time.time() - 110, time.time() - 110))
    process = node.start("pve-ha-crm")
    time.sleep(BEAT * 4)
    assert not (node.pve / "ha/manager_status").exists()
    os.utime(lock, (time.time() - 130, time.time() - 130))
    wait_for("manager_status", (node.pve / "ha/manager_status").exists)
    assert node.stop(process) == 0


# --- watchdog -----------------------------------------------------------------------------------------------


def test_mux_feeds_and_switches_the_watchdog_off(node: Node) -> None:
    mux = node.start_mux()
    node.wait_for_food()
    assert not node.armed
    assert (node.run / "watchdog-mux.sock").stat().st_mode & 0o077 == 0
    assert node.stop(mux) == 0
    data = node.device.read_bytes()
    assert data.endswith(b"V") and set(data[:-1]) == {0}
    assert not (node.run / "watchdog-mux.sock").exists()


def test_lrm_holds_no_watchdog_without_resources(node: Node) -> None:
    mux = node.start_mux()
    lrm = node.start("pve-ha-lrm")
    wait_for("a heartbeat", node.status.exists)
    time.sleep(BEAT * 3)
    assert not node.armed
    assert (node.stop(lrm), node.stop(mux)) == (0, 0)


def test_lrm_arms_with_the_first_resource_and_goes_idle_after_the_last(node: Node) -> None:
    node.start_mux("feed_interval=0.1\nidle_seconds=600\n")
    lrm, crm = node.start("pve-ha-lrm"), node.start("pve-ha-crm")
    wait_for("a heartbeat", node.status.exists)
    assert "fencing standby (CRM watchdog standby)" in node.lines()
    assert not (node.pve / "ha/manager_status").exists()
    node.add("vm:100")
    wait_for("the watchdog to be armed", lambda: node.armed)
    wait_for("the state", lambda: json.loads(node.status.read_text())["state"] == "active")
    wait_for("the manager", lambda: "fencing armed (CRM watchdog active)" in node.lines())
    assert (node.pve / "priv/lock/ha_agent_pve1_lock").is_dir()
    assert node.manager("remove", "vm:100").returncode == 0
    node.wait_for_beats(10)
    assert node.armed, "kept for minutes"
    assert json.loads(node.status.read_text())["state"] == "active"
    assert node.lines()[2:4] == ["fencing armed (CRM watchdog active)", "lrm pve1 (active, watchdog active, DATE)"]
    # Now the minutes have passed.
    node.conf.write_text("idle_seconds=0\n")
    wait_for("the watchdog to be free", lambda: not node.armed)
    wait_for("the state", lambda: json.loads(node.status.read_text())["state"] == "wait_for_agent_lock")
    wait_for("fencing", lambda: "fencing standby (CRM watchdog standby)" in node.lines())
    node.wait_for_food()
    assert not (node.pve / "priv/lock/ha_agent_pve1_lock").exists()
    assert (node.stop(lrm), node.stop(crm)) == (0, 0)


@pytest.mark.parametrize(("arm", "resource", "armed"), [("always", False, True), ("never", True, False)])
def test_arming_can_be_set(node: Node, arm: str, resource: bool, armed: bool) -> None:
    if resource:
        node.add("vm:100")
    node.start_mux(f"feed_interval=0.1\narm={arm}  # for a test\n")
    lrm, crm = node.start("pve-ha-lrm"), node.start("pve-ha-crm")
    wait_for("a heartbeat", node.status.exists)
    if armed:
        wait_for("the watchdog to be armed", lambda: node.armed)
    time.sleep(BEAT * 4)
    assert node.armed is armed
    assert (node.stop(lrm), node.stop(crm)) == (0, 0)


def test_clean_stop_of_an_armed_lrm(node: Node) -> None:
    mux = node.start_mux()
    node.add("vm:100")
    lrm = node.start("pve-ha-lrm")
    wait_for("the watchdog to be armed", lambda: node.armed)
    assert node.stop(lrm) == 0
    assert not node.armed, "gone before the LRM ended"
    node.wait_for_food()
    assert node.stop(mux) == 0
    assert node.device.read_bytes().endswith(b"V")


def test_killed_lrm_leaves_the_watchdog_armed_and_unfed(node: Node) -> None:
    mux = node.start_mux()
    node.add("vm:100")
    lrm = node.start("pve-ha-lrm")
    wait_for("the watchdog to be armed", lambda: node.armed)
    lrm.kill()
    lrm.wait(SECONDS)
    wait_for("the message", lambda: "will reset this machine" in node.log.read_text())
    assert node.armed and node.starves()
    # Too late for a new client, and for a clean stop.
    again = node.start("pve-ha-lrm")
    time.sleep(BEAT * 4)
    assert node.starves()
    node.stop(again)
    assert node.stop(mux) == 1
    assert not node.device.read_bytes().endswith(b"V")
    assert node.start("watchdog-mux").wait(SECONDS) == 1
    assert "refusing to feed the watchdog again" in node.log.read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_mux_ended_while_armed_leaves_the_watchdog_running(node: Node, how: signal.Signals) -> None:
    mux = node.start_mux()
    node.add("vm:100")
    node.start("pve-ha-lrm")
    wait_for("the watchdog to be armed", lambda: node.armed)
    mux.send_signal(how)
    assert mux.wait(SECONDS) != 0
    assert node.armed
    assert b"V" not in node.device.read_bytes()


def test_silent_client_counts_as_dead(node: Node) -> None:
    node.start_mux("feed_interval=0.1\nclient_timeout=4\n")  # many heartbeats: the LRM may be late
    node.add("vm:100")
    lrm = node.start("pve-ha-lrm")
    wait_for("the watchdog to be armed", lambda: node.armed)
    time.sleep(4.5)
    node.wait_for_food()  # alive, so fed
    lrm.send_signal(signal.SIGSTOP)
    wait_for("the message", lambda: "silent for 4 s" in node.log.read_text())
    assert node.starves()


def test_lrm_that_cannot_store_its_status_does_not_feed(node: Node) -> None:
    node.start_mux("feed_interval=0.1\nclient_timeout=1\n")
    node.add("vm:100")
    node.start("pve-ha-lrm")
    wait_for("the watchdog to be armed", lambda: node.armed)
    (node.pve / "nodes/pve1").rename(node.pve / "nodes/lost")
    wait_for("the message", lambda: "silent for 1 s" in node.log.read_text())
    assert node.starves()


def test_lrm_without_mux_is_not_active(node: Node) -> None:
    node.add("vm:100")
    lrm = node.start("pve-ha-lrm")
    wait_for("a heartbeat", node.status.exists)
    assert json.loads(node.status.read_text())["state"] == "wait_for_agent_lock"
    wait_for("the message", lambda: "watchdog-mux does not answer" in node.log.read_text())
    time.sleep(BEAT * 3)
    assert node.log.read_text().count("watchdog-mux does not answer") == 1
    assert node.stop(lrm) == 0


def test_mux_tells_systemd_that_it_is_ready(node: Node) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(node.run / "notify"))
        listener.settimeout(SECONDS)
        node.conf.write_text("feed_interval=0.1\n")
        node.start("watchdog-mux", NOTIFY_SOCKET=str(node.run / "notify"))
        assert listener.recv(100) == b"READY=1"
    assert (node.run / "watchdog-mux.sock").exists()


@pytest.mark.parametrize("arguments", [[], ["--list"]])
def test_mux_never_touches_the_watchdog_of_this_machine(arguments: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PVE_LAB_")}
    done = subprocess.run(
        [SBIN / "watchdog-mux", *arguments], env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 2 and "lab double" in done.stderr


def test_softdog_is_the_driver_unless_another_is_chosen(node: Node, tmp_path: Path) -> None:
    """Also where the machine has a device of its own: what modprobe is asked for, by a program that stands in for it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "modprobe").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n: > {node.device}\n')
    (programs / "modprobe").chmod(0o755)
    for text in ("", "WATCHDOG_MODULE=i6300esb\n", "# WATCHDOG_MODULE=i6300esb\n"):
        (tmp_path / "defaults").write_text(text)
        node.device.unlink()
        mux = node.start("watchdog-mux", PATH=f"{programs}:{os.environ['PATH']}")
        wait_for("watchdog-mux", (node.run / "watchdog-mux.sock").exists)
        assert node.stop(mux) == 0
    assert (tmp_path / "asked").read_text().split() == ["-q", "softdog", "-q", "i6300esb", "-q", "softdog"]


def test_mux_with_wrong_settings(node: Node) -> None:
    node.conf.write_text("watchdog_timeout=soon\n")
    assert node.start("watchdog-mux").wait(SECONDS) == 1
    assert "soon" in node.log.read_text() and node.device.read_bytes() == b""


# --- ha-manager ---------------------------------------------------------------------------------------------


def test_add_config_remove(node: Node) -> None:
    assert node.manager("config").stdout == ""
    assert node.manager("add", "vm:100", "--state", "stopped").returncode == 0
    assert node.manager("add", "ct:101", "--comment=web server").returncode == 0
    resources = node.pve / "ha/resources.cfg"
    assert resources.read_text() == "vm: 100\n\tstate stopped\n\nct: 101\n\tcomment web server\n"
    assert node.manager("config").stdout == "vm:100\n\tstate stopped\n\nct:101\n\tcomment web server\n\n"
    assert node.manager("remove", "vm:100").returncode == 0
    assert resources.read_text() == "ct: 101\n\tcomment web server\n"
    assert node.manager("remove", "ct:101").returncode == 0
    assert resources.read_text() == ""
    assert node.files() == [
        "ha", "ha/resources.cfg", "nodes", "nodes/pve1", "priv", "priv/lock",
    ]  # fmt: skip


def test_number_alone_is_looked_up(node: Node) -> None:
    (node.pve / "nodes/pve1/lxc").mkdir()
    (node.pve / "nodes/pve1/lxc/105.conf").write_text("")
    node.add("105")
    assert (node.pve / "ha/resources.cfg").read_text() == "ct: 105\n"
    done = node.manager("add", "106")
    assert done.returncode != 0 and "no guest 106" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "vm:100"], "already defined"),
        (["remove", "vm:101"], "no such resource 'vm:101'"),
        (["add", "web"], "is not vm:NUMBER"),
        (["add", "vm:102", "--state", "flying"], "is none of"),
        (["add", "vm:102", "--color", "red"], "unknown option"),
        (["migrate", "vm:100", "pve2"], "wrong arguments"),
    ],
)
def test_refusals(node: Node, arguments: list[str], message: str) -> None:
    node.add("vm:100")
    done = node.manager(*arguments)
    assert done.returncode != 0 and message in done.stderr
    assert (node.pve / "ha/resources.cfg").read_text() == "vm: 100\n"
    assert not (node.pve / "priv/lock/domain-ha").exists()


def lrm_files(node: Node) -> None:
    now = int(time.time())
    for name, mode, state, age in (
        ("pve1", "active", "wait_for_agent_lock", 0),
        ("pve2", "active", "active", 0),
        ("pve3", "restart", "wait_for_agent_lock", 0),
        ("pve4", "active", "active", 300),
    ):
        folder = node.pve / "nodes" / name
        folder.mkdir(exist_ok=True)
        status = {"mode": mode, "results": {}, "state": state, "timestamp": now - age}
        (folder / "lrm_status").write_text(json.dumps(status))


def test_status(node: Node) -> None:
    assert node.lines() == ["quorum OK", "fencing standby (CRM watchdog standby)"]
    lrm_files(node)
    assert node.lines()[2:] == [
        "lrm pve1 (idle, watchdog standby, DATE)",
        "lrm pve2 (active, watchdog active, DATE)",
        "lrm pve3 (restart mode, watchdog standby, DATE)",
        "lrm pve4 (old timestamp - dead?, DATE)",
    ]
    node.add("vm:100")
    assert node.lines()[-1] == "service vm:100 (---, queued)"
    verbose = node.manager("status", "--verbose").stdout
    data = json.loads(verbose.split("full cluster state:\n", 1)[1])
    assert data["resources"] == {"vm:100": {}} and data["quorum"] is True


def test_lines_of_the_status_come_in_their_order(node: Node) -> None:
    node.start_mux()
    lrm, crm = node.start("pve-ha-lrm"), node.start("pve-ha-crm")
    node.add("vm:100")
    wanted = [
        "quorum OK",
        "master pve1 (active, DATE)",
        "fencing armed (CRM watchdog active)",
        "lrm pve1 (active, watchdog active, DATE)",
        "service vm:100 (pve1, started)",
    ]
    wait_for("all of it to be active", lambda: node.lines() == wanted)
    assert (node.stop(lrm), node.stop(crm)) == (0, 0)


def test_a_manager_from_before_fencing_could_be_disarmed_does_not_show_it(node: Node) -> None:
    node.conf.write_text("disarm=no\n")
    assert node.lines() == ["quorum OK"]
    lrm_files(node)
    assert node.lines()[1:3] == ["lrm pve1 (idle, DATE)", "lrm pve2 (active, DATE)"]


def test_a_manager_may_have_no_disarm(node: Node) -> None:
    node.conf.write_text("disarm=no\n")
    assert "disarm-ha" not in node.manager("help", "crm-command").stdout
    done = node.manager("crm-command", "disarm-ha", "freeze")
    assert done.returncode != 0 and "wrong arguments" in done.stderr
    assert not (node.pve / "ha/crm_commands").exists()


def test_disarm_releases_the_watchdogs_until_they_are_armed_again(node: Node) -> None:
    node.start_mux("feed_interval=0.1\nidle_seconds=600\n")
    lrm, crm = node.start("pve-ha-lrm"), node.start("pve-ha-crm")
    node.add("vm:100")
    wait_for("the watchdog to be armed", lambda: node.armed)
    wait_for("the state", lambda: "fencing armed (CRM watchdog active)" in node.lines())
    assert node.manager("remove", "vm:100").returncode == 0
    assert "disarm-ha" in node.manager("help", "crm-command").stdout
    assert node.manager("crm-command", "disarm-ha", "freeze").returncode == 0
    wait_for("the state", lambda: "fencing disarmed (resource mode: freeze)" in node.lines())
    assert not node.armed, "it is said when all have let go"
    assert "lrm pve1 (idle, watchdog released, DATE)" in node.lines()
    assert (node.pve / "ha/crm_commands").read_text() == ""
    node.wait_for_food()  # nothing was killed
    node.add("vm:100")
    assert node.manager("crm-command", "arm-ha").returncode == 0
    wait_for("the watchdog to be armed", lambda: node.armed)
    wait_for("the state", lambda: "fencing armed (CRM watchdog active)" in node.lines())
    assert (node.stop(lrm), node.stop(crm)) == (0, 0)


def test_a_call_takes_its_time(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(monkeypatch, node)
    slept: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=slept.append))
    for text, wanted in (("call_seconds=10\n", 10.0), ("", 0.0)):
        node.conf.write_text(text)
        assert module.Manager().main(["help"]) == 0
        assert slept.pop() == wanted
    monkeypatch.delenv("PVE_LAB_CALL_SECONDS")
    module.Manager().main(["help"])
    assert slept == [1.0]


def test_no_etc_pve(node: Node) -> None:
    node.pve.rename(node.pve.with_name("away"))
    done = node.manager("status")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_daemons_take_no_other_arguments(node: Node) -> None:
    done = subprocess.run([SBIN / "pve-ha-lrm", "--help"], capture_output=True, text=True)
    assert done.returncode == 2 and "lab double" in done.stderr


# --- units --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["pve-ha-lrm", "pve-ha-crm", "watchdog-mux"])
def test_units(unit: str) -> None:
    text = (ROOT / f"usr/lib/systemd/system/{unit}.service").read_text()
    assert "lab double" in text and "WantedBy=multi-user.target" in text
    program = re.search(r"^ExecStart=(/\S+)", text, re.MULTILINE)
    assert program is not None
    target = ROOT / program[1].lstrip("/")
    assert os.access(target, os.X_OK)
    after = " ".join(re.findall(r"^After=(.*)", text, re.MULTILINE))
    if unit != "watchdog-mux":
        assert {"pve-cluster.service", "corosync.service", "watchdog-mux.service"} <= set(after.split())
