"""The papers' own settings, literally, as arguments of `ZOSGD`.

All of them move in absolute space: attach with `coupled=False`, or a ValueError says so.
"""

from zoquant.optim.estimators import FZOO
from zoquant.optim.optimizer import ZOSGD
from zoquant.views.model_views import Views


def mezo(views: Views, *, lr: float = 1e-6, eps: float = 1e-3, seed: int = 0) -> ZOSGD:
    """Return MeZO: two-point, Gaussian, absolute space, no clip, SGD.

    The paper has 1e-6 or 1e-7 for OPT-13B.

    Source: MeZO (arXiv 2305.17333, algorithm 1 and table 15), batch 16, 20,000 steps, lr constant.
    """
    return ZOSGD(views, lr=lr, eps=eps, seed=seed, noise="gaussian", space="absolute")


def qzo(views: Views, *, lr: float = 1e-7, eps: float = 1e-3, clip: float = 100.0, seed: int = 0) -> ZOSGD:
    """Return QZO: MeZO on the scales alone, with the derivative clipped and the scales kept at 0 or above.

    What is kept from crossing zero is the stored scale; delta goes on below, where the paper forgets how far.
    A scale that is negative from the start keeps its sign.

    Source: QZO (arXiv 2505.13430, equations 4 to 6), of views of role `"scale"`, batch 16, 20,000 steps, lr constant.
    """
    return ZOSGD(views, lr=lr, eps=eps, clip=clip, seed=seed, noise="gaussian", space="absolute")


def fzoo(views: Views, *, lr: float = 1e-6, eps: float = 1e-3, probes: int = 8, seed: int = 0) -> ZOSGD:
    """Return FZOO: n one-sided Rademacher probes, the step divided by the standard deviation of their losses.

    Source: FZOO (arXiv 2506.09034, algorithm 1).
    """
    return ZOSGD(views, lr=lr, eps=eps, seed=seed, probes=probes, space="absolute", estimator=FZOO())
