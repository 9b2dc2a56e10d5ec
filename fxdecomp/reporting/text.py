"""Numbers and layers in words, the same in the terminal and on the page."""

from __future__ import annotations

from fxdecomp.outcomes import Applied, Outcome, Skipped


def short(count: float) -> str:
    """A count in three digits, such as `1.24 M`.

    Example:
        >>> short(1_236_000)
        '1.24 M'
    """
    value, unit = float(count), ""
    for unit in ("", " k", " M", " G", " T"):  # noqa: B007 - the unit that is reached is used below
        if value < 999.5:
            break
        value /= 1000
    return f"{value:.3g}{unit}"


def change(before: int, after: int) -> str:
    """A count before and after, with the factor between them where there is one."""
    factor = f" (/{before / after:.2f})" if after and after != before else ""
    return f"{short(before)} -> {short(after)}{factor}"


def rank_text(rank: tuple[int, ...]) -> str:
    """`64x32`."""
    return "x".join(map(str, rank))


def method_text(outcome: Applied) -> str:
    """The method of a chain, and with which layers it shares all stages but the last.

    Example:
        >>> from types import SimpleNamespace
        >>> method_text(SimpleNamespace(site="a.q", method="svd", shares=("a.k", "a.v")))
        'svd, shared with k, v'
    """
    around = outcome.site.rpartition(".")[0]
    others = ", ".join(name.removeprefix(f"{around}." if around else "") for name in outcome.shares)
    return f"{outcome.method}, shared with {others}" if others else outcome.method


def error_text(outcome: Applied) -> str:
    """The error of a chain: what its output loses where that is known, else the weight's.

    Example:
        >>> from types import SimpleNamespace
        >>> error_text(SimpleNamespace(output_error=0.02, relative_error=0.3))
        '2.0% output'
    """
    if outcome.output_error is None:
        return f"{outcome.relative_error:.1%} weight"
    return f"{outcome.output_error:.1%} output"


def table_of(outcomes: tuple[Outcome, ...]) -> list[str]:
    """One line per layer under a header, in columns as wide as they need to be."""
    header = ("layer", "", "method", "rank", "error", "MACs", "params")
    rows = [header, *map(_row, outcomes)]
    columns = len(header)
    widths = [max(len(row[i]) for row in rows if len(row) == columns) for i in range(columns)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        if len(row) < columns:
            cells[-1] = row[-1]
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(outcome: Outcome) -> tuple[str, ...]:
    if isinstance(outcome, Skipped):
        cost = f"{short(outcome.macs)} MACs, {short(outcome.params)} params"
        return outcome.site, outcome.layer, f"left alone ({cost}): {outcome.sentence}"
    return (
        outcome.site,
        outcome.layer,
        method_text(outcome),
        rank_text(outcome.rank),
        error_text(outcome),
        change(outcome.macs_before, outcome.macs_after),
        change(outcome.params_before, outcome.params_after),
    )
