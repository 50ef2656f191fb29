# SPDX-License-Identifier: Apache-2.0
"""The rooms of module_utils/pveguard, from the lowest up: a core imports from its own room and from lower ones only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORES = ROOT / "module_utils/pveguard"
#: Each room, and the lower ones that it may know. A new arrow is a decision: make it here, and say why in the commit.
ROOMS: dict[str, tuple[str, ...]] = {
    "base": (),
    "formats": ("base",),
    "pmxcfs": ("base", "formats"),
    "disk": ("base", "pmxcfs"),
    "ha": ("base", "formats", "pmxcfs"),
    "corosync": ("base", "formats", "pmxcfs", "ha"),
    "state": ("base", "formats", "pmxcfs", "ha"),
    # Its facts are part of node_info, so it lies below the cluster.
    "diet": ("base", "disk"),
    # What is set on a node, and what Proxmox VE needs of it. Its facts come by a module of their own.
    "hardening": ("base", "formats", "pmxcfs"),
    "writes": ("base", "formats", "pmxcfs", "disk", "corosync"),
    # What a node writes is among its facts.
    "cluster": ("base", "formats", "pmxcfs", "ha", "corosync", "state", "writes", "diet"),
    "gates": ("base", "disk"),
    "report": ("base", "pmxcfs", "disk", "ha", "corosync", "state", "diet", "hardening", "gates", "writes"),
    # On the controller only.
    "filters": tuple(
        "base formats pmxcfs ha corosync state hardening diet cluster gates writes report".split(),
    ),
}


def arrows(cores: Path) -> Iterator[tuple[str, str]]:
    """Each import of a core, as (path below the cores, module below the cores), inside functions too."""
    for path in sorted(cores.rglob("*.py")):
        here = path.relative_to(cores)
        for found in ast.walk(ast.parse(path.read_text())):
            if isinstance(found, ast.Import):
                names = [alias.name for alias in found.names]
            elif isinstance(found, ast.ImportFrom) and found.level == 0:
                names = [found.module or ""]
            elif isinstance(found, ast.ImportFrom):
                package = here.parts[: len(here.parts) - found.level]
                below = [*package, *(found.module or "").split(".")] if found.module else [*package]
                named = [".".join([*below, alias.name]) for alias in found.names]
                yield from ((str(here), name) for name in (named if not found.module else [".".join(below)]))
                continue
            else:
                continue
            for name in names:
                assert not name.startswith("ansible.module_utils.pveguard"), f"{here}: cores import each other relatively"


def against_the_rooms(cores: Path) -> list[str]:
    """What a core imports from a room that its own must not know."""
    found = []
    for here, name in arrows(cores):
        own, other = Path(here).parts[0], name.split(".")[0]
        if own != other and other not in ROOMS[own]:
            found.append(f"{here} imports {name}")
    return found


def test_rooms_know_only_lower_rooms() -> None:
    order = list(ROOMS)
    for room, known in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in known), room
    assert {path.name for path in CORES.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    assert [path.name for path in CORES.glob("*.py")] == ["__init__.py"]
    assert not against_the_rooms(CORES)


def test_no_room_is_allowed_what_it_does_not_use() -> None:
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for here, name in arrows(CORES):
        used[Path(here).parts[0]].add(name.split(".")[0])
    assert {room: set(known) - used[room] for room, known in ROOMS.items() if set(known) - used[room]} == {}


@pytest.mark.parametrize(
    "line",
    ["from ..report import pages", "from ..state.store import Store", "def f():\n    from ..cluster import plan"],
)
def test_an_import_of_a_higher_room_is_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/errors.py").write_text(f"{line}\n")
    (found,) = against_the_rooms(tmp_path)
    assert found.startswith("base/errors.py imports ")
