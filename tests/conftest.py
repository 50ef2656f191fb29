# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of modules."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import ansible.module_utils._internal
import ansible.module_utils.common.warnings
import pytest
from ansible.module_utils.testing import patch_module_args

from tests.loading import load_module

RunModule = Callable[..., dict[str, Any]]


@pytest.fixture
def quick_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """time.sleep() of this process returns at once and time.monotonic() goes on as if it had slept."""
    slept = 0.0
    monotonic = time.monotonic

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + slept)


@pytest.fixture
def run_module(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunModule:
    """Run an Ansible module in this process: ``run_module("pve_file", path=..., _ansible_check_mode=True)``.

    ``name`` is the name of a file in library/ or an already loaded module (to patch its core first).
    Returns what the module printed: the dict of exit_json, or of fail_json with ``failed: True``.
    """

    # Other tests import Ansible's controller, and a module's warnings would go to its display instead of the result.
    monkeypatch.setattr(ansible.module_utils._internal, "is_controller", False)
    monkeypatch.setattr(ansible.module_utils.common.warnings, "_global_warnings", {})

    def run(name: str | ModuleType, /, **arguments: Any) -> dict[str, Any]:
        module = load_module(name) if isinstance(name, str) else name
        capfd.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        printed = capfd.readouterr().out.strip().splitlines()
        assert printed, "the module printed nothing"
        result = json.loads(printed[-1])
        assert isinstance(result, dict)
        assert "deprecations" not in result, result["deprecations"]
        return result

    return run
