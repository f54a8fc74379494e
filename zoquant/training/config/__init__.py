"""The description of a run: every key that a config file or the command line may name, its type, help and default.

What is done with one stands in `training.finetune`. Begin with `config`.
"""

from zoquant.training.config.config import Config, Key, key_of, keys
from zoquant.training.config.file import ConfigFile
from zoquant.training.config.value import AUTO, convert

__all__ = ["AUTO", "Config", "ConfigFile", "Key", "convert", "key_of", "keys"]
