import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers as tf
from real import real
from tiny_causal_lms import one_by_one, tiny, widen
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ctxasr_ray.models.text_tokens import TEXT_FORMS, TextTokens
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.schema import conform
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs, StageConfig, identity

torch.set_num_threads(1)

EXACT = 1e-4
TEXTS = (
    "once upon a time you met a girl of the town",
    "once upon a time you met a curl of the town",
    "",
    "once upon a time you met a girl of the town",
    "the town's girl",
    "two </s> words <unk>",
)


def bpe(bos: str | None = None, own_bos: bool = False, pad_first: bool = False) -> tf.PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens, as GPT-2's: words inside a text carry a leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = (["<pad>"] if pad_first else []) + ["</s>"] + ([bos] if bos else [])
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*TEXTS, "a time of you", "of a time"] * 5, trainer)
    if own_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A </s>",
            special_tokens=[(bos, tokenizer.token_to_id(bos)), ("</s>", tokenizer.token_to_id("</s>"))],
        )
    options = {"bos_token": bos} if bos else {}
    if pad_first:
        options["pad_token"] = "<pad>"
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **options)


def characters() -> tf.PreTrainedTokenizerFast:
    """A space is a token of its own."""
    letters = {"</s>": 0, "<s>": 1, "<unk>": 2} | {c: i for i, c in enumerate(" 'abcdefghijklmnopqrstuvwxyz", 3)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def llama(vocabulary: int, max_position_embeddings: int = 128, **options: object) -> tf.LlamaForCausalLM:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_position_embeddings,
        **options,
    )
    return widen(tf.LlamaForCausalLM(config).eval())


def saved(directory: Path, tokenizer: tf.PreTrainedTokenizerFast) -> tuple[str, tf.LlamaForCausalLM]:
    model = llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory), model


@pytest.fixture(scope="module")
def bpe_model(tmp_path_factory) -> tuple[str, tf.LlamaForCausalLM]:
    return saved(tmp_path_factory.mktemp("bpe"), bpe(bos="<s>", own_bos=True))


def nbest(*texts: str, utterance_id: str = "u") -> NBest:
    return NBest(utterance_id=utterance_id, hypotheses=[Hypothesis(text=t) for t in texts])


def score(config: CausalLmConfig, *nbests: NBest) -> list[dict]:
    return config.build()(hypotheses_table(nbests), costs=Costs()).to_pylist()


def source(row: dict) -> dict:
    (only,) = row["sources"]
    return only


def assert_scored(got: dict, model, prefix: list[int], tokens: list[list[int]], eos: int) -> None:
    for i, ids in enumerate(tokens):
        log_prob, end = one_by_one(model, prefix, [int(t) for t in ids], eos)
        assert got["log_probs"][i] == pytest.approx(log_prob, abs=EXACT)
        assert got["eos_log_probs"][i] == pytest.approx(end, abs=EXACT)
    assert got["num_tokens"] == [len(ids) for ids in tokens]


def test_the_stage_keeps_rows_order_and_errors(bpe_model):
    config = CausalLmConfig(model=bpe_model[0])
    assert isinstance(config, StageConfig)
    rows = [
        nbest(*TEXTS, utterance_id="z"),
        NBest(utterance_id="broken", error_type="audio", error="no such file"),
        nbest(utterance_id="nothing"),
        nbest("a girl", utterance_id="a"),
    ]
    table = hypotheses_table(rows)
    stage = config.build()
    whole = stage(table, costs=Costs())
    assert conform(whole, config.WRITES).equals(whole)
    assert whole.column("utterance_id").to_pylist() == ["z", "broken", "nothing", "a"]
    assert [len(source(r)["log_probs"]) for r in whole.to_pylist()] == [6, 0, 0, 1]
    parts = [stage(table.slice(i, 1), costs=Costs()) for i in range(4)]
    for got, expected in zip(pa.concat_tables(parts).to_pylist(), whole.to_pylist(), strict=True):
        assert source(got)["log_probs"] == pytest.approx(source(expected)["log_probs"], abs=EXACT)
    assert stage(table.slice(0, 0), costs=Costs()).num_rows == 0


def test_scores_equal_one_by_one_scoring_behind_the_tokenizers_own_bos(bpe_model):
    directory, model = bpe_model
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    (row,) = score(CausalLmConfig(model=directory), nbest(*TEXTS))
    tokens = [tokenizer(f" {t}", add_special_tokens=False, split_special_tokens=True)["input_ids"] for t in TEXTS]
    tokens[2] = []
    assert_scored(source(row), model, [tokenizer.bos_token_id], tokens, tokenizer.eos_token_id)
    assert source(row)["log_probs"][2] == 0.0
    assert source(row)["log_probs"][0] == source(row)["log_probs"][3]


def test_a_prompt_stands_before_every_hypothesis_and_outside_its_score(bpe_model):
    directory, model = bpe_model
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    config = CausalLmConfig(model=directory, prompt="the town of", text_form="sentence", source="prompted")
    (row,) = score(config, nbest("ONCE UPON A TIME", "a time."))
    prefix = tokenizer("the town of", add_special_tokens=False)["input_ids"]
    tokens = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (" Once upon a time.", " A time.")]
    assert_scored(source(row), model, [tokenizer.bos_token_id, *prefix], tokens, tokenizer.eos_token_id)
    assert source(row)["source"] == "prompted"


def test_costs_count_the_work(bpe_model):
    costs = Costs()
    CausalLmConfig(model=bpe_model[0]).build()(hypotheses_table([nbest(*TEXTS)]), costs=costs)
    counted = costs.counters
    assert counted["tokens_flat"] > counted["tokens_deduplicated"] > counted["nodes"] == counted["head_rows"]
    assert counted["llm_calls"] == 1
    assert {"peak_logits_bytes", "peak_kv_bytes", "first_tokens_unscored", "unknown_tokens"} <= counted.keys()
    assert {"tokenise", "llm"} <= costs.seconds.keys()


def test_each_utterance_has_counters_of_its_own(bpe_model):
    costs = Costs()
    lists = [nbest(*TEXTS, utterance_id="long"), nbest(TEXTS[0], utterance_id="short"), nbest(utterance_id="none")]
    CausalLmConfig(model=bpe_model[0]).build()(hypotheses_table(lists), costs=costs)
    assert list(costs.utterances) == ["long", "short", "none"]
    for name in ("nodes", "tokens_flat"):
        assert sum(one[name] for one in costs.utterances.values()) == costs.counters[name]
    long, short, none = costs.utterances.values()
    assert (long["llm_calls"], short["llm_calls"], none["llm_calls"]) == (1, 1, 0)
    assert long["kv_bytes"] * short["nodes"] == short["kv_bytes"] * long["nodes"] > 0  # one layer, all nodes


def test_a_hypothesis_beyond_the_context_is_null_with_its_reason(bpe_model):
    (row,) = score(CausalLmConfig(model=bpe_model[0]), nbest("a girl", "town " * 200, "the town"))
    got = source(row)
    assert [v is None for v in got["log_probs"]] == [False, True, False]
    assert [v is None for v in got["eos_log_probs"]] == [False, True, False]
    assert got["reasons"][1].startswith("model_limit: ")


def test_an_adapter_changes_the_scores_and_the_fingerprint(bpe_model, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    directory, _ = bpe_model
    base = tf.AutoModelForCausalLM.from_pretrained(directory)
    torch.manual_seed(1)
    adapted = widen(get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")))
    adapted.save_pretrained(tmp_path / "lora")
    base_again = tf.AutoModelForCausalLM.from_pretrained(directory)
    reference = PeftModel.from_pretrained(base_again, tmp_path / "lora").eval()
    plain = CausalLmConfig(model=directory)
    config = dataclasses.replace(plain, adapter=str(tmp_path / "lora"))
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    (row,) = score(config, nbest("a girl", "the town"))
    tokens = [tokenizer(f" {t}", add_special_tokens=False)["input_ids"] for t in ("a girl", "the town")]
    assert_scored(source(row), reference, [tokenizer.bos_token_id], tokens, tokenizer.eos_token_id)
    assert config.fingerprint() != plain.fingerprint()
    assert abs(source(row)["log_probs"][0] - source(score(plain, nbest("a girl"))[0])["log_probs"][0]) > 0.01


def test_a_missing_adapter_is_refused_by_name(bpe_model, tmp_path):
    with pytest.raises(ValueError, match="adapter_config"):
        CausalLmConfig(model=bpe_model[0], adapter=str(tmp_path)).build()


def test_text_form_prompt_and_attention_are_identity_and_devices_are_not(bpe_model):
    config = CausalLmConfig(model=bpe_model[0])
    for changed in ({"text_form": "lower"}, {"prompt": "x"}, {"start_from_eos": True}, {"dtype": "bfloat16"}):
        assert identity(dataclasses.replace(config, **changed)) != identity(config)
    for same in ({"device": "cpu"}, {"utterances_per_forward": 8}, {"device_map": "auto"}):
        assert identity(dataclasses.replace(config, **same)) == identity(config)


def test_a_tokenizer_larger_than_the_head_is_refused(tmp_path):
    tokenizer = bpe()
    llama(len(tokenizer) - 5).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not match the weights"):
        CausalLmConfig(model=str(tmp_path)).build()


def test_a_tokenizer_without_bos_scores_from_eos_only_when_asked(tmp_path):
    """Trap 8: a tokenizer without BOS must neither fail nor invent one."""
    directory, model = saved(tmp_path, tokenizer := bpe())
    tokens = [tokenizer(f" {t}", add_special_tokens=False)["input_ids"] for t in ("a girl", "the town")]
    eos = tokenizer.eos_token_id
    (row,) = score(CausalLmConfig(model=directory, start_from_eos=True), nbest("a girl", "the town", ""))
    assert_scored(source(row), model, [eos], [*tokens, []], eos)
    (row,) = score(CausalLmConfig(model=directory), nbest("a girl", "the town", ""))
    for i, ids in enumerate(tokens):
        assert source(row)["log_probs"][i] == pytest.approx(one_by_one(model, ids[:1], ids[1:])[0], abs=EXACT)
    assert source(row)["log_probs"][2] == 0.0
    assert source(row)["eos_log_probs"][2] is None


def test_a_low_pad_id_below_eos_takes_no_probability_away(tmp_path):
    """Trap 8: SpeechBrain sets every logit from the pad id upwards to -inf."""
    directory, model = saved(tmp_path, tokenizer := bpe(bos="<s>", own_bos=True, pad_first=True))
    assert tokenizer.pad_token_id < tokenizer.eos_token_id
    tokens = [tokenizer(f" {t}", add_special_tokens=False)["input_ids"] for t in ("a girl", "once upon the town")]
    (row,) = score(CausalLmConfig(model=directory), nbest("a girl", "once upon the town"))
    assert_scored(source(row), model, [tokenizer.bos_token_id], tokens, tokenizer.eos_token_id)


def test_a_tokenizer_that_names_a_bos_without_writing_it_starts_from_it():
    tokens = TextTokens(bpe(bos="<s>"))
    assert tokens.prefix.tolist() == [tokens.tokenizer.bos_token_id]
    assert TextTokens(bpe(bos="<s>"), prompt="a time").prefix.tolist() == TextTokens(bpe(bos="<s>"))._ids("a time")


@pytest.mark.parametrize(
    ("make", "expected"),
    [(bpe, True), (characters, False), (lambda: tf.AutoTokenizer.from_pretrained(real("stories260K")), False)],
    ids=["byte-level BPE", "characters", "SentencePiece"],
)
def test_a_first_word_is_written_as_inside_a_text(make, expected):
    tokens = TextTokens(make())
    assert tokens.leading_space == expected
    (alone, inside, before) = tokens.encode(["time", "of time", "of"])
    if not isinstance(tokens.tokenizer.backend_tokenizer.model, models.WordLevel):
        assert inside.tolist() == [*before, *alone]
    else:
        assert inside.tolist()[len(before) + 1 :] == alone.tolist()


def test_a_prompt_that_ends_in_white_space_takes_the_leading_space_away():
    tokens = TextTokens(bpe(), prompt="a time:\n")
    assert tokens.encode(["girl"])[0].tolist() == TextTokens(bpe())._ids("girl")


def test_unknown_tokens_are_counted_and_a_text_of_nothing_but_lost_letters_is_no_free_win(tmp_path):
    directory, _ = saved(tmp_path, characters())
    costs = Costs()
    stage = CausalLmConfig(model=directory).build()
    stage(hypotheses_table([nbest("caf\u00e9", "na\u00efve")]), costs=costs)
    assert costs.counters["unknown_tokens"] == 2


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("raw", " HELLO  world", " HELLO  world"),
        ("spaced", " HELLO  world", "HELLO world"),
        ("lower", " HELLO  world", "hello world"),
        ("upper", "hello world", "HELLO WORLD"),
        ("sentence", "HELLO  WORLD", "Hello world."),
        ("sentence", "hello McDonald", "Hello McDonald."),
        ("sentence", "really?", "Really?"),
        ("sentence", "", ""),
        ("sentence", "42", "42."),
    ],
)
def test_text_forms(form, text, expected):
    assert TEXT_FORMS[form](text) == expected


def test_an_unknown_text_form_is_refused():
    with pytest.raises(ValueError, match="text_form 'title' is unknown"):
        TextTokens(bpe(), text_form="title")


def test_a_real_pretrained_model_is_scored_exactly_and_prefers_its_own_english():
    directory = real("stories260K")
    model = tf.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    texts = ["Once upon a time there was a little girl.", "Once upon a lime there was a little curl.", "", "Once"]
    (row,) = score(CausalLmConfig(model=str(directory)), nbest(*texts))
    tokens = [tokenizer(t, add_special_tokens=False)["input_ids"] if t else [] for t in texts]
    assert_scored(source(row), model, [1], tokens, 2)
    assert source(row)["log_probs"][0] > source(row)["log_probs"][1] + 5


REAL_TEXTS = ["Where's the caf\u00e9 in K\u00f6ln?", "Where's the cafe in cologne?", "\u4f60\u597d", "where is </s> it"]


def mistral_data(name: str) -> Path:
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / name


def test_mistrals_sentencepiece_tokenizer_scores_exactly(tmp_path):
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

    model = llama(32000, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(tmp_path)
    shutil.copy(mistral_data("tokenizer.model.v1"), tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    own = SentencePieceTokenizer(mistral_data("tokenizer.model.v1"))
    (row,) = score(CausalLmConfig(model=str(tmp_path)), nbest(*REAL_TEXTS))
    assert_scored(source(row), model, [1], [own.encode(t, bos=False, eos=False) for t in REAL_TEXTS], 2)


def test_mistrals_tekken_tokenizer_scores_exactly(tmp_path):
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    name = "tekken_240718.json"
    torch.manual_seed(0)
    sizes = {"vocab_size": 131072, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    config = tf.MistralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
    model = widen(tf.MistralForCausalLM(config).eval())
    model.save_pretrained(tmp_path)
    shutil.copy(mistral_data(name), tmp_path / "tekken.json")
    own = Tekkenizer.from_file(mistral_data(name))
    (row,) = score(CausalLmConfig(model=str(tmp_path)), nbest(*REAL_TEXTS))
    assert_scored(source(row), model, [1], [own.encode(f" {t}", bos=False, eos=False) for t in REAL_TEXTS], 2)


def test_whispers_bpe_ranks_score_exactly(tmp_path):
    import whisper
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from whisper.tokenizer import get_encoding

    ranks = Path(whisper.__file__).parent / "assets" / "gpt2.tiktoken"
    converted = TikTokenConverter(vocab_file=str(ranks), extra_special_tokens=["<|endoftext|>"]).converted()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=converted, eos_token="<|endoftext|>")
    directory, model = saved(tmp_path, tokenizer)
    encoding = get_encoding("gpt2")
    eos = encoding.eot_token
    (row,) = score(CausalLmConfig(model=directory, start_from_eos=True), nbest(*REAL_TEXTS))
    tokens = [encoding.encode(f" {t}", disallowed_special=()) for t in REAL_TEXTS]
    assert tokenizer.eos_token_id == eos
    assert_scored(source(row), model, [eos], tokens, eos)


def test_a_refused_family_is_scored_through_the_stage(tmp_path):
    tokenizer = bpe(bos="<s>", own_bos=True)
    model = tiny("mamba")
    model.resize_token_embeddings(len(tokenizer))
    widen(model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (row,) = score(CausalLmConfig(model=str(tmp_path)), nbest(*TEXTS))
    (again,) = score(CausalLmConfig(model=str(tmp_path), utterances_per_forward=4), nbest(*TEXTS))
    tokens = [TextTokens(tokenizer).encode([t])[0].tolist() for t in TEXTS]
    assert_scored(source(row), model, [tokenizer.bos_token_id], tokens, tokenizer.eos_token_id)
    assert np.allclose(source(row)["log_probs"], source(again)["log_probs"], atol=EXACT)
