"""Low-rank adapters (LoRA) by peft: trained in place of a large model's weights, then merged."""

from __future__ import annotations

from typing import Any

from pgrerank.errors import extra


def add_adapters(model: Any, rank: int) -> None:
    """Freeze the model, and add adapters of that rank to all its linear layers.

    Raises MissingExtraError where peft is not installed.
    """
    with extra("train", "low-rank adapters"):
        from peft import LoraConfig
    model.add_adapter(
        LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    )


def merge_adapters(model: Any) -> None:
    """Add the adapters to the weights that they stand beside, so that a plain model is saved."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    for module in model.modules():
        if getattr(module, "_hf_peft_config_loaded", False):
            module._hf_peft_config_loaded = False  # noqa: SLF001 - transformers has no public way
            del module.peft_config
