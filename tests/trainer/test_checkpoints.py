"""Checkpoints on drives that cannot sync folders: Windows, and some network drives."""

import errno
import os
import stat

import pytest

from trainer.checkpoints import damaged_files, finish, sync


@pytest.fixture
def drive(monkeypatch):
    """Makes fsync fail with an error number: for folders or for files."""
    fsync = os.fsync

    def fail(is_kind, number: int) -> None:
        def fails(handle: int) -> None:
            if is_kind(os.fstat(handle).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", fails)

    return fail


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "unfinished" / "checkpoint-3"
    (folder / "code").mkdir(parents=True)
    (folder / "weights").write_bytes(b"weights")
    (folder / "code" / "model.py").write_bytes(b"code")
    return folder


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_folders_that_cannot_be_synced(drive, written, tmp_path, number):
    drive(stat.S_ISDIR, number)
    finish(written, tmp_path / "checkpoint-3")
    assert damaged_files(tmp_path / "checkpoint-3") == [] and not written.parent.exists()
    assert (tmp_path / "checkpoint-3" / "contents.txt").read_text() == "4 code/model.py\n7 weights\n"


def test_folders_that_cannot_be_opened(monkeypatch, written, tmp_path):
    """On Windows `os.open` refuses a folder."""
    opened = os.open

    def fails(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fails)
        sync(written)
        sync(written / "weights")


@pytest.mark.parametrize(("is_kind", "number"), [(stat.S_ISREG, errno.EINVAL), (stat.S_ISREG, errno.EIO)])
def test_a_real_failure_is_an_error(drive, written, tmp_path, is_kind, number):
    drive(is_kind, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        finish(written, tmp_path / "checkpoint-3")
