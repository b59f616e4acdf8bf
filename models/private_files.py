"""Files that only their owner may read or lock, because they contain names and addresses."""

import stat
from contextlib import suppress
from os import geteuid
from pathlib import Path


def close_to_others(path: Path) -> None:
    """Remove all access of group and others if this user owns `path`. Ignores missing paths and links."""
    with suppress(OSError):  # it does not exist
        found = path.lstat()
        if not stat.S_ISLNK(found.st_mode) and found.st_uid == geteuid() and found.st_mode & 0o077:
            path.chmod(found.st_mode & stat.S_IRWXU)
