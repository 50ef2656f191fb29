# SPDX-License-Identifier: Apache-2.0
"""What is judged: each condition in one function, told with what helps, met in some test, and listed in docs/findings.md."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import findings
from ansible.module_utils.pveguard.base.findings import GOOD, PROBLEM, SEVERITIES, UNKNOWN, WARNING, Finding

from tests.findings import finding
from tests.loading import load_file

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "module_utils/pveguard"


@functools.cache
def docs() -> ModuleType:
    return load_file("scripts/finding_docs.py")


def test_the_page_is_up_to_date() -> None:
    assert docs().PAGE.read_text() == docs().page(), "run `make docs`"
    for id in docs().checks():
        assert f"| `{id}` |" in docs().page()


def test_an_id_belongs_to_one_check(monkeypatch: pytest.MonkeyPatch) -> None:
    id, (_, each) = next(iter(docs().checks().items()))
    monkeypatch.setattr(docs().pveguard.base.units, "SECOND", type(each)(id, each.severities, "another"), raising=False)
    with pytest.raises(docs().FindingDocsError, match=f"{id}: declared in"):
        docs().checks()


def test_ids_and_what_they_say() -> None:
    for id, (core, each) in docs().checks().items():
        assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", id), id
        assert each.what and not each.what.endswith("."), id
        assert (each.severities == (GOOD,)) != bool(each.fix or each.code), f"{core}: {id}: what helps, unless it is good"


# Who judges


def declared(tree: ast.Module) -> dict[str, str]:
    """``{name of the check: its id}`` of one core."""
    return {
        target.id: node.value.args[0].value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "check"
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.args[0], ast.Constant)
    }  # fmt: skip


def uses(tree: ast.Module, core: str, names: dict[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
    """(id, function) for each use of a check in a function, its ``id`` and ``what`` aside. ``names``: (core, name) -> id."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            inner = f"{core}.{child.name}" if isinstance(child, ast.FunctionDef) and not function else function
            if isinstance(child, ast.Attribute) and child.attr in ("id", "what", "fix", "code"):
                continue
            key = None
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load):
                key = (core, child.id)
            elif isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
                key = (child.value.id, child.attr)
            if key in names and inner:
                yield names[key], inner
            yield from walk(child, inner)

    return walk(tree, "")


def judged(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """``{id: functions that use its check}``."""
    names = {(core, name): id for core, tree in trees.items() for name, id in declared(tree).items()}
    found: dict[str, set[str]] = {id: set() for id in names.values()}
    for core, tree in trees.items():
        for id, function in uses(tree, core, names):
            found[id].add(function)
    return found


@functools.cache
def cores() -> dict[str, ast.Module]:
    return {path.stem: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}


def test_each_condition_is_judged_in_one_function() -> None:
    found = judged(cores())
    assert set(found) == set(docs().checks()), "a check is an assignment at the top of its core: NAME = check(...)"
    assert {id: functions for id, functions in found.items() if len(functions) != 1} == {}


def test_a_second_judge_is_seen() -> None:
    one = "X = check('a-b', 'good', 'x')\ndef f():\n  return X('')\n"
    assert judged({"one": ast.parse(one)}) == {"a-b": {"one.f"}}
    two = "from . import one\ndef g():\n  def inner():\n    return (one.X if True else None)('')\n  return one.X.id\n"
    assert judged({"one": ast.parse(one), "two": ast.parse(two)}) == {"a-b": {"one.f", "two.g"}}
    assert judged({"one": ast.parse("X = check('a-b', 'good', 'x')")}) == {"a-b": set()}


def test_no_other_class_or_scale_of_findings() -> None:
    for core, tree in cores().items():
        classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        assert "Finding" not in classes or core == "findings", core
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not {PROBLEM, WARNING} <= texts or core in ("findings", "corosync_conf"), core


# Every id is met in a test


def met() -> set[str]:
    """Ids that a test expects: constants in calls of a function named ``finding``."""
    found = set()
    for path in [*ROOT.glob("tests/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(node, ast.Call) and "finding" in (getattr(called, "id", ""), getattr(called, "attr", "")):
                found |= {each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    return found


def test_each_condition_is_met_in_a_test() -> None:
    missing = set(docs().checks()) - met()
    assert not missing, f"no test expects these with finding(..., id): {', '.join(sorted(missing))}"


def test_the_helper_of_the_tests_tells_what_is_missing() -> None:
    good = Finding("a-good", GOOD, "all is well")
    bare = Finding("a-bare", WARNING, "something is wrong")
    whole = Finding("a-whole", WARNING, "something is wrong", "Mend it.", "mend")
    assert finding([good, whole], "a-whole").sentence == "something is wrong. Mend it (mend)"
    assert finding([good, whole], "a-good").sentence == "all is well"
    for found, id in (([good], "a-whole"), ([bare], "a-bare"), ([whole, whole], "a-whole")):
        with pytest.raises((AssertionError, ValueError)):
            finding(found, id)


# The class


def test_the_scale() -> None:
    found = [Finding("a", each, "x") for each in (GOOD, WARNING, UNKNOWN, PROBLEM)]
    assert [each.severity for each in findings.worst_first(found)] == [PROBLEM, WARNING, UNKNOWN, GOOD] == list(SEVERITIES)
    assert findings.worst(found) == PROBLEM and findings.worst([]) == GOOD
    assert [each.severity for each in findings.worth_telling(found)] == [WARNING, UNKNOWN, PROBLEM]
    assert set(findings.VERDICTS) == set(SEVERITIES)


@pytest.mark.parametrize(
    ("severity", "help", "why"), [("fail", "mend it", "is none of problem"), (WARNING, "", "what helps"), ((), "x", "none of")]
)
def test_a_check_that_cannot_be(severity: Any, help: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        findings.check("a-b", severity, "x", help)


def test_a_finding_goes_through_json() -> None:
    each = findings.check("a-b", (WARNING, PROBLEM), "x", "Mend it.", "mend")("seen", means="so", nodes=["n1"])
    assert findings.read(each.as_dict()) == each and each.severity == WARNING
    assert each.sentence == "seen: so. Mend it (mend)" and each.headline == "seen"
    # Of a newer version.
    assert findings.read({"id": "new", "severity": "dire", "more": 1}).severity == UNKNOWN


def test_what_helps_is_that_of_the_check_unless_it_is_said() -> None:
    check = findings.check("a-b", WARNING, "x", "Mend it.", "mend")
    assert (check("s").fix, check("s").code) == ("Mend it.", "mend")
    assert (check("s", code="mend n1").fix, check("s", code="mend n1").code) == ("Mend it.", "mend n1")
    assert (check("s", fix="leave it").helps) == "leave it"
    assert check("s", fix="leave it").sentence == "s; leave it"
