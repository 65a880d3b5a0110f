"""Free space in a directory on a tmpfs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from handler.errors import InsufficientStorage
from handler.store import free_space
from tests.conftest import ROOT

MIB = 1 << 20


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of a gigabyte."""
    point = tmp_path / "memory"
    point.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", point], check=False)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    yield point
    subprocess.run(["umount", "-l", point], check=True)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup with 64 MiB of memory, for processes that join it."""
    for mount, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        folder = Path("/sys/fs/cgroup", mount, f"gpt2-test-{uuid4().hex}")
        try:
            folder.mkdir()
            (folder / limit).write_text(str(64 * MIB))
        except OSError:
            if folder.is_dir():
                folder.rmdir()
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("cgroups cannot be made here")


def required(root: Path, size: int, join: Path | None = None) -> str:
    """The output of a process that requires `size` bytes, in a cgroup if given."""
    code = (
        f"import sys\nif {str(join)!r} != 'None':\n"
        f"    open({str(join)!r} + '/cgroup.procs', 'w').write('0')\n"
        "from handler.errors import InsufficientStorage\n"
        "from handler.store.free_space import check_free_space\n"
        f"try:\n    check_free_space({str(root)!r}, {size})\n    print('fits')\n"
        "except InsufficientStorage as error:\n    print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout


def test_the_memory_limit_of_a_cgroup_limits_a_directory_in_memory(
    in_memory: Path, cgroup: Path
) -> None:
    assert required(in_memory, 200 * MIB) == "fits\n"
    assert "it is in memory" in required(in_memory, 200 * MIB, join=cgroup)
    assert required(in_memory, 10 * MIB, join=cgroup) == "fits\n"


def test_the_memory_limit_of_a_cgroup_does_not_limit_a_disk(tmp_path: Path, cgroup: Path) -> None:
    assert required(tmp_path, 200 * MIB, join=cgroup) == "fits\n"


def test_the_memory_that_is_available_limits_a_directory_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_space, "_is_in_memory", lambda root: True)
    monkeypatch.setattr(free_space, "_memory_left", lambda: iter([50 * MIB, 5 * MIB]))
    free_space.check_free_space(str(tmp_path), 3 * MIB)
    with pytest.raises(InsufficientStorage, match=r"has 5\.2 MB free.*in memory"):
        free_space.check_free_space(str(tmp_path), 5 * MIB)


def test_a_cgroup_is_limited_by_its_parents(tmp_path: Path) -> None:
    for folder, limit in (
        (tmp_path, "max"),
        (tmp_path / "a", "1000"),
        (tmp_path / "a" / "b", "5000"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("700")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 100\n")
    left = free_space._cgroup_left(str(tmp_path), "/a/b", "memory.max", "memory.current")
    assert sorted(left) == [400, 4400]
    assert os.path.isdir(tmp_path)
