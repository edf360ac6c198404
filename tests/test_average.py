"""Weights between two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvarts.checkpoint import COURSE_BLOCKS, load_model, read_checkpoint, save_weights
from kvarts.cli import main
from kvarts.decoder import ConvDecoder
from kvarts.encoder import BlockConfig, QuartzNet
from kvarts.model import QuartzNetCTC
from kvarts.open_weights import CHECKPOINT

STEM = BlockConfig(filters=8, repeat=1, kernel=3, stride=4, residual=False)
LAST = BlockConfig(filters=16, repeat=1, kernel=1)
SMALL = [STEM, LAST]


def saved(path: Path, seed: int, blocks: Sequence[BlockConfig] = SMALL) -> Path:
    torch.manual_seed(seed)
    model = QuartzNetCTC(QuartzNet(blocks), ConvDecoder(blocks[-1].filters))
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):  # positive, and unlike those of others
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(seed)
    save_weights(model, path)
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).state_dict()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", ["between.ckpt", "between.safetensors"])
def test_every_number_lies_between(tmp_path: Path, share: float, name: str) -> None:
    first, second = saved(tmp_path / "a.ckpt", 1), saved(tmp_path / "b.ckpt", 2)
    out = tmp_path / name
    assert main(["average", str(first), str(second), "--share", str(share), "-o", str(out)]) == 0
    a, b, found = weights(first), weights(second), weights(out)
    assert found.keys() == a.keys()
    for key, tensor in found.items():
        if key.endswith("num_batches_tracked"):
            assert tensor == a[key]
            continue
        torch.testing.assert_close(tensor, a[key] * (1 - share) + b[key] * share)
        if share in (0.0, 1.0):
            assert torch.equal(tensor, (a, b)[int(share)][key])
    assert "optimizer_states" not in read_checkpoint(out)


def test_half_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = saved(tmp_path / "a.ckpt", 1), saved(tmp_path / "b.ckpt", 2)
    assert main(["average", str(first), str(second), "-o", str(tmp_path / "half.ckpt")]) == 0
    assert capsys.readouterr().out == f"checkpoint: {tmp_path / 'half.ckpt'}\n"
    name = "decoder.layers.0.weight"
    middle = (weights(first)[name] + weights(second)[name]) / 2
    torch.testing.assert_close(weights(tmp_path / "half.ckpt")[name], middle)


@pytest.mark.parametrize("share", ["0.5", "0.667"])
def test_nothing_lies_between_a_checkpoint_and_itself(tmp_path: Path, share: str) -> None:
    first = saved(tmp_path / "a.ckpt", 1)
    assert main(["average", str(first), str(first), "--share", share, "-o", str(first)]) == 0
    other = weights(saved(tmp_path / "again.ckpt", 1))
    assert all(torch.equal(tensor, other[name]) for name, tensor in weights(first).items())


def test_open_weights_have_their_name(tmp_path: Path) -> None:
    other = saved(tmp_path / "a.ckpt", 1, COURSE_BLOCKS)
    for arguments in (["open", str(other), "--share", "0"], [str(other), "open", "--share", "1"]):
        assert main(["average", *arguments, "-o", str(tmp_path / "out.ckpt")]) == 0
        found, shipped = weights(tmp_path / "out.ckpt"), weights(CHECKPOINT)
        assert all(torch.equal(tensor, shipped[name]) for name, tensor in found.items() if tensor.is_floating_point())


@pytest.mark.parametrize(
    "blocks",
    # The first has the same names and shapes: only the description tells.
    [[replace(STEM, stride=2), LAST], [STEM, replace(LAST, filters=8)]],
    ids=["stride", "filters"],
)
def test_different_networks_are_refused(
    tmp_path: Path, blocks: Sequence[BlockConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = saved(tmp_path / "a.ckpt", 1), saved(tmp_path / "b.ckpt", 2, blocks)
    assert main(["average", str(first), str(second), "-o", str(tmp_path / "out.ckpt")]) == 2
    error = capsys.readouterr().err
    assert f"{first} and {second} hold different networks" in error
    assert not (tmp_path / "out.ckpt").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = saved(tmp_path / "a.ckpt", 1)
    assert main(["average", str(first), str(tmp_path / "no.ckpt"), "-o", str(tmp_path / "out.ckpt")]) == 2
    assert "no.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "what"),
    [(share, f"{share} is not between 0 and 1") for share in ("-0.1", "1.1", "nan")]
    + [("half", "invalid fraction value: 'half'")],
)
def test_a_share_is_from_0_to_1(tmp_path: Path, share: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["average", "open", "open", f"--share={share}", "-o", str(tmp_path / "out.ckpt")])
    assert f"argument --share: {what}" in capsys.readouterr().err
