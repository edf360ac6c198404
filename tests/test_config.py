"""The training configuration: what ships works, what a user mistypes is one line with the way out."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

import kvarts.config
from kvarts.config import compose_config, quote_values, set_to
from kvarts.errors import KvartsError
from kvarts.manifest import write_manifest
from kvarts.model import QuartzNetCTC, warmup_cosine
from kvarts.train import main, resume_overrides, train

CONF = Path(kvarts.config.__file__).with_name("conf")
ROOT = Path(__file__).resolve().parents[1]


def shipped(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


# ---------------------------------------------------------------------------------------------------- what ships


def test_the_defaults_are_the_course_ones() -> None:
    config = compose_config([])
    wanted = {
        "name": "quarznet_5x5_ru",
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 1e-3,
        "model.warmup_steps": 10,
        "model.tap_decay": 0.0,
        "model.encoder.dropout": 0.0,
        "data.batch_size": 16,
        "augment.features": None,
        "trainer.max_steps": 300,
        "trainer.gradient_clip_val": 1.0,
        "trainer.precision": 32,
        "trainer.log_every_n_steps": 5,
        "trainer.check_val_every_n_epoch": 2,
    }
    assert {key: OmegaConf.select(config, key) for key in wanted} == wanted


def test_the_learning_rate_warms_up_for_ten_steps_and_falls_to_nothing() -> None:
    factors = [warmup_cosine(step, 10, 300) for step in range(301)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert factors[10] == 1.0
    assert factors[155] == pytest.approx(0.5)
    assert factors[300] == pytest.approx(0.0, abs=1e-12)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize("optimizer", shipped("optimizer"))
def test_every_optimizer_takes_a_step_downhill(optimizer: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    adjust = hydra.utils.instantiate(compose_config([f"optimizer={optimizer}"]).optimizer)([weight])
    for _ in range(5):
        adjust.zero_grad()
        weight.square().sum().backward()
        adjust.step()
    assert 0 < weight.item() < 3.0


@pytest.mark.parametrize("augment", shipped("augment"))
def test_every_augmentation_can_be_made(augment: str) -> None:
    features = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    make = hydra.utils.instantiate(compose_config([f"augment={augment}"]).augment.features)
    if augment == "none":
        assert make is None
    else:
        augmented = make(features, np.random.default_rng(0))
        assert augmented.shape[1] == features.shape[1]
        assert augmented.shape != features.shape or (augmented != features).any()


def test_the_overfit_experiment_is_the_published_curve_s_recipe() -> None:
    assert "overfit" in shipped("experiment")
    config = compose_config(["+experiment=overfit"])
    assert (config.data.batch_size, config.optimizer.lr, config.data.train_minutes) == (4, 5e-4, 10)
    assert config.model.init_weights is None
    assert compose_config(["+experiment=overfit", "trainer.max_steps=7"]).trainer.max_steps == 7


@pytest.mark.parametrize("experiment", shipped("experiment"))
def test_every_experiment_composes(experiment: str) -> None:
    config = compose_config([f"+experiment={experiment}"])
    assert OmegaConf.to_container(config, resolve=True) != OmegaConf.to_container(compose_config([]), resolve=True)


# Table 1 of the paper: kernels of the five groups of residual blocks, and how many filters they have.
GROUPS = ((256, 33), (256, 39), (512, 51), (512, 63), (512, 75))


def encoder_parameters(blocks_in_a_group: int, *, bias: bool) -> int:
    """Parameters of QuartzNet with 5, 10 or 15 residual blocks of five convolutions, from the paper's table."""

    def separable(into: int, out: int, kernel: int) -> int:
        return into * kernel + into * out + (into + out if bias else 0) + 2 * out  # with BatchNorm's two

    def pointwise(into: int, out: int) -> int:
        return into * out + (out if bias else 0) + 2 * out

    total, into = separable(64, 256, 33), 256
    for filters, kernel in (group for group in GROUPS for _ in range(blocks_in_a_group)):
        total += separable(into, filters, kernel) + 4 * separable(filters, filters, kernel) + pointwise(into, filters)
        into = filters
    return total + separable(512, 512, 87) + pointwise(512, 1024)


@pytest.mark.parametrize(
    ("model", "in_paper_m", "biases"),
    [("quartznet_5x5", 6.7, 24_640), ("quartznet_10x5", 12.8, 47_168), ("quartznet_15x5", 18.9, 69_696)],
)
def test_every_network_has_the_papers_parameters_and_the_biases(model: str, in_paper_m: float, biases: int) -> None:
    """The paper has no biases and 29 classes (English), the course biases and 34. A stride has no parameters."""
    groups = int(model.split("_")[1].split("x")[0]) // 5
    network = hydra.utils.instantiate(compose_config([f"model={model}"]).model)
    assert isinstance(network, QuartzNetCTC)
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (network.encoder, network.decoder))
    as_in_paper = encoder_parameters(groups, bias=False)
    assert round((as_in_paper + 1024 * 29 + 29) / 1e6, 1) == in_paper_m
    assert encoder == encoder_parameters(groups, bias=True) == as_in_paper + biases
    assert decoder == 1024 * 34 + 34 == 34_850
    assert network.encoder.stride == 4
    if model == "quartznet_5x5":
        assert encoder == 6_708_096
        megabytes = 4 * (encoder + decoder) / 1e6  # as Lightning's summary counts
        assert round(megabytes, 3) == 26.972


def test_every_network_is_tested_above() -> None:
    assert shipped("model") == ["quartznet_10x5", "quartznet_15x5", "quartznet_5x5"]


def test_the_course_command_composes() -> None:
    line = (
        "trainer.devices=6 trainer.accelerator=gpu ++trainer.strategy=ddp "
        "model.init_weights=/abs/q5x5_ru_stride_4_crowd_epoch_4_step_9794.ckpt trainer.max_steps=10"
    )
    config = compose_config(line.split())
    assert (config.trainer.devices, config.trainer.accelerator, config.trainer.strategy) == (6, "gpu", "ddp")
    assert config.model.init_weights == "/abs/q5x5_ru_stride_4_crowd_epoch_4_step_9794.ckpt"
    assert config.trainer.max_steps == 10


def test_what_may_be_added() -> None:
    config = compose_config(["++trainer.limit_val_batches=3", "+optimizer.weight_decay=0.1", "trainer.max_epochs=null"])
    assert config.trainer.limit_val_batches == 3
    assert config.optimizer.weight_decay == 0.1
    config = compose_config(["trainer.max_steps=-1", "trainer.max_epochs=2", "data.test_manifests={a: x, b: y/z}"])
    assert config.data.test_manifests == {"a": "x", "b": "y/z"}


AWKWARD = [
    "/данные/ру",
    "/a/epoch=4-step=9794.ckpt",
    "/my data (2), new/x",
    "~/data",
    "it's",
    'so-called "data"',
    "C:\\data\\",
    "a\\'b",
    "{x",
]


@pytest.mark.parametrize("path", AWKWARD)
def test_paths_of_any_characters(path: str) -> None:
    assert compose_config([set_to("data_dir", path)]).data_dir == path


@pytest.mark.parametrize("path", AWKWARD[:6])
def test_most_paths_need_no_quotes(path: str) -> None:
    assert compose_config([f"data_dir={path}"]).data_dir == path
    once = quote_values([f"data_dir={path}"])
    assert quote_values(once) == once


def test_what_needs_no_quotes_gets_none() -> None:
    line = "trainer.max_steps=3 data_dir=/a/b_c-d.e ++trainer.strategy=ddp model.encoder.blocks=[] ~seed --cfg job -m"
    assert quote_values(line.split()) == line.split()


def test_a_resumed_run_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    last = tmp_path / "в'est=1" / "checkpoints" / "last.ckpt"
    resume, run_dir = resume_overrides(last, ["data.batch_size=2"])
    assert compose_config([resume]).resume == str(last)
    assert run_dir == set_to("hydra.run.dir", last.parents[1])
    compose_config([resume, run_dir])
    assert resume_overrides(last, ["hydra.run.dir=/x"]) == [resume]
    moved = tmp_path / "last.ckpt"
    assert resume_overrides(moved, []) == [set_to("resume", moved)], "its folder is no run"


def test_what_cannot_be_resumed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["resume=эпоха=4.ckpt"]) == 2
    assert "resume=эпоха=4.ckpt: no such checkpoint; check the path" in one_error_line(capsys.readouterr().err)
    course = tmp_path / "checkpoints" / "эпоха=4.ckpt"
    course.parent.mkdir()
    torch.save({"state_dict": {}, "epoch": 4}, course)
    assert main([f"resume={course}"]) == 2
    assert "start from its weights with model.init_weights=" in one_error_line(capsys.readouterr().err)
    assert list(tmp_path.rglob("*")) == [course.parent, course]


# ------------------------------------------------------------------------------------------------------ mistakes

# The command line, and what its error must say.
MISTAKES = {
    # unknown settings, plainly and with every prefix of Hydra's
    "trainer.max_step=3": "unknown setting 'trainer.max_step' in 'trainer.max_step=3'; did you mean trainer.max_steps?",
    "trainer.limit_train_batches=2": "an argument of Lightning's Trainer; write ++trainer.limit_train_batches=2",
    "max_steps=3": "did you mean trainer.max_steps?",
    "data.batchsize=4": "did you mean data.batch_size?",
    "++data.batchsize=4": "unknown setting data.batchsize; did you mean data.batch_size?",
    "++trainer.max_stepz=3": "unknown setting trainer.max_stepz; did you mean trainer.max_steps?",
    "++checkpoint.every_n_step=5": "did you mean checkpoint.every_n_steps?",
    "++evaluate.chekpoint=last": "did you mean evaluate.checkpoint?",
    "++foo.bar=1": "unknown setting foo; it takes",
    "foo=1": "unknown setting 'foo'",
    "++model.encoder.dropuot=0.1": "did you mean model.encoder.dropout?",
    "++optimizer.betaz=[0.9,0.99]": "did you mean optimizer.betas?",
    "++augment.foo=1": "unknown setting augment.foo; it takes features",
    "augment=specaugment ++augment.features.freq_mask=1": "did you mean augment.features.freq_masks?",
    # what the program passes itself
    "++data.seed=3": "unknown setting data.seed",
    "++trainer.logger=false": "trainer.logger: Kvarts sets this itself",
    # options of groups
    "optimizer=adamm": "unknown optimizer 'adamm'; did you mean adam? choose from adam, adamw, novograd",
    "model=quartznet_5x6": "did you mean quartznet_5x5?",
    "+experiment=overfti": "did you mean overfit?",
    "experiment=overfit": "+experiment=overfit",
    "model=5": "string",
    # syntax
    "data.batch_size==": "data.batch_size==: must be a whole number",
    "data.test_manifests={a:x": "data.test_manifests={a:x: no key=value that can be read; ",
    "data.batch_size": "data.batch_size: no key=value that can be read; ",
    "trainer.max_steps=1,2": "--multirun",
    "name=${nothing}": "'nothing' not found",
    # types
    "data.batch_size=abc": "data.batch_size=abc: must be a whole number from 1 on",
    "++data.batch_size=abc": "data.batch_size=abc: must be a whole number from 1 on",
    "data.batch_size=2.5": "must be a whole number",
    "data.batch_size=true": "must be a whole number",
    "data.batch_size=null": "data.batch_size=null: must be",
    "data.shuffle=5": "data.shuffle=5: must be true or false",
    "data.train_manifest=5": "must be a path, or null",
    "data.test_manifests=x": "data.test_manifests=x: must be {name: path, …}, or null",
    "data_dir=": "must be a path",
    "resume=true": "resume=true: must be auto or a path, or null",
    "trainer=cpu": "trainer is a section; set one of trainer.max_steps",
    "optimizer.lr=abc": "optimizer: ",
    # values
    "model.tap_decay=-1": "model.tap_decay=-1: must be a number from 0 on",
    "data.batch_size=0": "data.batch_size=0: must be a whole number from 1 on",
    "data.num_workers=-1": "data.num_workers=-1: must be a whole number from 0 on, or null",
    "data.cache_mb=-1": "data.cache_mb=-1: must be a whole number from 0 on",
    "data.cache_mb=null": "data.cache_mb=null: must be a whole number from 0 on",
    "data.cache_dir=5": "data.cache_dir=5: must be a path, or null",
    "data.cache=/tmp": "did you mean data.cache_",
    "data.train_minutes=0": "must be a number above 0, or null",
    "data.on_bad=foo": "data.on_bad=foo: must be error or skip",
    "evaluate.checkpoint=newest": "must be best or last",
    "seed=-1": "from 0 to 4294967295",
    "checkpoint.every_n_steps=0": "from 1 on",
    "trainer.log_every_n_steps=0": "from 1 on",
    "trainer.accumulate_grad_batches=0": "from 1 on",
    "trainer.gradient_clip_val=-1": "must be a number above 0, or null",
    "trainer.precision=13": "trainer.precision=13: must be auto, 32, bf16-mixed or 16-mixed",
    "trainer.precision=16-true": "must be auto, 32, bf16-mixed or 16-mixed",
    "trainer.max_steps=0": "must be a whole number from 1 on, or -1",
    "trainer.max_steps=-1": "set trainer.max_steps or trainer.max_epochs",
    "trainer.accelerator=cpu trainer.devices=99": "trainer.devices=99: on this CPU",
    "optimizer.lr=-1": "optimizer: Invalid learning rate: -1",
    # settings taken away
    "~data.on_bad": "data.on_bad is missing; it may be set, not taken away",
    "~checkpoint": "checkpoint is missing",
}


def one_error_line(stderr: str) -> str:
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("kvarts: error: ")
    return lines[0]


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert MISTAKES[line] in one_error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_every_setting_of_ours_has_a_rule() -> None:
    config = compose_config([])
    ours = {"name", "seed", "data_dir", "resume"}
    ours |= {f"{section}.{key}" for section in ("data", "checkpoint", "evaluate") for key in config[section]}
    assert ours <= set(kvarts.config._RULES)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for part in ("train_opus", "val_opus"):
        (root / part).mkdir()
        soundfile.write(root / part / "a.wav", np.zeros(16_000, np.float32), 16_000)
        row: dict[str, Any] = {"audio_filepath": "a.wav", "text": "да", "duration": 1.0}
        write_manifest(root / part / "manifest.jsonl", [row])
    return root


@pytest.mark.parametrize(
    ("line", "words"),
    {
        "trainer.devices=0": "trainer: ",
        "trainer.accelerator=abacus": "trainer: You selected an invalid accelerator name",
        "trainer.strategy=abc": "trainer: You selected an invalid strategy name",
        "++trainer.benchmark=abc": "trainer: ",
        "model.encoder.dropout=2": "must be a number from 0 to less than 1",
        "model.encoder.blocks=[]": "model.decoder.in_channels=1024: the last block of the encoder has 64 filters",
        "model.encoder.blocks=[{filters:8,repeat:1,kernel:4}]": "the kernel must be odd",
        "model.encoder.blocks=[{filters:8,repeat:0,kernel:3}]": "a block has repeat: 0",
        "model.encoder.blocks=[{filters:8,repeat:1,kernel:3,stride:2}]": "set residual: false",
        "model.encoder.in_channels=80": "features have 64 mel bands",
        "model.decoder.num_classes=29": "make 34 classes",
        "augment=specaugment augment.features.time_fraction=2": "time_fraction=2: must be a number from 0 to 1",
        "augment=specaugment augment.features.freq_width=-1": "freq_width=-1: must be a whole number from 0 on",
        "augment.features=5": "",
        "data_dir=/none/such": "data_dir=/none/such: no such folder; check the path",
        "model.init_weights=/none/such.ckpt": "/none/such.ckpt: no such checkpoint; check the path",
    }.items(),
)
def test_values_that_only_the_parts_can_judge(line: str, words: str, data_dir: Path, tmp_path: Path) -> None:
    small = ["model.encoder.blocks=[{filters:8,repeat:1,kernel:3,residual:false}]", "model.decoder.in_channels=8"]
    overrides = [*([] if "blocks" in line else small), f"data_dir={data_dir}", *line.split()]
    with pytest.raises(KvartsError) as caught:
        train(compose_config(overrides), tmp_path / "run")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ as a user would call it


def test_a_mistake_prints_no_traceback_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "main.py", "data.batchsize=4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean data.batch_size?" in one_error_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file", encoding="utf-8")
    command = [sys.executable, ROOT / "main.py", f"data_dir='{ROOT / 'sample'}'"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert "hydra.run.dir=" in one_error_line(done.stderr)


def test_hydra_shows_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = "--cfg job trainer.devices=6 trainer.accelerator=gpu ++trainer.strategy=ddp +experiment=overfit"
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert main(line.split()) == 0
    job = OmegaConf.create(capsys.readouterr().out)
    assert (job.trainer.devices, job.trainer.strategy, job.data.batch_size) == (6, "ddp", 4)
    assert list(tmp_path.iterdir()) == []


def test_hydra_shows_its_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "optimizer: adam, adamw, novograd" in text
    assert "max_steps: 300" in text
    assert list(tmp_path.iterdir()) == []
