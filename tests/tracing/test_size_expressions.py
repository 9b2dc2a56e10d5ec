"""Comparisons of sizes are computed as Python would; nothing else is taken."""

import pytest
import torch

from fxdecomp.tracing.size_expressions import NotOfSizes, check_sizes, evaluate_sizes

X = torch.zeros(2, 12, 5).transpose(0, 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(x.shape[0] // 4) * 3 - n % 4 == 6", True),
        ("x.size()[1] != 2 or not (x.stride()[0] == 5 and n <= 7)", False),
        ("2 < n < 7", False),
        ("x.storage_offset() == 0", True),
        ("max(n, x.shape[2]) ** 2 / 2", 24.5),
        ("math.floor(-0.5) + (1 if n > 3 else 2)", 0),
        ("mode == 'mean'", True),
        ("nothing is None", True),
        ("n == math.inf", False),
        ("-n + int(True)", -6),
    ],
)
def test_the_value_is_pythons(text: str, value: object) -> None:
    assert evaluate_sizes(text, {"x": X, "n": 7, "mode": "mean", "nothing": None}) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true') == 0",
        "x.__class__ == 3",
        "(lambda: 1)() == 1",
        "[y for y in x] == 1",
        "x.shape.__len__() == 1",
        "x[x] == 1",
        "eval('1') == 1",
        "max(1, key=x) == 1",
        "f'{x}' == '1'",
        "9 ** 9 ** 9 > 1",
        "9 ** n > 1",
        "(x := 3) == 3",
        "mode == '' or exit() or ''",
        "x.shape[0] ==",
        "(" * 5000 + "1" + ")" * 5000,
        "1 + " * 20_000 + "1",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(NotOfSizes):
        check_sizes(text)
    with pytest.raises(NotOfSizes):
        evaluate_sizes(text, {"x": X, "n": 7, "mode": "mean"})
