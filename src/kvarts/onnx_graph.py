"""The network as an ONNX graph: what `kvarts export` writes and every engine runs.

    features         (batch, 64, frames) float32     log-mel as `kvarts.features` makes it, time last
    feature_lengths  (batch,) int64                  log-mel frames of each utterance
    log_probs        (batch, encoded frames, 34)     log-probabilities, the blank last

The graph is written node by node and not traced, for three reasons. Convolutions have two dimensions and kernels of
(1, k), because engines have fast kernels for images. BatchNorm is folded into the 1×1 convolution before it, and a
depthwise convolution's bias into the one behind it, so that neither costs anything nor is rounded in int8. And lengths
stay inside: before every depthwise convolution what lies beyond an utterance's end is set to zero, so that its text
does not depend on its batchmates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from kvarts.alphabet import NUM_CLASSES
from kvarts.batchnorm import BatchNorm
from kvarts.depthwise import DepthwiseConv
from kvarts.encoder import PointwiseConv, QuartzNetBlock
from kvarts.features import N_MELS
from kvarts.model import QuartzNetCTC

_OPSET = 17
_IR_VERSION = 8  # of the time of that opset: engines refuse files newer than they are

Array = NDArray[np.float64]


class _Graph:
    """Nodes and constants so far. Every method gives the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, value: NDArray[Any], name: str | None = None) -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def convolution(self, name: str, x: str, weight: Array, bias: Array | None, conv: nn.Conv1d) -> str:
        """Of x (batch, channels, 1, time), by weight (out, in / groups, kernel)."""
        [kernel], [stride], [dilation] = conv.kernel_size, conv.stride, conv.dilation
        padding = dilation * (kernel - 1) // 2
        inputs = [x, self.constant(weight[:, :, None].astype(np.float32), f"{name}.weight")]
        if bias is not None:
            inputs.append(self.constant(bias.astype(np.float32), f"{name}.bias"))
        return self.add(
            "Conv",
            *inputs,
            output=name,
            kernel_shape=[1, kernel],
            strides=[1, stride],
            dilations=[1, dilation],
            pads=[0, padding, 0, padding],
            group=conv.groups,
        )


class _Lengths:
    """The utterances' lengths at the present frame rate, and the mask of their frames: (batch, 1, 1, time)."""

    def __init__(self, graph: _Graph, lengths: str, time: str) -> None:
        self._graph = graph
        self._lengths = lengths
        self._time = time
        zero, one = (graph.constant(np.array(value, np.int64)) for value in (0, 1))
        frames = graph.add("Range", zero, time, one)
        self.is_speech = graph.add("Less", frames, graph.add("Unsqueeze", lengths, graph.integers(1, 2, 3)))
        self.mask = graph.add("Cast", self.is_speech, to=TensorProto.FLOAT)

    def strided(self, stride: int) -> _Lengths:
        """After a convolution: (length - 1) // stride + 1, as in `kvarts.frames`."""
        graph = self._graph
        one, step = (graph.constant(np.array(value, np.int64)) for value in (1, stride))

        def shorter(length: str) -> str:
            steps = graph.add("Div", graph.add("Sub", length, one), step)
            return graph.add("Add", steps, one, output=f"frames_of_{steps}")

        return _Lengths(graph, shorter(self._lengths), shorter(self._time))


def onnx_model(model: QuartzNetCTC, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The network in evaluation mode, float32; `metadata` goes into the file's properties."""
    graph = _Graph()
    time = graph.add("Squeeze", graph.add("Shape", "features", start=2, end=3))
    lengths = _Lengths(graph, "feature_lengths", time)
    image = graph.add("Unsqueeze", "features", graph.integers(2))
    # Not by multiplication, for padding may be anything; it holds for the first convolution.
    x = graph.add("Where", lengths.is_speech, image, graph.constant(np.array(0, np.float32)))
    for number, block in enumerate(model.encoder.layers):
        assert isinstance(block, QuartzNetBlock)
        x, lengths = _block(graph, f"encoder.{number}", block, x, lengths, is_masked=number == 0)
    [head] = model.decoder.layers
    assert isinstance(head, PointwiseConv)
    bias = None if head.bias is None else _exact(head.bias)
    x = graph.convolution("decoder", x, _exact(head.weight), bias, head)
    x = graph.add("Transpose", graph.add("Squeeze", x, graph.integers(2)), perm=[0, 2, 1])
    graph.add("LogSoftmax", x, output="log_probs", axis=-1)
    float32, int64 = TensorProto.FLOAT, TensorProto.INT64
    result = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "quartznet-ctc",
            [
                helper.make_tensor_value_info("features", float32, ["batch", N_MELS, "frames"]),
                helper.make_tensor_value_info("feature_lengths", int64, ["batch"]),
            ],
            [helper.make_tensor_value_info("log_probs", float32, ["batch", "encoded_frames", NUM_CLASSES])],
            graph.constants,
        ),
        producer_name="kvarts",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    helper.set_model_props(result, dict(metadata))
    onnx.checker.check_model(result)
    return result


def _block(
    graph: _Graph, name: str, block: QuartzNetBlock, x: str, lengths: _Lengths, is_masked: bool
) -> tuple[str, _Lengths]:
    y = x
    depthwise_bias: Array | None = None
    layers = list(block.conv)
    for index, layer in enumerate(layers):
        if isinstance(layer, DepthwiseConv):
            if not is_masked:
                y = graph.add("Mul", y, lengths.mask)
            is_masked = False
            y = graph.convolution(f"{name}.{index}", y, _exact(layer.weight), None, layer)
            depthwise_bias = None if layer.bias is None else _exact(layer.bias)
            if layer.stride[0] > 1:
                lengths = lengths.strided(layer.stride[0])
        elif isinstance(layer, PointwiseConv):
            y = _folded(graph, f"{name}.{index}", y, layer, layers[index + 1], depthwise_bias)
            if index < len(layers) - 2:
                y = graph.add("Relu", y)
    if block.res is not None:
        y = graph.add("Add", y, _folded(graph, f"{name}.res", x, block.res[0], block.res[1], None))
    return graph.add("Relu", y), lengths


def _folded(
    graph: _Graph, name: str, x: str, conv: nn.Module, norm: nn.Module, depthwise_bias: Array | None
) -> str:
    """A 1×1 convolution with the BatchNorm behind it and the bias of the depthwise convolution before it."""
    assert isinstance(conv, PointwiseConv)
    assert isinstance(norm, BatchNorm)
    scale = _exact(norm.weight) / np.sqrt(_exact(norm.running_var) + norm.eps)
    weight = _exact(conv.weight)
    bias = np.zeros(len(weight)) if conv.bias is None else _exact(conv.bias)
    if depthwise_bias is not None:
        bias = bias + weight[:, :, 0] @ depthwise_bias
    bias = (bias - _exact(norm.running_mean)) * scale + _exact(norm.bias)
    return graph.convolution(name, x, weight * scale[:, None, None], bias, conv)


def _exact(tensor: Tensor) -> Array:
    """In double precision, so that folding rounds once."""
    return tensor.detach().cpu().double().numpy()
