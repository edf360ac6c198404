"""What runs an exported network: ONNX Runtime, which comes with Kvarts, or OpenVINO, where it is installed.

An engine takes a padded batch and gives log-probabilities. It may be called from several threads at once.
"""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvarts.errors import ConfigError

Floats = NDArray[np.float32]
Lengths = NDArray[np.int64]


class Engine(Protocol):
    """A loaded network."""

    name: str

    def log_probs(self, features: Floats, lengths: Lengths) -> Floats:
        """Features (batch, 64, frames) and their lengths (batch,) to log-probs (batch, encoded frames, 34)."""
        ...


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; what its optimiser finds odd is no user's business
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def log_probs(self, features: Floats, lengths: Lengths) -> Floats:
        [result] = self._session.run(["log_probs"], {"features": features, "feature_lengths": lengths})
        return np.asarray(result)


class OpenVino:
    """OpenVINO on the CPU. Each thread has a request of its own, for one request serves one caller at a time."""

    name = "openvino"

    def __init__(self, path: Path, threads: int, precision: str = "f32") -> None:
        import openvino

        self._compiled: Any = openvino.Core().compile_model(
            str(path),
            "CPU",
            {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"},
        )
        self._requests = threading.local()

    def log_probs(self, features: Floats, lengths: Lengths) -> Floats:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        result = request.infer({"features": features, "feature_lengths": lengths})
        return np.array(result["log_probs"])  # a copy: the request writes its next result to the same place


ENGINES = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def load_engine(path: Path, name: str | None, threads: int) -> Engine:
    """An engine for the network in `path`: the one named, else the fastest installed.

    Raises:
        ConfigError: no such engine, or it is not installed.
    """
    if name is None:
        name = "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"
    if name not in ENGINES:
        raise ConfigError(f"engine {name!r}: there is none of that name; choose from {', '.join(ENGINES)}")
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"engine {name!r} is not installed; pip install {name}")
    return ENGINES[name](path, threads)
