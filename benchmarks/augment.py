"""What augmentation of the sound costs: training steps with and without it, in turn, and every effect by itself.

    python benchmarks/augment.py [--augment farfield] [--rooms DIR] [--data DIR] [--batch 8] [--steps 12] [--json FILE]

Both train QuartzNet5x5 on the same batches of the same manifest in one process, one step of each after the other, from
caches that are full: the batch is made, then the step is taken. `share` is how much longer all steps with augmentation
took than those without, in seconds on the clock. `batch_share` counts only what the batches took longer to make, for
what a step does with them does not depend on it: where other work disturbs the machine it is the steadier figure; it is
on the clock too, and `batch_cpu_share` in seconds of processors. An effect's cost is in ms of one core for a second of
sound, the fastest of some draws. Without --rooms, made-up responses of 0.5 s of decaying noise stand in.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kvarts.audio import read_audio
from kvarts.checkpoint import COURSE_BLOCKS
from kvarts.config import compose_config, instantiate
from kvarts.datamodule import SpeechData
from kvarts.dataset import SpeechDataset
from kvarts.decoder import ConvDecoder
from kvarts.encoder import QuartzNet
from kvarts.features import log_mel
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import write_manifest
from kvarts.model import QuartzNetCTC
from kvarts.native import has_bfloat16, keep_memory
from kvarts.rooms import NOISES, ROOMS, write_sound
from kvarts.sound import Gain, Sound

SAMPLE = Path(__file__).resolve().parents[1] / "sample"


def made_up_rooms(folder: Path) -> None:
    """Twenty responses that ring for 0.5 s, and three noises."""
    draw = np.random.default_rng(0)
    decay = np.exp(-6.9 * np.arange(SAMPLE_RATE // 2) / (SAMPLE_RATE // 2))
    rooms, noises = [], []
    for number in range(20):
        response = 0.05 * decay * draw.standard_normal(len(decay))
        response[0] = 0.9
        write_sound(folder / f"rir/{number}.flac", response.astype(np.float32), "PCM_24")
        rooms.append({"audio_filepath": f"rir/{number}.flac", "direct_sample": 0, "room": f"made up {number}"})
    for number in range(3):
        noise = 0.1 * draw.standard_normal(5 * SAMPLE_RATE)
        write_sound(folder / f"noise/{number}.flac", noise.astype(np.float32), "PCM_16")
        noises.append({"audio_filepath": f"noise/{number}.flac", "duration": 5.0, "kind": "white"})
    write_manifest(folder / ROOMS, rooms)
    write_manifest(folder / NOISES, noises)


class Side:
    """A network, its optimiser, and batches without end."""

    def __init__(self, args, cache: Path, sound, augmentation) -> None:
        torch.manual_seed(0)
        self.model = QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder(), partial(torch.optim.Adam, lr=1e-4))
        self.model = self.model.to(args.device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)
        self.data = SpeechData(
            args.data,
            self.model.encoder.stride,
            seed=0,
            batch_size=args.batch,
            cache_dir=str(cache),
            augmentation=augmentation,
            sound=sound,
            num_workers=0,
        )
        self.data.prepare()
        self.device = args.device
        self.batches = self.endless()

    def endless(self):
        loader = self.data.train_dataloader()
        while True:
            for batch in loader:
                yield batch
                self.data.batch_done()

    def step(self) -> list[float]:
        """Seconds of the batch and of all, on the clock; then both of processors."""
        clocks = (time.perf_counter, time.process_time)
        start_s = [clock() for clock in clocks]
        batch = next(self.batches).to(self.device)
        made_s = [clock() for clock in clocks]
        self.optimizer.zero_grad()
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=has_bfloat16()):
            log_probs, lengths = self.model.log_probs(batch.features, batch.feature_lengths)
        self.model.losses(log_probs.float(), lengths, batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        end_s = [clock() for clock in clocks]
        return [later - start for start, made, end in zip(start_s, made_s, end_s, strict=True) for later in (made, end)]


def cost_ms(function, rounds: int) -> float:
    """The least of some runs, in ms of this thread."""
    found = []
    for _ in range(rounds):
        start_s = time.thread_time()
        function()
        found.append(time.thread_time() - start_s)
    return 1000 * min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--augment", default="farfield", help="conf/augment/NAME.yaml")
    parser.add_argument("--rooms", type=Path, help="room folder; without: made up")
    parser.add_argument("--data", type=Path, default=SAMPLE, help="folder with train_opus/manifest.jsonl")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="of each, after two that warm up")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        rooms = args.rooms or Path(folder) / "rooms"
        if args.rooms is None:
            made_up_rooms(rooms)
        overrides = [f"augment={args.augment}"]
        if "rooms" in compose_config(overrides).augment:
            overrides.append(f"augment.rooms={rooms}")
        config = compose_config(overrides)
        sound = instantiate(config.augment.sound)
        cache = Path(folder) / "cache"
        with_sound = Side(args, cache, sound, instantiate(config.augment.features))
        without = Side(args, cache, None, None)
        # Every utterance once as it is and once with a cheap effect fills both caches.
        for share in (0.0, 1.0):
            filled = with_sound.data
            dataset = SpeechDataset(filled.train, None, 0, filled._cache, Sound([Gain()], share), filled._sample_cache)
            for index in range(len(dataset)):
                dataset[0, index]
        seconds = {"with": [], "without": []}
        for _ in range(args.steps + 2):
            seconds["with"].append(with_sound.step())
            seconds["without"].append(without.step())
        total = {side: np.sum(found[2:], axis=0) for side, found in seconds.items()}
        waveform = read_audio(with_sound.data.train[0].audio_path)
        duration_s = len(waveform) / SAMPLE_RATE
        draw = np.random.default_rng(0)
        effects = {"log-mel": cost_ms(lambda: log_mel(waveform), 9) / duration_s}
        torch.set_num_threads(1)
        for effect in sound.steps:
            found: dict[str, list[float]] = {}
            for _ in range(40):
                drawn = effect.draw(draw)
                name = " ".join([type(effect).__name__, drawn.get("codec", "")]).strip()
                found.setdefault(name, []).append(cost_ms(partial(effect.apply, waveform, drawn), 1) / duration_s)
            effects |= {name: min(costs) for name, costs in sorted(found.items())}
    more_s = total["with"] - total["without"]
    result = {
        "share": float(more_s[1] / total["without"][1]),
        "batch_share": float(more_s[0] / total["without"][1]),
        "batch_cpu_share": float(more_s[2] / total["without"][3]),
        "step_s_without": float(total["without"][1] / args.steps),
        "step_s_with": float(total["with"][1] / args.steps),
        "effects_ms_per_s": effects,
        "augment": args.augment,
        "batch": args.batch,
        "device": args.device,
    }
    print(f"a step: {result['step_s_without']:.3f} s, with augmentation {result['step_s_with']:.3f} s")
    print(f"augmentation costs {result['share']:.1%} of a step on the clock, of which {result['batch_share']:.1%} for")
    print(f"batches; in processor time these are {result['batch_cpu_share']:.1%}")
    for name, cost in effects.items():
        print(f"{name:14}{cost:8.3f} ms a second of sound")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
