"""AutoRound: the layers of GPTQ and AWQ under a config of its own."""
