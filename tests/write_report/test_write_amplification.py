# SPDX-License-Identifier: Apache-2.0
"""The probe without a cluster file system: its model, its budget, what it refuses, and that it leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result, run
from ansible.module_utils.pveguard.disk import block_writes
from ansible.module_utils.pveguard.pmxcfs import pve_file
from ansible.module_utils.pveguard.writes import write_amplification

from tests.write_report.test_report import node

MIB = 1 << 20
SMALL = {"file_bytes": 4096, "block_bytes": 1024}
WORST = {"file_bytes": MIB, "block_bytes": 512}

# Measured on pmxcfs 9.1.6: transactions, bytes by the daemon, bytes at the device.
MEASURED = {
    512: (2049, 2_794_303_488, 2_803_302_400),
    4 << 10: (257, 349_794_304, 351_576_064),
    128 << 10: (9, 9_998_336, 10_072_064),
    MIB: (9, 9_998_336, 10_072_064),
}


@pytest.mark.parametrize("block", MEASURED)
def test_the_model_is_a_little_above_what_was_measured(block: int) -> None:
    transactions, daemon, device = MEASURED[block]
    found = write_amplification.predict(MIB, block)
    assert found["transactions"] == transactions
    assert daemon <= found["write_bytes"] <= daemon * 1.02
    assert device <= found["device_bytes"] <= device * 1.02


def test_the_model_of_small_and_uneven_files() -> None:
    assert write_amplification.predict(1, 512)["transactions"] == 2
    assert write_amplification.predict(1000, 300)["transactions"] == 5
    # 300 KiB in one write(2) are three pieces for the daemon.
    assert write_amplification.predict(300 << 10, MIB)["transactions"] == 4
    costs = [write_amplification.predict(64 << 10, block)["cost_bytes"] for block in (512, 4096, 65536)]
    assert costs == sorted(costs, reverse=True)


def test_the_worst_case_is_beyond_the_budget_and_the_default_is_within_it_on_three_members() -> None:
    default = write_amplification.plan(write_amplification.CASES, write_amplification.BUDGET_BYTES, 3, "x")
    assert [case["skipped"] for case in default] == [None, None]
    (worst,) = write_amplification.plan([WORST], write_amplification.BUDGET_BYTES, 1, "the_variable")
    assert "2.65 GiB" in worst["skipped"] and "64 MiB" in worst["skipped"] and "the_variable" in worst["skipped"]


def test_all_members_count_against_the_budget_and_so_do_the_cases_before() -> None:
    one = write_amplification.predict(**SMALL)["cost_bytes"]

    def planned(payers: int, budget: int) -> list[bool]:
        plan = write_amplification.plan([SMALL, SMALL], budget, payers, "x")
        return [case["skipped"] is None for case in plan]

    assert planned(1, 2 * one) == [True, True]
    assert planned(1, 2 * one - 1) == [True, False]
    assert planned(3, 2 * one) == [False, False]
    assert planned(3, 6 * one) == [True, True]
    assert planned(0, 0) == [True, True], "a node alone with its database in memory pays nothing"


@pytest.mark.parametrize("payers", [1, 5])
def test_the_budget_that_a_refusal_names_is_enough(payers: int) -> None:
    budget = 1000
    reason = write_amplification.over_budget(SMALL, 600, budget, payers, "x")
    assert reason is not None
    named = int(reason.split(" or more")[0].rsplit(" ", 1)[1])
    assert write_amplification.over_budget(SMALL, named - 400, named, payers, "x") is None
    assert write_amplification.over_budget(SMALL, named - 401, named - 1, payers, "x") is not None


@pytest.mark.parametrize(
    ("cases", "budget", "idle", "wanted"),
    [
        ([], 1, 1, "cases is empty"),
        ([{"file_bytes": MIB + 1, "block_bytes": 512}], 1, 1, r"cases\[0\].file_bytes is 1048577.*at most 1 MiB per file"),
        ([SMALL, {"file_bytes": 1, "block_bytes": 0}], 1, 1, r"cases\[1\].block_bytes is 0, wanted 1 to"),
        ([SMALL], -1, 1, "device_write_budget_bytes is -1"),
        ([SMALL], 1, 0, "idle_seconds is 0"),
    ],
)
def test_wrong_options(cases: Any, budget: int, idle: float, wanted: str) -> None:
    with pytest.raises(PveguardError, match=wanted):
        write_amplification.validate(cases, budget, idle)


# -- the log


def test_the_log_is_counted_exactly_or_not_at_all(tmp_path: Path) -> None:
    """Against SQLite itself, as the daemon uses it: one counter sees each transaction, the others only some."""
    path = tmp_path / "config.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("PRAGMA wal_autocheckpoint=100")
    database.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)")
    counters = {step: write_amplification.WalCounter(str(path)) for step in (1, 2, 7, 30)}
    restarts, frames = 0, 0
    for number in range(1, 161):
        database.execute("REPLACE INTO t VALUES (1, ?)", (os.urandom(number * 997 % 90_000),))
        for step, counter in counters.items():
            if number % step == 0:
                counter.read()
        now = int.from_bytes((tmp_path / "config.db-shm").read_bytes()[16:20], "little")
        restarts, frames = restarts + (now < frames), now
        if restarts == 0:
            # Until the log is started anew its size says it.
            assert counters[1].bytes == (tmp_path / "config.db-wal").stat().st_size - 32 - 2 * 4120
    database.close()
    assert restarts > 10
    exact = counters.pop(1).bytes
    assert exact is not None and exact > restarts * 100 * 4120
    assert counters[2].bytes == exact, "a restart between two readings is seen from what is behind its end"
    assert all(counter.bytes in (None, exact) for counter in counters.values())


# -- a folder in place of /etc/pve


SCHEMA = (
    "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, parent INTEGER NOT NULL, version INTEGER NOT NULL, "
    "writer INTEGER NOT NULL, mtime INTEGER NOT NULL, type INTEGER NOT NULL, name TEXT NOT NULL, data BLOB)"
)


class Fake:
    """A root with an /etc/pve that is a folder, and a database that this process has open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pve = root / "etc/pve"
        self.pve.mkdir(parents=True)
        (self.pve / "local").write_text("")
        self.members({"pve1": 1})
        self.database = root / "config.db"
        self.connection = sqlite3.connect(self.database, isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode=WAL")
        # As the daemon makes it: of another schema nothing is measured.
        self.connection.execute(SCHEMA)
        self.connection.execute("INSERT INTO tree VALUES (0, 0, 7, 1, 0, 8, '__version__', NULL)")
        (root / "pid").write_text(str(os.getpid()))

    def members(self, online: dict[str, int], quorate: int = 1) -> None:
        nodes = {name: {"id": 1, "online": on} for name, on in online.items()}
        value = {"nodename": "pve1", "cluster": {"quorate": quorate}, "nodelist": nodes}
        (self.pve / ".members").write_text(json.dumps(value))

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.pve.iterdir()}

    def measure(self, **more: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {"cases": [SMALL], "idle_seconds": 0.01, "stall_s": 20.0, **more}
        return write_amplification.measure(
            database=str(self.database),
            pid_file=str(self.root / "pid"),
            store=str(self.root),
            lock_dir=self.root / "run",
            root=self.root,
            run=lambda argv, **_: run(argv) if argv[0] == "cat" else Result(0, "", ""),
            **arguments,
        )


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(pve_file, "is_mounted", lambda root=None: True)
    made = Fake(tmp_path)
    yield made
    made.connection.close()


def refused(fake: Fake, wanted: str, **more: Any) -> None:
    """A refusal says why, and nothing was written."""
    before = fake.files()
    with pytest.raises(PveguardError, match=wanted):
        fake.measure(**more)
    assert fake.files() == before and not (fake.root / "run").exists()


def test_not_on_a_folder(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    refused(fake, "/etc/pve is not mounted.*systemctl start pve-cluster")


def test_not_without_quorum(fake: Fake) -> None:
    (fake.pve / "local").chmod(0o444)
    refused(fake, "no quorum.*corosync-quorumtool -s")
    (fake.pve / "local").chmod(0o644)
    fake.members({"pve1": 1, "pve2": 0}, quorate=0)
    refused(fake, "pve1 has no quorum.*corosync-quorumtool -s")


def test_not_with_members_unknown(fake: Fake) -> None:
    (fake.pve / ".members").write_text("{}")
    refused(fake, "does not name the members")
    (fake.pve / ".members").write_text("")
    refused(fake, "does not name the members .*not JSON")
    (fake.pve / ".members").unlink()
    refused(fake, "does not name the members .*No such file")


def test_not_a_file_that_is_too_large(fake: Fake) -> None:
    refused(fake, "at most 1 MiB per file", cases=[{"file_bytes": MIB + 1, "block_bytes": 512}])


def test_not_where_the_database_cannot_grow(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_amplification, "FREE_BYTES", 1 << 62)
    refused(fake, "free, wanted.*stops taking writes")


def test_not_without_a_daemon(fake: Fake) -> None:
    fake.connection.close()
    refused(fake, "cannot be read, or no daemon uses it")


def test_a_file_system_that_takes_no_file(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quorum is lost after the checks."""
    real = write_amplification._File
    monkeypatch.setattr(write_amplification, "_File", lambda path: real(Path("/sys") / path.name))
    before = fake.files()
    with pytest.raises(PveguardError, match="cannot be written: (Permission denied|Read-only).*quorum was lost"):
        fake.measure()
    assert fake.files() == before


def test_the_file_is_removed_when_a_passing_loss_of_quorum_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_amplification._File(tmp_path / "probe.tmp.1")
    file.path.write_text("x")
    refuse = tmp_path / "refuse"
    refuse.write_text("xx")
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        # In a process of its own, so it counts on the disk.
        if path == file.path and (left := refuse.read_text()):
            refuse.write_text(left[1:])
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    file.remove()
    assert not file.path.exists()


def test_what_is_left_is_nothing(fake: Fake) -> None:
    before = fake.files()
    result = fake.measure(cases=[SMALL, {"file_bytes": 1, "block_bytes": 1}])
    assert fake.files() == before
    assert [case["skipped"] for case in result["cases"]] == [None, None]
    assert result["members"] == ["pve1"] and result["spent_bytes"] >= 0 and result["idle"]["transactions"] == 0
    assert result["path"] == f"/etc/pve/pveguard-write-amplification-pve1.tmp.{os.getpid()}"


def test_check_mode_writes_nothing_and_tells_the_cost(fake: Fake) -> None:
    (fake.pve / "pveguard-write-amplification-pve1.tmp.5").write_bytes(b"x")
    before = fake.files()
    result = fake.measure(cases=[SMALL, WORST], check_mode=True)
    assert fake.files() == before and not (fake.root / "run").exists()
    small, worst = result["cases"]
    assert small["skipped"] is None and small["transactions"] is None and small["predicted_transactions"] == 5
    assert "2.65 GiB" in worst["skipped"]
    assert any("tmp.5 was left by a killed probe and would be removed" in note for note in result["notes"])


def test_the_budget_of_a_cluster(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    # What others write to this machine's disk meanwhile is no part of a budget that is right to the byte.
    monkeypatch.setattr(block_writes, "device_counters", lambda number, root=None: (0, 0))
    fake.members({"pve1": 1, "pve2": 1, "pve3": 1, "pve4": 0})
    cost = write_amplification.predict(**SMALL)["cost_bytes"]
    result = fake.measure(device_write_budget_bytes=3 * cost - 1)
    assert result["members"] == ["pve1", "pve2", "pve3"], "one that is offline does not pay"
    assert "each of 3 nodes" in result["cases"][0]["skipped"] and result["idle"] is None
    assert fake.measure(device_write_budget_bytes=3 * cost)["cases"][0]["skipped"] is None


def test_leftovers_of_this_node_are_removed_and_those_of_others_named(fake: Fake) -> None:
    mine, other = (f"pveguard-write-amplification-{name}.tmp.9" for name in ("pve1", "pve10"))
    alike = "pveguard-write-amplification-pve1.cfg"
    for name in (mine, other, alike):
        (fake.pve / name).write_bytes(b"x")
    result = fake.measure(cases=[WORST])
    assert result["removed_leftovers"] == [mine]
    assert {other, alike} <= set(fake.files()) and mine not in fake.files()
    assert any(mine in note and "removed now" in note for note in result["notes"])
    assert any(other in note and "'rm'" in note for note in result["notes"])


def test_one_probe_at_a_time(fake: Fake) -> None:
    before = fake.files()
    with write_amplification._only_one(fake.root / "run"):
        with pytest.raises(PveguardError, match="another probe runs on this node"):
            fake.measure()
    assert fake.files() == before
    fake.measure()


def in_child(act: Callable[..., Any]) -> Callable[..., Any]:
    """In place of what the writing process does: make the file, then ``act``."""

    def blocks(writing: Any, _caller: Any) -> dict[str, Any]:
        writing.file.path.write_bytes(b"x")
        act()
        return {"bytes": 1, "wal_bytes": None, "stopped": False}

    return blocks


def test_a_write_that_does_not_come_back(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fake.files()
    monkeypatch.setattr(write_amplification._Writing, "blocks", in_child(lambda: threading.Event().wait()))
    with pytest.raises(PveguardError, match="has not come back within 0.3 s.*journalctl -u pve-cluster"):
        fake.measure(stall_s=0.3)
    assert fake.files() == before


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_the_file_is_removed(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, ending: signal.Signals
) -> None:
    before, probe = fake.files(), os.getpid()

    def hit() -> None:
        os.kill(probe, ending)
        threading.Event().wait()

    # A run of the tests under nohup ignores SIGHUP, and so would the probe.
    inherited = signal.signal(ending, signal.SIG_DFL)
    try:
        monkeypatch.setattr(write_amplification._Writing, "blocks", in_child(hit))
        with pytest.raises(PveguardError, match=f"ended by signal {int(ending)}"):
            fake.measure()
        assert fake.files() == before and signal.getsignal(ending) == signal.SIG_DFL
    finally:
        signal.signal(ending, inherited)


def test_a_case_that_costs_more_than_predicted_is_stopped(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is written more than what is left after the second of four blocks."""
    seen: list[int] = []

    def so_far(self: Any, before: Any) -> int:
        seen.append(1)
        return 10**9 * (len(seen) >= 2)

    monkeypatch.setattr(write_amplification._Meter, "so_far", so_far)
    before = fake.files()
    result = fake.measure()
    (case,) = result["cases"]
    assert case["skipped"].startswith("stopped after 2048 of 4096 bytes") and case["factor"] is None
    assert "device_write_budget_bytes (67108864)" in case["skipped"]
    assert fake.files() == before


def test_noise_of_others_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"in_memory": False, "device_number": "1:1", "device": "sda", "filesystem": "ext4"}
    meter = write_amplification._Meter("db", "pid", where, "/store", lambda argv, **_: Result(0, "", ""))
    meter._idle = {"seconds": 10.0, "device_bytes": 1_000_000, "transactions": 3}

    def reading(clock: float, device: int, daemon: int = 0) -> dict[str, Any]:
        pmxcfs = {"pid": 1, "start_ticks": 1, "write_bytes": daemon}
        return {"clock": clock, "version": 1, "device": device, "store": None, "pmxcfs": pmxcfs}

    entry = write_amplification._entry({"file_bytes": 1000, "block_bytes": 1000})
    answer = {"wal_bytes": 5, "stopped": False}
    meter.fill(entry, reading(0, 0), reading(2, 500_000, 77), reading(3, 700_000), answer)
    assert (entry["device_bytes"], entry["noise_bytes"], entry["factor"]) == (500_000, 200_000, 300.0)
    assert entry["pmxcfs_write_bytes"] == 77 and entry["removal_device_bytes"] == 200_000
    assert meter.spent(reading(0, 0), reading(3, 700_000)) == 400_000
    notes = meter.notes({"database_in_memory": False, "cases": [entry], "idle": meter._idle, "members": ["a", "b"]})
    assert any("the factor is uncertain" in note for note in notes)
    assert any("3 transactions of others" in note for note in notes)
    # More noise than bytes is no negative factor.
    meter.fill(entry, reading(0, 0), reading(2, 100), reading(3, 100), answer)
    assert entry["factor"] == 0


def test_it_is_noise_to_what_saves_the_file_system() -> None:
    """A probe on a node with its database in RAM must not be saved to the disk as a change, nor restored."""
    from ansible.module_utils.pveguard.pmxcfs import tree

    assert tree.Noise().matches(f"{write_amplification.PREFIX}pve1.tmp.4711")


# -- module, role, text


def test_the_module_refuses_where_nothing_is_mounted(run_module: Callable[..., dict[str, Any]]) -> None:
    if pve_file.is_mounted():
        pytest.skip("this machine has an /etc/pve")
    result = run_module("write_amplification")
    assert result["failed"] and "/etc/pve is not mounted" in result["msg"]


def test_one_member_of_each_cluster_measures() -> None:
    down = node(pmxcfs={"mode": "down", "quorate": None})
    lost = node(pmxcfs={"mode": "cluster", "quorate": False})
    alone = node(pmxcfs={"mode": "local", "quorate": None})
    other = node(corosync__cluster_name="other")
    nodes = {"a": down, "b": lost, "c": node(), "d": node(), "e": alone, "f": other, "g": alone, "h": None}
    assert write_amplification.measuring_hosts(nodes) == ["c", "e", "f", "g"]


def test_text() -> None:
    cases = write_amplification.plan([SMALL, WORST], write_amplification.BUDGET_BYTES, 1, "the_variable")
    cases[0].update(
        transactions=5, pmxcfs_write_bytes=40960, device_bytes=73728, noise_bytes=0, factor=18.0, wal_bytes=1
    )
    lines = write_amplification.render({"cases": cases, "notes": ["a note"]})
    assert lines[0].split("  ")[0] == "file" and lines[-1] == "a note"
    assert lines[2].split() == ["4", "KiB", "1", "KiB", "5", "40", "KiB", "72", "KiB", "0", "B", "18"]
    assert "unknown" in lines[3] and lines[4].startswith("1 MiB in writes of 512 B: it is predicted to cost")
    planned = write_amplification.plan([SMALL], write_amplification.BUDGET_BYTES, 1, "x")
    assert "not written; it would cost" in write_amplification.render({"cases": planned, "notes": []})[-1]
