"""The README.md of an exported folder: what the model is, what each engine makes of it, how to use it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kvarts import model_folder
from kvarts.engines import cpu_threads
from kvarts.manifest import Utterance
from kvarts.measure import BATCH, COMMAND_S, ENCODED_S, Speed, measured
from kvarts.progress import progress_bar
from kvarts.proof import Proof

_NETWORKS: Final = {
    model_folder.FLOAT32: "the network in float32",
    model_folder.INT8: "the network in int8",
    model_folder.WEIGHTS: "the weights in float16, to train from: `model.init_weights=`",
}


def model_card(
    name: str,
    folder: Path,
    about: dict[str, Any],
    proofs: Sequence[Proof],
    test: Path,
    utterances: Sequence[Utterance],
) -> str:
    """The card in Markdown, English and Russian. Measures each engine that was proved, in a process of its own.

    Args:
        name: of the folder, once it is in its place.
        about: what config.json says.
        proofs: what `kvarts.proof.prove` gave on the utterances of the manifest `test`.
    """
    speeds: dict[str, Speed] = {}
    own = [proof.engine for proof in proofs if proof.engine.startswith(("onnxruntime", "openvino"))]
    with progress_bar("measuring", len(own)) as advance:
        for way in own:
            speeds[way] = measured(folder, *way.split())
            advance(1)
    hours = sum(utterance.duration_s for utterance in utterances) / 3600
    sizes = {entry.name: entry.stat().st_size / 1e6 for entry in folder.iterdir() if entry.name in _NETWORKS}
    table = "\n".join(_row(proof, speeds.get(proof.engine), sizes) for proof in proofs)
    conditions = {
        "name": name,
        "networks": "\n".join(
            f"| `{file}` | {what}, {sizes[file]:.1f} MB |" for file, what in _NETWORKS.items() if file in sizes
        ),
        "licence": about["licence"],
        "version": about["kvarts_version"],
        "sha256": about["checkpoint_sha256"],
        "manifest": Path(test.parent.name, test.name).as_posix(),
        "utterances": len(utterances),
        "hours": f"{hours:.3f}",
        "processor": processor(),
        "threads": cpu_threads(),
        "command_s": f"{COMMAND_S:g}",
        "encoded_s": f"{ENCODED_S:g}",
        "batch": BATCH,
        "table": table,
    }
    return _ENGLISH.format(**conditions) + "\n" + _RUSSIAN.format(**conditions)


def processor() -> str:
    """The processor's name for people."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _row(proof: Proof, speed: Speed | None, sizes: dict[str, float]) -> str:
    low, high = (f"{100 * end:+.2f}" for end in proof.delta_wer)
    network = model_folder.INT8 if proof.engine.endswith("int8") else model_folder.FLOAT32
    cells = [
        proof.engine,
        "" if proof.engine.startswith("torch") else f"{sizes[network]:.1f}",
        f"{100 * proof.wer:.2f}",
        "" if proof.engine.startswith("torch") else f"{low} … {high}",
        str(proof.texts),
        *(
            ["", "", ""]
            if speed is None
            else [
                f"{speed.rtfx[0]:.0f} / {speed.rtfx[1]:.0f}",
                f"{speed.latency_ms[0]:.1f} / {speed.latency_ms[1]:.1f}",
                "" if speed.rss_mb is None else f"{speed.rss_mb:.0f}",
            ]
        ),
    ]
    return f"| {' | '.join(cells)} |"


_ENGLISH = """# {name}

A Russian speech recogniser: QuartzNet-CTC, letters in the output, 16 kHz. [По-русски](#по-русски)

- Exported by Kvarts {version}
- SHA-256 of the checkpoint: {sha256}
- Licence of the weights: {licence}

```python
from kvarts import Recognizer

print(Recognizer.load("{name}").transcribe("command.wav").text)
```

| engine | file, MB | WER, % | ΔWER, points | same texts | RTFx, 1 / {batch} | {command_s} s, ms p50 / p95 | peak, MB |
|---|---:|---:|---:|---:|---:|---:|---:|
{table}

Errors are those on `{manifest}`: {utterances} utterances, {hours} h. ΔWER is the 95 % interval of the difference to
PyTorch, by the paired bootstrap over utterances; same texts are utterances with PyTorch's very text.

Speed and memory were measured during the export on {processor}, {threads} threads; other machines and busy ones
differ. RTFx: seconds of sound that pass the network in a second, {encoded_s} s alone and {batch} of them together.
Latency: from the waveform of a {command_s} s command to its text. Peak: memory of the process that does this.

| file | what |
|---|---|
{networks}
| `tokens.txt`, `v2_vocab.txt` | labels and their ids |
| `config.json` | alphabet, features, versions, SHA-256 of the files |

onnx-asr reads the folder as `gigaam-v2-ctc`. sherpa-onnx does not: it has no setting for these features.
"""

_RUSSIAN = """## По-русски

Распознаватель русской речи: QuartzNet-CTC, на выходе буквы, 16 кГц.

- Экспортирован Kvarts {version}
- SHA-256 контрольной точки: {sha256}
- Лицензия весов: {licence}

В таблице выше на каждый движок — размер файла, WER, разница WER с PyTorch, число текстов, совпавших с PyTorch до буквы,
скорость, задержка и память.

Ошибки — на `{manifest}`: записей {utterances}, {hours} ч. ΔWER — 95-процентный интервал разницы с PyTorch, парный
бутстреп по записям.

Скорость и память измерены при экспорте на {processor}, потоков {threads}; на другой или занятой машине числа иные.
RTFx — сколько секунд звука сеть проходит за секунду: {encoded_s} с по одной записи и по {batch} вместе. Задержка — от
звука команды в {command_s} с до её текста. Пик — память процесса, который это делает.

onnx-asr читает папку как `gigaam-v2-ctc`. sherpa-onnx — нет: у неё нет настройки под такие признаки.
"""
