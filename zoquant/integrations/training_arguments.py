"""What `transformers.TrainingArguments` may say to a trainer that computes no gradient."""

import warnings
from dataclasses import fields

from transformers import TrainingArguments

_REFUSED = {
    "fp16": "it scales gradients. Load the model with compute_dtype=torch.float16",
    "fp16_full_eval": "it casts the values that are trained. Load the model in the dtype that it shall have",
    "bf16_full_eval": "it casts the values that are trained. Load the model in the dtype that it shall have",
    "neftune_noise_alpha": "its noise is for the train mode, and the model stays in eval mode. Remove it",
    "auto_find_batch_size": "a step must not begin anew in its middle. Set per_device_train_batch_size",
    "deepspeed": "there is no gradient to shard. Start one process, without it",
    "fsdp": "there is no gradient to shard. Start one process, without it",
}
_UNUSED = ("learning_rate", "weight_decay", "optim", "gradient_checkpointing", "torch_empty_cache_steps")


def check_arguments(args: TrainingArguments) -> None:
    """Refuse what cannot work without gradients or in one process, and warn of what has no effect.

    Raises:
        ValueError: an argument cannot work; the message says what to do.
    """
    for name, why in _REFUSED.items():
        if getattr(args, name, None):
            raise ValueError(f"ZOTrainer: {name} is {getattr(args, name)!r}, but {why}.")
    if args.world_size > 1 or args.n_gpu > 1:
        raise ValueError(
            f"ZOTrainer: {args.world_size} processes and {args.n_gpu} GPUs, expected one process on one device. Start "
            "it without torchrun or accelerate launch, and set CUDA_VISIBLE_DEVICES to one GPU."
        )
    _warn_of_unused(args)
    if args.bf16:
        warnings.warn(
            "ZOTrainer: bf16 runs the whole forward under autocast, which rounds the losses that are compared. Remove "
            "it, and load the model with compute_dtype=torch.bfloat16.",
            stacklevel=4,
        )


def _warn_of_unused(args: TrainingArguments) -> None:
    usual = {field.name: field.default for field in fields(TrainingArguments)}
    unused = [name for name in _UNUSED if getattr(args, name, None) not in (None, False, usual.get(name))]
    if unused:
        warnings.warn(
            f"ZOTrainer: {', '.join(unused)} of args has no effect: there is no backward pass. Set learning rate, "
            "decay and rule by zo=Settings(...).",
            stacklevel=4,
        )
