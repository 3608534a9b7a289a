"""Allocate what a kernel writes, choose its tiles, and launch it.

Axes: T rows, D input features, O output features, E experts, G gates, P room for pairs, M and
N the widths of a gradient.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from moe_runtime._triton import _kernel_products as products
from moe_runtime._triton import _kernel_rows as rows
from moe_runtime._triton._blocks import (
    GROUP,
    MANY_PAIRS,
    Blocks,
    Kind,
    Table,
    count_programs,
)
from moe_runtime._triton._plan import DevicePlan

# Rows and columns that one program of a kernel without products holds at a time.
FEW_ROWS, COLUMNS = 4, 256


class Layer(NamedTuple):
    """One layer of all experts."""

    weight: Tensor  # (E, O, D); O is doubled in a gated layer
    bias: Tensor | None  # (E, O)
    activation: str
    is_gated: bool

    @property
    def width(self) -> int:
        """Features of the layer's output, after the activation."""
        return self.weight.shape[1] // (2 if self.is_gated else 1)


class Launcher(NamedTuple):
    """What all launches of one mixture share."""

    plan: DevicePlan
    table: Table
    precision: str  # of float32 products: "ieee" or "tf32"
    interpreted: bool

    def blocks(self, product: str, x: Tensor) -> Blocks:
        """Choose a tile by the mean number of pairs of an expert."""
        many = self.plan.room >= MANY_PAIRS * self.plan.num_experts
        return self.table[Kind(product, x.element_size(), many)]

    def output(self, x: Tensor, layer: Layer, *, gathers: bool, keeps: bool) -> tuple[Tensor, ...]:
        """Return z and y = activation(z) of a layer, by pair; z only if it is kept."""
        blocks = self.blocks("gated output" if layer.is_gated else "output", x)
        num_experts, width, depth = layer.weight.shape
        z = x.new_empty(self.plan.room if keeps else 0, width)
        y = x.new_empty(self.plan.room, layer.width)
        if self.plan.room:
            products.output_kernel[(count_programs(x, blocks),)](
                x,
                self.plan.row_P,
                layer.weight,
                x if layer.bias is None else layer.bias,
                z,
                y,
                self.plan.pair_start,
                num_experts,
                layer.width,
                depth,
                ACTIVATION=layer.activation,
                IS_GATED=layer.is_gated,
                GATHERS=gathers,
                HAS_BIAS=layer.bias is not None,
                STORES_Z=keeps,
                IS_EVEN=depth % blocks.k == 0,
                **self._constants(blocks),
                PADDED_E=triton.next_power_of_2(num_experts),
            )
        return z, y

    def input_gradient(
        self, grad: Tensor, layer: Layer, before: Layer, z: Tensor, gate: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient of z, y = activation(z), and that of `gate` in parts of N."""
        blocks = self.blocks("input gradient", grad)
        size_n = before.width
        y = grad.new_empty(self.plan.room, size_n)
        parts = -(-size_n // blocks.n) if gate is not None else 0
        grad_gate = grad.new_empty(self.plan.room, parts, dtype=torch.float32)
        grad_z = self._input_gradient(grad, layer, before, (z, gate, y, grad_gate), blocks)
        return grad_z, y, grad_gate

    def first_input_gradient(self, grad: Tensor, layer: Layer) -> Tensor:
        """Return the gradient of the rows, by pair: (P, D)."""
        return self._input_gradient(
            grad, layer, None, (grad, None, grad, grad), self.blocks("input gradient", grad)
        )

    def _input_gradient(
        self,
        grad: Tensor,
        layer: Layer,
        before: Layer | None,
        arrays: tuple[Tensor, Tensor | None, Tensor, Tensor],
        blocks: Blocks,
    ) -> Tensor:
        z, gate, y, grad_gate = arrays
        num_experts, size_k, size_n = layer.weight.shape
        is_gated = before is not None and before.is_gated
        grad_z = grad.new_empty(self.plan.room, size_n * (2 if is_gated else 1))
        if self.plan.room:
            products.input_gradient_kernel[(count_programs(grad, blocks),)](
                grad,
                self.plan.row_P,
                layer.weight,
                z,
                grad if gate is None else gate,
                grad_z,
                y,
                grad_gate,
                self.plan.pair_start,
                num_experts,
                size_n,
                size_k,
                ACTIVATION="identity" if before is None else before.activation,
                IS_GATED=is_gated,
                IS_FIRST=before is None,
                WEIGHS=gate is not None,
                IS_EVEN=size_k % blocks.k == 0,
                **self._constants(blocks),
                PADDED_E=triton.next_power_of_2(num_experts),
            )
        return grad_z

    def weight_gradient(
        self, grad: Tensor, x: Tensor, weight: Tensor, *, gathers_grad: bool, gathers_x: bool
    ) -> Tensor:
        """Return the gradient (E, O, D) of a layer's weight; zeros for experts without pairs."""
        blocks = self.blocks("weight gradient", x)
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        products.weight_gradient_kernel[(count_programs(x, blocks),)](
            grad,
            self.plan.row_P,
            x,
            self.plan.row_P,
            grad_weight,
            self.plan.pair_start,
            *weight.shape,
            GATHERS_GRAD=gathers_grad,
            GATHERS_X=gathers_x,
            **self._constants(blocks),
        )
        return grad_weight

    def bias_gradient(self, grad: Tensor, bias: Tensor, gate: Tensor | None) -> Tensor:
        """Return the gradient (E, O) of a bias; with `gate`, of rows that it weighs."""
        num_experts, size_n = bias.shape
        grad_bias = torch.empty_like(bias, memory_format=torch.contiguous_format)
        rows.bias_gradient_kernel[(num_experts, triton.cdiv(size_n, 64))](
            grad,
            grad if gate is None else gate,
            self.plan.row_P,
            grad_bias,
            self.plan.pair_start,
            size_n,
            WEIGHS=gate is not None,
            BLOCK_P=32,
            BLOCK_N=64,
            enable_fp_fusion=True,
        )
        return grad_bias

    def sum_by_row(self, y_PN: Tensor, gates_GP: Tensor | None) -> Tensor:
        """Add the pairs of each row, weighted or not, in the order of experts: (G or 1, T, N)."""
        num_gates, num_rows = 1 if gates_GP is None else gates_GP.shape[0], self.plan.num_rows
        out = y_PN.new_empty(num_gates, num_rows, y_PN.shape[1])
        if out.numel():
            rows.sum_by_row_kernel[self._grid(num_rows, y_PN.shape[1], num_gates)](
                y_PN,
                y_PN if gates_GP is None else gates_GP,
                self.plan.by_row_P,
                self.plan.row_start,
                out,
                num_rows,
                self.plan.room,
                y_PN.shape[1],
                WEIGHS=gates_GP is not None,
                **self._row_constants(),
            )
        return out

    def gate_gradient(
        self, grad_GTO: Tensor, values: Tensor, *, activation: str, is_gated: bool, by_expert: bool
    ) -> Tensor:
        """Return <gradient of the output, value> of each gate and pair: (G, P)."""
        num_gates, num_rows, size_n = grad_GTO.shape
        grad_gates = grad_GTO.new_empty(num_gates, self.plan.room, dtype=torch.float32)
        if grad_gates.numel():
            grid = self._grid(num_rows, 1, num_gates)
            rows.gate_gradient_kernel[(grid[0], grid[2])](
                grad_GTO,
                values,
                self.plan.expert_P,
                self.plan.by_row_P,
                self.plan.row_start,
                grad_gates,
                num_rows,
                self.plan.room,
                size_n,
                ACTIVATION=activation,
                IS_GATED=is_gated,
                BY_EXPERT=by_expert,
                **self._row_constants(),
            )
        return grad_gates

    def pair_gradient(self, grad_GTO: Tensor, gates_GP: Tensor, z: Tensor, layer: Layer) -> Tensor:
        """Return the gradient of the last layer's z from that of the mixture's output."""
        num_gates, num_rows, size_n = grad_GTO.shape
        grad_z = torch.empty_like(z)
        if grad_z.numel():
            constants = self._row_constants()
            constants["BLOCK_P"] = constants.pop("BLOCK_T")
            rows.pair_gradient_kernel[self._grid(self.plan.room, size_n, 1)[:2]](
                grad_GTO,
                gates_GP,
                z,
                self.plan.row_P,
                self.plan.pair_start[-1:],
                grad_z,
                num_gates,
                num_rows,
                self.plan.room,
                size_n,
                ACTIVATION=layer.activation,
                IS_GATED=layer.is_gated,
                **constants,
            )
        return grad_z

    def _constants(self, blocks: Blocks) -> dict[str, Any]:
        return {
            "PRECISION": self.precision,
            "UPCAST": self.interpreted,
            "BLOCK_M": blocks.m,
            "BLOCK_N": blocks.n,
            "BLOCK_K": blocks.k,
            "GROUP": GROUP,
            "num_warps": blocks.warps,
            "num_stages": blocks.stages,
            # Said, because Triton 3.9 warns that its default will change.
            "enable_fp_fusion": True,
        }

    def _row_constants(self) -> dict[str, Any]:
        block_t, block_n = self._row_blocks()
        return {"BLOCK_T": block_t, "BLOCK_N": block_n, "enable_fp_fusion": True}

    def _row_blocks(self) -> tuple[int, int]:
        return (32, 32) if self.interpreted else (FEW_ROWS, COLUMNS)

    def _grid(self, num_rows: int, num_columns: int, num_gates: int) -> tuple[int, int, int]:
        block_t, block_n = self._row_blocks()
        return triton.cdiv(num_rows, block_t), triton.cdiv(num_columns, block_n), num_gates
