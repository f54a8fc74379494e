"""GPTQ: checkpoints of AutoGPTQ and GPTQModel, and the layers of both libraries."""
