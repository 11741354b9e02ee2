"""On which file system a database lies, by the text of /proc/mounts (RELIABILITY S18)."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiotaskqueue.stores import _sqlite_mounts
from aiotaskqueue.stores._sqlite_mounts import find_remote_mount, read_mounts

MOUNTS = r"""/dev/vda / ext4 rw 0 0
proc /proc proc rw 0 0
server:/export /srv nfs4 rw,vers=4.2 0 0
/dev/vdb /srv/local xfs rw 0 0
//server/share /mnt/a\040share\134x cifs rw 0 0
tmpfs /twice tmpfs rw 0 0
share /twice virtiofs rw 0 0
share /under 9p rw 0 0
tmpfs /under tmpfs rw 0 0
"""


@pytest.mark.promise("P17")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/app/tasks.db", None),
        ("/srv/tasks.db", ("/srv", "nfs4")),
        ("/srv", ("/srv", "nfs4")),
        ("/srv2/tasks.db", None),
        ("/srv/local/tasks.db", None),
        ("/srv/localities/tasks.db", ("/srv", "nfs4")),
        (r"/mnt/a share\x/tasks.db", (r"/mnt/a share\x", "cifs")),
        ("/mnt/a/tasks.db", None),
        ("/twice/tasks.db", ("/twice", "virtiofs")),
        ("/under/tasks.db", None),
    ],
)
def test_the_longest_mount_point_decides(path: str, expected: tuple[str, str] | None) -> None:
    """The file system is that of the longest mount point above the path, and of two on one point that of the later one."""
    assert expected == find_remote_mount(path, MOUNTS)


@pytest.mark.promise("P17")
@pytest.mark.parametrize("kind", ["nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "fuse.sshfs", "vboxsf", "drvfs"])
def test_what_is_remote(kind: str) -> None:
    """File systems of the network, and those that a virtual machine shares with its host, are told by their type."""
    assert ("/", kind) == find_remote_mount("/tasks.db", f"thing / {kind} rw 0 0\n")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuse", "fuse.other", "nfsd", "rootfs"])
def test_what_is_local(kind: str) -> None:
    """The file systems of this machine are no reason for a warning."""
    assert find_remote_mount("/tasks.db", f"thing / {kind} rw 0 0\n") is None


@pytest.mark.parametrize("mounts", ["", "\n", "nonsense\n", "a b\n\n", "\0"])
def test_a_text_that_says_nothing(mounts: str) -> None:
    """Where nothing is known nothing is claimed."""
    assert find_remote_mount("/tasks.db", mounts) is None


def test_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without /proc there are no mounts to look through; on Linux there is a root."""
    monkeypatch.setattr(_sqlite_mounts, "MOUNTS_PATH", str(tmp_path / "none"))

    assert "" == read_mounts()
