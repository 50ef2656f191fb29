# SPDX-License-Identifier: Apache-2.0
"""Switches and numbers may come as text (``-e NAME=false``, INI inventories): no place takes one as it is.

Read are all conditions and templates of roles and playbooks, and the filters. What a switch or number may be is a filter
(``pveguard_bool``, ``pveguard_int``, ``pveguard_float``), an argument of a module that declares the same type, a test
whether it is set, or part of a message.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic
from jinja2 import Environment, nodes

from tests.loading import load_filters, load_module

ROOT = Path(__file__).resolve().parents[2]
TYPED = ("bool", "int", "float")
CONDITIONS = ("when", "until", "failed_when", "changed_when", "that")
#: Keys whose value is read by people.
MESSAGES = ("msg", "fail_msg", "success_msg", "prompt", "name", "label")
FILTERS = {
    "bool": {"pveguard_bool"},
    "int": {"pveguard_int", "pveguard_float"},
    "float": {"pveguard_float"},
}
#: Tables of names in filters, which name a variable without reading it.
TABLES = ("PLAYBOOK_VARIABLES", "_DISK", "_LINKS")


def every_option() -> dict[str, dict[str, Any]]:
    """Every variable of every role and of the playbooks."""
    filters = load_filters("playbooks")
    found = {name: spec for role in filters._specs().values() for name, spec in role.items()}
    # Ansible's loader tags what it reads.
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps({**found, **filters.PLAYBOOK_VARIABLES}))
    return plain


OPTIONS = every_option()
TYPES = {name: spec["type"] for name, spec in OPTIONS.items() if spec.get("type") in TYPED}


class _SpecError(Exception):
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec


def module_specs() -> dict[str, dict[str, Any]]:
    """``{module: argument_spec}`` of library/."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:

        def capture(_self: basic.AnsibleModule, argument_spec: dict[str, Any], **_rest: Any) -> None:
            raise _SpecError(argument_spec)

        patch.setattr(basic.AnsibleModule, "__init__", capture)
        for path in sorted((ROOT / "library").glob("*.py")):
            with pytest.raises(_SpecError) as caught:
                load_module(path.stem).main()
            found[path.stem] = caught.value.spec
    return found


SPECS = module_specs()


def yaml_files() -> list[Path]:
    found = [ROOT / "site.yml", *(ROOT / "playbooks").rglob("*.yml")]
    for folder in ("tasks", "vars", "defaults", "handlers"):
        found += (ROOT / "roles").glob(f"*/{folder}/*.yml")
    return sorted(found)


def texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(keys that lead to it, text) of every text in a document."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from texts(each, (*path, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from texts(each, (*path, number))
    elif isinstance(value, str):
        yield path, value


def argument_type(path: tuple[Any, ...]) -> str | None:
    """The type that the module of a task declares for the argument at ``path``; None where it is no argument."""
    for at, key in enumerate(path):
        if key in SPECS:
            spec: dict[str, Any] = {"options": SPECS[key]}
            for part in path[at + 1 :]:
                if isinstance(part, str):
                    spec = (spec.get("options") or {}).get(part) or {}
            return spec.get("type")
    return None


def mistakes(path: tuple[Any, ...], text: str) -> Iterator[str]:
    """How a condition or a template takes a switch or a number as it is."""
    keys = [key for key in path if isinstance(key, str)]
    if keys and keys[-1] in CONDITIONS and argument_type(path) is None:
        text = "{{ " + text + " }}"
    if "{{" not in text and "{%" not in text:
        return
    tree = Environment(extensions=["jinja2.ext.do"]).parse(text)
    parents = {child: parent for parent in tree.find_all(nodes.Node) for child in parent.iter_child_nodes()}
    parents |= dict.fromkeys(tree.iter_child_nodes(), tree)
    for each in tree.find_all(nodes.Name):
        kind = TYPES.get(each.name)
        if kind and each.ctx == "load" and not _typed(each, kind, parents, path, keys):
            yield f"{each.name} ({kind})"
    # The same of other hosts: by a filter, which knows how to render it. A name in a text of a filter's argument counts.
    for item in tree.find_all((nodes.Getattr, nodes.Getitem)):
        name = item.attr if isinstance(item, nodes.Getattr) else getattr(item.arg, "value", None)
        if name in OPTIONS and OPTIONS[name].get("type") != "raw":
            yield f"{name} of another host"
    for call in tree.find_all(nodes.Filter):
        if call.name in ("map", "selectattr", "rejectattr", "sum", "groupby", "extract"):
            for const in call.find_all(nodes.Const):
                if const.value in OPTIONS and OPTIONS[const.value].get("type") != "raw" and parents[const] is call:
                    yield f"{const.value} of another host"


def _typed(each: nodes.Node, kind: str, parents: dict[Any, Any], path: tuple[Any, ...], keys: list[str]) -> bool:
    here, above = each, parents[each]
    while isinstance(above, nodes.Filter) and above.name in ("default", "d") and above.node is here:
        here, above = above, parents[above]
    if isinstance(above, nodes.Filter) and above.node is here and above.name in FILTERS[kind]:
        return True
    if isinstance(above, nodes.Test) and above.node is here and above.name in ("defined", "undefined", "none"):
        return True
    # "x if x is not none else omit"
    if isinstance(above, nodes.CondExpr) and above.test is not here:
        here, above = above, parents[above]
    if isinstance(above, nodes.Output):
        if len(above.nodes) == 1:
            return argument_type(path) == kind or (kind == "int" and argument_type(path) == "float")
        return bool(keys) and keys[-1] in MESSAGES
    return False


@pytest.mark.parametrize("file", yaml_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_switch_and_no_number_is_taken_as_it_is(file: Path) -> None:
    found = [
        f"{'.'.join(map(str, path))}: {mistake}"
        for path, text in texts(yaml.safe_load(file.read_text()))
        for mistake in mistakes(path, text)
    ]
    assert found == []


def test_what_a_playbook_leaves_is_no_unknown_variable_for_the_next_in_the_same_command() -> None:
    left = set()
    for file in yaml_files():
        for path, text in texts(yaml.safe_load(file.read_text())):
            if path[-1] == "register":
                left.add(text)
            elif len(path) > 1 and path[-2] == "ansible.builtin.set_fact":
                left.add(path[-1])
    public = {name for name in left if not name.startswith("__")}
    assert public and {name for name in public if OPTIONS.get(name, {}).get("type") != "raw"} == set()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("when",), "ram_state_enabled"),
        (("when", 0), "not ram_state_enabled"),
        (("that",), "ram_state_enabled | bool"),
        (("until",), "link_gate_max_peers > 3"),
        (("failed_when",), "ram_state_enabled == true"),
        (("changed_when",), "ram_state_enabled | default(false)"),
        (("vars", "x"), "{{ 'a' if ram_state_enabled else 'b' }}"),
        (("vars", "x"), "{{ ram_state_enabled | ternary('a', 'b') }}"),
        (("vars", "x"), "{{ ram_state_deadline_seconds / 5 }}"),
        (("vars", "x"), "{{ ram_state_deadline_seconds }}"),
        (("vars", "x"), "{{ ram_state_deadline_seconds | int }}"),
        (("vars", "x"), "{{ hostvars | pveguard_link_pairs(inventory_hostname, link_gate_max_peers) }}"),
        (("vars", "x"), "{% if ram_state_enabled %}a{% endif %}"),
        (("vars", "x"), "{{ {'a': ram_state_enabled} }}"),
        (("vars", "x"), "{{ hostvars['a'].ram_state_enabled | pveguard_bool }}"),
        (("vars", "x"), "{{ hosts | map('extract', hostvars, 'corosync_node_id') }}"),
        (("link_bench", "pairs"), "{{ link_gate_duration }}"),
        (("ansible.builtin.command", "cmd"), "sleep {{ link_gate_duration }}"),
        (("loop",), "{{ range(link_gate_max_peers) }}"),
    ],
)
def test_what_would_be_found(path: tuple[Any, ...], text: str) -> None:
    assert list(mistakes(path, text))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("when",), "not ram_state_enabled | default(true) | pveguard_bool"),
        (("when",), "ram_state_enabled is defined"),
        (("link_bench", "duration"), "{{ link_gate_duration }}"),
        (("link_bench", "duration"), "{{ link_gate_duration | default(omit) }}"),
        (("ansible.builtin.debug", "msg"), "within {{ link_gate_duration }} seconds"),
        (("vars", "x"), "{{ link_gate_max_peers | pveguard_int + 1 }}"),
    ],
)
def test_what_is_right(path: tuple[Any, ...], text: str) -> None:
    assert list(mistakes(path, text)) == []


@pytest.mark.parametrize("file", sorted((ROOT / "module_utils/pveguard/filters").glob("*.py")), ids=lambda file: file.name)
def test_no_filter_takes_a_switch_or_a_number_as_it_is(file: Path) -> None:
    tree = ast.parse(file.read_text())
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    found = []
    for each in ast.walk(tree):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value in TYPES:
            chain, at = [], each
            while at in parents:
                at = parents[at]
                chain.append(at)
            called = {node.func.attr for node in chain if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
            targets = [target for node in chain if isinstance(node, ast.Assign) for target in node.targets]
            targets += [node.target for node in chain if isinstance(node, ast.AnnAssign)]
            tables = {target.id for target in targets if isinstance(target, ast.Name)}
            if isinstance(parents[each], ast.Compare):
                continue
            if not called & {"as_bool", "as_int", "as_float"} and not tables & set(TABLES):
                found.append(f"line {each.lineno}: {each.value}")
    assert found == []
