"""The network against an independent plain copy, alone and in ragged batches, in training and in evaluation."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_network import CourseNetwork, trained_looking
from kvarts.audio import read_audio
from kvarts.batchnorm import BatchNorm
from kvarts.checkpoint import COURSE_BLOCKS
from kvarts.decoder import ConvDecoder
from kvarts.depthwise import DepthwiseConv
from kvarts.encoder import BlockConfig, PointwiseConv, QuartzNet
from kvarts.errors import ConfigError
from kvarts.features import log_mel
from kvarts.frames import encoded_frames
from kvarts.model import QuartzNetCTC
from kvarts.packing import Packing

SAMPLE = Path(__file__).parents[1] / "sample"


@pytest.fixture(scope="module")
def course():
    torch.manual_seed(1)
    return trained_looking(CourseNetwork())


@pytest.fixture(scope="module")
def ours(course):
    model = QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder())
    model.load_state_dict(course.state_dict())
    return model


def both(course, ours, features, lengths, training):
    course.train(training), ours.train(training)
    expected = course(features.transpose(1, 2))
    actual, actual_lengths = ours.log_probs(features, lengths)
    return expected, actual, actual_lengths


def test_parameters_are_the_courses(ours):
    assert sum(p.numel() for p in ours.encoder.parameters()) == 6_708_096
    assert sum(p.numel() for p in ours.decoder.parameters()) == 34_850


def test_log_probs_of_an_opus_file_equal_the_plain_networks(course, ours):
    path = next((SAMPLE / "test_opus" / "crowd").rglob("*.opus"))
    features = torch.from_numpy(log_mel(read_audio(path)))[None]
    with torch.no_grad():
        expected, actual, lengths = both(course, ours, features, torch.tensor([features.shape[1]]), training=False)
    assert lengths.tolist() == [expected.shape[1]]
    assert expected.std(1).max() > 0.05  # the comparison is of something that varies with the speech
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 8, 9, 31, 32, 33, 34, 87, 172, 173])
def test_every_length_equals_the_plain_network(course, ours, frames):
    features = torch.randn(2, frames, 64, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        expected, actual, lengths = both(course, ours, features, torch.tensor([frames] * 2), training=False)
    assert lengths.tolist() == [encoded_frames(frames)] * 2 == [expected.shape[1]] * 2
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_a_training_step_without_padding_equals_the_plain_networks(course, ours):
    """Outputs, all gradients and the running statistics of BatchNorm, in float64 so that only the formulas count."""
    state = {name: tensor.clone() for name, tensor in course.state_dict().items()}
    course.double(), ours.double()
    try:
        features = torch.randn(3, 121, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected, actual, _ = both(course, ours, features, torch.tensor([121] * 3), training=True)
        weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        (expected * weights).sum().backward(), (actual * weights).sum().backward()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4)
        ours_gradients = dict(ours.named_parameters())
        for name, parameter in course.named_parameters():
            scale = parameter.grad.abs().max()
            difference = (ours_gradients[name].grad - parameter.grad).abs().max()
            # A bias before BatchNorm has no gradient but rounding errors.
            assert difference <= 2e-4 * scale + 1e-3, name
        for name, buffer in course.named_buffers():
            torch.testing.assert_close(dict(ours.named_buffers())[name], buffer, rtol=1e-5, atol=1e-6, msg=name)
    finally:
        course.zero_grad(), ours.zero_grad()
        course.float().load_state_dict(state), ours.float().load_state_dict(state)


def test_a_float32_step_is_as_near_to_float64_as_the_plain_networks(course, ours):
    """The fast path of this machine as a whole: gradients of all parameters, against the plain network in float64.

    Everything lies above 0, for where rounding turns over a ReLU, be it ours or theirs, a gradient moves by a hundredth
    and hides what is compared here.
    """
    features = torch.randn(3, 120, 64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(3, 30, 34, generator=torch.Generator().manual_seed(1))

    def gradients(network, dtype):
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for module in network.modules():
            if isinstance(module, (BatchNorm, nn.BatchNorm1d)):
                module.bias.data = 8 * module.weight.data  # eight standard deviations
        network.to(dtype).train()
        x = features.to(dtype)
        y = network(x.transpose(1, 2)) if network is course else network.log_probs(x, torch.tensor([120] * 3))[0]
        (y * weights.to(dtype)).sum().backward()
        result = {name: parameter.grad.double() for name, parameter in network.named_parameters()}
        network.zero_grad()
        network.float().load_state_dict(state)
        return result

    exact = gradients(course, torch.float64)
    plain, fast = gradients(course, torch.float32), gradients(ours, torch.float32)
    # What nearly cancels out keeps the rounding of what it is a sum of: on AVX2 one bias of norm 7e-4 was 3.2 times as
    # far from float64 as the plain network's.
    floor = 1e-7 * max(gradient.norm() for gradient in exact.values())
    for name, gradient in exact.items():
        if name.endswith("bias") and ".conv." in name and gradient.norm() < 1e-6:
            continue  # before BatchNorm: nothing but rounding
        bound = 3 * (plain[name] - gradient).norm() + 1e-4 * gradient.norm() + floor
        assert (fast[name] - gradient).norm() <= bound, name


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(ours, training):
    """The same ragged batch in a tight and in a wide frame, the latter full of rubbish behind each utterance."""
    draw = torch.Generator().manual_seed(5)
    lengths = torch.tensor([203, 57, 1, 120, 4])
    tight = torch.randn(5, 203, 64, generator=draw)
    wide = torch.full((5, 407, 64), 1e4)
    for row, length in enumerate(lengths):
        wide[row, :length] = tight[row, :length]
        tight[row, length:] = float("nan")  # what lies behind an utterance is not even looked at
    state = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    ours.train(training)
    with torch.no_grad():
        one, one_lengths = ours.log_probs(tight, lengths)
        statistics = ours.encoder.layers[3].conv[2].running_var.clone()
        ours.load_state_dict(state)
        other, other_lengths = ours.log_probs(wide, lengths)
    torch.testing.assert_close(ours.encoder.layers[3].conv[2].running_var, statistics, rtol=1e-4, atol=1e-5)
    ours.load_state_dict(state)
    assert one_lengths.tolist() == other_lengths.tolist()
    for row, length in enumerate(one_lengths):
        torch.testing.assert_close(one[row, :length], other[row, :length], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_is_drawn_anew_in_training_only(dropout):
    torch.manual_seed(0)
    network = QuartzNet([BlockConfig(32, 2, 3), BlockConfig(32, 1, 3)], 32, dropout)
    features, lengths = torch.randn(2, 20, 32), torch.tensor([20, 13])
    with torch.no_grad():
        one, two = (network.train()(features, lengths)[0] for _ in range(2))
        assert torch.equal(one, two) == (dropout == 0)
        one, two = (network.eval()(features, lengths)[0] for _ in range(2))
    assert torch.equal(one, two)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=4), st.integers(0, 100))
def test_batchmates_change_nothing(ours, lengths, seed):
    draw = torch.Generator().manual_seed(seed)
    utterances = [torch.randn(length, 64, generator=draw) for length in lengths]
    ours.eval()
    with torch.no_grad():
        batch = nn.utils.rnn.pad_sequence(utterances, batch_first=True)
        together, encoded_lengths = ours.log_probs(batch, torch.tensor(lengths))
        for row, utterance in enumerate(utterances):
            alone, _ = ours.log_probs(utterance[None], torch.tensor([len(utterance)]))
            torch.testing.assert_close(together[row, : encoded_lengths[row]], alone[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("channels", "kernel", "stride", "dilation"), [
    (64, 33, 4, 1), (32, 33, 1, 1), (16, 75, 1, 1), (16, 87, 1, 2), (8, 5, 1, 3),
])  # fmt: skip
@pytest.mark.parametrize("frames", [1, 2, 5, 40, 87, 130])
def test_depthwise_convolution_and_its_gradients(channels, kernel, stride, dilation, frames):
    draw = torch.Generator().manual_seed(frames)
    padding = dilation * (kernel - 1) // 2
    plain = nn.Conv1d(channels, channels, kernel, stride, padding, dilation, groups=channels).double()
    ours = DepthwiseConv(channels, kernel, stride, dilation).double()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, frames, channels, dtype=torch.float64, generator=draw, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected = plain(x.transpose(1, 2)).transpose(1, 2)
    packing = Packing(torch.tensor([frames] * 2), frames)
    packed, packing = ours(packing.pack(y), packing)
    actual = packing.pad(packed)
    torch.testing.assert_close(actual, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=draw)
    (expected * weights).sum().backward(), (actual * weights).sum().backward()
    torch.testing.assert_close(y.grad, x.grad)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("frames", [1, 2, 300])
def test_batchnorm_is_the_librarys(frames):
    """Against `nn.BatchNorm1d`, gradients and running statistics too; of one frame, which that refuses, by formula."""
    draw = torch.Generator().manual_seed(0)
    x = (5 + 3 * torch.randn(frames, 16, generator=draw)).requires_grad_()
    ours, plain = BatchNorm(16), nn.BatchNorm1d(16)
    weights = torch.randn(frames, 16, generator=draw)
    y = ours(x)
    (y * weights).sum().backward()
    gradient, x.grad = x.grad, None
    if frames == 1:
        assert not gradient.any()
        assert (y == ours.bias).all()
        torch.testing.assert_close(ours.running_mean, 0.1 * x[0].detach())
        torch.testing.assert_close(ours.running_var, torch.full((16,), 0.9))
        return
    expected = plain(x)
    (expected * weights).sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradient, x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    assert ours.num_batches_tracked == plain.num_batches_tracked


@pytest.mark.parametrize("lengths", [[150, 150], [150, 91]])
def test_bfloat16_autocast_stays_near_float32(ours, lengths):
    features = torch.randn(2, 150, 64, generator=torch.Generator().manual_seed(0))
    ours.eval()
    with torch.no_grad():
        exact, _ = ours.log_probs(features, torch.tensor(lengths))
        with torch.autocast("cpu", torch.bfloat16):
            rough, _ = ours.log_probs(features, torch.tensor(lengths))
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.5


@pytest.mark.parametrize("block", [
    BlockConfig(8, 1, 4), BlockConfig(8, 1, 3, stride=2), BlockConfig(8, 1, 3, separable=False),
])  # fmt: skip
def test_impossible_blocks_are_refused(block):
    with pytest.raises(ConfigError, match="block"):
        QuartzNet([block])


def test_pointwise_convolution_is_a_1x1_conv1d():
    ours, plain = PointwiseConv(6, 4), nn.Conv1d(6, 4, 1)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 9, 6)
    torch.testing.assert_close(ours(x), plain(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("frames", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("with_bias", [True, False])
def test_pointwise_convolution_in_bfloat16(frames, with_bias):
    """Output and gradients against float64, around the multiples of 128 rows that are taken at a time."""
    draw = torch.Generator().manual_seed(frames)
    conv = PointwiseConv(48, 96)
    conv.weight.data = conv.weight.data.bfloat16().float()  # as autocast does it
    conv.bias.data = conv.bias.data.bfloat16().float()
    x = torch.randn(frames, 48, generator=draw).bfloat16().requires_grad_()
    weights = torch.randn(frames, 96, generator=draw).bfloat16()
    y = conv(x[None])[0] if with_bias else conv.without_bias(x)  # the decoder's input has a batch dimension
    assert y.dtype == torch.bfloat16
    y.backward(weights)
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, conv.weight, conv.bias)]
    expected = nn.functional.linear(exact[0], exact[1][:, :, 0], exact[2] if with_bias else None)
    expected.backward(weights.double())
    leaves = (x, conv.weight, conv.bias) if with_bias else (x, conv.weight)
    for actual, reference in [(y, expected), *((leaf.grad, e.grad) for leaf, e in zip(leaves, exact, strict=False))]:
        assert (actual.double() - reference).abs().max() <= 0.01 * reference.abs().max()


@pytest.mark.parametrize(("kernel", "stride", "dilation", "within"), [(33, 4, 1, 8), (75, 1, 1, 1), (87, 1, 2, 1)])
def test_local_kernels_keep_their_norm_and_lose_their_ends(kernel, stride, dilation, within):
    """`within` taps of the centre lies nearly all of the energy, and the norm is on average what it was."""
    torch.manual_seed(0)
    conv = DepthwiseConv(512, kernel, stride, dilation)
    before = conv.weight.detach().square().sum()
    conv.localise()
    energy = conv.weight.detach().square().sum((0, 1))
    assert abs(energy.sum() / before - 1) < 0.1
    centre = kernel // 2
    assert energy[centre - within : centre + within + 1].sum() > 0.98 * energy.sum()


def test_taps_decay_with_the_square_of_their_distance():
    conv = DepthwiseConv(2, 5)
    nn.init.ones_(conv.weight)
    conv.decay_taps(0.2)
    torch.testing.assert_close(conv.weight[:, 0], torch.tensor([[0.2, 0.8, 1.0, 0.8, 0.2]] * 2))
    conv.decay_taps(0.3)  # taps are not turned round where the rate is above 1
    torch.testing.assert_close(conv.weight[:, 0], torch.tensor([[0.0, 0.56, 1.0, 0.56, 0.0]] * 2))


def test_only_who_asks_gets_local_kernels():
    blocks = [BlockConfig(64, 1, 11, residual=False)]
    networks = []
    for arguments in ({}, {"local_init": False}, {"local_init": True}):
        torch.manual_seed(0)
        networks.append(QuartzNet(blocks, **arguments))
    default, same, local = (network.layers[0].conv[0].weight for network in networks)
    assert torch.equal(default, same)
    assert not torch.equal(default, local)
    assert networks[2].settings() == networks[0].settings()
