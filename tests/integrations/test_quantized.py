"""ZOTrainer on checkpoints that the libraries wrote, on the layers of the library and on native ones."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

import zoquant
from tests.integrations.tasks import same, values_of
from tests.integrations.test_transformers import FIXED, arguments
from tests.test_fixtures import FOLDER
from zoquant.integrations.transformers import DELTA, ZOTrainer

IDS = torch.randint(0, 512, (8, 12), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": row, "labels": row} for row in IDS]
VENDORS = {"bnb_nf4": "bitsandbytes", "bnb_int8": "bitsandbytes", "torchao_int8wo": "torchao"}


def fixture(name: str) -> Path:
    if not (FOLDER / name).exists():
        pytest.skip("the fixtures are not here")
    return FOLDER / name


@pytest.mark.parametrize("name", VENDORS)
def test_a_model_of_the_library(name: str, tmp_path: Path) -> None:
    path = fixture(name)
    if importlib.util.find_spec(VENDORS[name]) is None:
        pytest.skip(f"{VENDORS[name]} is not here")
    model = AutoModelForCausalLM.from_pretrained(path)
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(model=model, args=arguments(tmp_path), train_dataset=ROWS)
    _train(path, model, tmp_path)
    assert model.is_quantized


@pytest.mark.parametrize("name", ["gptq_sym_g128", "awq_gemm_g128", "hqq_4bit_g64", "bnb_nf4"])
def test_a_native_model(name: str, tmp_path: Path) -> None:
    path = fixture(name)
    model, _ = zoquant.load(path, runtime="native", compute_dtype=torch.float32, device="cpu")
    _train(path, model, tmp_path)


def _train(path: Path, model: Any, folder: Path) -> None:
    before = values_of(model)
    run = ZOTrainer(model=model, args=arguments(folder), train_dataset=ROWS, zo=FIXED)
    assert run.train().global_step == len(run.zo.trajectory.steps) == 6
    assert run.model is model
    assert not same(before, values_of(model))
    run.save_model(str(folder / "end"))
    tuned = zoquant.export(path, delta=folder / "end" / DELTA, out=folder / "tuned")
    again, _ = zoquant.load(tuned, runtime="native", compute_dtype=torch.float32, device="cpu")
    live, exported = values_of(model), values_of(again)
    assert all(torch.equal(value, live[key]) for key, value in exported.items() if key in live)
    assert live.keys() & exported.keys()
