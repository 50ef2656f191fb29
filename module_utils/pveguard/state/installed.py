# SPDX-License-Identifier: Apache-2.0
"""What of RAM state is installed on a node: few imports, because node_info asks it of every node in every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..base import program_version
from ..base.file_state import look

NAME, COMMAND = "pve-state", "/usr/local/sbin/pve-state"
CONFIG = "/etc/pveguard/state.json"
#: The drop-in of pve-cluster.service waits here; the switch-over puts it in place at the right moment.
DROP_IN_SOURCE = "/etc/pveguard/pve-cluster.conf"
DROP_IN = "/etc/systemd/system/pve-cluster.service.d/pveguard.conf"
UNIT_DIR = "/etc/systemd/system"
WATCH_UNIT = "pveguard-state-watch.service"
#: The files of the role's folder files/units, by their names on a node.
UNITS = (
    "pveguard-state.service",
    WATCH_UNIT,
    r"var-lib-pve\x2dcluster-backup.mount",
    r"var-lib-pve\x2dcluster.mount",
)


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """``{program: its version, "" where it is not whole, files: {path: what is there}}`` (core ``file_state``), of the settings,
    the drop-ins, the units and the link to the metrics.
    """
    paths = [CONFIG, DROP_IN_SOURCE, DROP_IN, *(f"{UNIT_DIR}/{name}" for name in UNITS)]
    folder = metrics_dir(root)
    paths += [metrics_link(folder)] if folder else []
    return {
        "program": program_version.installed(NAME, COMMAND, root),
        "files": {path: look(root / path.lstrip("/")) for path in paths},
    }


def metrics_dir(root: Path = Path("/")) -> str:
    """Where the settings on this node want the link to the metrics; empty for nowhere, or without settings."""
    try:
        found = json.loads((root / CONFIG.lstrip("/")).read_text()).get("metrics_dir")
    except (OSError, ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) and found.startswith("/") else ""


def metrics_link(folder: str) -> str:
    """The link's path in the directory of an exporter."""
    return f"{folder}/pveguard-state.prom"
