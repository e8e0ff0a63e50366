"""LoRA's linear layer, which can compute with the sum of its matrices. `lvlm.model.lora` imports it, and peft with it,
where a part has LoRA."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from lvlm.model.lora import ADAPTER


class SummedLora(Function):
    """y = x S^T + b with S = W + s B A, for a frozen W and b and no dropout.

    x: (..., in), S: (out, in), b: (out) or None, A: (r, in), B: (out, r), all of one dtype. The gradient goes to x, A
    and B alone. One product forward and one back do what the formula with its own path through A and B does in six.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, summed: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, summed, a, b)
        ctx.scaling = scaling
        return functional.linear(x, summed, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, summed, a, b = ctx.saved_tensors
        rows, dy = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        dx = (dy @ summed).view_as(x) if ctx.needs_input_grad[0] else None
        da = ((dy @ b).T @ rows).mul_(ctx.scaling)
        db = (dy.T @ (rows @ a.T)).mul_(ctx.scaling)
        return dx, None, None, da, db, None


class SummableLora(PeftLinear):  # type: ignore[misc]  # peft is untyped
    """peft's LoRA layer of a linear layer, which computes with one matrix in place of three while it is `summed`."""

    summed: Tensor | None = None
    """W + s B A while `LoraSums` has it made; whoever changes A or B drops it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.get_base_layer()
        if self.summed is not None and not torch.is_grad_enabled():
            return functional.linear(x, self.summed, base.bias)
        if self.summed is None or self._draws_or_rounds(x):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        return SummedLora.apply(x, self.summed, base.bias, a, b, self.scaling[ADAPTER])  # type: ignore[no-any-return,no-untyped-call]

    def _draws_or_rounds(self, x: Tensor) -> bool:
        """Whether the sum is not what is asked for: dropout acts on the way through A, or autocast rounds W and B A
        apart."""
        drops = self.training and not isinstance(self.lora_dropout[ADAPTER], nn.Identity)
        return drops or torch.is_autocast_enabled(x.device.type)
