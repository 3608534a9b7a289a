"""What the gates of a model do, as plain numbers: load, dead experts, non-zeros, saturation.

Axes: T rows, E experts, K slots, G gates.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_type
from moe_runtime._mixture import MixtureOutput, MultiGateMixtureOfExperts
from moe_runtime._router import Router, Routing
from moe_runtime._untraced import untraced

# Path of a mixture that is the model itself.
ROOT = "mixture"


class Watcher:
    """Count what every mixture in a model does, forward by forward, until it is closed.

    Counts stay on the device and are read only by `compute` and `loads`, so that watching waits
    for nothing. Rows that a mixture's ``mask`` leaves out, and what activation checkpointing
    computes again, are not counted; rows that an export is verified on are. In a distributed run
    each process counts its own rows.

    Parameters
    ----------
    model
        A model with mixtures in it, or a mixture. Compile it after this, not before; a
        compiled graph breaks at each mixture while it is watched.

    Raises
    ------
    ValueError
        If there is no mixture in the model.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> router = moe_runtime.TopKRouter(6, 3, k=2)
    >>> model = torch.nn.ModuleDict(
    ...     {"moe": moe_runtime.MixtureOfExperts(router, moe_runtime.Experts(3, (6, 4)))}
    ... )
    >>> with moe_runtime.Watcher(model) as watcher:
    ...     for batch in torch.randn(2, 5, 6):
    ...         output = model["moe"](batch)
    >>> numbers = watcher.compute()
    >>> numbers["moe/rows"], numbers["moe/experts_per_row"]
    (10, 2.0)
    >>> sorted(name for name in numbers if "load" in name)  # doctest: +NORMALIZE_WHITESPACE
    ['moe/largest_load', 'moe/load/0', 'moe/load/1', 'moe/load/2', 'moe/smallest_load']
    """

    def __init__(self, model: nn.Module) -> None:
        check_type("model", model, nn.Module, "a torch.nn.Module")
        self._mixtures = {
            path or ROOT: module
            for path, module in model.named_modules()
            if isinstance(module, MultiGateMixtureOfExperts)
        }
        if not self._mixtures:
            msg = f"`model` must contain a mixture, got a {type(model).__name__} without one."
            raise ValueError(msg)
        # By module: a router that serves several gates is counted once for all of them.
        self._tallies: dict[nn.Module, dict[str, Tensor]] = {}
        # Mixtures whose forward goes on: a router that is asked outside of it is not counted.
        self._num_running = 0
        self._hooks = []
        for mixture in self._mixtures.values():
            self._hooks += [
                # Before those of others, of which one may raise: `_leave` is called then, too.
                mixture.register_forward_pre_hook(self._enter, prepend=True),
                mixture.register_forward_hook(self._saw_mixture, with_kwargs=True),
                mixture.register_forward_hook(self._leave, always_call=True),
            ]
        routers = {each for mixture in self._mixtures.values() for each in mixture.routers}
        self._hooks += [router.register_forward_hook(self._saw_router) for router in routers]

    def compute(self) -> dict[str, float]:
        """Return the numbers since the last `reset`, by the path of the mixture in the model.

        Returns
        -------
        dict of str to int or float
            For a mixture at ``path``: ``path/rows``. With several gates, ``path/union_per_row``,
            the experts that a row computes, and for each gate g, with ``path/gateg`` instead of
            ``path``, what is for one gate ``path/...``:

            - ``experts_per_row``, ``most_experts``: mean and largest number of non-zero weights;
            - ``load/e``: share of the rows that use expert e; ``smallest_load``, ``largest_load``;
            - ``dead_experts``: number of experts that no row used;
            - ``unsaturated_share``: share of (row, slot) that select more than one expert, where
              a hard slot selects one, as those of COMET and DSelect-k;
            - ``duplicates_per_row``: selections of an expert that another slot of the row has
              selected too, where there are several slots.

            Without rows all experts are dead, and the other numbers 0.
        """
        numbers: dict[str, float] = {}
        for path, mixture in self._mixtures.items():
            tally = _read(self._tallies.get(mixture, {}))
            num_rows = int(tally.get("rows", 0))
            numbers[f"{path}/rows"] = num_rows
            num_gates = len(mixture.routers)
            if num_gates > 1:
                numbers[f"{path}/union_per_row"] = _share(tally.get("union", 0), num_rows)
            for gate, router in enumerate(mixture.routers):
                prefix = path if num_gates == 1 else f"{path}/gate{gate}"
                load_E = self._load(mixture)[gate].tolist()
                of_gate = {
                    "experts_per_row": sum(load_E),
                    "most_experts": tally["most"][gate] if tally else 0,
                    "dead_experts": sum(load == 0 for load in load_E),
                    "smallest_load": min(load_E),
                    "largest_load": max(load_E),
                    **self._of_slots(router),
                    **{f"load/{expert}": load for expert, load in enumerate(load_E)},
                }
                numbers |= {f"{prefix}/{name}": each for name, each in of_gate.items()}
        return numbers

    def loads(self) -> dict[str, Tensor]:
        """Return the load of each mixture by path: (G, E) float64, shares of its rows."""
        return {path: self._load(mixture) for path, mixture in self._mixtures.items()}

    def reset(self) -> None:
        """Begin to count anew, for instance after each time that numbers were written."""
        self._tallies.clear()

    def close(self) -> None:
        """Stop counting; the numbers stay."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        """Watch within the block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop counting."""
        self.close()

    def _load(self, mixture: nn.Module) -> Tensor:
        tally = self._tallies.get(mixture)
        if tally is None:
            assert isinstance(mixture, MultiGateMixtureOfExperts)
            shape = (len(mixture.routers), mixture.experts.num_experts)
            return torch.zeros(shape, dtype=torch.float64)
        return tally["active"].cpu().double() / max(1, int(tally["rows"]))

    def _of_slots(self, router: nn.Module) -> dict[str, float]:
        assert isinstance(router, Router)
        tally = _read(self._tallies.get(router, {}))
        num_rows, numbers = int(tally.get("rows", 0)), {}
        if _slots_select_one(router):
            unsaturated = tally.get("unsaturated", 0)
            numbers["unsaturated_share"] = _share(unsaturated, num_rows * router.num_slots)
        if router.num_slots > 1:
            numbers["duplicates_per_row"] = _share(tally.get("duplicates", 0), num_rows)
        return numbers

    @untraced
    def _enter(self, _mixture: nn.Module, _args: tuple[Any, ...]) -> None:
        self._num_running += 1

    @untraced
    def _leave(self, _mixture: nn.Module, _args: tuple[Any, ...], _output: object) -> None:
        self._num_running = max(0, self._num_running - 1)

    @untraced
    @torch.no_grad()
    def _saw_mixture(
        self,
        mixture: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: MixtureOutput,
    ) -> None:
        if _is_not_counted():
            return
        assert isinstance(mixture, MultiGateMixtureOfExperts)
        weights_GTE = output.weights.reshape(len(mixture.routers), -1, output.weights.shape[-1])
        mask = inspect.signature(mixture.forward).bind(*args, **kwargs).arguments.get("mask")
        num_rows = weights_GTE.new_full((), weights_GTE.shape[1], dtype=torch.int64)
        per_row_GT = moe_gates.count_nonzero(weights_GTE, xp=xp)
        # A row beyond the last, so that there is a largest of none.
        most_G = nn.functional.pad(per_row_GT, (0, 1)).amax(-1)
        tally = self._tallies.setdefault(mixture, {})
        _add(tally, "rows", num_rows if mask is None else mask.sum())
        _add(tally, "active", (weights_GTE != 0).sum(1))
        _add(tally, "union", moe_gates.count_union(weights_GTE.movedim(0, -2), xp=xp).sum())
        tally["most"] = torch.maximum(tally.get("most", most_G), most_G)

    @untraced
    @torch.no_grad()
    def _saw_router(self, router: nn.Module, _args: tuple[Any, ...], output: Routing) -> None:
        if not self._num_running or _is_not_counted():
            return
        assert isinstance(router, Router)
        slots_TKE = output.slot_weights.reshape(-1, *output.slot_weights.shape[-2:])
        tally = self._tallies.setdefault(router, {})
        _add(tally, "rows", torch.tensor(slots_TKE.shape[0]))
        if _slots_select_one(router):
            _add(tally, "unsaturated", (moe_gates.count_nonzero(slots_TKE, xp=xp) > 1).sum())
        if router.num_slots > 1:
            by_expert_TKE = moe_gates.permute(slots_TKE, router.permutation, xp=xp)
            _add(tally, "duplicates", moe_gates.count_duplicates(by_expert_TKE, xp=xp).sum())


def _slots_select_one(router: Router) -> bool:
    """Whether each slot of a router selects one expert once it is hard."""
    return router.k == router.num_slots


def _add(tally: dict[str, Tensor], name: str, count: Tensor) -> None:
    tally[name] = tally[name] + count if name in tally else count


def _read(tally: Mapping[str, Tensor]) -> dict[str, Any]:
    """Bring counts from the device, as Python's integers."""
    return {name: count.tolist() for name, count in tally.items()}


def _share(count: float, total: int) -> float:
    return count / max(1, total)


def _is_not_counted() -> bool:
    """Whether this forward is none of its own.

    Inside a backward activation checkpointing does one again; an export looks at one without
    numbers.
    """
    # torch (2.13) has no public question for this; its own module tracker asks the same one.
    inside: Callable[[], int] = torch._C._current_graph_task_id  # noqa: SLF001
    return inside() != -1 or torch.compiler.is_exporting()
