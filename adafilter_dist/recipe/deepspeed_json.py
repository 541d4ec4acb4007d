"""A user's own DeepSpeed configuration against the recipe: what may stand in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adafilter_dist.errors import nearest

_ROUNDS = (
    "it rounds the frozen filters, which must not change by a bit; train.precision=bf16 or fp16 "
    "computes in that precision and keeps them"
)
_RECIPE_SAYS = {
    "fp16": _ROUNDS,
    "bf16": _ROUNDS,
    "bfloat16": _ROUNDS,
    "amp": _ROUNDS,
    "torch_autocast": "train.precision says it",
    "data_types": "train.precision says it",
    "optimizer": "optim.* says it",
    "scheduler": "optim.schedule says it",
    "checkpoint": "checkpoints are the run's own, the same under every engine",
    "elasticity": "a run goes on with any number of processes that divides its micro-batches",
    "managed_gradient_accumulation": "accumulation is derived from the batches",
    "gradient_allreduce_op": "gradients are means over the micro-batches",
}
_BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_TOP = (
    *(*_BATCH, "gradient_clipping", "zero_optimization", "zero_allow_untested_optimizer"),
    *("prescale_gradients", "gradient_predivide_factor", "communication_data_type"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level"),
    *("comms_logger", "flops_profiler", "tensorboard", "wandb", "csv_monitor", "comet"),
)
_ZERO = (
    *("stage", "overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size"),
    *("allgather_partitions", "allgather_bucket_size", "round_robin_gradients", "sub_group_size"),
    *("use_multi_rank_bucket_allreduce", "ignore_unused_parameters", "log_trace_cache_warnings"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size"),
    *("stage3_param_persistence_threshold", "stage3_model_persistence_threshold"),
    *("stage3_module_granularity_threshold", "stage3_gather_16bit_weights_on_model_save"),
)


def without_auto(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are given: "auto", which other trainers fill in, is left to the recipe.

    So is a whole section that is enabled "auto".
    """
    return {
        key: without_auto(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if value != "auto" and not (isinstance(value, Mapping) and value.get("enabled") == "auto")
    }


def contradictions(
    config: Mapping[str, Any],
    *,
    stage: int,
    global_batch: int,
    micro_batch: int,
    clip_norm: float | None,
    deterministic: bool,
) -> list[str]:
    """A line for each key of ``given`` that the recipe says otherwise, or that is not known."""
    from_recipe = {
        "train_batch_size": ("train.global_batch", global_batch),
        "train_micro_batch_size_per_gpu": ("train.micro_batch", micro_batch),
        "gradient_clipping": ("train.clip_norm", clip_norm or 0.0),
        "communication_data_type": ("the reduction of gradients", "fp32"),
    }
    messages = []
    for key, value in config.items():
        if key in from_recipe:
            what, wanted = from_recipe[key]
            if value != wanted:
                messages.append(f"{key}={value}, but {what} is {wanted or 'null'}")
        elif key == "zero_optimization":
            messages += _of_zero(value, stage, deterministic)
        elif key in _RECIPE_SAYS:
            if not is_off(value):
                messages.append(f"{key}: {_RECIPE_SAYS[key]}")
        elif key not in _TOP:
            messages.append(f"{key}: not supported{nearest(key, _TOP)}")
    return messages


def is_off(section: Any) -> bool:
    """Whether a section says that it is not enabled."""
    return isinstance(section, Mapping) and section.get("enabled") is False


def _of_zero(section: Any, stage: int, deterministic: bool) -> Iterator[str]:
    if not isinstance(section, Mapping):
        yield f"zero_optimization={section}: must be a mapping"
        return
    for key, value in section.items():
        name = f"zero_optimization.{key}"
        if key == "stage":
            if value != stage:
                yield f"{name}={value}, but engine.zero_stage is {stage}"
        elif key == "overlap_comm":
            if value and deterministic:
                yield f"{name}=true has differed from run to run, but deterministic=true"
        elif key in ("offload_optimizer", "offload_param"):
            if not isinstance(value, Mapping) or value.get("device", "none") != "none":
                yield f"{name}: offloading is not supported; networks of this kind fit"
        elif key not in _ZERO:
            yield f"{name}: not supported{nearest(key, _ZERO)}"
