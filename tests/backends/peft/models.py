"""A small llama with every kind of adapter, and a short training of it."""

from typing import Any

import torch
from torch import Tensor, nn

import zoquant
from tests.folders import tiny_llama

KINDS = ("lora", "lora of embeddings", "dora", "lora and a copied head", "ia3", "prefix", "prompt")
IDS = torch.arange(12).view(2, 6)
TARGETS = ["q_proj", "v_proj"]


def configs() -> dict[str, Any]:
    import peft

    lora = {"r": 4, "target_modules": TARGETS, "init_lora_weights": False}
    return {
        "lora": peft.LoraConfig(task_type="CAUSAL_LM", **lora),
        "lora of embeddings": peft.LoraConfig(task_type="CAUSAL_LM", **{**lora, "target_modules": ["embed_tokens"]}),
        "dora": peft.LoraConfig(task_type="CAUSAL_LM", **lora, use_dora=True),
        "lora and a copied head": peft.LoraConfig(task_type="CAUSAL_LM", **lora, modules_to_save=["lm_head"]),
        "ia3": peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }


def adapted(kind: str, base: nn.Module | None = None) -> Any:
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(3)
        return peft.get_peft_model(base or tiny_llama(), configs()[kind]).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=IDS).logits
    return output


def trained(model: Any, steps: int = 5) -> zoquant.Views:
    views = zoquant.attach(model, roles=("adapter",))
    optimizer = zoquant.ZOSGD(views, lr=1e-2, eps=1e-2, space="absolute", clip=1.0)
    for _ in range(steps):
        optimizer.step(lambda: model(input_ids=IDS, labels=IDS).loss)
    return views
