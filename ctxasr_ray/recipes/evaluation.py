"""Evaluations by name: functions that return an `Experiment`, whose every field the command line can override."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from ctxasr_ray.candidates.keyword import KeywordCandidatesConfig
from ctxasr_ray.candidates.shortlist import ShortlistConfig
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Branch, Experiment, Rescoring, asset
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.first_pass.pocketsphinx import PocketSphinxConfig
from ctxasr_ray.first_pass.pocketsphinx_keywords import PocketSphinxKeywordsConfig
from ctxasr_ray.first_pass.speech_llm import SpeechLlmConfig
from ctxasr_ray.recipes.adaptation import study_adaptation
from ctxasr_ray.recipes.hearing import study_plateau, study_speech_lm, training_lists
from ctxasr_ray.recipes.rare_words import study_rare_words
from ctxasr_ray.recipes.search_studies import delayed_fusion, study_delayed_grid, study_search_lms, study_spanish
from ctxasr_ray.recipes.showcase import keyword_methods, showcase
from ctxasr_ray.recipes.studies import mandarin, study_list_sizes, study_noise, study_shortlists
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.scorers.vllm import VllmConfig
from ctxasr_ray.stage import Resources


def quickstart() -> Experiment:
    """The shipped character CTC model, rescored by the shipped language model, on synthetic spoken commands."""
    return Experiment(
        first_pass=CtcConfig(model=asset("ctc"), beam_size=150, num_hypotheses=100),
        scorers=(CausalLmConfig(model=asset("lm")),),
        synthetic=SyntheticConfig(),
        shard_audio_s=200.0,
    )


def ctc() -> Experiment:
    """Any CTC model of the hub or a directory, first pass and oracle only: --first-pass.model NAME."""
    return Experiment(first_pass=CtcConfig(model="facebook/wav2vec2-base-960h"))


def whisper() -> Experiment:
    """Any attention recogniser of the hub or a directory (Whisper, ...), first pass only: --first-pass.model NAME.

    A multilingual one takes --first-pass.language, or the language that each utterance of the manifest names.
    """
    return Experiment(first_pass=AttentionConfig(model="openai/whisper-large-v3"))


def speech_llm() -> Experiment:
    """A language model that hears as recogniser, ours or one of the hub: --first-pass.model NAME."""
    return Experiment(first_pass=SpeechLlmConfig(model=asset("speech_llm")))


def parakeet() -> Experiment:
    """NVIDIA's Parakeet on one GPU, first pass and oracle: English, 16 kHz, CTC."""
    model = CtcConfig(model="nvidia/parakeet-ctc-1.1b", resources=Resources(num_gpus=1))
    return Experiment(first_pass=model, shard_audio_s=7200)


def whisper_llm() -> Experiment:
    """Whisper large-v3 on one GPU, its 16-best rescored by a 7B language model on another."""
    lm = CausalLmConfig(model="Qwen/Qwen2.5-7B", dtype="bfloat16", resources=Resources(num_gpus=1))
    recogniser = AttentionConfig(
        model="openai/whisper-large-v3",
        dtype="float16",
        beam_size=16,
        num_hypotheses=16,
        resources=Resources(num_gpus=1),
    )
    return Experiment(first_pass=recogniser, scorers=(lm,), shard_audio_s=7200)


def whisper_vllm() -> Experiment:
    """The same with a 72B language model, quantised, in a vLLM engine over four GPUs of a node (extra vllm)."""
    lm = VllmConfig(
        model="Qwen/Qwen2.5-72B-Instruct-AWQ",
        dtype="float16",
        max_positions=2048,
        tensor_parallel=4,
        resources=Resources(num_gpus=4),
    )
    return replace(whisper_llm(), scorers=(lm,))


def pocketsphinx() -> Experiment:
    """Real English speech without any hub: PocketSphinx and the model in its wheel, first pass and oracle."""
    return Experiment(first_pass=PocketSphinxConfig())


def pocketsphinx_keywords() -> Experiment:
    """Keywords in real English speech without any hub: PocketSphinx searches a phrase list: --catalogue FILE."""
    return Experiment(first_pass=PocketSphinxKeywordsConfig())


def pocketsphinx_candidates() -> Experiment:
    """Keywords by sound in lists of a recogniser that knows no phrase list, here PocketSphinx: --catalogue FILE."""
    candidates = Branch(nbest=KeywordCandidatesConfig(), of=("first_pass",), shortlist=ShortlistConfig())
    return replace(pocketsphinx(), branches={"keyword_candidates": candidates})


def pocketsphinx_rescored() -> Experiment:
    """PocketSphinx's lists with its own and another LM's weight fitted on synthetic speech: --scorers.0.model NAME."""
    spoken = SyntheticConfig(num_dev=24, num_test=0, snrs_db=(None,))
    lm = CausalLmConfig(model=asset("lm"))
    return Experiment(
        first_pass=PocketSphinxConfig(), scorers=(lm,), rescorings={"own_lm": Rescoring()}, synthetic=spoken
    )


def imported() -> Experiment:
    """Somebody else's N-best lists, oracle and all: --first-pass.paths FILE --first-pass.format NAME."""
    return Experiment(first_pass=ImportedConfig(paths=("nbest.jsonl",), format="nbest"))


RECIPES: Final[Mapping[str, Callable[[], Experiment]]] = {
    "quickstart": quickstart,
    "showcase": showcase,
    "keyword_methods": keyword_methods,
    "ctc": ctc,
    "parakeet": parakeet,
    "whisper": whisper,
    "whisper_llm": whisper_llm,
    "whisper_vllm": whisper_vllm,
    "speech_llm": speech_llm,
    "pocketsphinx": pocketsphinx,
    "pocketsphinx_keywords": pocketsphinx_keywords,
    "pocketsphinx_candidates": pocketsphinx_candidates,
    "pocketsphinx_rescored": pocketsphinx_rescored,
    "delayed_fusion": delayed_fusion,
    "imported": imported,
    "training_lists": training_lists,
    "mandarin": mandarin,
    "study_list_sizes": study_list_sizes,
    "study_shortlists": study_shortlists,
    "study_noise": study_noise,
    "study_delayed_grid": study_delayed_grid,
    "study_search_lms": study_search_lms,
    "study_spanish": study_spanish,
    "study_speech_lm": study_speech_lm,
    "study_plateau": study_plateau,
    "study_rare_words": study_rare_words,
    "study_adaptation": study_adaptation,
}


def find(name: str) -> Callable[[], Experiment]:
    """The recipe of a name, or the function behind `module:function`.

    Raises:
        ValueError: no such recipe, module or function; names the nearest ones.
    """
    if name in RECIPES:
        return RECIPES[name]
    module, colon, function = name.partition(":")
    if colon:
        try:
            found: Callable[[], Experiment] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"recipe '{name}': {error}; expected an importable module:function.") from error
        return found
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"recipe '{name}' is unknown.{hint} Recipes: {', '.join(RECIPES)}, or module:function.")
