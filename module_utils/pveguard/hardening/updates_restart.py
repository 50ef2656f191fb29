# SPDX-License-Identifier: Apache-2.0
"""The change of unattended upgrades: judged by the sources of packages beforehand, and the timer told of its turn."""

from __future__ import annotations

from ..base.errors import PveguardError
from ..base.systemd import properties
from . import updates, updates_findings
from .change_parts import INSTALL, Around, Facts, Options, Work, command, is_on
from .updates_change import DROP_IN, TIMER, odd

#: Its files need nothing of the package, which is installed beside them: by itself it has Debian's wider settings.
FILES_FIRST = True


def refuse(options: Options, facts: Facts, around: Around) -> None:
    wrong = ("hardening-updates-mixed-releases", "hardening-updates-malformed", "hardening-updates-unsigned")
    sources = updates.look(around.root, around.run)
    if not sources["known"] and "apt-config" not in sources["error"]:
        raise PveguardError(f"where packages come from could not be read: {sources['error']}")
    if told := [each for each in updates_findings.findings(sources) if each.id in wrong]:
        raise PveguardError("; ".join(each.sentence for each in told))
    if why := odd(options, facts):
        raise PveguardError(f"the turn of this node is not known: {why}")
    if facts["later"]:
        raise PveguardError(
            f"{', '.join(facts['later'])} is read after {DROP_IN}, and may set another time: give it a name that sorts before"
        )


def prepare(options: Options, facts: Facts, around: Around) -> None:
    """Install what is asked for."""
    if not facts.get("installed") and is_on(options.get("install")):
        command(around.run, *INSTALL, "unattended-upgrades")


def activate(work: Work) -> None:
    """systemd reads the drop-in; a timer that runs gets its new time by a restart, which starts no service."""
    work.command("systemctl", "daemon-reload")
    state = properties(TIMER, ["LoadState", "ActiveState", "UnitFileState"], work.run)
    if state.get("LoadState") == "loaded" and state.get("ActiveState") == "active":
        work.command("systemctl", "restart", TIMER)
        work.done.append(f"{TIMER} restarted")
