"""Published routers are settings of top-k; noise, bias and exact-k's draws do what they say."""

import pytest
import torch
from _reference import DIM, awake
from torch import Tensor, nn

import moe_gates
from moe_runtime import CosineScores, ExactKRouter, TopKRouter


def linear(layer: nn.Module | None, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return x @ layer.weight.T + layer.bias


@pytest.mark.parametrize("noise", ["normal", "learned"])
def test_noise_is_added_in_training_only_with_torchs_generator(noise: str) -> None:
    router = TopKRouter(DIM, 5, k=2, noise=noise, noise_scale=0.7)  # type: ignore[arg-type]
    x = torch.randn(40, DIM)
    torch.manual_seed(3)
    weights = router(x).weights
    torch.manual_seed(3)
    normal = torch.randn(40, 5)
    if noise == "learned":
        normal = normal * nn.functional.softplus(linear(router.noise_score, x))
    wanted = moe_gates.top_k_gate(linear(router.score, x), k=2, noise=0.7 * normal)
    torch.testing.assert_close(weights, wanted)
    still = moe_gates.top_k_gate(linear(router.score, x), k=2)
    assert not torch.equal((still == 0), (wanted == 0))
    torch.testing.assert_close(router.eval()(x).weights, still)
    router.train().hard = True
    torch.testing.assert_close(router(x).weights, still)


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_learned_noise_gives_its_parameters_a_gradient(noise_scale: float) -> None:
    router = TopKRouter(DIM, 5, k=2, noise="learned", noise_scale=noise_scale)
    router(torch.randn(40, DIM)).weights.square().sum().backward()
    for parameter in router.parameters():
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())


def test_learned_noise_that_is_not_drawn_gives_its_parameters_a_gradient_of_0() -> None:
    router = TopKRouter(DIM, 5, k=2, noise="learned")
    router.hard = True
    router(torch.randn(40, DIM)).weights.square().sum().backward()
    assert router.noise_score is not None
    for parameter in router.noise_score.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_groups_limit_where_experts_are_selected_from() -> None:
    router = awake(
        TopKRouter(
            DIM, 12, k=4, affinity="sigmoid", balancing_bias=True, num_groups=4, num_groups_kept=2
        )
    )
    weights = router(torch.randn(50, DIM)).slot_weights[:, 0]
    groups = (weights != 0).unflatten(-1, (4, 3)).any(-1).sum(-1)
    assert int(groups.max()) <= 2
    torch.testing.assert_close(weights.sum(-1), torch.ones(50))


def test_cosine_scores_do_not_depend_on_the_length_of_a_row() -> None:
    router = TopKRouter(DIM, 5, k=1, renormalize=False, score=CosineScores(DIM, 5))
    x = torch.randn(30, DIM)
    torch.testing.assert_close(router(x).weights, router(100 * x).weights)
    assert float(router(x).weights.detach().max()) <= 1


def test_a_score_may_be_any_module_and_stays_in_float32() -> None:
    score = nn.Sequential(nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, 5, bias=False))
    router = TopKRouter(DIM, 5, k=2, score=score).bfloat16()
    x = torch.randn(30, DIM).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        weights = router(x).weights
    assert weights.dtype is torch.float32
    wanted = moe_gates.top_k_gate(router.float().score(x.float()), k=2)
    torch.testing.assert_close(weights, wanted)


def balance(router: TopKRouter, x: Tensor, how: str) -> Tensor:
    for _ in range(300):
        if how == "sign":
            router.update_bias_by_sign(moe_gates.expert_load(router(x).weights), rate=3e-3)
        else:
            router.update_bias_by_quantile(x)
    load: Tensor = moe_gates.expert_load(router(x).weights)
    return load


@pytest.mark.parametrize("affinity", ["softmax", "sigmoid"])
@pytest.mark.parametrize("how", ["sign", "quantile"])
def test_a_bias_evens_the_load_and_only_the_update_moves_it(how: str, affinity: str) -> None:
    router = TopKRouter(DIM, 6, k=2, affinity=affinity, balancing_bias=True)  # type: ignore[arg-type]
    # A permutation that is not its own inverse, so that a wrong direction shows.
    router.set_permutation(torch.tensor([[1, 2, 3, 4, 5, 0]]))
    assert isinstance(router.score, nn.Linear)
    with torch.no_grad():
        router.score.bias[:2] += 1.0
    x = torch.randn(300, DIM)
    before = moe_gates.expert_load(router(x).weights)
    assert router.balancing_bias is not None
    assert not router.balancing_bias.any()
    after = balance(router, x, how)
    assert float(before.max() / before.mean()) > 1.5
    assert float(after.max() / after.mean()) < 1.1


def test_a_bias_changes_which_experts_but_no_weight_of_those() -> None:
    router = TopKRouter(DIM, 4, k=1, renormalize=False, affinity="sigmoid", balancing_bias=True)
    assert router.balancing_bias is not None
    x = torch.randn(20, DIM)
    router.balancing_bias[2] = 10
    weights = router(x).weights
    torch.testing.assert_close(weights[:, 2], linear(router.score, x).sigmoid()[:, 2])


def test_a_bias_stays_float32_in_a_half_precision_model_and_moves_by_small_steps() -> None:
    router = TopKRouter(DIM, 3, k=2, balancing_bias=True)
    router.update_bias_by_sign(torch.tensor([3.0, 2.0, 1.0]), rate=0.3)
    before = router.balancing_bias
    router.bfloat16()
    assert isinstance(router.score, nn.Linear)
    assert router.score.weight.dtype is torch.bfloat16
    assert router.balancing_bias is not None
    assert before is not None
    assert torch.equal(router.balancing_bias, before)
    router.update_bias_by_sign(torch.tensor([3.0, 2.0, 1.0]), rate=1e-4)
    torch.testing.assert_close(router.balancing_bias, torch.tensor([-0.3001, 0.0, 0.3001]))
    assert router.double().balancing_bias.dtype is torch.float64  # type: ignore[union-attr]


def test_a_bias_that_is_not_there_is_not_updated() -> None:
    router = TopKRouter(DIM, 4, k=2)
    with pytest.raises(ValueError, match="`balancing_bias` must be True"):
        router.update_bias_by_sign(torch.ones(4))
    with pytest.raises(ValueError, match="`balancing_bias` must be True"):
        router.update_bias_by_quantile(torch.ones(3, DIM))
    router = TopKRouter(DIM, 4, k=2, balancing_bias=True)
    with pytest.raises(ValueError, match="`load` must have shape"):
        router.update_bias_by_sign(torch.ones(5))


def test_exact_k_draws_each_expert_with_its_marginal_probability() -> None:
    router = ExactKRouter(DIM, 5, k=2)
    x = torch.randn(1, DIM)
    wanted = moe_gates.subset_marginals(linear(router.score, x), k=2)[0]
    weights = router(x.expand(20_000, -1)).weights
    assert set(weights.detach().unique().tolist()) == {0.0, 0.5}
    # Three standard errors of a share of 20,000 draws are 0.011.
    torch.testing.assert_close((weights != 0).float().mean(0), wanted, rtol=0, atol=0.011)
    assert int((router.eval()(x).weights != 0).sum()) == 2
