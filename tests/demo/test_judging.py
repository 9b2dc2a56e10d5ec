import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxdecomp.demo.judging import Reading, decode, judge, levenshtein
from fxdecomp.demo.lines import Lines, Split, render_lines
from fxdecomp.demo.recogniser import SYMBOLS, load_recogniser

A, B = SYMBOLS.index("a") + 1, SYMBOLS.index("b") + 1
SPACE = SYMBOLS.index(" ") + 1
short_texts = st.text("abc", max_size=7)


def scores_for(*rows):
    return torch.nn.functional.one_hot(torch.tensor(rows), 97).float()


def test_repeats_are_merged_and_blanks_separate_doubles():
    assert decode(scores_for([0, A, A, 0, A, B, B, 0], [B, 0, 0, 0, 0, 0, 0, A])) == ["aab", "ba"]
    assert decode(scores_for([0, 0, 0])) == [""]


def test_spaces_at_the_ends_are_dropped_and_others_kept():
    assert decode(scores_for([SPACE, 0, SPACE, A, SPACE, B, 0, SPACE])) == ["a b"]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_levenshtein_by_hand(a, b, distance):
    assert levenshtein(a, b) == distance


@given(short_texts, short_texts, short_texts)
def test_levenshtein_is_a_metric(a, b, c):
    ab = levenshtein(a, b)
    assert ab == levenshtein(b, a)
    assert (ab == 0) == (a == b)
    assert abs(len(a) - len(b)) <= ab <= max(len(a), len(b))
    assert levenshtein(a, c) <= ab + levenshtein(b, c)


def test_the_score_counts_lines_and_characters():
    answers = {0.0: [A, B], 1.0: [A, 0], 2.0: [0, 0]}

    def read(batch):
        return scores_for(*(answers[image.item()] for image in batch))

    lines = Lines(torch.arange(3.0).reshape(3, 1, 1, 1), ("ab", "ab", "bb"))
    assert judge(read, lines, batch_size=2) == Reading(exact=1 / 3, cer=3 / 6, count=3)


def test_no_lines_cannot_be_judged():
    with pytest.raises(ValueError, match="wanted at least 1"):
        judge(lambda batch: batch, Lines(torch.zeros(0, 1, 64, 8), ()))


def test_the_dense_recogniser_reads_what_was_drawn():
    reading = judge(load_recogniser(), render_lines(40, Split.JUDGE, seed=1))
    assert reading.exact >= 0.9
    assert reading.cer <= 0.01
