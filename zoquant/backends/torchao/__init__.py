"""torchao: weights of int8, int4, other integers and float8, as tensor subclasses and in safetensors files."""
