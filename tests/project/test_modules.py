# SPDX-License-Identifier: Apache-2.0
"""What a module documents is what it does: DOCUMENTATION, EXAMPLES and RETURN against its argument_spec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic
from ansible.playbook.task import Task

from tests.loading import load_module

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "library").glob("*.py"))
TASK_KEYWORDS = frozenset(Task.fattributes)

pytestmark = pytest.mark.parametrize("name", MODULES)


class _SpecError(Exception):
    """Carries the arguments of AnsibleModule(...) out of a module's main()."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__("argument_spec")
        self.arguments = arguments


def _ansible_module_arguments(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def capture(_self: basic.AnsibleModule, argument_spec: dict[str, Any], **rest: Any) -> None:
        raise _SpecError({"argument_spec": argument_spec, **rest})

    monkeypatch.setattr(basic.AnsibleModule, "__init__", capture)
    with pytest.raises(_SpecError) as caught:
        module.main()
    return caught.value.arguments


def _comparable(options: dict[str, Any], suboptions: str) -> dict[str, Any]:
    """The facts that documentation and argument_spec share; both say nothing for a default of Ansible's."""
    return {
        name: {
            "type": option.get("type", "str"),
            "default": option.get("default"),
            "required": bool(option.get("required", False)),
            "choices": list(option.get("choices") or []),
            "elements": option.get("elements"),
            "aliases": list(option.get("aliases") or []),
            "options": _comparable(option.get(suboptions) or {}, suboptions),
        }
        for name, option in options.items()
    }


def _values(spec: dict[str, Any], given: dict[str, Any], where: str) -> Iterator[str]:
    """Mistakes in the values of an example."""
    for key, value in given.items():
        if key not in spec:
            yield f"{where}: unknown option {key}"
            continue
        option, templated = spec[key], isinstance(value, str) and "{{" in value
        if option.get("choices") and not templated:
            for item in value if isinstance(value, list) else [value]:
                if item not in option["choices"]:
                    yield f"{where}: {key} is {item!r}, not one of {option['choices']}"
        if option.get("options") and not templated:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    yield from _values(option["options"], item, f"{where}.{key}")
    for key, option in spec.items():
        if option.get("required") and key not in given:
            yield f"{where}: required option {key} is missing"


def test_documentation_equals_argument_spec(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_module(name)
    documentation = yaml.safe_load(module.DOCUMENTATION)
    spec = _ansible_module_arguments(module, monkeypatch)["argument_spec"]
    assert _comparable(documentation.get("options") or {}, "suboptions") == _comparable(spec, "options")


def test_documentation_is_complete(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_module(name)
    documentation = yaml.safe_load(module.DOCUMENTATION)
    assert documentation["module"] == name
    assert documentation["short_description"] and not documentation["short_description"].endswith(".")
    assert documentation["description"]
    for option, text in (documentation.get("options") or {}).items():
        assert text.get("description"), f"option {option} has no description"

    attributes = documentation["attributes"]
    supports_check_mode = _ansible_module_arguments(module, monkeypatch).get("supports_check_mode", False)
    assert attributes["check_mode"]["support"] == ("full" if supports_check_mode else "none")
    assert attributes["diff_mode"]["support"] in ("full", "none", "partial")
    for attribute in ("check_mode", "diff_mode"):
        assert attributes[attribute].get("description"), f"attribute {attribute} has no description"


def test_secrets_are_not_logged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _ansible_module_arguments(load_module(name), monkeypatch)["argument_spec"]
    for option, facts in spec.items():
        if any(word in option for word in ("authkey", "password", "secret", "token")):
            assert "no_log" in facts, f"{option} looks like a secret: say no_log true or false"


def test_examples_use_what_the_module_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_module(name)
    spec = _ansible_module_arguments(module, monkeypatch)["argument_spec"]
    tasks = yaml.safe_load(module.EXAMPLES)
    assert isinstance(tasks, list) and tasks
    used = 0
    for task in tasks:
        assert task.get("name"), f"an example of {name} has no name"
        for key, value in task.items():
            if key == name:
                used += 1
                assert list(_values(spec, value or {}, f"example '{task['name']}'")) == []
            elif key not in TASK_KEYWORDS:
                assert "." in key, f"example '{task['name']}': {key} is neither {name} nor a keyword"
    assert used, f"no example uses {name}"


def test_return_values_are_described(name: str) -> None:
    returned = yaml.safe_load(load_module(name).RETURN)
    assert isinstance(returned, dict)

    def check(values: dict[str, Any], where: str, top: bool) -> None:
        for key, value in values.items():
            assert isinstance(value, dict), f"{where}{key}: not described"
            assert value.get("description"), f"{where}{key}: no description"
            assert value.get("type"), f"{where}{key}: no type"
            assert not top or value.get("returned"), f"{where}{key}: does not say when it is returned"
            check(value.get("contains") or {}, f"{where}{key}.", top=False)

    check(returned, "", top=True)


#: Modules that are a shell around a core of another name, and why.
OTHER_CORE = {
    "fsync_bench": "fsync_gate: measures by the core fsync_bench, and judges",
    "power_cut_ledger": "power_cut, with the one below: two steps of one test",
    "power_cut_watch": "power_cut",
}


def test_a_module_and_its_core_carry_one_name(name: str) -> None:
    text = (ROOT / f"library/{name}.py").read_text()
    cores = set(re.findall(r"^from ansible\.module_utils\.pveguard\.\w+ import (.*)$", text, re.MULTILINE))
    named = {core.strip() for names in cores for core in names.split(",")}
    assert (name in named) is (name not in OTHER_CORE)
