"""The training configuration: composed by Hydra, checked before the start, every mistake in one line."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvarts.errors import ConfigError, KvartsError

CONFIG_MODULE = "kvarts.conf"
CONFIG_NAME = "quarznet_5x5_ru"

# What a value must be, in words and as a test.
Rule = tuple[str, Callable[[Any], bool]]


def _number(above: float) -> Rule:
    return f"a number above {above:g}", lambda value: _is_number(value) and value > above


def _whole(least: int, most: float = float("inf")) -> Rule:
    words = f"a whole number from {least}" + (f" to {most}" if most < float("inf") else " on")
    return words, lambda value: type(value) is int and least <= value <= most


def _choice(*choices: str) -> Rule:
    return " or ".join(choices), lambda value: value in choices


def _or_null(rule: Rule) -> Rule:
    return f"{rule[0]}, or null", lambda value: value is None or rule[1](value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_FLAG: Rule = ("true or false", lambda value: isinstance(value, bool))
_NAME: Rule = ("a name", lambda value: isinstance(value, str) and value != "")
_PATH: Rule = ("a path", lambda value: isinstance(value, str) and value != "")
_LIMIT: Rule = (
    "a whole number from 1 on, or -1",
    lambda value: type(value) is int and (value > 0 or value == -1),
)
_PATHS: Rule = (
    "{name: path, …}",
    lambda value: isinstance(value, DictConfig) and all(map(_PATH[1], value.values())),
)

# Every setting of ours, and those of Lightning whose wrong values it takes, or stumbles over in training.
_RULES: dict[str, Rule] = {
    "name": _NAME,
    "seed": _whole(0, 2**32 - 1),  # NumPy's range
    "data_dir": _or_null(_PATH),
    "resume": _or_null(("auto or a path", _PATH[1])),
    "data.train_manifest": _or_null(_PATH),
    "data.val_manifest": _or_null(_PATH),
    "data.test_manifests": _or_null(_PATHS),
    "data.train_minutes": _or_null(_number(above=0)),
    "data.batch_size": _whole(1),
    "data.val_batch_size": _whole(1),
    "data.shuffle": _FLAG,
    "data.bucketing": _FLAG,
    "data.num_workers": _or_null(_whole(0)),
    "data.augment_on_device": _or_null(_FLAG),
    "data.cache_dir": _or_null(_PATH),
    "data.cache_mb": _whole(0),
    "data.on_bad": _choice("error", "skip"),
    "data.check_audio": _FLAG,
    "data.shard_window": _whole(1),
    "data.shard_dir": _or_null(_PATH),
    "data.shard_mb": _whole(1),
    "checkpoint.every_n_steps": _whole(1),
    "evaluate.enabled": _FLAG,
    "evaluate.train_minutes": _number(above=0),
    "evaluate.checkpoint": _choice("best", "last"),
    "model.init_weights": _or_null(_PATH),
    "model.warmup_steps": _whole(0),
    "model.tap_decay": ("a number from 0 on", lambda value: _is_number(value) and value >= 0),
    "trainer.max_steps": _LIMIT,
    "trainer.max_epochs": _or_null(_LIMIT),
    # Lightning has more, but with the whole model in another precision the features would have to be in it too.
    "trainer.precision": (
        "auto, 32, bf16-mixed or 16-mixed",
        lambda value: value in ("auto", 32, "32", "32-true", "bf16", "bf16-mixed", 16, "16", "16-mixed"),
    ),
    "trainer.gradient_clip_val": _or_null(_number(above=0)),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.log_every_n_steps": _whole(1),
    "trainer.check_val_every_n_epoch": _or_null(_whole(1)),
    "trainer.enable_progress_bar": _FLAG,
}

# Trainer's arguments that a run sets itself.
_TAKEN = (
    *("callbacks", "logger", "plugins", "default_root_dir"),
    *("use_distributed_sampler", "num_sanity_val_steps"),
)

# On a CPU Lightning starts as many processes as it is told to. A few more than there are cores serve to try a
# command out.
_MOST_CPU_PROCESSES = max(8, os.cpu_count() or 1)


def compose_config(arguments: Sequence[str], config_name: str = CONFIG_NAME) -> DictConfig:
    """The configuration that the overrides give, checked.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), group option, syntax, type or value.
    """
    overrides = [argument for argument in quote_values(arguments) if not argument.startswith("-")]
    GlobalHydra.instance().clear()
    try:
        parsed = [_parsed(override) for override in overrides]
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            groups = [str(o.input_line) for o in parsed if o.key_or_group in _groups()]
            shipped = compose(config_name, overrides=groups)
            _refuse_unknown_overrides(parsed, shipped)
            config = compose(config_name, overrides=overrides)
        OmegaConf.resolve(config)
        _check_sections(config, shipped)
        _check_values(config)
        for section in ("optimizer", "augment", "model"):  # model.optimizer repeats optimizer
            _check_targets(config[section], section)
        _check_optimizer(config)
    except MissingConfigException as error:
        raise _unknown_option(error) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_one_line(error)) from error
    return config


def instantiate(node: DictConfig | None) -> Any:
    """What a section with a `_target_` describes; None of none.

    Raises:
        ConfigError: it cannot be made.
        KvartsError: of those that it raises itself.
    """
    try:
        return hydra.utils.instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, KvartsError):
            raise error.__cause__ from None
        raise ConfigError(_one_line(error)) from error


def quote_values(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with quotes around the values that Hydra's grammar does not know unquoted.

    Such are paths with Cyrillic letters, and names that Lightning gives: ``model.init_weights=/а/epoch=4.ckpt``.
    Lists, mappings and interpolations are left alone, for there a slip should be reported.
    """
    return [argument if _can_be_parsed(argument) else _with_quotes(argument) for argument in arguments]


def set_to(key: str, value: object) -> str:
    """The override that sets a key to a text, whatever characters it has."""
    # A backslash is itself, but before a quote it has to be doubled.
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(value))
    return f"{key}='{escaped}'"


def _parsed(override: str) -> Override:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ConfigError(f"{override}: no key=value that can be read; {_one_line(error)}") from error


def _can_be_parsed(argument: str) -> bool:
    try:
        _parsed(argument)
    except ConfigError:
        return False
    return True


def _with_quotes(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-") or value[:1] in ("", "[", "{", "'", '"') or "${" in value:
        return argument
    return set_to(key, value)


def _groups() -> list[str]:
    return sorted({path.parent.name for path in Path(__file__).with_name("conf").glob("*/*.yaml")})


def _unknown_option(error: MissingConfigException) -> ConfigError:
    """What optimizer=adamm leads to."""
    if not error.missing_cfg_file or not error.options:
        return ConfigError(_one_line(error))
    group, _, option = error.missing_cfg_file.rpartition("/")
    nearest = difflib.get_close_matches(option, error.options, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return ConfigError(f"unknown {group} {option!r}; {hint}choose from {', '.join(error.options)}")


def _refuse_unknown_overrides(parsed: Iterable[Override], shipped: DictConfig) -> None:
    names = [*_keys(shipped), *_groups()]
    for override in parsed:
        key = override.key_or_group
        if override.is_add() or override.is_force_add() or key.startswith("hydra") or key in names:
            continue
        section, _, argument = key.partition(".")
        if section == "trainer" and argument in _trainer_arguments():
            line = override.input_line
            raise ConfigError(f"{line}: an argument of Lightning's Trainer; write ++{line}")
        nearest = _nearest(key, names)
        hint = f"did you mean {nearest}?" if nearest else "see kvarts/conf for all keys"
        raise ConfigError(f"unknown setting {key!r} in {override.input_line!r}; {hint}")


def _trainer_arguments() -> Iterable[str]:
    return inspect.signature(hydra.utils.get_object("pytorch_lightning.Trainer")).parameters.keys()


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in config.items_ex(resolve=False):
        keys.append(f"{prefix}{name!s}")
        if isinstance(value, DictConfig):
            keys += _keys(value, f"{prefix}{name!s}.")
    return keys


def _nearest(key: str, names: Iterable[str]) -> str | None:
    matches = difflib.get_close_matches(key, list(names), n=1, cutoff=0.6)
    if not matches:  # the right leaf in the wrong section: max_steps=3
        matches = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return matches[0] if matches else None


def _check_sections(config: DictConfig, shipped: DictConfig) -> None:
    """What came in with + or ++, or went with ~, against what there is."""
    for key in map(str, shipped):
        if key not in config:
            raise ConfigError(f"{key} is missing; it may be set, not taken away")
        if isinstance(shipped[key], DictConfig) and not isinstance(config[key], DictConfig):
            settings = ", ".join(f"{key}.{name!s}" for name in shipped[key])
            raise ConfigError(f"{key}={config[key]}: {key} is a section; set one of {settings}")
    for key in map(str, config):
        if key not in shipped and key not in _groups():
            _raise_unknown(key, "", shipped)
    for section in ("data", "checkpoint", "evaluate", "augment"):
        for key in config[section]:
            if key not in shipped[section]:
                _raise_unknown(str(key), f"{section}.", shipped[section])
    accepted = _trainer_arguments()
    for key in config.trainer:
        if key in _TAKEN:
            raise ConfigError(f"trainer.{key}: Kvarts sets this itself; leave it out")
        if key not in accepted:
            _raise_unknown(str(key), "trainer.", accepted)


def _check_values(config: DictConfig) -> None:
    for key, (words, is_right) in _RULES.items():
        section, _, leaf = key.rpartition(".")
        node = config[section] if section else config
        if leaf not in node:
            raise ConfigError(f"{key} is missing; it may be set, not taken away: {words}")
        if not is_right(node[leaf]):
            raise ConfigError(f"{key}={_shown(node[leaf])}: must be {words}")
    trainer = config.trainer
    if trainer.max_steps == -1 and trainer.max_epochs in (-1, None):
        raise ConfigError(
            "trainer.max_steps=-1: the learning rate falls to 0 at the last step, so there must be one; "
            "set trainer.max_steps or trainer.max_epochs"
        )
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    if on_cpu and type(trainer.devices) is int and trainer.devices > _MOST_CPU_PROCESSES:
        raise ConfigError(
            f"trainer.devices={trainer.devices}: on this CPU each would be a process of its own, and "
            f"{_MOST_CPU_PROCESSES} are the most; use fewer, or trainer.accelerator=gpu"
        )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _check_targets(node: Any, path: str) -> None:
    """Every section with a `_target_` may hold only what that class or function takes."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            _check_arguments(node, path, node["_target_"])
        for name, child in node.items():
            _check_targets(child, f"{path}.{name!s}")
    elif isinstance(node, ListConfig):
        for number, child in enumerate(node):
            _check_targets(child, f"{path}[{number}]")


def _check_arguments(node: DictConfig, path: str, target: str) -> None:
    try:
        callable_ = hydra.utils.get_object(target)
    except Exception as error:
        raise ConfigError(f"{path}._target_={target}: cannot be imported ({_one_line(error)})") from error
    parameters = inspect.signature(callable_).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in node:
        if key not in parameters and key not in ("_target_", "_partial_", "_convert_", "_recursive_"):
            _raise_unknown(str(key), f"{path}.", parameters)


def _check_optimizer(config: DictConfig) -> None:
    """Optimisers judge their settings when they are made, which otherwise is after all data were checked."""
    try:
        hydra.utils.instantiate(config.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    except Exception as error:  # they raise what they like
        raise ConfigError(f"optimizer: {_one_line(error)}; correct optimizer.*") from error


def _raise_unknown(key: str, prefix: str, known: Iterable[Any]) -> None:
    names = [str(name) for name in known]
    nearest = _nearest(key, names)
    hint = f"did you mean {prefix}{nearest}?" if nearest else "it takes " + ", ".join(sorted(names))
    raise ConfigError(f"unknown setting {prefix}{key}; {hint}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
