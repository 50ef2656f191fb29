# SPDX-License-Identifier: Apache-2.0
"""No key twice in a mapping, merged ones included: Ansible warns of it on every run, and yamllint sees no merge."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


class _Loader(yaml.SafeLoader):
    """Notes keys that a mapping has twice once ``<<`` is merged in."""

    twice: list[str]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        self.flatten_mapping(node)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                self.twice.append(f"line {key.start_mark.line + 1}: {key.value}")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_constructor("!vault", lambda loader, node: "")  # type: ignore[no-untyped-call]
_Loader.add_constructor("!unsafe", lambda loader, node: "")  # type: ignore[no-untyped-call]
_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG,
    lambda loader, node: loader.construct_mapping(node, deep=True),
)  # type: ignore[no-untyped-call]


def _twice(text: str) -> list[str]:
    loader = _Loader(text)
    loader.twice = []
    try:
        while loader.check_data():
            loader.get_data()
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]
    return loader.twice


def test_a_key_over_a_merged_one_is_seen() -> None:
    assert _twice("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\n") == []
    assert _twice("a: &a {x: 1}\nb:\n  <<: *a\n  x: 2\n") == ["line 4: x"]


def test_no_file_has_a_key_twice() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.yml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = tracked.stdout.split()
    assert "roles/fsync_gate/tasks/measure.yml" in names
    found = {name: twice for name in names if (twice := _twice((ROOT / name).read_text()))}
    assert found == {}
