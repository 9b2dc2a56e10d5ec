"""What a network may cost: `MACs`, `Params`, `Latency`, as a share of the dense network or absolutely."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, final

from fxdecomp.errors import PolicyError


class Counted(Protocol):
    """A layer, a candidate or a part of a network, of which is known what it takes."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates over all calls."""

    @property
    def params(self) -> int:
        """Weights and biases."""


@dataclass(frozen=True, slots=True)
class Budget(ABC):
    """An upper bound on a network's cost, and what cost is. Subclasses are final.

    Attributes:
        name: What plans and policies in files call it.
        unit: What is counted, in words.
        is_timed: Whether cost is measured, so that layers have one only once they were timed.
        target: A float in (0, 1] is a share of what the dense network costs, another number is absolute.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    is_timed: ClassVar[bool] = False
    target: float | int

    def __post_init__(self) -> None:
        number = isinstance(self.target, int | float) and not isinstance(self.target, bool)
        if not number or not math.isfinite(self.target) or self.target <= 0 or self._is_odd_share():
            raise PolicyError(
                f"{type(self).__name__}({self.target!r}): wanted a share of the dense network in (0, 1], "
                f"such as {type(self).__name__}(0.5), or {self.absolute}"
            )

    @property
    @abstractmethod
    def absolute(self) -> str:
        """What an absolute target is, in words."""

    @staticmethod
    @abstractmethod
    def cost_of(counted: Counted) -> float:
        """What is counted here of something."""

    @staticmethod
    def amount(cost: float) -> str:
        """A cost in words."""
        return f"{cost:,.0f}"

    @property
    def is_share(self) -> bool:
        """Whether the target is a share of the dense network."""
        return isinstance(self.target, float)

    def __str__(self) -> str:
        """How it was asked for, such as `MACs(0.5)`, for messages."""
        return f"{type(self).__name__}({format(self.target, '.4g' if self.is_share else ',')})"

    def limit(self, dense: float) -> float:
        """The most that a network may cost whose dense form costs `dense`."""
        return dense * self.target if self.is_share else float(self.target)

    def to_dict(self) -> dict[str, Any]:
        """The budget as plain data, such as `{"budget": "macs", "target": 0.5}`."""
        return {"budget": self.name} | {key: v for key, v in asdict(self).items() if v is not None}

    def _is_odd_share(self) -> bool:
        return isinstance(self.target, float) and self.target > 1


@final
@dataclass(frozen=True, slots=True)
class MACs(Budget):
    """Multiply-accumulates of the whole network, as `report` counts them: recurrent layers too.

    Example:
        >>> MACs(0.25).limit(1000)
        250.0
    """

    name: ClassVar[str] = "macs"
    unit: ClassVar[str] = "multiply-accumulates"

    @staticmethod
    def cost_of(counted: Counted) -> float:
        """Its multiply-accumulates."""
        return counted.macs

    @property
    def absolute(self) -> str:
        """A whole number."""
        return "a whole number of multiply-accumulates"


@final
@dataclass(frozen=True, slots=True)
class Params(Budget):
    """Parameters of the whole network, as `report` counts them.

    Example:
        >>> import fxdecomp
        >>> fxdecomp.Params(0.25).limit(1000)
        250.0
    """

    name: ClassVar[str] = "params"
    unit: ClassVar[str] = "parameters"

    @staticmethod
    def cost_of(counted: Counted) -> float:
        """Its weights and biases."""
        return counted.params

    @property
    def absolute(self) -> str:
        """A whole number."""
        return "a whole number of parameters"


@final
@dataclass(frozen=True, slots=True)
class Latency(Budget):
    """Measured time of one run of the whole network in ONNX Runtime, on inputs like those it was traced with.

    Attributes:
        target: A share of what the dense network takes, in (0, 1]; None where `seconds` are given.
        provider: The execution provider that is measured.
        threads: Its intra-op threads; 0 for every core of this process.
        seconds: An absolute time instead.
        options: Options of the provider, by name. Those that change only how quick it is are found by trying,
            once a machine, where they are not given.

    Example:
        >>> Latency(0.5).limit(0.030), Latency(seconds=0.010).limit(0.030)
        (0.015, 0.01)
    """

    name: ClassVar[str] = "latency"
    unit: ClassVar[str] = "predicted"
    is_timed: ClassVar[bool] = True
    target: float | int | None = None  # type: ignore[assignment]  # seconds are the other way to say it
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    seconds: float | None = None
    options: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if (self.target is None) == (self.seconds is None):
            raise PolicyError(
                "Latency takes a share, such as Latency(0.5), or seconds, such as Latency(seconds=0.01)"
            )
        if type(self.threads) is not int or self.threads < 0 or not isinstance(self.provider, str):
            raise PolicyError(
                f"Latency: provider {self.provider!r} and threads {self.threads!r}; wanted a name such as "
                "'CPUExecutionProvider' and a whole number"
            )
        options = {} if self.options is None else self.options
        if not isinstance(options, Mapping) or not all(isinstance(each, str) for each in options.values()):
            raise PolicyError(f"Latency: options {options!r}; wanted names and values, both text")
        if self.target is not None:
            if isinstance(self.target, int) and not isinstance(self.target, bool):
                object.__setattr__(self, "target", float(self.target))
            Budget.__post_init__(self)
        elif not isinstance(self.seconds, int | float) or not 0 < self.seconds < math.inf:
            raise PolicyError(f"Latency: seconds {self.seconds!r}; wanted a positive number")

    @staticmethod
    def cost_of(counted: Counted) -> float:
        """Its seconds; of candidates only, once they were timed."""
        taken: float | None = getattr(counted, "time_s", None)
        assert taken is not None, f"{counted} was not timed"
        return taken

    @staticmethod
    def amount(cost: float) -> str:
        """Milliseconds."""
        return f"{cost * 1e3:.3f} ms"

    @property
    def absolute(self) -> str:
        """Seconds are said by name."""
        return "seconds=0.01"

    def __str__(self) -> str:
        """How it was asked for, and where."""
        wanted = f"{self.target:.4g}" if self.is_share else f"seconds={self.seconds:.4g}"
        return f"Latency({wanted}) on {self.provider}, {self.threads} thread(s)"

    def limit(self, dense: float) -> float:
        """The most that a network may take whose dense form takes `dense` seconds."""
        return dense * self.target if self.target is not None else float(self.seconds or 0.0)


BUDGETS: tuple[type[Budget], ...] = (MACs, Params, Latency)


def budget_from_dict(data: Mapping[str, Any]) -> Budget:
    """The inverse of `Budget.to_dict`.

    Raises:
        PolicyError: The budget or one of its fields is not known.
    """
    if not isinstance(data, Mapping):
        raise PolicyError(f"budget is a table such as {{ budget = 'macs', target = 0.5 }}, got {data!r}")
    fields = {key: value for key, value in data.items() if key != "budget"}
    for kind in BUDGETS:
        if kind.name == data.get("budget"):
            if unknown := sorted(set(fields) - set(kind.__dataclass_fields__)):
                raise PolicyError(f"a budget of {kind.name!r} has no key {unknown[0]!r}")
            if not {"target", "seconds"} & set(fields):
                raise PolicyError(f"a budget of {kind.name!r} needs the key 'target'")
            return kind(**fields)
    names = ", ".join(repr(kind.name) for kind in BUDGETS)
    raise PolicyError(f"there is no budget {data.get('budget')!r}; use one of {names}")
