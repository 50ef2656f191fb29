# SPDX-License-Identifier: Apache-2.0
"""The judge of the power cuts: it accepts what may be there after a cut and nothing else."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import changes
import disk
import power_cuts
import pytest
from ansible.module_utils.pveguard.state.rows import SCHEMA

PROGRAM = Path(changes.__file__)


def after(seed: str, number: int, node: str = "pve1") -> changes.State:
    """The state after so many complete changes."""
    state: changes.State = {}
    for change in itertools.islice(changes.changes(seed, node), number):
        for _ in changes.steps(change, state):
            pass
    return state


def digests(state: changes.State) -> changes.Digests:
    return {path: changes.digest(content) for path, content in state.items()}


def ledger(seed: str, ages: list[float], cut: float = 1000.0) -> power_cuts.Ledger:
    """A ledger whose changes were acknowledged so many seconds before the cut; the node's clock is 500 s behind."""
    made = power_cuts.Ledger(seed, "pve1")
    made.started = (cut - 100 - 500, cut - 100)
    made.acknowledged = [(cut - age - 500, cut - age) for age in ages]
    return made


def in_folder(base: Path) -> changes.Digests:
    own, _ = changes.files(str(base))
    return own.get("pve1", {})


def test_a_sequence_is_reproducible_and_differs_by_node() -> None:
    one, two, other = (
        list(itertools.islice(changes.changes("7", node), 200)) for node in ("pve1", "pve1", "pve2")
    )
    assert one == two
    assert one != other


def test_a_sequence_has_every_kind_of_change_and_each_can_be_made() -> None:
    kinds = set()
    for seed in "12":
        for change in itertools.islice(changes.changes(seed, "pve1"), 2500):
            kinds.add(change.kind)
    assert kinds == {"write", "append", "replace", "delete", "rename", "mkdir", "rmdir", *changes.EVENTS}


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_writer_leaves_a_state_of_its_sequence(seed: int, tmp_path: Path) -> None:
    base = tmp_path / "nodes/pve1"
    (base / "qemu-server").mkdir(parents=True)
    (base / "qemu-server/100.conf").write_text("not ours")
    writer = subprocess.Popen(
        [sys.executable, PROGRAM, "write", f"k{seed}", "pve1", "--base", base, "--no-events"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    noted = power_cuts.Ledger(f"k{seed}", "pve1")
    wanted = random.Random(seed).randint(20, 300)
    for line in writer.stdout:
        noted.read(line, time.monotonic())
        if len(noted.acknowledged) >= wanted:
            break
    os.kill(writer.pid, signal.SIGKILL)
    for line in writer.stdout:
        noted.read(line, time.monotonic())
    writer.wait()
    assert noted.error == ""
    kept = power_cuts.matches(in_folder(tmp_path), noted.seed, "pve1", len(noted.acknowledged) + 300)
    assert kept and max(kept) >= len(noted.acknowledged) >= wanted
    assert (base / "qemu-server/100.conf").read_text() == "not ours"


def test_a_writer_ends_in_good_order_and_the_next_begins_with_nothing(tmp_path: Path) -> None:
    base = tmp_path / "nodes/pve1"
    (base / "qemu-server").mkdir(parents=True)
    for seed in ("first", "second"):
        writer = subprocess.Popen(
            [sys.executable, PROGRAM, "write", seed, "pve1", "--base", base, "--no-events"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdin is not None and writer.stdout is not None
        noted = power_cuts.Ledger(seed, "pve1")
        for line in writer.stdout:
            noted.read(line, time.monotonic())
            if len(noted.acknowledged) == 50:
                writer.stdin.close()
        assert writer.wait() == 0
        assert noted.ended
        # It runs on until it looks at its input: on a busy machine for thousands of changes.
        number = len(noted.acknowledged)
        assert number in power_cuts.matches(in_folder(tmp_path), seed, "pve1", number + 1)


def test_what_is_younger_than_the_rpo_may_be_lost() -> None:
    ages = [9.0, 7.0, 5.0, 2.5, 1.9, 1.0, 0.1]
    verdict = power_cuts.judge(ledger("s", ages), digests(after("s", 4)), (1000.0, 1000.2), 2.0, "disk")
    assert (verdict.violation, verdict.kept, verdict.lost) == ("", 4, 3)
    assert verdict.loss_seconds == pytest.approx(2.1)  # 1.9 s, and 0.2 s until the last node was gone


def test_what_is_older_than_the_rpo_may_not_be_lost() -> None:
    noted = ledger("s", [9.0, 7.0, 5.0, 2.5, 1.9, 1.0, 0.1])
    verdict = power_cuts.judge(noted, digests(after("s", 3)), (1000.0, 1000.0), 2.0, "disk")
    assert "4 had to be there, 3 are" in verdict.violation
    assert "2.50 s before" in verdict.violation
    lines = power_cuts.ledger_lines(noted, 3, 1000.0)
    assert any("pve1" in line and "2.500 s before the cut" in line for line in lines)


def test_a_node_that_was_not_cut_loses_nothing() -> None:
    noted = ledger("s", [9.0, 7.0, 0.1])
    assert power_cuts.judge(noted, digests(after("s", 3)), None, 2.0, "cluster").violation == ""
    assert power_cuts.judge(noted, digests(after("s", 2)), None, 2.0, "cluster").violation


def test_a_change_that_was_not_yet_acknowledged_may_be_there() -> None:
    noted = ledger("s", [9.0, 7.0])
    verdict = power_cuts.judge(noted, digests(after("s", 20)), (1000.0, 1000.0), 2.0, "disk")
    assert (verdict.violation, verdict.lost) == ("", 0)


def test_a_state_that_never_was_is_a_violation() -> None:
    state = after("s", 30)
    path = next(path for path, content in state.items() if content)
    for broken in (
        {**state, path: (state[path] or b"")[:-1] + b"?"},
        {**state, f"{changes.FOLDER}/z.cfg": b"new"},
        {key: value for key, value in state.items() if key != path},
    ):
        if broken == after("s", 29):
            continue
        verdict = power_cuts.judge(ledger("s", [9.0] * 30), digests(broken), (1000.0, 1000.0), 2.0, "disk")
        assert verdict.violation


def test_states_between_the_transactions_of_a_change_are_right() -> None:
    state: changes.State = {}
    for number, change in enumerate(itertools.islice(changes.changes("m", "pve1"), 60), 1):
        for middle in changes.steps(change, state):
            assert any(
                kept in (number - 1, number) for kept in power_cuts.matches(digests(middle), "m", "pve1", 70)
            )


def test_an_acknowledgement_is_never_taken_for_older_than_it_was() -> None:
    """The node's clock counts, moved by the smallest delay seen: a line that was held up does not make a change young,
    and no change becomes older than the moment at which it could have been known here."""
    noted = power_cuts.Ledger("s", "pve1")
    noted.read("start 1000000000\n", 51.5)  # half a second on its way
    noted.read("ack 1 2000000000 1\n", 52.1)  # 0.1 s
    noted.read("ack 2 3000000000 1\n", 54.0)  # a second
    assert noted.times() == pytest.approx([52.1, 53.1])
    assert noted.required(cut=55.05, rpo=2.0) == 1


def test_a_gap_in_the_ledger_is_an_error() -> None:
    noted = power_cuts.Ledger("s", "pve1")
    noted.read("ack 1 1 1\n", 1.0)
    noted.read("ack 3 2 1\n", 2.0)
    assert "3 after 1" in noted.error


def test_a_line_that_the_cut_broke_off_is_none() -> None:
    noted = power_cuts.Ledger("s", "pve1")
    noted.read("ack 1 1527411", 1.0)
    assert (noted.acknowledged, noted.error) == ([], "")


# --- disks ----------------------------------------------------------------------------------------------------------


def store(folder: Path, state: changes.State) -> Path:
    """A store as pve-state leaves it after a power cut: the last save is in the log beside the replica."""
    folder.mkdir(parents=True)
    writer = sqlite3.connect(folder / "config.db", isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute(SCHEMA)
    rows: list[tuple[object, ...]] = [(0, 0, 100, 1, 1, 4, "__version__", None)]
    numbers = {"": 0}
    paths = ["nodes", "nodes/pve1", "nodes/pve1/changes", "nodes/pve1/qemu-server"]
    for path in [*paths, *(f"nodes/pve1/{path}" for path in sorted(state))]:
        numbers[path] = len(numbers)
        content = None if path in paths else state[path.removeprefix("nodes/pve1/")]
        parent, _, name = path.rpartition("/")
        kind = 4 if content is None else 8
        rows.append((numbers[path], numbers[parent], numbers[path], 1, 1, kind, name, content))
    writer.executemany("INSERT INTO tree VALUES(?,?,?,?,?,?,?,?)", rows)
    # The copies are taken while the log is still there, as a power cut does.
    copy = folder.with_name("copied")
    subprocess.run(["cp", "-a", folder, copy], check=True)
    writer.close()
    return copy


def test_a_store_is_read_from_a_disk_image(tmp_path: Path) -> None:
    state = after("d", 80)
    copied = store(tmp_path / "live/state", state)
    tree = tmp_path / "tree/pveguard"
    tree.mkdir(parents=True)
    copied.rename(tree / "state")
    image = tmp_path / "disk.img"
    subprocess.run(
        ["mkfs.ext4", "-q", "-d", tmp_path / "tree", image, "32M"],
        check=True,
        env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    )
    out = tmp_path / "out"
    disk.take_out(image, "/pveguard/state", out)
    assert disk.problems(out) == []
    assert disk.digests(out / "config.db")["pve1"] == digests(state)


def test_a_damaged_replica_is_a_problem(tmp_path: Path) -> None:
    copied = store(tmp_path / "live/state", after("d", 80))
    disk.verify(copied / "config.db")  # checkpoints the log
    data = bytearray((copied / "config.db").read_bytes())
    data[4096:4196] = b"\xff" * 100  # the head of a page
    (copied / "config.db").write_bytes(data)
    assert disk.problems(copied)


def test_a_disk_without_a_store_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert disk.problems(tmp_path / "empty") == ["config.db is missing"]
