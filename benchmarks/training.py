"""The training loop against a plain loop of torch on the same model and batches, and what a step of MWER costs.

Both loops end with equal weights before any time counts. Run it without arguments: `python benchmarks/training.py`.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

from figures import Figure, emit, interleaved, pin_threads

pin_threads(1)

import numpy as np  # noqa: E402  (the threads are pinned first)
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from ctxasr_ray.experiment import asset  # noqa: E402
from ctxasr_ray.recipes.tiny_models import train_lm  # noqa: E402
from ctxasr_ray.training import batches, checkpoint, loop  # noqa: E402
from ctxasr_ray.training.committed_lists import CommittedLists, ListExample  # noqa: E402
from ctxasr_ray.training.config import TrainingConfig  # noqa: E402
from ctxasr_ray.training.language import LanguageModelTask  # noqa: E402
from ctxasr_ray.training.mwer import Mwer, MwerTask  # noqa: E402
from ctxasr_ray.training.sources import SyntheticText  # noqa: E402

NUM_STEPS, NUM_UTTERANCES, NUM_HYPOTHESES, NUM_UNITS, SEED = 60, 4, 8, 80, 7


def recipe() -> TrainingConfig:
    """The shipped LM's recipe on fewer sentences and for fewer steps, one thread."""
    config = train_lm()
    assert isinstance(config.task, LanguageModelTask)
    task = dataclasses.replace(
        config.task,
        train=SyntheticText(num_sentences=4000),
        dev=SyntheticText(num_sentences=1, split="dev"),
        num_tokenizer_sentences=4000,
    )
    return dataclasses.replace(config, task=task, num_steps=NUM_STEPS, batch_size=2048, num_threads=1, num_processes=0)


def plain(config: TrainingConfig, directory: Path) -> dict[str, torch.Tensor]:
    """The same training as one would write it first: no log, no checkpoint, no check of the loss."""
    torch.manual_seed(config.seed)
    task = config.task.build(directory, 0)
    model, settings = task.model.train(), config.optimiser
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta_2))
    for step, indices in batches.steps(task.lengths, config.batch_size, config.seed, start=0, stop=config.num_steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate(step, config.num_steps)
        with torch.autocast("cpu", torch.bfloat16):
            batch = task.batch(indices, np.random.default_rng(0))
            loss = task.loss(batch, task.counts(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def made_lists() -> list[ListExample]:
    """Lists of the size that the tiny models have: 8 hypotheses of one sentence, other words swapped in."""
    rng = np.random.default_rng(SEED)
    sentences = list(SyntheticText(num_sentences=NUM_UTTERANCES + 1).sentences())
    lists = []
    for number, reference in enumerate(sentences[:NUM_UTTERANCES]):
        other = sentences[number + 1].split()
        texts = [
            " ".join(str(rng.choice(other)) if rng.random() < 0.2 else word for word in reference.split())
            for _ in range(NUM_HYPOTHESES)
        ]
        lists.append(
            ListExample(
                name=str(number),
                reference=reference,
                texts=texts,
                scores=rng.normal(size=NUM_HYPOTHESES),
                errors=np.arange(NUM_HYPOTHESES),
                num_words=np.full(NUM_HYPOTHESES, len(reference.split())),
                reference_length=len(reference.split()),
                units=rng.integers(200, size=NUM_UNITS).astype(np.int32),
            )
        )
    return lists


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MadeLists(CommittedLists):
    """Lists that no run has committed."""

    def read(self) -> tuple[list[ListExample], dict[str, str]]:
        """Gives made lists."""
        return made_lists(), {}

    def refuse_other_units(self, model: str) -> None:
        """Made units mean no sounds, so they come from no other quantiser."""


def mwer_step_cost() -> Figure:
    """A step of MWER against a step of cross entropy on the references of the same utterances."""
    lists = MadeLists(root="", hypotheses="")
    task = Mwer(MwerTask(train=lists, dev=lists, initial=asset("speech_lm")))
    batch = task.batch(np.arange(NUM_UTTERANCES), np.random.default_rng(0))
    chosen = batch["is_reference"]
    references = {name: batch[name][chosen] for name in ("input_ids", "written")}

    def mwer() -> None:
        task.loss(batch, task.counts(batch)).backward()
        task.model.zero_grad(set_to_none=True)

    def cross_entropy() -> None:
        written = references["written"][:, 1:]
        logits = task.model(input_ids=references["input_ids"][:, :-1], use_cache=False).logits[written]
        torch.nn.functional.cross_entropy(logits.float(), references["input_ids"][:, 1:][written]).backward()
        task.model.zero_grad(set_to_none=True)

    mwer(), cross_entropy()
    timed = interleaved(mwer, cross_entropy, rounds=5)
    work = {"utterances": NUM_UTTERANCES, "hypotheses": NUM_HYPOTHESES, "units": NUM_UNITS}
    return Figure(
        name="mwer_step_vs_cross_entropy_step",
        value=timed.median,
        unit="x the seconds",
        peer="cross entropy of the references behind their units, same model and utterances",
        counters={"ratio_min": timed.minimum, "ratio_max": timed.maximum, **work},
    )


def main() -> None:
    """Prints the figures."""
    config = recipe()
    with tempfile.TemporaryDirectory() as folder:
        runs = iter(range(1000))

        def ours() -> Path:
            directory = Path(folder) / str(next(runs))
            loop.run(config, directory)
            return directory

        found = load_file(ours() / checkpoint.FILE)
        for name, expected in plain(config, Path(folder)).items():
            own = found.get(f"model/{name}")
            if own is not None and not torch.equal(own, expected):
                sys.exit(f"training: weight {name} differs from the plain loop's; a faster other training is no figure")
        timed = interleaved(lambda: plain(config, Path(folder)), ours, rounds=3)
    emit(
        [
            Figure(
                name="training_loop_vs_plain_torch",
                value=timed.median,
                goal=">= 0.95",
                unit="x the samples per second",
                peer=f"a plain loop of torch {torch.__version__}",
                counters=timed.counters() | {"steps": NUM_STEPS, "tokens_per_step": config.batch_size},
            ),
            mwer_step_cost(),
        ]
    )


if __name__ == "__main__":
    main()
