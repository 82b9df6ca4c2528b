"""Evaluations by name: functions that return an `Experiment`, whose every field the command line can override."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Final

from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Experiment, asset
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.first_pass.pocketsphinx import PocketSphinxConfig
from ctxasr_ray.scorers.causal_lm import CausalLmConfig


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


def pocketsphinx() -> Experiment:
    """Real English speech without any hub: PocketSphinx and the model in its wheel, first pass and oracle."""
    return Experiment(first_pass=PocketSphinxConfig())


def imported() -> Experiment:
    """Somebody else's N-best lists, oracle and all: --first-pass.paths FILE --first-pass.format NAME."""
    return Experiment(first_pass=ImportedConfig(paths=("nbest.jsonl",), format="nbest"))


RECIPES: Final[Mapping[str, Callable[[], Experiment]]] = {
    "quickstart": quickstart,
    "ctc": ctc,
    "whisper": whisper,
    "pocketsphinx": pocketsphinx,
    "imported": imported,
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
