"""Schedules of what a router's softness and randomness depend on."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_non_negative, check_tensor, check_type
from moe_runtime._router import Router

Schedule = Callable[[int], float]


class RouterSchedule:
    """Change `gamma`, the entropy weight or the noise of routers from step to step.

    As a learning-rate scheduler: call `step()` after the optimiser's step, and keep
    `state_dict()` with the checkpoint.

    Parameters
    ----------
    module
        A model, or a router: every router in it that has what is scheduled follows.
    gamma
        From the number of steps done, which is 0 at once, to the width of the smooth step.
        `moe_gates.linear_schedule`, `cosine_schedule` and `exponential_schedule` with all but
        their first argument bound; or any function. Not scheduled by default.
    entropy_weight
        The same, for the weight of the built-in entropy penalty.
    noise_scale
        The same, for the noise of `TopKRouter`.

    Raises
    ------
    ValueError
        If nothing is scheduled, no router has what is, or a value is out of its range.

    Examples
    --------
    >>> from functools import partial
    >>> import moe_gates, moe_runtime
    >>> router = moe_runtime.CometRouter(6, 8, k=2)
    >>> gamma = partial(moe_gates.exponential_schedule, start=16.0, end=1.0, num_steps=4)
    >>> schedule = moe_runtime.RouterSchedule(router, gamma=gamma)
    >>> schedule.step()
    >>> router.gamma
    8.0
    >>> schedule.state_dict()
    {'num_steps': tensor(1)}
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        gamma: Schedule | None = None,
        entropy_weight: Schedule | None = None,
        noise_scale: Schedule | None = None,
    ) -> None:
        check_type("module", module, nn.Module, "a torch.nn.Module")
        given = {"gamma": gamma, "entropy_weight": entropy_weight, "noise_scale": noise_scale}
        self._schedules = {name: each for name, each in given.items() if each is not None}
        if not self._schedules:
            msg = f"`RouterSchedule` must be given one of {list(given)}, got none."
            raise ValueError(msg)
        routers = [each for each in module.modules() if isinstance(each, Router)]
        self._routers: dict[str, list[Router]] = {}
        for name, schedule in self._schedules.items():
            check_type(name, schedule, Callable, "a function of the step")  # type: ignore[arg-type]
            self._routers[name] = [router for router in routers if hasattr(router, name)]
            if not self._routers[name]:
                msg = f"`module` must hold a router with `{name}`, got none of {len(routers)}."
                raise ValueError(msg)
        self.num_steps = 0
        self._apply()

    def step(self) -> None:
        """Advance by one step and set the values of the next one."""
        self.num_steps += 1
        self._apply()

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs besides the schedules themselves: tensors only."""
        return {"num_steps": torch.tensor(self.num_steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state_dict` was taken, and set the values of that step.

        Raises
        ------
        ValueError
            If `state` is not that of a schedule.
        """
        if set(state) != {"num_steps"}:
            msg = f"`state` must hold num_steps and nothing else, got {sorted(state)}."
            raise ValueError(msg)
        check_tensor("num_steps", state["num_steps"])
        self.num_steps = int(state["num_steps"])
        self._apply()

    def _apply(self) -> None:
        for name, schedule in self._schedules.items():
            value = schedule(self.num_steps)
            if name == "gamma":
                moe_gates.check_gamma(value)
            else:
                check_non_negative(name, value)
            for router in self._routers[name]:
                # As a Python number, which a saved router keeps.
                setattr(router, name, float(value))
