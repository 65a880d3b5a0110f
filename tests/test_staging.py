"""Publishing on a file system, without any network."""

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2core.layout import MANIFEST_FILE
from gpt2core.manifest import FileDigest, manifest_bytes
from handler import staging
from handler.errors import NoRoom
from handler.remote import RemoteFile
from handler.revisions import resolve, verify
from handler.staging import Staging, discard, holds, is_damaged

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


def fill(place: Staging, model: int = 0) -> int:
    """What a download does; the number of files that had to be fetched."""
    fetched = 0
    for name in NAMES:
        file = remote_file(name, model)
        if place.adopt(file) is None:
            path = place.path_for(file)
            Path(path).write_bytes(content_of(name, model))
            place.keep(file, path, hashlib.sha256(content_of(name, model)).hexdigest())
            fetched += 1
    return fetched


def publish(root: Path, model: int = 0) -> str:
    place = Staging(str(root))
    try:
        fill(place, model)
        return place.publish(manifest_of(model))
    finally:
        place.close()


def is_whole(root: Path, model: int = 0) -> bool:
    found = resolve(str(root))
    return found is not None and holds(found, manifest_of(model))


def below(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_a_published_model_is_found_and_nothing_else_stays(tmp_path: Path) -> None:
    path = publish(tmp_path)
    assert resolve(str(tmp_path)) == path
    verify(path)
    assert {p.name for p in Path(path).iterdir()} == {*NAMES, MANIFEST_FILE}
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_the_same_model_published_twice_is_there_once(tmp_path: Path) -> None:
    assert publish(tmp_path) == publish(tmp_path)
    assert len(list((tmp_path / "revisions").iterdir())) == 1
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_a_reader_keeps_its_revision_while_a_newer_one_is_published(tmp_path: Path) -> None:
    old = publish(tmp_path, 0)
    with (Path(old) / NAMES[0]).open("rb") as reader:
        new = publish(tmp_path, 1)
        assert reader.read() == content_of(NAMES[0], 0)
    assert resolve(str(tmp_path)) == new
    assert holds(old, manifest_of(0))


def test_a_broken_revision_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    path = Path(publish(tmp_path))
    (path / NAMES[1]).write_bytes(b"cut")
    assert not is_whole(tmp_path)
    assert publish(tmp_path) == str(path)
    assert is_whole(tmp_path)
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_a_file_in_the_way_of_a_revision_is_replaced(tmp_path: Path) -> None:
    path = Path(publish(tmp_path))
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    path.write_bytes(b"a file")
    publish(tmp_path)
    assert is_whole(tmp_path)


def test_verified_files_of_a_failed_download_are_used_by_the_next(tmp_path: Path) -> None:
    first = Staging(str(tmp_path))
    file = remote_file(NAMES[1])
    path = first.path_for(file)
    Path(path).write_bytes(content_of(NAMES[1]))
    first.keep(file, path, "d" * 64)
    first.close()
    second = Staging(str(tmp_path))
    assert second.adopt(file) == "d" * 64
    assert second.adopt(file._replace(version="another")) is None
    assert fill(second) == 2
    second.publish(manifest_of())
    second.close()
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_a_verified_file_of_another_size_is_not_used(tmp_path: Path) -> None:
    first = Staging(str(tmp_path))
    file = remote_file(NAMES[1])
    path = first.path_for(file)
    Path(path).write_bytes(b"cut")
    first.keep(file, path, "d" * 64)
    first.close()
    assert Staging(str(tmp_path)).adopt(file) is None


@pytest.fixture
def no_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: object, **options: object) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", link)


def test_without_hard_links_files_are_moved(tmp_path: Path, no_hard_links: None) -> None:
    publish(tmp_path)
    assert is_whole(tmp_path)
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_a_writer_that_loses_a_verified_file_to_another_goes_on(tmp_path: Path) -> None:
    one, other = Staging(str(tmp_path)), Staging(str(tmp_path))
    assert fill(one) == 3
    assert fill(other) == 0
    for place in (one, other):
        place.publish(manifest_of())
        place.close()
    assert is_whole(tmp_path)
    assert below(tmp_path) == {"CURRENT", "revisions"}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_live_writer_is_left_alone_and_a_dead_one_is_cleaned_away_at_once(tmp_path: Path) -> None:
    alive = Staging(str(tmp_path))
    own = Path(alive.model_dir).parent.name
    child = os.fork()
    if not child:
        Staging(str(tmp_path))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list((tmp_path / "incoming").iterdir())) == 3  # both writers, and `verified`
    Staging(str(tmp_path)).close()
    assert [path.name for path in (tmp_path / "incoming").iterdir()] == [own]
    assert fill(alive) == 3
    alive.publish(manifest_of())
    alive.close()
    assert below(tmp_path) == {"CURRENT", "revisions"}


@pytest.mark.parametrize(("age_s", "stays"), [(3000, True), (4000, False)])
def test_what_another_machine_left_is_cleaned_away_by_age(
    tmp_path: Path, age_s: int, stays: bool
) -> None:
    folder = tmp_path / "incoming" / "anotherboot.4026531836.1.2.abcdef01"
    folder.mkdir(parents=True)
    (tmp_path / "incoming" / "verified").mkdir()
    paths = [folder / "x.part", tmp_path / "incoming" / "verified" / "key.digest"]
    for path in paths:
        path.write_bytes(b"x")
    now = folder.stat().st_mtime
    for path in [*paths, folder]:
        os.utime(path, (now - age_s, now - age_s))
    Staging(str(tmp_path)).close()
    assert [path.exists() for path in paths] == [stays, stays]


def test_a_download_that_still_grows_is_not_old(tmp_path: Path) -> None:
    folder = tmp_path / "incoming" / "anotherboot.4026531836.1.2.abcdef01"
    folder.mkdir(parents=True)
    (folder / "x.part").write_bytes(b"x")
    past = folder.stat().st_mtime - 9999
    os.utime(folder, (past, past))
    Staging(str(tmp_path)).close()
    assert folder.exists()


def test_too_little_room_names_what_is_needed_and_the_setting(tmp_path: Path) -> None:
    place = Staging(str(tmp_path))
    advice = "EphemeralStorage" if str(tmp_path).startswith("/tmp/") else "free some"
    with pytest.raises(NoRoom, match=rf"needs 1000000000000\.0 MB.*{advice}") as caught:
        place.require(10**18)
    assert caught.value.param == "GPT2_CACHE_DIR"


def test_a_discarded_revision_is_gone_and_can_come_again(tmp_path: Path) -> None:
    path = publish(tmp_path)
    discard(str(tmp_path), path)
    assert resolve(str(tmp_path)) is None
    assert below(tmp_path) == {"revisions"}
    assert list((tmp_path / "revisions").iterdir()) == []
    publish(tmp_path)
    assert is_whole(tmp_path)


CALLS = ("rename", "replace", "link", "unlink", "fsync", "makedirs", "rmdir", "open")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("before", [None, 0, 1], ids=["empty", "same", "older"])
def test_a_writer_killed_before_any_of_its_file_operations_leaves_all_whole(
    tmp_path: Path, before: int | None
) -> None:
    """Kill it before the first, the second, … operation, until one run gets to its end."""
    model = 0
    for number in range(200):
        root = tmp_path / str(number)
        root.mkdir()
        if before is not None:
            publish(root, before)
        finished = in_child(lambda root=root: publish(root, model), number)
        found = resolve(str(root))
        if found is not None:  # the old model or the new one, never half of one
            assert any(holds(found, manifest_of(m)) for m in (0, 1))
        elif before is not None:
            raise AssertionError("the model that was there is gone")
        publish(root, model)
        assert is_whole(root, model)
        assert below(root) == {"CURRENT", "revisions"}
        for revision in (root / "revisions").iterdir():
            assert any(holds(str(revision), manifest_of(m)) for m in (0, 1))
        if finished:
            assert number > 10
            return
    raise AssertionError("it never came to its end")


def in_child(action: Callable[[], object], kill_before: int) -> bool:
    """Run `action` in a child that is killed before its n-th file operation; whether it ended."""
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
    staging.shutil.rmtree = counted(staging.shutil.rmtree)  # type: ignore[assignment]
    try:
        action()
        os._exit(0)
    finally:
        os._exit(1)


def test_a_verified_file_that_is_not_what_is_promised_now_is_not_used(tmp_path: Path) -> None:
    first = Staging(str(tmp_path))
    file = remote_file(NAMES[1])
    path = first.path_for(file)
    Path(path).write_bytes(content_of(NAMES[1]))
    first.keep(file, path, "d" * 64)
    first.close()
    second = Staging(str(tmp_path))
    assert second.adopt(file._replace(digests={"sha256": "e" * 64})) is None
    assert second.adopt(file._replace(digests={"sha256": "d" * 64})) == "d" * 64


def test_files_of_a_rejected_model_are_gone(tmp_path: Path) -> None:
    place = Staging(str(tmp_path))
    fill(place)
    place.reject()
    place.close()
    assert below(tmp_path) == {"revisions"}


def test_without_hard_links_verified_files_outlive_a_failed_download(
    tmp_path: Path, no_hard_links: None
) -> None:
    first = Staging(str(tmp_path))
    assert fill(first) == 3
    first.close()
    second = Staging(str(tmp_path))
    assert fill(second) == 0
    second.publish(manifest_of())
    second.close()
    assert is_whole(tmp_path)
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_a_writer_keeps_its_file_though_another_publishes_the_same_one_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Staging(str(tmp_path)), Staging(str(tmp_path))
    assert fill(other) == 3
    rename = os.rename

    def then_the_other_publishes(source: str, target: str) -> None:
        rename(source, target)
        monkeypatch.setattr(os, "rename", rename)
        other.publish(manifest_of())
        other.close()

    file = remote_file(NAMES[0])
    path = one.path_for(file)
    Path(path).write_bytes(content_of(NAMES[0]))
    monkeypatch.setattr(os, "rename", then_the_other_publishes)
    one.keep(file, path, hashlib.sha256(content_of(NAMES[0])).hexdigest())
    fill(one)
    one.publish(manifest_of())
    one.close()
    assert is_whole(tmp_path)
    assert below(tmp_path) == {"CURRENT", "revisions"}


def test_verified_files_of_another_version_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Staging(str(tmp_path))
    fill(old, 0)
    old.close()
    place = Staging(str(tmp_path))
    assert [place.adopt(remote_file(name, 1)) for name in NAMES] == [None] * 3
    room = os.statvfs(tmp_path)
    full = type(room)((*room[:4], 0, *room[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(NoRoom):
        place.require(1)
    assert list((tmp_path / "incoming" / "verified").iterdir()) == []


def test_only_a_revision_with_other_bytes_than_its_manifests_is_damaged(tmp_path: Path) -> None:
    path = Path(publish(tmp_path))
    assert not is_damaged(str(path))
    changed = bytearray((path / NAMES[1]).read_bytes())
    changed[0] ^= 1
    (path / NAMES[1]).write_bytes(changed)
    assert holds(str(path), manifest_of())  # the sizes are right
    assert is_damaged(str(path))
