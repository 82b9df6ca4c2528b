"""Language models as searches hear them: a loaded model, its tokenizer and a trigger -> the fusion of a search."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from ctxasr_ray.models.checkpoint import load_tokenizer, resolve
from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.nbest import Score
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs, TreeScorerHost
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    from ctxasr_ray.first_pass.attention import Beside, Found
    from ctxasr_ray.models.ctc_vocabulary import Vocabulary
    from ctxasr_ray.search.ctc_state import Floats
    from ctxasr_ray.search.label_fusion import RowFusion
    from ctxasr_ray.search.lm_fusion import LmFusion, Trigger
    from ctxasr_ray.search.lm_texts import FusedLm, Spelling
    from ctxasr_ray.search.lm_units import Units
    from ctxasr_ray.search.shallow_fusion import LabelShallowFusion


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstPassLm:
    """A small language model beside the main one, by shallow fusion at word boundaries (the paper's NLM)."""

    lm: CausalLmConfig
    """Loaded beside the recogniser; its source needs a name of its own."""
    lm_weight: float = 0.3
    """Of its log-prob, end of sequence included (the paper's mu)."""
    length_bonus: float = 0.0
    """Nats per word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchLm:
    """A loaded language model and how a search hears it."""

    config: CausalLmConfig
    host: TreeScorerHost
    tokens: TextTokens
    """Its tokenizer and what stands before every text."""
    units: "Units"
    spelling: "Spelling"
    trigger: "Trigger | None"
    """None scores every candidate by label, before pruning."""
    lm_weight: float
    length_bonus: float
    label_prior: "Floats | None" = None
    prior_weight: float = 0.0

    def fusion(self, costs: Costs) -> "LmFusion | LabelShallowFusion":
        """The fusion of some searches, whose work is counted in `costs`."""
        from ctxasr_ray.search.lm_fusion import LmFusion
        from ctxasr_ray.search.lm_units import LabelUnits
        from ctxasr_ray.search.shallow_fusion import LabelShallowFusion

        lm = asked_lm(self.host, self.spelling, self.tokens.prefix, self.config.source, costs)
        if self.trigger is None:
            assert isinstance(self.units, LabelUnits)
            return LabelShallowFusion(lm=lm, units=self.units, lm_weight=self.lm_weight, length_bonus=self.length_bonus)
        return LmFusion(
            lm=lm,
            units=self.units,
            trigger=self.trigger,
            lm_weight=self.lm_weight,
            length_bonus=self.length_bonus,
            label_prior=self.label_prior,
            prior_weight=self.prior_weight,
        )


def asked_lm(host: TreeScorerHost, spelling: "Spelling", prefix: Int32, source: str, costs: Costs) -> "FusedLm":
    """A loaded language model as some searches ask it, its work counted in `costs`."""
    from ctxasr_ray.search.lm_texts import FusedLm

    return FusedLm(
        scorer=host.sessions(costs),
        spelling=spelling,
        prefix=prefix,
        eos_token_id=host.eos_token_id,
        max_positions=host.max_positions,
        position_bytes=host.position_bytes,
        source=source,
        costs=costs,
    )


def words_of(vocabulary: "Vocabulary", segmentation: str, lm: CausalLmConfig) -> "tuple[TextTokens, Units, Spelling]":
    """An LM's tokenizer, the recogniser's words, and how the one writes the other."""
    from ctxasr_ray.models.word_boundaries import WordBoundaries
    from ctxasr_ray.models.word_tokens import WordTokens
    from ctxasr_ray.search.lm_units import WordUnits

    tokens = text_tokens(lm)
    units = WordUnits(WordBoundaries.of_ctc(vocabulary, segmentation))
    return tokens, units, WordTokens(tokens, segmentation=segmentation)


def labels_of(vocabulary: "Vocabulary", lm: CausalLmConfig) -> "tuple[TextTokens, Units, Spelling]":
    """An LM's tokenizer and the recogniser's labels, each of which is one of its tokens.

    Raises:
        ValueError: a label that the LM's vocabulary lacks, or a text form that would write the labels anew.
    """
    from ctxasr_ray.search.lm_units import LabelUnits, label_tokens

    if lm.text_form != "raw":
        raise ValueError(f"lm.text_form is '{lm.text_form}'; an LM that shares the labels reads them as raw.")
    tokens = text_tokens(lm)
    unwritten = (vocabulary.blank_id, *vocabulary.suppressed)
    units = LabelUnits(label_tokens(vocabulary.pieces, unwritten, tokens.tokenizer))
    return tokens, units, units


class Triggered(Protocol):
    """What a config of a search with a language model in it says of when the model is asked."""

    @property
    def fusion(self) -> str:
        """Delayed or shallow."""
        ...

    @property
    def trigger(self) -> str:
        """Of delayed fusion: fixed_interval or shortest_hypothesis."""
        ...

    @property
    def interval(self) -> int:
        """Frames or tokens between two triggers of kind fixed_interval."""
        ...

    @property
    def scored(self) -> Literal["common_words", "own_last_word"]:
        """What delayed fusion scores at a trigger."""
        ...


def refuse_unknown_trigger(config: Triggered) -> None:
    """Refuses values that `word_trigger` does not know.

    Raises:
        ValueError: another fusion, trigger or scope.
    """
    if config.fusion not in ("delayed", "shallow"):
        raise ValueError(f"fusion is '{config.fusion}'; expected delayed or shallow.")
    if config.trigger not in ("fixed_interval", "shortest_hypothesis"):
        raise ValueError(f"trigger is '{config.trigger}'; expected fixed_interval or shortest_hypothesis.")
    if config.scored not in ("common_words", "own_last_word"):
        raise ValueError(f"scored is '{config.scored}'; expected common_words or own_last_word.")


class AsksLm(Protocol):
    """What a config of a search with a language model in it says of the model."""

    @property
    def lm(self) -> CausalLmConfig:
        """The model."""
        ...

    @property
    def lm_pool(self) -> object | None:
        """Resources of actors of its own; None: it is loaded beside the recogniser."""
        ...


def refuse_boost(boost: float, unit: str, *, source: str, recogniser: str, search: AsksLm | None) -> None:
    """Refuses what no search with a keyword boost can do, before anything is loaded.

    Args:
        boost: Nats per unit of a phrase.
        unit: What a phrase is spelt in, for the message.
        source: Name of the bonus.
        recogniser: Name of the recogniser's scores.
        search: The search around it, where a language model is in it.

    Raises:
        ValueError: a boost that is no number, one name for two scores, or a pool that nobody would ask.
    """
    if not math.isfinite(boost):
        raise ValueError(f"boost is {boost}; expected nats per {unit}, for example 1.0.")
    names = {"first_pass.source": recogniser}
    if search is not None:
        names["first_pass.lm.source"] = search.lm.source
        if search.lm_pool is not None:
            raise ValueError("first_pass.lm_pool: with a keyword boost the LM has no pool of its own; set it to None.")
    for name, other in names.items():
        if source == other:
            raise ValueError(f"source and {name} are both '{source}'; give them two names.")


def word_trigger(config: Triggered) -> "Trigger":
    """The trigger of a search that asks its language model by words."""
    from ctxasr_ray.search.delayed_fusion import FixedInterval, ShortestHypothesis
    from ctxasr_ray.search.shallow_fusion import EveryWord

    if config.fusion == "shallow":
        return EveryWord()
    if config.trigger == "shortest_hypothesis":
        return ShortestHypothesis(scope=config.scored)
    return FixedInterval(frames=config.interval, scope=config.scored)


def text_tokens(lm: CausalLmConfig) -> TextTokens:
    """The LM's tokenizer, which is needed here wherever the model is."""
    tokenizer = load_tokenizer(resolve(lm.model, lm.revision))
    return TextTokens(tokenizer, text_form=lm.text_form, prompt=lm.prompt, start_from_eos=lm.start_from_eos)


def prefixed(fingerprints: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Fingerprints of several models as one, each under its prefix."""
    return {f"{prefix}{key}": digest for prefix, part in fingerprints.items() for key, digest in part.items()}


def together(fusion: "RowFusion", beside: "Beside | None", num_utterances: int) -> "RowFusion":
    """A language model in an attention search, with what goes on beside it."""
    from ctxasr_ray.search.boost_rows import Together

    return fusion if beside is None else Together(fusion, beside(range(num_utterances)))


def fused_lists(
    found: "Sequence[Found]",
    scored: Sequence[Sequence[tuple[Score, ...]]],
    *,
    record: str,
    source: str,
    unserved: Mapping[int, str],
    alone: "Callable[[int], Found]",
    costs: Costs,
) -> "list[Found]":
    """What a search with a language model in it found, or the same search without it where it could not serve.

    Args:
        found: Per utterance, from the search with the model.
        scored: Per utterance and hypothesis the model's own scores.
        record: Name of the sum that the search maximised.
        source: Name of the model's scores.
        unserved: Utterance -> why the model could not serve it.
        alone: Searches one utterance without the model.
        costs: Counts `utterances_unfused`.
    """
    lists = []
    for place, (one, scores) in enumerate(zip(found, scored, strict=True)):
        if place in unserved:
            costs.count("utterances_unfused")
            lists.append(replace(alone(place), reason=f"searched without {source}: {unserved[place]}"))
            continue
        sums = [Score(source=record, kind="search", log_prob=h.score) for h in one.hypotheses]
        lists.append(replace(one, scores=[(*own, total) for own, total in zip(scores, sums, strict=True)]))
    return lists
