"""Utterances a second of a training loader: from local files, local shards, and shards of a server, in turn.

    python benchmarks/shards.py [--data DIR] [--cache] [--workers 0] [--batch 16] [--shards 24] [--rounds 5] [--train]
                                [--s3 URL] [--json FILE]

The shards are made of the same training manifest, about --shards of them. Each way runs whole epochs in a process of
its own; the web server is one more process on this machine, so the network costs a copy and no waiting:

    files       local files
    shards      local shards
    http        a web server, and a folder that holds three windows: the others are fetched anew, ahead of their use
    http_start  the folder is emptied before each epoch: as http, and the first window's shards are waited for
    http_kept   shards that earlier epochs left in the folder

--s3 s3://bucket/folder, a bucket that one may write to, adds s3, s3_start and s3_kept. It needs s3fs; a server other
than Amazon's is named by the variable FSSPEC_S3_ENDPOINT_URL.

Without --cache all audio is decoded, as in a first epoch; with it features come from a warm cache, and what remains is
reading. Ratios are those of utterances a second to local files (medians of interleaved epochs, above 1: faster than
files); "first batch" is how long an epoch's first batch was waited for. --train does not only take the batches but
trains QuartzNet5x5 on them, which is what the fetching has to keep up with.
"""

import argparse
import functools
import http.server
import json
import logging
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

from workers import Worker, medians, parser_of, serve

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
    where, _, how = args.worker.partition("_")
    bases = {"shards": args.shards_at, "http": args.url, "s3": args.s3}
    data = SpeechData(
        args.data,
        4,
        seed=0,
        train_manifest=files if where == "files" else f"{bases[where]}/index.jsonl",
        val_manifest=files,
        test_manifests={},
        batch_size=args.batch,
        num_workers=args.workers,
        cache_dir=str(folder / "features"),
        cache_mb=4096 if args.cache else 0,
        shard_dir=str(folder / "shards"),
        shard_mb=32768 if how else 0,
        check_audio=False,
    )
    data.prepare()
    return data


def trainer_of(data):
    """What trains an epoch on a data module, given what is to be called when its first batch is there."""
    from functools import partial

    import pytorch_lightning as pl
    import torch

    from kvarts.checkpoint import COURSE_BLOCKS
    from kvarts.decoder import ConvDecoder
    from kvarts.encoder import QuartzNet
    from kvarts.model import QuartzNetCTC

    class Batches(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                self.first()

        def on_train_batch_end(self, *_):
            data.batch_done()

    batches = Batches()
    model = QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder(), partial(torch.optim.Adam, lr=1e-4))
    trainer = pl.Trainer(
        max_epochs=0,
        accelerator="auto",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[batches],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )

    def epoch(first) -> None:
        batches.first = first
        trainer.fit_loop.max_epochs += 1
        trainer.fit(model, data)

    return epoch


def work(args: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        data = loader_of(args, Path(folder))
        new_loader = data.train_dataloader
        loader = new_loader()
        # fit() asks for a loader each time, and a new one would not have fetched ahead what an epoch begins with.
        data.train_dataloader = lambda: loader
        train = trainer_of(data) if args.train else None
        waits_s: list[float] = []

        def epoch() -> None:
            nonlocal loader
            if args.worker.endswith("_start"):
                loader = new_loader()
                shutil.rmtree(Path(folder) / "shards", ignore_errors=True)
            start_s = time.perf_counter()

            def first() -> None:
                waits_s.append(time.perf_counter() - start_s)

            if train is not None:
                train(first)
                return
            for number, batch in enumerate(loader):
                if number == 0:
                    first()
                data.on_before_batch_transfer(batch, 0)
                data.batch_done()

        serve(epoch, "cpu", first_batch=lambda: statistics.median(waits_s[1:]))


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--data", type=Path, default=SAMPLE, help="folder with train_opus/manifest.jsonl")
    parser.add_argument("--cache", action="store_true", help="features from a warm cache")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of a loader")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shards", type=int, default=24, help="about so many")
    parser.add_argument("--train", action="store_true", help="train on the batches")
    parser.add_argument("--s3", metavar="URL", help="put the shards there too and read them from there")
    parser.add_argument("--shards-at", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return

    from kvarts.data_shard import write_shards
    from kvarts.manifest import read_manifest

    utterances = read_manifest(args.data / "train_opus" / "manifest.jsonl")
    total_bytes = sum(utterance.audio_path.stat().st_size + 2048 for utterance in utterances)  # with a row and headers
    variants = ["files", "shards", "http", "http_start", "http_kept"]
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        shards = write_shards(utterances, Path(folder), total_bytes // args.shards, seed=0)
        sharding_s = time.perf_counter() - start_s
        if args.s3:
            import fsspec

            files, root = fsspec.url_to_fs(args.s3)
            files.put(f"{folder}/", f"{root}/", recursive=True)
            variants += ["s3", "s3_start", "s3_kept"]
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve_folder, args=(folder, theirs), daemon=True)
        server.start()
        # Workers are started with these.
        sys.argv += ["--shards-at", folder, "--url", f"http://127.0.0.1:{ours.recv()}"]
        workers = {variant: Worker(variant) for variant in variants}
        median_s = medians(workers, args.rounds)
        first_s = {variant: worker.ask("first_batch") for variant, worker in workers.items()}
        server.terminate()
        server.join()
    result = {
        **{f"ratio_{name}": median_s["files"] / median_s[name] for name in variants[1:]},
        **{f"utterances_per_s_{name}": len(utterances) / seconds for name, seconds in median_s.items()},
        **{f"first_batch_s_{name}": seconds for name, seconds in first_s.items()},
        "utterances": len(utterances),
        "shards": len(shards),
        "mb": sum(shard.size for shard in shards) / 2**20,
        "sharding_utterances_per_s": len(utterances) / sharding_s,
        **{name: getattr(args, name) for name in ("cache", "workers", "batch", "train")},
    }
    print(f"{'':11}{'utterances/s':>13}{'ratio':>8}{'first batch, s':>16}")
    for name, seconds in median_s.items():
        print(f"{name:11}{len(utterances) / seconds:13.1f}{median_s['files'] / seconds:8.2f}{first_s[name]:16.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
