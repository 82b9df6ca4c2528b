"""An LLM recogniser: speech through an encoder and an adapter into a causal LM, which learns to write what was said.

Letters of shapes: B utterances, T encoder frames, S stacked frames, N tokens, D width, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models import checkpoint, speech_llm
from ctxasr_ray.models.speech_adapter import AdapterConfig
from ctxasr_ray.models.speech_prompt import Prompt
from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.stage import runtime_field
from ctxasr_ray.training.dev_errors import error_rates
from ctxasr_ray.training.examples import TrainingExample, pad_targets
from ctxasr_ray.training.left_out import refuse_nothing
from ctxasr_ray.training.listener import Listener
from ctxasr_ray.training.sources import SyntheticSpeech, TableSpeech
from ctxasr_ray.training.trainable import Lora, save_lora, train_parts

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.training.encoded import Encoded
    from ctxasr_ray.training.features import Features


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechLlmTask:
    """Cross entropy of the text behind the speech, and where asked CTC over what the adapter writes.

    Reference:
        Wang et al., 2502.16142 (the stages, one after the other); the CTC share, which teaches an adapter to speak the
        LLM's own embeddings before the LLM listens to it, is ours.
    """

    train: SyntheticSpeech | TableSpeech
    dev: SyntheticSpeech | TableSpeech
    encoder: str
    """Hugging Face directory or hub id of a model with a speech encoder that reads log-mel features."""
    llm: str
    """The same of a causal LM."""
    initial: str | None = None
    """Model of an earlier training whose adapter and LoRA this one starts from; None starts at random."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    lora: Lora | None = None
    """Low-rank updates of the LLM; None leaves it as it is, or as the earlier training made it."""
    trained: tuple[str, ...] = ("adapter",)
    """Parts that learn: adapter, llm (its LoRA where it has one)."""
    ctc_weight: float = 0.0
    """Share of the CTC loss of the adapter's output behind the LLM's own head, its padding token being the blank; 1
    leaves the LLM out altogether."""
    prompt: str = "{speech}"
    """As of `models.speech_prompt`."""
    warp: float = 0.0
    """Largest stretch of the mel axis of the training speech before it is encoded; see `heard.warp_mel`."""
    features_directory: str | None = runtime_field(None)
    """Where features and encoder states lie; None keeps them in the run's directory."""

    def build(self, directory: Path, num_processes: int) -> "SpeechLlmTraining":
        """Hears train and dev and joins the parts."""
        return SpeechLlmTraining(self, directory, num_processes)


class SpeechLlmTraining:
    """The built task."""

    left_out: Mapping[str, str]

    def __init__(self, config: SpeechLlmTask, directory: Path, num_processes: int) -> None:
        """Prepares states, targets and model.

        Args:
            config: The task.
            directory: Of the run.
            num_processes: For the features.

        Raises:
            ValueError: an encoder of raw audio, or an earlier model that does not fit.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from ctxasr_ray.models.frame_encoder import FrameEncoder
        from ctxasr_ray.training import encoded, features

        self._config = config
        encoder = FrameEncoder(checkpoint.resolve(config.encoder))
        if encoder.extractor.model_input_names[0] != "input_features":
            raise ValueError(
                f"encoder '{config.encoder}' reads {encoder.extractor.model_input_names[0]}; training takes encoders "
                "of log-mel features, such as Whisper's or Parakeet's."
            )
        source = checkpoint.resolve(config.llm)
        tokenizer = checkpoint.load_tokenizer(source)
        self._blank = tokenizer.pad_token_id
        if config.ctc_weight and self._blank is None:
            raise ValueError(
                f"ctc_weight is {config.ctc_weight}, but LLM '{config.llm}' has no padding token; set it to 0."
            )
        prompt = Prompt(tokenizer, config.prompt)
        self._tokens = TextTokens(tokenizer, prompt=prompt.after)
        llm = checkpoint.load_model(AutoModelForCausalLM, source, dtype=torch.float32)
        parts = self._parts(llm, encoder.width)
        train_parts(parts, config.trained)
        self.model: Any = torch.nn.ModuleDict(parts)
        parent = directory if config.features_directory is None else Path(config.features_directory)
        heard = {}
        for name, speech, warp in (("train", config.train, config.warp), ("dev", config.dev, 0.0)):
            spoken = features.compute(speech, encoder.extractor, parent / name, num_processes=num_processes)
            heard[name] = spoken, encoded.encode(spoken, encoder, parent / f"{name}_states.npy", warp=warp)
        self._train: tuple[Features, Encoded] = heard["train"]
        self._dev: tuple[Features, Encoded] = heard["dev"]
        self._examples, self.left_out = self._usable(self._train[0])
        usable, unlike = self._usable(self._dev[0])
        refuse_nothing(usable, f"utterance of {config.dev}", unlike, "give texts that the LLM can write")
        before, after = prompt.around()
        self._listener = Listener(parts, tokenizer, prompt, config.adapter.stack)
        stacked = [-(-self._num_states(self._train, e.index) // config.adapter.stack) for e in self._examples]
        targets = [len(e.target) for e in self._examples]
        self.lengths = np.asarray(stacked) + np.asarray(targets) + len(before) + len(after)

    def _parts(self, llm: Any, encoder_width: int) -> dict[str, Any]:
        """Adapter and LLM, as an earlier training left them or new."""
        import torch

        config, width = self._config, llm.config.get_text_config().hidden_size
        adapter, lora = config.adapter.build(encoder_width, width), None
        spread = float(llm.get_input_embeddings().weight.detach().std())
        with torch.no_grad():  # what it writes should be as large as the embeddings of words
            adapter[-1].weight.normal_(0, spread / adapter[-1].in_features ** 0.5)
            adapter[-1].bias.zero_()
        if config.initial is not None:
            earlier = checkpoint.resolve(config.initial)
            parts = speech_llm.read_parts(earlier)
            if (parts.adapter, parts.prompt) != (config.adapter, config.prompt):
                raise ValueError(
                    f"'{config.initial}' has adapter {parts.adapter} and prompt {parts.prompt!r}; this training has "
                    f"{config.adapter} and {config.prompt!r}. Give it the same, or start anew."
                )
            speech_llm.refuse_another(config.initial, parts, config.encoder, config.llm)
            adapter = speech_llm.load_adapter(earlier, parts, encoder_width, width)
            lora = earlier.directory / speech_llm.LORA
        if lora is not None and lora.is_dir():
            from peft import PeftModel

            llm = PeftModel.from_pretrained(llm, str(lora), is_trainable=True)
        elif config.lora is not None:
            llm = config.lora.around(llm)
        return {"adapter": adapter, "llm": llm}

    def _usable(self, spoken: "Features") -> tuple[list[TrainingExample], dict[str, str]]:
        kept, left_out = [], dict(spoken.left_out)
        ends = np.array([self._end], np.int32)
        for index, ids in enumerate(self._tokens.encode(spoken.texts)):
            if len(ids) and not self._tokens.num_unknown(ids):
                kept.append(TrainingExample(index, np.concatenate([ids, ends]).tolist()))
            else:
                left_out[spoken.names[index]] = f"its text {spoken.texts[index]!r} cannot be written by the LLM"
        return kept, left_out

    @staticmethod
    def _num_states(heard: "tuple[Features, Encoded]", index: int) -> int:
        ends = heard[1].ends
        return int(ends[index] - (ends[index - 1] if index else 0))

    def names(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Gives utterance ids."""
        return [self._train[0].names[self._examples[i].index] for i in indices]

    def batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> "dict[str, torch.Tensor]":
        """Pads states and targets."""
        examples = [self._examples[i] for i in indices]
        return _collate([self._train[1][e.index] for e in examples], [e.target for e in examples])

    def counts(self, batch: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Gives the tokens of the texts, with their ends for the LLM and without for CTC."""
        from ctxasr_ray.training.objectives import num_targets

        tokens = num_targets(batch["targets"])
        return {"written": tokens, "spelled": tokens - int(batch["targets"].eq(self._end).sum())}

    def loss(self, batch: "Mapping[str, torch.Tensor]", counts: Mapping[str, float]) -> "torch.Tensor":
        """Gives nats per token: cross entropy of text and end, mixed with CTC."""
        from ctxasr_ray.training import objectives

        weight = self._config.ctc_weight
        speech_BSD, lengths_B = self._listener.hear(batch)
        targets_BN, attended = batch["targets"], None
        if weight < 1:
            attended = self._listener.nats(speech_BSD, lengths_B, targets_BN, count=counts["written"])
        if weight == 0 and attended is not None:
            return attended
        spelled_BN = targets_BN.masked_fill(targets_BN.eq(self._end), objectives.IGNORED)
        logits_BSV = self._listener.logits(speech_BSD)
        spelled = objectives.ctc(logits_BSV, lengths_B, spelled_BN, blank=self._blank, count=counts["spelled"])
        return spelled if attended is None else objectives.joint(spelled, attended, ctc_weight=weight)

    @property
    def _end(self) -> int:
        assert self._tokens.eos_token_id is not None, "an LLM that ends texts"
        return self._tokens.eos_token_id

    def evaluate(self) -> dict[str, float]:
        """Measures dev: greedy error rates, perplexity per word behind the own speech and behind another's.

        With `ctc_weight` 1 the LLM has not listened yet: then the error rates are those of the adapter's CTC spelling.
        """
        (spoken, encoded), listener = self._dev, self._listener
        examples, _ = self._usable(spoken)
        nats, written = {"heard": 0.0, "misheard": 0.0}, []
        for start in range(0, len(examples), 25):
            group = examples[start : start + 25]
            others = [examples[(start + i + len(examples) // 2) % len(examples)] for i in range(len(group))]
            for name, own in (("heard", group), ("misheard", others)):
                batch = _collate([encoded[e.index] for e in own], [e.target for e in group])
                speech_BSD, lengths_B = listener.hear({k: v.to(listener.device) for k, v in batch.items()})
                targets_BN = batch["targets"].to(listener.device)
                if self._config.ctc_weight < 1:
                    nats[name] += float(listener.nats(speech_BSD, lengths_B, targets_BN, count=1))
                if name == "heard":
                    rows = [s[:n] for s, n in zip(speech_BSD, lengths_B.tolist(), strict=True)]
                    spells = self._config.ctc_weight == 1
                    written += listener.spell(rows, self._blank) if spells else listener.write(rows)
        texts = [spoken.texts[e.index] for e in examples]
        words = sum(len(text.split()) + 1 for text in texts)
        wer, cer = error_rates(texts, written)
        figures = {"dev_wer": wer, "dev_cer": cer}
        if self._config.ctc_weight < 1:
            figures |= {f"dev_word_perplexity_{name}": math.exp(total / words) for name, total in nats.items()}
        return figures

    def publish(self, directory: Path) -> None:
        """Writes the adapter, the LoRA and where encoder and LLM lie."""
        from safetensors.torch import save_file

        config = self._config
        parts = speech_llm.Parts(
            encoder=speech_llm.written_place(config.encoder),
            llm=speech_llm.written_place(config.llm),
            encoder_digest=checkpoint.fingerprint(config.encoder)["model"],
            llm_digest=checkpoint.fingerprint(config.llm)["model"],
            prompt=config.prompt,
            adapter=config.adapter,
        )
        parts.save(directory)
        weights = {name: w.detach().half().contiguous() for name, w in self.model["adapter"].state_dict().items()}
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
        if hasattr(self.model["llm"], "peft_config"):
            save_lora(self.model["llm"], directory / speech_llm.LORA, written_base=parts.llm)


def _collate(states: Sequence[npt.NDArray[np.float32]], targets: Sequence[list[int]]) -> "dict[str, torch.Tensor]":
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return {
        "states": pad_sequence([torch.from_numpy(s) for s in states], True),
        "state_lengths": torch.tensor([len(s) for s in states]),
        "targets": pad_targets(targets),
    }
