"""What a run took: time and memory of its training alone, without loading and testing."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoquant.training.memory.resident import peak_rss_bytes


class Meter:
    """Measures from when it is made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Return minutes by the clock and of the processor, and the peak of the process since then in MiB."""
        return {
            "minutes": (time.perf_counter() - self._wall) / 60,
            "processor_minutes": (time.process_time() - self._processor) / 60,
            "peak_mib": peak_rss_bytes() / 2**20,
        }


@dataclass(frozen=True)
class Run:
    """A run to do.

    Attributes:
        model: a GGUF file.
        data: the folder of the tasks.
        task: name of the task.
        way: name of the way.
        seed: of rows, batches and noise.
        steps: how many, None for those of the way.
    """

    model: str
    data: Path
    task: str
    way: str
    seed: int
    steps: int | None = None


Line = dict[str, Any]
"""What came of a run."""
