"""A stage under DeepSpeed's ZeRO: optimizer and gradients divided among the processes, with stage 3 the weights too.
Used through `lvlm.train.strategies`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from lvlm.errors import InputError
from lvlm.settings import StageConfig
from lvlm.train.batches import MicroBatch
from lvlm.train.optim import build_optimizer, set_lr
from lvlm.train.strategies import Autocast, StepLoss

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm

MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero:
    """ZeRO stage 2 or 3 through accelerate. Checkpoints are those of any other strategy: what is divided is gathered
    tensor by tensor, so that another number of processes can go on from them."""

    lockstep = True

    def __init__(
        self, model: Lvlm, config: StageConfig, accelerator: Accelerator, autocast: Autocast, *, stage: int
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        optimizer = build_optimizer(model, config.optim)
        self.learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.groups: list[list[nn.Parameter]] = [list(group["params"]) for group in optimizer.param_groups]
        accelerator.deepspeed_plugin.deepspeed_config["gradient_clipping"] = config.optim.clip or 0.0
        module = StepLoss(model, autocast, config.contrast)
        rounds = accelerator.mixed_precision == "bf16"
        self.frozen = {
            parameter: _lost_in_bf16(parameter)
            for parameter in module.parameters()
            if rounds and not parameter.requires_grad and parameter.dtype == torch.float32
        }
        self.engine: Any = accelerator.prepare(module, optimizer)[0]
        if self.engine.zero_optimization_stage() != stage:
            raise InputError(
                f"ZeRO stage {stage} was asked for and DeepSpeed runs stage {self.engine.zero_optimization_stage()}. "
                "Remove other DeepSpeed settings from the launcher (`accelerate env`)."
            )
        self.partitioned = stage == 3

    def backward(self, batch: MicroBatch, images: Mapping[str, Tensor]) -> Tensor:
        self.engine.set_gradient_accumulation_boundary(batch.last)
        loss: Tensor = self.engine(batch, images)
        # DeepSpeed takes the mean over processes; the loss already divides by the whole step.
        self.engine.backward(loss * self.accelerator.num_processes)
        return loss.detach()

    def probe(self, batch: MicroBatch, images: Mapping[str, Tensor]) -> None:
        self.engine.set_gradient_accumulation_boundary(False)
        self.engine.backward(self.engine(batch, images))
        self._forget()

    def _forget(self) -> None:
        """Drop the gradients of an unfinished step, which DeepSpeed would add to those of the next: times zero they
        would stay NaN."""
        zero = self.engine.optimizer
        zero.zero_grad()
        if self.partitioned:
            zero.grad_partitions_flat_buffer.zero_()
            return
        for kept in (zero.averaged_gradients, zero.all_grad_tensors):
            kept.clear()

    def step(self, factor: float) -> tuple[float, float]:
        rate = set_lr(self._adamw, factor)
        self.engine.step()
        return rate, float(self.engine.get_global_grad_norm() or 0.0)

    def state(self) -> dict[str, Any]:
        model = {name: self._kept(safe_get_full_fp32_param(parameter)) for name, parameter in self.learning.items()}
        settings = [{**group, "params": []} for group in self._adamw.param_groups]
        moments: dict[int, dict[str, Tensor]] = {}
        self._link_moments()
        number = 0
        for own, group in zip(self.groups, settings, strict=True):
            for parameter in own:
                group["params"].append(number)
                if self._steps is not None:
                    whole = {key: self._kept(safe_get_full_optimizer_state(parameter, key)) for key in MOMENTS}
                    moments[number] = {**whole, "step": self._steps.clone()}
                number += 1
        return {
            "model": model | dict(self.model.named_buffers()),
            "optimizer": {"state": moments, "param_groups": settings},
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.copy_(state["model"][name])
        for name, parameter in self.learning.items():
            self._put(parameter, state["model"][name])
            with self._gathered([parameter], writes=True):
                parameter.copy_(state["model"][name])
        moments = state["optimizer"]["state"]
        if not moments:
            return
        self._begin_moments(moments[0]["step"])
        self._link_moments()
        numbered = enumerate(parameter for group in self.groups for parameter in group)
        for number, parameter in numbered:
            for key in MOMENTS:
                self._put(parameter, moments[number][key], key)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Also in float32: what learns as the optimizer has it, and what was frozen as it came."""
        exact = {parameter: safe_get_full_fp32_param(parameter) for parameter in self.learning.values()}
        with ExitStack() as stack:
            if self.partitioned:
                offload = self.engine.optimizer.parameter_offload
                offload.destroy()  # its hooks would gather and drop weights at every module, on every process at once
                stack.callback(offload.setup_zero_stage3_hooks)
                stack.enter_context(self._gathered(list(self.engine.module.parameters())))
            for parameter, value in self.frozen.items():  # bf16 training has rounded it
                exact[parameter] = parameter.data.float() if value is None else value.to(parameter.device)
            rounded = {parameter: parameter.data for parameter in exact}
            for parameter, value in exact.items():
                parameter.data = value
            try:
                yield
            finally:
                for parameter, data in rounded.items():
                    parameter.data = data

    def finish(self) -> None:
        self.engine.destroy()
        self.accelerator.deepspeed_engine_wrapped = None  # the next stage has an engine of its own

    @property
    def _adamw(self) -> torch.optim.AdamW:
        """The optimizer that DeepSpeed steps, over this process's share of each group."""
        optimizer: torch.optim.AdamW = self.engine.optimizer.optimizer
        return optimizer

    @property
    def _shares(self) -> list[Tensor]:
        """This process's share of what learns, flat, in float32."""
        zero = self.engine.optimizer
        shares: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self.partitioned else zero.single_partition_of_fp32_groups
        )
        return shares

    @property
    def _steps(self) -> Tensor | None:
        """How many updates AdamW counts; None before the first."""
        state = self._adamw.state.get(self._shares[0], {})  # type: ignore[call-overload]
        return state.get("step")  # type: ignore[no-any-return]

    def _link_moments(self) -> None:
        """DeepSpeed's stage 2 does so after the update of its first group, when the others have no moments yet."""
        if not self.partitioned:
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _begin_moments(self, steps: Tensor) -> None:
        for share in self._shares:
            self._adamw.state[share] = {
                "step": steps.to(share.device, copy=True),
                **{key: torch.zeros_like(share) for key in MOMENTS},
            }

    def _kept(self, whole: Tensor) -> Tensor:
        """A gathered tensor in main memory where it is to be written, and nothing elsewhere: all of them together may
        be more than a device holds."""
        return whole.cpu() if self.accelerator.is_main_process else whole.new_empty(0)

    def _put(self, parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
        """Set what the optimizer has of a parameter, its value or a moment, to a whole tensor."""
        if self.partitioned:  # DeepSpeed's way of setting it whole fails where it does not divide evenly
            share: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = F.pad(value.flatten(), (0, share * self.accelerator.num_processes - value.numel()))
            value = padded[share * self.accelerator.process_index :][:share]
        value = value.to(self.accelerator.device)
        if moment is None:
            set_value = safe_set_local_fp32_param if self.partitioned else safe_set_full_fp32_param
            set_value(parameter, value)
        else:
            set_moment = safe_set_local_optimizer_state if self.partitioned else safe_set_full_optimizer_state
            set_moment(parameter, value, moment)

    @contextmanager
    def _gathered(self, parameters: list[nn.Parameter], *, writes: bool = False) -> Iterator[None]:
        """The whole of partitioned parameters; with `writes` the values that process 0 leaves in them are kept."""
        if not self.partitioned:
            yield
            return
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if writes else None):
            yield


def _lost_in_bf16(parameter: nn.Parameter) -> Tensor | None:
    """A copy of a parameter in main memory; None where rounding it to bfloat16 changes nothing."""
    value = parameter.detach()
    return None if torch.equal(value, value.bfloat16().float()) else value.cpu().clone()
