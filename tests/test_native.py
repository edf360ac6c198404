"""What is computed in C: the numbers of plain PyTorch in float64, and what happens where it cannot be had."""

import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
from importlib import resources

import pytest
import torch
from torch import nn

from kvarts import compiled, native
from kvarts.batchnorm import BatchNorm
from kvarts.depthwise import DepthwiseConv
from kvarts.packing import Packing
from kvarts.train import _precision

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler here")


@pytest.mark.skipif(shutil.which("cc") is None or "CC" in os.environ, reason="no C compiler, or another one")
def test_what_the_compiler_makes_is_used():
    """Wrong numbers would else leave PyTorch to work, and the tests below to be skipped."""
    assert native.library() is not None


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As on a new machine: nothing compiled, an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    native.library.cache_clear()


# x86 where pairs of bfloat16 are taken, where there are none, and where vectors are half and a quarter as wide.
OLDER = {
    "pairs": ["-mno-amx-tile"],
    "no pairs": ["-mno-avx512bf16"],
    "avx2": ["-mno-avx512f"],
    "sse": ["-mno-avx"],
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Backends by name: what this processor uses, what older ones would, and none (PyTorch)."""
    made = {"native": native.library(), "torch": None}
    source = resources.files("kvarts").joinpath("native.c").read_bytes()
    for name, flags in OLDER.items() if made["native"] is not None else ():
        path = tmp_path_factory.mktemp("older") / "native.so"
        older = flags if platform.machine() == "x86_64" else []
        compiled.compile_source(source, ["cc"], [*native._FLAGS, *older], path)
        made[name] = native._checked(native.NativeLibrary(path))
    return made


backends = pytest.mark.parametrize(
    "backend", ["torch", *(pytest.param(name, marks=needs_compiler) for name in ("native", *OLDER))]
)


def plain_gradients(plain, x, lengths, weights):
    """Utterance by utterance, each alone, in float64."""
    x = x.double().requires_grad_()
    y = torch.cat([plain(part.t()[None])[0].t() for part in x.split(lengths)])
    (y * weights).sum().backward()
    return y, x.grad, plain.weight.grad, plain.bias.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (33, 1), (39, 1), (51, 1), (63, 1), (75, 1), (87, 2), (5, 3)])
@backends
@pytest.mark.parametrize("lengths", [[1], [130, 1, 2, 37, 75, 24, 25], [61, 61]])
def test_ragged_batches_give_the_numbers_of_each_utterance_alone(
    monkeypatch, libraries, dtype, kernel, dilation, backend, lengths
):
    monkeypatch.setattr(native, "library", lambda: libraries[backend])
    draw = torch.Generator().manual_seed(kernel)
    padding = dilation * (kernel - 1) // 2
    ours = DepthwiseConv(32, kernel, 1, dilation)
    if dtype == torch.bfloat16:  # as autocast does it, so that the comparison is of the arithmetic alone
        ours.weight.data = ours.weight.data.bfloat16().float()
    plain = nn.Conv1d(32, 32, kernel, padding=padding, dilation=dilation, groups=32).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(sum(lengths), 32, generator=draw).to(dtype)
    weights = torch.randn(sum(lengths), 32, generator=draw).to(dtype)
    expected = plain_gradients(plain, x, lengths, weights)
    x = x.requires_grad_()
    y, _ = ours(x, Packing(torch.tensor(lengths), max(lengths)))
    assert y.dtype == dtype
    y.backward(weights)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for actual, exact in zip((y, x.grad, ours.weight.grad, ours.bias.grad), expected, strict=True):
        assert (actual.double() - exact).abs().max() <= tolerance * exact.abs().max()


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_branch", [False, True])
@pytest.mark.parametrize("frames", [3, 255, 257, 1000])
def test_batchnorm_sum_and_relu(monkeypatch, libraries, backend, dtype, relu, with_branch, frames):
    """Outputs, gradients and running statistics as `nn.BatchNorm1d`'s in float64; a bias left out comes in again."""
    monkeypatch.setattr(native, "library", lambda: libraries[backend])
    draw = torch.Generator().manual_seed(frames)
    ours, plain = BatchNorm(64), nn.BatchNorm1d(64)
    nn.init.normal_(ours.weight, generator=draw), nn.init.normal_(ours.bias, generator=draw)
    plain.load_state_dict(ours.state_dict())
    plain.double()
    shift = torch.randn(64, generator=draw, requires_grad=True)
    x, branch, grad = torch.randn(3, frames, 64, generator=draw).to(dtype)
    x = 3 * x + 5
    leaves = [x.requires_grad_(), *([branch.requires_grad_()] if with_branch else [])]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = ours(leaves[0], *leaves[1:], relu=relu, shift=shift)
    assert y.dtype == dtype
    y.backward(grad)
    expected = plain(exact[0] + shift.detach()) + (exact[1] if with_branch else 0)
    # Where rounding decides on which side of 0 a sum lies, it decides on the gradient too.
    expected = torch.where(y.detach() > 0, expected, 0.0) if relu else expected
    expected.backward(grad.double())
    assert not shift.grad.any()
    assert ours.num_batches_tracked == 1
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    pairs = [(y, expected), (ours.weight.grad, plain.weight.grad), (ours.bias.grad, plain.bias.grad)]
    pairs += [(leaf.grad, other.grad) for leaf, other in zip(leaves, exact, strict=True)]
    pairs += [(ours.running_mean, plain.running_mean), (ours.running_var, plain.running_var)]
    for actual, reference in pairs:
        assert (actual.double() - reference).abs().max() <= tolerance * reference.abs().max()


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout(monkeypatch, libraries, backend, dtype):
    """Which numbers fall out is even over rows and channels, new in every call and the generator's alone."""
    monkeypatch.setattr(native, "library", lambda: libraries[backend])
    norm = BatchNorm(256)
    nn.init.constant_(norm.bias, 10.0)  # ReLU lets all pass
    x = torch.randn(1000, 256).to(dtype).requires_grad_()
    whole = norm(x, relu=True).detach()
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        outputs += [norm(x, relu=True, dropout=0.2), norm(x, relu=True, dropout=0.2)]
    one, two, one_again, _ = outputs
    assert torch.equal(one, one_again)
    fallen = one == 0
    both = (fallen & (two == 0)).float().mean()
    assert abs(both - 0.04) < 0.003  # independent of one another
    assert abs(fallen.float().mean() - 0.2) < 0.004
    for axis, number in ((0, 1000), (1, 256)):  # 5 standard deviations of a mean of so many
        assert (fallen.float().mean(axis) - 0.2).abs().max() < 5 * (0.2 * 0.8 / number) ** 0.5
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(one[~fallen], whole[~fallen] / 0.8, rtol=tolerance, atol=0)
    one.sum().backward()
    torch.testing.assert_close(norm.bias.grad, (~fallen).sum(0) / 0.8, rtol=1e-2, atol=0)
    norm.eval()
    assert torch.equal(norm(x, relu=True, dropout=0.2), norm(x, relu=True))


@needs_compiler
@pytest.mark.parametrize("frozen", ["x", "branch"])
def test_what_needs_no_gradient_gets_none(frozen):
    leaves = {name: torch.randn(5, 32, requires_grad=name != frozen) for name in ("x", "branch")}
    y = BatchNorm(32)(leaves["x"], leaves["branch"], relu=True)
    y.sum().backward()  # an expanded, not contiguous gradient
    assert [name for name, leaf in leaves.items() if leaf.grad is None] == [frozen]


@needs_compiler
def test_nan_goes_through_relu():
    x = torch.randn(5, 32)
    x[2, 7] = float("nan")
    y = BatchNorm(32)(x, relu=True)
    assert y.isnan().any(0).nonzero().flatten().tolist() == [7]


@needs_compiler
def test_bfloat16_is_rounded_to_the_nearest_and_nan_stays_nan():
    taps, offsets = torch.zeros(3, 16), torch.tensor([0, 4])
    taps[1] = 1.0
    x = torch.randn(4, 16).bfloat16()
    x[2, 3], x[0, 0], x[1, 1] = float("nan"), float("inf"), -0.0
    y = native.library().convolution(x, taps, None, offsets, 1)
    same = x.clone()
    same[1:4, 3] = float("nan")  # 0 · NaN, one frame away
    same[0:2, 0] = torch.tensor([float("inf"), float("nan")])  # 0 · infinity
    y[0, 3] = same[0, 3]  # two frames away: 0 · NaN too where taps go in pairs
    torch.testing.assert_close(y, same, rtol=0, atol=0, equal_nan=True)
    bias = torch.full((16,), 1 + 2**-8)  # half way between two numbers: to the even one, 1
    y = native.library().convolution(torch.zeros(4, 16).bfloat16(), taps, bias, offsets, 1)
    assert (y == 1).all()


@needs_compiler
def test_dropout_draws_the_same_whatever_the_vectors_are(monkeypatch, libraries):
    x = torch.rand(70, 64) + 1
    outputs = {}
    for name in ("native", *OLDER):
        monkeypatch.setattr(native, "library", lambda name=name: libraries[name])
        torch.manual_seed(3)
        outputs[name] = torch.cat([BatchNorm(64)(x, dropout=0.3, relu=True) == 0 for _ in range(8)])
    assert all(torch.equal(fallen, outputs["native"]) for fallen in outputs.values())


@needs_compiler
def test_faster_than_pytorch(monkeypatch, libraries):
    """Vectors longer than the registers once made it 2 to 3 times slower, though its numbers were right.

    Of what this processor uses alone: PyTorch's own choice is by the processor too.
    """
    conv, packing = DepthwiseConv(512, 63), Packing(torch.full((8,), 125), 125)
    x, weights = torch.randn(2, 8 * 125, 512)
    x.requires_grad_()
    seconds = {"torch": [], "native": []}
    for _ in range(7):
        for name, measured in seconds.items():
            monkeypatch.setattr(native, "library", lambda name=name: libraries[name])
            start = time.perf_counter()
            conv(x, packing)[0].backward(weights)
            measured.append(time.perf_counter() - start)
    assert min(seconds["native"]) < 0.7 * min(seconds["torch"])


@needs_compiler
def test_threads_do_not_change_a_bit():
    draw = torch.Generator().manual_seed(0)
    x, g = torch.randn(300, 64, generator=draw), torch.randn(300, 64, generator=draw)
    taps, offsets = torch.randn(33, 64, generator=draw), torch.tensor([0, 100, 101, 300])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(native.library().convolution_backward(x, g, taps, offsets, 1, True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_compiler
def test_compiled_once(fresh, monkeypatch):
    assert native.library() is not None
    made = list((fresh / "kvarts" / "native").iterdir())
    assert [path.suffix for path in made] == [".so"]
    native.library.cache_clear()
    monkeypatch.setattr(compiled, "compile_source", lambda *_: pytest.fail("compiled again"))
    assert native.library() is not None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "", "false"])
def test_without_a_compiler_pytorch_does_it_and_says_so(fresh, monkeypatch, caplog, compiler):
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO, logger="lightning"):
        assert native.library() is None
    (record,) = caplog.records
    assert record.message.startswith("convolutions and normalisation: PyTorch's")
    conv = DepthwiseConv(16, 3)
    y, _ = conv(torch.ones(4, 16), Packing(torch.tensor([4]), 4))
    assert y.shape == (4, 16)


@needs_compiler
@pytest.mark.parametrize(
    "mistake",
    [r"s/sum + a \* b/sum + a + b/", "s/0x7fff +/0x7fffff +/", "s/apart \\* apart/apart/"],
    ids=["convolution", "bfloat16", "normalisation"],
)
def test_a_library_that_gives_other_numbers_is_not_used(fresh, monkeypatch, caplog, mistake):
    compiler = fresh / "cc"
    spoil = f'sed -i "{mistake}" source.c'
    compiler.write_text(f'#!/bin/sh\ntest "$1" = --version || {spoil}\nexec cc "$@"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))
    with caplog.at_level(logging.INFO, logger="lightning"):
        assert native.library() is None
    assert "other numbers" in caplog.text


@needs_compiler
def test_an_unwritable_cache_is_no_obstacle(fresh, monkeypatch, caplog):
    (fresh / "kvarts").write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO, logger="lightning"):
        assert native.library() is None
    assert os.fspath(fresh / "kvarts") in caplog.text


@pytest.mark.parametrize(("flags", "has"), [("fpu avx512_bf16", True), ("fpu amx_bf16", True), ("fpu avx2", False)])
def test_bfloat16_is_taken_where_the_processor_has_it(monkeypatch, flags, has):
    monkeypatch.setattr(native, "processor_features", lambda: set(flags.split()))
    assert native.has_bfloat16() is has
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _precision({"precision": "auto", "accelerator": "auto"}) == ("bf16-mixed" if has else 32)
    assert _precision({"precision": 32, "accelerator": "auto"}) == 32


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_kept_between_steps():
    """Pages that the kernel had to hand out anew for blocks of 10 MB, freed and taken again, before and after."""
    code = (
        "import resource, torch\n"
        "from kvarts.native import keep_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20): [torch.ones(2_500_000) for _ in range(3)]\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "first = faults()\n"
        "keep_memory()\n"
        "faults()\n"  # takes what is then kept
        "print(first, faults())\n"
    )
    # A new process: what this one has allocated before decides where blocks come from.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    without, kept = map(int, ended.stdout.split())
    assert kept < 100 < without
