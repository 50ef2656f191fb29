# SPDX-License-Identifier: Apache-2.0
"""The command line of pve-state."""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import sys

from .enable import cmd_disable, cmd_enable
from .exits import (
    EXIT_DAMAGED,
    EXIT_ERROR,
    EXIT_LOCKED,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_RESTORE,
    EXIT_STORE,
    EXIT_SWITCH,
    EXIT_USAGE,
    VERSION,
    StateError,
    UsageError,
)
from .files import write_volatile
from .paths import Paths
from .preflight import cmd_check_config, cmd_check_login, cmd_preflight
from .restore_file import cmd_restore_file
from .restore_generation import cmd_restore
from .rollback import cmd_rollback
from .save import cmd_final_save, cmd_save
from .settings import Config
from .show import cmd_show
from .status import cmd_list, cmd_status, cmd_verify
from .system import log
from .watch import cmd_watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, NoReturn

    Command = Callable[[Paths, Config, Namespace], dict[str, Any]]
    Options = Callable[["Parser"], None]

GENERATION_HELP = (
    "a name from 'pve-state list' or the beginning of one; 'latest' is the newest good generation, 'replica' "
    "the last save, 'rescued' the rescue copy"
)
TOP_HELP = """\
Keeps the database of Proxmox's cluster file system in RAM and loses nothing.

The daemon (pmxcfs) works on /var/lib/pve-cluster/config.db, which lies on tmpfs. A replica on disk follows every
real change within seconds, is restored and verified before the daemon starts, and nothing else is ever started
on. Full copies of earlier states are kept as generations.
"""
TOP_MORE = """\
files:
  /var/lib/pve-cluster/        the live database, in RAM
  /var/lib/pveguard/state/     the store (root only: it holds keys):
      config.db                the replica
      generations/             full copies with their manifests
      rescue/                  what must not go over the replica
      damaged/                 what did not pass verification
  /var/lib/pveguard/backup/    /var/lib/pve-cluster/backup, on disk
  /etc/pveguard/state.json     settings, written by the role ram_state
  /run/pveguard/metrics.prom   metrics for an exporter of text files

examples:
  pve-state status                          # what would a power cut lose?
  pve-state show latest                     # what would that copy change?
  pve-state restore-file latest jobs.cfg    # one file back
  pve-state restore --generation latest     # the daemon does not start

Each command has --help and --json. See also docs/ram-state.md of pveguard.
"""
EXIT_TEXTS = {
    EXIT_OK: "done, or nothing to do",
    EXIT_ERROR: "unexpected error, or a node that is not healthy (status)",
    EXIT_USAGE: "wrong usage or settings",
    EXIT_REFUSED: "refused: a condition is not met, nothing was changed",
    EXIT_DAMAGED: "a state is damaged: verification failed",
    EXIT_STORE: "the store cannot be written or read (full, read-only, missing)",
    EXIT_LOCKED: "another process holds the lock",
    EXIT_RESTORE: "the restore failed: the daemon is not started (fail closed)",
    EXIT_SWITCH: "a switch-over failed; the former way of running was put back",
}
# Sections of the list of commands, in their order.
GROUPS = {
    "look": "looking at a node",
    "back": "bringing something back",
    "save": "saving",
    "move": "moving the state to RAM and back",
    "unit": "what the units run",
}
# name: (section, one line, more text, exit codes besides 0, 1 and 2)
COMMANDS = {
    "status": (
        "look",
        "show what is live, what is saved, what a power cut would lose",
        """\
One screen: is it mounted and how full, the last real change and the last save, the lag in seconds and versions,
the generations with their verification, what a start would put in place now, warnings with their fix, and the
files that would be lost if power failed now. Changes nothing.

For the seconds in which the units are started, as after a boot, the state is "starting": no failure, and the exit
code is 0. A unit that systemd starts again because it failed is one.

Generations that were not verified in this boot are, for up to two seconds; 'pve-state verify' looks at all. The
keys of --json and the metrics are described in docs/ram-state.md.

examples:
  pve-state status
  pve-state status --prometheus
""",
        (),
    ),
    "show": (
        "look",
        "show what differs between a generation and now, file by file",
        """\
"Now" is the live database while the daemon runs, else the replica. The list says what restoring the generation
would do: remove what came since, change, bring back. In the diffs, - is there now and would go, + was there then
and would come back. Noise is left out. Changes nothing.

Secret files (priv/, keys, tokens, shadow.cfg, tfa.cfg) are shown by size and sha256, and passwords in other files
are masked, unless --secrets is given; binary files by size and sha256.

FILE is a path below /etc/pve, absolute or relative to it, a file or a directory. The exit status is 0 whether or
not anything differs.

examples:
  pve-state show latest
  pve-state show 20261121T0408 qemu-server/100.conf
""",
        (EXIT_REFUSED, EXIT_DAMAGED, EXIT_STORE, EXIT_LOCKED),
    ),
    "list": (
        "look",
        "list the generations, newest first",
        """\
Ordered by lineage and version, not by the clock: a lineage begins where the state is no continuation of the one
before (a resync, a join, a restore). "good" and "BAD" are of the last verification in this boot. On a member, a
generation "from before the join" is a good file that can be no state of this node: restore refuses it as a whole,
and single files come back with restore-file.

examples:
  pve-state list
  pve-state list --verify
""",
        (),
    ),
    "verify": (
        "look",
        "verify the replica and all generations",
        """\
Integrity of the file, sha256 of the manifest, structure of the table (versions, names, directories, unique guest
ids), and for the replica a corosync.conf on a node that is a member of a cluster. Reads everything, changes nothing.

examples:
  pve-state verify
  pve-state verify --generation latest
  pve-state verify --file /mnt/backup/config.db
""",
        (EXIT_REFUSED, EXIT_DAMAGED),
    ),
    "restore": (
        "back",
        "restore the state before the daemon starts, or an older one",
        """\
Without options it is what pveguard-state.service runs at boot: it fills the fresh RAM file system from the replica,
once, verified, and fails closed otherwise.

With --generation it is the one command that fixes a failed start: it keeps what is there, puts the generation in
place and starts the daemon, which must not run. With --take-down the daemon may run: it is stopped and started
again as one step that is undone when it fails. With --resync a member starts empty and fetches all from the others.

Where a rescue copy is newer than the replica nothing is restored at boot: --rescued takes that copy, --replica the older
state. A state that the daemon would load but in which something is strange is refused unless --unsound is given.

Mind what an old state means in a cluster: while other members run, theirs wins. See docs/ram-state.md first.

examples:
  pve-state restore --generation latest
  pve-state restore --generation 20261121T0408 --take-down
  pve-state restore --resync
""",
        (EXIT_REFUSED, EXIT_DAMAGED, EXIT_STORE, EXIT_LOCKED, EXIT_RESTORE, EXIT_SWITCH),
    ),
    "restore-file": (
        "back",
        "bring one file or directory of a generation back",
        """\
Shows the difference, asks, cuts a generation of the present state, and writes the file below /etc/pve under a
temporary name that is then renamed: the daemon passes it on to all members. Needs the mounted file system and
quorum. A directory comes back with all below it; files that came since stay. A running guest takes its configuration
at its next start. Of everything ("/") corosync.conf, guests that moved and locked guests are left as they are. Each
run that changes something cuts a generation, so 'latest' is another one afterwards.

Refused: corosync.conf (the message says how), a guest that is there under another path, a locked guest, a directory
above PATH that is gone (--parents makes it), and no terminal to ask at without --yes. With --output or --stdout
nothing is refused and nothing is changed on /etc/pve; both work while the daemon is down.

examples:
  pve-state restore-file latest qemu-server/100.conf
  pve-state restore-file 20261121T0408 firewall --yes
  pve-state restore-file replica corosync.conf --output /root/corosync.conf
""",
        (EXIT_REFUSED, EXIT_DAMAGED, EXIT_STORE, EXIT_LOCKED),
    ),
    "save": (
        "save",
        "save the live state now",
        """\
The watcher does so by itself; this is for a full copy (--generation) and for scripts. Only what differs is written.
A state that the daemon could not load, or that was emptied, never goes over the replica: it is kept beside it as a rescue
copy (exit status 4), and 'pve-state status' says what to do.

examples:
  pve-state save --generation --reason 'before the upgrade'
""",
        (EXIT_REFUSED, EXIT_DAMAGED, EXIT_STORE, EXIT_LOCKED),
    ),
    "preflight": (
        "move",
        "check whether the node can switch to RAM; changes nothing",
        """\
Looks at the database, HA, running tasks, locked guests, RAM, disk, quorum, members that are down, and whether the
login in use works while /etc/pve is gone. All reasons against it come at once.

examples:
  pve-state preflight
""",
        (EXIT_REFUSED,),
    ),
    "enable": (
        "move",
        "move the state to RAM (daemon down for seconds)",
        """\
What the role ram_state runs. Refuses what 'preflight' refuses, and then: saves, stops the daemon, makes RAM the way to
start, starts it, and compares. On any failure stock is put back, and a timer does so if this program does not live to
do it. Run it on one node at a time.

examples:
  pve-state preflight && pve-state enable
""",
        (EXIT_REFUSED, EXIT_DAMAGED, EXIT_STORE, EXIT_LOCKED, EXIT_SWITCH),
    ),
    "disable": (
        "move",
        "move the state back to disk (daemon down for seconds)",
        """\
The counterpart of 'enable': the newest state to disk, verified, and the daemon started on it. Takes the state from RAM,
else from the replica, else from the newest good generation. The generations stay. Works with damaged settings too.

examples:
  pve-state disable
""",
        (EXIT_REFUSED, EXIT_DAMAGED, EXIT_STORE, EXIT_LOCKED, EXIT_SWITCH),
    ),
    "rollback": (
        "move",
        "put stock back after a switch-over that was left half way",
        """\
What the timer of a switch-over runs when it did not end in time. A switch-over that is still under way is stopped.
Does nothing when none is.

examples:
  pve-state rollback
""",
        (EXIT_STORE, EXIT_LOCKED, EXIT_SWITCH),
    ),
    "check-login": (
        "move",
        "prove that the login in use works while /etc/pve is gone",
        """\
On Proxmox /root/.ssh/authorized_keys is a link into /etc/pve. With --login-fallback a key that stands only there is
added to a file of sshd's that does not, marked pveguard-login-fallback; 'disable' takes it back.

examples:
  pve-state check-login
""",
        (EXIT_REFUSED,),
    ),
    "check-config": (
        "move",
        "check settings",
        """\
The installed ones (/etc/pveguard/state.json), or those given with --config. Unknown keys, impossible values and noise
patterns that would match configuration are errors.

examples:
  pve-state check-config --config '{"rpo_seconds": 5}'
""",
        (),
    ),
    "watch": (
        "unit",
        "save every real change within the RPO",
        """\
What pveguard-state-watch.service runs, one at a time. Looks four times a second whether the live database moved, saves
real changes within rpo_seconds, lets heartbeats and locks (noise) alone, watches how full the RAM file system is and
enlarges it, and writes the metrics. SIGUSR1 saves at once, SIGTERM saves and ends.
""",
        (EXIT_LOCKED, EXIT_STORE),
    ),
    "final-save": (
        "unit",
        "save after the daemon stopped, before the RAM file system goes",
        """\
What pveguard-state.service runs at its stop. Marks the replica as that of a clean stop.
""",
        (EXIT_REFUSED, EXIT_DAMAGED, EXIT_STORE, EXIT_LOCKED),
    ),
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Paragraphs are folded to the terminal, blocks with indented lines stay as they are."""

    def __init__(self, prog: str) -> None:
        # argparse makes one for each option that it learns, long before one is asked to write.
        super().__init__(prog, max_help_position=28, width=100)

    def format_help(self) -> str:
        import shutil

        self._width = min(shutil.get_terminal_size().columns, 100)
        return super().format_help()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        import textwrap

        blocks = text.strip("\n").split("\n\n")
        folded = [b if re.search("^ ", b, re.MULTILINE) else textwrap.fill(b, width) for b in blocks]
        return "\n\n".join(folded) + "\n"


class Parser(argparse.ArgumentParser):
    """Wrong usage is one JSON object too where that was asked for."""

    as_json = False

    def error(self, message: str) -> NoReturn:
        if Parser.as_json:
            print(json.dumps({"error": message, "exit_code": EXIT_USAGE}))
        super().error(message)


def exit_status(codes: Iterable[int]) -> str:
    return "exit status:\n" + "".join(f"  {code}  {EXIT_TEXTS[code]}\n" for code in sorted(codes))


def command_list() -> str:
    """The commands by section, one line each."""
    text = ""
    for group, title in GROUPS.items():
        text += f"{title}:\n"
        text += (
            "".join(f"  {name:14}{entry[1]}\n" for name, entry in COMMANDS.items() if entry[0] == group)
            + "\n"
        )
    return text


def parser(only: str | None = None) -> Parser:
    """The parser of the command line, with all commands or with one, which is a third of the time that a start takes."""
    top = Parser(
        prog="pve-state",
        usage="pve-state [--root DIRECTORY] COMMAND [OPTION...]",
        description=TOP_HELP + "\n" + command_list().rstrip("\n"),
        epilog=exit_status(EXIT_TEXTS) + "\n" + TOP_MORE,
        formatter_class=Help,
    )
    top.add_argument("--version", action="version", version=f"pve-state {VERSION}")
    top.add_argument(
        "--root",
        metavar="DIRECTORY",
        default="/",
        help="work on another root directory (a rescue system, tests)",
    )
    commands = top.add_subparsers(
        prog="pve-state", dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name, (function, options) in _commands().items():
        if only is None or name == only:
            _add_command(commands, name, function, options)
    return top


def _named(argv: Sequence[str]) -> str | None:
    """The command that a command line names for sure, else None."""
    words = list(argv)
    while words and words[0].startswith("--root"):
        del words[: 2 if words[0] == "--root" else 1]
    return words[0] if words and words[0] in COMMANDS else None


def _commands() -> dict[str, tuple[Command, Sequence[Options]]]:
    """Each command's function, and what adds its options."""
    return {
        "watch": (cmd_watch, ()),
        "save": (cmd_save, (_save,)),
        "final-save": (cmd_final_save, ()),
        "restore": (cmd_restore, (_restore, _members, _login)),
        "restore-file": (cmd_restore_file, (_restore_file,)),
        "status": (cmd_status, (_status,)),
        "show": (cmd_show, (_show,)),
        "list": (cmd_list, (_list,)),
        "verify": (cmd_verify, (_verify,)),
        "preflight": (cmd_preflight, (_ha, _members, _config, _login)),
        "check-config": (cmd_check_config, (_config,)),
        "enable": (cmd_enable, (_ha, _members, _login)),
        "disable": (cmd_disable, (_force, _members, _login)),
        "rollback": (cmd_rollback, ()),
        "check-login": (cmd_check_login, (_login,)),
    }


def _add_command(
    commands: argparse._SubParsersAction[Parser], name: str, function: Command, options: Sequence[Options]
) -> None:
    """The parser of one command, with the options that each has."""
    _, text, more, codes = COMMANDS[name]
    sub = commands.add_parser(
        name,
        # The placeholder that a former version left on the disk of a node says retire.
        aliases=["retire"] if name == "disable" else [],
        description=f"{text[0].upper()}{text[1:]}.\n\n{more}",
        epilog=exit_status({EXIT_OK, EXIT_ERROR, EXIT_USAGE, *codes}),
        formatter_class=Help,
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--result", metavar="FILE", help="write the JSON object to FILE as well")
    sub.set_defaults(function=function)
    for add in options:
        add(sub)


def _login(sub: Parser) -> None:
    sub.add_argument(
        "--connection", help="SSH_CONNECTION to prove ('' for a local session); default: this process's"
    )
    sub.add_argument(
        "--login-fallback",
        action="store_true",
        help="add the key in use to a file off /etc/pve if need be",
    )


def _members(sub: Parser) -> None:
    sub.add_argument(
        "--allow-offline-members",
        action="store_true",
        help="do not refuse because a member is not online",
    )


def _save(sub: Parser) -> None:
    sub.add_argument("--deep", action="store_true", help="compare the data's hashes as well")
    sub.add_argument("--generation", action="store_true", help="cut a generation as well")
    sub.add_argument("--reason", default="wish of the operator", help="reason for the generation's manifest")
    sub.add_argument(
        "--if-enabled", action="store_true", help="do nothing when the node does not run from RAM"
    )
    sub.add_argument("--force", action="store_true", help="save although the RAM file system is not mounted")


def _restore(sub: Parser) -> None:
    sub.add_argument("--generation", metavar="NAME", help="a generation from 'pve-state list', or 'latest'")
    sub.add_argument(
        "--resync", action="store_true", help="on a member: start empty and fetch all from the others"
    )
    sub.add_argument("--rescued", action="store_true", help="the rescue copy, which is newer than the replica")
    sub.add_argument("--replica", action="store_true", help="the replica, although a rescue copy is newer")
    sub.add_argument(
        "--unsound",
        action="store_true",
        help="also a state in which something is strange, or (with --rescued) that the daemon would not load",
    )
    sub.add_argument("--no-start", action="store_true", help="do not start the daemon afterwards")
    sub.add_argument(
        "--take-down",
        action="store_true",
        help="stop the daemon first; on a failure the former state is put back",
    )
    sub.add_argument(
        "--check", action="store_true", help="only say whether --take-down would be refused, change nothing"
    )
    sub.add_argument(
        "--peers-down",
        action="store_true",
        help="on a member: nowhere else does the daemon of this cluster run (with --generation)",
    )


def _restore_file(sub: Parser) -> None:
    sub.add_argument("generation", metavar="GENERATION", help=GENERATION_HELP)
    sub.add_argument("path", metavar="PATH", help="the file or directory of /etc/pve; / is everything")
    place = sub.add_mutually_exclusive_group()
    place.add_argument("--output", metavar="FILE", help="write it there instead (0600; must not exist)")
    place.add_argument("--stdout", action="store_true", help="print the file instead")
    sub.add_argument("--yes", action="store_true", help="do not ask")
    sub.add_argument("--check", action="store_true", help="only say what would be written or refused")
    sub.add_argument("--parents", action="store_true", help="make directories above PATH that are not there")
    sub.add_argument("--secrets", action="store_true", help="show the content of secret files as well")


def _status(sub: Parser) -> None:
    sub.add_argument("--prometheus", action="store_true", help="print metrics in Prometheus' text format")


def _show(sub: Parser) -> None:
    sub.add_argument("generation", metavar="GENERATION", help=GENERATION_HELP)
    sub.add_argument("file", metavar="FILE", nargs="?", help="only this file or directory of /etc/pve")
    sub.add_argument("--secrets", action="store_true", help="show the content of secret files as well")


def _list(sub: Parser) -> None:
    sub.add_argument("--verify", action="store_true", help="verify each")


def _verify(sub: Parser) -> None:
    sub.add_argument("--generation", metavar="NAME", help="only this one")
    sub.add_argument("--file", metavar="FILE", help="any database file")


def _ha(sub: Parser) -> None:
    sub.add_argument("--allow-ha", action="store_true", help="do not refuse because of HA resources")


def _config(sub: Parser) -> None:
    sub.add_argument("--config", metavar="JSON", help="these settings instead of the installed ones")


def _force(sub: Parser) -> None:
    sub.add_argument("--force", action="store_true", help="also when a task runs or the login is not proved")


def load_config(paths: Paths, args: Namespace) -> Config:
    """The installed settings. The way back to stock, and a look, do not depend on them: where they are bad, the defaults
    serve.
    """
    try:
        return Config.load(paths)
    except UsageError as error:
        if args.function not in (cmd_disable, cmd_rollback, cmd_status, cmd_list, cmd_verify):
            raise
        log("warning", f"{error}; the default settings are used")
        return Config()


def answer(argv: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """The exit code of a command and its result, which is not printed. SystemExit for what cannot be understood."""
    code, result, _ = _carried_out(argv)
    return code, result


def _carried_out(argv: Sequence[str]) -> tuple[int, dict[str, Any], Namespace]:
    Parser.as_json = "--json" in argv
    args = parser(_named(argv)).parse_args(argv)
    paths = Paths(args.root)
    try:
        result = args.function(paths, load_config(paths, args), args)
        code = result.pop("_exit", EXIT_OK)
    except StateError as error:
        code = error.code
        result = {"error": str(error), "exit_code": code}
        log("error", str(error))
    except Exception as error:
        code = EXIT_ERROR
        result = {"error": f"{type(error).__name__}: {error}", "exit_code": code}
        log("error", result["error"])
        if not isinstance(error, (OSError, sqlite3.Error)):
            import traceback

            traceback.print_exc()
    if args.result:
        write_volatile(args.result, result)
    return code, result, args


def main(argv: Sequence[str] | None = None) -> int:
    # Names on /etc/pve may be any bytes, and a locale may know no letters beyond ASCII.
    if argv is None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    code, result, args = _carried_out(sys.argv[1:] if argv is None else argv)
    if args.json:
        print(json.dumps(result, sort_keys=True))
    elif "message" in result:
        print(result["message"])
    return code
