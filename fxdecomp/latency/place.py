"""`Place`: where times are taken. Times of different places are never compared, nor kept under one name."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from fxdecomp.errors import PolicyError
from fxdecomp.export.lowering import write_lowered
from fxdecomp.export.machine import machine
from fxdecomp.export.sessions import (
    CPU,
    available_providers,
    bound_run,
    onnxruntime,
    open_session,
    thread_count,
)
from fxdecomp.latency.chain_graphs import Network
from fxdecomp.providers import Provider, described

Feed = Mapping[str, NDArray[Any]]


class Settings(TypedDict):
    """A place, as `benchmark` takes it."""

    providers: tuple[str]
    threads: int
    provider_options: dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Place:
    """A provider as it is run.

    Attributes:
        provider: The execution provider.
        threads: Its threads; 0 for every core of this process.
        options: Its options, beside those of its description.
        precision: float32, float16 or int8: what the small networks compute in.

    Raises:
        PolicyError: This onnxruntime has no such provider.
    """

    provider: str = CPU
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    precision: str = "float32"

    def __post_init__(self) -> None:
        offered = available_providers()
        if self.provider not in offered:
            raise PolicyError(
                f"Latency: this onnxruntime has no {self.provider}; it has {', '.join(offered)}"
            )

    @property
    def description(self) -> Provider:
        """What is known of the provider."""
        return described(self.provider)

    @property
    def settings(self) -> Settings:
        """The same for `benchmark`."""
        return {
            "providers": (self.provider,),
            "threads": self.threads,
            "provider_options": {self.provider: dict(self.options)},
        }

    def key(self) -> dict[str, Any]:
        """What times are kept by: provider, version, processor, threads, type, options."""
        options = self.description.settings(thread_count(self.threads), self.options)
        return {
            "format": 1,
            "provider": self.provider,
            "version": onnxruntime().__version__,
            "processor": machine()["processor"],
            "threads": thread_count(self.threads),
            "dtype": self.precision,
        } | ({"options": options} if options else {})

    @contextmanager
    def written(self, network: Network) -> Iterator[tuple[Path, Feed]]:
        """A small network as a file in this place's precision, and its inputs."""
        draw = np.random.default_rng(0).standard_normal
        feed = {name: draw(shape).astype(np.float32) for name, shape in network.inputs.items()}
        with tempfile.TemporaryDirectory() as folder:
            yield write_lowered(network.model, Path(folder), self.precision, feed), feed

    def run_of(self, network: Network) -> Callable[[], float]:
        """A small network as a call that runs it once and gives the seconds that it took."""
        with self.written(network) as (path, feed):
            session = open_session(
                path, provider=self.provider, provider_options=self.options, threads=self.threads
            )
        run = bound_run(session, self.provider, feed)

        def timed() -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        return timed
