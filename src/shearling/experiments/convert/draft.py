"""A draft beside its destination: what is half-written never stands under the real name."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shearling.errors import UserError
from shearling.files import flush

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def draft_of(dest: Path) -> Iterator[Path]:
    """A path beside `dest` to write a file or folder to; it takes the place of `dest` once the block has ended.

    A draft that a killed process left is replaced. If the block fails, or is interrupted, the draft goes and `dest`
    stays as it was.

    Raises:
        UserError: the disk is full or failing.
    """
    place = Path(os.path.abspath(dest))  # noqa: PTH100 (a link stays one, and `.` gets its name)
    draft = place.with_name(f".draft_{place.name}")
    try:
        _remove(draft)
        yield draft
        _flush_all(draft)
        _put(draft, place)
    except OSError as error:
        with suppress(OSError):  # what cannot be made, as its name is too long, cannot be removed
            _remove(draft)
        mend = "make room" if error.errno in FULL else "mend that, or name another destination"
        raise UserError(f"{dest}: cannot be written ({error.strerror or error}): {mend}") from error
    except BaseException:
        _remove(draft)
        raise


def _put(draft: Path, dest: Path) -> None:
    if not dest.is_dir() or dest.is_symlink():
        draft.replace(dest)
        flush(dest.parent)
        return
    replaced = dest.with_name(f".draft_{dest.name}_replaced")
    _remove(replaced)
    dest.rename(replaced)  # removed after: that takes long enough for a kill to come between
    draft.rename(dest)
    flush(dest.parent)
    _remove(replaced)


def _flush_all(path: Path) -> None:
    if path.is_dir():
        for folder, _, files in os.walk(path):
            for name in files:
                flush(Path(folder) / name)
            flush(Path(folder))
    else:
        flush(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
