"""What ZeRO shares out over the ranks, put together to whole tensors and taken apart again."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adafilter_dist.engine.base import Replicated
from adafilter_dist.engine.optimizer import optimizer_tensors, put_optimizer
from adafilter_dist.errors import UserError


class Shared(Replicated, ABC):
    """The state of a stage. ``optimizer`` is DeepSpeed's, ``before`` what `before()` gave."""

    def __init__(self, model: nn.Module, optimizer: Any, before: Any) -> None:
        self.model = model
        self._optimizer = optimizer
        self._before = before

    @classmethod
    def before(cls, model: nn.Module) -> Any:
        """What must be kept of the model before DeepSpeed takes it."""
        return None

    @abstractmethod
    def optimizer_state(self) -> dict[str, Tensor]:
        """Each whole tensor as ``<parameter name>/<key>``; collective."""

    @abstractmethod
    def load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Take over whole tensors."""

    def model_state(self) -> dict[str, Tensor]:
        """Whole parameters and persistent buffers; collective."""
        return self.model.state_dict()

    @torch.no_grad()
    def load_model(self, state: dict[str, Tensor]) -> None:
        """Take over whole parameters and buffers; UserError for other names or shapes."""
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"the checkpoint does not fit this model: {error}") from None

    def _named(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, nn.Parameter, str, Tensor]]:
        """(name, parameter, key, value) of optimizer tensors; UserError for a stranger."""
        parameters = dict(self.model.named_parameters())
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            parameter = parameters.get(name)
            if parameter is None or not parameter.requires_grad:
                raise UserError(f"the checkpoint has optimizer state for {name}, not trained here")
            yield name, parameter, key, value


class Stage0(Shared):
    """Everything whole on every rank; torch's own optimizer."""

    def optimizer_state(self) -> dict[str, Tensor]:
        return optimizer_tensors(self._optimizer, self.model)

    def load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        put_optimizer(self._optimizer, self.model, tensors)


class Flat(Shared):
    """Stages whose optimizer updates flat partitions in fp32."""

    @abstractmethod
    def _flats(self) -> list[Tensor]:
        """This rank's partitions, the keys of the optimizer's state."""

    @property
    def _torch(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = self._optimizer.optimizer
        return inner

    def _keys(self) -> tuple[list[str], dict[str, Tensor]]:
        """Keys of what has a value for each weight, and what is one number for all (a count)."""
        states = [self._torch.state[flat] for flat in self._flats() if flat in self._torch.state]
        if not states:
            return [], {}
        tensors = {k: v for k, v in states[0].items() if isinstance(v, Tensor)}
        whole = [key for key, value in tensors.items() if value.ndim]
        return whole, {key: value for key, value in tensors.items() if not value.ndim}

    def optimizer_state(self) -> dict[str, Tensor]:
        keys, counts = self._keys()
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        state: dict[str, Tensor] = {}
        for key in keys:
            state |= {f"{n}/{key}": v for n, v in self._whole_state(trained, key).items()}
        for key, value in counts.items():
            state |= {f"{name}/{key}": value.clone() for name in trained}
        return state

    @abstractmethod
    def _whole_state(self, trained: dict[str, nn.Parameter], key: str) -> dict[str, Tensor]:
        """One kind of the optimizer's tensors, by parameter name; collective."""

    @torch.no_grad()
    def load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        self._torch.state.clear()
        entries = list(self._named(tensors))
        for _, _, key, value in entries:
            for flat in self._flats():
                state = self._torch.state[flat]
                if key not in state:
                    state[key] = torch.zeros_like(flat) if value.ndim else value.clone()
        self._linked()
        for name, parameter, key, value in entries:
            if value.ndim:
                self._put_state(name, parameter, key, value)

    def _linked(self) -> None:
        """The optimizer's state has been made anew."""

    @abstractmethod
    def _put_state(self, name: str, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Take over this rank's part of a whole tensor."""


class Stages12(Flat):
    """Whole parameters; their fp32 copies and the optimizer's state in partitions."""

    def _flats(self) -> list[Tensor]:
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _whole_state(self, trained: dict[str, nn.Parameter], key: str) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        self._linked()
        return {n: safe_get_full_optimizer_state(p, key) for n, p in trained.items()}

    def load_model(self, state: dict[str, Tensor]) -> None:
        super().load_model(state)
        self._optimizer.refresh_fp32_params()

    def _linked(self) -> None:
        # By itself it links once, when of several groups only the first has a state.
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _put_state(self, name: str, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


class Stage3(Flat):
    """Parameters in shards, put together layer by layer as they are needed.

    A shard is an equal share of the flattened parameter, the last one padded. Frozen filters are
    buffers: whole on every rank, they do not travel.
    """

    @classmethod
    def before(cls, model: nn.Module) -> nn.Module:
        """The network without its values, to be filled for evaluations."""
        return copy.deepcopy(model).to("meta")

    def _flats(self) -> list[Tensor]:
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def _shards(self, *, trained: bool) -> dict[str, Tensor]:
        return {
            name: _sharded(p).ds_tensor.data
            for name, p in self.model.named_parameters()
            if p.requires_grad or not trained
        }

    def parts(self) -> dict[str, Tensor]:
        return self._shards(trained=True)

    def part_of(self, name: str, whole: Tensor) -> Tensor:
        return self._part(self.model.get_parameter(name), whole)

    def _part(self, parameter: Any, whole: Tensor) -> Tensor:
        size = parameter.ds_tensor.numel()
        begin = size * dist.get_rank()
        part = whole.reshape(-1)[begin : begin + size].to(parameter.ds_tensor)
        return nn.functional.pad(part, (0, size - part.numel()))

    def gathered(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """One collective for all of them."""
        if not parts:
            return {}
        sizes = [part.numel() for part in parts.values()]
        mine = torch.cat([part.reshape(-1) for part in parts.values()])
        every = mine.new_empty(dist.get_world_size() * mine.numel())
        dist.all_gather_into_tensor(every, mine)
        whole = {}
        ranks = every.view(-1, mine.numel())
        for name, columns in zip(parts, ranks.split(sizes, 1), strict=True):
            parameter: Any = self.model.get_parameter(name)
            flat = columns.reshape(-1)[: parameter.ds_numel]
            whole[name] = flat.view(parameter.ds_shape).clone()
        return whole

    def model_state(self) -> dict[str, Tensor]:
        return self.model.state_dict() | self.gathered(self._shards(trained=False))

    @torch.no_grad()
    def load_model(self, state: dict[str, Tensor]) -> None:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        empty = copy.deepcopy(self._before)
        try:  # names and shapes
            empty.load_state_dict({k: v.to("meta") for k, v in state.items()}, assign=True)
        except RuntimeError as error:
            raise UserError(f"the checkpoint does not fit this model: {error}") from None
        for name, parameter in self.model.named_parameters():
            value: Any = parameter
            value.ds_tensor.data.copy_(self._part(parameter, state[name]))
            if value.ds_status == ZeroParamStatus.AVAILABLE:  # small ones stay whole
                value.data.copy_(state[name].view(value.ds_shape))
        for name, buffer in self.model.named_buffers():
            if name in state:
                buffer.copy_(state[name])
        self._optimizer.refresh_fp32_params()

    def _whole_state(self, trained: dict[str, nn.Parameter], key: str) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_local_optimizer_state

        return self.gathered(
            {n: safe_get_local_optimizer_state(p, key) for n, p in trained.items()}
        )

    def _put_state(self, name: str, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(parameter, self._part(parameter, value), key)

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """A copy with whole weights: ranks may have different numbers of batches to evaluate."""
        device = next(self.model.buffers()).device
        whole = copy.deepcopy(self._before).to_empty(device=device)
        whole.load_state_dict(self.model_state())
        for buffer, live in zip(whole.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(live)
        yield whole


def _sharded(parameter: nn.Parameter) -> Any:
    """With the attributes that DeepSpeed gives it: ds_tensor, ds_numel, ds_shape, ds_status."""
    return parameter
