"""Dropout is that of the field: as likely, as large, and independent."""

import pytest
import torch

from moe_benchmarks._experiments._dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_it_drops_as_many_as_it_says_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001)
    y = Dropout(p)(x)
    dropped = (y == 0).double()
    # Five standard errors of a million draws.
    assert dropped.mean() == pytest.approx(p, abs=0.0025)
    assert y.mean() == pytest.approx(1, abs=0.016)
    assert len(y.unique()) == 2
    flat = dropped.flatten()
    for lag in (1, 2, 3, 4, 1001):
        pair = torch.stack([flat[:-lag], flat[lag:]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.005
    for place in range(4):
        assert flat[place::4].mean() == pytest.approx(p, abs=0.005)


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5, 7), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y = Dropout(0.5)(torch.ones(shape, dtype=dtype))
    assert (y.shape, y.dtype) == (shape, dtype)
    assert set(y.flatten().tolist()) <= {0.0, 2.0}


def test_the_gradient_goes_where_the_value_went() -> None:
    x = torch.randn(50, 9, requires_grad=True)
    y = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, gradient * x)
    assert (gradient == 0).any()


def test_nothing_is_dropped_in_evaluation_or_with_probability_0() -> None:
    x = torch.randn(5, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_the_same_seed_drops_the_same() -> None:
    layer, x, drawn = Dropout(0.5), torch.ones(99), []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(torch.stack([layer(x), layer(x)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_wrong_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"`p` must be in \[0, 1\)"):
        Dropout(p)
