# SPDX-License-Identifier: Apache-2.0
"""What goes to a node needs the standard library alone: Jinja2 and the pages stay on the controller."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UTILS = ROOT / "module_utils"
PREFIX = "ansible.module_utils."
MODULES = sorted((ROOT / "library").glob("*.py"))


def imported(path: Path, package: str) -> Iterator[str]:
    """Absolute names of what ``path``, a module of ``package``, imports anywhere in it; names from a module too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            yield base
            yield from (f"{base}.{each.name}" for each in node.names)


def core(name: str) -> Path | None:
    """The file of ``pveguard...``, None when the name is no module of ours."""
    base = UTILS.joinpath(*name.split("."))
    return next((each for each in (base.with_suffix(".py"), base / "__init__.py") if each.is_file()), None)


def shipped(path: Path, package: str = "") -> tuple[dict[str, Path], set[str]]:
    """What Ansible sends with the module ``path``: our cores by name, and what all of it imports from elsewhere."""
    cores: dict[str, Path] = {}
    others: set[str] = set()
    todo = [(path, package)]
    while todo:
        file, package = todo.pop()
        for name in imported(file, package):
            ours = name.removeprefix(PREFIX)
            found = core(ours) if ours.startswith("pveguard") else None
            if found is None:
                others.add(name.partition(".")[0])
            elif ours not in cores:
                cores[ours] = found
                todo.append((found, ours if found.name == "__init__.py" else ours.rpartition(".")[0]))
    return cores, others


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_needs_the_standard_library_alone(path: Path) -> None:
    cores, others = shipped(path)
    assert cores, "each module is a shell around a core"
    assert others <= {*sys.stdlib_module_names, "ansible", "pveguard"}, f"{path.name}: {sorted(cores)}"


def test_the_renderer_would_be_found() -> None:
    """What the other test does not see must be there to be seen."""
    cores, others = shipped(ROOT / "module_utils/pveguard/filters/gate.py", "pveguard.filters")
    assert "pveguard.report.pages" in cores and "jinja2" in others
