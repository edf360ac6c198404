"""Recognition: Kvarts in every engine and precision against all else that runs the same network, on the same files.

    python benchmarks/recognise.py [--checkpoint C [--model DIR]] [--calibration MANIFEST] [--audio MANIFEST …]
                                   [--files 8] [--seconds 10] [--rounds 5] [--json FILE] [--plot FILE]

Without --checkpoint the weights are random, but look trained: times are what they are, word error rates are not. DIR is
what `kvarts export` made of C; without it C is exported into a temporary folder.

Beside Kvarts run: the course's plain network in PyTorch, the plain export of it by PyTorch in ONNX Runtime (both with
the features and the decoding of Kvarts), onnx-asr, which loads the exported folder, and sherpa-onnx, whose features are
similar but not the same: it gets a graph that takes its pre-emphasis off. What is not installed is left out.

Each system lives in a process of its own with as many threads as there are processors, and they take turns: encoder
alone (random features, one utterance at a time and eight together), wav to text and opus to text (one file at a time
and in batches; the first --files of every manifest), and the start of a whole process on one wav of about 5 s. RTFx are
seconds of sound in a second, of median times; ratios are medians of the ratios within rounds, above 1: Kvarts is
faster. Figures without a system's name are of the engine and precision that `Recognizer.load` chooses, file to text in
the faster of the two ways, and compared with onnx-asr in float32, which is what it does unasked, in the faster way
too; `…_int8` compares with its int8. `onnxruntime_ratio_to_plain_export` compares float32 with float32. Word error
rates are of all files one at a time, `same_texts` compares with float32 of Kvarts.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workers import Worker, serve

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
MANIFESTS = [SAMPLE / "test_opus" / part / "manifest.jsonl" for part in ("crowd", "farfield")]
CALIBRATION = SAMPLE / "train_opus" / "manifest.jsonl"
BATCH = 8  # of the encoder, and of files for those who do not group them themselves
COLD_START_S = 5.0

EAGER, PLAIN_EXPORT, SHERPA, DECODER = "torch eager", "onnxruntime plain export", "sherpa-onnx float32", "opus decoder"
REFERENCE = "kvarts onnxruntime float32"
ENCODER = ("encoder_b1", "encoder_b8")
FILES = ("wav", "wav_batch", "opus", "opus_batch")
COLUMNS = {
    "encoder_rtfx_b1": "encoder",
    "encoder_rtfx_b8": f"encoder × {BATCH}",
    "wav_rtfx": "wav",
    "wav_batch_rtfx": "wav, batch",
    "opus_rtfx": "opus",
    "opus_batch_rtfx": "opus, batch",
    "cold_start_s": "start s",
    "cold_start_rss_mb": "peak MB",
    "wer": "WER %",
    "same_texts": "same texts",
}


# ------------------------------------------------------------------------------------------------- what they share


def prepare(args: argparse.Namespace) -> None:
    """Writes all that the systems need into the folder; plan.json says what there is."""
    import soundfile
    import torch

    from course_network import CourseNetwork, trained_looking
    from kvarts.audio import read_audio
    from kvarts.checkpoint import COURSE_BLOCKS, load_model, save_weights
    from kvarts.decoder import ConvDecoder
    from kvarts.encoder import QuartzNet
    from kvarts.engines import ENGINES, PRECISIONS
    from kvarts.errors import KvartsError
    from kvarts.export import export
    from kvarts.frames import SAMPLE_RATE
    from kvarts.manifest import read_manifest
    from kvarts.model import QuartzNetCTC
    from kvarts.recogniser import Recognizer

    torch.manual_seed(0)  # what `trained_looking` does not draw: one network in many is read otherwise by onnx-asr
    checkpoint = args.checkpoint or args.folder / "model.ckpt"
    if args.checkpoint is None:
        model = QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder())
        model.load_state_dict(trained_looking(CourseNetwork()).state_dict())
        save_weights(model, checkpoint)
    plain = CourseNetwork()
    plain.load_state_dict(load_model(checkpoint).state_dict())
    torch.save(plain.state_dict(), args.folder / "plain.pt")
    export_plainly(plain.eval(), args.folder / "plain.onnx")

    manifests = [read_manifest(manifest) for manifest in args.audio]
    utterances = [utterance for manifest in manifests for utterance in manifest]
    timed = [utterance for manifest in manifests for utterance in manifest[: args.files]]
    timed.sort(key=lambda utterance: utterance.duration_s)  # so that batches are of similar lengths
    wavs = []
    for number, utterance in enumerate(timed):
        wavs.append(str(args.folder / f"{number}.wav"))
        soundfile.write(wavs[-1], read_audio(utterance.audio_path), SAMPLE_RATE, "PCM_16")
    middling = min(range(len(timed)), key=lambda number: abs(timed[number].duration_s - COLD_START_S))

    folder = args.model or args.folder / "model"
    if args.model is None:
        export(checkpoint, folder, args.calibration, args.audio[0])
    found = []
    for engine in ENGINES:
        for precision in PRECISIONS:
            try:
                found.append("kvarts " + Recognizer.load(folder, engine=engine, precision=precision).engine.name)
            except KvartsError as error:
                print(f"left out: {engine} {precision}: {error}")
    if importlib.util.find_spec("sherpa_onnx"):
        write_sherpa_model(folder, args.folder)
    plan = {
        "folder": str(folder),
        "default": "kvarts " + Recognizer.load(folder).engine.name,
        "kvarts": found,
        "wav": wavs,
        "opus": [str(utterance.audio_path) for utterance in timed],
        "audio_s": sum(utterance.duration_s for utterance in timed),
        "cold_start_wav": wavs[middling],
        "all": [[str(utterance.audio_path), utterance.text] for utterance in utterances],
    }
    (args.folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


def export_plainly(network, path: Path) -> None:
    import warnings

    import torch

    axes = {"features": {0: "batch", 2: "frames"}, "log_probs": {0: "batch", 1: "encoded_frames"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no more packages is called outdated
        torch.onnx.export(
            network,
            (torch.zeros(1, 64, 100),),
            path,
            input_names=["features"],
            output_names=["log_probs"],
            dynamic_axes=axes,
            dynamo=False,
        )


def write_sherpa_model(model: Path, folder: Path) -> None:
    """The float32 graph for sherpa-onnx, which pre-emphasises by 0.97 and takes a Fourier transform of 512 points.

    Of each band's log-mel is taken off what both add to it where the spectrum is flat within the band.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    from kvarts.alphabet import NUM_CLASSES
    from kvarts.features import N_FFT, mel_filters
    from kvarts.model_folder import FLOAT32, TOKENS

    filters = mel_filters()
    angles = 2 * np.pi * np.arange(len(filters)) / N_FFT
    gain = (1 + 0.97**2 - 2 * 0.97 * np.cos(angles)) @ filters / filters.sum(axis=0)
    offset = np.log(512 / N_FFT * gain).astype(np.float32)[:, None]
    graph = onnx.load(model / FLOAT32)
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            if name == "features":
                node.input[index] = "corrected"
    graph.graph.node.insert(0, helper.make_node("Sub", ["features", "offset"], ["corrected"]))
    graph.graph.initializer.append(numpy_helper.from_array(offset, "offset"))
    settings = {"vocab_size": NUM_CLASSES, "subsampling_factor": 4, "normalize_type": "", "is_giga_am": 1}
    helper.set_model_props(graph, {name: str(value) for name, value in settings.items()})
    onnx.save(graph, folder / "sherpa.onnx")
    (folder / TOKENS).write_bytes((model / TOKENS).read_bytes())


# ------------------------------------------------------------------------------------------------- the systems


def chunks(paths: list[str], size: int) -> list[list[str]]:
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def samples_of(path: str):
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32")
    return samples, rate


class Eager:
    """The plain network in PyTorch as an engine for our recogniser. It knows no lengths."""

    name, stride = EAGER, 4

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        from course_network import CourseNetwork

        torch.set_num_threads(threads)
        self._network = CourseNetwork().eval()
        self._network.load_state_dict(torch.load(folder / "plain.pt"))

    def log_probs(self, features, lengths):
        import torch

        with torch.inference_mode():
            return self._network(torch.from_numpy(features).transpose(1, 2)).numpy()


class PlainExport:
    """Its plain export."""

    name, stride = PLAIN_EXPORT, 4

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(folder / "plain.onnx", options, providers=["CPUExecutionProvider"])

    def log_probs(self, features, lengths):
        import numpy as np

        [result] = self._session.run(None, {"features": np.ascontiguousarray(features.transpose(0, 2, 1))})
        return result


class Kvarts:
    """Our recogniser, with our engines or one of those above."""

    def __init__(self, recognizer) -> None:
        self._recognizer = recognizer
        self.log_probs = recognizer.engine.log_probs

    def texts(self, paths: list[str], size: int) -> list[str]:
        if size == 1:
            return [self._recognizer.transcribe(path).text for path in paths]
        return [result.text for result in self._recognizer.transcribe_batch(paths)]  # which groups them itself


class OnnxAsr:
    log_probs = None  # ONNX Runtime's of the same file, measured as Kvarts'

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        import onnx_asr
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        quantization = None if precision == "float32" else precision
        self._model = onnx_asr.load_model("gigaam-v2-ctc", folder, quantization=quantization, sess_options=options)

    def texts(self, paths: list[str], size: int) -> list[str]:
        return [text.strip() for chunk in chunks(paths, size) for text in self._recognised(chunk)]

    def _recognised(self, paths: list[str]) -> list[str]:
        if paths[0].endswith(".wav"):
            return self._model.recognize(paths)  # it reads wav itself
        sounds = [samples_of(path) for path in paths]
        return self._model.recognize([samples for samples, _ in sounds], sample_rate=sounds[0][1])


class Sherpa:
    log_probs = None  # not to be had alone

    def __init__(self, folder: Path, threads: int) -> None:
        import sherpa_onnx

        self._recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
            str(folder / "sherpa.onnx"), str(folder / "tokens.txt"), num_threads=threads
        )

    def texts(self, paths: list[str], size: int) -> list[str]:
        found = []
        for chunk in chunks(paths, size):
            streams = [self._recognizer.create_stream() for _ in chunk]
            for stream, path in zip(streams, chunk, strict=True):
                samples, rate = samples_of(path)
                stream.accept_waveform(rate, samples)
            self._recognizer.decode_streams(streams)
            found += [stream.result.text.strip() for stream in streams]
        return found


def system_of(name: str, folder: Path, model: str):
    from kvarts.engines import cpu_threads
    from kvarts.recogniser import Recognizer

    threads = cpu_threads()
    match name.split():
        case ["kvarts", engine, precision]:
            return Kvarts(Recognizer.load(model, engine=engine, precision=precision, threads=threads))
        case ["onnx-asr", precision]:
            return OnnxAsr(model, precision, threads)
        case ["sherpa-onnx", _]:
            return Sherpa(folder, threads)
        case ["torch", _]:
            return Kvarts(Recognizer(Eager(folder, threads)))
        case _:
            return Kvarts(Recognizer(PlainExport(folder, threads)))


def work(args: argparse.Namespace) -> None:
    """A worker that answers every measurement by its seconds, and `texts` by writing them into the folder."""
    if args.worker == "prepare":
        serve(lambda: prepare(args), "cpu")
        return
    plan = json.loads((args.folder / "plan.json").read_text(encoding="utf-8"))
    if args.worker == DECODER:
        jobs = {"opus": lambda: [samples_of(path) for path in plan["opus"]]}
        serve(jobs["opus"], "cpu", opus=seconds_of(jobs["opus"]))
        return
    import numpy as np

    from kvarts.frames import mel_frames, samples_of_duration

    system = system_of(args.worker, args.folder, plan["folder"])
    jobs = {
        "wav": lambda: system.texts(plan["wav"], 1),
        "wav_batch": lambda: system.texts(plan["wav"], BATCH),
        "opus": lambda: system.texts(plan["opus"], 1),
        "opus_batch": lambda: system.texts(plan["opus"], BATCH),
    }
    if system.log_probs:
        frames = mel_frames(samples_of_duration(args.seconds))
        features = np.random.default_rng(0).normal(-10, 3, (BATCH, frames, 64)).astype(np.float32)
        lengths = np.full(BATCH, frames)
        jobs["encoder_b1"] = lambda: [system.log_probs(features[i : i + 1], lengths[i : i + 1]) for i in range(BATCH)]
        jobs["encoder_b8"] = lambda: system.log_probs(features, lengths)

    def texts() -> float:
        found = system.texts([path for path, _ in plan["all"]], 1)
        (args.folder / f"{args.worker}.json").write_text(json.dumps(found), encoding="utf-8")
        return len(found)

    serve(lambda: [job() for job in jobs.values()], "cpu", texts=texts, **{k: seconds_of(v) for k, v in jobs.items()})


def seconds_of(job):
    def seconds() -> float:
        start_s = time.perf_counter()
        job()
        return time.perf_counter() - start_s

    return seconds


# ------------------------------------------------------------------------------------------------- the measurement


def systems_of(plan) -> list[str]:
    """All that is installed."""
    optional = {"onnx_asr": ("onnx-asr float32", "onnx-asr int8"), "sherpa_onnx": (SHERPA,)}
    found = [*plan["kvarts"], EAGER, PLAIN_EXPORT]
    for package, systems in optional.items():
        if importlib.util.find_spec(package):
            found += systems
        else:
            print(f"left out: {', '.join(systems)}: {package} is not installed")
    return found


def cold_start(name: str, plan) -> tuple[float, float]:
    """Seconds and peak megabytes of a process that starts, recognises one wav and ends.

    The peak counts from before exec, where the child is this process: it has imported nothing large for that reason.
    """
    match name.split():
        case ["kvarts", engine, precision]:
            choice = ["--engine", engine, "--precision", precision]
            command = ["-m", "kvarts", "transcribe", "--model", plan["folder"], *choice, plan["cold_start_wav"]]
        case [_, precision]:
            choice = ["-q", precision] if precision != "float32" else []
            program = "from onnx_asr.cli import main; main()"
            command = ["-c", program, "gigaam-v2-ctc", plan["cold_start_wav"], "-p", plan["folder"], *choice]
    start_s = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{name} did not start; its message stands above")
    return seconds, usage.ru_maxrss / 2**10


def ratio(others_s: list[float], ours_s: list[float]) -> float:
    return statistics.median(other / our for other, our in zip(others_s, ours_s, strict=True))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """All figures, by the names under which --json writes them."""
    Worker("prepare").ask("seconds")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    systems = systems_of(plan)
    starting = [name for name in systems if name.startswith(("kvarts", "onnx-asr"))]
    starts = {name: [] for name in starting}
    for number in range(args.rounds + 1):
        for name in starting:
            starts[name].append(cold_start(name, plan))
        progress("start", number, args.rounds)

    workers = {name: Worker(name) for name in (*systems, DECODER)}
    for worker in workers.values():
        worker.ask("seconds")
    for name in systems:
        workers[name].ask("texts")
    seconds = {name: {job: [] for job in (*ENCODER, *FILES) if has(name, job)} for name in workers}
    for number in range(1, args.rounds + 1):
        for job in (*ENCODER, *FILES):
            for name in workers:
                if job in seconds[name]:
                    seconds[name][job].append(workers[name].ask(job))
        progress("round", number, args.rounds)

    sound_s = {**dict.fromkeys(ENCODER, BATCH * args.seconds), **dict.fromkeys(FILES, plan["audio_s"])}
    texts = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in systems}
    rows = {}
    for name, jobs in seconds.items():
        rows[name] = {"system": name}
        for job, values in jobs.items():
            rows[name][figure_of(job)] = sound_s[job] / statistics.median(values)
        if name in starts:
            rows[name]["cold_start_s"] = statistics.median(s for s, _ in starts[name][1:])
            rows[name]["cold_start_rss_mb"] = statistics.median(mb for _, mb in starts[name][1:])
        if name in texts:
            rows[name]["wer"] = wer(texts[name], [text for _, text in plan["all"]])
            pairs = zip(texts[name], texts[REFERENCE], strict=True)
            rows[name]["same_texts"] = statistics.mean(one == other for one, other in pairs)
    return {**summary(plan["default"], seconds, rows), "rows": list(rows.values())}


def has(name: str, job: str) -> bool:
    if name == DECODER:
        return job == "opus"
    return job in FILES or not name.startswith(("onnx-asr", "sherpa"))


def figure_of(job: str) -> str:
    return job.replace("encoder", "encoder_rtfx") if job in ENCODER else f"{job}_rtfx"


def progress(what: str, number: int, rounds: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{what} {number} of {rounds}", end="\n" if number == rounds else "", file=sys.stderr)


def wer(texts: list[str], references: list[str]) -> float:
    """Per cent."""
    from kvarts.error_counts import ErrorCounts, word_errors

    pairs = zip(references, texts, strict=True)
    return 100 * sum((word_errors(reference, text) for reference, text in pairs), ErrorCounts()).rate


def summary(default: str, seconds, rows) -> dict[str, object]:
    """The figures of the engine and precision that Kvarts chooses, and what they are compared with."""
    from kvarts.engines import cpu_threads

    ours, eager, plain = seconds[default], seconds[EAGER], seconds[PLAIN_EXPORT]
    float32 = f"{default.rpartition(' ')[0]} float32"
    result = {
        "system": default,
        **{key: rows[default][key] for key in ("encoder_rtfx_b1", "encoder_rtfx_b8")},
        "encoder_ratio_to_eager": ratio(eager["encoder_b1"], ours["encoder_b1"]),
        "encoder_ratio_to_eager_b8": ratio(eager["encoder_b8"], ours["encoder_b8"]),
        "onnxruntime_ratio_to_plain_export": ratio(plain["encoder_b1"], seconds[REFERENCE]["encoder_b1"]),
        **{key: rows[default][key] for key in ("cold_start_s", "cold_start_rss_mb")},
        "delta_wer": rows[default]["wer"] - rows[float32]["wer"],
    }
    for kind in ("wav", "opus"):
        ways = (kind, f"{kind}_batch")
        best = min((ours[way] for way in ways), key=statistics.median)
        result[f"{kind}_to_text_rtfx"] = max(rows[default][figure_of(way)] for way in ways)
        for name, suffix in (("onnx-asr float32", ""), ("onnx-asr int8", "_int8")):
            if name in seconds:
                theirs = min((seconds[name][way] for way in ways), key=statistics.median)
                result[f"{kind}_to_text_ratio_to_onnx_asr{suffix}"] = ratio(theirs, best)
        if kind == "opus":
            # Of the processors' time, for the decoder runs on one.
            result["opus_decoder_share"] = ratio(seconds[DECODER]["opus"], best) / cpu_threads()
    return result


def show(result) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="RTFx, and what a process takes that recognises one file")
    table.add_column("")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(row["system"], *(shown(column, row.get(column)) for column in COLUMNS))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for name, value in result.items():
        if name != "rows":
            console.print(f"{name:34}{value}" if isinstance(value, str) else f"{name:34}{value:.3g}", highlight=False)


def shown(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if column == "same_texts":
        return f"{value:.0%}"
    return f"{value:.2f}" if column in ("cold_start_s", "wer") else f"{value:.0f}"


def draw(result, path: Path) -> None:
    """Bars of RTFx on a logarithmic scale, and of the start."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = result["rows"]
    speeds = {column: heading for column, heading in COLUMNS.items() if column.endswith("rtfx") or "rtfx_" in column}
    figure = Figure(figsize=(11, 0.55 * len(rows) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    fast, start = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    height = 0.8 / len(speeds)
    for number, (column, heading) in enumerate(speeds.items()):
        places = [(y + height * number, row[column]) for y, row in enumerate(rows) if column in row]
        fast.barh(*zip(*places, strict=True), height, label=heading)
    fast.set_xscale("log")
    fast.set_xticks([50, 100, 200, 500, 1000, 2000, 5000], minor=False)
    fast.xaxis.set_major_formatter("{x:.0f}")
    fast.xaxis.set_minor_formatter("")
    speed = [row[column] for row in rows for column in speeds if column in row]
    fast.set_xlim(min(speed) / 1.5, max(speed) * 1.2)
    fast.set_xlabel("RTFx: seconds of sound in a second")
    fast.set_yticks([y + 0.4 - height / 2 for y in range(len(rows))], [row["system"] for row in rows])
    fast.legend(fontsize="small")
    cold = [(y + 0.4 - height / 2, row["cold_start_s"]) for y, row in enumerate(rows) if "cold_start_s" in row]
    start.barh(*zip(*cold, strict=True), 0.5)
    start.set_xlabel("process from start to end, s")
    fast.invert_yaxis()
    for panel in (fast, start):
        panel.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="of the course's network")
    parser.add_argument("--model", type=Path, help="folder that was exported of the checkpoint")
    parser.add_argument("--calibration", type=Path, default=CALIBRATION, metavar="MANIFEST", help="of the export")
    parser.add_argument("--audio", type=Path, nargs="+", default=MANIFESTS, metavar="MANIFEST")
    parser.add_argument("--files", type=int, default=8, help="of each manifest that are timed")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each utterance for the encoder alone")
    parser.add_argument("--rounds", type=int, default=5, help="counted after one that warms up")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model and not args.checkpoint:
        parser.error("--model needs the --checkpoint it was exported of: the plain network has its weights from there")
    if args.worker:
        work(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.argv += ["--folder", folder]  # for the workers
        result = measure(args, Path(folder))
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        draw(result, args.plot)


if __name__ == "__main__":
    main()
