"""Drawing a token equals the naive inverse of the distribution function, whatever stands at -inf."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl_warmup.engine.fast.sampling import draw

ALMOST_ONE = math.nextafter(1.0, 0.0)
EDGES = torch.tensor([[0.0, 1e-300, 0.5, ALMOST_ONE]], dtype=torch.float64)


def cumulated(row: Tensor) -> Tensor:
    """The distribution function of one row of logits, in float64."""
    return row.double().softmax(0).cumsum(0)


def naive(row: Tensor, uniform: float) -> int:
    """The first token at which the cumulated probability exceeds `uniform`."""
    for token, reached in enumerate(cumulated(row).tolist()):
        if reached > uniform:
            return token
    raise AssertionError(f"{uniform} is beyond the end")


def clear_of_edges(row: Tensor, uniforms: Tensor) -> Tensor:
    """Whether a uniform lies so far from every step of the function that float32 cannot put it on the other side."""
    return (uniforms[:, None] - cumulated(row)).abs().amin(1) > 1e-6


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 500])
@pytest.mark.parametrize("n", [1, 300])
def test_equals_the_naive_inverse(vocab, n):
    logits = torch.randn(3, vocab) * 2
    uniforms = torch.rand(3, n, dtype=torch.float64)
    tokens, logps = draw(logits, uniforms)
    assert tokens.shape == logps.shape == (3, n)
    assert logps.dtype == torch.float32
    checked = 0
    for row in range(3):
        clear = clear_of_edges(logits[row], uniforms[row])
        for uniform, token in zip(uniforms[row][clear].tolist(), tokens[row][clear].tolist(), strict=True):
            assert token == naive(logits[row], uniform)
        checked += int(clear.sum())
    assert checked >= 3 * n - n // 50
    torch.testing.assert_close(logps, logits.log_softmax(1).gather(1, tokens), rtol=0, atol=1e-5)


def test_by_hand():
    """Probabilities 1/8, 3/8, 1/2, exact in binary: a point on a step belongs to the token after it."""
    logits = torch.tensor([[1.0, 3.0, 4.0]]).log()
    points = torch.tensor([[0.0, 0.12, 0.13, 0.49, 0.51, ALMOST_ONE]], dtype=torch.float64)
    tokens, logps = draw(logits, points)
    assert tokens.tolist() == [[0, 0, 1, 1, 2, 2]]
    assert logps[0].tolist() == pytest.approx([math.log(p) for p in (1 / 8, 1 / 8, 3 / 8, 3 / 8, 1 / 2, 1 / 2)])


def with_possible(vocab: int, possible: list[int]) -> Tensor:
    logits = torch.full((1, vocab), -torch.inf)
    logits[0, possible] = torch.randn(len(possible)) * 3
    return logits


@pytest.mark.parametrize(
    ("vocab", "possible"),
    [
        (1, [0]),
        (64, [0]),
        (64, [63]),
        (65, [64]),  # alone in a block that is mostly filling
        (65, [63]),  # the last of its block, the filled one behind it is impossible
        (500, [130]),
        (500, [3, 499]),  # six blocks of nothing in between
        (500, [64, 127]),  # both ends of one block
        (500, list(range(128, 192))),
        (500, [0, 63, 64, 127, 128, 448, 499]),
        (500, list(range(1, 500, 2))),
    ],
)
def test_impossible_tokens_never_come_out(vocab, possible):
    logits = with_possible(vocab, possible)
    uniforms = torch.cat([EDGES, torch.rand(1, 2000, dtype=torch.float64)], 1)
    tokens, logps = draw(logits, uniforms)
    assert set(tokens[0].tolist()) <= set(possible)
    torch.testing.assert_close(logps, logits.log_softmax(1).gather(1, tokens), rtol=0, atol=1e-5)
    if len(possible) == 1:
        assert (logps == 0).all()
    assert (tokens[0, 0], tokens[0, 3]) == (possible[0], possible[-1])  # u = 0 and the last before 1


@pytest.mark.parametrize("edge", [0, 63, 64, 130, 255])
def test_the_ends_of_the_unit_interval_in_the_company_of_other_rows(edge):
    """Rows of one call have their impossible tokens at different places."""
    logits = torch.cat([with_possible(256, [edge]), torch.randn(1, 256), with_possible(256, [7, edge])])
    tokens, _ = draw(logits, EDGES.expand(3, -1))
    assert (tokens[0] == edge).all()
    assert (tokens[1, 0], tokens[1, 3]) == (0, 255)
    assert set(tokens[2].tolist()) <= {7, edge}


def test_a_token_too_rare_for_its_probability_to_be_written_is_not_drawn():
    """At 200 nats below the others a float32 probability is 0: such a token must not come out with log-probability -inf."""
    logits = torch.zeros(1, 130)
    logits[0, [0, 64, 129]] = -200.0
    tokens, logps = draw(logits, EDGES)
    assert not {0, 64, 129} & set(tokens[0].tolist())
    assert logps.isfinite().all()


def test_frequencies_of_a_peaked_row():
    """200 words of probability ~ 1/rank^1.5, shuffled: chi-square, every cell expects five draws or more."""
    draws, vocab = 40_000, 200
    logits = (-1.5 * torch.arange(1, vocab + 1).float().log())[torch.randperm(vocab)]
    tokens, _ = draw(logits[None], torch.rand(1, draws, dtype=torch.float64))
    counts = torch.bincount(tokens[0], minlength=vocab).double()
    expected = logits.double().softmax(0) * draws
    common = expected >= 5
    assert common.all()
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert 1 - torch.special.gammainc(torch.tensor((vocab - 1) / 2).double(), statistic / 2).item() > 1e-4


def test_a_point_that_rounding_has_put_at_the_very_end():
    """No uniform is 1, but a point may round to the end: it belongs to the last possible token, not to none."""
    for possible in ([5, 70], [63], [64], [129], [0, 128]):
        tokens, logps = draw(with_possible(130, possible), torch.ones(1, 1, dtype=torch.float64))
        assert tokens.item() == possible[-1]
        assert logps.isfinite().all()


def test_no_rows():
    """A process whose warmups have all ended still takes the steps of the others."""
    tokens, logps = draw(torch.zeros(0, 65), torch.zeros(0, 1, dtype=torch.float64))
    assert tokens.shape == logps.shape == (0, 1)
