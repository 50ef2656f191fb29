# SPDX-License-Identifier: Apache-2.0
"""Run the script on standard input with the cores live_database and tree, whose texts are the first two arguments, to be
imported.
"""

import sys
import types

package = types.ModuleType("pmxcfs")
package.__path__ = []
sys.modules["pmxcfs"] = package
for name in ("live_database", "tree"):
    core = types.ModuleType(f"pmxcfs.{name}")
    core.__package__ = "pmxcfs"
    exec(sys.argv.pop(1), core.__dict__)
    sys.modules[core.__name__] = core
    setattr(package, name, core)
exec(compile(sys.stdin.read(), sys.argv[0], "exec"))
