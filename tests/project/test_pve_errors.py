# SPDX-License-Identifier: Apache-2.0
"""No error of a change to /etc/pve is passed over: that is how a lock stayed there for good.

Read are all cores, modules, filters, node programs, playbooks, roles and benches. A handler of OSError around a call that
changes a file passes it over when it neither raises, nor uses the error, nor calls anything (so that nothing is told, tried
again or undone); a task does when nobody looks at what it said.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

#: Calls that change a file or directory, by their last name.
CHANGES = frozenset(
    "mkdir makedirs rmdir unlink remove rename replace rmtree write write_bytes write_text write_in_place write_new write_atomic "
    "utime touch symlink_to link patiently answered one_pair".split()
)
ERRORS = frozenset(("OSError", "PermissionError", "Exception", "BaseException", "IOError"))
#: What in a file's text says that it has to do with /etc/pve.
PVE = re.compile(r"etc/pve\b|\bpve_file\b|\bpaths\.pve\b|\bnode\.pve\b|pmxcfs\.MOUNT")

#: ``file: function`` -> why the error may be passed over there.
ALLOWED = {
    "module_utils/pveguard/state/enable.py: put_stock_back": "a folder of systemd's drop-ins, which may hold others'",
}

#: Modules that change /etc/pve. run_lock does too, and warns by itself of what it could not give back.
MODULES = frozenset(
    "corosync_conf corosync_recover cluster_member ha_services node_traces probe_home pve_file pve_lock pmxcfs_writes "
    "write_amplification".split()
)
#: ``file: task`` -> why nobody looks at what it said.
ALLOWED_TASKS = {
    "roles/corosync/tasks/leave_confirmed.yml: Let pvecm take it off": "judged by the next task, not by its return code",
    "roles/corosync/tasks/change.yml: Ask every member what it has to say": "reads journals",
}


def programs() -> list[Path]:
    found = [
        *ROOT.glob("module_utils/pveguard/**/*.py"), *ROOT.glob("library/*.py"), *ROOT.glob("filter_plugins/*.py"),
        *ROOT.glob("bench/*.py"), *ROOT.glob("molecule/**/*.py"),
    ]  # fmt: skip
    return sorted(found)


def called(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            target = node.func
            name = (
                target.attr
                if isinstance(target, ast.Attribute)
                else target.id
                if isinstance(target, ast.Name)
                else ""
            )
            names.add(name.lstrip("_"))
    return names


def catches(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = {node.attr if isinstance(node, ast.Attribute) else node.id for node in ast.walk(handler.type)
             if isinstance(node, ast.Name | ast.Attribute)}  # fmt: skip
    return bool(names & ERRORS)


def passes_over(handler: ast.ExceptHandler) -> bool:
    """Whether a handler says and does nothing: no raise, no call, no assignment that carries it on, no use of the error."""
    return not any(
        isinstance(node, ast.Raise | ast.Call | ast.Assign | ast.AugAssign)
        or (isinstance(node, ast.Name) and node.id == handler.name)
        for statement in handler.body
        for node in ast.walk(statement)
    )


def swallowed(source: str) -> Iterator[tuple[str, int]]:
    """(function, line) of each change to a file whose OSError is passed over, of a program that has to do with /etc/pve."""
    if not PVE.search(source):
        return

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Try) and called(ast.Module(node.body, [])) & CHANGES:
            for handler in node.handlers:
                if catches(handler) and passes_over(handler):
                    yield function, handler.lineno
        if isinstance(node, ast.With) and called(ast.Module(node.body, [])) & CHANGES:
            for item in node.items:
                if "suppress" in called(item.context_expr) and ERRORS & {
                    name.id for name in ast.walk(item.context_expr) if isinstance(name, ast.Name)
                }:
                    yield function, node.lineno
        if (
            isinstance(node, ast.Call)
            and "rmtree" in called(node)
            and any(keyword.arg == "ignore_errors" for keyword in node.keywords)
            and PVE.search(ast.unparse(node))
        ):
            yield function, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    yield from walk(ast.parse(source), "the module")


@pytest.mark.parametrize("path", programs(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_program_passes_over_an_error_of_a_change(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    found = [f"{relative}: {function}" for function, _ in swallowed(path.read_text())]
    assert [place for place in found if place not in ALLOWED] == []


def test_what_is_allowed_is_there() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {function}"
        for path in programs()
        for function, _ in swallowed(path.read_text())
    }
    assert set(ALLOWED) <= found


def test_it_sees_what_it_is_for() -> None:
    lock = "PVE = '/etc/pve'\ndef leave(path):\n    try:\n        path.rmdir()\n    except OSError:\n        pass  # no quorum\n"
    assert list(swallowed(lock)) == [("leave", 5)]
    assert list(swallowed(lock.replace("except OSError", "except FileNotFoundError"))) == []
    assert list(swallowed(lock.replace("pass  #", "raise  #"))) == []
    assert list(swallowed(lock.replace("/etc/pve", "/run"))) == []
    quiet = "X = '/etc/pve'\nwith contextlib.suppress(OSError):\n    os.unlink(X)\n"
    assert list(swallowed(quiet)) == [("the module", 2)]


# Tasks


def task_files() -> list[Path]:
    return sorted(
        [*ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("molecule/**/*.yml")]
    )


def tasks(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for each in value:
            yield from tasks(each)
    elif isinstance(value, dict):
        yield value
        for section in ("tasks", "pre_tasks", "post_tasks", "block", "rescue", "always"):
            yield from tasks(value.get(section))


class Loader(yaml.SafeLoader):
    """With Ansible's own tags as plain text."""


Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_scalar(node))


def changes_pve(task: dict[str, Any]) -> bool:
    if any(name in task for name in MODULES):
        return True
    command = next(
        (task[name] for name in task if name.rpartition(".")[2] in ("command", "shell", "script", "raw")),
        None,
    )
    return command is not None and ("/etc/pve" in str(command) or "pvecm" in str(command))


def unheard(text: str, near: str = "") -> Iterator[str]:
    """Names of tasks that change /etc/pve and whose failure nobody hears of, here or in the files ``near``."""
    for task in tasks(yaml.load(text, Loader)):
        if not changes_pve(task):
            continue
        quiet = task.get("failed_when") is False or task.get("ignore_errors") or "|| true" in str(task)
        register = task.get("register")
        if quiet and not (register and len(re.findall(rf"\b{re.escape(str(register))}\b", near or text)) > 1):
            yield str(task.get("name"))


def near(path: Path) -> str:
    """What may look at what a task of ``path`` said: the tasks and variables beside it."""
    beside = [*path.parent.glob("*.yml"), *path.parent.parent.glob("vars/*.yml")]
    return "\n".join(each.read_text() for each in sorted(beside))


@pytest.mark.parametrize("path", task_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_somebody_hears_of_a_task_that_failed_to_change_it(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    found = [f"{relative}: {name}" for name in unheard(path.read_text(), near(path))]
    assert [place for place in found if place not in ALLOWED_TASKS] == []


def test_it_sees_quiet_tasks() -> None:
    task = "- name: Write it\n  pve_file: {path: /etc/pve/x, content: x}\n  failed_when: false\n"
    assert list(unheard(task)) == ["Write it"]
    heard = task + "  register: __it\n- name: Say it\n  ansible.builtin.debug: {msg: '{{ __it.msg }}'}\n"
    assert list(unheard(heard)) == []
    shell = "- name: Remove it\n  ansible.builtin.shell: rm /etc/pve/x || true\n"
    assert list(unheard(shell)) == ["Remove it"]
