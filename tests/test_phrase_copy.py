"""Phrase copy in the attention beam: what is copied, what it costs, what an empty list and the filter leave alone."""

from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_seq2seq
import torch
from test_first_pass_attention import recordings, utterances  # noqa: F401  (fixture)

from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.phrase_copy import PhraseCopyConfig
from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.copy_head import LONGEST_TOKEN, NOT_HEARD, STRIDE, CopyHead, CopyHeadShape, load, save
from ctxasr_ray.models.seq2seq import Seq2SeqModel
from ctxasr_ray.nbest import read_nbest
from ctxasr_ray.schema import CONTEXT, ContractError, conform
from ctxasr_ray.search.ctc_prefix_scores import CtcPrefixScores
from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch
from ctxasr_ray.search.phrase_copy import MAX_BEGINNING, Phrase, PhraseCopy, RowsNow
from ctxasr_ray.search.phrase_heads import ForcedPhrases
from ctxasr_ray.stage import Costs
from ctxasr_ray.training.listed_phrases import starts

torch.set_num_threads(1)


class Always:
    """A head that wants one phrase at one depth, with a given probability; all else is "none"."""

    def __init__(self, probability: float, depth: int, num_phrases: int) -> None:
        self._probability, self._depth, self._num = probability, depth, num_phrases

    def log_probs(self, now: RowsNow) -> np.ndarray:
        share = self._probability if len(now.texts[0]) == self._depth else 0.0
        probs = np.zeros((len(now.texts), self._num + 1))
        probs[:, 0], probs[:, -1] = share, 1 - share
        with np.errstate(divide="ignore"):
            return np.log(probs)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqModel:
    made = tiny_seq2seq.make("whisper", tmp_path_factory.mktemp("copy") / "asr", ends_like="o")
    tiny_seq2seq.add_ctc_head(made)
    return Seq2SeqModel(resolve(str(made)))


def found(model: Seq2SeqModel, copy: PhraseCopy | None, ctc_weight: float = 0.3) -> list[Any]:
    search = LabelSynchronousSearch(model, beam_size=5, max_tokens=14, ctc_weight=ctc_weight)
    states = states_of(model)
    return search.search(states, model.tokens.prompt(None), [model.ctc_log_probs(states, 20)], None, copy)[0]


def states_of(model: Seq2SeqModel) -> torch.Tensor:
    wave = (0.1 * np.random.default_rng(3).standard_normal(2 * model.sample_rate_hz)).astype(np.float32)
    return model.encode([wave])[0]


def spelled(model: Seq2SeqModel, *texts: str) -> list[Phrase]:
    return [tuple(ids.tolist()) for ids in model.tokens.encode(texts)]


def plain(hypotheses: list[Any]) -> list[Any]:
    return [(h.token_ids.tolist(), h.token_log_probs.tolist(), h.score) for h in hypotheses]


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_copying_appends_exactly_the_tokens_of_the_phrase_and_pays_once(model: Seq2SeqModel, ctc_weight: float) -> None:
    (phrase,) = phrases = spelled(model, "bad")
    copy = PhraseCopy(Always(0.95, 2, 1), [phrases], confidence=0.9)
    hypotheses = [h for h in found(model, copy, ctc_weight) if h.copied]
    assert hypotheses
    states, prompt = states_of(model), model.tokens.prompt(None)
    frames = model.ctc_log_probs(states, 20)
    for h in hypotheses:
        ((first, end),) = h.copied
        assert tuple(h.token_ids[first:end].tolist()) == phrase
        forced = model.forced_scores(states, prompt, [h.token_ids])  # every cache went on through the copied tokens
        assert h.token_log_probs.sum() == pytest.approx(forced.log_probs[0], abs=1e-3)
        attention = np.delete(h.token_log_probs, np.arange(first, end)).sum() + np.log(0.95)
        if len(h.token_ids) > first:
            attention += h.eos_log_prob * h.ended
        scores = CtcPrefixScores(frames, model.ctc_blank_id)
        for token in h.token_ids.tolist():
            scores.advance([token], [0])
        ctc = scores.ended()[0] if h.ended else scores.totals[0]
        heard = ctc_weight * ctc if ctc_weight else 0.0
        assert h.score == pytest.approx((1 - ctc_weight) * attention + heard, abs=1e-3)


@pytest.mark.parametrize("confidence", [1.0, 0.96])
def test_a_filter_that_nothing_passes_and_an_empty_list_are_the_search_without_to_the_bit(
    model: Seq2SeqModel, confidence: float
) -> None:
    alone = plain(found(model, None))
    phrases = spelled(model, "badge")
    assert plain(found(model, PhraseCopy(Always(0.95, 2, 1), [phrases], confidence=confidence))) == alone
    assert plain(found(model, PhraseCopy(Always(0.95, 2, 0), [[]], confidence=0.0))) == alone
    assert plain(found(model, PhraseCopy(Always(0.95, 2, 1), [phrases], confidence=0.9))) != alone


def test_only_the_best_rows_of_a_beam_may_begin_a_phrase(model: Seq2SeqModel) -> None:
    phrases = spelled(model, "badge")
    asked: list[list[int]] = []

    class Recording(Always):
        def log_probs(self, now: RowsNow) -> np.ndarray:
            asked.append(now.rows.tolist())
            return super().log_probs(now)

    found(model, PhraseCopy(Recording(0.95, 2, 1), [phrases], confidence=0.9))
    assert asked[0] == [0]
    assert max(map(len, asked)) == MAX_BEGINNING


def test_a_phrase_that_does_not_fit_is_not_begun(model: Seq2SeqModel) -> None:
    phrases = spelled(model, "badge" * 3)
    copied = found(model, PhraseCopy(Always(0.95, 0, 1), [phrases], confidence=0.9))
    assert not any(h.copied for h in copied)


def test_ctc_scores_of_phrases_are_those_of_their_tokens_one_by_one() -> None:
    rng = np.random.default_rng(0)
    frames = np.log(rng.dirichlet(np.ones(6), 30)).astype(np.float32)
    scores = CtcPrefixScores(frames, 0)
    scores.advance([1, 2, 2], [0, 0, 0])
    rows, phrases = np.array([0, 2, 1, 2]), [(3, 3, 4), (2,), (5, 1), (2, 2, 2, 1, 5)]
    for row, phrase, got in zip(rows, phrases, scores.phrases(rows, phrases), strict=True):
        alone = CtcPrefixScores(frames, 0)
        alone.advance([[1, 2, 2][row]], [0])
        before = alone.totals[0]
        for token in phrase:
            alone.advance([token], [0])
        assert got == pytest.approx(alone.totals[0] - before, abs=1e-9)


def test_the_training_free_head_sums_to_one_and_ranks_phrases_by_what_the_recogniser_says_of_them(
    model: Seq2SeqModel,
) -> None:
    states, prompt = states_of(model), model.tokens.prompt(None)
    phrases = spelled(model, "badge", "pop")
    options: dict[str, Any] = {"ctc_weight": 0.0, "temperature": 0.5, "reward": 1.0, "first_within": 50.0}
    head = ForcedPhrases(model=model, prompt=prompt, phrases=[phrases], **options)
    with torch.inference_mode():
        decoding = model.decode(states)
        logits = decoding.start(torch.from_numpy(prompt.astype(np.int64))[None])
        log_probs = logits.log_softmax(-1).double().numpy()
        now = RowsNow(0, [()], log_probs, logits, None, np.zeros(1, np.int64), partial(decoding.ahead, 0))
        found_RN = head.log_probs(now)
    assert np.exp(found_RN).sum() == pytest.approx(1.0)
    forced = model.forced_scores(states, prompt, [np.array(p, np.int32) for p in phrases]).log_probs
    sums = np.array([*(forced + [1.0 * len(p) for p in phrases]), log_probs.max() + 1.0]) / 0.5
    assert found_RN[0] == pytest.approx(sums - np.log(np.exp(sums).sum()), abs=1e-4)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PhraseCopyConfig:
    made = tiny_seq2seq.make("whisper", tmp_path_factory.mktemp("stage") / "asr", ends_like="o")
    search = AttentionConfig(model=str(made), beam_size=6, num_hypotheses=4, max_tokens=20)
    return PhraseCopyConfig(search=search, reward=30.0, first_within=50.0, confidence=0.3)


def context(table: pa.Table, phrases: list[str]) -> pa.Table:
    ids = table["utterance_id"].to_pylist()
    row = {
        "num_distractors": 0,
        "phrases": phrases,
        "weights": [1.0] * len(phrases),
        "origins": ["list"] * len(phrases),
    }
    rows = [{"utterance_id": one, **row, "phrase_ids": [-1] * len(phrases)} for one in ids]
    return conform(pa.Table.from_pylist(rows, schema=CONTEXT), "context")


def test_a_list_is_copied_from_and_what_cannot_be_written_is_counted(
    config: PhraseCopyConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    table, costs = utterances([*recordings[:2], "nowhere.wav"]), Costs()
    phrases = ["badge", "口", "ab" * 100, "a", "a"]
    out = read_nbest(config.build()(table, context(table, phrases), costs=costs))
    assert out[-1].error_type == "audio"
    assert any("badge" in h.text for row in out[:2] for h in row.hypotheses)
    assert list(costs.named["unwritable_phrases"]) == ["口", "ab" * 100]
    assert costs.counters["phrases_copied"] > 0
    without = config.search.build()(table, costs=Costs())
    assert config.build()(table, context(table, []), costs=Costs()).equals(without)
    with pytest.raises(ContractError):
        config.build()(table, context(table.slice(0, 1), phrases), costs=Costs())


def test_settings_that_cannot_be_meant_are_refused_in_words(config: PhraseCopyConfig, tmp_path: Path) -> None:
    for change, match in (
        ({"confidence": 1.5}, "expected a probability"),
        ({"temperature": 0.0}, "more than 0"),
        ({"head": "trained"}, "go together"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(config, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load(tmp_path)


def small_head() -> CopyHead:
    torch.manual_seed(0)
    return CopyHead(CopyHeadShape(vocab_size=20, decoder_size=12, lm_size=8)).half().float().eval()


LISTED = [np.array(p, np.int32) for p in ([1, 2, 3], [4], [5, 6, 7, 8, 9])]


def asked(head: CopyHead, states: torch.Tensor, audio: torch.Tensor, phrases: list[Any], hidden: Any = None) -> Any:
    listed, heard = head.phrases(phrases), head.hear(audio, hidden)
    return head.recogniser_logits(states, heard, head.spot(heard, listed), listed)


@torch.inference_mode()
def test_a_copy_head_is_read_as_it_was_written_and_a_phrase_is_scored_as_alone(tmp_path: Path) -> None:
    head = small_head()
    save(head, tmp_path)
    again = load(tmp_path)
    states, audio = torch.randn(1, 4, 12), torch.randn(1, 18, 12)
    logits = asked(again, states, audio, LISTED)
    torch.testing.assert_close(logits, asked(head, states, audio, LISTED))
    torch.testing.assert_close(logits[..., [1, 3]], asked(again, states, audio, LISTED[1:2]))
    longer = torch.cat([audio, torch.randn(1, 9, 12)], dim=1)
    padded = asked(again, states, longer, LISTED, torch.arange(27)[None] >= 18)
    torch.testing.assert_close(logits, padded)


@torch.inference_mode()
def test_a_phrase_is_spotted_where_its_tokens_follow_each_other_best() -> None:
    head = small_head()
    heard, listed = head.hear(torch.randn(1, 10 * STRIDE, 12)), head.phrases(LISTED)
    spotted_NF = head.spot(heard, listed)[0]
    for phrase, keys, spotted_F in zip(LISTED, listed.keys, spotted_NF, strict=True):
        own = keys[: len(phrase)] @ heard.frames[0].T - head.bias
        own += head.ctc_scale * (heard.ctc[0, phrase] + head.ctc_gain[phrase, None])
        for start in range(10 - len(phrase) + 1):
            ways = [
                frames
                for frames in combinations(range(start, 10), len(phrase))
                if frames[0] == start and max(np.diff(frames), default=1) <= LONGEST_TOKEN
            ]
            best = max(sum(float(own[n, frame]) for n, frame in enumerate(frames)) for frames in ways)
            assert float(spotted_F[start]) == pytest.approx(best, abs=1e-4)
        assert all(value < NOT_HEARD / 2 for value in spotted_F[10 - len(phrase) + 1 :])


def test_the_longest_phrase_that_starts_here_is_the_label() -> None:
    assert starts([5, 1, 2, 3, 1, 2], [(1, 2), (1, 2, 3), (9,)]) == [3, 1, 3, 3, 0, 3, 3]
