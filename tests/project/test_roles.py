# SPDX-License-Identifier: Apache-2.0
"""Each role's specs, defaults and README say the same."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.loading import load_file

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").glob("*") if path.is_dir())

pytestmark = pytest.mark.parametrize("role", ROLES)


def _role_docs() -> ModuleType:
    return load_file("scripts/role_docs.py")


def _yaml(role: str, path: str) -> dict[str, Any]:
    file = ROOT / "roles" / role / path
    assert file.is_file(), f"roles/{role}/{path} is missing"
    return yaml.safe_load(file.read_text()) or {}


def _options(role: str) -> dict[str, dict[str, Any]]:
    """Top-level options of all entry points."""
    found: dict[str, dict[str, Any]] = {}
    for entry in _yaml(role, "meta/argument_specs.yml")["argument_specs"].values():
        found.update(entry.get("options") or {})
    return found


def test_readme_table_is_generated(role: str) -> None:
    old, new = _role_docs().readme_with_table(ROOT / "roles" / role)
    assert old == new, f"roles/{role}/README.md: run `make docs`"


def test_the_project_s_readme_links_it(role: str) -> None:
    old, new = _role_docs().readme_with_roles()
    assert old == new and f"(roles/{role}/README.md)" in new, "README.md: run `make docs`"


def test_entry_points_have_tasks_and_descriptions(role: str) -> None:
    specs = _yaml(role, "meta/argument_specs.yml")["argument_specs"]
    assert "main" in specs
    for entry, spec in specs.items():
        assert (ROOT / "roles" / role / "tasks" / f"{entry}.yml").is_file(), f"{role}: no tasks/{entry}.yml"
        assert spec.get("short_description"), f"{role}: entry point {entry} has no short_description"
        for name, option in (spec.get("options") or {}).items():
            assert option.get("description"), f"{role}: {name} has no description"
            assert option.get("type"), f"{role}: {name} has no type"


def test_variables_carry_the_name_of_their_role(role: str) -> None:
    # Variables of another role or of the run may be read, and are then documented where they belong.
    prefixes = tuple(f"{name}_" for name in [*ROLES, "pveguard"])
    for name in _options(role):
        assert name.startswith(prefixes), f"{role}: {name}"
    for name in _yaml(role, "defaults/main.yml"):
        assert name.startswith((f"{role}_", f"__{role}_")), f"{role}: defaults/main.yml has {name}"


def test_defaults_and_specs_agree(role: str) -> None:
    defaults = _yaml(role, "defaults/main.yml")
    options = _options(role)
    for name, value in defaults.items():
        if name.startswith("__"):
            continue
        assert name in options, f"{role}: {name} has a default but is not in argument_specs.yml"
        assert options[name].get("default") == value, f"{role}: two defaults of {name}"
    for name, option in options.items():
        if option.get("default") is not None and name.startswith(f"{role}_"):
            assert name in defaults, f"{role}: {name} has a default in argument_specs.yml only"


def test_meta_names_licence_and_platforms(role: str) -> None:
    galaxy = _yaml(role, "meta/main.yml")["galaxy_info"]
    assert galaxy["license"] == "Apache-2.0"
    assert galaxy["description"]
    assert galaxy["min_ansible_version"]
    releases = {release for platform in galaxy["platforms"] for release in platform.get("versions", [])}
    assert {"bookworm", "trixie"} <= releases or "all" in releases


def test_main_only_routes(role: str) -> None:
    """tasks/main.yml includes files named by what they do, or says why not; the work is in those files."""
    tasks = yaml.safe_load((ROOT / "roles" / role / "tasks" / "main.yml").read_text()) or []
    words = "import_tasks|include_tasks|import_role|include_role|meta|debug|assert|fail"
    routing = re.compile(rf"^(ansible\.builtin\.)?({words})$")
    for task in tasks:
        assert any(routing.match(key) for key in task), f"{role}: tasks/main.yml is more than routing: {task}"
