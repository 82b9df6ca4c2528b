"""Which weights a training moves: everything, named parts, or low-rank updates (LoRA) through PEFT."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Low-rank updates of a language model's matrices: W' = W + (alpha / rank) B A, B zero at first.

    Reference:
        Hu et al. 2021, LoRA, 2106.09685, section 4.1.
    """

    rank: int = 16
    alpha: float = 32.0
    """0 leaves the model as it is."""
    dropout: float = 0.0
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the layers inside the model; "all-linear" is every one but the head."""

    def __post_init__(self) -> None:
        """Refuses what is no update.

        Raises:
            ValueError: names the field.
        """
        if self.rank < 1 or self.alpha < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA: rank is {self.rank}, alpha {self.alpha}, dropout {self.dropout}; expected at least 1, at least "
                "0, and 0 or more and less than 1."
            )

    def around(self, model: Any) -> Any:
        """A PEFT model around a causal LM, whose low-rank matrices alone are trained."""
        from peft import LoraConfig, get_peft_model

        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        settings = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, settings)


def train_parts(parts: Mapping[str, Any], trained: Sequence[str]) -> None:
    """Switches gradients on for the named parts and off for all others.

    A part that is a PEFT model trains its updates alone.

    Args:
        parts: Name -> module.
        trained: Names among them.

    Raises:
        ValueError: no such part, or nothing to train.
    """
    unknown = [name for name in trained if name not in parts]
    if unknown or not trained:
        raise ValueError(f"trained parts are {list(trained)}; expected some of {list(parts)}.")
    for name, module in parts.items():
        for weight_name, weight in module.named_parameters():
            of_adapter = "lora_" in weight_name if hasattr(module, "peft_config") else True
            weight.requires_grad_(name in trained and of_adapter)


def save_lora(model: Any, directory: Path, *, written_base: str) -> None:
    """Writes a PEFT model's updates as float16 safetensors with their config.

    Args:
        model: A PEFT model.
        directory: Of the updates alone.
        written_base: Name of the model under them.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: w.detach().half().contiguous() for name, w in get_peft_model_state_dict(model).items()}
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_model.safetensors").chmod(0o644)
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.inference_mode = written_base, True
    settings.save_pretrained(str(directory))
