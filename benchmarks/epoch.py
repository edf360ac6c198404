"""An epoch of real opus files through the trainer: Kvarts against the course's pipeline, in turn.

    python benchmarks/epoch.py [--device cuda] [--data DIR] [--batch 16] [--rounds 3] [--json FILE]
                               [--precision fp32 bf16]

Both train QuartzNet5x5 by Lightning on the same manifest with the same batch size, CTC, clipping and Adam. The course's
pipeline decodes every file anew, takes the utterances as they come, pads them with zeros, and runs the plain conv1d
network in float32. Ours is what `python main.py` does: features cached, batches of similar length, the fast network; in
float32 and in bfloat16. Ratios are the course's time over ours (medians of interleaved epochs, above 1: ours is
faster). The very first epoch fills the cache; its ratio is given apart, as `ratio_first_epoch_*`.
"""

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path

from workers import Worker, medians, parser_of, serve

SAMPLE = Path(__file__).resolve().parents[1] / "sample"


def course_pipeline(args):
    """The plain network and a loader without cache, shuffling or bucketing."""
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    from course_network import CourseNetwork
    from kvarts.dataset import SpeechDataset, collate
    from kvarts.frames import encoded_frames
    from kvarts.manifest import read_manifest

    class Course(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = CourseNetwork()

        def training_step(self, batch, _):
            log_probs = self.network(batch.features.transpose(1, 2)).transpose(0, 1)
            lengths = encoded_frames(batch.feature_lengths)
            losses = torch.nn.functional.ctc_loss(
                log_probs, batch.targets, lengths, batch.target_lengths, blank=33, zero_infinity=True, reduction="none"
            )
            return losses.mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-4)

    utterances = read_manifest(args.data / "train_opus" / "manifest.jsonl")
    batches = [
        [(0, index) for index in range(start, min(start + args.batch, len(utterances)))]
        for start in range(0, len(utterances), args.batch)
    ]
    loader = DataLoader(SpeechDataset(utterances), batch_sampler=batches, collate_fn=collate)
    return Course(), {"train_dataloaders": loader}


def our_pipeline(args, cache):
    """What `train` puts together for the default settings, without validation."""
    from functools import partial

    import torch

    from kvarts.checkpoint import COURSE_BLOCKS
    from kvarts.datamodule import SpeechData
    from kvarts.decoder import ConvDecoder
    from kvarts.encoder import QuartzNet
    from kvarts.model import QuartzNetCTC

    model = QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder(), partial(torch.optim.Adam, lr=1e-4))
    data = SpeechData(args.data, model.encoder.stride, seed=0, batch_size=args.batch, cache_dir=cache)
    data.prepare()
    return model, {"datamodule": data}


def work(args: argparse.Namespace) -> None:
    import pytorch_lightning as pl
    import torch

    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as cache:
        model, data = course_pipeline(args) if args.worker.startswith("plain") else our_pipeline(args, cache)
        trainer = pl.Trainer(
            max_epochs=0,
            accelerator="gpu" if args.device == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if args.worker.endswith("bf16") else 32,
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
            trainer.fit(model, **data)

        serve(epoch, args.device)


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--data", type=Path, default=SAMPLE, help="folder with train_opus/manifest.jsonl")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"], help="of ours")
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    variants = ["plain_fp32", *(f"ours_{precision}" for precision in args.precision)]
    workers = {variant: Worker(variant) for variant in variants}
    first_s = {variant: worker.ask("seconds") for variant, worker in workers.items()}
    median_s = medians(workers, args.rounds)
    result = {
        **{f"ratio_{name[5:]}": median_s["plain_fp32"] / median_s[name] for name in variants[1:]},
        **{f"ratio_first_epoch_{name[5:]}": first_s["plain_fp32"] / first_s[name] for name in variants[1:]},
        **{f"epoch_s_{name}": seconds for name, seconds in median_s.items()},
        **{f"peak_rss_mb_{name}": worker.ask("memory") for name, worker in workers.items()},
        "batch": args.batch,
        "device": args.device,
    }
    print(f"{'':11}{'epoch s':>8}{'ratio':>8}{'first epoch':>12}{'peak MB':>9}")
    for name in variants:
        ratios = [median_s["plain_fp32"] / median_s[name], first_s["plain_fp32"] / first_s[name]]
        print(f"{name:11}{median_s[name]:8.2f}{ratios[0]:8.2f}{ratios[1]:12.2f}{result[f'peak_rss_mb_{name}']:9.0f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
