"""Small layers of every class of peft that a backend claims."""

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.folders import save_folder, tiny_llama
from tests.toy import toy_layer

_BASE = "peft.tuners"


def linear(*, bias: bool = False) -> nn.Linear:
    """Return a linear layer [12 -> 24] with the same numbers every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(12, 24, bias=bias).requires_grad_(False)


def lora(path: str = "lora.layer.Linear", base: Callable[[], nn.Module] = linear) -> Callable[[], nn.Module]:
    """Return a maker of LoRA layers of one class, over any base, whose matrices are all random."""

    def make() -> nn.Module:
        from peft import LoraConfig

        return _wrapped(path, base(), config=LoraConfig(r=4, lora_alpha=8, init_lora_weights=False))

    return make


def ia3(path: str, base: Callable[[], nn.Module] = linear, *, feedforward: bool) -> Callable[[], nn.Module]:
    """Return a maker of IA3 layers, before or behind their base layer."""

    def make() -> nn.Module:
        from peft import IA3Config

        return _wrapped(path, base(), config=IA3Config(init_ia3_weights=False), is_feedforward=feedforward)

    return make


def embedding() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Embedding(10, 12)


def native() -> nn.Module:
    return toy_layer(rows=24, groups=3)


def prompt() -> nn.Module:
    from peft import PromptTuningConfig
    from peft.tuners.prompt_tuning.model import PromptEmbedding

    settings = {"num_virtual_tokens": 4, "token_dim": 12, "num_transformer_submodules": 1}
    return _seeded(lambda: PromptEmbedding(PromptTuningConfig(task_type="CAUSAL_LM", **settings), embedding()))


def prefix(**changes: Any) -> nn.Module:
    from peft import PrefixTuningConfig
    from peft.tuners.prefix_tuning.model import PrefixEncoder

    settings = {"num_virtual_tokens": 4, "token_dim": 12, "num_layers": 2, "encoder_hidden_size": 6, **changes}
    return _seeded(lambda: PrefixEncoder(PrefixTuningConfig(task_type="CAUSAL_LM", **settings)))


def copied() -> nn.Module:
    from peft.utils.other import ModulesToSaveWrapper

    wrapper: nn.Module = ModulesToSaveWrapper(linear(bias=True), "default")
    return wrapper


def _wrapped(path: str, base: nn.Module, **settings: Any) -> nn.Module:
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(f"{_BASE}.{module}"), name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a base that peft does not know, or cannot merge
        return _seeded(lambda: kind(base, "default", r=4, lora_alpha=8, **settings))


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


_OVER_ANY = (
    "bnb.Linear4bit",
    "bnb.Linear8bitLt",
    "gptq.GPTQLoraLinear",
    "awq.AwqLoraLinear",
    "aqlm.AqlmLoraLinear",
    "eetq.EetqLoraLinear",
    "hqq.HqqLoraLinear",
)

BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    f"{_BASE}.lora.layer.Linear": lora(),
    f"{_BASE}.lora.layer.Embedding": lora("lora.layer.Embedding", embedding),
    **{f"{_BASE}.lora.{path}": lora(f"lora.{path}", native) for path in _OVER_ANY},
    f"{_BASE}.lora.torchao.TorchaoLoraLinear": lora("lora.torchao.TorchaoLoraLinear"),
    f"{_BASE}.ia3.layer.Linear": ia3("ia3.layer.Linear", feedforward=False),
    f"{_BASE}.ia3.bnb.Linear4bit": ia3("ia3.bnb.Linear4bit", feedforward=True),
    f"{_BASE}.ia3.bnb.Linear8bitLt": ia3("ia3.bnb.Linear8bitLt", feedforward=False),
    f"{_BASE}.prefix_tuning.model.PrefixEncoder": prefix,
    f"{_BASE}.prompt_tuning.model.PromptEmbedding": prompt,
    "peft.utils.other.ModulesToSaveWrapper": copied,
}


def adapter_folder(folder: Path) -> Path:
    """Write a LoRA of a small llama, whose config names the folder of its base."""
    import peft

    base = save_folder(tiny_llama(), folder / "base")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )  # fmt: skip
    model: Any = _seeded(lambda: peft.get_peft_model(tiny_llama(), config))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


BESIDES = {
    "peft": "peft",
    f"{_BASE}.lora.bnb.Linear4bit": "bitsandbytes",
    f"{_BASE}.lora.bnb.Linear8bitLt": "bitsandbytes",
    f"{_BASE}.ia3.bnb.Linear4bit": "bitsandbytes",
    f"{_BASE}.ia3.bnb.Linear8bitLt": "bitsandbytes",
    f"{_BASE}.lora.aqlm.AqlmLoraLinear": "aqlm",
    f"{_BASE}.lora.eetq.EetqLoraLinear": "eetq",
    f"{_BASE}.lora.hqq.HqqLoraLinear": "hqq",
    f"{_BASE}.lora.torchao.TorchaoLoraLinear": "torchao",
}
"""What the file of a peft class needs before it defines the class, and the format its library."""
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"peft": adapter_folder}
