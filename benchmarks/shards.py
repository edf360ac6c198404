"""Utterances a second of a training loader: from local files, local shards, and shards over HTTP, in turn.

    python benchmarks/shards.py [--data DIR] [--cache] [--workers 0] [--batch 16] [--rounds 5] [--train] [--json FILE]

The shards are made of the same training manifest. Each way runs whole epochs in a process of its own; the server is one
more process on this machine, so the network costs a copy and no waiting. In every round shards over HTTP are fetched
anew by a new loader (`http`), or found where the epoch before left them (`http_kept`). Without --cache all audio is
decoded, as in a first epoch; with it features come from a warm cache, and what remains is reading. Ratios are those of
utterances a second to local files (medians of interleaved epochs, above 1: faster than files). --train does not only
take the batches but trains QuartzNet5x5 on them.
"""

import argparse
import functools
import http.server
import json
import logging
import multiprocessing
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

from workers import Worker, medians, parser_of, serve

VARIANTS = ("files", "shards", "http", "http_kept")
SAMPLE = Path(__file__).resolve().parents[1] / "sample"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def serve_folder(folder: str, port) -> None:
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        port.send(server.server_port)
        server.serve_forever()


def loader_of(args: argparse.Namespace, folder: Path):
    """What `train` would make of the settings."""
    from kvarts.datamodule import SpeechData

    files = str(args.data / "train_opus" / "manifest.jsonl")
    index = {"files": files, "shards": str(args.shards / "index.json")}.get(args.worker, f"{args.url}/index.json")
    data = SpeechData(
        args.data,
        4,
        seed=0,
        train_manifest=index,
        val_manifest=files,
        test_manifests={},
        batch_size=args.batch,
        num_workers=args.workers,
        cache_dir=str(folder / "features"),
        cache_mb=4096 if args.cache else 0,
        shard_dir=str(folder / "shards"),
        check_audio=False,
    )
    data.prepare()
    return data


def trainer_of(data):
    from functools import partial

    import pytorch_lightning as pl
    import torch

    from kvarts.checkpoint import COURSE_BLOCKS
    from kvarts.decoder import ConvDecoder
    from kvarts.encoder import QuartzNet
    from kvarts.model import QuartzNetCTC

    model = QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder(), partial(torch.optim.Adam, lr=1e-4))
    trainer = pl.Trainer(
        max_epochs=0,
        accelerator="auto",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )

    def epoch() -> None:
        trainer.fit_loop.max_epochs += 1
        trainer.fit(model, data)

    return epoch


def work(args: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        data = loader_of(args, Path(folder))
        train = trainer_of(data) if args.train else None
        loader = data.train_dataloader()

        def epoch() -> None:
            nonlocal loader
            if args.worker == "http":
                loader = data.train_dataloader()
                shutil.rmtree(Path(folder) / "shards", ignore_errors=True)
            if train is not None:
                train()
                return
            for batch in loader:
                data.on_before_batch_transfer(batch, 0)
                data.batch_done()

        serve(epoch, "cpu")


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--data", type=Path, default=SAMPLE, help="folder with train_opus/manifest.jsonl")
    parser.add_argument("--cache", action="store_true", help="features from a warm cache")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of a loader")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shard-mb", type=float, default=4)
    parser.add_argument("--train", action="store_true", help="train on the batches")
    parser.add_argument("--shards", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return

    from kvarts.data_shard import write_shards
    from kvarts.manifest import read_manifest

    utterances = read_manifest(args.data / "train_opus" / "manifest.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        index = write_shards(utterances, Path(folder), round(args.shard_mb * 2**20), seed=0)
        sharding_s = time.perf_counter() - start_s
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve_folder, args=(folder, theirs), daemon=True)
        server.start()
        sys.argv += ["--shards", folder, "--url", f"http://127.0.0.1:{ours.recv()}"]  # which workers are started with
        median_s = medians({variant: Worker(variant) for variant in VARIANTS}, args.rounds)
        server.terminate()
        server.join()
    result = {
        **{f"ratio_{name}": median_s["files"] / median_s[name] for name in VARIANTS[1:]},
        **{f"utterances_per_s_{name}": len(utterances) / seconds for name, seconds in median_s.items()},
        "utterances": len(utterances),
        "shards": len(index["shards"]),
        "mb": sum(shard["bytes"] for shard in index["shards"]) / 2**20,
        "sharding_utterances_per_s": len(utterances) / sharding_s,
        **{name: getattr(args, name) for name in ("cache", "workers", "batch", "train")},
    }
    print(f"{'':11}{'utterances/s':>13}{'ratio':>8}")
    for name in VARIANTS:
        print(f"{name:11}{result[f'utterances_per_s_{name}']:13.0f}{median_s['files'] / median_s[name]:8.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
