# SPDX-License-Identifier: Apache-2.0
"""Settings of a node (state.json)."""

from __future__ import annotations

import json
import os

from ..pmxcfs.tree import NOISE, Noise
from .exits import UsageError
from .paths import Paths, below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

KEEP_AT_LEAST = 5
DEFAULTS: dict[str, Any] = {
    "rpo_seconds": 2.0,
    "max_version_lag": 1000,
    "noise": list(NOISE),
    "tmpfs_mib": 0,
    "generations_keep": 14,
    "generations_max_age_days": 365,
    "deadline_seconds": 300,
    "metrics_dir": "",
}


class Config:
    """Settings from /etc/pveguard/state.json over the defaults. Unknown keys and bad patterns are errors."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        values = dict(values or {})
        unknown = sorted(set(values) - set(DEFAULTS))
        if unknown:
            raise UsageError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(DEFAULTS))}")
        merged = {**DEFAULTS, **values}
        self.rpo = float(merged["rpo_seconds"])
        self.max_lag = int(merged["max_version_lag"])
        self.tmpfs_mib = int(merged["tmpfs_mib"])
        self.keep = max(KEEP_AT_LEAST, int(merged["generations_keep"]))
        self.max_age_days = int(merged["generations_max_age_days"])
        self.deadline = float(merged["deadline_seconds"])
        if self.rpo < 0.5:
            raise UsageError(f"rpo_seconds is {self.rpo:g}; it must be 0.5 or more")
        if self.max_lag < 1:
            raise UsageError(f"max_version_lag is {self.max_lag}; it must be 1 or more")
        if not 0 <= self.max_age_days <= 36500:
            raise UsageError(
                f"generations_max_age_days is {self.max_age_days}; it must be 0 (never) to 36500"
            )
        self.metrics_dir = merged["metrics_dir"]
        if not isinstance(self.metrics_dir, str) or self.metrics_dir and not self.metrics_dir.startswith("/"):
            raise UsageError(f"metrics_dir is {self.metrics_dir!r}; it must be an absolute path, or empty")
        if below(os.path.normpath(self.metrics_dir or "/"), "/etc/pve"):
            raise UsageError(
                f"metrics_dir is {self.metrics_dir}: a file there would be a change on every member"
            )
        try:
            self.noise = Noise(merged["noise"])
        except ValueError as error:
            raise UsageError(str(error)) from error
        # Names of generations that this process is about to restore.
        self.in_use: set[str] = set()
        # Whether this process restores states that are strange.
        self.unsound = False

    @classmethod
    def load(cls, paths: Paths) -> Config:
        try:
            with open(paths.config, encoding="utf-8") as handle:
                values = json.load(handle)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            raise UsageError(f"{paths.config}: {error}") from error
        if not isinstance(values, dict):
            raise UsageError(f"{paths.config}: expected a JSON object")
        try:
            return cls(values)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{paths.config}: {error}") from error
        except UsageError as error:
            raise UsageError(f"{paths.config}: {error}") from error


def given_config(text: str) -> Config:
    """Settings given on the command line as a JSON object."""
    try:
        values = json.loads(text)
        return Config(values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--config: {error}") from error
