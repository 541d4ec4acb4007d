"""engine=deepspeed: its keys, a configuration of one's own, and what contradicts the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe
from adafilter_dist.recipe.changes import check_changes
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.recipe.sections.engine import DDP, DeepSpeed

RECIPE = """\
name: mine
data: {name: imagefolder, root: pictures}
train: {global_batch: 64, micro_batch: 8, clip_norm: 5}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def load(file: Path, *words: str) -> Recipe:
    return load_recipe([f"recipe={file}", *words])


def errors(file: Path, *words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(file, *words)
    return str(caught.value).splitlines()


def written(file: Path, config: Any) -> str:
    """The word that names a file with this configuration."""
    path = file.with_name("ds.json")
    path.write_text(json.dumps(config))
    return f"engine.config={path}"


def with_config(file: Path, config: dict[str, Any], *words: str) -> Recipe:
    return load(file, "engine=deepspeed", written(file, config), *words)


def contradictions(file: Path, config: dict[str, Any], *words: str) -> list[str]:
    lines = errors(file, "engine=deepspeed", written(file, config), *words)
    assert all(line.startswith("engine.config: ") for line in lines), lines
    return [line.removeprefix("engine.config: ") for line in lines]


def test_ddp_unless_it_is_named_and_then_stage_2(file: Path) -> None:
    assert load(file).engine == DDP()
    assert load(file, "engine=deepspeed").engine == DeepSpeed(zero_stage=2, config={})
    for stage in range(4):
        engine = load(file, "engine=deepspeed", f"engine.zero_stage={stage}").engine
        assert engine == DeepSpeed(zero_stage=stage)


def test_there_is_no_stage_4(file: Path) -> None:
    (line,) = errors(file, "engine=deepspeed", "engine.zero_stage=4")
    assert line == "engine.zero_stage=4: not known; allowed: 0, 1, 2, 3"


def test_a_key_of_the_other_engine_says_whose_it_is(file: Path) -> None:
    said = "unknown key (a key of engine=deepspeed); allowed: device, hang, name, threads, timeout"
    assert errors(file, "engine.zero_stage=2") == [f"engine.zero_stage: {said}"]
    assert errors(file, "engine=ddp", "engine.config={}") == [f"engine.config: {said}"]
    (line,) = errors(file, "engine=deepspeed", "engine.zero_stag=2")
    assert line.startswith("engine.zero_stag: unknown key (did you mean 'zero_stage'?); allowed: ")
    (line,) = errors(file, "zzzz=1")
    assert line.startswith("zzzz: unknown key; allowed: augment, ")
    (line,) = errors(file, "engine=deepsped")
    assert line == (
        "engine.name=deepsped: not known (did you mean 'deepspeed'?); allowed: ddp, deepspeed"
    )


CONTRADICTIONS = {
    "train_batch_size": (32, "train_batch_size=32, but train.global_batch is 64"),
    "train_micro_batch_size_per_gpu": (
        4,
        "train_micro_batch_size_per_gpu=4, but train.micro_batch is 8",
    ),
    "gradient_clipping": (1.0, "gradient_clipping=1.0, but train.clip_norm is 5.0"),
    "communication_data_type": (
        "fp16",
        "communication_data_type=fp16, but the reduction of gradients is fp32",
    ),
    "zero_optimization": (
        {"stage": 3},
        "zero_optimization.stage=3, but engine.zero_stage is 2",
    ),
    "fp16": ({"enabled": True}, "fp16: it rounds the frozen filters, "),
    "bf16": ({"enabled": True}, "bf16: it rounds the frozen filters, "),
    "amp": ({"opt_level": "O1"}, "amp: it rounds the frozen filters, "),
    "torch_autocast": ({"enabled": True}, "torch_autocast: train.precision says it"),
    "optimizer": ({"type": "Adam", "params": {"lr": 1}}, "optimizer: optim.* says it"),
    "scheduler": ({"type": "WarmupLR"}, "scheduler: optim.schedule says it"),
    "checkpoint": ({"use_node_local_storage": True}, "checkpoint: checkpoints are the run's own, "),
    "elasticity": ({"enabled": True}, "elasticity: a run goes on with any number of processes "),
    "steps_per_prnt": (1, "steps_per_prnt: not supported (did you mean 'steps_per_print'?)"),
}


@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_what_the_recipe_says_otherwise(file: Path, key: str) -> None:
    value, said = CONTRADICTIONS[key]
    (line,) = contradictions(file, {key: value})
    assert line.startswith(said)


def test_all_of_it_is_said_at_once_a_line_each(file: Path) -> None:
    config = {key: value for key, (value, _) in CONTRADICTIONS.items()}
    lines = contradictions(file, config)
    assert len(lines) == len(CONTRADICTIONS)
    for line, (_, said) in zip(lines, CONTRADICTIONS.values(), strict=True):
        assert line.startswith(said)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"offload_optimizer": {"device": "cpu"}},
            "zero_optimization.offload_optimizer: offloading",
        ),
        ({"offload_param": {"device": "nvme"}}, "zero_optimization.offload_param: offloading"),
        (
            {"overlap_com": True},
            "zero_optimization.overlap_com: not supported (did you mean 'overlap_comm'?)",
        ),
        (2, "zero_optimization=2: must be a mapping"),
    ],
)
def test_inside_of_zero_optimization(file: Path, config: object, said: str) -> None:
    (line,) = contradictions(file, {"zero_optimization": config})
    assert line.startswith(said)


def test_clipping_that_the_recipe_does_without(file: Path) -> None:
    (line,) = contradictions(file, {"gradient_clipping": 1.0}, "train.clip_norm=null")
    assert line == "gradient_clipping=1.0, but train.clip_norm is null"
    with_config(file, {"gradient_clipping": 0.0}, "train.clip_norm=null")


def test_what_agrees_or_is_left_open_or_is_off(file: Path) -> None:
    agrees = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_clipping": 5,
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 5e8},
        "steps_per_print": 100,
    }
    left_open = {
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "optimizer": "auto",
        "zero_optimization": {"stage": "auto", "allgather_bucket_size": "auto"},
    }
    off = {
        **{key: {"enabled": False} for key in ("fp16", "bf16", "amp", "elasticity")},
        "zero_optimization": {"offload_optimizer": {"device": "none"}},
    }
    for config in (agrees, left_open, off):
        engine = with_config(file, config).engine
        assert isinstance(engine, DeepSpeed) and engine.config == config


def test_overlapping_is_not_deterministic(file: Path) -> None:
    config = {"zero_optimization": {"overlap_comm": True}}
    (line,) = contradictions(file, config, "deterministic=true")
    assert line.startswith("zero_optimization.overlap_comm=true ") and "deterministic=true" in line
    with_config(file, {"zero_optimization": {"overlap_comm": False}}, "deterministic=true")


def test_precision_and_compilation(file: Path) -> None:
    (line,) = errors(file, "engine=deepspeed", "train.precision=fp64")
    assert line == "train.precision=fp64: DeepSpeed knows no fp64; use engine=ddp"
    compiled = ("engine=deepspeed", "train.compile=true")
    (line,) = errors(file, *compiled, "engine.zero_stage=3")
    assert line.startswith("train.compile=true: ZeRO-3 ") and "engine.zero_stage=2 or less" in line
    assert load(file, *compiled, "engine.zero_stage=2").train.compile
    assert load(file, "train.compile=true", "train.precision=fp64").engine == DDP()


def test_what_a_file_held_is_kept_and_not_its_place(file: Path, tmp_path: Path) -> None:
    config = {"zero_optimization": {"reduce_bucket_size": 1000, "stage": "auto"}, "fp16": "auto"}
    recipe = with_config(file, config)
    kept = tmp_path / "kept.yaml"
    kept.write_text(dump_recipe(recipe))
    (tmp_path / "ds.json").rename(tmp_path / "moved.json")
    assert load(kept) == recipe
    engine = load(kept).engine
    assert isinstance(engine, DeepSpeed) and engine.config == config


def test_a_configuration_may_stand_in_the_recipe(file: Path) -> None:
    file.write_text(
        RECIPE + "engine:\n  name: deepspeed\n  config:\n    zero_optimization: {stage: 2}\n"
    )
    engine = load(file, "engine.config.zero_optimization.reduce_bucket_size=1000").engine
    assert isinstance(engine, DeepSpeed)
    assert engine.config == {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}}
    (line,) = errors(file, "engine.zero_stage=3")
    assert line == "engine.config: zero_optimization.stage=2, but engine.zero_stage is 3"
    file.write_text(RECIPE + "engine: {name: deepspeed, config: ds.json}\n")
    (line,) = errors(file, "engine.config.steps_per_print=1")
    assert line == "config=ds.json: a text is replaced as a whole, not key by key"


def test_files_that_are_none(file: Path, tmp_path: Path) -> None:
    (line,) = errors(file, "engine=deepspeed", "engine.config=/nowhere/ds.json")
    assert line.startswith("engine.config=/nowhere/ds.json: cannot be read: ")
    word = written(file, [1, 2])
    (line,) = errors(file, "engine=deepspeed", word)
    assert line.startswith(f"{word}: must hold a JSON object, e.g. ")
    (tmp_path / "ds.json").write_text("{stage: 2}")
    (line,) = errors(file, "engine=deepspeed", word)
    assert line.startswith(f"{word}: not JSON: ")
    (line,) = errors(file, "engine=deepspeed", "engine.config=[1]")
    assert line.startswith("engine.config=[1]: ")


def test_switching_the_engine_keeps_what_every_engine_has(file: Path) -> None:
    section = "engine: {name: deepspeed, zero_stage: 3, timeout: 5min, config: {fp16: auto}}\n"
    file.write_text(RECIPE + section)
    assert load(file).engine == DeepSpeed(zero_stage=3, timeout="5min", config={"fp16": "auto"})
    assert load(file, "engine=ddp").engine == DDP(timeout="5min")
    assert load(file, "engine=ddp", "engine.threads=2").engine == DDP(timeout="5min", threads=2)
    assert load(file, "engine=deepspeed").engine == load(file).engine
    # As often as one likes; nothing of DeepSpeed's comes back.
    again = load(file, "engine=ddp", "engine=deepspeed").engine
    assert again == DeepSpeed(zero_stage=2, timeout="5min")
    file.write_text(RECIPE + "engine: {timeout: 5min, device: cpu}\n")
    engine = load(file, "engine=deepspeed", "engine.zero_stage=1").engine
    assert engine == DeepSpeed(zero_stage=1, timeout="5min", device="cpu")


def test_a_recipe_switches_the_engine_of_its_base(file: Path, tmp_path: Path) -> None:
    file.write_text(RECIPE + "engine: {name: deepspeed, zero_stage: 3, timeout: 5min}\n")
    child = tmp_path / "child.yaml"
    for engine, wanted in {
        "{name: ddp, threads: 1}": DDP(timeout="5min", threads=1),
        "ddp": DDP(timeout="5min"),
        "{threads: 1}": DeepSpeed(zero_stage=3, timeout="5min", threads=1),
    }.items():
        child.write_text(f"base: mine\nname: child\nengine: {engine}\n")
        assert load(child).engine == wanted


def test_any_engine_is_the_same_run_and_may_go_on_with_it(file: Path) -> None:
    old = load(file)
    stages = [load(file, "engine=deepspeed", f"engine.zero_stage={stage}") for stage in range(4)]
    config = with_config(file, {"steps_per_print": 1})
    for new in (*stages, config):
        assert run_hash(new) == run_hash(old)
        verdict = check_changes(old, new)
        assert verdict.recipe.engine == new.engine
        assert verdict.changes["engine.name"] == ("ddp", "deepspeed")
        assert check_changes(new, old).recipe.engine == DDP()
