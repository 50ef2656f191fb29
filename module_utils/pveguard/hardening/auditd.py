# SPDX-License-Identifier: Apache-2.0
"""The kernel's audit log: what happens when it is full, and rules that meet /etc/pve."""

from __future__ import annotations

import re
import shlex

from .looking import Facts, Looking, area, lines, settings, writer

CONF = "/etc/audit/auditd.conf"
RULES = "/etc/audit/audit.rules"
KEYS = (
    "admin_space_left_action",
    "disk_error_action",
    "disk_full_action",
    "max_log_file_action",
    "space_left_action",
)
USUAL = "dev-sec or a CIS role"


@area
def look(looking: Looking) -> Facts:
    """``installed``; ``actions`` ({key: value} of KEYS, in small letters), ``by``; ``rules`` that meet /etc/pve or change how the
    kernel fails (path, line, what, by).
    """
    text = looking.text(CONF)
    files = looking.texts(("/etc/audit/rules.d",), ".rules")
    # Made of rules.d by augenrules: what stands in both is told once.
    if not files and (compiled := looking.text(RULES)) is not None:
        files = [(RULES, compiled)]
    installed = text is not None or bool(files) or looking.exists("/usr/sbin/auditd")
    values = settings(text or "")
    rules: list[Facts] = []
    for path, content in files:
        by = writer(path, content, USUAL)
        rules += [
            {"path": path, "line": line, "what": what, "by": by}
            for line in lines(content)
            if (what := kind(line))
        ]
    return {
        "installed": installed or bool(looking.unread),
        "actions": {key: values[key].lower() for key in KEYS if key in values},
        "by": writer(CONF, text or "", USUAL),
        "rules": rules,
    }


def kind(line: str) -> str:
    """``watch`` (of /etc/pve as a whole), ``beat`` (of the file of the LRM), ``immutable``, ``panic``, or empty."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    pairs = dict(zip(words, words[1:], strict=False))
    if pairs.get("-e") == "2":
        return "immutable"
    if pairs.get("-f") == "2":
        return "panic"
    paths = [following for word, following in zip(words, words[1:], strict=False) if word == "-w"]
    paths += [match[1] for word in words if (match := re.match(r"(?:path|dir)=(.*)", word))]
    for path in paths:
        path = path.rstrip("/")
        if path in ("/etc/pve", "/etc/pve/local", "/etc/pve/nodes") or re.match(
            r"/etc/pve/nodes/[^/]+\Z", path
        ):
            return "watch"
        if path.endswith("/lrm_status"):
            return "beat"
    return ""
