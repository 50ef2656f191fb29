"""Two controllers at once: one works, the other is told who does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result, run
from ansible.module_utils.pveguard.pmxcfs import pve_lock, run_lock

from tests.loading import load_module

ONE = {"run_id": "one", "who": "ann@desk", "since": "2026-01-01T00:00:00Z"}
TWO = {"run_id": "two", "who": "bob@lap", "since": "2026-01-01T00:05:00Z"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node whose /etc/pve takes writes."""
    (tmp_path / "etc/pve/priv/lock").mkdir(parents=True)
    monkeypatch.setattr(run_lock, "pmxcfs_state", lambda _root: True)
    return tmp_path


def test_the_second_is_told_who_holds_it(root: Path) -> None:
    assert run_lock.acquire(ONE, root=root).acquired
    other = run_lock.acquire(TWO, root=root)
    assert not other.acquired
    assert other.holder["who"] == "ann@desk" and other.holder["since"] == ONE["since"]
    assert run_lock.acquire(ONE, root=root).acquired  # a second playbook of the same run


def test_a_state_that_has_seen_no_lock_yet(root: Path) -> None:
    (root / "etc/pve/priv/lock").rmdir()
    (root / "etc/pve/priv").rmdir()
    assert run_lock.acquire(ONE, root=root).acquired
    assert (root / "etc/pve/priv/lock/pveguard/holder").exists()


def test_another_member_of_the_cluster_sees_it_too(root: Path) -> None:
    run_lock.acquire(ONE, root=root)
    (root / "run/pveguard/run.lock").unlink()  # as seen from another node: only /etc/pve is shared
    other = run_lock.acquire(TWO, root=root)
    assert not other.acquired and other.where == "/etc/pve/priv/lock/pveguard/holder"
    assert not (root / "run/pveguard/run.lock").exists()


def test_a_refused_run_leaves_no_lock_of_its_own(root: Path, quick_sleep: None) -> None:
    (root / "etc/pve/priv/lock/pveguard").mkdir()  # a run that died before it wrote its name
    os.utime(root / "etc/pve/priv/lock/pveguard", (0, 0))
    other = run_lock.acquire(TWO, root=root)
    assert not other.acquired and other.holder["run_id"] == "unknown"
    assert not (root / "run/pveguard/run.lock").exists()
    assert run_lock.acquire(TWO, takeover="unknown", root=root).acquired


def test_only_the_named_holder_is_taken_over(root: Path) -> None:
    run_lock.acquire(ONE, root=root)
    assert not run_lock.acquire(TWO, takeover="someone else", root=root).acquired
    assert run_lock.acquire(TWO, takeover="one", root=root).acquired
    assert json.loads((root / "etc/pve/priv/lock/pveguard/holder").read_text())["run_id"] == "two"
    assert not run_lock.acquire(ONE, root=root).acquired


def test_only_the_holder_can_release(root: Path) -> None:
    run_lock.acquire(ONE, root=root)
    assert not run_lock.release("two", root=root)
    assert not run_lock.acquire(TWO, root=root).acquired
    assert run_lock.release("one", root=root)
    assert not (root / "etc/pve/priv/lock/pveguard").exists()
    assert run_lock.acquire(TWO, root=root).acquired


def test_check_mode_looks_and_takes_nothing(root: Path) -> None:
    assert run_lock.acquire(ONE, check=True, root=root).acquired
    assert not (root / "run").exists()
    run_lock.acquire(ONE, root=root)
    assert not run_lock.acquire(TWO, check=True, root=root).acquired


def test_without_the_cluster_file_system_the_node_is_locked(tmp_path: Path) -> None:
    assert run_lock.acquire(ONE, root=tmp_path).acquired
    assert not run_lock.acquire(TWO, root=tmp_path).acquired
    assert run_lock.release("one", root=tmp_path)


@pytest.mark.slow
def test_nodes_of_one_run_take_over_together(root: Path) -> None:
    for _ in range(10):
        run_lock.acquire(ONE, root=root)
        (root / "run/pveguard/run.lock").unlink()
        nodes = []
        for name in "abc":  # three nodes: each with a /run of its own, one /etc/pve
            node = root / name
            node.mkdir(exist_ok=True)
            if not (node / "etc").exists():
                (node / "etc").symlink_to(root / "etc")
            nodes.append(node)
        with ThreadPoolExecutor() as pool:
            outcomes = list(pool.map(lambda node: run_lock.acquire(TWO, takeover="one", root=node), nodes))
        assert [outcome.acquired for outcome in outcomes] == [True] * 3
        for node in nodes:
            run_lock.release("two", root=node)
        assert not (root / "etc/pve/priv/lock/pveguard").exists()


def test_a_failed_write_leaves_no_lock_behind(root: Path) -> None:
    def full(argv: Sequence[str], **more: Any) -> Result:
        return Result(1, "", "No space left on device") if argv[0] == "dd" else run(argv, **more)

    with pytest.raises(PveguardError, match="No space left"):
        run_lock.acquire(ONE, root=root, run=full)
    assert not (root / "run/pveguard/run.lock").exists()
    assert not (root / "etc/pve/priv/lock/pveguard").exists()


# What /etc/pve refuses


class Refusing:
    """/etc/pve refuses ``programs`` until ``until`` seconds have been slept; ``done`` ones happen all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *programs: str, until: float = 1e9, done: bool = False) -> None:
        self.programs, self.until, self.done, self.now = programs, until, done, 0.0
        # Its own clock only: that of the processes it starts is real.
        own = SimpleNamespace(sleep=self.sleep, monotonic=lambda: self.now, time=time.time)
        monkeypatch.setattr(run_lock, "time", SimpleNamespace(**{**vars(time), **vars(own)}))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self, argv: Sequence[str], **more: Any) -> Result:
        if argv[0] not in self.programs or self.now >= self.until:
            return run(argv, **more)
        if self.done:
            run(argv, **more)
            return Result(1, "", f"{argv[0]}: cannot do '{argv[-1]}': Input/output error")
        if argv[0] == "rm" and self.programs == ("rm",):
            # As rm does where the first unlink succeeds and quorum is lost then.
            (Path(argv[-1]) / "holder").unlink(missing_ok=True)
        return Result(1, "", f"{argv[0]}: cannot do '{argv[-1]}': Permission denied")


def test_giving_back_waits_for_a_passing_loss_of_quorum(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_lock.acquire(ONE, root=root)
    refusing = Refusing(monkeypatch, "rm", until=12)
    assert run_lock.release("one", refusing, root)
    assert not (root / "etc/pve/priv/lock/pveguard").exists() and 12 <= refusing.now < 14


def test_a_lock_that_cannot_be_given_back_is_told_with_what_frees_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_lock.acquire(ONE, root=root)
    refusing = Refusing(monkeypatch, "rm", "rmdir")
    with pytest.raises(PveguardError) as caught:
        run_lock.release("one", refusing, root)
    node = os.uname().nodename.split(".")[0]
    for part in (node, "/etc/pve/priv/lock/pveguard", "Permission denied", "pveguard_lock_takeover=one"):
        assert part in str(caught.value), caught.value
    assert refusing.now >= 30 and not (root / "run/pveguard/run.lock").exists(), "that of the node is given back"
    # It can be recovered as before.
    assert not run_lock.acquire(TWO, root=root).acquired
    assert run_lock.acquire(TWO, takeover="one", root=root).acquired


def test_a_lock_that_was_removed_in_part_is_told_with_the_id_it_has_now(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_lock.acquire(ONE, root=root)
    with pytest.raises(PveguardError, match="pveguard_lock_takeover=unknown"):
        run_lock.release("one", Refusing(monkeypatch, "rm"), root)
    assert run_lock.acquire(TWO, takeover="unknown", root=root).acquired


def test_a_taken_over_lock_without_a_name_gets_ours_and_is_given_back(root: Path, quick_sleep: None) -> None:
    (root / "etc/pve/priv/lock/pveguard").mkdir()
    assert run_lock.acquire(TWO, takeover="unknown", root=root).acquired
    assert json.loads((root / "etc/pve/priv/lock/pveguard/holder").read_text())["run_id"] == "two"
    assert run_lock.release("two", root=root)
    assert not (root / "etc/pve/priv/lock/pveguard").exists()


def test_an_error_although_it_was_removed_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_lock.acquire(ONE, root=root)
    assert run_lock.release("one", Refusing(monkeypatch, "rm", done=True), root)


def test_taking_waits_for_a_passing_loss_of_quorum(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = Refusing(monkeypatch, "mkdir", "dd", until=6)
    assert run_lock.acquire(ONE, root=root, run=refusing).acquired and 6 <= refusing.now < 8
    assert json.loads((root / "etc/pve/priv/lock/pveguard/holder").read_text())["run_id"] == "one"
    run_lock.release("one", root=root)
    refusing = Refusing(monkeypatch, "mkdir")
    with pytest.raises(PveguardError, match="could not be made for 15 s.*Permission denied.*corosync-quorumtool"):
        run_lock.acquire(ONE, root=root, run=refusing)
    assert not (root / "run/pveguard/run.lock").exists()


def test_a_lock_that_was_made_although_the_answer_was_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pve_lock, "_row", lambda *_: (7, 1))
    monkeypatch.setattr(pve_lock, "_node_ids", lambda *_: (1, {1: "pve1"}))
    assert run_lock.acquire(ONE, root=root, run=Refusing(monkeypatch, "mkdir", done=True)).acquired
    assert json.loads((root / "etc/pve/priv/lock/pveguard/holder").read_text())["run_id"] == "one"


def test_a_takeover_that_cannot_remove_the_lock_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_lock.acquire(ONE, root=root)
    with pytest.raises(PveguardError, match="the lock of one cannot be taken over: .*pveguard could not be removed: "):
        run_lock.acquire(TWO, takeover="one", root=root, run=Refusing(monkeypatch, "rm", "mkdir"))


def test_the_module_warns_of_what_it_could_not_give_back(
    root: Path, run_module: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_run_id: str) -> bool:
        raise PveguardError("pve1: the lock could not be given back")

    monkeypatch.setattr(run_lock, "release", failing)
    result = run_module("run_lock", state="released", holder=ONE)
    # Where a task does not fail for it the warning is shown all the same.
    assert result["failed"] and "could not be given back" in result["msg"] and "given back" in str(result["warnings"])
    assert "failed" not in run_module("run_lock", state="released", holder=ONE, _ansible_check_mode=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock of this machine, in a folder of the test."""
    monkeypatch.setattr(run_lock, "NODE_LOCK", Path(*(tmp_path / "run.lock").parts[1:]))
    monkeypatch.setattr(run_lock, "CLUSTER_LOCK", Path(*(tmp_path / "none").parts[1:]))
    monkeypatch.setattr(run_lock, "pmxcfs_state", lambda _root: False)
    return tmp_path / "run.lock"


def _module(name: str, monkeypatch: pytest.MonkeyPatch, core: str, function: str) -> tuple[Any, list[Any]]:
    """A module whose core only notes that it was called."""
    module, calls = load_module(name), []
    answer = {"changed": True, "files": [], "switched": False, "steps": [], "warnings": [], "watchdog_until_reboot": False,
              "returned": [], "waited": [], "before": "", "after": ""}  # fmt: skip
    monkeypatch.setattr(getattr(module, core), function, lambda *a, **k: calls.append(1) or answer)
    return module, calls


def test_facts_are_gathered_under_the_lock_in_one_call(here: Path, monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    module, calls = _module("node_info", monkeypatch, "node_info", "collect")
    first = run_module(module, lock={"holder": ONE})
    assert first["acquired"] and first["node"] and first["refusal"] == "" and json.loads(here.read_text())["run_id"] == "one"
    calls.clear()
    second = run_module(module, lock={"holder": TWO})
    assert not second["acquired"] and "node" not in second and not calls and not second.get("failed")
    assert "ann@desk" in second["refusal"] and "-e pveguard_lock_takeover=one" in second["refusal"]
    third = run_module(module, lock={"holder": TWO, "takeover": "one"})
    assert third["acquired"] and third["node"] and json.loads(here.read_text())["run_id"] == "two"
    assert "acquired" not in run_module(module)


def test_a_dry_run_takes_no_lock(here: Path, monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    module, _ = _module("node_info", monkeypatch, "node_info", "collect")
    assert run_module(module, lock={"holder": ONE}, _ansible_check_mode=True)["acquired"]
    assert not here.exists()


@pytest.mark.parametrize(
    ("name", "core", "function", "options"),
    [
        ("ram_state", "ram_state", "enable", {}),
        ("ram_state", "ram_state", "disable", {"state": "disabled"}),
        ("ha_services", "ha_services", "apply", {"state": "disabled"}),
    ],
)
def test_what_takes_a_daemon_down_wants_the_lock_itself(
    name: str, core: str, function: str, options: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch, run_module: Any
) -> None:
    module, calls = _module(name, monkeypatch, core, function)
    assert run_module(module, **options, lock={"holder": ONE})["changed"] and calls
    calls.clear()
    refused = run_module(module, **options, lock={"holder": TWO})
    assert refused["failed"] and not calls
    assert refused["msg"].startswith("nothing was changed: Another run works on this node") and "ann@desk" in refused["msg"]
    assert json.loads(here.read_text())["run_id"] == "one"


def test_a_holder_needs_its_run_id(here: Path, run_module: Any) -> None:
    assert "run_id is missing" in run_module("node_info", lock={"holder": {"who": "ann"}})["msg"]
    assert not here.exists()


@pytest.mark.parametrize("failing", [False, True])
def test_the_last_look_gives_the_lock_back_whatever_it_saw(
    failing: bool, here: Path, monkeypatch: pytest.MonkeyPatch, run_module: Any
) -> None:
    module = load_module("pmxcfs_writes")
    monkeypatch.setattr(module.pmxcfs_writes, "measure", lambda **_: {"counters": {}})
    monkeypatch.setattr(module.disk_wear, "wear", lambda **_: {"disks": [], "notes": ["asked"]})
    if failing:
        monkeypatch.setattr(module.pmxcfs_writes, "measure", lambda **_: (_ for _ in ()).throw(PveguardError("planted")))
    run_lock.acquire(ONE)
    kept = run_module(module, drives={}, release=ONE, _ansible_check_mode=True)
    assert "released" not in kept and here.exists()
    seen = run_module(module, drives={}, release=ONE)
    assert seen["released"] and not here.exists()
    assert seen["drives"]["notes"] == ["asked"] and bool(seen.get("failed")) == failing


def test_a_lock_that_cannot_be_given_back_is_no_loss_of_the_report(
    here: Path, monkeypatch: pytest.MonkeyPatch, run_module: Any
) -> None:
    module = load_module("pmxcfs_writes")
    monkeypatch.setattr(module.pmxcfs_writes, "measure", lambda **_: {"counters": {}})
    monkeypatch.setattr(run_lock, "release", lambda _: (_ for _ in ()).throw(PveguardError("no quorum")))
    seen = run_module(module, release=ONE)
    assert seen["released"] is False and not seen.get("failed") and "no quorum" in json.dumps(seen["warnings"])
