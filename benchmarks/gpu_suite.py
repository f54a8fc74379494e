"""Speed and memory of the native layers on a GPU, at the true shapes of large models, without a checkpoint.

    python benchmarks/gpu_suite.py --out benchmarks/results
    python benchmarks/gpu_suite.py --tiny --device cpu          # tests the script where there is no GPU

It needs torch, transformers and triton, no network, and runs from the repository without an installation. Packed words
and scales are random: they cost what real ones cost. First the kernels are compared with the CPU bit for bit.
"""

import argparse
import gc
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import zoquant
from zoquant.backends.gptq.weight import gptq_weight
from zoquant.backends.native import NativeBackend
from zoquant.bench.machine import file_name, machine
from zoquant.bench.timing import in_turn, ratio, seconds, spread
from zoquant.native import FieldSpec, PackedWeight, PackedWords, QuantLinear, TableWeight, Values, VectorWeight
from zoquant.native.meta import WithoutWeights, forget_weights, replace_module
from zoquant.native.values import flat_groups, per_row, row_groups
from zoquant.source import NoiseSource

SHAPES: dict[str, dict[str, Any]] = {
    "OPT-6.7B": {
        "kind": "opt", "hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32, "num_attention_heads": 32,
        "word_embed_proj_dim": 4096, "vocab_size": 50272,
    },
    "Llama-2-7B": {
        "kind": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "Llama-3.1-8B": {
        "kind": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "Llama-2-13B": {
        "kind": "llama", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000,
    },
    "Llama-2-70B": {
        "kind": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "SD3.5-Large": {
        "kind": "sd3", "sample_size": 128, "num_layers": 38, "num_attention_heads": 38, "attention_head_dim": 64,
        "caption_projection_dim": 2432, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
        "in_channels": 16, "out_channels": 16, "pos_embed_max_size": 192, "qk_norm": "rms_norm",
    },
}  # fmt: skip
"""Shapes of the published configs."""

TINY = {
    "opt": {"hidden_size": 128, "ffn_dim": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 128, "vocab_size": 300},
    "llama": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 2, "vocab_size": 300},
    "sd3": {"sample_size": 16, "num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128,
            "joint_attention_dim": 64, "pooled_projection_dim": 64, "pos_embed_max_size": 16},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model in one format.

    Attributes:
        model: a name of `SHAPES`.
        format: a name of `PACKED`.
        limit: peak memory at batch 1 x 64 tokens that it shall stay below, in GB of 10⁹ bytes.
        timed: whether a step is timed at batch 1 and 16.
    """

    model: str
    format: str
    limit: float
    timed: bool = True


CASES = (
    Case("OPT-6.7B", "GPTQ 4-bit g128", 4.8),
    Case("Llama-2-7B", "GPTQ 4-bit g128", 5.0),
    Case("Llama-3.1-8B", "GPTQ 4-bit g128", 6.2),
    Case("Llama-2-13B", "AQLM 2-bit 1x16", 5.8, timed=False),
    Case("Llama-2-70B", "AQLM 2-bit 1x16", 24.0, timed=False),
    Case("SD3.5-Large", "NF4 b64", 12.4, timed=False),
)
"""Limits: QZO's own figures (arXiv 2505.13430); 24 GB is one consumer card."""


def gptq(rows: int, columns: int, device: torch.device) -> PackedWeight:
    """Return random words of GPTQ, 4 bits, groups of 128."""
    groups = -(-columns // 128)
    return gptq_weight(
        _words((columns // 8, rows), device),
        _words((groups, rows // 8), device),
        _scales((groups, rows), device),
        None,
        bits=4,
        group_size=128,
        columns=columns,
        minus_one=True,
    )


def aqlm(rows: int, columns: int, device: torch.device) -> PackedWeight:
    """Return random codes of AQLM, one codebook of 2^16 vectors of eight."""
    books = torch.randn(1, 1 << 16, 1, 8, device=device, dtype=torch.float16)
    codes = torch.randint(-(1 << 15), 1 << 15, (rows, columns // 8, 1), device=device, dtype=torch.int16)
    scales = Values(FieldSpec("scales", "scale", torch.float16), _scales((rows, 1, 1, 1), device), per_row)
    return VectorWeight("AQLM 1x16g8", codes, (FieldSpec("codebooks", "codebook", torch.float16), books), scales)


def nf4(rows: int, columns: int, device: torch.device) -> PackedWeight:
    """Return random words of NF4, blocks of 64."""
    table = torch.linspace(-1, 1, 16, device=device)
    words = torch.randint(0, 256, (rows, columns // 2), device=device, dtype=torch.uint8)
    absmax = _scales((rows * columns // 64,), device).float()
    values = Values(FieldSpec("absmax", "scale", torch.float32), absmax, flat_groups(columns, 64))
    return TableWeight("nf4 b64", PackedWords(words, 4, columns, high_first=True), table, values)


PACKED: dict[str, Callable[[int, int, torch.device], PackedWeight]] = {
    "GPTQ 4-bit g128": gptq, "AQLM 2-bit 1x16": aqlm, "NF4 b64": nf4,
}  # fmt: skip


def build(case: Case, device: torch.device, *, tiny: bool) -> nn.Module:
    """Return a model of random packed weights; what its checkpoints keep dense stays in float16 or bfloat16."""
    settings = dict(SHAPES[case.model])
    kind = settings.pop("kind")
    dtype = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
    with WithoutWeights():
        model = _empty(kind, {**settings, **(TINY[kind] if tiny else {})})
    forget_weights(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            packed = PACKED[case.format](module.out_features, module.in_features, device)
            bias = None if module.bias is None else torch.zeros(module.out_features, device=device, dtype=dtype)
            replace_module(model, path, QuantLinear(packed, bias, compute_dtype=dtype))
    _fill(model, device, dtype)
    return model.to(device).eval().requires_grad_(False)


def _empty(kind: str, settings: dict[str, Any]) -> nn.Module:
    if kind == "sd3":
        from diffusers import SD3Transformer2DModel

        model: nn.Module = SD3Transformer2DModel(**settings)
        return model
    import transformers

    config = transformers.AutoConfig.for_model(kind, **settings)
    empty: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return empty


def _fill(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give memory to what is not packed; tied parameters stay tied."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None and value.device.type == "meta":
                filled = nn.Parameter(torch.full(value.shape, 0.02, device=device, dtype=dtype), requires_grad=False)
                module._parameters[name] = known.setdefault(id(value), filled)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point() and not isinstance(module, PackedWeight | Values):
                module._buffers[name] = buffer.to(device)


def _words(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, device=device, dtype=torch.int32)


def _scales(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return (torch.rand(shape, device=device, dtype=torch.float32) * 0.005 + 0.0025).half()


def loss_of(model: nn.Module, kind: str, batch: int, length: int, device: torch.device) -> Callable[[], float]:
    """Return a forward that ends in one number; language models give the logits of the last position alone."""
    if kind == "sd3":
        return _diffusion_loss(model, batch, device)
    whole: Any = model
    body, head = whole.base_model, whole.get_output_embeddings()
    ids = torch.randint(0, whole.config.vocab_size, (batch, length), device=device)

    @torch.no_grad()
    def loss() -> float:
        states = body(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        return float(nn.functional.cross_entropy(head(states).float(), ids[:, 0]).nan_to_num())

    return loss


def _diffusion_loss(model: nn.Module, batch: int, device: torch.device) -> Callable[[], float]:
    config: Any = model.config
    dtype = next(parameter.dtype for parameter in model.parameters())
    size = config.sample_size
    given = {
        "hidden_states": torch.randn(batch, config.in_channels, size, size, device=device, dtype=dtype),
        "encoder_hidden_states": torch.randn(batch, 333, config.joint_attention_dim, device=device, dtype=dtype),
        "pooled_projections": torch.randn(batch, config.pooled_projection_dim, device=device, dtype=dtype),
        "timestep": torch.full((batch,), 500, device=device),
    }

    @torch.no_grad()
    def loss() -> float:
        return float(model(**given).sample.float().square().mean().nan_to_num())

    return loss


def check_kernels(device: torch.device) -> dict[str, Any]:
    """Compare noise and writes on the device with the CPU, bit for bit."""
    counts, cpu = [100_000, 7, 4096], torch.device("cpu")
    keys = [f"layers.{number}.d" for number in range(len(counts))]
    found: dict[str, Any] = {}
    for kind in ("rademacher", "gaussian"):
        here, there = (NoiseSource(keys, counts, kind, place) for place in (device, cpu))
        there.kernels = None
        size = sum(-(-count // 128) * 128 for count in counts)
        drawn = here.draw(2**63 + 9, 0, torch.empty(size, device=device)).cpu()
        sums = [torch.zeros(size, device=place) for place in (device, cpu)]
        for source, total in zip((here, there), sums, strict=True):
            source.accumulate(total, 0, [3], [0.1])
            source.accumulate(total, 0, [5, 2**64 - 1], [0.2, -0.3])
        found[f"{kind} noise"] = torch.equal(drawn, there.draw(2**63 + 9, 0, torch.empty(size)))
        found[f"{kind} sums"] = torch.equal(sums[0].cpu(), sums[1])
    found["writes"] = _same_writes(device)
    return found


def _same_writes(device: torch.device) -> bool:
    """Whether a probe writes the same bytes on the device as on the CPU."""
    generator = torch.Generator().manual_seed(0)
    stored = []
    for place in (device, torch.device("cpu")):
        generator.manual_seed(0)
        scales = (torch.rand(64, 38, generator=generator) * 0.01).half().to(place)
        packed = VectorWeight(
            "check", torch.zeros(64, 38, 1, dtype=torch.int16, device=place),
            (FieldSpec("codebooks", "codebook", torch.float16), torch.zeros(1, 2, 1, 8, device=place).half()),
            Values(FieldSpec("scales", "scale", torch.float16), scales, row_groups),
        )  # fmt: skip
        views = zoquant.attach(QuantLinear(packed, compute_dtype=torch.float32))
        views.buffers[0].delta.copy_(torch.randn(views.buffers[0].delta.numel(), generator=generator) * 0.1)
        views.write(seed=11, eps=0.03, noise="gaussian")
        stored.append(scales.cpu())
    return torch.equal(*stored)


def noise_bandwidth(values: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return what noise, perturbation and cast move a second, over a plain copy of as many bytes."""
    rows = max(1, values // 4096)
    packed = gptq(rows * 128, 4096, device)
    views = zoquant.attach(QuantLinear(packed, compute_dtype=torch.bfloat16))
    buffer = views.buffers[0]
    moved = 2 * views.trainable * 2 + 4 * views.trainable
    room = torch.empty(2, moved // 2, dtype=torch.uint8, device=device)
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: room[0].copy_(room[1])}
    for kind in ("rademacher", "gaussian"):
        calls[kind] = lambda kind=kind: buffer.write(seed=7, eps=0.0, noise=kind)  # type: ignore[misc]
    times = in_turn(calls, rounds)
    shares = {kind: ratio(times["copy"], times[kind]) for kind in ("rademacher", "gaussian")}
    return {"values": views.trainable, "copy_gb_a_second": moved / spread(times["copy"])["median"] / 1e9, **shares}


def measure(case: Case, device: torch.device, *, tiny: bool, rounds: int) -> dict[str, Any]:
    """Return step over two forwards and peak memory of one case."""
    kind = SHAPES[case.model]["kind"]
    if kind == "sd3" and find_spec("diffusers") is None:
        return {"skipped": "diffusers is not installed"}
    model = build(case, device, tiny=tiny)
    parameters = weights_of(model)
    loss = loss_of(model, kind, 1, 64, device)
    loss()
    _reset_peak(device)
    loss()
    inference = _peak(device)
    optimizer = zoquant.ZOSGD(zoquant.attach(model), lr=0.0)
    _reset_peak(device)
    first = seconds(lambda: optimizer.step(loss))
    found: dict[str, Any] = {
        "weights": parameters, "values": optimizer.views.trainable, "first_step_seconds": first,
        "inference_peak_gb": inference, "train_peak_gb": _peak(device), "limit_gb": case.limit,
        "adamw_bf16_gb": adamw_bytes(parameters) / 1e9,
    }  # fmt: skip
    if found["train_peak_gb"]:
        found["adamw_over_zoquant"] = found["adamw_bf16_gb"] / found["train_peak_gb"]
    for batch in (1, 16) if case.timed else (1,):
        again = loss_of(model, kind, batch, 64, device)
        times = in_turn(
            {"forwards": lambda again=again: (again(), again()), "step": lambda again=again: optimizer.step(again)},  # type: ignore[misc]
            rounds if case.timed else min(rounds, 3),
        )
        found[f"batch {batch}"] = {
            "step_seconds": spread(times["step"]), "overhead": ratio(times["step"], times["forwards"]),
        }  # fmt: skip
    return found


def weights_of(model: nn.Module) -> int:
    """Return how many numbers the dense model would have; tied ones count once."""
    packed = sum(each.rows * each.columns for each in model.modules() if isinstance(each, PackedWeight))
    return packed + sum(parameter.numel() for parameter in model.parameters())


def adamw_bytes(parameters: int) -> int:
    """Return what AdamW in bf16 holds: weights and gradients of 2 bytes, two moments of 4, and no activations."""
    return parameters * (2 + 2 + 4 + 4)


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    """Return the peak of allocated memory in GB; None on a CPU, where nobody counts it here."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def suite(device: torch.device, *, tiny: bool, rounds: int, only: str = "") -> dict[str, Any]:
    """Return all that is measured: the checks first, then one case after the other."""
    torch.manual_seed(0)
    if "zoquant.native.layers.QuantLinear" not in zoquant.backends():
        zoquant.register(backend=NativeBackend(), claims=QuantLinear)
    found: dict[str, Any] = {"kind": "gpu-suite", "tiny": tiny, "machine": machine(device), "checks": {}, "cases": {}}
    found["checks"] = check_kernels(device)
    found["noise"] = noise_bandwidth(1 << (14 if tiny else 26), device, rounds)
    for case in CASES:
        if only in case.model:
            found["cases"][f"{case.model}, {case.format}"] = _or_reason(case, device, tiny=tiny, rounds=rounds)
            _reset_peak(device)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def _or_reason(case: Case, device: torch.device, *, tiny: bool, rounds: int) -> dict[str, Any]:
    try:
        return measure(case, device, tiny=tiny, rounds=rounds)
    except torch.cuda.OutOfMemoryError as error:
        return {"skipped": " ".join(str(error).split())[:200]}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield a short table."""
    yield f"{found['machine']['processor']}, torch {found['machine']['torch']}, {found['machine']['kernels']}"
    yield "against the CPU: " + ", ".join(
        f"{name} {'same' if ok else 'DIFFER'}" for name, ok in found["checks"].items()
    )
    noise = found["noise"]
    yield f"noise / copy bandwidth: rademacher {_middle(noise['rademacher'])}, gaussian {_middle(noise['gaussian'])}"
    for name, case in found["cases"].items():
        if "skipped" in case:
            yield f"{name}: {case['skipped']}"
            continue
        steps = ", ".join(f"{b} {_middle(case[b]['overhead'])}" for b in ("batch 1", "batch 16") if b in case)
        peak = case["train_peak_gb"]
        told = "not measured" if peak is None else f"{peak:.2f} GB of {case['limit_gb']}"
        yield f"{name}: step / two forwards {steps}; peak {told}; AdamW bf16 {case['adamw_bf16_gb']:.1f} GB"


def _middle(values: dict[str, float]) -> str:
    return "nan" if math.isnan(values["median"]) else f"{values['median']:.3f}"


def main() -> None:
    """Measure, print, and write JSON; end with status 1 where a kernel differs from the CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="small shapes: whether it runs, not what it costs")
    parser.add_argument("--rounds", type=int, default=10, help="repetitions")
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--out", type=Path, help="folder that gets gpu-<device>.json")
    chosen = parser.parse_args()
    found = suite(torch.device(chosen.device), tiny=chosen.tiny, rounds=chosen.rounds, only=chosen.only)
    print("\n".join(lines(found)))
    if chosen.out is not None:
        path = chosen.out / f"gpu-{file_name(found['machine']['processor'])}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(found["checks"].values()) else 1)


if __name__ == "__main__":
    main()
