# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of modules."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils._internal
import ansible.module_utils.common.warnings
import pytest
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).resolve().parent.parent
RunModule = Callable[..., dict[str, Any]]


def load_file(name: str, path: Path) -> ModuleType:
    """A file that is no part of a package, as a module called ``name``."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_module(name: str) -> ModuleType:
    """library/NAME.py as a fresh Python module; its main() is not run."""
    return load_file(f"library_{name}", ROOT / "library" / f"{name}.py")


@pytest.fixture
def load_filters() -> Callable[[str], ModuleType]:
    """Loads a file of ``filter_plugins/`` by its name, without .py."""
    return lambda name: load_file(f"filters_{name}", ROOT / "filter_plugins" / f"{name}.py")


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
        return result

    return run
