"""Builds data, model, engine and training step from a recipe, ready for the loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from adafilter_dist.activations.cache import ActivationCache, Work, open_cache
from adafilter_dist.data.loading.agreement import require_same_pixels
from adafilter_dist.data.loading.batch import DeviceBatch
from adafilter_dist.data.loading.device import BatchTransfer
from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.loading.order import micro_batches_of_rank
from adafilter_dist.data.loading.prefetch import CudaPrefetcher, Prefetcher, forward_batches
from adafilter_dist.data.stored.prepared import Prepared, open_prepared
from adafilter_dist.distributed import World, set_arithmetic
from adafilter_dist.distributed.nodes import gather, warnings_about
from adafilter_dist.engine import Engine, FullState, build_engine
from adafilter_dist.engine.compiled import keep_compiled
from adafilter_dist.errors import UserError
from adafilter_dist.evaluate import Evaluator
from adafilter_dist.evaluate.oracle import require_oracle
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.gating.control_gates import set_domains
from adafilter_dist.models.gating.gated_conv import set_kernels
from adafilter_dist.models.gating.look_ahead import LookAhead
from adafilter_dist.models.gating.random_modules import find_random_modules
from adafilter_dist.models.ops import passes
from adafilter_dist.models.ops.passes import Kernels
from adafilter_dist.models.ops.triton_start import why_no_triton
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed
from adafilter_dist.recipe.sections.model import AdaFilter
from adafilter_dist.system.progress import Counting, no_counting
from adafilter_dist.training.ema import ModelEma
from adafilter_dist.training.forward_size import with_forward_size
from adafilter_dist.training.stage_data import StagingCallbacks, stage_or_verify
from adafilter_dist.training.step import TrainingStep, forwards_of
from adafilter_dist.training.step_graph import recorder_of


@dataclass
class Session:
    """Everything that one rank needs to train; made anew by every attempt."""

    recipe: Recipe
    world: World
    prepared: Prepared
    preprocess: Preprocess
    trainable: TrainableModel
    engine: Engine
    loader: TrainLoader
    ema: ModelEma | None
    step: TrainingStep
    transfer: BatchTransfer
    prefetcher: Prefetcher | None
    cache: ActivationCache | None = None
    notices: list[str] = field(default_factory=list)  # of the nodes, to be said at the start
    counting: Counting = no_counting  # shows how far an evaluation is

    @property
    def kernels(self) -> str:
        """What computes the gated layers in training: triton, native, reference; none of them."""
        if self.trainable.gates is None:
            return "none"
        return passes.name(self.world.device, kernels_of(self.recipe))

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return self.loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Global batches in the run."""
        return self.steps_per_epoch * self.recipe.train.epochs

    @contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[DeviceBatch]]:
        """This rank's batches of an epoch from ``first_step`` on, on the device, one per forward.

        All threads have ended when the context is left, also by an exception.
        """
        if self.cache is not None:
            forwards_of_step = rank_forwards(self.recipe, self.world)
            work = Work(epoch, first_step, self.steps_per_epoch, forwards_of_step)
            with self.cache.epoch(work, self.trainable.num_classes) as cached:
                yield cached
            return
        counts = forward_counts(self.recipe, self.world)
        left = counts * (self.steps_per_epoch - first_step)
        with (
            self.loader.epoch(epoch, first_step) as batches,
            forward_batches(batches, left, self.transfer, self.prefetcher) as forwards,
        ):
            yield forwards

    @property
    def evaluator(self) -> Evaluator:
        """What evaluates the network on the splits of the data."""
        counting = self.world.progress.watched(self.counting)
        return Evaluator(
            self.recipe, self.prepared, self.preprocess, self.world, self.cache, counting
        )

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The network as it is evaluated: averaged where EMA is on; collective."""
        averaged = self.ema.applied() if self.ema is not None else nullcontext()
        with averaged, self.engine.whole_model() as model:
            yield model

    def full_state(self) -> FullState:
        """The engine's state with the moving average beside it; collective."""
        state = self.engine.full_state()
        if self.ema is not None:
            state.ema = self.ema.state()
        return state

    def load_full_state(self, state: FullState) -> None:
        """Take over a checkpoint's state."""
        self.engine.load_full_state(state)
        if self.ema is not None:
            self.ema.load(state.ema)


def build_session(
    recipe: Recipe,
    world: World,
    callbacks: StagingCallbacks | None = None,
    data: str | None = None,
    together: int | None = None,
    decoder: str | None = None,
) -> Session:
    """Open the prepared data, load the weights, convert, and wire up engine and step.

    ``callbacks`` are called while data are copied to the nodes, ``data`` is the fingerprint of the
    data that the run began on, ``together`` how many micro-batches of it shared a forward,
    ``decoder`` what decoded its pictures. The session's recipe has a number for
    ``train.micro_batches_per_forward=auto``. Collective. Raises UserError for whatever the user
    must mend first.
    """
    # Process-wide settings come first: they change how everything below computes.
    progress = world.progress
    set_arithmetic(recipe)
    compiling = keep_compiled(recipe, world.device)

    # Data: what hosts and GPUs the ranks run on, then where this rank reads the pictures from.
    # Copying may take hours; who waits for it has heartbeats of its own.
    nodes = gather(world)
    progress.move("opening the data")
    shared = open_prepared(recipe, known=data)
    with progress.unlimited("copying or verifying the data"):
        prepared, notices = stage_or_verify(
            shared, recipe, world, nodes, callbacks or StagingCallbacks()
        )
    data_notices = [] if prepared.notice is None else [prepared.notice]
    notices = [*warnings_about(nodes), *data_notices, *notices, *compiling]
    notices += _unfused(recipe, world.device)

    # Model: the backbone with its weights and a new head, made trainable by the recipe's method.
    progress.move("loading the weights")
    preprocess = resolve_preprocess(recipe)
    torch.manual_seed(recipe.seed)  # fresh heads and gates are the seed's, on every rank
    backbone = load_backbone(recipe, prepared.classes)
    progress.move("building the network")
    if isinstance(recipe.method, AdaFilter):
        require_oracle(recipe.method.gate.oracle, prepared, "method.gate.oracle")
    trainable = build_method(backbone, recipe)
    set_domains(trainable.model, None, prepared.domains)
    set_kernels(trainable.model, kernels_of(recipe))
    require_same_random_numbers(trainable, recipe, preprocess)

    # Loader, engine and step. The engine takes over the model and its optimizer groups.
    progress.move("starting the loader")
    loader = TrainLoader(
        prepared,
        recipe,
        preprocess,
        rank=world.rank,
        world_size=world.world_size,
        device=world.device,
        before=decoder,
    )
    progress.enter("comparing pixels with other ranks")
    require_same_pixels(loader.kind, world)
    # FFCV sets torch's thread count when a loader is made; the bits depend on it.
    torch.set_num_threads(world.threads)
    recorder, about_graph = recorder_of(recipe, trainable, world.device)
    progress.enter("building the engine")
    engine = build_engine(trainable.model, trainable.groups, recipe, world, trainable.rule)
    ema = ModelEma(engine, recipe.ema.decay) if recipe.ema.decay else None
    progress.enter("measuring a forward")
    recipe, about_size = with_forward_size(
        recipe, trainable, engine, preprocess.crop, world, together, recorded=recorder is not None
    )
    step = TrainingStep(recipe, trainable, engine, world, ema, recorder)
    transfer = BatchTransfer(preprocess, world.device, engine.dtype, recipe.train.channels_last)

    # What the frozen layers give may be read instead of computed.
    progress.move("opening train.cache")
    say = callbacks.tell if callbacks is not None else print
    cache, about_cache = open_cache(
        recipe, engine.model, trainable, loader, transfer, prepared.fingerprint, say
    )

    # On a GPU, the next batch is copied while the current one is computed.
    prefetcher: Prefetcher | None = None
    if world.device.type == "cuda":
        samples = max(forward_counts(recipe, world)) * recipe.train.micro_batch
        prefetcher = CudaPrefetcher(transfer, samples)
    return Session(
        recipe,
        world,
        prepared,
        preprocess,
        trainable,
        engine,
        loader,
        ema,
        step,
        transfer,
        prefetcher,
        cache,
        [*notices, *about_graph, *about_size, *about_cache],
    )


def kernels_of(recipe: Recipe) -> Kernels:
    """How gated layers train: ZeRO-3 hands weights to modules when these are called, and a fused
    layer calls none for its BatchNorms. Nor does it know a BatchNorm behind the choice."""
    engine = recipe.engine
    if isinstance(engine, DeepSpeed) and engine.zero_stage == 3:
        return "reference"
    if isinstance(recipe.method, AdaFilter) and recipe.method.shared_batchnorm:
        return "reference"
    return recipe.train.kernels


def _unfused(recipe: Recipe, device: torch.device) -> list[str]:
    """What to say where gated layers are not fused, and the recipe does not ask for plain."""
    method = recipe.method
    if not isinstance(method, AdaFilter) or recipe.train.kernels != "auto":
        return []
    if method.shared_batchnorm:
        return [
            "method.shared_batchnorm=true: gated layers train as plain modules, more slowly; the "
            "fused ones have a BatchNorm for each branch"
        ]
    if device.type == "cuda" and (reason := why_no_triton()):
        return [
            f"gated layers train as plain modules, more slowly: Triton does not work ({reason})"
        ]
    return []


def forward_counts(recipe: Recipe, world: World) -> list[int]:
    """How many micro-batches each forward of this rank takes in a step."""
    return [len(part) for part in rank_forwards(recipe, world)]


def rank_forwards(recipe: Recipe, world: World) -> list[range]:
    """The micro-batches of each forward of this rank in a step."""
    mine = micro_batches_of_rank(recipe.train.micro_batches, world.rank, world.world_size)
    return forwards_of(mine, recipe.train.together)


def require_same_random_numbers(
    trainable: TrainableModel, recipe: Recipe, preprocess: Preprocess
) -> None:
    """UserError where micro-batches of one forward would share a module's random numbers."""
    together = recipe.train.together
    if together == 1:
        return
    drawing = find_random_modules(trainable.model, preprocess.crop)
    if drawing:
        more = f" and {len(drawing) - 1} more" if len(drawing) > 1 else ""
        raise UserError(
            f"train.micro_batches_per_forward={together}: {drawing[0]} "
            f"({type(trainable.model.get_submodule(drawing[0])).__name__}){more} of "
            f"{trainable.name} draws random numbers for a whole forward, so that the numbers would "
            "not be those of each micro-batch; use train.micro_batches_per_forward=1, or "
            "model.dropout=false (which changes the numbers)"
        )


def frozen_tensor_names(model: nn.Module) -> frozenset[str]:
    """Tensors of the state that training never changes.

    Frozen parameters and frozen twins, and the pre-trained layers that the gate looks ahead with.
    """
    parameters = {name for name, p in model.named_parameters() if not p.requires_grad}
    twins = {n for n, _ in model.named_buffers() if n.rpartition(".")[2].startswith("frozen_")}
    look_ahead = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, LookAhead)
        for name, _ in module.named_buffers()
    }
    return frozenset(parameters | twins | look_ahead)
