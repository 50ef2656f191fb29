# SPDX-License-Identifier: Apache-2.0
"""What every test folder shares: the import path of the cores, and which tests cannot run here and why."""

from __future__ import annotations

import os
from pathlib import Path

import ansible.module_utils
import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent

# As in the filter plugins: `ansible.module_utils.pveguard` is the one import name of the cores.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

# Two busy cores make any time limit of an example a matter of luck.
hypothesis.settings.register_profile("pveguard", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("pveguard")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("campaign") and "PVEGUARD_CAMPAIGN" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="in `make campaign`"))
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
