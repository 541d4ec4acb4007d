"""Whether Triton works on this machine, found out once, by one kernel.

It may be installed and not work: its first launch compiles C, which needs a compiler and Python.h.
"""

from __future__ import annotations

import torch

_ADVICE = "its first launch compiles C: install a C compiler and Python's headers (python3-dev)"
_reason: str | None = None


def why_no_triton() -> str:
    """Why Triton computes nothing on this machine's GPUs, in a line; empty where it does.

    Empty also without a GPU, and inside of what torch.compile traces before it was found out.
    """
    global _reason
    if _reason is None:
        if torch.compiler.is_compiling() or not torch.cuda.is_available():
            return ""
        _reason = try_kernel(torch.device("cuda", torch.cuda.current_device()))
    return _reason


def try_kernel(device: torch.device) -> str:
    """The reason in a line why a kernel does not run on ``device``; empty where it does."""
    try:
        from adafilter_dist.models.ops.triton_probe import launch

        launch(device)
    except ImportError:
        return "it is not installed"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler, a linker, a driver: whatever it is, it would return
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{line[:200]}; {_ADVICE}"
    return ""
