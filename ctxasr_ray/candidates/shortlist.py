"""HYPOTHESES, CONTEXT -> CONTEXT: of up to 50,000 phrases the few that an utterance may hold.

A union of ways to find them, each named in `origins`: `exact` (the N-best has the words), `phonetic` (a span sounds
like it), `plausible` (a CTC recogniser's frames may hold it, see `plausible`), `semantic` (the phrase is near the
1-best in some encoder's space). The catalogue's index is built once per
process and shared by all utterances. The result is a CONTEXT table of its own, so every consumer reuses it; an oracle
shortlist is a `ContextConfig` with `true_keywords`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.candidates.plausible import PlausibleConfig
from ctxasr_ray.keywords.catalogue import Catalogue, CatalogueOptions
from ctxasr_ray.keywords.context import COLUMNS, Phrase, RowPhrases, columns, row_phrases
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.models import checkpoint
from ctxasr_ray.nbest import flatten
from ctxasr_ray.schema import CONTEXT, conform
from ctxasr_ray.stage import Costs, Resources, runtime_field

if TYPE_CHECKING:
    from ctxasr_ray.keywords.phonetic import PhoneticIndex

WAYS: Final = ("exact", "phonetic", "plausible", "semantic")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortlistConfig(CatalogueOptions):
    """Keeps at most `max_phrases` of a row's list. Inputs: HYPOTHESES, CONTEXT, and of way `plausible` its CONTEXT."""

    NAME: ClassVar[str] = "shortlist"
    STAGE_VERSION: ClassVar[int] = 2
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses",), "context": COLUMNS}
    WRITES: ClassVar[str] = "context"

    ways: tuple[str, ...] = ("exact", "phonetic")
    """Of `WAYS`; the list is their union, filled way by way in turn."""
    max_phrases: int = 64
    """Longest shortlist."""
    num_hypotheses: int = 10
    """Hypotheses, best first, whose spans are looked up."""
    max_words: int = 4
    """Words of the longest span."""
    max_distance: float = 0.6
    """Graded distance per phone of the phrase beyond which nothing is kept, see `keywords.phonetic`."""
    voice: str = "en-us"
    """Of espeak-ng, which pronounces spans and phrases alike."""
    encoder: str | None = field(default=None, metadata={"identity": False})
    """Hugging Face directory or hub id of the text encoder for `semantic`; its fingerprint is in the hash."""
    plausible: PlausibleConfig | None = field(default=None, metadata={"identity": False})
    """The stage that finds what the frames make plausible, whose table is an input; its identity is its own."""
    device: str = runtime_field("auto")
    """Of the encoder, as torch writes it."""
    resources: Resources = field(default_factory=Resources)
    """Actors of the pool."""

    def __post_init__(self) -> None:
        """Refuses ways that do not exist or cannot work."""
        unknown = [way for way in self.ways if way not in WAYS]
        if unknown or not self.ways:
            raise ValueError(f"ways is {self.ways}; expected some of {', '.join(WAYS)}.")
        if ("semantic" in self.ways) != (self.encoder is not None):
            raise ValueError("way semantic and an encoder go together: give both, or neither.")
        if ("plausible" in self.ways) != (self.plausible is not None):
            raise ValueError("way plausible and its stage (plausible) go together: give both, or neither.")
        if min(self.max_phrases, self.num_hypotheses, self.max_words) < 1:
            raise ValueError("max_phrases, num_hypotheses and max_words must be at least 1.")

    def fingerprint(self) -> Mapping[str, str]:
        """The catalogue's digest, what pronounces, and the encoder's digests."""
        found = self.phrases_fingerprint()
        if "phonetic" in self.ways:
            from ctxasr_ray.keywords.phonetic import engine

            found["phonemes"] = engine()
        if self.encoder is not None:
            found |= {f"encoder_{key}": value for key, value in checkpoint.fingerprint(self.encoder, None).items()}
        return found

    def build(self) -> "Shortlist":
        """Reads the catalogue; indices are built when the first rows come."""
        encode = None
        if self.encoder is not None:
            from ctxasr_ray.models.text_encoder import TextEncoder

            encode = TextEncoder(checkpoint.resolve(self.encoder, None), device=self.device).encode
        return Shortlist(self, self.phrases(), encode)


class Shortlist:
    """Built by `ShortlistConfig`; one call per shard."""

    def __init__(
        self, config: ShortlistConfig, catalogue: Catalogue | None, encode: Callable[[Sequence[str]], Any] | None
    ) -> None:
        self._config, self._catalogue, self._encode = config, catalogue, encode
        self._index: tuple[int, PhoneticIndex] | None = None
        self._vectors: Any = None

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """HYPOTHESES and CONTEXT in, CONTEXT out, best first; nothing of the list is shared any more.

        Args:
            tables: HYPOTHESES, CONTEXT and, for way `plausible`, the CONTEXT that it made, of the same rows.
            costs: Counts `phonetic_queries`, `phrases_before` and `phrases_kept`; seconds of `index` and `shortlist`.

        Raises:
            ContractError: other rows, or rows made with another catalogue.
            RuntimeError: espeakng-loader is not installed.
        """
        hypotheses, context, *heard = tables
        for table in (context, *heard):
            same_rows("context", table, "hypotheses", hypotheses)
        rows = row_phrases(context, self._catalogue)
        flat = flatten(hypotheses)
        texts = [flat.texts[first : min(stop, first + self._config.num_hypotheses)] for first, stop in flat.bounds()]
        ways = {
            "exact": lambda: self._exact(rows, texts),
            "phonetic": lambda: self._phonetic(rows, texts, costs),
            "plausible": lambda: self._plausible(rows, heard[0]),
            "semantic": lambda: self._semantic(rows, texts),
        }
        with costs.timed("shortlist"):
            found = [ways[way]() for way in self._config.ways]
        made = []
        for row, utterance_id, *finds in zip(rows, context["utterance_id"].to_pylist(), *found, strict=True):
            kept = self._kept(row, finds)
            costs.count("phrases_before", len(row.own) + row.num_shared)
            costs.count("phrases_kept", len(kept))
            digest = None if self._catalogue is None else self._catalogue.digest
            made.append({"utterance_id": utterance_id, "catalogue": digest, "num_distractors": 0, **columns(kept)})
        return conform(pa.Table.from_pylist(made, schema=CONTEXT), "context")

    def _kept(self, row: RowPhrases, finds: Sequence[dict[int, float]]) -> list[Phrase]:
        """The best of every way in turn, until the list is full; keys are ids of the catalogue, own ones below 0."""
        orders = [sorted(found, key=lambda key, found=found: (found[key], key)) for found in finds]  # type: ignore[misc]
        chosen: dict[int, list[str]] = {}
        for place in range(max((len(order) for order in orders), default=0)):
            for way, order in zip(self._config.ways, orders, strict=True):
                if place < len(order) and (order[place] in chosen or len(chosen) < self._config.max_phrases):
                    chosen.setdefault(order[place], []).append(way)
        weights = np.zeros(0) if self._catalogue is None else self._catalogue.weights()
        kept = []
        for key, names in chosen.items():
            if key < 0:
                own = row.own[-key - 1]
                kept.append(Phrase(phrase_id=own.phrase_id, text=own.text, weight=own.weight, origin="+".join(names)))
            else:
                assert self._catalogue is not None, "shared phrases have a catalogue"
                shared, weight = self._catalogue.phrases[key], float(weights[key])
                kept.append(Phrase(phrase_id=key, text=shared, weight=weight, origin="+".join(names)))
        return kept

    def _exact(self, rows: Sequence[RowPhrases], texts: Sequence[Sequence[str]]) -> list[dict[int, float]]:
        """Phrases whose words stand in a hypothesis; those of better hypotheses first, the longer first."""
        found = []
        for row, hypotheses in zip(rows, texts, strict=True):
            own = {text.normalise(p.text, self._config.normaliser): -n - 1 for n, p in enumerate(row.own)}
            mine: dict[int, float] = {}
            for rank, hypothesis in enumerate(hypotheses):
                words = text.words(hypothesis, self._config.normaliser)
                for i, j in _spans(len(words), len(words)):
                    span = " ".join(words[i:j])
                    key = own.get(span)
                    if key is None and self._catalogue is not None:
                        place = self._catalogue.ids.get(span, -1)
                        key = place if 0 <= place < row.num_shared else None
                    if key is not None:
                        mine.setdefault(key, rank + 1 / (j - i))
            found.append(mine)
        return found

    def _phonetic(
        self, rows: Sequence[RowPhrases], texts: Sequence[Sequence[str]], costs: Costs
    ) -> list[dict[int, float]]:
        """Phrases by the evidence of the span that sounds most like them."""
        from ctxasr_ray.keywords.phonetic import distances, evidence, sound

        config = self._config
        index = self._phonetic_index(max((row.num_shared for row in rows), default=0), costs)
        found = []
        for row, hypotheses in zip(rows, texts, strict=True):
            spans: dict[str, None] = {}
            for hypothesis in hypotheses:
                heard = [sound(word, config.voice) for word in text.words(hypothesis, "basic")]
                spans |= dict.fromkeys("".join(heard[i:j]) for i, j in _spans(len(heard), config.max_words))
            sounds = [span for span in spans if span]
            costs.count("phonetic_queries", len(sounds))
            mine: dict[int, float] = {}
            if index is not None and row.num_shared and sounds:
                places, worth = index.nearest(sounds, max_distance=config.max_distance, num_shared=row.num_shared)
                most = config.max_phrases + len(row.own)  # its own phrases may stand among the shared ones
                mine = dict(zip(places[:most].tolist(), (-worth[:most]).tolist(), strict=True))
                for phrase in row.own:
                    mine.pop(phrase.phrase_id, None)
            if row.own and sounds:
                targets = [sound(text.normalise(phrase.text, "basic"), config.voice) for phrase in row.own]
                nearest = distances(sounds, targets, config.max_distance).min(axis=0)
                for n, distance in enumerate(nearest.tolist()):
                    if distance <= config.max_distance:
                        mine[-n - 1] = -float(evidence(len(targets[n]), distance, config.max_distance))
            found.append(mine)
        return found

    def _phonetic_index(self, num_shared: int, costs: Costs) -> "PhoneticIndex | None":
        """The sounds of the catalogue's first phrases, at least so many; None where nothing is shared."""
        if self._catalogue is None or num_shared == 0:
            return None
        from ctxasr_ray.keywords.phonetic import phonetic_index

        if self._index is None or self._index[0] < num_shared:
            with costs.timed("index"):
                phrases = [text.normalise(phrase, "basic") for phrase in self._catalogue.phrases[:num_shared]]
                self._index = num_shared, phonetic_index(phrases, self._config.voice)
        return self._index[1]

    def _plausible(self, rows: Sequence[RowPhrases], context: pa.Table) -> list[dict[int, float]]:
        """Phrases in the order of the table that `PlausibleConfig` made."""
        found = []
        for row, heard in zip(rows, row_phrases(context, self._catalogue), strict=True):
            own = {phrase.text: -n - 1 for n, phrase in enumerate(row.own)}
            found.append({own.get(one.text, one.phrase_id): float(rank) for rank, one in enumerate(heard.own)})
        return found

    def _semantic(self, rows: Sequence[RowPhrases], texts: Sequence[Sequence[str]]) -> list[dict[int, float]]:
        """The shared phrases nearest to the 1-best by cosine, exactly: one matrix product for the shard."""
        assert self._encode is not None, "refused without an encoder"
        num_shared = max((row.num_shared for row in rows), default=0)
        if self._catalogue is None or num_shared == 0:
            return [{} for _ in rows]
        if self._vectors is None or len(self._vectors) < num_shared:
            self._vectors = self._encode(self._catalogue.phrases[:num_shared])
        cosines = self._encode([hypotheses[0] if hypotheses else "" for hypotheses in texts]) @ self._vectors.T
        found = []
        for row, hypotheses, mine in zip(rows, texts, cosines, strict=True):
            most = min(self._config.max_phrases, row.num_shared) if hypotheses else 0
            best = np.argsort(-mine[: row.num_shared], kind="stable")[:most].tolist()
            own_ids = {phrase.phrase_id for phrase in row.own}
            found.append({place: -float(mine[place]) for place in best if place not in own_ids})
        return found


def _spans(num_words: int, max_words: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(num_words) for j in range(i + 1, min(i + max_words, num_words) + 1)]
