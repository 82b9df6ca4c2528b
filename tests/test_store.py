"""The run folder: shards, identity, and a commit that is made once, whole, whatever dies."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import MEMORY, FirstPassConfig, NbestErrorsConfig, ScorerConfig, folder_in_memory, line, utterances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ctxasr_ray import schema
from ctxasr_ray.stage import Resources, Step
from ctxasr_ray.storage import processes
from ctxasr_ray.storage.identity import column_digest, stage_hash
from ctxasr_ray.storage.lease import Leases
from ctxasr_ray.storage.object_store import FOREIGN_TEMPORARY_AGE_S, LocalFolder, open_folder
from ctxasr_ray.storage.shards import cut
from ctxasr_ray.storage.store import Store, StoreError

tmp_path = pytest.fixture(folder_in_memory)
DEAD = f"{processes.host()}-999999999-1"
"""Name of a process on this host that is gone."""


def replaced(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    index = table.schema.get_field_index(column)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


# -- shards


def test_sessions_stay_together_and_shards_are_of_equal_audio() -> None:
    table = pa.concat_tables([utterances(200, split="test"), utterances(60, split="dev")])
    pieces = {pair: list(made) for pair, made in cut(table, shard_audio_s=100.0, seed=3).items()}
    assert sorted(pieces) == [("tiny", "dev"), ("tiny", "test")]
    where: dict[str, set[int]] = {}
    for number, (piece, audio_s) in enumerate(pieces["tiny", "test"]):
        assert 90 < audio_s < 110
        assert sum(piece["duration_s"].to_pylist()) == pytest.approx(audio_s)
        durations = piece["duration_s"].to_pylist()
        assert durations == sorted(durations, reverse=True)
        for session in piece["session_id"].to_pylist():
            where.setdefault(session, set()).add(number)
    assert all(len(numbers) == 1 for numbers in where.values())
    ids = [i for piece, _ in pieces["tiny", "test"] for i in piece["utterance_id"].to_pylist()]
    assert sorted(ids) == sorted(utterances(200)["utterance_id"].to_pylist())


def test_windows_of_a_recording_stay_together_without_sessions() -> None:
    table = replaced(utterances(40), "session_id", [None] * 40)
    table = replaced(table, "recording_id", [f"r{i // 8}" for i in range(40)])
    for piece, _ in cut(table, shard_audio_s=40.0, seed=1)["tiny", "test"]:
        recordings = piece["recording_id"].to_pylist()
        assert all(recordings.count(recording) == 8 for recording in recordings)


def test_the_cut_does_not_depend_on_row_order_or_references() -> None:
    table = utterances(50)
    shuffled = replaced(table, "reference", [None] * 50).take(list(reversed(range(50))))
    one, other = (list(cut(t, shard_audio_s=30.0, seed=5)["tiny", "test"]) for t in (table, shuffled))
    assert [p["utterance_id"].to_pylist() for p, _ in one] == [p["utterance_id"].to_pylist() for p, _ in other]
    drawn_again = cut(table, shard_audio_s=30.0, seed=6)["tiny", "test"]
    assert [p["utterance_id"].to_pylist() for p, _ in one] != [p["utterance_id"].to_pylist() for p, _ in drawn_again]


def test_unknown_durations_count_as_the_mean() -> None:
    table = replaced(utterances(4), "duration_s", [2.0, None, 4.0, None])
    ((_, audio_s),) = cut(table, shard_audio_s=1000.0, seed=1)["tiny", "test"]
    assert audio_s == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("column", "value", "says"), [("split", "eval", "train, dev, test"), ("corpus", "my/corpus", "it names files")]
)
def test_names_that_cannot_be_are_refused(column: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cut(replaced(utterances(3), column, [value] * 3), shard_audio_s=10.0, seed=1)


def test_adding_the_same_corpus_again_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.add_corpus(utterances(20), shard_audio_s=20, seed=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert Store(tmp_path).add_corpus(utterances(20), shard_audio_s=20, seed=1) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert store.shards("tiny") == store.shards("tiny", "test") == first
    assert store.shards("tiny", "dev") == store.shards("unknown") == []


def test_a_mended_reference_keeps_shard_names_and_changes_one_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.add_corpus(utterances(20), shard_audio_s=20, seed=1)
    references = ["play 0 mended", *utterances(20)["reference"].to_pylist()[1:]]
    second = store.add_corpus(replaced(utterances(20), "reference", references), shard_audio_s=20, seed=1)
    assert [s.name for s in first] == [s.name for s in second]
    assert sum(a.uri != b.uri for a, b in zip(first, second, strict=True)) == 1
    assert Store(tmp_path).shards("tiny") == second


# -- identity

VALUES = st.none() | st.lists(st.none() | st.text(max_size=3), max_size=3)
NESTED = pa.list_(
    pa.struct([("words", pa.list_(pa.string())), ("score", pa.float64()), ("tags", pa.map_("str", "str"))])
)
STRUCTS = st.none() | st.fixed_dictionaries(
    {
        "words": VALUES,
        "score": st.none() | st.floats(allow_nan=False),
        "tags": st.none() | st.lists(st.tuples(st.text(max_size=2), st.text(max_size=2)), max_size=2),
    }
)
COLUMNS = st.lists(st.none() | st.lists(STRUCTS, max_size=3), max_size=5)


@given(COLUMNS, COLUMNS)
@settings(deadline=None, max_examples=100)
def test_equal_columns_and_only_they_have_equal_digests(one: list[Any], other: list[Any]) -> None:
    a, b = pa.array(one, NESTED), pa.array(other, NESTED)
    same = str(one) == str(other)  # 0.0 and -0.0 are equal but not the same
    assert (column_digest(a) == column_digest(b)) == same
    padded = pa.concat_arrays([b, a, b])[len(b) : len(b) + len(a)]
    assert column_digest(padded) == column_digest(a)
    chunked = pa.chunked_array([a[: len(a) // 2], a[len(a) // 2 :]], NESTED)
    assert column_digest(chunked) == column_digest(a)


def test_bytes_behind_nulls_do_not_count() -> None:
    clean = pa.array([1, None, 3], pa.int32())
    dirty = pa.Array.from_buffers(pa.int32(), 3, [clean.buffers()[0], pa.py_buffer(b"\1\0\0\0\7\7\7\7\3\0\0\0")])
    assert clean.equals(dirty)
    assert column_digest(clean) == column_digest(dirty)


def test_stage_hash_covers_what_changes_numbers_and_nothing_else() -> None:
    corpus = line()[0]

    def hash_of(config: Any, *inputs: Step, name: str = "a") -> str:
        return stage_hash(Step(name=name, config=config, inputs=inputs or (corpus,)))

    base = hash_of(FirstPassConfig())
    assert base == hash_of(FirstPassConfig(), name="b")
    assert base == hash_of(FirstPassConfig(resources=Resources(num_actors=7)))
    assert base != hash_of(FirstPassConfig(flavour="x"))

    class NewerConfig(FirstPassConfig):
        STAGE_VERSION = 2

    NewerConfig.__name__ = "FirstPassConfig"
    assert base != hash_of(NewerConfig())
    parent, changed = (Step(name="p", config=FirstPassConfig(flavour=f), inputs=(corpus,)) for f in ("", "x"))
    assert hash_of(ScorerConfig(), parent) != hash_of(ScorerConfig(), changed)


def test_identity_follows_the_columns_that_a_stage_reads(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (shard,) = store.add_corpus(utterances(4), shard_audio_s=1000, seed=1)
    (mended,) = store.add_corpus(replaced(utterances(4), "reference", ["new"] * 4), shard_audio_s=1000, seed=1)
    corpus, first_pass = line()[:2]
    truth = Step(name="truth", config=NbestErrorsConfig(), inputs=(corpus,))
    assert store.base(first_pass, shard) == store.base(first_pass, mended)
    assert store.base(truth, shard) != store.base(truth, mended)
    assert store.base(line()[2], shard) is None  # its parent is pending


# -- commit


def small(value: int) -> pa.Table:
    row = {"utterance_id": "u", "hypotheses": [{"text": f"value {value}", "scores": [], "origin": "search"}]}
    return schema.conform(pa.Table.from_pylist([row], schema=schema.HYPOTHESES), "hypotheses")


KEY = "hypotheses/fake-0000000000000000/shard-0000000000000000.parquet"


class Commits(RuleBasedStateMachine):
    """Writers of one key, stepped in any order and killed between any two steps, against a model of one cell."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="ctxasr-commits-", dir=MEMORY))
        self.store = Store(self.root)
        self.folder = LocalFolder(str(self.root))
        self.value: int | None = None
        self.writers: list[tuple[int, Path]] = []
        self.crashed: set[Path] = set()
        self.others: set[int] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @initialize()
    def prepare(self) -> None:
        self.store.prepare()

    @rule(value=st.integers(0, 2))
    def write(self, value: int) -> None:
        maker = Store(self.root)
        maker.commit(f"scratch/{value}.parquet", small(value), "hypotheses", "id", {"failures": 0})
        data = self.folder.read(f"scratch/{value}.parquet")
        self.writers.append((value, self.folder.write_temporary(KEY, data)))

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        value, temporary = data.draw(st.sampled_from(self.writers))
        assert self.folder.publish(temporary, KEY) == (self.value is None)
        self.value = value if self.value is None else self.value

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        self.folder.discard(writer[1])
        self.writers.remove(writer)

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), cut_off=st.booleans())
    def crash(self, data: st.DataObject, cut_off: bool) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        self.writers.remove(writer)
        left = writer[1].with_name(writer[1].name.replace(processes.this_process(), DEAD))
        writer[1].rename(left)
        if cut_off and left.stat().st_nlink == 1:  # linked already: the bytes were synced before
            os.truncate(left, 10)
        self.crashed.add(left)

    @rule(value=st.integers(0, 2))
    def commit(self, value: int) -> None:
        committed = self.store.commit(KEY, small(value), "hypotheses", "id", {"failures": 0})
        if self.value is None:
            assert committed.outcome == "committed"
            self.value = value
        elif self.value == value:
            assert committed.outcome == "equal"
        else:
            assert committed.outcome == "different"
            self.others.add(value)

    @rule()
    def sweep(self) -> None:
        assert self.folder.sweep("hypotheses/fake-0000000000000000") == len(self.crashed)
        assert not any(path.exists() for path in self.crashed)
        assert all(path.exists() for _, path in self.writers)
        self.crashed = set()

    @invariant()
    def first_writer_has_won(self) -> None:
        store = Store(self.root)
        assert store.folder.exists(KEY) == (self.value is not None)
        if self.value is not None:
            assert store.read_key(KEY).equals(small(self.value))
            assert store.highest(KEY.removesuffix(".parquet")) == KEY
        names = store.folder.names("hypotheses/fake-0000000000000000")
        assert sum(".different-" in name and not name.endswith(".tmp") for name in names) == len(self.others)


TestCommits = Commits.TestCase
TestCommits.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_a_different_table_is_kept_beside_and_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    outcomes = [store.commit(KEY, small(v), "hypotheses", "id", {"failures": 0}).outcome for v in (1, 1, 2, 2)]
    assert outcomes == ["committed", "equal", "different", "different"]
    assert store.read_key(KEY).equals(small(1))
    (beside,) = [name for name in store.folder.names(KEY.rpartition("/")[0]) if ".different-" in name]
    assert store.read_key(f"{KEY.rpartition('/')[0]}/{beside}").equals(small(2))


def test_the_highest_attempt_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for attempt, value in (("", 1), (".2", 2), (".3", 3), (".10", 9)):
        store.commit(KEY.replace(".parquet", f"{attempt}.parquet"), small(value), "hypotheses", "id", {"failures": 0})
    key = store.highest(KEY.removesuffix(".parquet"))
    assert key is not None
    assert store.attempt(key) == 3  # 10 has no predecessor, so it was never asked for
    assert store.read_key(key).equals(small(3))


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_noticed_or_harmless(tmp_path: Path, position: float, flip: int) -> None:
    store = Store(tmp_path)
    store.commit(KEY, small(1), "hypotheses", "id", {"failures": 0})
    path = tmp_path / KEY
    whole = path.read_bytes()
    index = int(position * len(whole))
    path.write_bytes(whole[:index] + bytes([whole[index] ^ flip]) + whole[index + 1 :])
    refused = ""
    try:
        assert Store(tmp_path).read_key(KEY).equals(small(1))
    except StoreError as error:
        refused = str(error)
    path.write_bytes(whole)
    assert not refused or (KEY in refused and "run the same command again" in refused)


def test_a_damaged_name_of_a_nested_field_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit(KEY, small(1), "hypotheses", "id", {"failures": 0})
    path = tmp_path / KEY
    path.write_bytes(path.read_bytes().replace(b"origin", b"or\x1dgin"))
    with pytest.raises(StoreError, match="run the same command again"):
        Store(tmp_path).read_key(KEY)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_noticed(tmp_path: Path, kept: int) -> None:
    store = Store(tmp_path)
    store.commit(KEY, small(1), "hypotheses", "id", {"failures": 0})
    path = tmp_path / KEY
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match="has been changed since"):
        Store(tmp_path).read_key(KEY)


def test_values_changed_by_another_tool_are_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit(KEY, small(1), "hypotheses", "id", {"failures": 0})
    old = pq.read_table(tmp_path / KEY)
    pq.write_table(small(2).replace_schema_metadata(old.schema.metadata), tmp_path / KEY)
    with pytest.raises(StoreError, match="column 'hypotheses' do not match the sha256"):
        Store(tmp_path).read_key(KEY)


def test_only_temporaries_of_dead_writers_are_swept(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path))
    living = folder.write_temporary("t/a.parquet", b"1")
    names = {"dead": DEAD, "young": "0123abcd-1-1", "old": "0123abcd-2-1"}
    paths = {each: tmp_path / "t" / f".a.parquet.{writer}.00000000.tmp" for each, writer in names.items()}
    for path in paths.values():
        path.write_bytes(b"half")
    long_ago = time.time() - FOREIGN_TEMPORARY_AGE_S - 1
    os.utime(paths["old"], (long_ago, long_ago))
    assert folder.sweep("t") == 2
    assert living.exists()
    assert [each for each, path in paths.items() if path.exists()] == ["young"]


# -- folders that cannot be used


def test_a_folder_of_another_version_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"format": 1, "schema_version": 0}))
    with pytest.raises(ValueError, match=r"written by another version.*Choose another --root"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written: .*Not a directory.*then run the same command again"):
        Store(tmp_path / "file" / "run").prepare()
    with pytest.raises(StoreError, match="cannot be written"):
        Store("/proc/ctxasr").prepare()  # read-only even for root
    with pytest.raises(ValueError, match="not s3://"):
        open_folder("gs://bucket/run")


def test_a_full_disk_leaves_what_is_committed_and_no_rubbish(tmp_path: Path) -> None:
    """A limit on file size fails the write in the middle, as a full disk does, and needs no privileges."""
    code = """
import resource, sys
import pyarrow as pa
from test_store import KEY, small, Store
store = Store(sys.argv[1])
store.commit(KEY, small(1), "hypotheses", "id", {"failures": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
store.commit(KEY.replace("shard", "other"), small(2), "hypotheses", "id", {"failures": 0})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert "What is committed is intact. Free space" in done.stderr
    assert Store(tmp_path).folder.names(KEY.rpartition("/")[0]) == [KEY.rpartition("/")[2]]
    assert Store(tmp_path).read_key(KEY).equals(small(1))


# -- leases

TABLE = "hypotheses/fake-0000000000000000"


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    return LocalFolder(str(tmp_path))


def leave_lease(folder: LocalFolder, process: str, number: int = 1) -> None:
    folder.note(
        f".run/leases/{TABLE.replace('/', '.')}.{number}.json", json.dumps({"process": process, "beat": 3}).encode()
    )


def test_a_second_writer_waits_and_says_so(folder: LocalFolder, caplog: pytest.LogCaptureFixture) -> None:
    order, told = [], set[str]()

    def second() -> None:
        for table in (TABLE, TABLE.replace("hypotheses", "scores")):
            with Leases(folder, [table], told):
                order.append("second")

    with Leases(folder, [TABLE, TABLE.replace("hypotheses", "scores")]):
        assert Leases.holder(folder, TABLE) == processes.this_process()
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.7)
        order.append("first")
    thread.join(timeout=5)
    assert order == ["first", "second", "second"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        f"another run (process {os.getpid()} of this machine) is writing {TABLE}; waiting for it, "
        "to use what it commits."
    )
    assert Leases.holder(folder, TABLE) is None


def test_a_dead_writer_on_this_host_is_replaced_at_once(folder: LocalFolder) -> None:
    leave_lease(folder, DEAD)
    start = time.monotonic()
    with Leases(folder, [TABLE]):
        assert time.monotonic() - start < 0.4
        assert Leases.holder(folder, TABLE) == processes.this_process()


@pytest.mark.slow
def test_a_silent_writer_on_another_host_is_replaced_after_the_expiry(
    folder: LocalFolder, caplog: pytest.LogCaptureFixture
) -> None:
    leave_lease(folder, "0123abcd-1-1", number=4)
    start = time.monotonic()
    with Leases(folder, [TABLE]):
        assert 19 < time.monotonic() - start < 25
    assert "the other run (process 1 on another machine, 0123abcd) is gone; taking over" in caplog.text


def test_many_waiters_take_turns(folder: LocalFolder) -> None:
    leave_lease(folder, DEAD)
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with Leases(folder, [TABLE]):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert most == [1, 1, 1, 1]


@pytest.fixture
def zombie() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", ""])
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    yield process.pid
    process.wait()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_process_counts_as_dead_before_it_is_reaped(zombie: int) -> None:
    started = Path(f"/proc/{zombie}/stat").read_text().rpartition(")")[2].split()[19]
    assert processes.is_dead(f"{processes.host()}-{zombie}-{started}")
    assert not processes.is_dead(processes.this_process())
    assert not processes.is_dead("0123abcd-1-1")
