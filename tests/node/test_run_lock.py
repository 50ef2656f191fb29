"""Two controllers at once: one works, the other is told who does."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard import run_lock
from ansible.module_utils.pveguard.errors import PveguardError
from ansible.module_utils.pveguard.run import Result, run

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
