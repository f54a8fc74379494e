"""AWQ: checkpoints of AutoAWQ, llm-awq and GPTQModel, and the layers of these libraries."""
