# SPDX-License-Identifier: Apache-2.0
"""Programs on a node: whole or not there, whatever is cut where; one version at a time; nothing of another's removed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base import atomic, node_program
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_program import Program
from ansible.module_utils.pveguard.cluster.cluster_member import PROGRAM as CLUSTER_MEMBER
from ansible.module_utils.pveguard.state.program import PVE_STATE

CORES = Path(__file__).resolve().parents[2] / "module_utils/pveguard"
PROGRAMS = [PVE_STATE, CLUSTER_MEMBER]
SMALL = Program("small", "base.errors", ("base.errors",), "/usr/local/sbin/small")


def imported(module: str) -> set[str]:
    """The cores that a core imports, inside functions too."""
    *package, _ = module.split(".")
    found = set()
    for node in ast.walk(ast.parse((CORES / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            below = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            found |= {".".join(below), *(".".join([*below, alias.name]) for alias in node.names)}
    return {name for name in found if (CORES / f"{name.replace('.', '/')}.py").is_file()}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_brings_all_that_it_imports_and_no_more(program: Program) -> None:
    needed, todo = set(), [program.entry]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            todo += imported(name)
    assert set(program.modules) == needed and len(program.modules) == len(needed)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_running_program_needs_nothing_of_its_version_any_more(program: Program, tmp_path: Path) -> None:
    """All cores are there at its start, so a version may go away under it, or another take its place."""
    node_program.install(program, tmp_path)
    folder = (tmp_path / program.launcher.lstrip("/")).resolve().parent
    script = (
        "import shutil, sys\n"
        f"sys.path.insert(0, {str(folder)!r})\n"
        f"import pveguard.{program.entry}\n"
        f"shutil.rmtree({str(folder)!r})\n"
        f"missing = [name for name in {program.modules!r} if 'pveguard.' + name not in sys.modules]\n"
        "assert not missing, missing\n"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_no_core_of_a_program_is_imported_later(program: Program) -> None:
    """An import inside a function would look for its file when another version may lie there."""
    for name in program.modules:
        tree = ast.parse((CORES / f"{name.replace('.', '/')}.py").read_text())
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                late = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom) and node.level]
                assert not late, f"{name}: {function.name}"


def test_installed_it_runs_by_its_path_and_says_what_it_is(tmp_path: Path) -> None:
    predicted = node_program.plan(PVE_STATE, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert node_program.install(PVE_STATE, tmp_path) == predicted
    assert [(each.path, each.before, each.what) for each in predicted] == [(PVE_STATE.command, "", "created")]
    command = tmp_path / PVE_STATE.command.lstrip("/")
    answer = [str(command), "--root", str(tmp_path / "node"), "status", "--json"]
    # Without a compiler's writes: the version is complete as it is.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = subprocess.run(answer, capture_output=True, text=True, cwd="/", env={"PATH": os.environ["PATH"]})
    assert '"state": ' in done.stdout, done.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert node_program.plan(PVE_STATE, tmp_path) == [] == node_program.install(PVE_STATE, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def versions(root: Path) -> list[Path]:
    home = root / node_program.HOME.lstrip("/")
    return sorted(path for path in home.iterdir() if path.is_dir() and not path.is_symlink())


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Another version of every program, as the next release would bring it."""
    with monkeypatch.context() as patch:
        patch.setattr(node_program, "LAUNCHER", node_program.LAUNCHER + "# newer: {name}\n")
        yield patch


def test_the_version_before_stays_and_older_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher, made = node_program.LAUNCHER, []
    for number in range(4):
        monkeypatch.setattr(node_program, "LAUNCHER", launcher + f"# {number}\n")
        (change,) = node_program.install(SMALL, tmp_path)
        made.append(change.after.split()[1])
        assert change.what == ("content" if number else "created")
        assert [path.name for path in versions(tmp_path)] == sorted(made[-2:])
    home = tmp_path / SMALL.home.lstrip("/")
    assert [os.readlink(home / name) for name in ("small", "small.former")] == [made[-1], made[-2]]
    # Back again, as a checkout of the former release would do it.
    monkeypatch.setattr(node_program, "LAUNCHER", launcher + "# 2\n")
    node_program.install(SMALL, tmp_path)
    assert [os.readlink(home / name) for name in ("small", "small.former")] == [made[-2], made[-1]]


def test_programs_share_a_folder_and_leave_each_other_alone(tmp_path: Path, newer: pytest.MonkeyPatch) -> None:
    other = replace(SMALL, name="other", command="")
    node_program.install(other, tmp_path)
    node_program.install(SMALL, tmp_path)
    newer.undo()
    node_program.install(SMALL, tmp_path)
    assert len(versions(tmp_path)) == 3 and not node_program.plan(SMALL, tmp_path)
    (removal,) = node_program.plan_removal(SMALL, tmp_path)
    assert removal.what == "removed" and removal.after == ""
    node_program.remove(SMALL, tmp_path)
    assert not os.path.lexists(tmp_path / SMALL.command.lstrip("/")) and len(versions(tmp_path)) == 1
    assert node_program.plan_removal(SMALL, tmp_path) == []
    node_program.remove(other, tmp_path)
    assert not (tmp_path / SMALL.home.lstrip("/")).exists()


def test_the_single_file_of_a_former_release_is_replaced(tmp_path: Path) -> None:
    for path, program in ((PVE_STATE.command, PVE_STATE), (f"{node_program.HOME}/cluster-member", CLUSTER_MEMBER)):
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/usr/bin/python3 -IS\nprint('former')\n")
        (change,) = node_program.install(program, tmp_path)
        assert change.before.startswith("a file of ") and change.what == "content"
        assert (tmp_path / program.launcher.lstrip("/")).is_file() and file.is_symlink()
        assert node_program.plan(program, tmp_path) == []


@pytest.mark.parametrize("damage", ["content", "gone", "not compiled", "compiled in part", "launcher", "not executable"])
def test_a_damaged_version_is_made_anew_beside_it(tmp_path: Path, damage: str) -> None:
    node_program.install(SMALL, tmp_path)
    (folder,) = versions(tmp_path)
    module = folder / "pveguard/base/errors.py"
    if damage == "content":
        module.write_text("broken")
    elif damage == "gone":
        module.unlink()
    elif damage == "not compiled":
        shutil.rmtree(module.parent / "__pycache__")
    elif damage == "compiled in part":
        (compiled,) = (module.parent / "__pycache__").glob("errors.*")
        compiled.write_bytes(compiled.read_bytes()[:40])
    elif damage == "not executable":
        (folder / "small").chmod(0o644)
    else:
        (tmp_path / SMALL.command.lstrip("/")).write_text("broken")
    (change,) = node_program.install(SMALL, tmp_path)
    assert change.before == f"version {folder.name}\n" and node_program.plan(SMALL, tmp_path) == []
    assert (tmp_path / SMALL.command.lstrip("/")).resolve().parent.name == f"{folder.name}-2"


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / SMALL.command.lstrip("/") / "mine").mkdir(parents=True)
    with pytest.raises(PveguardError, match=r"small: is a directory.*move it away"):
        node_program.install(SMALL, tmp_path)
    assert not (tmp_path / SMALL.home.lstrip("/")).exists()


class Cut(BaseException):
    """The power goes."""


@pytest.mark.root
def test_where_nothing_may_be_executed_it_runs_by_the_interpreter(tmp_path: Path) -> None:
    """As Debian mounts /run."""
    home = tmp_path / "run"
    home.mkdir()
    program = replace(PVE_STATE, command="", home=str(home / "lib"))
    install = (
        f"import sys\nsys.path.insert(0, {str(CORES.parent)!r})\nfrom dataclasses import replace\n"
        "from pveguard.base import node_program\nfrom pveguard.state.program import PVE_STATE\n"
        f"node_program.install(replace(PVE_STATE, command='', home={str(home / 'lib')!r}))\n"
    )
    (tmp_path / "install.py").write_text(install)
    asked = f"{program.launcher} --root {tmp_path} list --json"
    script = (
        f"mount -t tmpfs -o noexec none {home} && {sys.executable} {tmp_path}/install.py && "
        f"{{ {asked}; {sys.executable} -IS {asked}; }}"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert "ermission denied" in done.stderr and '"generations"' in done.stdout, done


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_removal_that_was_cut_is_done_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    launcher = node_program.LAUNCHER
    node_program.install(SMALL, tmp_path)
    monkeypatch.setattr(node_program, "LAUNCHER", launcher + "# newer\n")
    node_program.install(SMALL, tmp_path)
    left, unlink = cut, Path.unlink

    def cutting(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Cut
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cutting)
        try:
            node_program.remove(SMALL, tmp_path)
        except Cut:
            assert node_program.plan_removal(SMALL, tmp_path)
    node_program.remove(SMALL, tmp_path)
    assert not (tmp_path / SMALL.home.lstrip("/")).exists() and node_program.plan_removal(SMALL, tmp_path) == []


CALLS = [(os, "rename"), (os, "fsync"), (os, "symlink"), (os, "mkdir"), (os, "unlink")]


@pytest.mark.parametrize("first", [False, True], ids=["upgrade", "first"])
def test_a_power_cut_anywhere_leaves_a_whole_version_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """At each call that changes a directory or flushes: what a start finds then is the former version or the new one."""
    base, launcher = tmp_path / "base", node_program.LAUNCHER
    base.mkdir()
    if not first:
        node_program.install(SMALL, base)
    monkeypatch.setattr(node_program, "LAUNCHER", launcher + "# newer\n")
    wanted = {False: launcher, True: launcher + "# newer\n"}
    number, seen = 0, set()
    while True:
        root = tmp_path / f"cut{number}"
        shutil.copytree(base, root, symlinks=True)
        left = number
        with monkeypatch.context() as patch:
            for module, name in CALLS:
                real = getattr(module, name)

                def cut(*arguments: object, real: object = real, **options: object) -> object:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise Cut
                    return real(*arguments, **options)  # type: ignore[operator]

                patch.setattr(module, name, cut)
            # Nobody tidies up after a power cut.
            patch.setattr(node_program.shutil, "rmtree", lambda *_, **__: None)
            try:
                node_program.install(SMALL, root)
                whole = True
            except Cut:
                whole = False
        command = root / SMALL.command.lstrip("/")
        if command.exists():
            text = command.read_text()
            new = text == wanted[True].format(name="small", entry="base.errors")
            assert new or text == wanted[False].format(name="small", entry="base.errors")
            folder = command.resolve().parent
            files = node_program.files(SMALL)
            if not new:
                files["small"] = text.encode()
            assert node_program._is_whole(folder, files)
            seen.add(new)
        else:
            assert first
        node_program.install(SMALL, root)
        assert node_program.plan(SMALL, root) == []
        assert [path.name for path in versions(root) if path.name.startswith(".")] == []
        if whole:
            break
        number += 1
    assert number > 15 and seen == ({True} if first else {False, True})


def test_all_of_a_version_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rename makes visible must be on the disk by then, its directories too."""
    flushed: list[str] = []
    rename, fsync = os.rename, os.fsync
    checked = []

    def noted(fd: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    def named(source: str | Path, target: str | Path, **options: object) -> None:
        if Path(target).parent == tmp_path / SMALL.home.lstrip("/") and not Path(source).is_symlink():
            everything = {str(source), *(str(path) for path in Path(source).rglob("*"))}
            assert everything <= set(flushed)
            checked.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", named)
    node_program.install(SMALL, tmp_path)
    assert len(checked) == 1 and any(path.endswith(".pyc") for path in flushed)
    assert flushed.count(str(tmp_path / SMALL.home.lstrip("/"))) >= 2
    assert atomic.fsync_dir is node_program.fsync_dir
