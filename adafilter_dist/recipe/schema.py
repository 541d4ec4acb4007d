"""What a recipe may say: one frozen, typed section per component.

Every key has a type, a default and a line of what it means; an unknown key is an error.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from adafilter_dist.recipe.deepspeed_json import contradictions, without_auto
from adafilter_dist.recipe.engine import DDP, DeepSpeed, Engine
from adafilter_dist.recipe.launch import Launch
from adafilter_dist.recipe.section import (
    AbsolutePath,
    AnyPath,
    Batch,
    Count,
    Duration,
    Epochs,
    Fraction,
    NotNegative,
    Pixels,
    Positive,
    Section,
    Threads,
    check_duration,
)
from adafilter_dist.recipe.section import seconds as seconds

_MOST_STEPS = 1_000_000_000
_FILES = (".safetensors", ".pth", ".pt", ".bin")


def is_weights_file(weights: str) -> bool:
    """Whether ``model.weights`` is a local file, and not the name of published weights."""
    return weights.endswith(_FILES) or "/" in weights


def _every(value: Any) -> Any:
    # One validator for all three, so that a mistake is one line and not one for each.
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_STEPS:
        return value
    try:
        return value if value == "auto" else check_duration(value)
    except ValueError:
        raise ValueError(
            "must be a number of steps from 1, a duration like '90s', '10min' or '1.5h', or 'auto'"
        ) from None


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return value


Every = Annotated[int | str, BeforeValidator(_every)]
# Channels on the scale from 0 to 1, and how far they spread: a mean of 123 is one of 0 to 255.
Mean = tuple[Fraction, Fraction, Fraction]
Spread = Annotated[float, Field(gt=0.0, le=10.0)]
Std = tuple[Spread, Spread, Spread]
Aspect = Annotated[float, Field(gt=0.0, le=100.0)]


class Data(Section):
    """Which pictures, how they are split and stored, how they are read."""

    name: Literal["fashion_mnist", "food101", "caltech256", "imagefolder"]
    root: AbsolutePath | None = Field(
        None,
        description="folder of the pictures as published; default below $ADAFILTER_CACHE or "
        "~/.cache/adafilter for what can be downloaded",
    )
    prepared: AbsolutePath | None = Field(
        None, description="folder for what `prepare` writes; default beside the data"
    )
    stage_to: str | None = Field(
        None,
        description="folder on a disk of each node, where the prepared files are copied before "
        "training; $VARIABLES are those of the node, e.g. $SLURM_TMPDIR",
    )
    csv: AbsolutePath | None = Field(None, description="imagefolder: a CSV of path,label,split")
    download: bool = Field(True, description="let `prepare` fetch what is missing")
    classes: list[str] | None = Field(None, description="use only these classes")
    train_per_class: Count | None = Field(
        None, description="training pictures drawn per class (seeded); default all"
    )
    test_per_class: Count | None = Field(
        None, description="test pictures drawn per class (seeded); default all"
    )
    test_fraction: Fraction = Field(0.2, description="cut off where no test split is published")
    test_split: Literal["test", "val"] = Field(
        "test",
        description="imagefolder: val tests on the data's own validation split, as is usual where "
        "there are only train and val",
    )
    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1,
        description="cut from the training set, stratified, seeded; 0 for none; without effect "
        "where the data have a validation split",
    )
    label_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of the training labels used, stratified"
    )
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    stored_size: Pixels = Field(256, description="shortest side of a stored picture, px")
    stored_format: Literal["jpg", "raw"] = Field("jpg", description="raw: larger, faster")
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    resolution: Pixels | None = Field(
        None, description="side of the network's input, px; default from the weights"
    )
    eval_resize: Pixels | None = Field(
        None, description="shortest side before the centre crop; default from the weights"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = None
    mean: Annotated[Mean, Field(strict=False)] | None = Field(
        None, description="default from the weights"
    )
    std: Annotated[Std, Field(strict=False)] | None = Field(
        None, description="default from the weights"
    )
    loader: Literal["auto", "ffcv", "torchvision"] = "auto"
    num_workers: Threads | None = Field(
        None, description="decoding threads per rank; default the cores of this rank"
    )
    on_bad: Literal["error", "skip"] = "error"
    verify: Literal["once", "always", "never"] = Field(
        "once",
        description="compare the prepared files with their sha256: once a node and version of a "
        "file, at every start, or never",
    )

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.csv is not None and self.name != "imagefolder":
            raise ValueError("csv is only for data.name=imagefolder")
        if self.test_split != "test" and self.name != "imagefolder":
            raise ValueError("test_split is only for data.name=imagefolder")
        if self.stage_to is not None and not self.stage_to.startswith(("/", "$", "~")):
            raise ValueError(
                f"stage_to={self.stage_to}: must begin with / or a variable such as $SLURM_TMPDIR"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or neither")
        return self


class Augment(Section):
    """Training augmentation, all of it a pure function of (seed, epoch, sample index)."""

    scale: tuple[Fraction, Fraction] = Field(
        (0.08, 1.0), strict=False, description="area of the random crop"
    )
    ratio: tuple[Aspect, Aspect] = Field((3 / 4, 4 / 3), strict=False, description="its aspect")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    randaugment_ops: Annotated[int, Field(ge=1, le=100)] = 2
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    erasing: Fraction = Field(0.0, description="probability of erasing a random box")
    mixup: NotNegative = Field(0.0, description="alpha of Beta(alpha, alpha); 0 for off")
    cutmix: NotNegative = Field(0.0, description="alpha of Beta(alpha, alpha); 0 for off")

    @model_validator(mode="after")
    def _check(self) -> Augment:
        for key in ("scale", "ratio"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key}=[{low:g},{high:g}] must be 0 < low <= high")
        return self


class Model(Section):
    """The pre-trained network."""

    name: str = Field("resnet50", description="torchvision's name, timm/NAME, or a bundled one")
    weights: str | None = Field(
        "DEFAULT",
        description="torchvision's name (IMAGENET1K_V2), a local file, or null for random weights",
    )
    ungated: Literal["train", "freeze"] = Field(
        "train", description="what happens to convolutions and BatchNorms that no gate covers"
    )
    dropout: bool = Field(
        True, description="dropout and stochastic depth of the network in training, as published"
    )
    bn_momentum: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="share of a step in the running statistics; default the network's own"
    )


class Gate(Section):
    """The recurrent gate shared by all gated layers."""

    hidden: Annotated[int, Field(ge=1, le=65_536)] = Field(
        128, description="common size d and LSTM width"
    )
    estimator: Literal["straight_through", "identity", "gumbel", "semhash"] = "straight_through"
    temperature: Positive = 1.0
    input_norm: Literal["layer_norm", "none"] = "layer_norm"
    init_scale: Positive = Field(4.0, description="factor on the logit weights at the start")
    bias: Annotated[float, Field(ge=-1e4, le=1e4)] = Field(
        0.0, description="logit bias at the start; 0 is balanced"
    )


class Sparsity(Section):
    """Regulariser of the gates (not in the paper)."""

    kind: Literal["none", "l1", "target", "decide"] = "none"
    weight: NotNegative = 0.0
    target: Fraction = Field(0.5, description="wanted mean gate for kind=target")

    @model_validator(mode="after")
    def _check(self) -> Sparsity:
        if self.kind == "none" and self.weight:
            raise ValueError("weight is set but kind is none; choose kind=l1, target or decide")
        return self


class AdaFilter(Section):
    """AdaFilter (Guo et al., AAAI 2020)."""

    name: Literal["adafilter"] = "adafilter"
    gate: Gate = Gate()
    sparsity: Sparsity = Sparsity()
    layers: Annotated[str, AfterValidator(_expression)] = Field(
        ".*", description="regular expression; convolutions it matches are gated"
    )
    fixed_statistics: Literal["none", "frozen", "both"] = Field(
        "none",
        description="branches whose BatchNorm keeps the pre-trained statistics in training; there "
        "filters that no image of a micro-batch selects are not computed",
    )


class FineTune(Section):
    """Plain fine-tuning of every weight."""

    name: Literal["finetune"] = "finetune"


class LinearProbe(Section):
    """A linear head on frozen features (BatchNorm in evaluation mode)."""

    name: Literal["linear_probe"] = "linear_probe"


Method = Annotated[AdaFilter | FineTune | LinearProbe, Field(discriminator="name")]


class Optim(Section):
    """Optimizer and learning-rate schedule. Rates are for the global batch as given."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    lr_gate: Positive | None = Field(None, description="default lr")
    lr_head: Positive | None = Field(None, description="default lr")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = Field(1e-4, description="not on biases and BatchNorm")
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_epochs: list[Epochs] = Field(
        [], description="schedule=step: the rate is multiplied by step_gamma after these epochs"
    )
    step_gamma: Positive = 0.1
    schedule_epochs: Epochs | None = Field(
        None,
        description="length of the schedule in epochs; default train.epochs; afterwards the last "
        "rate is held",
    )
    schedule_on_extend: Literal["stretch", "hold"] | None = Field(
        None,
        description="when a run goes on with more epochs: the schedule over the new length, or "
        "over the length it had",
    )
    warmup_epochs: Annotated[float, Field(ge=0.0, le=1e5)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _check(self) -> Optim:
        if self.schedule == "step" and not self.step_epochs:
            raise ValueError("schedule=step needs step_epochs, e.g. optim.step_epochs=[30,60]")
        if self.schedule_epochs is not None and self.warmup_epochs >= self.schedule_epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} leaves nothing of "
                f"schedule_epochs={self.schedule_epochs}"
            )
        return self


class Ema(Section):
    """Exponential moving average of the parameters; evaluated and exported when on."""

    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="0 for off")


class Train(Section):
    """Length, batch and arithmetic of the training."""

    epochs: Epochs = 30
    global_batch: Batch = 256
    micro_batch: Annotated[int, Field(ge=2, le=1 << 20)] = Field(
        32, description="samples whose statistics are taken together; part of the numbers"
    )
    micro_batches_per_forward: Batch = Field(
        1,
        description="micro-batches of a rank that go through the network together, each with its "
        "own statistics: the same numbers, fewer and larger kernels, more memory",
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    matmul_precision: Literal["highest", "high", "medium"] = "high"
    compile: bool = Field(
        False, description="torch.compile; what it compiles is kept between attempts"
    )
    kernels: Literal["auto", "reference"] = Field(
        "auto",
        description="how gated layers train. auto: fused, by Triton on a GPU, by code compiled on "
        "first use on a CPU; reference: as plain PyTorch modules",
    )
    channels_last: bool = True
    clip_norm: Positive | None = None
    evaluate_every: Epochs = Field(1, description="epochs between validations")

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of "
                f"micro_batch={self.micro_batch}"
            )
        return self

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a global batch: the largest usable world size."""
        return self.global_batch // self.micro_batch


class Checkpoint(Section):
    """When the whole state is saved, and how many are kept."""

    every: Every = Field(
        "10min",
        description="steps, a duration, or auto: what loses least by mtbi and measured cost",
    )
    mtbi: Duration = Field(
        "2h", description="mean time between interruptions of the whole job, for every=auto"
    )
    lease: Duration = Field(
        "60s",
        description="how long a process on another machine may be silent before its run is "
        "taken over",
    )
    keep: Annotated[int, Field(ge=2, le=10_000)] = 2


class Evaluate(Section):
    """What is measured on the test set at the end of a run."""

    probe: bool = Field(False, description="a linear probe on the frozen features beside it")
    gates: bool = Field(True, description="gates by layer, permuted over images, averaged")


class Log(Section):
    """Where figures go and how often."""

    to: list[Literal["tensorboard", "wandb"]] = Field(
        ["tensorboard"], description="beside console and metrics.jsonl; skipped if not installed"
    )
    every: Count = Field(
        20, description="steps between training rows in metrics.jsonl; a short run has ten at least"
    )


class Recipe(Section):
    """One experiment, complete and fixed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    run_dir: AnyPath | None = Field(None, description="default runs/<name>/<8 hex of the run hash>")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    deterministic: bool = False
    resume: str = Field("auto", description="auto, never, or the path of a run folder")
    data: Data
    augment: Augment = Augment()
    model: Model = Model()
    method: Method = AdaFilter()
    optim: Optim = Optim()
    ema: Ema = Ema()
    train: Train = Train()
    engine: Engine = DDP()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    log: Log = Log()
    launch: Launch = Launch()

    @field_validator("method", mode="before")
    @classmethod
    def _default_method(cls, value: Any) -> Any:
        return {"name": "adafilter", **value} if isinstance(value, dict) else value

    @field_validator("engine", mode="before")
    @classmethod
    def _default_engine(cls, value: Any) -> Any:
        return {"name": "ddp", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.optim.warmup_epochs >= self.train.epochs and self.optim.warmup_epochs > 0:
            raise ValueError(
                f"optim.warmup_epochs={self.optim.warmup_epochs:g} leaves nothing of "
                f"train.epochs={self.train.epochs}; give less than that"
            )
        if isinstance(self.engine, DeepSpeed):
            _check_deepspeed(self.engine, self.train, self.deterministic)
        return self


def _check_deepspeed(engine: DeepSpeed, train: Train, deterministic: bool) -> None:
    mistakes = [
        f"engine.config: {line}"
        for line in contradictions(
            without_auto(engine.config),
            stage=engine.zero_stage,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch,
            clip_norm=train.clip_norm,
            deterministic=deterministic,
        )
    ]
    if train.precision == "fp64":
        mistakes.append("train.precision=fp64: DeepSpeed knows no fp64; use engine=ddp")
    if train.compile and engine.zero_stage == 3:
        mistakes.append(
            "train.compile=true: ZeRO-3 fetches weights between the layers, which cannot be "
            "compiled as one; use engine.zero_stage=2 or less"
        )
    if mistakes:
        raise ValueError("\n".join(mistakes))
