# SPDX-License-Identifier: Apache-2.0
"""The module: one call, truthful in check mode, the daemon untouched where nothing has to be switched."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.state import program, ram_state
from ansible.module_utils.pveguard.state.installed import metrics_dir
from ansible.module_utils.pveguard.state.program import PVE_STATE

UNITS = {"pveguard-state-watch.service": "[Unit]\n", r"var-lib-pve\x2dcluster.mount": "Options=a@NOSWAP@\n"}


class Fake:
    """A node as the module sees it: files below tmp_path and the answers of commands."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.argv: list[list[str]] = []
        self.status: dict[str, Any] = {"state": "disabled"}
        self.refusals: list[str] = []
        self.installed = True
        self.unit_state = "failed"
        self.enable_result: dict[str, Any] = {"changed": True, "downtime_seconds": 3.5, "tmpfs_bytes": 9}
        installed = replace(PVE_STATE, command=f"{root}{PVE_STATE.command}", home=f"{root}{PVE_STATE.home}")
        monkeypatch.setattr(ram_state, "PVE_STATE", installed)
        for name in ("CONFIG", "DROP_IN_SOURCE", "DROP_IN", "UNIT_DIR", "SWITCH"):
            monkeypatch.setattr(ram_state, name, f"{root}{getattr(ram_state, name)}")
        monkeypatch.setattr(ram_state, "metrics_dir", lambda: metrics_dir(root))
        monkeypatch.setattr(ram_state, "run_detached", self.detached)
        monkeypatch.setattr(ram_state, "noswap_supported", lambda release=None: True)

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout: float = 60.0, env: Any = None
    ) -> Result:
        self.argv.append(list(argv))
        if argv[0] == ram_state.PVE_STATE.command:
            return Result(0, json.dumps(self.status), "")
        if argv[:2] == ["systemctl", "show"]:
            return Result(0, f"ActiveState={self.unit_state}\n", "")
        return Result(0, "", "")

    def ask(self, argv: Sequence[str], timeout: float) -> Result:
        self.argv.append(["ask", *argv])
        if argv[0] == "check-config":
            return Result(0, "{}", "")
        if argv[0] == "status":
            return Result(0, json.dumps(self.status), "")
        assert argv[:3] == ["preflight", "--connection", "c"]
        found = {
            "installed": self.installed,
            "refusals": self.refusals,
            "warnings": [],
            "tmpfs_bytes": 7,
            "login": {"connection": "c"},
        }
        return Result(3 if self.refusals else 0, json.dumps(found), "")

    def detached(self, unit: str, argv: Sequence[str], deadline: float, run: Any) -> dict[str, Any]:
        self.argv.append([unit, *argv])
        if "error" in self.enable_result:
            raise ram_state.DetachedError(self.enable_result["error"])
        drop_in = Path(ram_state.DROP_IN)
        if unit == "pveguard-enable":
            drop_in.parent.mkdir(parents=True)
            drop_in.write_text("drop-in")
            self.status = {"state": "enabled", "units": {ram_state.WATCH_UNIT: "active"}}
        else:
            drop_in.unlink()
        return self.enable_result

    def files(self) -> dict[str, str]:
        return {str(p.relative_to(self.root)): p.read_text(errors="replace") for p in self.root.rglob("*") if p.is_file()}

    def commands(self) -> list[str]:
        words = [" ".join(a[:3]) for a in self.argv]
        self.argv.clear()
        return words


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


def options(**changes: Any) -> ram_state.Options:
    values: dict[str, Any] = {
        "units": UNITS,
        "drop_in": "drop-in",
        "config": {"rpo_seconds": 2.0},
        "connection": "c",
    }
    return ram_state.Options(**{**values, **changes})


def test_first_run_second_run_and_back(fake: Fake) -> None:
    predicted = ram_state.enable(options(), check=True, run=fake.run, ask=fake.ask)
    assert predicted["changed"] and predicted["switched"] and fake.files() == {}
    assert all("preflight" in a for a in fake.argv)
    fake.argv.clear()

    done = ram_state.enable(options(), run=fake.run, ask=fake.ask)
    assert done["changed"] and done["downtime_seconds"] == 3.5
    assert [c.path for c in predicted["files"]] == [c.path for c in done["files"]]
    call = fake.argv[-1]
    assert call[:3] == ["pveguard-enable", ram_state.PVE_STATE.command, "enable"]
    assert (
        call[call.index("--connection") + 1] == "c"
        and "--login-fallback" in call
        and "--allow-ha" not in call
    )
    assert fake.files()["etc/systemd/system/var-lib-pve\\x2dcluster.mount"] == "Options=a,noswap\n"
    fake.commands()

    for check in (True, False):
        again = ram_state.enable(options(), check=check, run=fake.run, ask=fake.ask)
        assert not again["changed"] and not again["switched"] and again["restarted"] == []
        assert fake.commands() == [f"{ram_state.PVE_STATE.command} status --json"]

    changed = ram_state.enable(options(config={"rpo_seconds": 5.0}), check=True, run=fake.run, ask=fake.ask)
    assert changed["restarted"] == [ram_state.WATCH_UNIT] and changed["changed"]
    fake.commands()
    changed = ram_state.enable(options(config={"rpo_seconds": 5.0}), run=fake.run, ask=fake.ask)
    assert changed["changed"] and not changed["switched"]
    assert not any("pve-cluster" in c for c in fake.commands())

    before = fake.files()
    back = ram_state.disable(options(), check=True, run=fake.run, ask=fake.ask)
    assert back["changed"] and back["switched"] and fake.files() == before
    done = ram_state.disable(options(), run=fake.run, ask=fake.ask)
    assert done["changed"] and {c.path for c in back["files"]} == {c.path for c in done["files"]}
    assert fake.files() == {}
    assert fake.argv[-2][:3] == ["pveguard-disable", ram_state.PVE_STATE.command, "disable"]
    assert not ram_state.disable(options(), run=fake.run, ask=fake.ask)["changed"]


@pytest.mark.parametrize("damage", ["answer", "gone"])
def test_the_way_back_does_not_depend_on_what_is_installed(fake: Fake, damage: str) -> None:
    ram_state.enable(options(), run=fake.run, ask=fake.ask)
    if damage == "gone":
        Path(ram_state.PVE_STATE.command).unlink()
    else:
        Path(ram_state.PVE_STATE.command).write_text("damaged")
        fake.status = {"error": "state.json: no JSON", "exit_code": 2}
    fake.argv.clear()
    done = ram_state.disable(options(), run=fake.run, ask=fake.ask)
    assert done["switched"] and fake.files() == {}
    assert not any(a[:2] == [ram_state.PVE_STATE.command, "status"] for a in fake.argv)


def test_the_way_past_offline_members_is_handed_on(fake: Fake) -> None:
    ram_state.enable(options(allow_offline_members=True), run=fake.run, ask=fake.ask)
    ram_state.disable(options(allow_offline_members=True), run=fake.run, ask=fake.ask)
    for command in ("preflight", "enable", "disable"):
        assert "--allow-offline-members" in next(a for a in fake.argv if command in a)


def test_a_refusal_changes_nothing_in_both_modes(fake: Fake) -> None:
    fake.refusals = ["HA manages 100"]
    for check in (True, False):
        with pytest.raises(PveguardError, match="HA manages 100"):
            ram_state.enable(options(), check=check, run=fake.run, ask=fake.ask)
    assert fake.files() == {} and not any("systemctl" in a for a in fake.argv)


def test_check_mode_where_the_package_is_not_installed_yet(fake: Fake) -> None:
    fake.installed, fake.refusals = False, ["pve-cluster is not installed"]
    assert ram_state.enable(options(), check=True, run=fake.run, ask=fake.ask)["changed"]
    with pytest.raises(PveguardError, match="not installed"):
        ram_state.enable(options(), run=fake.run, ask=fake.ask)


def test_a_failed_switch_leaves_no_file_behind(fake: Fake) -> None:
    config = Path(ram_state.CONFIG)
    config.parent.mkdir(parents=True)
    config.write_text("older\n")
    fake.enable_result = {"error": "planted; stock was put back and runs"}
    with pytest.raises(ram_state.DetachedError, match="planted"):
        ram_state.enable(options(), run=fake.run, ask=fake.ask)
    assert list(fake.files()) == ["etc/pveguard/state.json"]


@pytest.mark.parametrize(
    ("switch", "unit", "kept"),
    [
        (None, "failed", False),
        ({"done": "now", "error": "planted"}, "failed", False),
        ({"kind": "enable", "pid": 1}, "failed", True),
        ({"done": "now"}, "active", True),
        (None, "active", True),
    ],
)
def test_the_program_stays_while_the_rollback_timer_needs_it(
    fake: Fake, switch: dict[str, Any] | None, unit: str, kept: bool
) -> None:
    if switch is not None:
        Path(ram_state.SWITCH).parent.mkdir(parents=True)
        Path(ram_state.SWITCH).write_text(json.dumps(switch))
    fake.unit_state = unit
    fake.enable_result = {"error": "planted"}
    with pytest.raises(ram_state.DetachedError, match="planted"):
        ram_state.enable(options(), run=fake.run, ask=fake.ask)
    assert Path(ram_state.PVE_STATE.command).exists() is kept


def test_an_unhealthy_node_is_reported_with_its_fix(fake: Fake) -> None:
    ram_state.enable(options(), run=fake.run, ask=fake.ask)
    fake.status = {
        "state": "failed",
        "reason": "replica damaged",
        "fix": "pve-state restore --generation latest",
        "units": {ram_state.WATCH_UNIT: "active"},
    }
    with pytest.raises(PveguardError, match="replica damaged.*restore --generation latest"):
        ram_state.enable(options(), run=fake.run, ask=fake.ask)


def test_a_starting_node_is_waited_for(fake: Fake, quick_sleep: None) -> None:
    ram_state.enable(options(), run=fake.run, ask=fake.ask)
    good = fake.status
    starting = {"state": "starting", "reason": "being started", "units": {ram_state.WATCH_UNIT: "activating"}}
    looks = [starting, starting, good]

    def run(argv: Sequence[str], **rest: Any) -> Result:
        if "status" in argv:
            fake.status = looks.pop(0) if len(looks) > 1 else looks[0]
        return fake.run(argv, **rest)

    assert ram_state.enable(options(), run=run) == {
        "changed": False,
        "files": [],
        "switched": False,
        "restarted": [],
        "status": good,
    }
    looks = [starting]
    with pytest.raises(PveguardError, match="being started.*pve-state status"):
        ram_state.enable(options(), run=run)


def test_a_stopped_watcher_is_started(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    ram_state.enable(options(), run=fake.run, ask=fake.ask)
    fake.status = {"state": "failed", "reason": "not saved", "units": {ram_state.WATCH_UNIT: "failed"}}
    assert ram_state.enable(options(), check=True, run=fake.run, ask=fake.ask)["changed"]
    fake.argv.clear()
    real = fake.run

    def run(argv: Sequence[str], **rest: Any) -> Result:
        if argv[:2] == ["systemctl", "restart"]:
            fake.status = {"state": "enabled", "units": {ram_state.WATCH_UNIT: "active"}}
        return real(argv, **rest)

    assert ram_state.enable(options(), run=run)["changed"]
    assert f"systemctl restart {ram_state.WATCH_UNIT}" in fake.commands()


def test_unit_names_are_checked(fake: Fake) -> None:
    with pytest.raises(PveguardError, match="not a name of"):
        ram_state.enable(options(units={"../x.service": ""}), run=fake.run, ask=fake.ask)


@pytest.mark.parametrize(
    ("release", "known"), [("6.1.0-30-amd64", False), ("6.4.0", True), ("6.17.2-1-pve", True)]
)
def test_noswap_by_kernel(release: str, known: bool) -> None:
    assert ram_state.noswap_supported(release) is known


def test_the_module_reports(run_module: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.loading import load_module

    module: ModuleType = load_module("ram_state")
    assert run_module(module, state="info") == {
        "changed": False,
        "changed_paths": [],
        "diff": [],
        "ram_state": {"state": "absent"},
        "restarted": [],
        "switched": False,
        "invocation": run_module(module, state="info")["invocation"],
    }
    enable = ram_state.enable
    monkeypatch.setattr(ram_state, "enable", lambda o, check: enable(options(), check, fake.run, fake.ask))
    result = run_module(module, _ansible_check_mode=True)
    assert result["changed"] and result["tmpfs_bytes"] == 7
    installed = next(d for d in result["diff"] if d["before_header"].endswith("pve-state"))
    assert re.fullmatch(r"version [0-9a-f]{16}\n", installed["after"])


def test_the_real_program_answers_before_it_is_installed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = program.ask(["--root", str(tmp_path), "preflight", "--connection", ""], 60)
    found = json.loads(done.stdout)
    assert done.rc == 3 and found["installed"] is False and found["refusals"]
    bad = json.dumps({"noise": ["^storage.cfg$"]})
    done = program.ask(["check-config", "--config", bad], 60)
    assert done.rc == 2 and "storage.cfg" in json.loads(done.stdout)["error"]
    # A module's answer is what it prints.
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr().out == ""


def test_what_cannot_be_understood_is_said() -> None:
    done = program.ask(["restore-file", "latest"], 60)
    assert done.rc == 2 and "PATH" in json.loads(done.stdout)["error"]


def test_a_program_that_gives_no_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.cli, "answer", lambda argv: time.sleep(600))
    done = program.ask(["status"], 0.2)
    assert done.rc == 124 and done.stderr == "no answer within 0.2 s"


def test_the_metrics_are_linked_where_an_exporter_looks_and_the_link_moves(
    fake: Fake, tmp_path: Path
) -> None:
    def links() -> dict[str, str]:
        found = (p for p in tmp_path.rglob("*.prom") if p.is_symlink())
        return {p.parent.name: str(p.readlink()) for p in found}

    def with_dir(name: str) -> ram_state.Options:
        return options(config={"rpo_seconds": 2.0, "metrics_dir": f"{tmp_path}/{name}" if name else ""})

    predicted = ram_state.enable(with_dir("one"), check=True, run=fake.run, ask=fake.ask)
    assert links() == {} and any(c.path.endswith("one/pveguard-state.prom") for c in predicted["files"])
    ram_state.enable(with_dir("one"), run=fake.run, ask=fake.ask)
    assert links() == {"one": "/run/pveguard/metrics.prom"}
    assert not ram_state.enable(with_dir("one"), run=fake.run, ask=fake.ask)["changed"]
    moved = ram_state.enable(with_dir("two"), run=fake.run, ask=fake.ask)
    assert {c.what for c in moved["files"] if c.path.endswith(".prom")} == {"removed", "created"}
    assert links() == {"two": "/run/pveguard/metrics.prom"}
    # The way back knows the directory from the node, whatever the inventory says by now.
    ram_state.disable(options(config={}), run=fake.run, ask=fake.ask)
    assert links() == {} and fake.files() == {}


def test_a_failed_switch_takes_its_link_back(fake: Fake, tmp_path: Path) -> None:
    fake.enable_result = {"error": "planted"}
    with pytest.raises(ram_state.DetachedError):
        ram_state.enable(options(config={"metrics_dir": f"{tmp_path}/one"}), run=fake.run, ask=fake.ask)
    assert not list(tmp_path.rglob("*.prom"))
