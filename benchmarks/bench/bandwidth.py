"""Bytes a second of drawing noise and of writing values, against a plain copy."""

from typing import Any

import torch

from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.views.model_views import Views


def bandwidth(views: Views, rounds: int) -> dict[str, Any]:
    """Return bytes a second of drawing noise and of writing all views, against a plain copy of as many bytes."""
    buffer = views.buffers[0]
    source, out = buffer.source_of("rademacher"), torch.empty_like(buffer.delta)
    stored = sum(plane.base.nbytes for chunk in buffer._chunks for plane in chunk.planes)
    written = 2 * stored + buffer.delta.nbytes  # base and delta are read, theta is written
    room = torch.empty(2, max(written // 2, 1), dtype=torch.uint8, device=buffer.device)
    seeds = iter(range(1 << 60))
    times = in_turn(
        {
            "copy": lambda: room[0].copy_(room[1]),
            "noise": lambda: [source.draw(next(seeds), tile.start, out[tile]) for tile in buffer.tiles()],
            "write": lambda: buffer.write(seed=next(seeds), eps=0.0),
        },
        rounds,
    )
    moved = {"copy": written, "noise": buffer.delta.nbytes, "write": written}
    rates = {name: [moved[name] / s for s in found] for name, found in times.items()}
    views.write()
    return {
        "values": views.trainable,
        **{f"{name}_bytes_a_second": spread(found) for name, found in rates.items()},
        "noise_over_copy": ratio(rates["noise"], rates["copy"]),
        "write_over_copy": ratio(rates["write"], rates["copy"]),
    }
