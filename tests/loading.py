# SPDX-License-Identifier: Apache-2.0
"""Loads files that are no part of a package: modules, filters, programs of bench/ and scripts/."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def load_file(path: str) -> ModuleType:
    """The file at ``path`` in the checkout as a fresh module, with a name of its own."""
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_module(name: str) -> ModuleType:
    """library/NAME.py as a fresh Python module; its main() is not run."""
    return load_file(f"library/{name}.py")


def load_filters(name: str) -> ModuleType:
    """The filters of module_utils/pveguard/filters/NAME.py."""
    return importlib.import_module(f"ansible.module_utils.pveguard.filters.{name}")
