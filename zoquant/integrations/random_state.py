"""The state of random numbers, which every evaluation of a step shall see alike."""

import torch


class RandomState:
    """The state of torch's random generators at one moment.

    A loss that draws random numbers, such as the noise of a diffusion model, must draw the same ones at both ends of a
    probe, or the difference of the two losses is noise.

    Args:
        device: if it is a GPU, its generator is remembered beside the one of the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind(self) -> None:
        """Set the generators back to that moment."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
