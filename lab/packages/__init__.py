# SPDX-License-Identifier: Apache-2.0
"""The lab's Debian packages and the signed repository that serves them."""

from __future__ import annotations

from .build import BuildError, Repository, build_repository, repository_digest

__all__ = ["BuildError", "Repository", "build_repository", "repository_digest"]
