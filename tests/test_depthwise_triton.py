"""The Triton kernels against float64: on a GPU where there is one, otherwise in Triton's interpreter.

Triton is none of the pinned packages, so without a GPU these tests skip until `pip install triton`. The interpreter has
to be chosen before anything imports Triton, so it gets a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch

from course_network import CourseNetwork, trained_looking
from gpu import bound, errors
from kvarts.checkpoint import COURSE_BLOCKS
from kvarts.decoder import ConvDecoder
from kvarts.encoder import QuartzNet
from kvarts.model import QuartzNetCTC
from kvarts.packing import Packing

pytest.importorskip("triton", reason="needs Triton: pip install triton")

from kvarts.depthwise_triton import depthwise

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

needs_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
needs_kernels = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="runs in test_all_of_these_in_the_interpreter"
)


@pytest.mark.skipif(DEVICE.type != "cpu" or INTERPRETED, reason="the kernels run here")
def test_all_of_these_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_kernels
@pytest.mark.parametrize(
    ("channels", "kernel", "dilation", "dtype"),
    [
        (64, 33, 1, torch.float32),
        (70, 75, 1, torch.float32),  # channels and taps beyond one block
        (70, 87, 2, torch.float32),
        (3, 5, 3, torch.float32),
        (64, 1, 1, torch.float32),
        (64, 39, 1, torch.bfloat16),
        (64, 63, 1, torch.float16),
    ],
)
def test_output_and_gradients_equal_float64(channels, kernel, dilation, dtype):
    lengths = [1, 2, max(kernel // 2, 1), kernel]
    if kernel == 75:
        lengths.append(250)
    # The interpreter cuts off what bfloat16 cannot hold, where a GPU rounds.
    slack = 2 if INTERPRETED and dtype == torch.bfloat16 else 1
    for name, error in errors(depthwise, lengths, channels, kernel, dilation, dtype, DEVICE).items():
        assert error <= slack * bound(name, dtype), name


def random_arguments(lengths, channels=8, kernel=9):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(sum(lengths), channels, generator=draw).to(DEVICE).requires_grad_()
    weight = torch.randn(channels, 1, kernel, generator=draw).to(DEVICE).requires_grad_()
    bias = torch.randn(channels, generator=draw).to(DEVICE).requires_grad_()
    return x, weight, bias, Packing(torch.tensor(lengths, device=DEVICE), max(lengths))


@needs_kernels
def test_the_same_inputs_give_the_same_bits():
    x, weight, bias, packing = random_arguments([40, 7, 33])
    results = []
    for _ in range(2):
        y = depthwise(x, weight, bias, packing, 1)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@needs_kernels
def test_batchmates_change_nothing():
    x, weight, bias, packing = random_arguments([40, 7, 33])
    alone = Packing(torch.tensor([7], device=DEVICE), 7)
    assert torch.equal(depthwise(x[40:47], weight, bias, alone, 1), depthwise(x, weight, bias, packing, 1)[40:47])


@needs_kernels
def test_without_bias():
    x, weight, bias, packing = random_arguments([20, 3])
    y = depthwise(x, weight, None, packing, 1)
    torch.testing.assert_close(y + bias, depthwise(x, weight, bias, packing, 1))
    y.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None


@needs_kernels
def test_frozen_weights_get_no_gradient():
    x, weight, bias, packing = random_arguments([20, 3])
    depthwise(x, weight.detach(), bias.detach(), packing, 1).sum().backward()
    assert x.grad is not None


def test_float64_is_refused():
    x, weight, bias, packing = random_arguments([4])
    with pytest.raises(TypeError, match="float64"):
        depthwise(x.double(), weight, bias, packing, 1)


@needs_gpu
def test_a_training_step_equals_the_plain_networks(monkeypatch):
    """Loss and all gradients of the whole network in float32, a batch without padding."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    torch.manual_seed(1)
    plain = trained_looking(CourseNetwork()).to(DEVICE).train()
    ours = QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder())
    ours.load_state_dict(plain.state_dict())
    ours.to(DEVICE).train()
    features = torch.randn(4, 401, 64, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    targets = torch.randint(0, 33, (4, 40), generator=torch.Generator().manual_seed(3)).to(DEVICE)

    def trained(network, log_probs, lengths):
        target_lengths = torch.full((4,), 40)
        loss = torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, lengths, target_lengths, blank=33)
        loss.backward()
        return loss.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}

    loss, gradients = trained(ours, *ours.log_probs(features, torch.full((4,), 401, device=DEVICE)))
    plain_loss, plain_gradients = trained(plain, plain(features.transpose(1, 2)), torch.full((4,), 101))
    torch.testing.assert_close(loss, plain_loss, rtol=1e-4, atol=0)
    norms = {name: float(gradient.norm()) for name, gradient in plain_gradients.items()}
    for name, gradient in plain_gradients.items():
        # On a CPU both networks were up to 0.014 off their float64 copy: ReLU's sign is a matter of rounding in places.
        # A bias before BatchNorm has no gradient but rounding errors.
        tolerance = 0.05 * norms[name] + 1e-6 * max(norms.values())
        assert float((gradients[name] - gradient).norm()) <= tolerance, name
