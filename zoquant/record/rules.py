"""Update rules: from the estimated gradient g = mean over probes of d · z to the move of delta.

A rule is a frozen set of numbers; what it remembers lies in float32 tensors of the size of delta, which exist only when
it asks for some. Every rule moves delta ← (1 − lr · decay) · delta − lr · transform(g): the decay pulls theta back to
its base, decoupled from the gradient (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, with
the base in the place of zero). A product and a sum are two roundings, never a fused one: a run replays anywhere.

A rule has a `name`, that files and the command line use, `states`, the number of tensors that it remembers, and

- `transform(g, state, count, scratch)`, which returns the direction of move number `count`, from 1, for one stretch of
  delta: g is the estimated gradient, float32 `[n]`, that may be overwritten and returned; state are `states` tensors
  `[n]` of zeros at first, changed in place; scratch, `[n]`, is free to use;
- `gain(rms)`, how far a step of lr 1 goes in the long run, as rms over elements, when g has this rms.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

_LEAST = 2.0**-126


@dataclass(frozen=True)
class SGD:
    """delta ← delta − lr · g. Remembers nothing.

    Source: MeZO (arXiv 2305.17333, algorithm 1).
    """

    name: ClassVar[str] = "sgd"
    states: ClassVar[int] = 0

    def transform(self, g: Tensor, state: Sequence[Tensor], count: int, scratch: Tensor) -> Tensor:
        return g

    def gain(self, rms: float) -> float:
        return rms


@dataclass(frozen=True)
class Momentum:
    """m ← beta · m + g, delta ← delta − lr · m.

    Attributes:
        beta: what is kept of m; the sum of all moves is 1 / (1 − beta) times that of `SGD`.

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964, as torch.optim has it.
    """

    beta: float = 0.9

    name: ClassVar[str] = "momentum"
    states: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_share("momentum: beta", self.beta)

    def transform(self, g: Tensor, state: Sequence[Tensor], count: int, scratch: Tensor) -> Tensor:
        return g.copy_(state[0].mul_(self.beta).add_(g))

    def gain(self, rms: float) -> float:
        return rms / (1 - self.beta)


@dataclass(frozen=True)
class Sign:
    """delta ← delta − lr · sign(g): every element moves by lr. Remembers nothing.

    Source: Liu, Chen, Chen, Hong, "signSGD via zeroth-order oracle", ICLR 2019.
    """

    name: ClassVar[str] = "sign"
    states: ClassVar[int] = 0

    def transform(self, g: Tensor, state: Sequence[Tensor], count: int, scratch: Tensor) -> Tensor:
        return g.sign_()

    def gain(self, rms: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Adam:
    """m ← b1 · m + (1 − b1) · g, v ← b2 · v + (1 − b2) · g², delta ← delta − lr · m̂ / (√v̂ + tiny).

    m̂ and v̂ are m / (1 − b1ᵗ) and v / (1 − b2ᵗ) after t moves.

    Attributes:
        b1: what is kept of m.
        b2: what is kept of v.
        tiny: keeps the quotient finite, in units of g.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
    """

    b1: float = 0.9
    b2: float = 0.999
    tiny: float = 1e-8

    name: ClassVar[str] = "adam"
    states: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check_share("adam: b1", self.b1)
        _check_share("adam: b2", self.b2)
        if not _LEAST <= self.tiny < math.inf:
            raise ValueError(f"adam: tiny is {self.tiny!r}, expected at least {_LEAST:.1e}, which float32 holds.")

    def transform(self, g: Tensor, state: Sequence[Tensor], count: int, scratch: Tensor) -> Tensor:
        m, v = state
        v.mul_(self.b2).add_(scratch.copy_(g).mul_(g).mul_(1 - self.b2))
        m.mul_(self.b1).add_(g.mul_(1 - self.b1))
        scratch.copy_(v).mul_(1 / (1 - self.b2**count)).sqrt_().add_(self.tiny)
        return g.copy_(m).mul_(1 / (1 - self.b1**count)).div_(scratch)

    def gain(self, rms: float) -> float:
        return 1.0


Rule = SGD | Momentum | Sign | Adam
RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (SGD, Momentum, Sign, Adam)}


def rule_to_dict(rule: Rule) -> dict[str, Any]:
    """Return a rule as plain data.

    Raises:
        ValueError: the rule is not one of `RULES`: a trajectory could not name it.
    """
    if type(rule) not in RULES.values():
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(RULES)}.")
    return {"name": rule.name, **asdict(rule)}


def rule_from_dict(state: dict[str, Any]) -> Rule:
    """Return the rule that `rule_to_dict` described.

    Raises:
        ValueError: there is no such rule, or a number is out of its range.
    """
    numbers = {name: value for name, value in state.items() if name != "name"}
    if state.get("name") not in RULES:
        raise ValueError(f"rule is {state.get('name')!r}, expected one of {', '.join(RULES)}.")
    try:
        return RULES[state["name"]](**numbers)
    except TypeError as error:
        raise ValueError(f"rule {state['name']} has no {', '.join(numbers)}.") from error


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}, expected from 0 to below 1.")
