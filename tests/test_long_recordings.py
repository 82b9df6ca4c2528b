"""Long recordings end to end: windows are joined so that every word counts once, and memory stays bounded."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctxasr_ray import schema
from ctxasr_ray import text as texts
from ctxasr_ray.cli import main
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import asset
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.joined_windows import Window, Word, join_windows, join_words, later_windows, recordings
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.schema import ContractError
from ctxasr_ray.stage import Costs

FEW_WORDS = ("no", "yes", "the")


def spoken(words, rng, longest_s=0.6):
    """Words one after the other with their times, pauses between some."""
    said, at = [], 0.0
    for word in words:
        at += rng.choice([0.0, 0.0, 0.05, 1.0])
        length = rng.uniform(0.08, longest_s)
        said.append(Word(word, at, at + length))
        at += length
    return said


def heard(said, start, end, jitter=0.0, rng=None):
    """What a window hears: the words that lie in it as a whole, at times that are off by at most `jitter`."""
    words = []
    for word in said:
        if word.start_s >= start and word.end_s <= end:
            shift = rng.uniform(-jitter, jitter) if jitter else 0.0
            words.append(Word(word.word, word.start_s + shift, word.end_s + shift))
    return Window(start, end, words)


def random_windows(end, overlap_s, rng):
    """Windows from 0 to the end, each sharing `overlap_s` with the next."""
    windows, start = [], 0.0
    while True:
        stop = start + overlap_s + rng.uniform(overlap_s, 8.0)
        windows.append((start, min(stop, end)))
        if stop >= end:
            return windows
        start = stop - overlap_s


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), num_words=st.integers(1, 60), overlap_s=st.floats(0.65, 3))
@example(seed=7660529, num_words=11, overlap_s=0.78125)  # two short equal words in a row, one of them cut by a border
def test_words_with_times_are_neither_lost_nor_doubled(seed, num_words, overlap_s):
    rng = random.Random(seed)
    said = spoken([rng.choice(FEW_WORDS) for _ in range(num_words)], rng)
    windows = [heard(said, *span) for span in random_windows(said[-1].end_s, overlap_s, rng)]
    assert [word.word for word in join_words(windows)] == [word.word for word in said]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), num_words=st.integers(1, 60), overlap_s=st.floats(0.85, 3))
@example(seed=929699, num_words=37, overlap_s=2.7890625)  # the means of two neighbours around the border are swapped
def test_windows_that_disagree_about_times_lose_and_double_no_word(seed, num_words, overlap_s):
    # 0.6 s long and told 0.12 s too late, a word that only the left window heard whole has its middle before 0.42 s
    rng = random.Random(seed)
    said = spoken([f"w{i}" for i in range(num_words)], rng)
    windows = [heard(said, *span, jitter=0.12, rng=rng) for span in random_windows(said[-1].end_s, overlap_s, rng)]
    assert [word.word for word in join_words(windows)] == [word.word for word in said]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), num_words=st.integers(1, 60), overlap_s=st.floats(0.65, 3))
def test_words_without_times_are_joined_where_the_windows_agree(seed, num_words, overlap_s):
    rng = random.Random(seed)
    said = spoken([f"w{i}" for i in range(num_words)], rng, longest_s=0.5)
    windows = []
    for span in random_windows(said[-1].end_s, overlap_s, rng):
        words = [Word(word.word) for word in heard(said, *span).words]
        windows.append(Window(*span, words))
    assert [word.word for word in join_words(windows)] == [word.word for word in said]


def test_a_run_that_is_shorter_than_what_lies_beside_it_joins_nothing():
    left = Window(0, 10, [Word(w) for w in ["we", "saw", "the", "red", "house", "there"]])
    right = Window(8, 18, [Word(w) for w in ["and", "the", "dog", "barked"]])
    assert len(join_words([left, right])) == 10
    cut = Window(8, 18, [Word(w) for w in ["ed", "House,", "there", "it", "was"]])
    assert " ".join(w.word for w in join_words([left, cut])) == "we saw the red house there it was"


def test_a_word_belongs_to_the_window_in_whose_half_its_middle_lies():
    left = Window(0, 10, [Word("one", 8.0, 8.8), Word("tow", 8.8, 9.4), Word("thr", 9.4, 9.9)])
    right = Window(8, 18, [Word("un", 8.1, 8.8), Word("two", 8.8, 9.4), Word("three", 9.4, 10.2)])
    assert [w.word for w in join_words([left, right])] == ["one", "two", "three"]


def test_windows_that_do_not_overlap_keep_all_words():
    windows = [Window(0, 5, [Word("a", 4.0, 4.9)]), Window(5, 9, [Word("a", 5.0, 5.5)]), Window(20, 25, [Word("a")])]
    assert len(join_words(windows)) == 3


def rows(*windows, recording="r", channel=None, reference=None, span_s=10.0, hop_s=8.0):
    """UTTERANCES and TRANSCRIPTS rows of a recording; a window is a list of (word, start, end), or an error."""
    utterances, transcripts = [], []
    for index, words in enumerate(windows):
        name = f"{recording}-{channel}-{index}"
        utterances.append(
            {
                **{"utterance_id": name, "corpus": "c", "split": "test", "audio_uri": "a.wav", "channel": channel},
                **{"recording_id": recording, "window_index": index, "start_s": index * hop_s, "duration_s": span_s},
                "reference": reference if index == 0 else None,
            }
        )
        failed = isinstance(words, str)
        said = (
            [] if failed else [dict(zip(("word", "start_s", "end_s"), w, strict=True), origin="search") for w in words]
        )
        transcripts.append(
            {
                **{"utterance_id": name, "text": " ".join(w["word"] for w in said), "words": said, "num_unscored": 0},
                **({"error_type": "audio", "error": words} if failed else {}),
            }
        )
    return utterances, transcripts


def tables(*streams, order=None):
    utterances = [row for stream in streams for row in stream[0]]
    transcripts = [row for stream in streams for row in stream[1]]
    if order is not None:
        utterances, transcripts = ([part[i] for i in order] for part in (utterances, transcripts))
    return (
        schema.conform(pa.Table.from_pylist(utterances, schema=schema.UTTERANCES), "utterances"),
        schema.conform(pa.Table.from_pylist(transcripts, schema=schema.TRANSCRIPTS), "transcripts"),
    )


CALL = (
    rows([("good", 1, 2), ("day", 8.2, 8.6)], [("day", 0.2, 0.6), ("sir", 5, 6)], channel=0, reference="good day sir"),
    rows([("hello", 3, 4)], [("there", 4, 5)], channel=1, reference="hello you there"),
)


def test_errors_of_a_recording_stand_at_window_0_and_channels_stay_apart():
    utterances, transcripts = tables(*CALL, order=[3, 0, 2, 1])
    config = ErrorCountsConfig(metrics=("wer",))
    errors = config.build()(utterances, transcripts, costs=Costs()).to_pylist()
    assert [len(row["counts"]) for row in errors] == [0, 1, 1, 0]
    call, answer = errors[1]["counts"][0], errors[2]["counts"][0]
    assert (call["hits"], call["insertions"], call["reference_length"]) == (3, 0, 3)
    assert (answer["hits"], answer["deletions"], answer["reference_length"]) == (2, 1, 3)


def test_joined_transcripts_keep_rows_and_give_times_from_window_0():
    utterances, transcripts = tables(*CALL)
    joined = schema.conform(join_windows(utterances, transcripts), "transcripts")
    assert joined["utterance_id"].equals(transcripts["utterance_id"])
    assert joined["text"].to_pylist() == ["good day sir", "", "hello there", ""]
    assert [w["start_s"] for w in joined["words"].to_pylist()[0]] == pytest.approx([1, 8.2, 13])
    assert later_windows(utterances).tolist() == [False, True, False, True]


def test_a_failed_window_heard_nothing_and_its_neighbour_keeps_what_it_heard():
    stream = rows([("a", 1, 2), ("b", 9.4, 9.8)], "cannot be decoded", reference="a b c")
    joined = join_windows(*tables(stream)).to_pylist()
    assert (joined[0]["text"], joined[0]["error_type"]) == ("a b", None)
    all_failed = join_windows(*tables(rows("broken", "broken", reference="a")))
    assert all_failed["error_type"].to_pylist() == ["audio", None]


def test_windows_with_references_of_their_own_are_utterances_of_their_own():
    utterances, transcripts = tables(rows([("a", 1, 2)], [("b", 4, 5)], reference="a"))
    references = pa.array(["a", "b"], pa.string())
    utterances = utterances.set_column(utterances.schema.get_field_index("reference"), "reference", references)
    assert recordings(utterances) == []
    assert join_windows(utterances, transcripts) is transcripts


def test_a_recording_that_lacks_a_window_is_refused():
    utterances, transcripts = tables(rows([], [], [], reference="a"), order=[0, 2])
    with pytest.raises(ContractError, match="got window_index 2 where 1 was expected"):
        join_windows(utterances, transcripts)


def test_no_list_is_held_to_the_reference_of_a_whole_recording():
    utterances, _ = tables(*CALL, rows([], recording="short", reference="yes"))
    lists = [NBest(utterance_id=i, hypotheses=[Hypothesis(text="yes")]) for i in utterances["utterance_id"].to_pylist()]
    costs = Costs()
    config = NbestErrorsConfig()
    nbest_errors = config.build()(hypotheses_table(lists), utterances, costs=costs)
    assert [row["counts"][0]["reference_length"] for row in nbest_errors.to_pylist()] == [None] * 4 + [1]
    assert costs.counters["recordings_in_windows_left_out"] == 2
    oracle = OracleConfig().build()(nbest_errors, costs=Costs())
    assert [len(row["counts"]) for row in oracle.to_pylist()] == [0, 0, 0, 0, 2]


TURN_S = 12.0
"""From the start of one sentence to the start of the next, which is on the other channel."""
IN_A_PROCESS = """
import re, sys
from pathlib import Path
from test_long_recordings import evaluate
evaluate(*sys.argv[1:])
# not ru_maxrss, which begins at the peak of the process that started this one
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def pool():
    pytest.importorskip("espeakng_loader")
    return [SyntheticConfig(snrs_db=(None,)).spoken("test", index) for index in range(10)]


def write_manifest(folder, *said):
    """One line per channel of the recording, with all that it says."""
    lines = [{"audio_filepath": "long.flac", "channel": c, "text": text} for c, text in enumerate(said)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return sum(len(texts.words(text, "whisper_english")) for text in said)


def call(folder, num_turns):
    """Writes two channels of sentences that take turns; gives the number of words."""
    folder.mkdir()
    sentences = pool()
    floor = np.random.default_rng(0).standard_normal((round(TURN_S * 16000), 2)).astype(np.float32) * 1e-4
    with soundfile.SoundFile(folder / "long.flac", "w", 16000, 2) as file:
        for turn in range(num_turns):
            block = floor.copy()
            samples = sentences[turn % len(sentences)].samples
            block[: len(samples), turn % 2] += samples
            file.write(block)
    said = [sentences[turn % len(sentences)].text for turn in range(num_turns)]
    return write_manifest(folder, " ".join(said[::2]), " ".join(said[1::2]))


def talk(folder):
    """Writes sentences one right after the other; gives the number of words."""
    folder.mkdir()
    sentences = pool()
    soundfile.write(folder / "long.flac", np.concatenate([sentence.samples for sentence in sentences]), 16000)
    return write_manifest(folder, " ".join(sentence.text for sentence in sentences))


def evaluate(folder, *ways):
    """From the recording to RESULTS as JSON lines on standard output, by the commands that a user gives."""
    cut, run = f"{folder}/cut", f"{folder}/run"
    assert main(["prepare", "nemo", "--source", str(folder), "--directory", cut, *ways]) == 0
    words = ["evaluate", "ctc", "--first-pass.model", asset("ctc"), "--manifest", cut, "--root", run, "--json"]
    words += ["--executor", "inline", "--num-replicates", "10", "--first-pass.beam-size", "8"]
    assert main([*words, "--first-pass.num-hypotheses", "2"]) == 0


def error_rate(printed, num_utterances, num_words):
    """The WER of the first pass, once the counts around it are what they must be."""
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    results = {(row["system"], row["metric"]): row for row in rows}
    wer = results["first_pass", "wer"]
    counts = dict(wer["counts"])
    assert (wer["num_utterances"], wer["num_failed"], wer["num_unscored"]) == (num_utterances, 0, 0)
    assert (counts["reference_length"], counts["unreferenced_utterances"]) == (num_words, 0)
    assert ("oracle", "wer") not in results
    return wer["value"]


def test_a_call_of_two_minutes_is_heard_in_windows_around_speech(tmp_path, capsys):
    num_words = call(tmp_path / "call", num_turns=10)
    evaluate(tmp_path / "call", "--segment", "vad")
    # 0.377 here, as for the sentences as utterances of their own
    assert error_rate(capsys.readouterr().out, 2, num_words) < 0.42


def test_a_talk_without_pauses_is_heard_in_overlapping_windows(tmp_path, capsys):
    num_words = talk(tmp_path / "talk")
    evaluate(tmp_path / "talk", "--segment", "fixed", "--window-s", "10", "--overlap-s", "3")
    # 0.485 here; 0.500 without overlap, 0.608 in one piece, which is longer than anything the model was trained on
    assert error_rate(capsys.readouterr().out, 1, num_words) < 0.5


@pytest.mark.slow
def test_two_hours_go_from_prepare_to_results_in_bounded_memory(tmp_path):
    num_words = call(tmp_path / "call", num_turns=600)
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, str(tmp_path / "call"), "--segment", "vad"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert error_rate(done.stdout, 2, num_words) < 0.42
    peak_rss_mb = float(done.stdout.splitlines()[-1])
    assert peak_rss_mb < 1500  # the samples alone would be 922 as float32
