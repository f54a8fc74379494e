"""bitsandbytes: NF4 and FP4 with one or two levels of absmax, and LLM.int8()."""
