"""Reading weights files safely, and loading them into a network with errors that help."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError

_WRAPPERS = ("state_dict", "model", "model_state_dict")


def sha256_of_state(module: nn.Module) -> str:
    """Hex digest of a module's state: names, shapes and bytes in order of name."""
    return sha256_of_tensors(module.state_dict())


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """Hex digest of named tensors: names, shapes and bytes in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict of a .safetensors file or of a file of torch.save, without unpickling code.

    One wrapping level (state_dict, model) and DDP's ``module.`` are taken off. UserError if the
    file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors. "
            "Allowed: .safetensors, or a state dict saved by torch.save"
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict of tensors")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def load_trunk(module: nn.Module, head: str, state: dict[str, Tensor], origin: str) -> None:
    """Load `state` into `module`; the classifier at path `head` may differ or be missing.

    Raises UserError, naming the first of each kind, if keys or shapes do not fit.
    """
    own = module.state_dict()
    free = {f"{head}.weight", f"{head}.bias"}
    expected = {k for k in own if k not in free and not k.endswith("num_batches_tracked")}
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    complaints = [
        _complaint("missing", (k for k in own if k in expected and k not in state)),
        _complaint("unexpected", (k for k in state if k not in own and k not in free)),
        _complaint(
            "of another shape",
            (
                f"{k} {_shape(state[k])} instead of {_shape(v)}"
                for k, v in own.items()
                if k in state and k not in fitting and k not in free
            ),
        ),
    ]
    if any(complaints):
        raise UserError(
            f"{origin} holds the weights of another architecture than {type(module).__name__}: "
            + "; ".join(filter(None, complaints))
            + ". Check model.name and model.weights"
        )
    module.load_state_dict(fitting, strict=False)


def _complaint(kind: str, names: Iterable[str]) -> str:
    mismatched = list(names)
    return f"{len(mismatched)} {kind} (first: {mismatched[0]})" if mismatched else ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
