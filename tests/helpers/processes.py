"""Scripts of the tests in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """What this process imports from, and one thread a process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def run_script(
    script: Path, *arguments: object, limit_s: float = 300, session: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, which may be a failure. session: let it kill all of its processes, and those alone."""
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=limit_s, start_new_session=session
    )
