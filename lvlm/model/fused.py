"""LoRA's linear layer, computed in few passes over memory. `lvlm.model.lora` imports it where a part has LoRA, and peft
with it."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from lvlm.model.lora import ADAPTER


class FusedLora(Function):
    """y = x W^T + b + x A^T (s B)^T for a frozen W and b, in as few passes over memory as it takes.

    x: (..., in), W: (out, in), b: (out) or None, A: (r, in), B: (out, r), all of one dtype. The gradient goes to x, A
    and B alone. Autograd of the same formula writes and adds two more activations of the layer's width in each
    direction.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        scaled = b * scaling
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        ctx.save_for_backward(rows, weight, a, scaled, low)
        ctx.scaling = scaling
        return y.addmm_(low, scaled.T).view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, weight, a, scaled, low = ctx.saved_tensors
        dy = grad.reshape(-1, grad.shape[-1])
        g = dy @ scaled
        dx = (dy @ weight).addmm_(g, a).view(*grad.shape[:-1], rows.shape[-1]) if ctx.needs_input_grad[0] else None
        return dx, None, None, g.T @ rows, (dy.T @ low).mul_(ctx.scaling), None


class FusedLoraLinear(PeftLinear):  # type: ignore[misc]  # peft is untyped
    """peft's LoRA layer of a linear layer, with the fused update wherever that computes the same: W frozen, no
    dropout, nothing merged, one dtype.
    """

    summed: Tensor | None = None
    """W + s B A while `summed_lora` lasts."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.get_base_layer()
        if self.summed is not None:
            return functional.linear(x, self.summed, base.bias)
        if not self._fusible(x, base) or args or kwargs:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        return FusedLora.apply(x, base.weight, base.bias, a, b, self.scaling[ADAPTER])  # type: ignore[no-any-return]

    def _fusible(self, x: Tensor, base: Any) -> bool:
        if self.disable_adapters or self.merged or self.active_adapters != [ADAPTER] or self.lora_bias[ADAPTER]:
            return False
        if torch.is_autocast_enabled(x.device.type) or base.weight.requires_grad:
            return False
        if self.training and not isinstance(self.lora_dropout[ADAPTER], nn.Identity):
            return False
        if hasattr(base.weight, "ds_id"):  # ZeRO 3 gathers a weight when its own layer is called, and drops it then
            return False
        return bool(x.dtype == base.weight.dtype == self.lora_A[ADAPTER].weight.dtype)
