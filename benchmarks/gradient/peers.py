"""What others would do on the same rows and batches: LoRA by peft, and full fine-tuning, by Adam.

The base is the same GGUF, dequantized by transformers; for `NF4` it is quantized anew by bitsandbytes. What comes out
is rounded once more to the type that each matrix had in the file, where the gguf package can, and tested again.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gradient.measured import Line, Meter, Run
from benchmarks.gradient.rows import TASKS, to_learn, to_test
from zoquant.training.backward.allocation import give_back_large_blocks

BATCH = 16
STEPS = 100
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Peer:
    """How a peer trains.

    Attributes:
        lr: learning rate at the start; it falls linearly, as zoquant's does.
        rank: of LoRA, None for all weights.
        nf4: whether the base is in NF4.
    """

    lr: float
    rank: int | None = None
    nf4: bool = False


WAYS = {
    "LoRA r8": Peer(1e-3, 8),
    "LoRA r16": Peer(1e-3, 16),
    "LoRA r16, NF4": Peer(1e-3, 16, nf4=True),
    "full fine-tuning": Peer(2e-5),
}


def train(run: Run) -> Line:
    """Train, and return what came of it."""
    give_back_large_blocks()
    peer, steps = WAYS[run.way], run.steps or STEPS
    model, tokenizer = _loaded(run.model, peer)
    asked = TASKS[run.task]
    learned = asked.build(to_learn(run.data, run.task, run.seed), model, tokenizer, _CPU)
    torch.manual_seed(run.seed)
    trained: Any = model if peer.rank is None else _with_lora(model, peer.rank)
    weights = [each for each in trained.parameters() if each.requires_grad]
    adam = torch.optim.Adam(weights, lr=peer.lr)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, steps)
    meter = Meter()
    for step in range(steps):
        adam.zero_grad()
        loss: Any = learned.loss(model, learned.batch_of_step(run.seed, step, BATCH))
        loss.backward()
        adam.step()
        falling.step()
        print(step, float(loss), flush=True)
    took = meter.read()
    tested = asked.build(to_test(run.data, run.task), model, tokenizer, _CPU)
    found = tested.evaluate(model)
    accuracy = found.metrics["accuracy"]
    rounded = None
    if not peer.nf4 and _round_again(run.model, trained.merge_and_unload() if peer.rank else model):
        rounded = tested.evaluate(model).metrics["accuracy"].value
    return {
        "steps": steps, "batch": BATCH, "lr": peer.lr, "accuracy": accuracy.value, "interval": accuracy.interval,
        "examples": found.examples, **took, "out_mib": sum(each.nbytes for each in weights) / 2**20,
        "same_file": False, "rounded_again": rounded,
    }  # fmt: skip


def _loaded(path: str, peer: Peer) -> tuple[nn.Module, Any]:
    folder, name = Path(path).parent, Path(path).name
    read: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    config = read.config
    del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    if not peer.nf4:
        return model, tokenizer
    from transformers import BitsAndBytesConfig

    with tempfile.TemporaryDirectory() as dense:
        model.save_pretrained(dense)
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        return AutoModelForCausalLM.from_pretrained(dense, quantization_config=how, dtype=torch.float32), tokenizer


def _with_lora(model: Any, rank: int) -> Any:
    """Put LoRA on all linear layers; the model itself then computes with it."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


@torch.no_grad()
def _round_again(path: str, model: nn.Module) -> bool:
    """Round the matrices of a model to their types in a file; False where the gguf package cannot."""
    import gguf

    read = gguf.GGUFReader(path)
    types = {tensor.name: tensor.tensor_type for tensor in read.tensors}
    named = read.fields["general.architecture"].contents()
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == named)
    names = gguf.get_tensor_name_map(arch, read.fields[f"{named}.block_count"].contents())
    for ours, weight in model.named_parameters():
        kind = types.get(f"{names.get_name(ours.removesuffix('.weight'))}.weight")
        if kind is None or weight.dim() != 2:
            continue
        try:
            packed = gguf.quants.quantize(weight.numpy(), kind)
        except NotImplementedError:
            return False
        weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    return True
