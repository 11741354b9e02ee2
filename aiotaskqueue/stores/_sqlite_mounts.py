"""Pure: whether a file lies on a file system of the network or of another machine, where SQLite's locks do not hold."""

from __future__ import annotations

import os
import re

MOUNTS_PATH = "/proc/mounts"

# What a virtual machine or a container shares with its host counts as another machine (RELIABILITY S18).
# Source: sqlite.org/howtocorrupt.html, section 2; the names are those of /proc/mounts.
_ELSEWHERE = re.compile(r"nfs\d*|cifs|smb3?|smbfs|9p|virtiofs|fuse\.sshfs|vboxsf|drvfs")

# A space, a tab, a newline and a backslash are written as octal numbers. Source: man fstab, section "The second field".
_ESCAPE = re.compile(r"\\([0-7]{3})")


def find_remote_mount(path: str, mounts: str) -> tuple[str, str] | None:
    """Return the mount point and the type of the file system on which a path lies, if that is not this machine's own.

    Args:
        path: Absolute, without symbolic links.
        mounts: The text of /proc/mounts: device, mount point, type, and more, a line each.
    """
    best = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount_point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[1])
        # Of two on one point the later one is seen.
        if _is_below(path, mount_point) and len(mount_point) >= len(best[0]):
            best = mount_point, fields[2]
    return best if _ELSEWHERE.fullmatch(best[1]) else None


def read_mounts() -> str:
    """Return what is mounted; empty where the operating system does not say."""
    try:
        with open(MOUNTS_PATH, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _is_below(path: str, mount_point: str) -> bool:
    return path == mount_point or path.startswith(mount_point.rstrip(os.sep) + os.sep)
