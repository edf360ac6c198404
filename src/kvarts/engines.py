"""What runs a network: ONNX Runtime, which comes with Kvarts, OpenVINO, where it is installed, or PyTorch.

An engine takes a padded batch and gives log-probabilities. It may be called from several threads at once.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kvarts.errors import ConfigError, ModelFolderError
from kvarts.frames import encoded_frames

Floats = NDArray[np.float32]
Lengths = NDArray[np.int64]

PRECISIONS: Final = ("float32", "bfloat16", "int8")


class Engine(Protocol):
    """A loaded network.

    Attributes:
        name: of the engine and what it computes in, such as «openvino bfloat16».
        stride: log-mel frames for each encoded frame.
    """

    name: str
    stride: int

    def log_probs(self, features: Floats, lengths: Lengths) -> Floats:
        """One padded batch.

        Args:
            features: (batch, frames, 64) log-mel; what lies behind an utterance's length has no influence.
            lengths: (batch,) log-mel frames of each utterance, at least 1.

        Returns:
            (batch, encoded frames, 34) log-probabilities; `kvarts.frames.encoded_frames` says how many count.
        """
        ...


class OnnxRuntime:
    """ONNX Runtime on the CPU, in the precision of the file."""

    def __init__(self, path: Path, threads: int, precision: str, stride: int) -> None:
        import onnxruntime

        self.name = f"onnxruntime {precision}"
        self.stride = stride
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; what its optimiser finds odd is no user's business
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has a class of its own for every status
            reason = _first_line(error)
            raise ModelFolderError(f"{path}: ONNX Runtime cannot load it ({reason}); export it again") from None

    def log_probs(self, features: Floats, lengths: Lengths) -> Floats:
        inputs = {"features": np.ascontiguousarray(features.transpose(0, 2, 1)), "feature_lengths": lengths}
        [result] = self._session.run(["log_probs"], inputs)
        return np.asarray(result)


class OpenVino:
    """OpenVINO on the CPU. Each thread has a request of its own, for one request serves one caller at a time.

    It compiles kernels for every new shape: 6 ms in bfloat16, 40 ms in int8, where a command takes 3 ms. So utterances
    are padded to one of few lengths, at most an eighth more (`_padded_frames`).
    """

    def __init__(self, path: Path, threads: int, precision: str, stride: int) -> None:
        import openvino

        self.name = f"openvino {precision}"
        self.stride = stride
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Kernels that it keeps: by default (5000) 10 hours took 310 MB in bfloat16 and 570 in int8, with this 300
            # and 480, at the speed that they have with 2000.
            "CPU_RUNTIME_CACHE_CAPACITY": 1000,
            "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
        }
        try:
            self._compiled: Any = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise ModelFolderError(f"{path}: OpenVINO cannot load it ({_first_line(error)}); export it again") from None
        self._requests = threading.local()

    def log_probs(self, features: Floats, lengths: Lengths) -> Floats:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        batch, frames, bands = features.shape
        padded = np.zeros((batch, bands, _padded_frames(frames)), np.float32)
        padded[:, :, :frames] = features.transpose(0, 2, 1)
        result = request.infer({"features": padded, "feature_lengths": lengths})
        # A copy: the request writes its next result to the same place.
        return np.array(result["log_probs"][:, : encoded_frames(frames, self.stride)])


def _padded_frames(frames: int) -> int:
    """The next of 8 lengths in every octave, and a multiple of 16."""
    step = max(16, 1 << max(0, (frames - 1).bit_length() - 4))
    return -(-frames // step) * step


ENGINES: Final[dict[str, type[OnnxRuntime] | type[OpenVino]]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def available_engine(name: str | None) -> str:
    """The engine of that name, or the fastest one installed.

    Raises:
        ConfigError: there is none of that name, or it is not installed.
    """
    if name is None:
        name = "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"
    if name not in ENGINES:
        raise ConfigError(f"engine {name!r}: there is none of that name; choose from {', '.join(ENGINES)}")
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"engine {name!r} is not installed; pip install 'kvarts[{name}]'")
    return name


def cpu_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
