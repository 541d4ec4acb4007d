"""The Triton convolution by chosen filters against both convolutions in float64, then selected."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.errors import UserError
from tests.models.ops.conftest import Run
from tests.models.ops.worker import Worker

# The interpreter takes its time.
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """One convolution: sizes of x, filters, taps, and how they move over x."""

    x: tuple[int, int, int, int]
    filters: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)


CASES = {
    "stem": Case((2, 3, 13, 9), 17, (7, 7), (2, 2), (3, 3)),
    "3x3": Case((3, 20, 7, 7), 20),
    "strided 1x1": Case((1, 64, 5, 6), 40, (1, 1), (2, 2), (0, 0)),
    "dilated": Case((2, 17, 6, 9), 3, (3, 3), (2, 1), (2, 2), (2, 2)),
    "uneven": Case((2, 16, 5, 8), 6, (1, 3), (1, 2), (0, 1), (1, 2)),
    "several tiles": Case((1, 33, 12, 13), 70, (1, 1), (1, 1), (0, 0)),
    "one pixel": Case((1, 130, 1, 1), 16, (1, 1), (1, 1), (0, 0)),
    "one channel, one filter": Case((2, 1, 4, 3), 1),
}
# (relative, absolute) to sums of float64 from the same inputs.
WITHIN = {torch.float32: (1e-5, 1e-5), torch.float16: (2.0**-10, 1e-4)}


def random_filters(case: Case, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """weight (2, Cout, KH, KW, Cin), bias (2, Cout)."""
    depth = case.x[1] * case.kernel[0] * case.kernel[1]
    weight = torch.randn(2, case.filters, *case.kernel, case.x[1], device=device) / depth**0.5
    return weight.to(dtype), torch.randn(2, case.filters, device=device)


def expected(
    case: Case, x: Tensor, weight: Tensor, bias: Tensor, bits: Tensor, residual: Tensor | None
) -> Tensor:
    frozen, tuned = (
        F.conv2d(
            x.double(),
            weight[i].double().permute(0, 3, 1, 2),
            bias[i].double(),
            case.stride,
            case.padding,
            case.dilation,
        )
        for i in (0, 1)
    )
    out = torch.where(bits[:, :, None, None], tuned, frozen)
    return out if residual is None else out + residual.double()


def check_conv(device: str, case: Case, dtype: torch.dtype, chosen: str, relu: bool) -> None:
    from adafilter_dist.models.inference.selected_triton import selected_conv

    torch.manual_seed(sum(case.x))
    x = torch.randn(case.x, device=device).to(dtype)
    if relu:  # the other half of the cases copies x first
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = random_filters(case, dtype, device)
    bits = torch.rand(case.x[0], case.filters, device=device) > 0.5
    if chosen != "random":
        bits = torch.full_like(bits, chosen == "tuned")
    target = expected(case, x, weight, bias, bits, None)
    residual = torch.randn_like(target).to(dtype) if relu else None
    target = expected(case, x, weight, bias, bits, residual)
    out = selected_conv(
        *(x, weight, bias, bits),
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        residual=residual,
        relu=relu,
    )
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    rtol, atol = WITHIN[dtype]
    torch.testing.assert_close(
        out.double(), target.relu() if relu else target, rtol=rtol, atol=atol
    )


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("relu", [False, True])
def test_it_is_both_convolutions_then_selected(run: Run, case: Case, relu: bool) -> None:
    # Not bfloat16: the interpreter multiplies its bits as whole numbers. It is compiled below.
    for dtype in (torch.float32, torch.float16):
        run(check_conv, case, dtype, "random", relu)


@pytest.mark.parametrize("chosen", ["frozen", "tuned"])
def test_all_bits_alike_are_one_convolution(run: Run, chosen: str) -> None:
    run(check_conv, CASES["3x3"], torch.float32, chosen, True)


def check_alone(device: str) -> None:
    from adafilter_dist.models.inference.selected_triton import selected_conv

    case = CASES["3x3"]
    x = torch.randn(case.x, device=device)
    weight, bias = random_filters(case, torch.float32, device)
    bits = torch.rand(case.x[0], case.filters, device=device) > 0.5
    out = selected_conv(x, weight, bias, bits, padding=(1, 1))
    for i in range(len(x)):
        one = slice(i, i + 1)
        alone = selected_conv(x[one], weight, bias, bits[one], padding=(1, 1))
        torch.testing.assert_close(out[one], alone, rtol=1e-5, atol=1e-5)
    # What was not chosen is not read: it could not be, without spoiling the result.
    weight[1, ~bits.any(0)] = float("nan")
    weight[0, bits.all(0)] = float("nan")
    assert torch.equal(selected_conv(x, weight, bias, bits, padding=(1, 1)), out)


def test_images_and_filters_not_chosen_do_not_meet(run: Run) -> None:
    run(check_alone)


def check_shared_rows_and_means(device: str, dtype: torch.dtype, case: Case) -> None:
    from adafilter_dist.models.inference.selected_triton import selected_conv, selected_conv_mean

    torch.manual_seed(1)
    x = torch.randn(case.x, device=device).to(dtype)
    weight, bias = random_filters(case, dtype, device)
    bits = torch.rand(case.x[0], case.filters, device=device) > 0.5
    how = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    # Every third filter is settled: one row for both; the others lie in any order.
    settled = torch.arange(case.filters, device=device) % 3 == 0
    shared = torch.where(settled[None, :, None, None, None], weight[1], weight)
    wanted = selected_conv(x, shared, torch.where(settled, bias[1], bias), bits, **how, relu=True)
    order = torch.randperm(2 * case.filters, device=device)
    where = order.argsort().view(2, -1)
    pairs = torch.where(settled, where[1], where)
    rows, biases = weight.flatten(0, 1)[order], bias.flatten()[order]
    rows[where[0][settled]] = float("nan")  # the rows that nobody uses any more
    out, mean = selected_conv_mean(x, rows, biases, bits, pairs, **how, relu=True)
    assert torch.equal(out, wanted)
    assert mean is not None and mean.dtype == torch.float32
    torch.testing.assert_close(mean, out.float().mean((2, 3)), rtol=1e-5, atol=1e-6)
    _, none = selected_conv_mean(x, rows, biases, bits, pairs, **how, relu=True, want_mean=False)
    assert none is None


@pytest.mark.parametrize("case", ["several tiles", "uneven", "one pixel"])
def test_shared_rows_and_means_over_pixels(run: Run, case: str) -> None:
    for dtype in (torch.float32, torch.float16):
        run(check_shared_rows_and_means, dtype, CASES[case])


def check_network(device: str, settled: bool) -> None:
    from unittest.mock import patch

    from adafilter_dist import convert
    from adafilter_dist.models.gating.gate import PooledMeans
    from adafilter_dist.models.inference import inference_gate, selected_conv, selected_triton
    from adafilter_dist.models.ops import device_kind
    from tests.models.networks import images

    torch.manual_seed(0)
    layers = [
        each
        for width in (3, 6, 6)
        for each in (nn.Conv2d(width, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
    ]
    plain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    net = convert(plain, size=16).float().eval().to(device)
    for layer in net.gated_layers.values():  # or both filters would give the same
        layer.conv.weight.data.add_(0.2 * torch.randn_like(layer.conv.weight))
    constant = None
    if settled:
        constant = {
            name: torch.arange(layer.conv.out_channels).remainder(3).sub(1).to(torch.int8)
            for name, layer in net.gated_layers.items()
        }
    fast = selected_conv.for_inference(net, constant)
    for index, into in enumerate(fast.gate.outputs):  # decisions that no rounding changes
        signs = torch.tensor([5.0, -5.0]).repeat(len(into.bias))[: len(into.bias)]
        into.bias.data.copy_(signs if index % 2 else -signs)
    fast.gate.prepare()
    pictures = images(2, 16, torch.float32).to(device)
    launched, read = [], []
    launch, mean_of = selected_triton.selected_conv_mean, PooledMeans.of

    def counted(*words: object, **more: object) -> object:
        launched.append(words)
        return launch(*words, **more)  # type: ignore[arg-type]

    def watched(self: PooledMeans, x: Tensor, dtype: torch.dtype) -> Tensor:
        entry = self._means.get(id(x))
        read.append(entry is not None and entry[0]() is x and entry[1] == x._version)
        mean = mean_of(self, x, dtype)
        torch.testing.assert_close(mean, x.mean((2, 3), dtype=dtype), rtol=1e-3, atol=1e-4)
        return mean

    with torch.inference_mode():
        wanted = fast(pictures)
    with (
        patch.object(device_kind, "on_gpu", lambda x: True),
        patch.object(inference_gate, "can_step", lambda x, step: False),
        patch.object(selected_conv, "selected_kernel", lambda: counted),
        patch.object(PooledMeans, "of", watched),
    ):
        for autocast in (False, True):
            for context in (torch.inference_mode(), torch.no_grad()):
                launched.clear(), read.clear()
                with context, torch.autocast(device, torch.float16, enabled=autocast):
                    found = fast(pictures)
                tolerance = 2e-2 if autocast else 1e-4
                torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)
                assert len(launched) == len(fast.gate.names)
                assert all(words[0].dtype == words[1].dtype for words in launched)  # type: ignore[attr-defined]
                assert read == [False, True, True]  # pictures have no layer before them


@pytest.mark.parametrize("settled", [False, True])
def test_a_network_by_the_kernel_also_under_autocast(run: Run, settled: bool) -> None:
    run(check_network, settled)


def check_operator(device: str) -> None:
    from adafilter_dist.models.inference import selected_triton

    case = CASES["uneven"]
    x = torch.randn(case.x, device=device)
    weight, bias = random_filters(case, torch.float32, device)
    bits = torch.rand(case.x[0], case.filters, device=device) > 0.5
    how = [list(each) for each in (case.stride, case.padding, case.dilation)]
    torch.library.opcheck(
        selected_triton._selected_conv,
        (x, weight.flatten(0, 1), bias.flatten(), bits, None, *how, None, True, True),
        test_utils=("test_schema", "test_faketensor"),
    )

    def twice(x: Tensor) -> Tensor:
        y = selected_triton.selected_conv(x, weight, bias, bits, padding=(0, 1), relu=True)
        return selected_triton.selected_conv(
            x, weight, bias, bits, padding=(0, 1), residual=y, relu=True
        )

    whole = torch.compile(twice, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x), twice(x))


def test_the_operator_keeps_what_it_promises_to_torch_compile(run: Run) -> None:
    run(check_operator)


def check_refusals(device: str) -> None:
    from adafilter_dist.models.inference.selected_triton import selected_conv

    x, weight, bias = torch.randn(2, 4, 5, 5), torch.randn(2, 3, 3, 3, 4), torch.randn(2, 3)
    bits = torch.ones(2, 3, dtype=torch.bool)
    wrong = {
        "float64": (x.double(), weight.double(), bias, bits),
        "the same for both": (x.half(), weight, bias, bits),
        "groups=1": (x, weight[..., :2], bias, bits),
        r"allowed is \(2, Cout": (x, weight[0], bias, bits),
        "bias is": (x, weight, bias[0], bits),
        "bits is": (x, weight, bias, bits[:1]),
        "allowed is bool": (x, weight, bias, bits.float()),
        "smaller than": (x[:, :, :2], weight, bias, bits),
    }
    for words, given in wrong.items():
        with pytest.raises(UserError, match=words):
            selected_conv(*given)
    with pytest.raises(UserError, match="residual is"):
        selected_conv(x, weight, bias, bits, residual=x)


def test_what_does_not_fit_is_refused_in_words(interpreter: Worker) -> None:
    interpreter.run(check_refusals, "cpu")


def check_cubin(capability: int, case: Case, dtype: torch.dtype, words: str, absent: str) -> None:
    from adafilter_dist.models.inference.selected_triton import selected_conv
    from tests.models.ops.compile_only import compiled

    torch.backends.cuda.matmul.allow_tf32 = "tf32" in words
    weight, bias = random_filters(case, dtype, "cpu")
    bits = torch.ones(case.x[0], case.filters, dtype=torch.bool)
    x = torch.randn(case.x).to(dtype)
    with compiled(capability) as kernels:
        selected_conv(x, weight, bias, bits, stride=case.stride, padding=case.padding, relu=True)
    (kernel,) = kernels
    assert kernel.asm["cubin"]
    assert words in kernel.asm["ptx"]
    assert absent not in kernel.asm["ptx"]


# Real layers of ResNet-50, too large for the interpreter.
LATE = Case((2, 512, 7, 7), 512)
STEM = Case((2, 3, 224, 224), 64, (7, 7), (2, 2), (3, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "case", "dtype", "words", "absent"),
    [
        (90, LATE, torch.bfloat16, "wgmma.mma_async", "tf32"),
        (90, STEM, torch.bfloat16, "wgmma.mma_async", "tf32"),
        (90, LATE, torch.float32, "tf32", "bf16"),
        (80, LATE, torch.float32, "fma.rn.f32", "tf32"),
        (80, LATE, torch.bfloat16, "mma.sync", "tf32"),
    ],
)
def test_it_compiles_to_matrix_units_of_nvidia_s_gpus_without_one(
    compiler: Worker, capability: int, case: Case, dtype: torch.dtype, words: str, absent: str
) -> None:
    compiler.run(check_cubin, capability, case, dtype, words, absent)


def check_tiles(device: str) -> None:
    from adafilter_dist.models.inference.selected_triton import choose_tiles

    shared = 227 * 1024
    for images in (1, 64):
        for pixels in (1, 49, 196, 784, 3136, 12544):
            for channels, filters, taps in [(3, 64, 49), (64, 256, 1), (512, 512, 9), (17, 5, 9)]:
                for dtype in (torch.float32, torch.bfloat16):
                    for room in (shared, 99 * 1024, 64 * 1024):
                        tiles = choose_tiles(images, pixels, filters, channels, taps, dtype, room)
                        assert all(
                            size >= 16 and size & (size - 1) == 0
                            for size in (tiles.m, tiles.f, tiles.k)
                        )
                        used = (tiles.m + tiles.f) * tiles.k * dtype.itemsize * tiles.stages
                        assert used < room
    assert choose_tiles(64, 49, 512, 512, 9, torch.bfloat16, shared).m == 64
    assert choose_tiles(64, 3136, 64, 64, 9, torch.bfloat16, shared).m == 128
    assert choose_tiles(64, 1, 64, 64, 1, torch.bfloat16, shared).m == 16


def test_tiles_fit_the_shared_memory(interpreter: Worker) -> None:
    interpreter.run(check_tiles, "cpu")
