# SPDX-License-Identifier: Apache-2.0
"""Run the script on standard input with the core live_database, whose text is the first argument, to be imported."""

import sys
import types

core = types.ModuleType("live_database")
exec(sys.argv.pop(1), core.__dict__)
sys.modules["live_database"] = core
exec(compile(sys.stdin.read(), sys.argv[0], "exec"))
