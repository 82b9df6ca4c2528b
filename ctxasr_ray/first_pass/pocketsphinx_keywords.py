"""UTTERANCES -> HYPOTHESES with PocketSphinx that searches a catalogue of phrases beside its frequent words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ctxasr_ray.first_pass.pocketsphinx import PocketSphinxConfig, PocketSphinxFirstPass
from ctxasr_ray.keywords.catalogue import Catalogue, CatalogueOptions
from ctxasr_ray.models.pocketsphinx import find_model, fingerprint
from ctxasr_ray.models.pocketsphinx_keywords import KeywordSearch, read_dictionary, searchable
from ctxasr_ray.stage import Resources


@dataclass(frozen=True, kw_only=True, slots=True)
class PocketSphinxKeywordsConfig(CatalogueOptions):
    """First pass with PocketSphinx for finding keywords: phrases of a catalogue over a background of common words.

    Other words than the phrases are rough, because the search has no longer history than a word: take the first pass
    `pocketsphinx` for transcripts, this one for keywords. The phrases need no training and no pronunciations: words
    are looked up in the recogniser's dictionary, and espeak-ng pronounces what it lacks.
    """

    NAME: ClassVar[str] = "pocketsphinx_keywords"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = PocketSphinxConfig.READS
    WRITES: ClassVar[str] = "hypotheses"

    keyword_share: float = 0.5
    """Probability that the next thing said is a keyword, above 0 and below 1; less finds fewer and invents fewer."""
    background_words: int = 500
    """How many of the recogniser's most frequent words stand for everything else that is said."""
    words: tuple[str, ...] = ()
    """Pronunciations of words in the phrases, before the dictionary's: `zimbrato=Z IH M B R AA T OW`."""
    model: str | None = field(default=None, metadata={"identity": False})
    """Folder with *.lm.bin, *.dict and an acoustic model; None is the wheel's. Its fingerprint is in the hash."""
    num_hypotheses: int = 50
    """Longest N-best list; texts in it are distinct."""
    source: str = "pocketsphinx"
    """Scores are called <source>_acoustic, <source>_lm, <source>_search_lm, and <...>/eos of the latter two."""
    max_audio_s: float = 120.0
    """Longer audio is a `model_limit` row; cut the recording into windows."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        if not 0 < self.keyword_share < 1:  # nan too
            raise ValueError(f"keyword_share is {self.keyword_share}; expected a probability above 0 and below 1.")
        if self.background_words < 1:
            raise ValueError(f"background_words is {self.background_words}; expected at least 1.")
        if self.num_hypotheses < 1:
            raise ValueError(f"num_hypotheses is {self.num_hypotheses}; expected at least 1.")

    def phrases(self) -> Catalogue:
        """Reads the catalogue, once per process.

        Raises:
            ValueError: none is named, or the file is missing, refused (naming line and remedy) or without a phrase.
        """
        found = CatalogueOptions.phrases(self)
        if found is None:
            raise ValueError(f"{self.NAME}: no catalogue; name a phrase list, for example --catalogue keywords.txt")
        if not len(found):
            lost = [finding for finding in found.findings if finding.kind != "no_phrases"]
            raise ValueError(
                f"phrase list '{self.catalogue}': 0 phrases are left of {sum(finding.count for finding in lost)} lines"
                f"{''.join(f', {finding}' for finding in lost)}. Write phrases that can be said, one per line."
            )
        return found

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the model's files, of the catalogue and of how its phrases are pronounced.

        Raises:
            ValueError, RuntimeError: as `phrases`, `models.pocketsphinx.find_model` and
                `models.pocketsphinx_keywords.searchable`.
        """
        phrases = self.phrases()
        made = searchable(phrases, read_dictionary(find_model(self.model).dictionary), self.words)
        own = fingerprint(self.model, self.words)
        return {**own, "catalogue": phrases.digest, "pronunciations": made.digest()}

    def build(self) -> PocketSphinxFirstPass:
        """Loads the model and makes the search of the phrases."""
        search = KeywordSearch(
            find_model(self.model),
            self.phrases(),
            keyword_share=self.keyword_share,
            background_words=self.background_words,
            words=self.words,
        )
        return PocketSphinxFirstPass(self, search)
