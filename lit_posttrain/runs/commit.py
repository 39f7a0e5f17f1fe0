"""The git commit that a run was started from."""

from __future__ import annotations

import subprocess


def git_commit() -> str | None:
    """The commit of the working directory, `+changes` with uncommitted ones; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=True, timeout=5)
    return done.stdout.strip()
