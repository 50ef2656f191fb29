# SPDX-License-Identifier: Apache-2.0
"""The status: one screen that is true, the same as metrics, and HA resources that nobody would recover."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.findings import read

from tests.findings import finding

from .conftest import ROOT, Node, fill

HA = b"vm: 100\n\tstate started\n\nct: 101\n\tstate started\n"


def status(node: Node, capsys: pytest.CaptureFixture[str], rc: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert node.command("status", "--json") == rc
    return dict(json.loads(capsys.readouterr().out))


def screen(node: Node, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    node.command("status", *argv)
    return capsys.readouterr().out


def parse(text: str) -> dict[str, float]:
    """Strict reading of the text format: HELP, TYPE and one sample for each name, in that order."""
    found: dict[str, float] = {}
    lines = text.split("\n")
    assert lines.pop() == "" and len(lines) % 3 == 0
    for first, second, third in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        name = re.fullmatch(r"# HELP (pveguard_state_[a-z_]+) [A-Z][^\\\n]*\.", first)
        assert name, first
        kind = re.fullmatch(rf"# TYPE {name[1]} (gauge|counter)", second)
        assert kind and (kind[1] == "counter") == name[1].endswith("_total"), second
        sample = re.fullmatch(rf"{name[1]} (-?[0-9]+(?:\.[0-9]+)?)", third)
        assert sample and name[1] not in found, third
        found[name[1].removeprefix("pveguard_state_")] = float(sample[1])
    return found


@pytest.fixture
def watched(ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A node with a watcher whose clock the test moves; ``run(seconds)`` is its loop."""

    class Watched:
        def __init__(self) -> None:
            self.node = ram_node
            self.watcher = ps.Watcher(ram_node.paths, ram_node.config)
            self.now = 1000.0

        def run(self, seconds: float) -> None:
            end = self.now + seconds
            while self.now < end:
                self.watcher.tick(self.now)
                self.watcher._measure(self.now)
                self.now += self.watcher.poll

        def metrics(self) -> dict[str, float]:
            return parse(Path(ram_node.paths.metrics).read_text())

    # The directory that stands for the RAM file system lies on a busy disk.
    monkeypatch.setattr(ps, "fill", lambda paths: (256 * ps.MIB, 2 * ps.MIB))
    (ram_node.root / "etc/pve/.members").write_text(json.dumps({"nodename": "pve1", "version": 0}))
    made = Watched()
    made.watcher.members.look()
    made.run(2)
    yield made
    made.watcher.finish()


# -- the screen


def test_everything_saved(
    ps: ModuleType, watched: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.node.w.write("datacenter.cfg", b"x")
    watched.run(3)
    found = status(watched.node, capsys)
    assert (found["state"], found["would_lose"], found["unsaved_files"]) == ("enabled", [], 0)
    assert (found["lag_seconds"], found["lag_versions"]) == (0, 0)
    assert found["answers"] and found["quorate"] and found["ready"] and found["watcher_running"]
    assert found["would_restore"] == {
        "source": "replica",
        "root_version": watched.node.w.version,
        "problems": [],
    }
    out = screen(watched.node, capsys)
    for line in (
        r"^RAM state      enabled, healthy$",
        r"^RAM            mounted, [0-9.]+ of [0-9]+ MiB used",
        r"^daemon         runs, stand-alone, ready$",
        r"^last change    \d{4}-",
        r"^last save      \d{4}-.* \([0-9]+ since \d{4}-",
        r"^lag            0 s, 0 versions \(live (\d+), saved \1\)$",
        r"^generations    2: 2 verified:$",
        r"^  \S+-enable  lineage 1  version \d+  standalone  \d{4}-\S+  good$",
        r"^would restore  the replica, version \d+: passes verification$",
        r"^if power failed now you would lose: nothing$",
    ):
        assert re.search(line, out, re.MULTILINE), f"{line}\n{out}"
    assert len(out.splitlines()) <= 24


def test_what_a_power_cut_would_lose(
    ps: ModuleType, watched: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    w = watched.node.w
    for i in range(12):
        w.write(f"file{i:02}", b"x")
    w.delete("user.cfg")
    w.write("nodes/pve1/lrm_status", b"beat")
    now = int(time.time())
    w.db.execute("UPDATE tree SET mtime=? WHERE name LIKE 'file%'", (now - 3,))
    # The last save was longer ago than the change.
    for suffix in ("", "-wal"):
        if os.path.exists(watched.node.paths.replica + suffix):
            os.utime(watched.node.paths.replica + suffix, (now - 60, now - 60))
    watched.watcher.status["last_save"] = ps.utc(now - 60)
    watched.watcher._publish()
    found = status(watched.node, capsys)
    assert found["would_lose"] == [*(f"file{i:02}" for i in range(12)), "user.cfg"]
    assert found["unsaved_files"] == 13 and 3 <= found["lag_seconds"] < 30 and found["lag_versions"] >= 14
    assert "you would lose: file00, file01" in screen(watched.node, capsys)
    assert "file09 and 3 more" in screen(watched.node, capsys)


def test_what_could_not_be_synced_would_be_lost(
    ps: ModuleType, watched: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed sync leaves pages in memory that everybody can read and no power cut spares."""
    write, saved = ps.Store.write, dict(watched.watcher.store.rows())

    def unsynced(store: Any, change: Any, blobs: Any) -> None:
        write(store, change, blobs)
        raise ps.StoreError("config.db: disk I/O error")

    monkeypatch.setattr(ps.Store, "write", unsynced)
    # SQLite's own connection goes back to what was before, whatever others find in the log.
    monkeypatch.setattr(ps.Store, "rows", lambda store: saved)
    watched.node.w.write("storage.cfg", b"dir: new")
    watched.node.w.delete("user.cfg")
    watched.run(3)
    found = status(watched.node, capsys, rc=1)
    assert found["would_lose"] == ["storage.cfg", "user.cfg"] and found["unsaved_files"] == 2
    assert "you would lose: storage.cfg, user.cfg" in screen(watched.node, capsys)

    monkeypatch.undo()
    watched.watcher.store.close(checkpoint=False)
    watched.run(40)
    assert json.loads(Path(watched.node.paths.watch_file).read_text())["unsaved_paths"] == []


def test_noise_alone_would_not_be_lost(watched: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        watched.node.w.write("nodes/pve1/lrm_status", b"%d" % i)
    found = status(watched.node, capsys)
    assert found["would_lose"] == [] and found["lag_seconds"] == 0 and found["lag_versions"] == 5


def test_a_node_that_failed_closed_says_so_with_the_fix(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    ram_node.power_cut()
    Path(ram_node.paths.replica).write_bytes(b"garbage")
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    out = screen(ram_node, capsys)
    assert "RAM state      failed" in out and "fix            pve-state restore --generation latest" in out
    assert re.search(r"would restore  NOTHING, .*not a SQLite|would restore  NOTHING, .*not a database", out)
    assert f"good is generation {ps.generations(ram_node.paths)[0].name}" in out
    assert "daemon         does not run" in out
    # The metrics tell it too, although no watcher runs.
    told = parse(Path(ram_node.paths.metrics).read_text())
    assert (told["enabled"], told["healthy"], told["ready"]) == (1, 0, 0)


STARTS = {"ActiveState": "activating", "SubState": "start"}


@pytest.mark.parametrize(
    ("unit", "shown", "state"),
    [
        ("WATCH_UNIT", STARTS, "starting"),
        ("WATCH_UNIT", {"ActiveState": "activating", "SubState": "start-pre"}, "starting"),
        ("STATE_UNIT", STARTS, "starting"),
        # Between two failures, and in the start after one.
        ("WATCH_UNIT", {"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "0"}, "failed"),
        ("WATCH_UNIT", {**STARTS, "NRestarts": "3"}, "failed"),
        ("WATCH_UNIT", {"ActiveState": "failed", "SubState": "failed"}, "failed"),
        ("WATCH_UNIT", {"ActiveState": "active", "SubState": "running", "NRestarts": "3"}, "enabled"),
    ],
)
def test_units_that_are_being_started_are_no_failure(
    ps: ModuleType,
    ram_node: Node,
    unit: str,
    shown: dict[str, str],
    state: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = getattr(ps, unit)
    ram_node.shown[name] = shown
    found = status(ram_node, capsys, rc=1 if state == "failed" else 0)
    assert found["state"] == state and found["units"][name] == shown["ActiveState"]
    assert (name in found["reason"]) == (state != "enabled")
    out = screen(ram_node, capsys)
    assert f"RAM state      {state}" in out
    assert ("\nfix  " in out) == (state == "failed") and ("\nreason  " in out) == (state != "enabled")
    assert parse(screen(ram_node, capsys, "--prometheus"))["healthy"] == (state != "failed")


def test_a_daemon_that_is_being_started_is_no_failure(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    ram_node.stop_daemon()
    ram_node.shown[ps.STATE_UNIT] = {"ActiveState": "active"}
    ram_node.shown[ps.PVE_CLUSTER] = STARTS
    assert status(ram_node, capsys)["state"] == "starting"
    ram_node.shown[ps.PVE_CLUSTER] = {"ActiveState": "activating", "SubState": "auto-restart"}
    assert status(ram_node, capsys, rc=1)["reason"] == "the daemon does not run"


def test_a_state_on_disk(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.start_daemon()
    fill(node.w)
    found = status(node, capsys)
    assert found["state"] == "disabled" and found["would_lose"] is None
    out = screen(node, capsys)
    assert "RAM            not mounted" in out and "from the database on disk" in out
    assert "power failed" not in out


def test_no_quorum_is_on_the_screen(watched: Any, capsys: pytest.CaptureFixture[str]) -> None:
    node = watched.node
    conf = Path(node.paths.corosync_conf)
    conf.parent.mkdir(parents=True)
    conf.write_text("totem {\n  config_version: 3\n}\n")
    node.members = {"nodename": "pve1", "cluster": {"quorate": 0}, "nodelist": {}}
    assert "member of a cluster, NO QUORUM" in screen(node, capsys)
    assert status(node, capsys)["quorate"] is False
    node.members = {"nodename": "pve1", "cluster": {"quorate": 1}, "nodelist": {}}
    assert "member of a cluster, quorate" in screen(node, capsys)


def test_without_a_watcher_the_times_come_from_the_files(
    ps: ModuleType, watched: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    watched.node.w.db.execute("UPDATE tree SET mtime=1700000000 WHERE name='storage.cfg'")
    # Directories change with locks, the root with everything; tomorrow is not known yet.
    watched.node.w.db.execute("UPDATE tree SET mtime=1750000000 WHERE type=4")
    watched.node.w.db.execute("UPDATE tree SET mtime=? WHERE name='user.cfg'", (int(time.time()) + 86400,))
    assert watched.node.command("save", "--deep", "--json") == 0
    Path(watched.node.paths.watch_file).unlink()
    found = status(watched.node, capsys)
    assert found["last_real_change"] == ps.utc(1700000000)
    assert abs(ps.epoch(found["last_save"]) - time.time()) < 60


# -- generations


def test_generations_are_verified_once_a_boot_and_again_when_they_change(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        ram_node.w.write("x", b"%d" % i)
        assert ram_node.command("save", "--generation", "--json") == 0
    looked: list[str] = []
    real = ps.Generation.problems

    def problems(g: Any, member: bool = False) -> list[str]:
        looked.append(g.name)
        return list(real(g, member))

    monkeypatch.setattr(ps.Generation, "problems", problems)
    monkeypatch.setattr(ps, "CHECK_SECONDS", 0.0)
    Path(ram_node.paths.verified).unlink()
    assert [g["problems"] for g in status(ram_node, capsys)["generation_list"]] == [None] * 8
    assert "8 not looked at in this boot ('pve-state verify')" in screen(ram_node, capsys)
    monkeypatch.setattr(ps, "CHECK_SECONDS", 60.0)
    found = status(ram_node, capsys)
    assert [g["problems"] for g in found["generation_list"]] == [[]] * 8 and len(looked) == 8
    assert "generations    8: 8 verified; the newest 5:" in screen(ram_node, capsys) and len(looked) == 8
    damaged = found["generation_list"][2]["name"]
    path = Path(f"{ram_node.paths.generations}/{damaged}.db")
    path.write_bytes(path.read_bytes()[:-4096])
    found = status(ram_node, capsys)
    assert len(looked) == 9 and found["generations_damaged"] == 1
    out = screen(ram_node, capsys)
    assert "7 verified, 1 DAMAGED" in out and re.search(rf"{damaged} .* BAD: ", out)
    assert ram_node.command("verify", "--json") == ps.EXIT_DAMAGED and len(looked) == 17
    capsys.readouterr()
    assert ram_node.command("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["generations"]
    assert [bool(g["problems"]) for g in listed] == [i == 2 for i in range(8)] and listed[0]["checked"]


def test_generations_from_before_a_join_are_good_files_and_no_state_of_a_member(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [g.name for g in ps.generations(ram_node.paths)]
    conf = b"totem {\n  cluster_name: x\n  config_version: 3\n}\n"
    host = Path(ram_node.paths.corosync_conf)

    def listed(*argv: str) -> tuple[list[tuple[str, Any, Any, Any]], list[str]]:
        capsys.readouterr()
        assert ram_node.command("list", *argv, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        entries = [(g["name"], g["verified"], g["restorable"], g["refused"]) for g in found["generations"]]
        return entries, found["message"].splitlines()

    assert [entry[1:] for entry in listed("--verify")[0]] == [(True, True, None)] * len(before)
    host.parent.mkdir(parents=True)
    host.write_bytes(conf)
    ram_node.w.write("corosync.conf", conf)
    assert ram_node.command("save", "--generation", "--json") == 0
    after = ps.generations(ram_node.paths)[0].name

    why = "from before the join: it has no corosync.conf, but this node is a member of a cluster"
    entries, lines = listed("--verify")
    assert entries == [(after, True, True, None), *((name, True, False, why) for name in before)]
    assert lines[0].endswith("  good") and all(
        line.endswith(f"  good, not restorable here: {why}") for line in lines[1:]
    )
    assert status(ram_node, capsys)["generation_list"][1]["refused"] == why
    # What was not looked at is not called good for it, nor restorable.
    Path(ram_node.paths.verified).unlink()
    entries, lines = listed()
    assert entries == [(after, None, None, None), *((name, None, False, why) for name in before)]
    assert all("  not verified, not restorable" in line for line in lines[1:])
    # Damage is damage.
    path = Path(f"{ram_node.paths.generations}/{before[0]}.db")
    path.write_bytes(path.read_bytes()[:-4096])
    entries, lines = listed("--verify")
    assert entries[1] == (before[0], False, False, why) and "  BAD: " in lines[1] and "good" not in lines[1]

    ram_node.power_cut()
    ram_node.mount()
    assert ram_node.command("restore", "--generation", before[-1], "--json") == ps.EXIT_DAMAGED
    assert "no corosync.conf" in json.loads(capsys.readouterr().out)["error"]
    # Where nothing can be restored, none of them is proposed.
    Path(ram_node.paths.replica).write_bytes(b"garbage")
    assert f"good is generation {after}" in screen(ram_node, capsys)
    for suffix in ("db", "json"):
        Path(f"{ram_node.paths.generations}/{after}.{suffix}").unlink()
    assert "no generation is known that could be restored" in screen(ram_node, capsys)


def test_damage_that_leaves_size_and_time_is_found_by_verify(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(ram_node, capsys)["generations_damaged"] == 0
    g = ps.generations(ram_node.paths)[0]
    before = os.stat(g.db)
    with open(g.db, "r+b") as handle:
        handle.seek(before.st_size - 10)
        handle.write(b"rot")
    os.utime(g.db, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ram_node.command("verify", "--json") == ps.EXIT_DAMAGED
    assert status(ram_node, capsys)["generations_damaged"] == 1


# -- HA


def mask(node: Node, *units: str) -> None:
    folder = node.root / "etc/systemd/system"
    folder.mkdir(parents=True, exist_ok=True)
    for unit in units or ("pve-ha-lrm", "pve-ha-crm"):
        (folder / f"{unit}.service").symlink_to("/dev/null")


def test_a_resource_under_masked_ha_is_an_error_once_a_metric_and_a_line_with_the_fix(
    ps: ModuleType, watched: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[str, str]] = []
    monkeypatch.setattr(ps, "log", lambda level, message: logged.append((level, message)))
    node = watched.node
    mask(node)

    def errors() -> list[str]:
        found = [message for level, message in logged if level == "error"]
        logged.clear()
        return found

    node.w.write("ha/resources.cfg", b"")
    watched.run(30)
    assert errors() == [] and watched.metrics()["ha_resources_while_masked"] == 0
    node.w.write("ha/resources.cfg", HA[:26])
    watched.run(60)
    (error,) = errors()
    assert "vm:100" in error and "pve-ha-lrm" in error and "ha-manager remove vm:100" in error
    assert "ha_state: enabled" in error
    assert watched.metrics()["ha_resources_while_masked"] == 1
    node.w.write("ha/resources.cfg", HA)
    node.w.write("storage.cfg", b"another change")
    watched.run(60)
    (error,) = errors()
    assert "vm:100, ct:101" in error and watched.metrics()["ha_resources_while_masked"] == 2
    found = status(node, capsys)
    assert found["warnings"] == [error] and found["ha_resources_while_masked"] == 2
    assert f"warning        {error}" in screen(node, capsys)
    said = finding(map(read, found["findings"]), "ha-masked-with-resources")
    assert said.sentence == error and [each["id"] for each in found["findings"]].count(said.id) == 1
    # HA brought back, then taken away again with the resources.
    for unit in ("pve-ha-lrm", "pve-ha-crm"):
        (node.root / f"etc/systemd/system/{unit}.service").unlink()
    watched.run(11)
    assert errors() == [] and watched.metrics()["ha_resources_while_masked"] == 0
    assert "site.yml again" in status(node, capsys)["warnings"][0]
    mask(node, "pve-ha-lrm")
    watched.run(11)
    assert len(errors()) == 1
    node.w.delete("ha/resources.cfg")
    watched.run(30)
    assert errors() == [] and watched.metrics()["ha_resources_while_masked"] == 0
    assert status(node, capsys)["warnings"] == []


def test_a_resource_that_was_there_before_the_watcher_is_seen(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram_node.w.write("ha/resources.cfg", HA)
    assert ram_node.command("save", "--json") == 0
    mask(ram_node)
    watcher = ps.Watcher(ram_node.paths, ram_node.config)
    for turn in range(10):
        watcher.tick(100 + turn / 4)
    assert watcher.status["ha_resources_while_masked"] == 2 and "vm:100" in watcher.status["warnings"][0]
    watcher.finish()


def test_resources_of_a_folder_of_that_name_do_not_count(ps: ModuleType, watched: Any) -> None:
    mask(watched.node)
    watched.node.w.write("sdn/resources.cfg", HA)
    watched.run(20)
    assert watched.metrics()["ha_resources_while_masked"] == 0


# -- metrics


def test_metrics_follow_the_state(ps: ModuleType, watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = watched.node
    first = watched.metrics()
    assert first["enabled"] == first["healthy"] == first["mounted"] == first["ready"] == 1
    assert first["watcher_running"] == first["pmxcfs_answers"] == first["quorate"] == 1
    assert first["lag_seconds"] == first["unsaved_files"] == first["save_failing"] == 0
    assert first["tmpfs_size_bytes"] > first["tmpfs_used_bytes"] > 0
    assert first["tmpfs_fill_ratio"] == pytest.approx(
        first["tmpfs_used_bytes"] / first["tmpfs_size_bytes"], abs=1e-4
    )
    assert first["generations"] == 2 and first["generations_damaged"] == 0 and first["lineage"] == 1
    assert abs(first["last_save_timestamp_seconds"] - time.time()) < 60

    def full(*_: Any) -> None:
        raise ps.StoreError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ps.Store, "write", full)
        node.w.write("datacenter.cfg", b"y")
        node.w.write("storage.cfg", b"y")
        watched.run(12)
        failing = watched.metrics()
    assert failing["healthy"] == failing["ready"] == 0 and failing["save_failing"] == 1
    assert failing["save_failures_total"] >= 2 and 8 < failing["lag_seconds"] < 13
    assert failing["unsaved_files"] == 2 and failing["lag_versions"] == 2
    watched.run(35)
    again = watched.metrics()
    assert (
        again["healthy"] == 1 and again["lag_seconds"] == again["unsaved_files"] == again["lag_versions"] == 0
    )
    assert again["save_failures_total"] == failing["save_failures_total"]
    assert again["saves_total"] == first["saves_total"] + 1
    assert abs(again["last_change_timestamp_seconds"] - time.time()) < 60


def test_unsaved_files_are_those_of_now(
    ps: ModuleType, watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero after a save and after one that failed and then succeeded, and it counts again after that."""
    node = watched.node

    def unsaved() -> int:
        published = json.loads(Path(node.paths.watch_file).read_text())["unsaved_files"]
        assert published == watched.watcher.status["unsaved_files"] == watched.metrics()["unsaved_files"]
        return int(published)

    seen = set()
    for content in (b"1", b"2"):
        assert unsaved() == 0
        node.w.write("datacenter.cfg", content)
        node.w.write("vzdump.cron", content)
        for _ in range(20):
            watched.run(watched.watcher.poll)
            seen.add(watched.watcher.status["unsaved_files"])
        assert unsaved() == 0

    def full(*_: Any) -> None:
        raise ps.StoreError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ps.Store, "write", full)
        node.w.write("datacenter.cfg", b"3")
        node.w.delete("vzdump.cron")
        watched.run(12)
        failures = watched.metrics()["save_failures_total"]
        assert failures >= 2 and unsaved() == 2
        node.w.write("storage.cfg", b"while it fails")
        watched.run(30)
        assert watched.metrics()["save_failures_total"] > failures
        # As last looked at: the watcher tries to save, and does not look again in between.
        assert unsaved() >= 2
    watched.run(40)
    assert watched.metrics()["healthy"] == 1 and unsaved() == 0
    # And it counts again.
    for _ in range(3):
        node.w.write("nodes/pve1/lrm_status", b"noise")
        watched.run(10)
        assert unsaved() == 0
    with monkeypatch.context() as patch:
        patch.setattr(ps.Store, "write", full)
        node.w.write("user.cfg", b"4")
        watched.run(12)
        assert unsaved() == 1
    watched.run(40)
    assert unsaved() == 0
    assert max(seen) == 2


def test_metrics_know_new_generations_and_damaged_ones(ps: ModuleType, watched: Any) -> None:
    watched.node.w.write("datacenter.cfg", b"x")
    assert watched.node.command("save", "--generation", "--json") == 0
    watched.run(16)
    assert (watched.metrics()["generations"], watched.metrics()["generations_damaged"]) == (3, 0)
    newest = ps.generations(watched.node.paths)[0]
    assert watched.metrics()["newest_generation_timestamp_seconds"] == ps.epoch(newest.manifest["time"])
    Path(newest.db).write_bytes(b"damaged")
    assert watched.node.command("verify", "--json") == ps.EXIT_DAMAGED
    watched.run(16)
    assert watched.metrics()["generations_damaged"] == 1


def test_metrics_can_be_read_by_an_exporter_and_their_age_tells_whether_somebody_is_there(
    ps: ModuleType, watched: Any
) -> None:
    path = Path(watched.node.paths.metrics)
    path.unlink()
    old = os.umask(0o077)
    try:
        while not path.exists():
            watched.run(watched.watcher.poll)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644
    written = path.stat().st_ino
    watched.run(14)
    assert path.stat().st_ino == written
    watched.run(2)
    assert path.stat().st_ino != written
    assert not list(path.parent.glob("*.tmp*"))


def test_a_daemon_that_hangs_is_not_quorate_by_hearsay(
    ps: ModuleType, watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.monotonic
    monkeypatch.setattr(ps.time, "monotonic", lambda: real() + 31)
    watched.run(16)
    told = watched.metrics()
    assert told["pmxcfs_answers"] == 0 and "quorate" not in told


def test_the_command_prints_the_same_names(
    ps: ModuleType, watched: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    watched.node.w.write("datacenter.cfg", b"x")
    watched.run(16)
    printed, written = parse(screen(watched.node, capsys, "--prometheus")), watched.metrics()
    assert set(printed) == set(written)
    assert printed == written
    assert watched.node.command("status", "--prometheus", "--json") == ps.EXIT_USAGE


def test_metrics_of_a_node_on_disk_and_after_disable(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ram_node.command("disable", "--json", "--connection", "") == 0
    told = parse(Path(ram_node.paths.metrics).read_text())
    assert (told["enabled"], told["healthy"], told["mounted"], told["ready"]) == (0, 1, 0, 0)
    assert parse(screen(ram_node, capsys, "--prometheus"))["enabled"] == 0


def test_a_watcher_that_stops_says_so(ps: ModuleType, watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.watcher.stopping = True
    monkeypatch.setattr(ps.signal, "set_wakeup_fd", lambda fd: None)
    monkeypatch.setattr(ps.signal, "signal", lambda *_: None)
    watched.watcher.loop()
    told = watched.metrics()
    assert (told["watcher_running"], told["ready"], told["enabled"]) == (0, 0, 1)


@pytest.mark.parametrize("folder", ["relative", "/etc/pve/x", 7])
def test_an_impossible_directory_for_metrics_is_refused(ps: ModuleType, folder: Any) -> None:
    with pytest.raises(ps.UsageError, match="metrics_dir"):
        ps.Config({"metrics_dir": folder})


@pytest.mark.parametrize("seconds", [0, 951782399, 951782400, 1709164800, 4107542399])
def test_times_are_read_as_they_are_written(ps: ModuleType, seconds: int) -> None:
    assert ps.epoch(ps.utc(seconds)) == seconds
    assert ps.epoch("yesterday") is None and ps.epoch(None) is None


def test_every_metric_and_every_key_is_documented(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs/ram-state.md").read_text()
    table = re.findall(r"^\| `(pveguard_state_[a-z_]+)` \|", text, re.MULTILINE)
    assert table == [f"pveguard_state_{name}" for name, *_ in ps.METRICS]
    section = text.split("### The status as JSON")[1].split("### Metrics")[0]
    keys = set(
        re.findall(
            r"`([a-z_]+)`", "".join(line.split("|")[1] for line in section.splitlines() if "|" in line)
        )
    )
    hidden = {"format", "newest_generation", "newest_generation_time", "metrics", "metrics_dir"}
    assert set(status(ram_node, capsys)) - hidden == keys


def test_findings_are_those_of_the_other_keys(ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    well = status(ram_node, capsys)
    assert well["findings"][-1]["id"] == "state-in-ram"
    ram_node.shown[ps.WATCH_UNIT] = {"ActiveState": "failed", "SubState": "failed"}
    found = status(ram_node, capsys, rc=1)
    down = finding(map(read, found["findings"]), "state-watcher-down")
    assert down == read(found["findings"][0]) and found["reason"] in down.text and down.code == found["fix"]


def test_what_the_watcher_found_is_in_the_status(
    ps: ModuleType, watched: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ps, "memory", lambda: (1 << 20, 0))
    monkeypatch.setattr(ps, "fill", lambda paths: (100 << 20, 85 << 20))
    watched.run(30)
    found = status(watched.node, capsys)
    full = finding(map(read, found["findings"]), "state-ram-nearly-full")
    assert "85 % full" in full.text and found["warnings"] == [full.sentence]
    assert f"warning        {full.sentence}" in screen(watched.node, capsys)
