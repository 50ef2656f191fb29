# SPDX-License-Identifier: Apache-2.0
"""A change undoes itself unless a confirmation arrives, also across a reboot; who comes second finds nothing to decide.

systemd is a double that reads the units as they were written, and runs their own commands on a root of its own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import rollback_timer
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result

NAME = "sshd"


class Systemd:
    """The units below a root: which timers run, and what happens when one elapses, or the node boots."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.timers: dict[str, float] = {}
        self.now = 1000.0
        self.refuses = ""
        self.calls: list[list[str]] = []
        self.boot_id = root / "proc/sys/kernel/random/boot_id"
        self.boot_id.parent.mkdir(parents=True)
        self.boot_id.write_text("first\n")
        (root / "change").write_text("before")

    def __call__(self, argv: Any, **_more: Any) -> Result:
        self.calls.append(list(argv))
        verb, units = argv[1], [word for word in argv[2:] if word.startswith(rollback_timer.PREFIX)]
        if verb == self.refuses:
            return Result(1, "", "refused\n")
        if verb == "restart":
            self.timers[units[0]] = self._due(units[0])
        elif verb == "daemon-reload":
            # As it is: what counts from its activation begins anew.
            self.timers = {timer: self._due(timer) for timer in self.timers}
        elif verb == "stop":
            self.timers.pop(units[0], None)
        elif verb == "start":
            return Result(0 if self.start(units[0]) else 1, "", "")
        elif verb == "show":
            states = ("active", "waiting") if units[0] in self.timers else ("inactive", "dead")
            return Result(0, "ActiveState={}\nSubState={}\n".format(*states), "")
        return Result(0, "", "")

    def _file(self, unit: str) -> Path:
        (found,) = (path for folder in ("etc", "run") if (path := self.root / folder / "systemd/system" / unit).is_file())
        return found

    def _due(self, timer: str) -> float:
        """The monotonic time at which it elapses when it begins now."""
        lines = [line.partition("=")[::2] for line in self._file(timer).read_text().splitlines()]
        since = {"OnActiveSec": self.now, "OnBootSec": 0.0}
        return min(since[key] + float(value.removesuffix("s")) for key, value in lines if key in since)

    def _here(self, command: str) -> list[str]:
        """A line of a unit on this root."""
        text = command.replace("/var/lib/pveguard", f"{self.root}/var/lib/pveguard")
        for folder in ("/run/pveguard", "/run/systemd", "/etc/systemd"):
            text = text.replace(f" {folder}", f" {self.root}{folder}")
        return shlex.split(text.replace("%%", "%").replace("$$", "$"))

    def start(self, service: str) -> bool:
        lines = [line.partition("=")[::2] for line in self._file(service).read_text().splitlines() if line.startswith("Exec")]
        for key, command in lines:
            done = subprocess.run(self._here(command), capture_output=True)
            if done.returncode:
                return key == "ExecCondition"
        return True

    def elapse(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer, at in self.timers.items() if at <= self.now]:
            del self.timers[timer]
            self.start(timer.replace(".timer", ".service"))

    def reboot(self) -> None:
        """What is in /run goes, then what is wanted by multi-user.target starts."""
        shutil.rmtree(self.root / "run", ignore_errors=True)
        self.timers.clear()
        self.now = 5.0
        self.boot_id.write_text("second\n")
        wants = self.root / "etc/systemd/system/multi-user.target.wants"
        for link in sorted(wants.iterdir()) if wants.is_dir() else []:
            self.start(link.name)

    @property
    def change(self) -> str:
        return (self.root / "change").read_text()

    def undo(self, text: str = "before") -> list[str]:
        return ["/bin/sh", "-c", f'printf %s "$1" > {self.root}/change', "undo", text]

    def arm(self, seconds: float = 60, **more: Any) -> None:
        more = {"argv": self.undo(), "ticks": lambda: self.now, **more}
        rollback_timer.arm(NAME, seconds=seconds, run=self, root=self.root, **more)
        (self.root / "change").write_text("after")

    def state(self) -> str:
        return str(rollback_timer.status(NAME, root=self.root, ticks=lambda: self.now)["state"])

    def confirm(self) -> bool:
        return rollback_timer.confirm(NAME, run=self, root=self.root)

    def left(self) -> list[str]:
        """Units that are still there."""
        return sorted(path.name for path in self.root.rglob(f"{rollback_timer.PREFIX}*"))


@pytest.fixture
def node(tmp_path: Path) -> Systemd:
    return Systemd(tmp_path)


def test_a_confirmed_change_stays_and_nothing_of_its_units_does(node: Systemd) -> None:
    assert node.state() == "none"
    node.arm(60)
    node.now += 20
    seen = rollback_timer.status(NAME, root=node.root, ticks=lambda: node.now)
    assert (seen["state"], seen["left_seconds"], seen["argv"]) == ("armed", 40, node.undo())
    assert node.confirm() is True and node.confirm() is False
    node.elapse(1000)
    node.reboot()
    assert (node.change, node.state(), node.left()) == ("after", "confirmed", [])


def test_without_a_confirmation_it_is_undone_when_the_time_is_up(node: Systemd) -> None:
    node.arm(60)
    node.elapse(59)
    assert (node.change, node.state()) == ("after", "armed")
    node.elapse(1)
    assert (node.change, node.state(), node.left()) == ("before", "rolled_back", [])
    with pytest.raises(PveguardError, match="too late: sshd was undone"):
        node.confirm()
    assert node.change == "before"


def test_a_reload_of_systemd_does_not_put_the_undo_off(node: Systemd) -> None:
    """Seen on a real one: OnActiveSec alone counts anew after each."""
    node.arm(60)
    for _ in range(2):
        node.elapse(25)
        node(["systemctl", "daemon-reload"])
    assert node.state() == "armed"
    node.elapse(10)
    assert (node.change, node.state()) == ("before", "rolled_back")


def test_a_reboot_undoes_it(node: Systemd) -> None:
    node.arm(60)
    node.reboot()
    assert (node.change, node.state(), node.left()) == ("before", "rolled_back", [])
    (node.root / "change").write_text("later, by somebody")
    node.reboot()
    assert node.change == "later, by somebody"


def test_a_power_cut_right_after_the_confirmation_keeps_the_change(node: Systemd) -> None:
    node.arm(60)

    def cut(argv: Any, **more: Any) -> Result:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollback_timer.confirm(NAME, run=cut, root=node.root)
    assert node.left()
    node.reboot()
    assert (node.change, node.state()) == ("after", "confirmed")
    assert node.confirm() is False and node.left() == []


def test_a_power_cut_in_the_middle_of_the_undo_is_finished_at_boot(node: Systemd) -> None:
    node.arm(60)
    folder = node.root / rollback_timer.KEPT / NAME
    (folder / "armed.json").rename(folder / "rolling_back.json")
    assert node.state() == "rolling_back"
    with pytest.raises(PveguardError, match="too late: sshd is being undone"):
        node.confirm()
    node.reboot()
    assert (node.change, node.state()) == ("before", "rolled_back")


def test_an_undo_that_fails_is_told_and_tried_again(node: Systemd) -> None:
    node.arm(60, argv=["/bin/sh", "-c", f"test -e {node.root}/mended && printf before > {node.root}/change"])
    with pytest.raises(PveguardError, match="the undo of sshd did not succeed.*tried again every 5 s"):
        rollback_timer.roll_back(NAME, run=node, root=node.root)
    assert (node.change, node.state()) == ("after", "rolling_back") and node.left()
    (node.root / "mended").touch()
    rollback_timer.roll_back(NAME, run=node, root=node.root)
    assert (node.change, node.state(), node.left()) == ("before", "rolled_back", [])
    assert rollback_timer.forget(NAME, run=node, root=node.root) is True
    assert node.state() == "none" and rollback_timer.names(node.root) == []


def test_a_change_whose_proof_failed_is_undone_at_once(node: Systemd) -> None:
    node.arm(600)
    rollback_timer.roll_back(NAME, run=node, root=node.root)
    assert (node.change, node.state(), node.left()) == ("before", "rolled_back", [])
    node.arm(600)
    assert node.confirm()
    with pytest.raises(PveguardError, match="nothing to undo, its state is 'confirmed'"):
        rollback_timer.roll_back(NAME, run=node, root=node.root)


@pytest.mark.parametrize("refuses", ["restart", "daemon-reload"])
def test_without_a_timer_nothing_is_armed(node: Systemd, refuses: str) -> None:
    node.refuses = refuses
    with pytest.raises(PveguardError, match="could not be armed, and nothing was changed: systemctl .*refused"):
        node.arm(60)
    assert (node.state(), node.left(), node.change) == ("none", [], "before")


def test_a_timer_that_does_not_run_counts_as_none(node: Systemd) -> None:
    real = node.__call__

    def run(argv: Any, **more: Any) -> Result:
        done = real(argv, **more)
        return Result(0, "ActiveState=inactive\nSubState=dead\n", "") if argv[1] == "show" else done

    with pytest.raises(PveguardError, match=r"pveguard-rollback-sshd.timer is inactive \(dead\)"):
        rollback_timer.arm(NAME, node.undo(), 60, run=run, root=node.root)
    assert node.state() == "none"


def test_armed_again_for_the_same_it_counts_anew(node: Systemd) -> None:
    node.arm(60)
    node.elapse(50)
    node.arm(60)
    node.elapse(50)
    assert node.state() == "armed"
    node.refuses = "restart"
    with pytest.raises(PveguardError, match="could not be started anew.*systemctl start pveguard-rollback-sshd"):
        node.arm(60)
    # The change is there, so what undoes it must be too.
    node.reboot()
    assert node.change == "before"


def test_what_is_armed_stays_so_while_it_is_armed_anew(node: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment is there a change that no boot would undo."""
    node.arm(60)

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(PveguardError, match="could not be started anew.*No space left"):
        patch.setattr(os, "symlink", full)
        node.arm(60)
    assert node.state() == "armed"
    node.reboot()
    assert (node.change, node.state()) == ("before", "rolled_back")


@pytest.mark.parametrize("file", [f"{rollback_timer.PREFIX}{NAME}.service", f"{rollback_timer.PREFIX}{NAME}.timer", "armed.json"])
def test_a_full_disk_arms_nothing(node: Systemd, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., None] = rollback_timer.write_atomic

    def write(path: Any, *arguments: Any) -> None:
        if Path(path).name == file:
            raise OSError(28, "No space left on device", str(path))
        real(path, *arguments)

    monkeypatch.setattr(rollback_timer, "write_atomic", write)
    with pytest.raises(PveguardError, match="could not be armed, and nothing was changed: .*No space left"):
        node.arm(60)
    assert (node.state(), node.left(), node.change) == ("none", [], "before")


@pytest.mark.parametrize("after", ["arming", "a failed undo", "the undo", "the confirmation"])
def test_withdrawn_it_leaves_nothing_and_does_nothing(node: Systemd, after: str) -> None:
    mended = node.root / "mended"
    node.arm(60, argv=["/bin/sh", "-c", f"test -e {mended} && printf before > {node.root}/change"], across_reboots=False)
    if after == "the undo":
        mended.touch()
    if after in ("a failed undo", "the undo"):
        node.elapse(60)
    if after == "the confirmation":
        node.confirm()
    mended.touch()
    was = node.change
    assert rollback_timer.withdraw(NAME, run=node, root=node.root) is True
    # Also the next try of an undo that failed.
    stopped = ["systemctl", "stop", f"{rollback_timer.PREFIX}{NAME}.service"] in node.calls
    assert stopped and not list(node.root.rglob("*.json"))
    assert (node.state(), node.left(), node.timers) == ("none", [], {})
    node.elapse(60)
    assert node.change == was
    assert rollback_timer.withdraw(NAME, run=node, root=node.root) is False


def test_withdrawing_cannot_be_overtaken_by_the_undo(node: Systemd) -> None:
    """The time is up before systemd is asked for anything."""
    node.arm(60)

    def late(argv: Any, **more: Any) -> Result:
        node.elapse(60)
        return node(argv, **more)

    assert rollback_timer.withdraw(NAME, run=late, root=node.root) is True
    assert (node.change, node.state(), node.left()) == ("after", "none", [])


def test_times_as_systemd_takes_them(node: Systemd) -> None:
    node.arm(2_000_000, retry_s=1_000_000.5)
    texts = [path.read_text() for path in sorted(node.root.rglob(f"{rollback_timer.PREFIX}*")) if not path.is_symlink()]
    assert "OnActiveSec=2000000s\n" in "".join(texts) and "RestartSec=1000000.5\n" in "".join(texts)
    with pytest.raises(PveguardError, match="it is tried again every 1000000.5 s"):
        rollback_timer.roll_back(NAME, run=lambda argv, **more: Result(1, "", "failed"), root=node.root)


def test_another_change_under_the_same_name_is_refused(node: Systemd) -> None:
    node.arm(60)
    with pytest.raises(PveguardError, match="armed for another change, which was neither confirmed nor undone"):
        node.arm(60, argv=node.undo("else"))
    with pytest.raises(PveguardError, match="sshd is armed: confirm it or undo it first"):
        rollback_timer.forget(NAME, run=node, root=node.root)
    node.elapse(60)
    node.arm(60, argv=node.undo("else"))
    node.elapse(60)
    assert node.change == "else"


def test_what_a_reboot_undoes_anyway_leaves_nothing_behind(node: Systemd) -> None:
    node.arm(60, across_reboots=False)
    assert not (node.root / "etc").exists() and not (node.root / "var").exists()
    assert node.state() == "armed"
    node.elapse(60)
    assert (node.change, node.state()) == ("before", "rolled_back")
    node.arm(60, across_reboots=False)
    node.reboot()
    assert node.state() == "none"


@pytest.mark.parametrize(
    ("name", "argv", "told"),
    [("../x", ["/bin/true"], "no name of a change"), ("x", ["true"], "absolute path"), ("x", [], "absolute path"),
     ("x", ["/bin/echo", "a\nb"], "cannot carry the argument")],
)  # fmt: skip
def test_what_cannot_be_armed(node: Systemd, name: str, argv: list[str], told: str) -> None:
    with pytest.raises(PveguardError, match=told):
        rollback_timer.arm(name, argv, 60, run=node, root=node.root)
    assert node.left() == [] and node.calls == [] and not (node.root / "var").exists()


def test_the_units_are_there_before_the_state_and_the_state_before_the_timer_runs(
    node: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut in between leaves nothing that undoes what was not changed, or an undo of nothing."""
    order: list[str] = []
    real: Callable[..., None] = rollback_timer.write_atomic

    def write(path: Path, *arguments: Any) -> None:
        order.append(Path(path).name)
        real(path, *arguments)

    def run(argv: Any, **more: Any) -> Result:
        order.append(argv[1])
        return node(argv, **more)

    monkeypatch.setattr(rollback_timer, "write_atomic", write)
    rollback_timer.arm(NAME, node.undo(), 60, run=run, root=node.root)
    unit = f"{rollback_timer.PREFIX}{NAME}"
    assert order == [f"{unit}.service", f"{unit}.timer", "armed.json", "reset-failed", "daemon-reload", "restart", "show"]


@pytest.mark.parametrize("forgotten", [False, True])
def test_an_undo_that_is_just_done_does_not_take_the_next_ones_units_along(node: Systemd, forgotten: bool) -> None:
    """It is rolled back before its service has ended, which removes its units last."""
    node.arm(60)
    service = rollback_timer.PREFIX + NAME + ".service"
    lines = node._file(service).read_text().splitlines()
    (last,) = (line.partition("=")[2] for line in lines if "/bin/rm" in line)
    real = node.__call__

    def run(argv: Any, **more: Any) -> Result:
        if list(argv) == ["systemctl", "stop", service]:
            running.clear()
        if argv[1] == "daemon-reload" and running:
            subprocess.run(node._here(running.pop()), check=True)
        return real(argv, **more)

    node.elapse(60)
    running = [last]
    if forgotten:
        rollback_timer.forget(NAME, run=run, root=node.root)
    rollback_timer.arm(NAME, node.undo(), 60, run=run, root=node.root, ticks=lambda: node.now)
    (node.root / "change").write_text("after")
    node.reboot()
    assert (node.change, node.state()) == ("before", "rolled_back")


ODD = ["/bin/echo", "100%", "$HOME", 'a "b"', "back\\slash", "", "it's", "a;b", "ü"]


def test_a_command_reaches_systemd_as_it_is() -> None:
    assert rollback_timer.command_line(ODD) == (
        r'/bin/echo 100%% "$$HOME" "a \"b\"" "back\\slash" "" "it' "'" r's" "a;b" ü'
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    unit = f"{rollback_timer.PREFIX}{NAME}"
    service = rollback_timer.service_text(NAME, ODD, f"/{rollback_timer.KEPT}/{NAME}", ["ssh.service"])
    (tmp_path / f"{unit}.service").write_text(service)
    (tmp_path / f"{unit}.timer").write_text(rollback_timer.timer_text(NAME, 90.5, 1090.5))
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    done = subprocess.run(
        [*verify, tmp_path / f"{unit}.service", tmp_path / f"{unit}.timer"],
        capture_output=True,
        text=True,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "info"},
    )
    assert [line for line in done.stderr.splitlines() if unit in line] == [], done.stderr
    assert done.returncode == 0, done.stderr


SOCKET = """[Unit]
Before=sockets.target
[Socket]
ListenStream=22
Accept=yes
[Install]
WantedBy=sockets.target
"""
TEMPLATE = "[Service]\nExecStart=/bin/true\nStandardInput=socket\n"
#: Of a cloud image: sets the network up before it, and is waited for by sysinit.target.
EARLY = (
    "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\nBefore=sysinit.target\n"
    "[Service]\nType=oneshot\nExecStart=/bin/true\n"
)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("before", ["ssh.socket", "network-pre.target"])
def test_a_boot_with_the_undo_before_what_basic_target_waits_for_has_no_cycle(tmp_path: Path, before: str) -> None:
    """Where there is one, systemd leaves a job out: a host without sshd."""
    unit = f"{rollback_timer.PREFIX}{NAME}.service"
    files = {unit: rollback_timer.service_text(NAME, ["/bin/true"], f"/{rollback_timer.KEPT}/{NAME}", [before])}
    files |= {"ssh.socket": SOCKET, "ssh@.service": TEMPLATE, "early.service": EARLY}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for target, name in (("multi-user", unit), ("sockets", "ssh.socket"), ("sysinit", "early.service")):
        wants = tmp_path / f"{target}.target.wants"
        wants.mkdir()
        (wants / name).symlink_to(tmp_path / name)
    (tmp_path / "early.service.wants").mkdir()
    (tmp_path / "early.service.wants/network-pre.target").symlink_to("/usr/lib/systemd/system/network-pre.target")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "multi-user.target"],
        capture_output=True,
        text=True,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "info"},
    )
    assert "cycle" not in done.stderr, done.stderr
