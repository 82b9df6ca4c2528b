"""The run folder on S3: the same promises as on a disk, and words when the store refuses."""

import os
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from fakes import folder_in_memory, line, utterances
from object_storage import BUCKET, Proxy, object_storage

from ctxasr_ray.cli import main
from ctxasr_ray.execution.inline import plan, run_inline, status
from ctxasr_ray.execution.stage_calls import RunError
from ctxasr_ray.storage.object_store import check_writable, open_folder
from ctxasr_ray.storage.store import Shard, Store, StoreError

tmp_path = pytest.fixture(folder_in_memory)
proxy = pytest.fixture(object_storage)


@pytest.fixture
def root(proxy: Proxy) -> str:
    return f"s3://{BUCKET}/run"


def prepared(root: str | Path, num: int = 12) -> tuple[Store, list[Shard]]:
    store = Store(root)
    table = pa.concat_tables([utterances(num, split=split) for split in ("dev", "test")])
    return store, store.add_corpus(table, shard_audio_s=40, seed=1)


def equal_to_local(store: Store, shards: list[Shard], tmp_path: Path) -> bool:
    local, local_shards = prepared(tmp_path / "local")
    run_inline(local, line(), local_shards)
    return all(store.gather(step, shards).equals(local.gather(step, local_shards)) for step in line())


def test_what_exists_is_not_overwritten(root: str) -> None:
    folder = open_folder(root)
    assert folder.create("a/b", b"first")
    assert not folder.create("a/b", b"second")
    assert folder.read("a/b") == b"first"
    assert folder.read("a/b", last=3) == b"rst"
    assert folder.read("a/b", last=100) == b"first"
    assert folder.names("a") == ["b"]
    assert folder.names("none") == []
    folder.replace("a/b", b"third")
    assert folder.read("a/b") == b"third"
    folder.delete("a/b")
    folder.delete("a/b")
    assert not folder.exists("a/b")


def test_many_writers_of_one_key_have_one_winner(root: str) -> None:
    folder = open_folder(root)
    wins: list[int] = []

    def write(number: int) -> None:
        if folder.create("key", str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [folder.read("key")] == [str(number).encode() for number in wins]


def test_a_store_that_overwrites_is_refused(root: str, proxy: Proxy) -> None:
    proxy.forget_conditions = True
    with pytest.raises(StoreError, match="overwrites files that exist: it has no create-only writes"):
        check_writable(open_folder(root))


def test_a_store_that_loses_the_first_answer_is_no_store_that_overwrites(root: str, proxy: Proxy) -> None:
    proxy.count, proxy.lose_every = 999, 1000  # the next answer
    check_writable(open_folder(root))
    assert proxy.num_failed == 1


def test_a_run_on_s3_gives_the_local_tables_and_resumes(root: str, tmp_path: Path) -> None:
    store, shards = prepared(root)
    run_inline(store, line()[:3], shards)
    assert run_inline(Store(root), line(), shards).skipped == 2 * len(shards)
    assert equal_to_local(store, shards, tmp_path)
    assert {row["num_pending"] for row in plan(store, line(), shards)} == {0}
    assert {row["writer"] for row in status(store, line(), shards)} == {None}
    assert store.folder.exists("provenance.json")


def test_a_flapping_store_costs_time_only(root: str, proxy: Proxy, tmp_path: Path) -> None:
    """A PUT whose answer is lost is sent again and finds itself committed."""
    store, shards = prepared(root)
    proxy.fail_every, proxy.lose_every = 7, 11
    run_inline(store, line(), shards)
    proxy.fail_every = proxy.lose_every = 0
    assert equal_to_local(store, shards, tmp_path)


@pytest.mark.slow
def test_a_store_that_goes_away_stops_the_run_in_words_and_it_goes_on_later(
    root: str, proxy: Proxy, tmp_path: Path
) -> None:
    store, shards = prepared(root)
    run_inline(store, line()[:2], shards)
    proxy.refuse = True
    start = time.monotonic()
    with pytest.raises(
        (RunError, StoreError), match=r"refuses(.|\n)*What is committed is intact(.|\n)*same command again"
    ):
        run_inline(Store(root), line(), shards)
    assert time.monotonic() - start > 10  # it was patient
    proxy.refuse = False
    assert run_inline(Store(root), line(), shards).skipped == len(shards)
    assert equal_to_local(store, shards, tmp_path)


@pytest.mark.slow
def test_a_store_that_is_back_within_seconds_is_waited_for(root: str, proxy: Proxy, tmp_path: Path) -> None:
    store, shards = prepared(root)

    def down_and_up() -> None:
        proxy.refuse = True
        time.sleep(4)
        proxy.refuse = False

    thread = threading.Thread(target=down_and_up)
    thread.start()
    run_inline(store, line(), shards)
    thread.join()
    assert equal_to_local(store, shards, tmp_path)


def test_a_bucket_that_is_not_there_is_named(proxy: Proxy) -> None:
    with pytest.raises(StoreError, match="s3://nobody-has-this/run"):
        Store("s3://nobody-has-this/run").prepare()
    assert os.environ["AWS_ENDPOINT_URL"]


@pytest.mark.parametrize(("missing", "said"), [(("KEY_ID", "KEY"), "none: Unable to locate"), (("KEY",), "Partial")])
def test_missing_credentials_are_said_at_once_and_what_is_committed_stays(
    missing: tuple[str, ...],
    said: str,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import s3fs

    store, shards = prepared(root)
    run_inline(store, line(), shards)
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["status", "ctc", "--manifest", str(tmp_path / "m.jsonl"), "--root", root]
    with monkeypatch.context() as without:
        for name in missing:
            without.delenv({"KEY_ID": "AWS_ACCESS_KEY_ID", "KEY": "AWS_SECRET_ACCESS_KEY"}[name])
        s3fs.S3FileSystem.clear_instance_cache()
        start = time.monotonic()
        assert main(words) == 1
        assert time.monotonic() - start < 10
    words_said = capsys.readouterr().err
    assert f"run folder '{root}' asks for credentials" in words_said
    assert said in words_said
    assert "AWS_ACCESS_KEY_ID" in words_said
    s3fs.S3FileSystem.clear_instance_cache()
    assert equal_to_local(Store(root), shards, tmp_path)
