"""Training from configuration to result: data, model, Lightning's loop, then WER of the sample and the test sets.

`python main.py [overrides]` and `kvarts train [overrides]` come here. All settings are in conf/quarznet_5x5_ru.yaml.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from kvarts import native
from kvarts.callbacks import Curve, LastCheckpoint
from kvarts.checkpoint import SafeCheckpointIO, check_run, load_model, load_weights, read_checkpoint
from kvarts.config import CONFIG_MODULE, CONFIG_NAME, compose_config, instantiate, quote_values, set_to
from kvarts.datamodule import SpeechData
from kvarts.errors import CheckpointError, ConfigError, KvartsError
from kvarts.evaluate import Evaluation, evaluate_manifest, evaluate_manifests, render_table
from kvarts.files import atomic_text_writer
from kvarts.recogniser import Recognizer
from kvarts.torch_engine import Torch

logger = logging.getLogger("lightning")

# A file of that name from an earlier run in the same folder is replaced; Lightning 2.0 does not know the argument.
_OVERWRITE: dict[str, Any] = (
    {"enable_version_counter": False} if "enable_version_counter" in signature(ModelCheckpoint).parameters else {}
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, *_DISK_FULL)
LAST, BEST = "last.ckpt", "best.ckpt"
_GPU_REFRESH_STEPS = 10  # of the progress bar
_HYDRA_ONLY = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--multirun", "-m")


def main(argv: list[str]) -> int:
    """Train as the Hydra overrides in `argv` say; the exit code: 0, or 2 for a mistake of the user."""
    try:
        argv = quote_values(argv)
        if not any(argument.split("=")[0] in _HYDRA_ONLY for argument in argv):
            config = compose_config(argv)
            if config.resume is not None:
                checkpoint = find_resume(config.resume, Path("logs") / config.name)
                if checkpoint is not None:
                    # Refused, if at all, before its folder is written to.
                    check_run(checkpoint)
                    argv = [*argv, *resume_overrides(checkpoint, argv)]
        # Lightning starts the other processes of a DDP run by this command line.
        if Path(sys.argv[0]).name != "main.py":
            sys.argv[0] = __file__
        sys.argv[1:] = argv
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints errors itself, and ends with 1
        _hydra_main()
    except KvartsError as error:
        print(f"kvarts: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # The run's folder cannot be made, or not be written to.
        if error.errno not in _NO_FOLDER:
            raise
        what = f"{error.filename}: {error.strerror}"
        print(f"kvarts: error: {what}; train elsewhere, or name another folder with hydra.run.dir=", file=sys.stderr)
        return 2
    return 0


@hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME, version_base="1.3")
def _hydra_main(config: DictConfig) -> None:
    try:
        train(config, Path(HydraConfig.get().runtime.output_dir))
    except KvartsError as error:
        # Hydra would print a traceback and exit with 1.
        print(f"kvarts: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # TensorBoard and the log, written without our doing.
        if error.errno not in _DISK_FULL:
            raise
        print(
            f"kvarts: error: {HydraConfig.get().runtime.output_dir}: {error.strerror}; "
            "the last checkpoint is untouched; free space and go on with resume=auto",
            file=sys.stderr,
        )
        sys.exit(2)


def find_resume(resume: str, runs: Path) -> Path | None:
    """The checkpoint to resume from: the path given, or for `auto` the newest last.ckpt of the runs; None without one.

    Raises:
        CheckpointError: the path does not exist.
    """
    if resume != "auto":
        if not Path(resume).is_file():
            raise CheckpointError(f"resume={resume}: no such checkpoint; check the path, or use resume=auto")
        return Path(resume).absolute()
    found = sorted(runs.glob(f"*/checkpoints/{LAST}"), key=lambda path: path.stat().st_mtime)
    if not found:
        logger.info("resume=auto: no %s under %s, so this run starts at step 0", LAST, runs)
        return None
    return found[-1].absolute()


def resume_overrides(checkpoint: Path, argv: Sequence[str]) -> list[str]:
    """Where to resume from, and that the run goes on in its own folder, unless it was moved or is told otherwise."""
    overrides = [set_to("resume", checkpoint)]
    if checkpoint.parent.name == "checkpoints" and not any(a.startswith("hydra.run.dir=") for a in argv):
        overrides.append(set_to("hydra.run.dir", checkpoint.parent.parent))
    return overrides


def train(config: DictConfig, run_dir: Path) -> list[Evaluation]:
    """One whole run: check the data, train, evaluate; everything it writes lies in `run_dir`.

    Returns:
        Scores of the training sample and each test set; none where `evaluate.enabled` is false or the rank is not 0.

    Raises:
        KvartsError: whatever the user can mend, named; see `kvarts.errors`.
    """
    _quieten()
    pl.seed_everything(config.seed)
    model = instantiate(config.model)
    resume = None if config.resume == "auto" else config.resume  # `main` has looked for one
    if resume is not None:
        # Before the data are checked: another network's are refused by name.
        check_run(Path(resume))
        load_weights(model, Path(resume))
    data = SpeechData(
        config.data_dir,
        model.encoder.stride,
        config.seed,
        augmentation=instantiate(config.augment.features),
        sound=instantiate(config.augment.sound),
        **config.data,
    )
    data.prepare()
    curve = Curve(run_dir / "curve.png")
    trainer = _trainer(config, run_dir, curve)
    if resume is not None:
        logger.info("resume: %s", resume)
    trainer.fit(model, data, ckpt_path=resume)
    if trainer.interrupted or not trainer.is_global_zero:
        return []
    evaluations = _evaluate(config, run_dir, data, trainer.strategy.root_device) if config.evaluate.enabled else []
    chosen = run_dir / "checkpoints" / _final_checkpoint(config, run_dir)
    step = read_checkpoint(chosen)["global_step"]
    why = "lowest val_wer" if chosen.name == BEST else "the last"
    print(f"checkpoint: {chosen} (step {step} of {trainer.global_step}, {why})")
    print(f"curve:      {curve.path}")
    return evaluations


def _trainer(config: DictConfig, run_dir: Path, curve: Curve) -> pl.Trainer:
    settings: dict[str, Any] = OmegaConf.to_container(config.trainer, resolve=True)  # type: ignore[assignment]
    settings["precision"] = _precision(settings)
    callbacks: list[Callback] = [
        curve,
        # The best is saved before the last, whose file holds what the best was.
        ModelCheckpoint(
            run_dir / "checkpoints",
            filename=Path(BEST).stem,
            monitor="val_wer",
            mode="min",
            save_top_k=1,
            save_on_train_epoch_end=False,
            **_OVERWRITE,
        ),
        LastCheckpoint(run_dir / "checkpoints" / LAST, config.checkpoint.every_n_steps),
    ]
    if settings.get("enable_progress_bar", True):
        # The loss it shows is fetched from the device, and until it is there no further step begins on a GPU.
        callbacks.append(TQDMProgressBar(refresh_rate=_GPU_REFRESH_STEPS if _on_gpu(settings) else 1))
    try:
        return pl.Trainer(
            callbacks=callbacks,
            logger=TensorBoardLogger(run_dir, name=None, version=""),
            plugins=[SafeCheckpointIO()],
            default_root_dir=run_dir,
            use_distributed_sampler=False,  # our samplers share the data out themselves
            num_sanity_val_steps=0,
            **settings,
        )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"trainer: {what}; correct trainer.* (without a GPU: trainer.accelerator=cpu)") from error


def _precision(settings: dict[str, Any]) -> Any:
    """`auto` is bf16-mixed where the device multiplies bfloat16 in hardware, else 32: elsewhere it would be slower."""
    precision = settings.get("precision")
    if precision != "auto":
        return precision
    can = torch.cuda.is_available() and torch.cuda.is_bf16_supported() if _on_gpu(settings) else native.has_bfloat16()
    chosen = "bf16-mixed" if can else 32
    logger.info("precision: %s (auto; %s bfloat16 in hardware)", chosen, "this device has" if can else "no")
    return chosen


def _on_gpu(settings: dict[str, Any]) -> bool:
    accelerator = settings["accelerator"]
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


def _final_checkpoint(config: DictConfig, run_dir: Path) -> str:
    best_exists = (run_dir / "checkpoints" / BEST).is_file()
    return BEST if config.evaluate.checkpoint == "best" and best_exists else LAST


def _evaluate(config: DictConfig, run_dir: Path, data: SpeechData, device: torch.device) -> list[Evaluation]:
    from rich.console import Console

    chosen = run_dir / "checkpoints" / _final_checkpoint(config, run_dir)
    recognizer = Recognizer(Torch(load_model(chosen, device)))
    sample = data.train_sample(60 * config.evaluate.train_minutes, run_dir / "train_sample")
    evaluations = [evaluate_manifest(recognizer, sample, name="train sample")[0]]
    evaluations += evaluate_manifests(recognizer, data.test_manifests, output=run_dir / "evaluation")
    with atomic_text_writer(run_dir / "results.txt") as file:
        Console(file=file, width=120).print(render_table(evaluations))
    Console().print(render_table(evaluations))
    return evaluations


class _NotAdvice(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("💡 Tip", "`weights_only` was not set"))


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer thread meets a full disk first, and the main thread says so in one line.
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in _DISK_FULL):
        threading.__excepthook__(failure)


def _quieten() -> None:
    threading.excepthook = _thread_failed
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        logger.setLevel(logging.WARNING)  # what one process says of the data need not be said by all
    # A log that cannot be written (disk full) is no reason for a traceback at every line.
    logging.raiseExceptions = False
    for handler in logging.getLogger("pytorch_lightning").handlers:
        handler.addFilter(_NotAdvice())
    # Advice that does not apply here: features are cached, the sampler knows its place, and a resumed run
    # goes on in its own folder.
    for advice in (
        "does not have many workers",
        "dataloader is not resumable",
        "is smaller than the logging",
        "exists and is not empty",
        r"isinstance\(treespec, LeafSpec\)",
        r"recommended to use .*sync_dist=True",  # the model sums over ranks itself
        "is not supported by the model summary",  # the size it shows is that of float32 weights, which they are
        "Grad strides do not match bucket view strides",  # of a dimension of size 1
    ):
        warnings.filterwarnings("ignore", message=f".*{advice}.*")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
