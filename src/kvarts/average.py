"""``kvarts average``: weights between those of two checkpoints, as where one was trained on from the other.

What was learnt last is kept for the most part and what was known before is not forgotten (WiSE-FT, arXiv 2109.01903;
arXiv 2203.05482): after a training on from the open weights the network half-way was better than both ends, see
docs/open-weights.md. Networks that do not come from common weights have nothing between them that understands speech.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kvarts.errors import ArchitectureMismatchError
from kvarts.open_weights import checkpoint_named
from kvarts.recogniser_options import fraction


def average(first: Path, second: Path, output: Path, share: float = 0.5) -> None:
    """Writes first · (1 - share) + second · share, number by number, BatchNorm's running statistics too.

    Args:
        first, second: checkpoints of one network: ours, the course's, or .safetensors.
        output: a checkpoint without training state, float32, described as `first`; .safetensors by that name.
        share: of the second, from 0 to 1.

    Raises:
        CheckpointError: one cannot be read.
        ArchitectureMismatchError: they are of different networks.
        OutputError: `output` cannot be written; a file there before stays as it was.
    """
    from kvarts.checkpoint import load_model, save_weights

    one, other = load_model(first), load_model(second)
    # Not all of their settings: how much dropout a training had is not of the network.
    if one.encoder.block_configs != other.encoder.block_configs:
        raise ArchitectureMismatchError(f"{first} and {second} hold different networks; nothing lies between them")
    theirs = other.state_dict()
    between = {
        # The integers count BatchNorm's batches, which nothing reads.
        name: ours.lerp(theirs[name], share) if ours.is_floating_point() else ours
        for name, ours in one.state_dict().items()
    }
    one.load_state_dict(between)
    save_weights(one, output)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.description = (
        "Writes the weights between those of two checkpoints: of what one training learnt on from the other, a share. "
        "After an adaptation it forgets less of what was known before. Measure several shares on a validation set."
    )
    parser.add_argument("first", metavar="FIRST", help="what the training started from; «open» for the open weights")
    parser.add_argument("second", metavar="SECOND", help="what it ended with")
    parser.add_argument("--share", type=fraction, default=0.5, metavar="S", help="of the second, from 0 to 1 (0.5)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".ckpt or .safetensors")


def run(args: argparse.Namespace) -> int:
    """Writes the file as the arguments say; exceptions are those of `average`."""
    average(checkpoint_named(args.first), checkpoint_named(args.second), args.output, args.share)
    print(f"checkpoint: {args.output}")
    return 0
