# SPDX-License-Identifier: Apache-2.0
"""Command line: ``python3 -m lab.packages OUT [--revision +lab1] [--source DIR-OR-URL]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from .build import DEFAULT_REVISION, BuildError, build_repository, repository_digest


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m lab.packages",
        description="Build the lab's packages and a signed apt repository in OUT/repository.",
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="work directory; the repository is OUT/repository"
    )
    parser.add_argument(
        "--revision", default=DEFAULT_REVISION, help="suffix of each version (default %(default)s)"
    )
    parser.add_argument(
        "--source",
        default=os.environ.get("PVE_PACKAGES") or None,
        metavar="DIR-OR-URL",
        help="real .deb files, or a repository's URL, instead of the doubles (default: $PVE_PACKAGES)",
    )
    parser.add_argument(
        "--key",
        default=os.environ.get("PVE_PACKAGES_KEY") or None,
        metavar="FILE-OR-URL",
        help="public key of a repository given as URL (default: $PVE_PACKAGES_KEY)",
    )
    parser.add_argument(
        "--digest", action="store_true", help="print only the hash of the inputs, build nothing"
    )
    args = parser.parse_args(argv)
    try:
        if args.digest:
            print(repository_digest(revision=args.revision, source=args.source))
            return 0
        repository = build_repository(args.out, revision=args.revision, source=args.source, key=args.key)
    except BuildError as error:
        print(f"lab.packages: {error}", file=sys.stderr)
        return 1
    print(json.dumps(repository.as_dict(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
