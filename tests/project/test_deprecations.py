# SPDX-License-Identifier: Apache-2.0
"""Nothing of ours is deprecated in the ansible-core that is installed: neither what is parsed nor what is rendered."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from tests.project import ansible_runs

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = ["site.yml", *sorted(f"playbooks/{path.name}" for path in (ROOT / "playbooks").glob("*.yml"))]

DEPRECATED = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: "{{ play_hosts }}"
"""


def test_they_are_not_muted() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "ansible.cfg")
    assert config.getboolean("defaults", "deprecation_warnings", fallback=True)


def test_one_would_be_seen(tmp_path: Path) -> None:
    """Of a variable that ansible-core 2.19 to 2.22 call deprecated; take another one once it is gone."""
    (tmp_path / "play.yml").write_text(DEPRECATED)
    with pytest.raises(AssertionError, match="play_hosts"):
        ansible_runs.run("ansible-playbook", "-i", "localhost,", "-c", "local", tmp_path / "play.yml")


def test_every_task_is_listed_without_one() -> None:
    done = ansible_runs.run("ansible-playbook", "-i", "tests/project/hosts.yml", "--list-tasks", *PLAYBOOKS)
    assert "Refuse an inventory with mistakes" in done.stdout


def test_the_example_inventory_is_validated_without_one(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("example\n")
    where = ("-i", "inventory/example", "--vault-password-file", tmp_path / "password")
    done = ansible_runs.run("ansible-playbook", *where, "playbooks/validate.yml")
    assert "Validate the inventory" in done.stdout
