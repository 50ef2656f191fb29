# SPDX-License-Identifier: Apache-2.0
"""Which generations stay: by number, by age, by what verifies; never by a clock that was set back."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.node_program import cluster_member

from .conftest import Node

DAY = 86400


@pytest.fixture
def plant(ps: ModuleType, ram_node: Node) -> Callable[[Sequence[float]], list[str]]:
    """Generations with the given ages in days, oldest version first; their names in that order."""

    def make(ages: Sequence[float]) -> list[str]:
        folder = Path(ram_node.paths.generations)
        for file in folder.iterdir():
            file.unlink()
        keep_all = ps.Config({"generations_keep": 99, "generations_max_age_days": 0})
        names = []
        for turn, age in enumerate(ages):
            ram_node.w.write("x", b"%d" % turn)
            live = ps.open_live(ram_node.paths)
            with ps.store_lock(ram_node.paths):
                made = ps.cut_generation(live, ram_node.paths, keep_all, 1, f"turn {turn}")
            path = folder / f"{made['name']}.json"
            manifest = json.loads(path.read_text())
            path.write_text(json.dumps({**manifest, "time": ps.utc(time.time() - age * DAY)}))
            names.append(made["name"])
            live.close()
        return names

    return make


def left(ps: ModuleType, node: Node, **settings: Any) -> list[str]:
    """Names that stay, oldest first."""
    ps.prune(node.paths, ps.Config(settings))
    assert len(list(Path(node.paths.generations).iterdir())) == 2 * len(ps.generations(node.paths))
    return [g.name for g in reversed(ps.generations(node.paths))]


def test_old_ones_go_and_five_stay(ps: ModuleType, ram_node: Node, plant: Any) -> None:
    names = plant([400, 300, 100, 95, 50, 40, 30, 20])
    assert left(ps, ram_node) == names[1:]
    assert left(ps, ram_node, generations_max_age_days=90) == names[3:]
    assert left(ps, ram_node, generations_max_age_days=1) == names[3:]


def test_by_number_and_age_together(ps: ModuleType, ram_node: Node, plant: Any) -> None:
    names = plant([9.5, 8.5, 7.5, 6.5, 5.5, 4.5, 3.5, 2.5, 1.5])
    assert left(ps, ram_node, generations_max_age_days=0) == names
    assert left(ps, ram_node, generations_keep=8, generations_max_age_days=365) == names[1:]
    assert left(ps, ram_node, generations_keep=8, generations_max_age_days=7) == names[3:]
    assert left(ps, ram_node, generations_keep=5, generations_max_age_days=7) == names[4:]


def test_a_clock_that_was_set_back_removes_nothing(ps: ModuleType, ram_node: Node, plant: Any) -> None:
    # Three were cut while the clock said two years ago.
    names = plant([20, 15, 730, 729, 728, 8, 6, 4, 3, 2])
    assert left(ps, ram_node, generations_max_age_days=90) == names
    # And now it says so again: none is from the future for that.
    names = plant([-730, -729, -728, -1, 3, 2, 1])
    assert left(ps, ram_node, generations_max_age_days=90) == names


def test_age_never_takes_the_last_good_one(ps: ModuleType, ram_node: Node, plant: Any) -> None:
    names = plant([500, 450, 400, 9, 8, 7, 6, 5])
    for name in names[3:]:
        Path(f"{ram_node.paths.generations}/{name}.db").write_bytes(b"damaged")
    assert left(ps, ram_node, generations_max_age_days=30) == names[2:]
    assert ps.find_generation(ram_node.paths, "latest").name == names[2]


def test_on_a_member_a_state_from_before_the_join_is_not_the_last_good_one(
    ps: ModuleType, ram_node: Node, plant: Any
) -> None:
    conf = b"totem {\n  config_version: 3\n}\n"
    host = Path(ram_node.paths.corosync_conf)
    host.parent.mkdir(parents=True)
    host.write_bytes(conf)
    ram_node.w.write("corosync.conf", conf)
    names = plant([500, 450, 9, 8, 7, 6, 5])
    for name in names[2:]:
        path = Path(f"{ram_node.paths.generations}/{name}")
        db = sqlite3.connect(f"{path}.db")
        db.execute("DELETE FROM tree WHERE name='corosync.conf'")
        db.commit()
        db.close()
        manifest = json.loads(Path(f"{path}.json").read_text())
        Path(f"{path}.json").write_text(json.dumps({**manifest, "sha256": ps.file_sha256(f"{path}.db")}))
    assert left(ps, ram_node) == names[1:]
    host.unlink()
    assert left(ps, ram_node) == names[2:]


def test_one_without_a_manifest_goes_by_number_only(ps: ModuleType, ram_node: Node, plant: Any) -> None:
    names = plant([9, 8, 7, 6, 5, 4])
    Path(f"{ram_node.paths.generations}/{names[0]}.json").unlink()
    ps.prune(ram_node.paths, ps.Config({"generations_max_age_days": 1}))
    assert len(ps.generations(ram_node.paths)) == 6
    ps.prune(ram_node.paths, ps.Config({"generations_keep": 5}))
    assert [g.name for g in reversed(ps.generations(ram_node.paths))] == names[1:]


@pytest.mark.parametrize("stored", [True, False])
def test_what_a_join_saved_before_is_a_good_generation(ps: ModuleType, ram_node: Node, stored: bool) -> None:
    """The other program that writes generations; on a node without a store yet it knows of no lineage."""
    program = cluster_member()
    if not stored:
        Path(ram_node.paths.state_file).unlink()
    name = program.save_generation(program.Node(ram_node.root), "pve1", "before-join")
    (found,) = [g for g in ps.generations(ram_node.paths) if g.name == name]
    assert found.problems() == [] and found.manifest["reason"] == "before-join"
    assert ram_node.command("verify", "--generation", name, "--json") == 0


@pytest.mark.parametrize("days", [-1, 36501])
def test_impossible_ages_are_refused(ps: ModuleType, days: int) -> None:
    with pytest.raises(ps.UsageError, match="generations_max_age_days"):
        ps.Config({"generations_max_age_days": days})
