# SPDX-License-Identifier: Apache-2.0
"""What Ansible loads of this project's filters: all that the files of module_utils/pveguard/filters/ list."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible.module_utils

_MODULE_UTILS = str(Path(__file__).resolve().parent.parent / "module_utils")
# Filters are loaded by the controller, which does not know this project's module_utils as modules do.
if _MODULE_UTILS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils.pveguard import filters


class FilterModule:
    """Filters of pveguard."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> filter, of all files. ValueError for a name that two of them give."""
        found: dict[str, Callable[..., Any]] = {}
        for file in pkgutil.iter_modules(filters.__path__):
            own: dict[str, Callable[..., Any]] = importlib.import_module(f"{filters.__name__}.{file.name}").FILTERS
            if twice := sorted(found.keys() & own.keys()):
                raise ValueError(f"module_utils/pveguard/filters/{file.name}.py: {', '.join(twice)} is there already")
            found.update(own)
        return found
