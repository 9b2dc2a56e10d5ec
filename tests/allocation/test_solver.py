import itertools
import time

import numpy as np
import pytest

from fxdecomp.allocation.solver import GAP, Menu, lagrangian, least_cost, solve


def random_menus(count: int, options: int, seed: int) -> list[Menu]:
    rng = np.random.default_rng(seed)
    menus = []
    for _ in range(count):
        costs = np.sort(rng.uniform(0.05, 1, options))[::-1] * rng.uniform(1, 100)
        damages = np.sort(rng.uniform(0, 1, options)) ** 2 * rng.uniform(0.1, 10)
        damages[0] = 0
        menus.append(Menu(costs, damages))
    return menus


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_finds_the_optimum_that_enumeration_finds(seed: int, share: float) -> None:
    menus = random_menus(5, 6, seed)
    limit = share * sum(menu.costs[0] for menu in menus)
    best = min(
        (
            sum(menu.damages[i] for menu, i in zip(menus, picks, strict=True))
            for picks in itertools.product(range(6), repeat=5)
            if sum(menu.costs[i] for menu, i in zip(menus, picks, strict=True)) <= limit
        ),
        default=None,
    )
    found = solve(menus, limit)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.cost <= limit
    assert best <= found.damage <= best * (1 + 2 * GAP)
    assert found.bound <= best * (1 + 1e-9)


def test_the_lagrangian_bound_holds_and_its_choice_fits() -> None:
    for seed in range(20):
        menus = random_menus(30, 12, seed)
        limit = 0.5 * sum(menu.costs[0] for menu in menus)
        if least_cost(menus) > limit:
            continue
        found, exact = lagrangian(menus, limit), solve(menus, limit)
        assert exact is not None
        assert found.cost <= limit
        assert found.bound <= exact.damage <= found.damage
        assert found.damage <= 1.2 * found.bound


def test_the_dense_layers_are_the_answer_where_they_fit() -> None:
    menus = random_menus(4, 5, 0)
    found = solve(menus, sum(menu.costs[0] for menu in menus))
    assert found is not None
    assert found.options == (0, 0, 0, 0)
    assert found.damage == 0


def test_nothing_fits_below_the_least_cost() -> None:
    menus = random_menus(4, 5, 1)
    assert solve(menus, least_cost(menus) * 0.999) is None
    found = solve(menus, least_cost(menus) * 1.000001)
    assert found is not None
    assert found.options == (4, 4, 4, 4)


def test_five_hundred_layers_take_less_than_five_seconds() -> None:
    menus = random_menus(500, 40, 7)
    start = time.perf_counter()
    found = solve(menus, 0.4 * sum(menu.costs[0] for menu in menus))
    taken = time.perf_counter() - start
    assert found is not None
    assert taken < 5
    assert found.damage <= found.bound * (1 + 10 * GAP)
