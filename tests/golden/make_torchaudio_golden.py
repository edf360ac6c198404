"""Makes torchaudio_log_mel.npz: log-mel features of real speech, computed by torchaudio itself.

    pip install --target TARGET --no-deps torchaudio==2.11.0
    mv TARGET/torchaudio/lib TARGET/torchaudio/lib.off      # CUDA code, which a CPU torch cannot load or need
    PYTHONPATH=TARGET python tests/golden/make_torchaudio_golden.py PATH_TO/msu_ru_nsh_clunits/wav

The speech is the Russian voice of Debian's package festvox-ru, whose wav folder is the argument; utterances
up to ru_0650 only, since later ones are for validation and testing. Copyright (c) 2005 Nickolay V. Shmyrev,
under a BSD-like licence (the whole notice is in the package's copyright file): use, modification and
redistribution are free where that notice is kept and changes are marked. Changed here: one second was cut
from each utterance.

For excerpt i the file holds `excerpt_i` (int16, 16 kHz), and for each length n in `lengths`, of its first n
samples, `float64_i_n` and `float32_i_n`: (frames, 64), natural logarithm, of the transform built and run in
double and in single precision, the latter as the course runs it. `excerpts` names the utterances and where
they were cut, `versions` the makers. Prints how far the two precisions lie apart, on the excerpts and on 60
whole utterances.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
LENGTHS = (201, 400, 1601, 16_000)
# Utterance and first sample: in a loud vowel, so that the mirrored edge matters; in a pause before speech.
EXCERPTS = (("ru_0010", 24_000), ("ru_0300", 40_000))


def log_mel_in(dtype: torch.dtype) -> Callable[[NDArray[np.floating]], NDArray[np.floating]]:
    """The course's front end with window, filters and arithmetic in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    spectrogram = torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, n_fft=400, win_length=400, hop_length=160, n_mels=64
    )
    torch.set_default_dtype(before)

    def log_mel(waveform: NDArray[np.floating]) -> NDArray[np.floating]:
        mel = spectrogram(torch.as_tensor(waveform, dtype=dtype))
        return torch.log(torch.clamp(mel, 1e-9, 1e9)).numpy().T

    return log_mel


def main(wav_folder: Path) -> None:
    in_double, in_single = log_mel_in(torch.float64), log_mel_in(torch.float32)
    arrays: dict[str, NDArray[np.generic]] = {
        "lengths": np.array(LENGTHS),
        "excerpts": np.array([f"{name} from sample {start}" for name, start in EXCERPTS]),
        "versions": np.array([f"torch {torch.__version__}", f"torchaudio {torchaudio.__version__}"]),
    }
    for i, (name, start) in enumerate(EXCERPTS):
        excerpt, rate = soundfile.read(
            wav_folder / f"{name}.wav", start=start, frames=max(LENGTHS), dtype="int16"
        )
        assert rate == SAMPLE_RATE
        assert len(excerpt) == max(LENGTHS)
        arrays[f"excerpt_{i}"] = excerpt
        for length in LENGTHS:
            waveform = excerpt[:length] / np.float32(32_768)
            # float32 holds the logarithm, at most 21 in size, to 1e-6.
            arrays[f"float64_{i}_{length}"] = in_double(waveform).astype(np.float32)
            arrays[f"float32_{i}_{length}"] = in_single(waveform)
            apart = np.abs(arrays[f"float64_{i}_{length}"] - arrays[f"float32_{i}_{length}"])
            print(f"{name}, {length} samples: at most {apart.max():.1e} apart")
    np.savez_compressed(Path(__file__).with_name("torchaudio_log_mel.npz"), **arrays)

    apart, below = [], []
    for path in sorted(wav_folder.glob("ru_0[0-5]*.wav"))[:60]:
        waveform, _ = soundfile.read(path, dtype="float32")
        double = in_double(waveform)
        apart.append(np.abs(double - in_single(waveform)))
        below.append(10 / np.log(10) * (double.max(axis=1, keepdims=True) - double))
    apart, below = np.concatenate(apart), np.concatenate(below)
    print(f"\n60 utterances: {100 * (apart > 1e-4).mean():.1f} % of the values more than 1e-4 apart")
    for decibels in range(20, 101, 20):
        near = below <= decibels
        print(
            f"within {decibels:3d} dB of the loudest band of the frame: at most {apart[near].max():.1e} apart"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
