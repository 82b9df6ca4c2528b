"""An adapter and a causal LM behind speech: what the LM makes of a text, and what the two write themselves.

Letters of shapes: B utterances, T encoder frames, S stacked frames, P prefix, N tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ctxasr_ray.models.speech_adapter import stack_frames
from ctxasr_ray.models.speech_prompt import Prompt

if TYPE_CHECKING:
    import torch


class Listener:
    """Adapter and LM, as they are trained.

    Args:
        parts: `adapter` and `llm`.
        tokenizer: Of the LM.
        prompt: Around the speech.
        stack: Encoder frames that the adapter takes as one.
    """

    def __init__(self, parts: Mapping[str, Any], tokenizer: Any, prompt: Prompt, stack: int) -> None:
        import torch

        self._adapter, self._llm = parts["adapter"], parts["llm"]
        self._tokenizer, self._stack = tokenizer, stack
        self._around = tuple(torch.tensor(ids, dtype=torch.int64) for ids in prompt.around())

    @property
    def device(self) -> "torch.device":
        """Of the LM."""
        device: torch.device = self._llm.get_input_embeddings().weight.device
        return device

    def hear(self, batch: "Mapping[str, torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
        """(B, S, D) what the adapter makes of `states` and (B,) how many frames of it count."""
        stacked_BSD, lengths_B = stack_frames(batch["states"], batch["state_lengths"], self._stack)
        return self._adapter(stacked_BSD), lengths_B

    def logits(self, speech_BSD: "torch.Tensor") -> "torch.Tensor":
        """(B, S, V) of the LM's own head, without the LM."""
        logits_BSV: torch.Tensor = self._llm.get_output_embeddings()(speech_BSD)
        return logits_BSV

    def nats(
        self, speech_BSD: "torch.Tensor", lengths_B: "torch.Tensor", targets_BN: "torch.Tensor", *, count: float
    ) -> "torch.Tensor":
        """Cross entropy of the targets behind prompt and speech, divided by `count`."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from ctxasr_ray.training.objectives import IGNORED, cross_entropy

        embed = self._llm.get_input_embeddings()
        before_PD, after_PD = (embed(ids.to(speech_BSD.device)) for ids in self._around)
        rows, wanted = [], []
        for speech_SD, length, target_N in zip(speech_BSD, lengths_B.tolist(), targets_BN, strict=True):
            text_N = target_N[target_N != IGNORED]
            prefix_PD = torch.cat([before_PD, speech_SD[:length], after_PD])
            rows.append(torch.cat([prefix_PD, embed(text_N[:-1])]))
            ignored = torch.full((len(prefix_PD) - 1,), IGNORED, device=text_N.device)
            wanted.append(torch.cat([ignored, text_N]))
        # No mask goes in: rows are padded on the right, which a causal model cannot see from the left.
        inputs_BND, wanted_BN = pad_sequence(rows, True), pad_sequence(wanted, True, IGNORED)
        hidden_BND = _body(self._llm)(inputs_embeds=inputs_BND, use_cache=False).last_hidden_state
        at_BN = wanted_BN != IGNORED
        return cross_entropy(
            self._llm.get_output_embeddings()(hidden_BND[at_BN])[None], wanted_BN[at_BN][None], count=count
        )

    def spell(self, rows: "Sequence[torch.Tensor]", blank: int) -> list[str]:
        """The adapter's best path by CTC."""
        import torch

        texts = []
        for speech_SD in rows:
            best = torch.unique_consecutive(self.logits(speech_SD).argmax(-1)).tolist()
            texts.append(self._text([token for token in best if token != blank]))
        return texts

    def write(self, rows: "Sequence[torch.Tensor]") -> list[str]:
        """The LLM's best token at every step, at most as many as the speech has frames."""
        import torch

        embed = self._llm.get_input_embeddings()
        before_PD, after_PD = (embed(ids.to(self.device)) for ids in self._around)
        prefixes = [torch.cat([before_PD, speech_SD, after_PD]) for speech_SD in rows]
        longest = max(map(len, prefixes))
        inputs_BPD = torch.zeros((len(rows), longest, embed.weight.shape[1]), device=self.device)
        mask_BP = torch.zeros((len(rows), longest), dtype=torch.int64, device=self.device)
        for row, prefix_PD in enumerate(prefixes):
            inputs_BPD[row, longest - len(prefix_PD) :], mask_BP[row, longest - len(prefix_PD) :] = prefix_PD, 1
        ids_BN = self._llm.generate(
            inputs_embeds=inputs_BPD, attention_mask=mask_BP, max_new_tokens=max(map(len, rows)), do_sample=False
        )
        return [self._text(ids) for ids in ids_BN.tolist()]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _body(llm: Any) -> Any:
    """The model without its head, its updates included."""
    causal = llm.get_base_model() if hasattr(llm, "peft_config") else llm
    return causal.base_model
