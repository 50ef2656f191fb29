# SPDX-License-Identifier: Apache-2.0
"""Log lines as the daemon writes them: `[domain] level: text`, to syslog and, until detached, to stderr."""

from __future__ import annotations

import sys
import syslog

PRIORITY = {
    "crit": syslog.LOG_CRIT,
    "warning": syslog.LOG_WARNING,
    "notice": syslog.LOG_NOTICE,
    "debug": syslog.LOG_DEBUG,
}


class Log:
    """Debug lines go through `write`; callers test `debugging` first, to build no text for nothing."""

    def __init__(self) -> None:
        self.debugging = False
        self.stderr = True
        syslog.openlog("pmxcfs", syslog.LOG_PID, syslog.LOG_DAEMON)

    def write(self, level: str, domain: str, text: str) -> None:
        # A name in it need not be UTF-8.
        line = f"[{domain}] {level}: {text}".replace("\0", "\\0").encode(errors="backslashreplace").decode()
        syslog.syslog(PRIORITY[level], line)
        if self.stderr:
            print(line, file=sys.stderr, flush=True)

    def crit(self, domain: str, text: str) -> None:
        self.write("crit", domain, text)

    def warning(self, domain: str, text: str) -> None:
        self.write("warning", domain, text)

    def notice(self, domain: str, text: str) -> None:
        self.write("notice", domain, text)
