# SPDX-License-Identifier: Apache-2.0
"""What a switch, a number, a list or a text may look like, whether it comes from YAML, an INI inventory or -e."""

from __future__ import annotations

import datetime
from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.pveguard.base import variables
from ansible.module_utils.pveguard.base.errors import PveguardError

from tests.loading import load_filters, load_module
from tests.project.test_typed_variables import OPTIONS, SPECS, TYPES

TRUE = [True, 1, "true", "True", "TRUE", "yes", "Yes", "on", "1", "y", "t", " yes ", "yes\n"]
FALSE = [False, 0, "false", "False", "no", "No", "off", "OFF", "0", "n", "f", " no"]
NO_SWITCH = ["", " ", "maybe", "2", 2, "None", "null", "10", "truee", "{}", [], [True], {}, None, "nan", "1.5", 1.5]
NO_NUMBER = ["", " ", "5s", "10 MiB", "10%", "ten", "nan", "inf", "-inf", "Infinity", "1e400", "1e999999999", "0x10",
             "1_000", "1,5", "1 0", "--1", "True", "٣", "1" * 500,
             True, False, None, [], [1], {}, float("nan"), float("inf"), 10**400]  # fmt: skip


@pytest.fixture(scope="module")
def filters() -> dict[str, Any]:
    module: ModuleType = load_filters("playbooks")
    found: dict[str, Any] = module.FILTERS
    return found


@pytest.mark.parametrize(("values", "wanted"), [(TRUE, True), (FALSE, False)])
def test_switches(values: list[Any], wanted: bool) -> None:
    for value in values:
        assert variables.as_bool(value) is wanted, value
        assert variables.problems("x", value, {"type": "bool"}) == [], value


@pytest.mark.parametrize("value", NO_SWITCH)
def test_what_is_no_switch_is_never_false(value: Any, filters: dict[str, Any]) -> None:
    with pytest.raises(PveguardError, match="not true or false"):
        variables.as_bool(value)
    with pytest.raises(AnsibleFilterError, match="not true or false"):
        filters["pveguard_bool"](value)
    assert len(variables.problems("x", value, {"type": "bool", "default": True})) == 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(10, 10), ("10", 10), (" 10 ", 10), ("+10", 10), ("1e3", 1000), ("10.0", 10), (10.0, 10), ("-5", -5), ("007", 7), ("0", 0)],
)
def test_whole_numbers(value: Any, wanted: int) -> None:
    assert variables.as_int(value) == wanted and type(variables.as_int(value)) is int
    assert variables.as_float(value) == wanted and type(variables.as_float(value)) is float


def test_large_whole_numbers_keep_their_last_digit() -> None:
    assert variables.as_int("9223372036854775807") == 2**63 - 1


@pytest.mark.parametrize(("value", "wanted"), [("2.5", 2.5), (".5", 0.5), ("5.", 5.0), ("1e-1", 0.1), (2, 2.0), (2.5, 2.5)])
def test_numbers(value: Any, wanted: float) -> None:
    assert variables.as_float(value) == wanted


@pytest.mark.parametrize("value", NO_NUMBER)
def test_what_is_no_number_is_never_zero(value: Any, filters: dict[str, Any]) -> None:
    for name in ("as_int", "as_float"):
        with pytest.raises(PveguardError, match="not a (whole )?number"):
            getattr(variables, name)(value)
    with pytest.raises(AnsibleFilterError):
        filters["pveguard_float"](value)


@pytest.mark.parametrize("value", ["2.5", 2.5, "1e-1"])
def test_a_part_of_a_whole_number_is_none(value: Any) -> None:
    with pytest.raises(PveguardError, match="whole number"):
        variables.as_int(value)


@pytest.mark.parametrize("kind", ["bool", "int", "float"])
def test_what_is_taken_here_is_taken_by_roles_and_modules_with_the_same_value(kind: str) -> None:
    """A role checks its arguments once more, and a module converts them: neither may refuse or change what passed before."""
    convert = {"bool": variables.as_bool, "int": variables.as_int, "float": variables.as_float}[kind]
    taken = 0
    for value in [*TRUE, *FALSE, *NO_SWITCH, *NO_NUMBER, 10, "10", " 10 ", "1e3", "10.0", 10.0, "-5", "2.5", ".5", "5.", "+1"]:
        try:
            wanted = convert(value)
        except PveguardError:
            continue
        result = ArgumentSpecValidator({"x": {"type": kind}}).validate({"x": value})
        assert not result.error_messages and result.validated_parameters["x"] == wanted, (kind, value)
        taken += 1
    assert taken > 10


def test_each_number_has_limits_and_each_limit_a_number() -> None:
    numbers = {"corosync_node_id"}  # judged with the membership
    described = {}

    def collect(name: str, spec: dict[str, Any]) -> None:
        if spec.get("type") in ("int", "float") and not spec.get("choices"):
            numbers.add(name)
            described.update({name: spec["limits"]} if spec.get("limits") else {})
        for key, sub in (spec.get("options") or {}).items():
            collect(f"{name}.{key}", sub)

    for name, spec in OPTIONS.items():
        collect(name, spec)
    assert "ha_release_wait_seconds" in described and not set(described) & set(variables.LIMITS)
    assert set(variables.LIMITS) | set(described) == numbers - {"corosync_node_id"}
    assert all(low < high for low, high in [*variables.LIMITS.values(), *described.values()])


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_each_default_can_be_given(name: str) -> None:
    default = OPTIONS[name].get("default")
    if default is not None and not (isinstance(default, str) and "{{" in default):
        assert variables.problems(name, default, OPTIONS[name]) == []
        if name in TYPES:
            assert variables.problems(name, str(default), OPTIONS[name]) == []


@pytest.mark.parametrize("name", sorted(TYPES))
def test_each_switch_and_number_refuses_what_it_cannot_be(name: str) -> None:
    spec = OPTIONS[name]
    wrong: list[Any] = ["", "  ", "maybe", "5s", "nan", "inf", "None", [], {}]
    # The range of a node id is judged with the membership.
    wrong += ["-1e9", "1e19"] if name != "corosync_node_id" else []
    wrong += [None] if spec.get("default") is not None else []
    for value in wrong:
        found = variables.problems(name, value, spec)
        assert len(found) == 1 and found[0].startswith(name), (value, found)


@pytest.mark.parametrize("name", sorted(variables.LIMITS))
def test_no_module_refuses_what_is_within_the_limits(name: str) -> None:
    low, high = variables.LIMITS[name]
    if name.startswith("link_gate_"):
        bounds = load_module("link_bench")._BOUNDS.get(name.removeprefix("link_gate_"))
        assert bounds is None or bounds[:2] == (low, high)
    if name == "fsync_gate_duration":
        assert low > 0 and high <= 600


def test_link_options_and_crypto_are_those_of_the_module() -> None:
    def bare(options: dict[str, Any]) -> dict[str, Any]:
        keys = ("type", "choices", "required")
        return {name: {key: spec[key] for key in keys if spec.get(key)} for name, spec in options.items()}

    for variable, argument in (("corosync_link_options", "links"), ("corosync_crypto", "crypto")):
        assert bare(OPTIONS[variable]["options"]) == bare(SPECS["corosync_conf"][argument]["options"])


@pytest.mark.parametrize(
    ("spec", "value", "words"),
    [
        ({"type": "bool", "default": True}, "", "x is empty, wanted true or false; leave it out for the default (True)"),
        ({"type": "bool", "default": True}, None, "x is null, wanted true or false; leave it out for the default (True)"),
        ({"type": "float"}, "5s", "x '5s' is not a number; write the number alone, without a unit"),
        ({"type": "int", "choices": [0, 1]}, "2", "x '2' is not one of 0, 1"),
        ({"type": "str"}, 9.1, "x 9.1 is a number, wanted text. Put it in quotes"),
        ({"type": "str"}, False, "x False is true or false: YAML takes a bare yes, no, on and off for one, wanted text. Put it"),
        ({"type": "str", "choices": ["", "a"]}, "b", "x 'b' is not one of \"\", a"),
        ({"type": "list", "elements": "str"}, "a,b", "x 'a,b' is text, not a list: write x: [VALUE, VALUE], on the command line"),
        ({"type": "list", "elements": "str"}, '["a"]', "is text, not a list"),
        ({"type": "list", "elements": "str"}, {"a": 1}, "is a mapping, not a list"),
        ({"type": "list", "elements": "str", "choices": ["a"]}, ["a", "b"], "x[1] 'b' is not one of a"),
        ({"type": "list", "elements": "str"}, ["a", None], "x[1] is null"),
        ({"type": "list", "elements": "str"}, [True], "x[0] True is true or false"),
        ({"type": "dict"}, "a=b", "x 'a=b' is text, not a mapping"),
        ({"type": "dict"}, {"a": [1]}, "x.a is a list, wanted text, a number, true or false"),
        ({"type": "dict", "options": {"a": {"type": "int"}}}, {"b": 1}, "x has the unknown key 'b', known are a"),
        ({"type": "list", "elements": "dict", "options": {"a": {"type": "int", "required": True}}}, [{}], "x[0] has no a, "),
        ({"type": "list", "elements": "dict", "options": {"a": {"type": "int"}}}, [{"a": "b"}], "x[0].a 'b' is not a whole"),
        ({"type": "path", "default": "/a"}, " ", "x is empty, wanted a path; leave it out for the default ('/a')"),
        ({"type": "int"}, datetime.date(2026, 1, 1), "x 2026-01-01 is not a whole number"),
        ({"type": "str"}, datetime.date(2026, 1, 1), "x 2026-01-01 is date, wanted text"),
        ({"type": "str", "no_log": True}, 5, "x (not shown) is a number"),
    ],
)  # fmt: skip
def test_a_mistake_says_what_was_seen_and_what_is_wanted(spec: dict[str, Any], value: Any, words: str) -> None:
    (found,) = variables.problems("x", value, spec)
    assert words in found, found
    assert spec.get("no_log") is None or "5" not in found


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ({"type": "int"}, None),
        ({"type": "str"}, ""),
        ({"type": "path"}, ""),
        ({"type": "list", "elements": "str"}, []),
        ({"type": "dict"}, {"a": None, "b": True, "c": 1}),
        ({"type": "raw"}, object()),
        ({"type": "int"}, variables.UNKNOWN),
        ({"type": "list", "elements": "str"}, ["a", variables.UNKNOWN]),
        ({"type": "list", "elements": "dict", "options": {"a": {"type": "int"}}}, [{"a": "1"}, {}]),
    ],
)
def test_what_is_right(spec: dict[str, Any], value: Any) -> None:
    assert variables.problems("x", value, spec) == []
