#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the variable tables of the roles' READMEs from their meta/argument_specs.yml, and the list of roles in README.md.

The table stands between ``<!-- variables -->`` and ``<!-- /variables -->``, the list between the same with ``roles``.
With ``--check`` nothing is written and the exit code is 1 when one of them is not up to date. Roles may be named; all are
the default.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "module_utils"))

from pveguard.base.variables import limits_text  # noqa: E402
from pveguard.cluster import roles as descriptions  # noqa: E402

START = "<!-- variables -->"
END = "<!-- /variables -->"
#: Ansible's markup of a code word, option, value or environment variable.
_MARKUP = re.compile(r"\b[COVE]\(([^()]*)\)")


class RoleDocsError(Exception):
    """A README or an argument_specs.yml that cannot be used; the message names the file."""


def options(specs: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, option) of every entry point, each name once; suboptions as ``name.sub``."""
    seen: set[str] = set()
    entries = specs.get("argument_specs") or {}
    for entry in sorted(entries, key=lambda name: (name != "main", name)):
        for name, option in _flat("", entries[entry].get("options") or {}):
            if name not in seen:
                seen.add(name)
                yield name, option


def _flat(prefix: str, spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, option in spec.items():
        yield prefix + name, option
        yield from _flat(f"{prefix}{name}.", option.get("options") or {})


def _default(option: dict[str, Any]) -> str:
    if option.get("required"):
        return "required"
    value = option.get("default")
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`" if text else '`""`'


def _meaning(option: dict[str, Any]) -> str:
    description = option.get("description") or ""
    lines = description if isinstance(description, list) else [description]
    text = " ".join(" ".join(str(line).split()) for line in lines)
    if option.get("choices"):
        text += " One of " + ", ".join(f"`{choice}`" for choice in option["choices"]) + "."
    return _MARKUP.sub(lambda match: f"`{match[1]}`", text).strip()


def table(specs: dict[str, Any]) -> str:
    """The Markdown table for a parsed argument_specs.yml; a sentence when there is no variable."""
    rows = []
    for name, option in options(specs):
        kind = option.get("type", "str")
        if option.get("elements"):
            kind += f" of {option['elements']}"
        kind += limits_text(name, option, ", ")
        cells = (f"`{name}`", kind, _default(option), _meaning(option))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if not rows:
        return "This role has no variables.\n"
    return "\n".join(["| Variable | Type | Default | Meaning |", "|---|---|---|---|", *rows]) + "\n"


def readme_with_table(role: Path) -> tuple[str, str]:
    """(README.md as it is, README.md as it should be) of the role in folder ``role``."""
    specs_file, readme = role / "meta" / "argument_specs.yml", role / "README.md"
    for path in (specs_file, readme):
        if not path.is_file():
            raise RoleDocsError(f"{path.relative_to(ROOT)} is missing")
    old = readme.read_text()
    head, start, rest = old.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end:
        raise RoleDocsError(f"{readme.relative_to(ROOT)} has no {START} ... {END}")
    specs = yaml.safe_load(specs_file.read_text())
    described = role / "meta" / "pveguard.yml"
    if described.is_file():
        (found,) = descriptions.read({role.name: yaml.safe_load(described.read_text())})
        every = [entry.get("options") or {} for entry in specs["argument_specs"].values()]
        # Entry points share their options.
        descriptions.add_limits(found, {name: option for options in every for name, option in options.items()})
    return old, f"{head}{START}\n{table(specs)}{END}{tail}"


def readme_with_roles() -> tuple[str, str]:
    """(README.md of the project as it is, as it should be)."""
    old = (ROOT / "README.md").read_text()
    head, start, rest = old.partition("<!-- roles -->")
    _, end, tail = rest.partition("<!-- /roles -->")
    if not start or not end:
        raise RoleDocsError("README.md has no <!-- roles --> ... <!-- /roles -->")
    links = ", ".join(f"[`{path.name}`](roles/{path.name}/README.md)" for path in sorted(ROOT.glob("roles/*")) if path.is_dir())
    wrapped = textwrap.fill(f"Roles: {links}", 118, break_long_words=False, break_on_hyphens=False)
    return old, f"{head}{start}\n{wrapped}\n{end}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Variable tables of the roles' READMEs.")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when a table is old")
    parser.add_argument("roles", nargs="*", help="names of roles (default: all)")
    arguments = parser.parse_args()
    roles = [ROOT / "roles" / name for name in arguments.roles] or sorted(
        path for path in ROOT.glob("roles/*") if path.is_dir()
    )
    status = 0
    pages: list[tuple[Path, Callable[[], tuple[str, str]]]]
    pages = [(role / "README.md", functools.partial(readme_with_table, role)) for role in roles]
    if not arguments.roles:
        pages.append((ROOT / "README.md", readme_with_roles))
    for file, pair in pages:
        path = file.relative_to(ROOT)
        try:
            old, new = pair()
        except RoleDocsError as error:
            print(f"role_docs: {error}", file=sys.stderr)
            status = 1
            continue
        if old == new:
            continue
        if arguments.check:
            print(f"role_docs: {path} is not up to date; run `make docs`", file=sys.stderr)
            status = 1
        else:
            file.write_text(new)
            print(f"role_docs: wrote {path}")
    return status


if __name__ == "__main__":
    sys.exit(main())
