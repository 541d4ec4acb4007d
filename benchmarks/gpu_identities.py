"""Whether AdaFilter computes on this device what it computes in float64 by plain modules.

    python benchmarks/gpu_identities.py                # on the GPU
    python benchmarks/gpu_identities.py --device cpu   # what of it a CPU can do

A ResNet-18 with 101 classes on 32 images of noise, 64 pixels; forward, loss and backward. Compared
are all gradients and batch statistics together, by |a - b| / |b|:

- fused layers against plain modules in float64, with forced gates and with the network's own;
- in bf16 and fp16 the error of the fused layers against float64, as a multiple of the error of
  plain modules in the same precision;
- in fp32 the least error over eight draws of four images: a ReLU input so close to 0 that rounding
  changes its sign moves a gradient by 1e-3, in plain modules too; a draw without one shows 1e-6;
- compiled against eager; a captured inference graph against an eager call, and one that a network
  records by itself under autocast (not run on a GPU yet);
- two runs in deterministic mode: the same bits.

Exits 1 if one of them fails.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
import warnings
from collections.abc import Callable

# Before cuBLAS is loaded: its workspace decides whether products are deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist import convert, for_inference
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.models.gating.gate_overrides import override_gates
from adafilter_dist.models.gating.gated_conv import set_kernels
from adafilter_dist.models.inference.cuda_graph import capture

SIZE, IMAGES, CLASSES = 64, 32, 101
FEW, DRAWS = 4, 8  # images of a draw in fp32, and draws


class Identities:
    """One network, its images and forced gates; checks that print a line each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.failed: list[str] = []
        torch.manual_seed(0)
        backbone = torchvision.models.resnet18(num_classes=CLASSES)
        self.base = convert(backbone, size=SIZE).double().train()
        with torch.no_grad():  # the branches must differ, or nothing depends on the gates
            for layer in self.base.gated_layers.values():
                weight = layer.conv.weight
                weight.add_(0.1 * weight.std() * torch.randn_like(weight))
                layer.bn1.weight.add_(0.1 * torch.randn_like(layer.bn1.weight))
        self.images = torch.randn(IMAGES, 3, SIZE, SIZE, dtype=torch.float64)
        self.labels = torch.arange(IMAGES)
        self.bits = [
            torch.rand(IMAGES, layer.conv.out_channels) > 0.5
            for layer in self.base.gated_layers.values()
        ]

    def network(
        self, kernels: str, dtype: torch.dtype, device: torch.device | None = None
    ) -> AdaFilterNet:
        """A copy of the network with the given kernels, channels-last."""
        net = copy.deepcopy(self.base).to(device or self.device, dtype)
        net = net.to(memory_format=torch.channels_last)
        set_kernels(net, kernels)  # type: ignore[arg-type]
        return net

    def step(
        self,
        net: AdaFilterNet,
        *,
        cast: torch.dtype | None = None,
        own_gates: bool = False,
        forward: Callable[[Tensor], Tensor] | nn.Module | None = None,
    ) -> Tensor:
        """Every gradient and batch statistic of one step, flat, in float64 on the CPU."""
        parameter = next(net.parameters())
        images = self.images.to(parameter.device, parameter.dtype)
        images = images.contiguous(memory_format=torch.channels_last)

        def forced(index: int, gates: Tensor) -> Tensor:
            # The gate keeps its graph: its gradient is part of what is compared.
            return gates if own_gates else self.bits[index][: len(gates)].to(gates) + 0 * gates

        with (
            override_gates(net, forced),
            torch.autocast(parameter.device.type, cast, enabled=cast is not None),
        ):
            logits = (net if forward is None else forward)(images)
        loss = functional.cross_entropy(
            logits.to(parameter.dtype), self.labels[: len(logits)].to(parameter.device)
        )
        (loss + sum(gates.mean() for gates in net.gate.decisions.gates.values())).backward()
        flat = [p.grad.double().flatten().cpu() for p in net.parameters() if p.grad is not None]
        flat.append(step_statistics.collect(net).double().cpu())
        step_statistics.discard(net)
        net.zero_grad(set_to_none=True)
        return torch.cat(flat)

    def check(self, name: str, error: float, allowed: float) -> None:
        """Print and keep whether ``error`` is allowed; NaN never is."""
        passed = error <= allowed
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {error:.2e} (<= {allowed:.1e})", flush=True)
        if not passed:
            self.failed.append(name)

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Run a group of checks; an exception is one that failed, and the next group runs."""
        began = time.perf_counter()
        try:
            work()
        except Exception as error:
            print(f"FAIL {name}: {type(error).__name__}: {error}"[:2000], flush=True)
            self.failed.append(name)
        print(f"     {name}: {time.perf_counter() - began:.0f} s", flush=True)


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm())


def run(device: torch.device) -> list[str]:
    """All checks; the names of those that failed."""
    identities = Identities(device)
    check, step, network = identities.check, identities.step, identities.network
    truth = step(network("reference", torch.float64))
    precisions = {"bf16": torch.bfloat16}
    if device.type == "cuda":
        precisions["fp16"] = torch.float16

    def in_float64() -> None:
        on_cpu = step(network("reference", torch.float64, torch.device("cpu")))
        check("this device against the CPU, fp64", distance(truth, on_cpu), 1e-9)
        fused = step(network("auto", torch.float64))
        check("fused, fp64, forced gates", distance(fused, truth), 1e-9)
        own = step(network("auto", torch.float64), own_gates=True)
        plain = step(network("reference", torch.float64), own_gates=True)
        check("fused, fp64, own gates", distance(own, plain), 1e-8)

    def in_precision() -> None:
        for name, cast in precisions.items():
            plain = distance(step(network("reference", torch.float32), cast=cast), truth)
            fused = distance(step(network("auto", torch.float32), cast=cast), truth)
            check(f"fused, {name}: its error over plain modules' {plain:.1e}", fused / plain, 1.5)

    def in_fp32() -> None:
        whole = identities.images
        errors: dict[str, list[float]] = {"reference": [], "auto": []}
        for _ in range(DRAWS):
            identities.images = torch.randn_like(whole[:FEW])
            exact = step(network("reference", torch.float64))
            for kernels, several in errors.items():
                several.append(distance(step(network(kernels, torch.float32)), exact))
        identities.images = whole
        for kernels, several in errors.items():
            print(f"     {kernels}: {' '.join(f'{error:.1e}' for error in several)}")
        check(f"fused, fp32, least of {DRAWS}", min(errors["auto"]), 1e-5)
        check(f"plain modules, fp32, least of {DRAWS}", min(errors["reference"]), 1e-5)

    def compiled() -> None:
        net = network("auto", torch.float32)
        eager = step(net)
        check("compiled, fp32", distance(step(net, forward=torch.compile(net)), eager), 1e-3)

    def captured() -> None:
        if device.type != "cuda":
            print("skip graph: CUDA graphs need a GPU")
            return
        with torch.no_grad():
            fast = for_inference(network("auto", torch.float32).eval())
            fast.backbone.bfloat16()
            images = identities.images.to(device, torch.bfloat16)
            images = images.contiguous(memory_format=torch.channels_last)
            replay = capture(fast, images)
            eager = fast(images).double()
            check("captured inference, bf16", distance(replay(images).double(), eager), 1e-3)
            plain = network("reference", torch.float64).eval()(images.double()).double()
            check("for_inference, bf16, against fp64", distance(eager, plain), 0.1)

            # By itself from the third forward on, under autocast, where the kernel casts inside.
            fast = for_inference(network("auto", torch.float32).eval())
            images = images.float()
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                for _ in range(4):
                    replayed = fast(images).double()
                fast.replay = False
                alone = fast(images).double()
            refused = fast._replayed.refused
            check(
                f"replayed inference, autocast{refused and ': '}{refused}", float(bool(refused)), 0
            )
            check("the same started one by one", distance(replayed, alone), 1e-3)
            check("autocast, against fp64", distance(alone, plain), 0.1)

    def deterministic() -> None:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        cast = torch.bfloat16 if device.type == "cuda" else None
        runs = [step(network("auto", torch.float32), cast=cast, own_gates=True) for _ in range(2)]
        check("deterministic: values that differ", float((runs[0] != runs[1]).sum()), 0.0)

    for name, work in {
        "float64": in_float64,
        "precisions": in_precision,
        "fp32": in_fp32,
        "compiled": compiled,
        "captured": captured,
        "deterministic": deterministic,
    }.items():
        identities.attempt(name, work)
    return identities.failed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    device = torch.device(parser.parse_args().device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu_identities.py: torch sees no GPU here; --device cpu", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    failed = run(device)
    print(f"failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
