"""What a path leads to, asked before anything of it is read."""

import os
import stat

# By the letter that `ls -l` begins a line with.
KINDS = {"d": "a folder", "p": "a pipe", "c": "a device", "b": "a device", "s": "a socket"}


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError where a path leads to no regular file: a pipe, a device or a socket may have no end, or never a
    beginning, and a folder has no content.

    Raises ValueError for what can be no path, as all that opens one does.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(
            f"it is {KINDS.get(stat.filemode(mode)[0], 'of another kind')}, expected a regular file: write what is to "
            "be read into one"
        )
