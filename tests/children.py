"""Child processes: scripts that are run in a Python of their own, with every warning an error."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

# Development mode shows what is normally passed over: unclosed files and sockets, tasks that were never awaited.
STRICT = ("-X", "dev", "-W", "error")


# On a busy machine a step of the loop takes long; in development mode asyncio warns of that.
BE_PATIENT = "import logging; logging.getLogger('asyncio').setLevel(logging.ERROR)\n"


def run_script(source: str, *arguments: object, timeout_seconds: float = 15.0) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, and return its exit code and what it said."""
    command = [sys.executable, *STRICT, "-c", BE_PATIENT + textwrap.dedent(source), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)


def start_script(path: Path, source: str, *arguments: object, **environment: object) -> subprocess.Popen[str]:
    """Write a script to `path` and start it; the caller ends it."""
    path.write_text(BE_PATIENT + textwrap.dedent(source))
    return start([*STRICT, str(path), *map(str, arguments)], cwd=path.parent, **environment)


def start(arguments: Sequence[str], *, cwd: Path, **environment: object) -> subprocess.Popen[str]:
    """Start a Python with these arguments, and with these variables besides ours; the caller ends it."""
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
