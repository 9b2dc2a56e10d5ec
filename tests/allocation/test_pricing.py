from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxdecomp.allocation.candidates import Candidate
from fxdecomp.allocation.pricing import with_times


class Machine:
    """Takes a time that depends on multiply-accumulates, and counts what it is asked."""

    def __init__(self, time_s: Callable[[int], float]) -> None:
        self.time_s, self.asked = time_s, list[int]()

    def __call__(self, each: Candidate) -> float:
        self.asked.append(each.macs)
        return self.time_s(each.macs)


def menu_of(macs: list[int]) -> list[Candidate]:
    return [Candidate("svd", (index + 1,), 0.1, each, each) for index, each in enumerate(macs)]


sizes = st.lists(st.integers(1, 10**9), min_size=1, max_size=40, unique=True)


@given(sizes, st.floats(0, 1), st.booleans())
def test_times_on_a_line_are_known_from_three(macs: list[int], start: float, up: bool) -> None:
    machine = Machine(lambda each: start + 1e-9 * each)
    found = with_times(menu_of(sorted(macs, reverse=not up)), machine)
    assert len(machine.asked) == min(3, len(macs))
    assert [each.time_s for each in found] == pytest.approx([machine.time_s(each.macs) for each in found])


@given(st.integers(3, 40), st.integers(1, 10**6), st.integers(0, 39))
def test_a_step_in_time_is_found(count: int, apart: int, where: int) -> None:
    macs = [apart * each for each in range(count, 0, -1)]
    step = macs[where % count]
    machine = Machine(lambda each: 1.0 if each < step else 2.0)
    found = with_times(menu_of(macs), machine)
    assert [each.time_s for each in found] == [machine.time_s(each) for each in macs]
    assert len(machine.asked) == len(set(machine.asked))


def test_no_candidate_is_left_without_a_time_of_its_method() -> None:
    noisy = Machine(lambda each: 1e-9 * each * (1 + 0.3 * (each % 7 > 3)))
    found = with_times(menu_of([*range(10**6, 10**5, -12_345)]), noisy)
    known = {each.macs: each.time_s for each in found}
    assert all(known[macs] == noisy.time_s(macs) for macs in noisy.asked)
    assert [each.rank for each in found] == [(index + 1,) for index in range(len(found))]
    for each in found:
        assert each.time_s == pytest.approx(noisy.time_s(each.macs), rel=0.35)
