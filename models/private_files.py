"""Files that only their owner can read or lock: they hold names and addresses."""

import stat
from contextlib import suppress
from os import geteuid
from pathlib import Path


def close_to_others(path: Path) -> None:
    """Take all access from group and others if `path` is this user's; a missing path and a link are left alone."""
    with suppress(OSError):  # it was removed meanwhile
        found = path.lstat()
        if not stat.S_ISLNK(found.st_mode) and found.st_uid == geteuid() and found.st_mode & 0o077:
            path.chmod(found.st_mode & stat.S_IRWXU)
