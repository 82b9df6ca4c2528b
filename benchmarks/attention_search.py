"""Attention beam search against transformers' own: `GenerationMixin.generate(num_beams=5, num_return_sequences=5)`.

From waveforms to N-best lists, one thread, one utterance at a time, on a random model of the Whisper-base
architecture and on the shipped attention model (left out, saying so, where it is not there). Whisper's encoder always
hears 30 s, on both sides once per utterance, so the goal is held on a full window of speech; a shorter utterance and
the search alone, from the encoder's states on, are stated beside it. Our loaded model multiplies in oneDNN where that
is faster (`models/cpu_linear.py`), the peer as transformers loads it. Both sides suppress the same tokens and rank by
the sum; lists and scores must be equal before any time counts. Run it without arguments:
`python benchmarks/attention_search.py`. (`WhisperForConditionalGeneration.generate` itself returns copies of its
1-best and is no peer.)
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from figures import Figure, Speedup, emit, interleaved, pin_threads

pin_threads(1)

import numpy as np  # noqa: E402  (the threads are pinned first)
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import GenerationMixin  # noqa: E402
from transformers.modeling_outputs import BaseModelOutput  # noqa: E402

from ctxasr_ray.corpora.synthetic import SyntheticConfig  # noqa: E402
from ctxasr_ray.models.checkpoint import resolve  # noqa: E402
from ctxasr_ray.models.seq2seq import Seq2SeqModel  # noqa: E402
from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch  # noqa: E402

SHIPPED = Path(__file__).parents[1] / "ctxasr_ray" / "assets" / "attention"
PEER = f"transformers {transformers.__version__} GenerationMixin.generate"
BEAMS = 5
BASE_TOKENS = {"whisper_base": (30, 100), "whisper_base_12s": (12, 40)}
"""Seconds of audio and tokens written by the random model, which never ends; read English has 3.4 tokens a second."""
NUM_SHIPPED = 8
Waveform = npt.NDArray[np.float32]
Lists = list[list[tuple[list[int], float]]]


def whisper_base(directory: Path) -> None:
    """Writes a random model of the Whisper-base architecture with widened weights and a tokenizer of its size."""
    torch.manual_seed(0)
    ids: dict[str, Any] = {
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1
    }  # fmt: skip
    config = transformers.WhisperConfig(
        vocab_size=51865,
        num_mel_bins=80,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        **ids,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2 and "conv" not in name:
                weight.normal_(0, 1.4 / weight[0].numel() ** 0.5)
    model.generation_config = transformers.GenerationConfig(**ids)
    model.save_pretrained(directory)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(directory)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(config.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2"
    ).save_pretrained(directory)


class Sides:
    """Ours and the peer on one model.

    Args:
        directory: Of the model.
        waveforms: What both hear.
        max_tokens: Longest text.
    """

    def __init__(self, directory: Path, waveforms: list[Waveform], max_tokens: int) -> None:
        self.waveforms, self.max_tokens = waveforms, max_tokens
        self.model = Seq2SeqModel(resolve(str(directory)))
        self.search = LabelSynchronousSearch(self.model, beam_size=BEAMS, max_tokens=max_tokens)
        self.prompt = self.model.tokens.prompt(None)
        self.peer = transformers.WhisperForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
        self.extractor = transformers.WhisperFeatureExtractor.from_pretrained(directory)
        self.states = self.model.encode(waveforms)

    def ours(self) -> Lists:
        """Our lists, from the waveforms."""
        return [self._searched(self.model.encode([waveform])[0]) for waveform in self.waveforms]

    def theirs(self) -> Lists:
        """The peer's lists, from the waveforms."""
        rate = self.model.sample_rate_hz
        return [
            self._generated(self.extractor(waveform, sampling_rate=rate, return_tensors="pt")["input_features"])
            for waveform in self.waveforms
        ]

    def our_decoder(self) -> Lists:
        """Our lists, from the encoder's states."""
        return [self._searched(states) for states in self.states]

    def their_decoder(self) -> Lists:
        """The peer's lists, from the encoder's states."""
        return [
            self._generated(None, encoder_outputs=BaseModelOutput(last_hidden_state=states)) for states in self.states
        ]

    def _searched(self, states: torch.Tensor) -> list[tuple[list[int], float]]:
        return [(h.token_ids.tolist(), h.score) for h in self.search.search(states, self.prompt)[0]]

    def _generated(self, features: torch.Tensor | None, **inputs: Any) -> list[tuple[list[int], float]]:
        end, pad = self.model.tokens.eos_id, self.peer.config.pad_token_id
        with torch.inference_mode():
            out = GenerationMixin.generate(
                self.peer,
                features,
                decoder_input_ids=torch.from_numpy(self.prompt.astype(np.int64))[None],
                num_beams=BEAMS,
                num_return_sequences=BEAMS,
                max_new_tokens=self.max_tokens,
                max_length=None,
                length_penalty=0.0,
                early_stopping="never",
                do_sample=False,
                suppress_tokens=np.flatnonzero(self.model.tokens.suppressed).tolist(),
                return_dict_in_generate=True,
                output_scores=True,
                **inputs,
            )
        found = []
        for row, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
            tokens = row[len(self.prompt) :]
            tokens = tokens[: tokens.index(end)] if end in tokens else tokens
            found.append(([token for token in tokens if token != pad], score))
        return found


def figures(name: str, goal: str | None, sides: Sides, rounds: int) -> Iterator[Figure]:
    """Checks that both sides agree, then times them, with and without the encoder."""
    expected, found = sides.theirs(), sides.ours()
    largest = 0.0
    for one, other in zip(expected, found, strict=True):
        if [tokens for tokens, _ in one] != [tokens for tokens, _ in other]:
            raise SystemExit(f"{name}: lists differ, no time counts:\n{one}\n{other}")
        largest = max([largest, *(abs(a - b) for (_, a), (_, b) in zip(one, other, strict=True))])
    if largest > 1e-3:
        raise SystemExit(f"{name}: scores differ by {largest} nats, no time counts.")
    work = {
        "utterances": len(sides.waveforms),
        "hypotheses": sum(len(own) for own in found),
        "longest_hypothesis_tokens": max(len(tokens) for own in found for tokens, _ in own),
        "largest_score_difference_nats": round(largest, 7),
    }

    def figure(suffix: str, wanted: str | None, first: Callable[[], object], second: Callable[[], object]) -> Figure:
        speed: Speedup = interleaved(first, second, rounds=rounds, warm_up=0)
        return Figure(
            name=f"attention_search_{suffix}_{name}",
            value=speed.median,
            goal=wanted,
            unit="x",
            peer=PEER,
            counters={**work, **speed.counters()},
        )

    yield figure("speed", goal, sides.theirs, sides.ours)
    yield figure("decoder_speed", None, sides.their_decoder, sides.our_decoder)


def main() -> None:
    """Runs both models and prints the figures."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rng = np.random.default_rng(0)
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        whisper_base(Path(folder))
        for name, (seconds, tokens) in BASE_TOKENS.items():
            waveform = (0.1 * rng.standard_normal(seconds * 16000)).astype(np.float32)
            goal = ">= 2.0" if name == "whisper_base" else None
            found += figures(name, goal, Sides(Path(folder), [waveform], tokens), rounds=2)
    if (SHIPPED / "config.json").is_file():
        corpus = SyntheticConfig()
        spoken = [corpus.spoken("test", index).samples for index in range(NUM_SHIPPED)]
        sides = Sides(SHIPPED, spoken, 60)
        found += figures("shipped", ">= 2.0", sides, rounds=5)
    else:
        print(f"{SHIPPED} is not there yet; its figure is left out.")
    emit(found)


if __name__ == "__main__":
    main()
