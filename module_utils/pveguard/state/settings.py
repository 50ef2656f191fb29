# SPDX-License-Identifier: Apache-2.0
"""Settings of a node (state.json), and what is noise."""

from __future__ import annotations

import json
import os
import re

from .exits import UsageError
from .generations import KEEP_AT_LEAST
from .login import below

DEFAULTS = {
    "rpo_seconds": 2.0,
    "max_version_lag": 1000,
    "noise": [
        r"^nodes/[^/]+/lrm_status$",
        r"^ha/manager_status$",
        r"^priv/lock/.+$",
        r"^(?:.*/)?[^/]+\.tmp\.[0-9]+$",
    ],
    "tmpfs_mib": 0,
    "generations_keep": 14,
    "generations_max_age_days": 365,
    "deadline_seconds": 300,
    "metrics_dir": "",
}
# Paths that no noise pattern may match: losing one of them is losing configuration.
NEVER_NOISE = (
    "corosync.conf",
    "storage.cfg",
    "user.cfg",
    "datacenter.cfg",
    "ha/resources.cfg",
    "nodes/n/qemu-server/100.conf",
    "nodes/n/lxc/100.conf",
    "priv/authorized_keys",
    "priv/shadow.cfg",
    "firewall/cluster.fw",
    "priv",
    "nodes",
    "nodes/n",
)


class Config:
    """Settings from /etc/pveguard/state.json over the defaults. Unknown keys and bad patterns are errors."""

    def __init__(self, values=None):
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
        self.noise = Noise(merged["noise"])
        # Names of generations that this process is about to restore.
        self.in_use = set()
        # Whether this process restores states that are strange.
        self.unsound = False

    @classmethod
    def load(cls, paths):
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


class Noise:
    """Which paths carry no configuration. A path below a noisy directory is noise as well."""

    def __init__(self, patterns):
        for pattern in patterns:
            if not (pattern.startswith("^") and pattern.endswith("$")):
                raise UsageError(f"noise pattern {pattern!r} must begin with ^ and end with $")
            try:
                compiled = re.compile(pattern, re.DOTALL)
            except re.error as error:
                raise UsageError(f"noise pattern {pattern!r}: {error}") from error
            for path in NEVER_NOISE:
                if compiled.fullmatch(path):
                    raise UsageError(
                        f"noise pattern {pattern!r} matches {path}: that would lose configuration"
                    )
        self.patterns = list(patterns)
        joined = "|".join(f"(?:{pattern})" for pattern in patterns)
        self._match = re.compile(joined, re.DOTALL).fullmatch if patterns else None

    def matches(self, path):
        """True for a path (no leading slash) that is noise, by itself or by a directory above it."""
        if self._match is None:
            return False
        if self._match(path):
            return True
        cut = path.rfind("/")
        while cut > 0:
            path = path[:cut]
            if self._match(path):
                return True
            cut = path.rfind("/")
        return False


def given_config(text):
    """Settings given on the command line as a JSON object."""
    try:
        values = json.loads(text)
        return Config(values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--config: {error}") from error
