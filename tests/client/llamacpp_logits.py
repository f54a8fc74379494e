"""Runs in llama.cpp's environment, which need not hold zoquant: MODEL.gguf PROMPTS.json OUT.npy.

PROMPTS.json holds lists of token ids; OUT.npy gets the logits of the last position of each, float32
`[lists, vocabulary]`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama, llama_cpp  # type: ignore[import-not-found]

_default_params = llama_cpp.llama_model_default_params


def _plain_params() -> Any:
    """Keep the weights as the file has them: repacked for AMX, llama.cpp may crash (its issue 20824, pull 26954)."""
    params = _default_params()
    params.use_extra_bufts = False
    return params


def main(model: str, prompts: str, out: str) -> None:
    llama_cpp.llama_model_default_params = _plain_params
    lists: list[list[int]] = json.loads(Path(prompts).read_text())
    llama = Llama(  # one thread: two that spin at each other's barriers take ten times as long on a busy machine
        model, n_ctx=max(map(len, lists)), n_threads=1, n_threads_batch=1, use_mmap=True, logits_all=True, verbose=False
    )
    rows = []
    for ids in lists:
        llama.reset()
        llama.eval(ids)
        rows.append(np.array(llama.scores[len(ids) - 1], dtype=np.float32))
    np.save(out, np.stack(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
