"""What every column of every table means, in one line each: shown by the loaders, read by people in notebooks."""

from collections.abc import Mapping
from typing import Final

_ID: Final = {"utterance_id": "unique name of the utterance; joins all per-utterance tables"}
_ERROR: Final = {
    "error_type": "audio, text, model_limit or quarantined; missing where all went well",
    "error": "why there is no result for this row; missing where all went well",
}

COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "utterances": {
        **_ID,
        "corpus": "name of the corpus",
        "split": "train, dev or test",
        "speaker_id": "speaker; intervals are blocked by it",
        "session_id": "session; its utterances stay in one shard",
        "recording_id": "recording that the utterance is cut from",
        "window_index": "place of the window in its recording",
        "channel": "channel of the file; missing: its only one; -1: mixed down",
        "audio_uri": "path, URL or archive.tar#member",
        "start_s": "start in the recording, s",
        "duration_s": "length, s; missing: to the end",
        "reference": "what was said, raw text; missing: unknown",
        "language": "language code",
        "keywords": "phrases truly spoken, read by metrics only",
        "attributes": "further facts by name: SNR, voice, accent, domain",
    },
    "context": {
        **_ID,
        "catalogue": "digest of the catalogue file",
        "num_distractors": "phrases in the list that were not spoken",
        "phrase_ids": "indices into the catalogue",
        "phrases": "phrases that a stage may know beforehand",
        "weights": "one weight per phrase",
        "origins": "where each phrase comes from",
        "history": "1-best of the session's earlier utterances",
    },
    "hypotheses": {
        **_ID,
        "hypotheses": "candidates, best first: text, tokens, their log-probs, entropies and times, scores, origin",
        **_ERROR,
    },
    "scores": {
        **_ID,
        "sources": "per scorer: log_probs, eos_log_probs (nats), num_tokens, reasons, parallel to the hypotheses",
        **_ERROR,
    },
    "nbest_errors": {
        **_ID,
        "counts": "per metric: errors and sizes of every hypothesis of the list",
    },
    "transcripts": {
        **_ID,
        "text": "the system's transcript, raw",
        "hypothesis_index": "rank in the N-best list, from 0; missing: the list was empty",
        "fused_scores": "fused score of each hypothesis, higher is better",
        "words": "words with times (s), confidence and origin",
        "num_unscored": "1 where a scorer failed and the first-pass 1-best was kept",
        **_ERROR,
    },
    "errors": {
        **_ID,
        "counts": "per metric: hits, substitutions, deletions, insertions, reference_length; empty without reference",
    },
    "results": {
        "corpus": "name of the corpus",
        "split": "train, dev or test",
        "system": "what made the transcripts",
        "condition": "settings that tell rows of one system apart, by name",
        "metric": "wer, cer, biased_wer, real_time_factor, ...",
        "unit": "what the metric counts",
        "value": "the metric; rates are fractions, not percent",
        "ci_low": "lower end of the 95 % interval",
        "ci_high": "upper end of the 95 % interval",
        "counts": "hits, substitutions, deletions, insertions, reference_length, by name",
        "baseline": "the system that delta compares with",
        "delta": "value minus the baseline's; negative is better for error rates",
        "delta_ci_low": "lower end of the paired 95 % interval",
        "delta_ci_high": "upper end of the paired 95 % interval",
        "p_value": "of the paired test",
        "p_value_adjusted": "the same after Holm's correction for all systems and configurations that were tried",
        "p_value_matched_pairs": "second opinion, the matched-pairs test over utterances",
        "probability_of_improvement": "share of the bootstrap's resamples in which the system beats the baseline",
        "num_utterances": "utterances that count",
        "num_failed": "of these, failed ones, charged as all deleted",
        "num_unscored": "of these, ones where a scorer failed and the first-pass 1-best was kept",
        "num_blocks": "speakers, sessions or utterances that the bootstrap drew",
        "num_configurations": "configurations that were tried before this number",
        "signature": "how the number was computed; different signatures do not compare",
    },
    "fits": {
        "name": "name of the fit",
        "values": "fitted values by name",
        "interval": "[low, high] by name: values that do as well",
        "objective": "what was minimised",
        "objective_value": "its value at the fit",
        "split": "split that it was fitted on; never test",
        "parents": "names of the tables that it read",
        "num_configurations": "points that the search compared",
    },
    "units": {
        **_ID,
        "units": "speech units, runs merged",
        "run_lengths": "frames per unit",
        "frame_rate_hz": "frames per second before merging",
        **_ERROR,
    },
    "traces": {**_ID, "traces": "JSON, one per token", **_ERROR},
}
"""Table -> column -> meaning, in the order of the schema."""
