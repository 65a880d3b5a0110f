"""Publishing on a file system, without a network."""

import hashlib
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gpt2core.files.manifest import FileDigest, manifest_bytes
from gpt2core.files.names import MANIFEST_FILE
from handler.errors import InsufficientStorage
from handler.store import publish as publish_module
from handler.store.part import write
from handler.store.publish import Staging, is_damaged, matches_manifest
from handler.store.revisions import resolve, verify
from handler.store.transfer import RemoteFile

NAMES = ("config.json", "model.safetensors", "tokenizer.json")


def content_of(name: str, model: int = 0) -> bytes:
    return f"{name} of model {model}".encode() * 100


def remote_file(name: str, model: int = 0) -> RemoteFile:
    return RemoteFile(name, len(content_of(name, model)), f"etag-{model}")


def manifest_of(model: int = 0) -> bytes:
    files = {
        name: FileDigest(
            len(content_of(name, model)), hashlib.sha256(content_of(name, model)).hexdigest()
        )
        for name in NAMES
    }
    return manifest_bytes(files, f"tests/{model}")


def write_missing(staging: Staging, file: RemoteFile, content: bytes) -> int:
    """Write the missing part of `content`, like a download; returns the bytes that existed."""
    with closing(staging.part(file)) as part:
        there = part.size
        with part.opened() as fd:
            write(fd, content[there:], there)
        part.hash_to(len(content))
        if part.size == file.size:
            part.finish()
    return there


def fill(staging: Staging, model: int = 0, names: tuple[str, ...] = NAMES) -> int:
    """Write all files; returns how many were incomplete."""
    contents = {name: content_of(name, model) for name in names}
    there = [write_missing(staging, remote_file(name, model), contents[name]) for name in names]
    return sum(len(contents[name]) > size for name, size in zip(names, there, strict=True))


def publish(staging: Staging, model: int = 0) -> str:
    staging.assemble([remote_file(name, model) for name in NAMES])
    return staging.publish(manifest_of(model))[0]


def published(root: Path, model: int = 0) -> str:
    staging = Staging(str(root))
    try:
        fill(staging, model)
        return publish(staging, model)
    finally:
        staging.close()


def is_whole(root: Path, model: int = 0) -> bool:
    found = resolve(str(root))
    return found is not None and matches_manifest(found, manifest_of(model))


def below(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_publishing_leaves_only_the_revision(tmp_path: Path) -> None:
    path = published(tmp_path)
    assert resolve(str(tmp_path)) == path
    verify(path)
    assert {p.name for p in Path(path).iterdir()} == {*NAMES, MANIFEST_FILE}
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_publishing_the_same_model_twice_keeps_one_revision(tmp_path: Path) -> None:
    assert published(tmp_path) == published(tmp_path)
    assert len(list((tmp_path / "revisions").iterdir())) == 1
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_a_reader_keeps_its_revision_while_a_newer_one_is_published(tmp_path: Path) -> None:
    old = published(tmp_path, 0)
    with (Path(old) / NAMES[0]).open("rb") as reader:
        new = published(tmp_path, 1)
        assert reader.read() == content_of(NAMES[0], 0)
    assert resolve(str(tmp_path)) == new
    assert matches_manifest(old, manifest_of(0))


def test_an_invalid_revision_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    path = Path(published(tmp_path))
    (path / NAMES[1]).write_bytes(b"cut")
    assert not is_whole(tmp_path)
    assert published(tmp_path) == str(path)
    assert is_whole(tmp_path)
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_a_file_in_the_way_of_a_revision_is_replaced(tmp_path: Path) -> None:
    path = Path(published(tmp_path))
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    path.write_bytes(b"a file")
    published(tmp_path)
    assert is_whole(tmp_path)


def test_the_next_download_resumes_a_failed_one(tmp_path: Path) -> None:
    first = Staging(str(tmp_path))
    fill(first, names=NAMES[:2])
    write_missing(first, remote_file(NAMES[2]), content_of(NAMES[2])[:50])
    first.close()
    second = Staging(str(tmp_path))
    assert fill(second, names=NAMES[:2]) == 0
    assert write_missing(second, remote_file(NAMES[2]), content_of(NAMES[2])) == 50
    publish(second)
    second.close()
    assert is_whole(tmp_path)
    assert below(tmp_path) == {"CURRENT", "revisions"}


@pytest.mark.parametrize("corrupt", [lambda data: data[:-1], lambda data: b"x" + data[1:]])
def test_partial_files_that_do_not_match_their_journal_are_not_used(
    tmp_path: Path, corrupt: Callable[[bytes], bytes]
) -> None:
    first = Staging(str(tmp_path))
    fill(first)
    first.close()
    for path in (tmp_path / "incoming").glob("*/parts/*"):
        path.write_bytes(corrupt(path.read_bytes()))
    assert fill(Staging(str(tmp_path))) == 3


def test_bytes_after_the_last_journal_entry_are_downloaded_again(tmp_path: Path) -> None:
    first = Staging(str(tmp_path))
    write_missing(first, remote_file(NAMES[0]), content_of(NAMES[0])[:50])
    first.close()
    (path,) = (tmp_path / "incoming").glob("*/parts/*")
    with path.open("ab") as file:
        file.write(b"of a writer that was killed")
    staging = Staging(str(tmp_path))
    assert write_missing(staging, remote_file(NAMES[0]), content_of(NAMES[0])) == 50
    assert fill(staging) == 2
    publish(staging)
    assert is_whole(tmp_path)


def test_a_partial_file_of_another_version_is_removed(tmp_path: Path) -> None:
    first = Staging(str(tmp_path))
    fill(first, 0)
    first.close()
    second = Staging(str(tmp_path))
    assert second.keep_only([remote_file(name, 1) for name in NAMES]) == 0
    assert list(Path(second.model_dir).parent.glob("parts/*")) == []
    assert fill(second, 1) == 3


def test_only_one_of_two_writers_resumes_an_abandoned_download(tmp_path: Path) -> None:
    third = Staging(str(tmp_path))
    fill(third)
    third.close()
    one, other = Staging(str(tmp_path)), Staging(str(tmp_path))
    assert (fill(one), fill(other)) == (0, 3)
    for staging in (one, other):
        publish(staging)
        staging.close()
    assert is_whole(tmp_path)
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_a_cancelled_download_keeps_its_partial_files(tmp_path: Path) -> None:
    first = Staging(str(tmp_path))
    fill(first)
    first.assemble([remote_file(name) for name in NAMES])
    first.close()
    assert fill(Staging(str(tmp_path))) == 0


def test_empty_files_are_published(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path))
    file = RemoteFile("merges.txt", 0, "etag")
    for _ in range(2):
        with closing(staging.part(file)) as part:
            assert part.finish() == hashlib.sha256(b"").hexdigest()
    staging.assemble([file])
    assert (Path(staging.model_dir) / "merges.txt").read_bytes() == b""


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_only_files_of_dead_writers_are_removed_at_once(tmp_path: Path) -> None:
    alive = Staging(str(tmp_path))
    own = Path(alive.model_dir).parent.name
    child = os.fork()
    if not child:
        Staging(str(tmp_path))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list((tmp_path / "incoming").iterdir())) == 2
    Staging(str(tmp_path)).close()
    assert [path.name for path in (tmp_path / "incoming").iterdir()] == [own]
    assert fill(alive) == 3
    publish(alive)
    alive.close()
    assert below(tmp_path) == {"CURRENT", "revisions"}


@pytest.mark.parametrize(("age_s", "stays"), [(3000, True), (4000, False)])
def test_old_files_of_other_machines_are_removed(tmp_path: Path, age_s: int, stays: bool) -> None:
    folder = tmp_path / "incoming" / "anotherboot.4026531836.1.2.abcdef01"
    folder.mkdir(parents=True)
    path = folder / "x.part"
    path.write_bytes(b"x")
    now = folder.stat().st_mtime
    for each in (path, folder):
        os.utime(each, (now - age_s, now - age_s))
    Staging(str(tmp_path)).close()
    assert path.exists() == stays


def test_an_active_download_is_not_old(tmp_path: Path) -> None:
    folder = tmp_path / "incoming" / "anotherboot.4026531836.1.2.abcdef01"
    folder.mkdir(parents=True)
    (folder / "x.part").write_bytes(b"x")
    past = folder.stat().st_mtime - 9999
    os.utime(folder, (past, past))
    Staging(str(tmp_path)).close()
    assert folder.exists()


def test_insufficient_space_reports_the_needed_bytes_and_the_setting(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path))
    advice = "EphemeralStorage" if str(tmp_path).startswith("/tmp/") else "free some"
    with pytest.raises(
        InsufficientStorage, match=rf"needs 1000000000000\.0 MB.*{advice}"
    ) as caught:
        staging.check_free_space(10**18)
    assert caught.value.param == "GPT2_CACHE_DIR"


def test_an_untrusted_revision_is_replaced_even_if_sizes_match(tmp_path: Path) -> None:
    path = Path(published(tmp_path))
    (path / NAMES[1]).write_bytes(bytes(len(content_of(NAMES[1]))))
    published(tmp_path)
    assert is_damaged(str(path))
    staging = Staging(str(tmp_path))
    fill(staging)
    staging.assemble([remote_file(name) for name in NAMES])
    assert staging.publish(manifest_of(), damaged=str(path)) == (str(path), True)
    staging.close()
    assert not is_damaged(str(path))


CALLS = ("rename", "replace", "link", "unlink", "fsync", "makedirs", "rmdir", "open")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("before", [None, 0, 1], ids=["empty", "same", "older"])
def test_killing_a_writer_at_any_file_operation_leaves_a_valid_volume(
    tmp_path: Path, before: int | None
) -> None:
    """Kill it before the first, the second, … operation, until a run completes."""
    model = 0
    for number in range(200):
        root = tmp_path / str(number)
        root.mkdir()
        if before is not None:
            published(root, before)
        finished = in_child(lambda root=root: published(root, model), number)
        found = resolve(str(root))
        if found is not None:  # the old model or the new one, complete
            assert any(matches_manifest(found, manifest_of(m)) for m in (0, 1))
        elif before is not None:
            raise AssertionError("the model that was there is gone")
        published(root, model)
        assert is_whole(root, model)
        assert below(root) == {"CURRENT", "revisions"}
        for revision in (root / "revisions").iterdir():
            assert any(matches_manifest(str(revision), manifest_of(m)) for m in (0, 1))
        if finished:
            assert number > 10
            return
    raise AssertionError("it never came to its end")


def in_child(action: Callable[[], object], kill_before: int) -> bool:
    """Run `action` in a child, killed before its n-th file operation; whether it completed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    left = kill_before

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return original(*args, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    publish_module.shutil.rmtree = counted(publish_module.shutil.rmtree)  # type: ignore[assignment]
    try:
        action()
        os._exit(0)
    finally:
        os._exit(1)


def test_files_of_a_rejected_model_are_removed(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path))
    fill(staging)
    staging.assemble([remote_file(name) for name in NAMES])
    staging.reject()
    staging.close()
    assert below(tmp_path) == {"revisions"}


def test_a_revision_is_corrupted_only_if_bytes_differ_from_the_manifest(tmp_path: Path) -> None:
    path = Path(published(tmp_path))
    assert not is_damaged(str(path))
    changed = bytearray((path / NAMES[1]).read_bytes())
    changed[0] ^= 1
    (path / NAMES[1]).write_bytes(changed)
    assert matches_manifest(str(path), manifest_of())  # the sizes are right
    assert is_damaged(str(path))
