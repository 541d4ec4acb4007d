"""A trained model as a folder that needs nothing else: model.safetensors and config.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods.build import METHODS
from adafilter_dist.methods.programs import FILES, load_program
from adafilter_dist.models.backbone.backbones import build_architecture
from adafilter_dist.models.backbone.head import replace_head
from adafilter_dist.models.backbone.preprocess import Preprocess, Transform, evaluation_transform
from adafilter_dist.models.backbone.weights import read_state, sha256_of_tensors
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.models.gating.routed_blocks import SpotTuneNet
from adafilter_dist.models.inference.compact import read_constant
from adafilter_dist.models.inference.selected_conv import InferenceNet, for_inference
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.files import write_bytes, write_json
from adafilter_dist.version import __version__

# What version 0.2.0 reads: plain networks, and compacted folders of its own gates. It has no word
# for anything else, and ends in a traceback; it refuses an unknown format in one line.
FORMAT = 1
COMPACT_FORMAT = 2
NEWER_FORMAT = 3
_FORMATS = (FORMAT, COMPACT_FORMAT, NEWER_FORMAT)
_METHODS_OF_FORMAT_1 = ("finetune", "linear_probe")


class Exportable(Protocol):
    """What an export needs to know; `adafilter_dist.methods.TrainableModel` is one.

    `name` is the architecture's, `head` the classifier's path in it, `method` the recipe's name,
    `exported` what to write of the state; all of it where that is None.
    """

    model: nn.Module
    name: str
    head: str
    method: str
    exported: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None


def export_model(
    folder: Path, trainable: Exportable, *, classes: Sequence[str], preprocess: Preprocess
) -> None:
    """Write `folder`/model.safetensors and config.json, each replaced as a whole.

    The configuration is the same for all exports of a run, so that any pair of files fits.
    """
    constants = preprocess.to_dict()
    config: dict[str, Any] = {
        "format": FORMAT if trainable.method in _METHODS_OF_FORMAT_1 else NEWER_FORMAT,
        "version": __version__,
        "model": trainable.name,
        "head": trainable.head,
        "method": trainable.method,
        "classes": list(classes),
        # The stored size lies beside the constants, where older versions pass over it.
        "stored_size": constants.pop("stored_size"),
        "preprocess": constants,
    }
    if isinstance(trainable.model, AdaFilterNet):
        config |= {
            "gate": trainable.model.gate.settings.model_dump(mode="json"),
            "batchnorm": trainable.model.batchnorm,
            "layers": [[layer.name, layer.batchnorm] for layer in trainable.model.report.gated],
            "left_out": [list(entry) for entry in trainable.model.report.left_out],
        }
    if isinstance(trainable.model, SpotTuneNet):
        config |= {
            "blocks": trainable.model.block_names,
            "sample": trainable.model.sample,
            "seed": trainable.model.seed,
        }
    state = trainable.model.state_dict()
    write_files(folder, config, trainable.exported(state) if trainable.exported else state)


def write_files(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write config.json and the state of a model, each replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_json(folder / "config.json", sealed_config(config))
    digest = {"sha256": sha256_of_tensors(state)}
    write_bytes(folder / "model.safetensors", safetensors.torch.save(state, digest))


def sealed_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it is written: with a sha256 of itself."""
    return {**config, "sha256": _seal_of(config)}


def _seal_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


class Classifier(nn.Module):
    """What `load` gives: images (N, 3, H, W) to logits (N, classes), named by `classes`.

    A word for type checkers alone: the object is an AdaFilterNet, an InferenceNet, the plain
    network, or what runs a program; `isinstance` tells which.
    """

    classes: list[str]


@dataclass(frozen=True)
class Export:
    """An export that was read: its model in evaluation mode, and what it expects and tells.

    The model takes float images (N, 3, crop, crop) of ``dtype``, normalised; with
    ``takes_pixels`` uint8 RGB (N, crop, crop, 3). ``classes`` names the logits.
    """

    model: nn.Module
    preprocess: Preprocess
    classes: list[str]
    config: dict[str, Any]
    dtype: torch.dtype = torch.float32
    takes_pixels: bool = False

    @property
    def transform(self) -> Transform:
        """From a picture to what the model expects of it in a batch."""
        return evaluation_transform(self.preprocess, pixels=self.takes_pixels)


def load(path: str | Path, *, fast: bool = False) -> tuple[Classifier, Transform]:
    """The model of an export (or of a run's best/) in evaluation mode, and its transform.

    The transform takes a PIL picture, a path, a file's bytes, or an array, reads it as `prepare`
    does, and gives the float32 tensor (3, H, W) that the model expects in a batch; it raises
    UserError for what cannot be used. `model.classes` names the logits. With `fast` an AdaFilter
    network comes as `for_inference` makes it: quicker, the same up to rounding, not to be trained;
    others have nothing to choose and come as they are. What `adafilter compact` wrote is always
    fast. What `adafilter export --to onnx` or `torch` wrote comes as a module that runs the
    program; where that takes pixels, the transform gives uint8 (H, W, 3). Raises UserError if files
    are missing, damaged or of a newer format.
    """
    export = open_export(path, fast=fast)
    return cast(Classifier, export.model), export.transform


def open_export(path: str | Path, *, fast: bool = False) -> Export:
    """`load` with all that the export says."""
    folder = folder_of(Path(path))
    config = read_config(folder)
    stored_size = config.get("stored_size")
    preprocess = Preprocess.from_dict(config["preprocess"] | {"stored_size": stored_size})
    if "kind" in config:
        return _open_program(folder, config, preprocess)
    model = _rebuild(folder, config, preprocess)
    if "compact" in config:
        assert isinstance(model, AdaFilterNet)
        model = for_inference(model, read_constant(config["compact"]))
    state = read_weights(folder)
    floating = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    try:
        model.to(floating).load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{folder}: its two files do not fit together: {first}") from error
    model.classes = list(config["classes"])  # type: ignore[assignment]
    model.eval()
    if isinstance(model, InferenceNet):
        model.gate.prepare()
    elif fast and isinstance(model, AdaFilterNet) and model.gate.control is None:
        model = for_inference(model)
    return Export(model, preprocess, list(config["classes"]), config, floating)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an export; UserError if they are missing, or not what was written."""
    path = folder / "model.safetensors"
    state = read_state(path)
    with safetensors.safe_open(path, "pt") as file:
        known = (file.metadata() or {}).get("sha256")  # none in those of earlier versions
    if known is not None and known != sha256_of_tensors(state):
        raise UserError(f"{path} is damaged: its tensors are not those that were written (sha256)")
    return state


def _open_program(folder: Path, config: dict[str, Any], preprocess: Preprocess) -> Export:
    if config["kind"] not in FILES:
        raise UserError(_newer(folder, config, f"kind {config['kind']!r}"))
    model = load_program(folder, config)
    model.classes = list(config["classes"])  # type: ignore[assignment]
    model.eval()
    dtype = torch.float64 if config["dtype"] == "float64" else torch.float32
    is_pixels = config["input"] == "pixels"
    return Export(model, preprocess, list(config["classes"]), config, dtype, is_pixels)


def weights_hash(folder: Path) -> str:
    """The sha256 that the weights of an export carry; empty in those of earlier versions."""
    path = folder / "model.safetensors"
    try:
        with safetensors.safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get("sha256", ""))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from None


def folder_of(path: Path) -> Path:
    """The folder of an export itself, where `path` may be a run."""
    if not (path / "config.json").is_file() and RunFiles(path).best_config.is_file():
        return RunFiles(path).best
    return path


def _rebuild(folder: Path, config: dict[str, Any], preprocess: Preprocess) -> nn.Module:
    head, method = config["head"], METHODS.get(config["method"])
    if method is None:
        raise UserError(_newer(folder, config, f"method {config['method']!r}"))
    with torch.random.fork_rng(devices=[]):
        module = build_architecture(config["model"], preprocess.crop)
        replace_head(module, head, len(config["classes"]), seed=0)
        try:
            return method.rebuild(module, head, config)
        except ValidationError as error:  # of the gate's settings
            unknown = ", ".join(f"gate.{'.'.join(map(str, e['loc']))}" for e in error.errors())
            raise UserError(_newer(folder, config, unknown)) from None


def _newer(folder: Path, config: dict[str, Any], what: str) -> str:
    return (
        f"{folder} was written by adafilter {config.get('version')}; this version, {__version__}, "
        f"does not know its {what}; install a newer adafilter-dist"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of an export; UserError if it is missing, damaged or of another format."""
    path = folder / "config.json"
    try:
        config: Any = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing; give the best/ folder of a run, or an export"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it holds no configuration")
    if config.get("format") not in _FORMATS:
        raise UserError(
            f"{path} has format {config.get('format')}, this version reads "
            f"{', '.join(map(str, _FORMATS))}; install a newer adafilter-dist"
        )
    known = config.pop("sha256", None)  # none in those of earlier versions
    if known is not None and known != _seal_of(config):
        raise UserError(
            f"{path} is damaged or was edited (sha256): put back what was there; if the edit is "
            'meant, take out its line "sha256"'
        )
    return config
