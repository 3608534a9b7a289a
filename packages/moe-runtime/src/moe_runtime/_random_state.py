"""The state of torch's random numbers, as part of a training run."""

from collections.abc import Mapping

import torch
from torch import Tensor


class RandomState:
    """What torch draws next, for `training_tensors`: a resumed run draws what it would have drawn.

    Needed for a run to continue to the bit where something is drawn: dropout, the noise of
    `TopKRouter`, `ExactKRouter`, rows in random order. It is of the whole process: of the CPU, and
    of the current accelerator where there is one. Let it be the last of ``others``.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> random = moe_runtime.RandomState()
    >>> state = random.state_dict()
    >>> first = torch.rand(3)
    >>> random.load_state_dict(state)
    >>> torch.equal(torch.rand(3), first)
    True
    """

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of each generator, by the kind of its device."""
        state = {"cpu": torch.get_rng_state()}
        device = torch.accelerator.current_accelerator(check_available=True)
        if device is not None:
            state[device.type] = torch.get_device_module(device).get_rng_state()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Let the generators continue from there.

        Raises
        ------
        ValueError
            If the state is of other kinds of devices than are here; nothing is changed then.
        """
        kinds = sorted(self.state_dict())
        if sorted(state) != kinds:
            msg = f"`state` must be of {kinds}, got {sorted(state)}."
            raise ValueError(msg)
        torch.set_rng_state(state["cpu"])
        for kind in set(kinds) - {"cpu"}:
            torch.get_device_module(kind).set_rng_state(state[kind])
