# SPDX-License-Identifier: Apache-2.0
"""What holds for every Python file of the product: its size, the size of its functions, who imports whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.loading import load_file

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES = 800
FUNCTION_LINES = 80
#: A function may be longer if its docstring has a sentence that begins so and says why.
REASON = "Long because "
#: Generated, not written.
GENERATED = {"requirements.lock", "requirements-build.lock"}

#: Where the double of pmxcfs has its package, which is a top-level one on a node.
DOUBLE = "lab/packages/pve-cluster/root/usr/lib/pve-cluster-lab"

product = load_file("scripts/product_files.py")


@pytest.fixture(scope="module")
def files() -> list[str]:
    found: list[str] = product.product_files()
    return found


@pytest.fixture(scope="module")
def python_files() -> list[str]:
    found: list[str] = product.python_files()
    return found


def parse(name: str, root: Path = ROOT) -> ast.Module:
    return ast.parse((root / name).read_bytes(), name)


def test_python_is_found_by_extension_and_by_first_line(python_files: list[str]) -> None:
    expected = {"library/pve_file.py", "scripts/pve-state", "lab/packages/pve-cluster/root/usr/bin/pmxcfs"}
    assert expected <= set(python_files)
    assert not [name for name in python_files if name.startswith(("tests/", "lab/tests/"))]
    assert "scripts/lint" not in python_files


# --- sizes ----------------------------------------------------------------------------------------------------


def test_no_file_is_too_long(files: list[str]) -> None:
    lines = {name: (ROOT / name).read_bytes().count(b"\n") for name in files if name not in GENERATED}
    too_long = {name for name, count in lines.items() if count > FILE_LINES}
    assert too_long == set(), f"more than {FILE_LINES} lines: split by subject"


def long_functions(tree: ast.Module) -> Iterator[str]:
    """Functions above the limit whose docstring does not say why."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        count = (node.end_lineno or node.lineno) - node.lineno + 1
        if count > FUNCTION_LINES and REASON not in " ".join((ast.get_docstring(node) or "").split()):
            yield f"{node.name} ({count} lines)"


def test_no_function_is_too_long(python_files: list[str]) -> None:
    found = {name: list(long_functions(parse(name))) for name in python_files}
    assert {name: functions for name, functions in found.items() if functions} == {}


@pytest.mark.parametrize(("lines", "doc", "found"), [(80, "", 0), (81, "", 1), (81, '"""x Long\n    because of y."""', 0)])
def test_the_length_of_a_function_is_seen(lines: int, doc: str, found: int) -> None:
    body = [f"    {doc or 'pass'}"]
    text = "\n".join(["def f():", *body, *["    pass"] * (lines - 1 - "\n".join(body).count("\n") - 1)])
    assert len(text.split("\n")) == lines
    assert len(list(long_functions(ast.parse(text)))) == found


# --- imports --------------------------------------------------------------------------------------------------


def search_path(name: str) -> list[str]:
    """Folders in which the imports of a file are looked for: its own, and those that programs put on their path."""
    own = name.rpartition("/")[0]
    return [own, "", "module_utils", "molecule/shared", "bench", DOUBLE]


def resolve(dotted: str, folders: list[str], names: set[str]) -> str | None:
    """The file of the product that is the module ``dotted``, if it is one."""
    path = dotted.removeprefix("ansible.module_utils.").replace(".", "/")
    for folder in folders:
        for tail in (f"{path}.py", f"{path}/__init__.py"):
            if (found := f"{folder}/{tail}".lstrip("/")) in names:
                return found
    return None


def imported(name: str, tree: ast.Module, names: set[str]) -> set[str]:
    """Files of the product that ``name`` imports, anywhere in it: at its head, in functions, for type checkers."""
    folders = search_path(name)
    found: set[str | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {resolve(alias.name, folders, names) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            where, base = folders, node.module or ""
            if node.level:
                where = ["/".join(name.split("/")[: -node.level])]
            for alias in node.names:
                # A module of that package, else a name in it.
                found.add(resolve(f"{base}.{alias.name}".lstrip("."), where, names) or resolve(base or "__init__", where, names))
    return {path for path in found if path is not None}


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of files that import each other (strongly connected components), and files that import themselves."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group = sorted(stack[at:])
            del stack[at:]
            if len(group) > 1 or node in arrows.get(node, ()):
                found.append(group)

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def test_no_import_circle(python_files: list[str]) -> None:
    names = set(python_files)
    arrows = {name: imported(name, parse(name), names) for name in python_files}
    # The arrows of each part are seen, so that an empty answer below means something.
    for source, target in {
        "lab/labs.py": "lab/store.py",
        "bench/power_cuts.py": "lab/labs.py",
        "bench/observation.py": "bench/ram_subjects.py",
        "lab/packages/pve-cluster/root/usr/bin/pmxcfs": f"{DOUBLE}/pmxcfs_lab/daemon.py",
    }.items():
        assert target in arrows[source], f"{source} no longer imports {target}, or the search is broken"
    for folder in ("library/", "filter_plugins/", "scripts/"):
        targets = {target for name in python_files if name.startswith(folder) for target in arrows[name]}
        assert any(target.startswith("module_utils/") for target in targets), folder
    assert circles(arrows) == []


def test_a_circle_is_found_wherever_the_import_stands(tmp_path: Path) -> None:
    texts = {
        "module_utils/pveguard/__init__.py": "",
        "module_utils/pveguard/base/__init__.py": "",
        "module_utils/pveguard/base/a.py": "from ..state.b import thing",
        "module_utils/pveguard/state/__init__.py": "",
        "module_utils/pveguard/state/b.py": "def late():\n    from ansible.module_utils.pveguard.base import a",
        "lab/__init__.py": "",
        "lab/x.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .y import Y",
        "lab/y.py": "from . import x, z",
        "lab/z.py": "import os",
        "bench/p.py": "import q",
        "bench/q.py": "from lab.z import os\nimport json",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    arrows = {name: imported(name, parse(name, tmp_path), set(texts)) for name in texts}
    assert circles(arrows) == [
        ["lab/x.py", "lab/y.py"],
        ["module_utils/pveguard/base/a.py", "module_utils/pveguard/state/b.py"],
    ]
    assert arrows["bench/q.py"] == {"lab/z.py"} and arrows["bench/p.py"] == {"bench/q.py"}


# --- types ----------------------------------------------------------------------------------------------------


def test_every_python_file_is_type_checked(python_files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    typecheck = load_file("scripts/typecheck.py")
    groups, homeless = typecheck.grouped(python_files)
    assert homeless == []
    assert all(groups.values()), "a group without files"
    assert {file for files in groups.values() for file in files} == set(python_files)
    assert typecheck.grouped(["elsewhere/program"])[1] == ["elsewhere/program"]


# --- Ansible's private parts ----------------------------------------------------------------------------------

#: ``(file, what)`` for which Ansible has no public way; a comment there says so.
PRIVATE = {
    ("module_utils/pveguard/base/host_variables.py", "_inventory"),
    ("module_utils/pveguard/base/host_variables.py", "_loader"),
    ("module_utils/pveguard/base/node_module.py", "_log_invocation"),
    ("module_utils/pveguard/filters/playbooks.py", "ansible._internal._datatag._tags"),
}
#: Of AnsibleModule, HostVars, InventoryManager and Templar.
ATTRIBUTES = {"_inventory", "_loader", "_log_invocation", "_sources", "_templar", "_variable_manager", "_vars"}


def private_parts(tree: ast.Module) -> Iterator[str]:
    """Private modules of Ansible that are imported, and private attributes of its objects, also by getattr()."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "ansible" else [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.startswith("ansible.") and "._" in name)
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            yield node.attr
        elif isinstance(node, ast.Constant) and node.value in ATTRIBUTES:
            yield str(node.value)


def test_nothing_private_of_ansible_where_there_is_a_public_way(python_files: list[str]) -> None:
    sources = {name: (ROOT / name).read_bytes() for name in python_files}
    users = [name for name, text in sources.items() if b"ansible" in text]
    found = {(name, part) for name in users for part in private_parts(parse(name))}
    assert found - PRIVATE == set(), "is there a public way? Else a comment that says there is none, and a line in PRIVATE"
    assert PRIVATE - found == set(), "no longer used: take it out of PRIVATE"


@pytest.mark.parametrize(
    "line",
    ["import ansible._internal.x", "from ansible.module_utils._internal import x", "h._inventory", 'getattr(h, "_loader")'],
)
def test_a_private_part_is_found(line: str) -> None:
    assert len(list(private_parts(ast.parse(line)))) == 1
