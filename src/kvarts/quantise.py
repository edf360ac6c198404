"""The ONNX graph in int8: which tensors are rounded, and to what, measured on real speech.

Written as pairs of QuantizeLinear and DequantizeLinear around every convolution, the form that each engine turns into
its own integer kernels. Activations are uint8 with one scale a tensor, weights int8 with one scale a channel, biases
int32. The head stays in float32: it is 1 % of the work, and its output is what confidences come from.

One scale a tensor is coarse where channels differ in size. Two things help, at no cost in speed; together they divide
the Kullback–Leibler divergence of int8 from float32 by 1.7 to 3.1 (the four kinds of speech of `measured_ranges`):
channels between a depthwise convolution and the 1×1 convolution behind it are evened out, which changes nothing in
exact arithmetic (cross-layer equalisation, arXiv 1906.04721); and of the terms of a residual sum the lowest values are
clipped, for the ReLU behind the sum makes them zero anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Floats = NDArray[np.float32]
Ranges = Mapping[str, tuple[float, float]]

_IN_FLOAT = ("decoder", "frames_of_")  # the head, and the integer sums of lengths
_PERCENTILE = 99.97  # of an utterance's values
_LOW_PERCENTILE_OF_TERMS = 1.0
_OF_UTTERANCES = 0.95  # both measured, see `measured_ranges`
_ROUNDED_INPUTS = {"Conv": 1, "Mul": 1, "Add": 2}  # how many of the first inputs are activations


def calibrated(model: onnx.ModelProto, features: Sequence[Floats]) -> onnx.ModelProto:
    """A float32 graph of `kvarts.onnx_graph` in int8.

    Args:
        features: log-mel (frames, 64) of utterances of real speech, never of a test set.
    """
    even = equalised(model, features)
    return quantised(even, measured_ranges(even, features))


def equalised(model: onnx.ModelProto, features: Sequence[Floats]) -> onnx.ModelProto:
    """The same function, with channels of like size between each depthwise convolution and its 1×1 convolution.

    Channel c of the depthwise convolution is divided, and column c of the other multiplied, by the square root of what
    the channel reaches on `features` over the column's largest weight: half of what differs goes to each side, for the
    column's weights are rounded as well.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    convolutions = {node.input[0]: node for node in _rounded_nodes(model) if node.op_type == "Conv"}
    pairs = {
        node.output[0]: (weights[node.input[1]], weights[convolutions[node.output[0]].input[1]])
        for node in convolutions.values()
        if node.output[0] in convolutions
    }
    peaks = _of_most(model, dict.fromkeys(pairs, _channel_peaks), features)
    for name, (depthwise, pointwise) in pairs.items():
        rows, columns = numpy_helper.to_array(depthwise), numpy_helper.to_array(pointwise)
        size = np.sqrt(np.maximum(peaks[name], 1e-9) / np.maximum(np.abs(columns).max(axis=(0, 2, 3)), 1e-9))
        size = np.maximum(size / size.max(), 1 / 32).astype(np.float32)[:, None, None, None]
        depthwise.CopyFrom(numpy_helper.from_array(rows / size, depthwise.name))
        pointwise.CopyFrom(numpy_helper.from_array(columns * size.transpose(1, 0, 2, 3), pointwise.name))
    return result


def rounded_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors whose ranges `quantised` needs."""
    return list(
        dict.fromkeys(
            name for node in _rounded_nodes(model) for name in node.input[: _ROUNDED_INPUTS[node.op_type]]
        )
    )


def measured_ranges(model: onnx.ModelProto, features: Sequence[Floats]) -> Ranges:
    """The range of each tensor that `rounded_tensors` names: what holds 99.97 % of values in 95 % of utterances.

    With 99.99 % an utterance's few highest values stretch the scale for all others: the divergence is 1.0 to 2.7 times
    as large. With 99.9 % it is 0.7 to 1.5 times, worst for the woman. The mean over utterances would clip whoever is
    louder, shorter or of another voice. Divergence in nats a frame from float32, of the weights that ship, on 34
    utterances each (ONNX Runtime), scales from 50 utterances of one man, and from 78 of him, in rooms too, and eighteen
    other voices:

                                    the man    in rooms    a synthetic woman    another man, short names
        his, mean                   0.005      0.016       0.162                0.381
        his, 95 %                   0.005      0.010       0.110                0.291
        with others, mean           0.006      0.008       0.025                0.071
        with others, 95 %           0.008      0.016       0.006                0.020
        with others, highest        0.012      0.023       0.004                0.022

    Args:
        features: log-mel (frames, 64) of utterances of real speech.
    """
    terms = {name for node in _rounded_nodes(model) if node.op_type == "Add" for name in node.input}

    def spread(low: float) -> Callable[[Floats], Floats]:
        return lambda values: np.percentile(values, [low, _PERCENTILE]) * (-1, 1)  # so that higher is wider for both

    spreads = {
        name: spread(_LOW_PERCENTILE_OF_TERMS if name in terms else 100 - _PERCENTILE)
        for name in rounded_tensors(model)
    }
    return {name: (float(-low), float(high)) for name, (low, high) in _of_most(model, spreads, features).items()}


def quantised(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """A float32 graph of `kvarts.onnx_graph` in int8.

    Args:
        ranges: lowest and highest value of each tensor that `rounded_tensors` names; what lies beyond is clipped.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    rounded: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    chosen = {node.name for node in _rounded_nodes(model)}

    def constant(name: str, value: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def activation(name: str) -> str:
        if name not in rounded:
            scale, zero = _scale_and_zero(*ranges[name])
            settings = [
                constant(f"{name}.scale", np.array(scale, np.float32)),
                constant(f"{name}.zero", np.array(zero, np.uint8)),
            ]
            nodes.append(helper.make_node("QuantizeLinear", [name, *settings], [f"{name}.uint8"], f"{name}.quantise"))
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [f"{name}.uint8", *settings], [f"{name}.rounded"], f"{name}.dequantise"
                )
            )
            rounded[name] = f"{name}.rounded"
        return rounded[name]

    def integers(name: str, value: NDArray[Any], scale: NDArray[np.float32], kind: type) -> str:
        zero = constant(f"{name}.zero", np.zeros(len(scale), kind))
        inputs = [constant(f"{name}.integers", value.astype(kind)), constant(f"{name}.scale", scale), zero]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.rounded"], f"{name}.dequantise", axis=0))
        graph.initializer.remove(weights[name])
        return f"{name}.rounded"

    for original in list(graph.node):
        node = onnx.NodeProto()
        node.CopyFrom(original)
        if node.name in chosen:
            for index in range(_ROUNDED_INPUTS[node.op_type]):
                node.input[index] = activation(node.input[index])
        if node.name in chosen and node.op_type == "Conv":
            weight = numpy_helper.to_array(weights[node.input[1]])
            scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)) / 127, 1e-12).astype(np.float32)
            if len(node.input) > 2:
                bias_scale = scale * np.float32(_scale_and_zero(*ranges[original.input[0]])[0])
                bias = np.rint(numpy_helper.to_array(weights[node.input[2]]) / bias_scale)
                node.input[2] = integers(node.input[2], bias, bias_scale, np.int32)
            node.input[1] = integers(node.input[1], np.rint(weight / scale[:, None, None, None]), scale, np.int8)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(result)
    return result


def _channel_peaks(values: Floats) -> Floats:
    """(1, channels, 1, time) to (channels,): near the largest absolute value, a few outliers aside."""
    return np.asarray(np.percentile(np.abs(values), 99.9, axis=(0, 2, 3)))


def _of_most(
    model: onnx.ModelProto, reductions: Mapping[str, Callable[[Floats], Floats]], features: Sequence[Floats]
) -> dict[str, Floats]:
    """Of each tensor named, what its reduction gives at most for 95 % of the utterances."""
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in reductions
    )
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    found: dict[str, list[Floats]] = {name: [] for name in reductions}
    for matrix in features:
        inputs = {"features": np.ascontiguousarray(matrix.T[None]), "feature_lengths": np.array([len(matrix)])}
        for (name, reduction), values in zip(
            reductions.items(), session.run(list(reductions), inputs), strict=True
        ):
            found[name].append(reduction(values))
    return {name: np.quantile(values, _OF_UTTERANCES, axis=0) for name, values in found.items()}


def _rounded_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [
        node for node in model.graph.node if node.op_type in _ROUNDED_INPUTS and not node.name.startswith(_IN_FLOAT)
    ]


def _scale_and_zero(lowest: float, highest: float) -> tuple[float, int]:
    """Of uint8; zero is always a value of it, since padding is zero."""
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    scale = max(highest - lowest, 1e-6) / 255
    return scale, round(-lowest / scale)
