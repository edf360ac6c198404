"""The training configuration: composed by Hydra, checked before anything starts, every mistake in one line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvarts.errors import ConfigError

CONFIG_MODULE = "kvarts.conf"
CONFIG_NAME = "quarznet_5x5_ru"

# Sections whose values have the type of their default; Trainer, optimisers and networks judge theirs themselves.
_OWN_SECTIONS = ("seed", "data", "checkpoint", "evaluate")


def compose_config(arguments: Sequence[str], config_name: str = CONFIG_NAME) -> DictConfig:
    """The configuration that the overrides give, checked.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), group option, syntax or type.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    GlobalHydra.instance().clear()
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            plain = [o.input_line for o in parsed if o.is_add() or o.is_force_add() or _is_group(o, config_name)]
            known = compose(config_name, overrides=plain)
            _refuse_unknown_overrides(parsed, known, config_name)
            config = compose(config_name, overrides=overrides)
        OmegaConf.resolve(config)
        _check_types(config, known)
        _check_top_level(config)
        for section, target in (("trainer", "pytorch_lightning.Trainer"), ("data", "kvarts.datamodule.SpeechData")):
            _check_arguments(config[section], section, target)
        _check_targets(config, "")
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error
    return config


def _is_group(override: Override, config_name: str) -> bool:
    return override.get_key_element().lstrip("+~").split("@")[0] in _groups() and "." not in override.key_or_group


def _groups() -> list[str]:
    return sorted(p.name for p in Path(__file__).with_name("conf").iterdir() if p.is_dir())


def _refuse_unknown_overrides(parsed: Iterable[Override], known: DictConfig, config_name: str) -> None:
    names = [*_keys(known), *_groups()]
    for override in parsed:
        key = override.key_or_group
        if override.is_add() or override.is_force_add() or key.startswith("hydra") or key in names:
            continue
        hint = f"did you mean {nearest}?" if (nearest := _nearest(key, names)) else "see kvarts/conf for all keys"
        raise ConfigError(f"unknown setting {key!r} in {override.input_line!r}; {hint}")


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in config.items_ex(resolve=False):
        keys.append(f"{prefix}{name}")
        if isinstance(value, DictConfig):
            keys += _keys(value, f"{prefix}{name}.")
    return keys


def _nearest(key: str, names: Iterable[str]) -> str | None:
    matches = difflib.get_close_matches(key, list(names), n=1, cutoff=0.6)
    if not matches:  # the right leaf in the wrong section: max_steps=3
        matches = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return matches[0] if matches else None


def _check_types(config: DictConfig, defaults: DictConfig) -> None:
    for key in _keys(defaults):
        if key.split(".")[0] not in _OWN_SECTIONS:
            continue
        default, value = OmegaConf.select(defaults, key), OmegaConf.select(config, key)
        wrong = (
            (isinstance(default, bool) and not isinstance(value, bool))
            or (type(default) in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))))
            or (type(default) is int and isinstance(value, float) and not value.is_integer())
        )
        if wrong:
            raise ConfigError(f"{key}={value}: must be {_kind(default)}, as its default {default}")
    if config.data.train_minutes is not None and not isinstance(config.data.train_minutes, (int, float)):
        raise ConfigError(f"data.train_minutes={config.data.train_minutes}: must be a number of minutes or null")


def _kind(default: object) -> str:
    if isinstance(default, bool):
        return "true or false"
    return "a whole number" if isinstance(default, int) else "a number"


def _check_top_level(config: DictConfig) -> None:
    known = {"name", "seed", "data_dir", "resume", "data", "trainer", "checkpoint", "evaluate"} | set(_groups())
    for key in config:
        if str(key) not in known:
            _raise_unknown(str(key), "", known)


def _check_targets(node: Any, path: str) -> None:
    """Every section with a `_target_` may hold only what that class or function takes."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            _check_arguments(node, path, node["_target_"])
        for name, child in node.items():
            _check_targets(child, f"{path}.{name}" if path else str(name))


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


def _raise_unknown(key: str, prefix: str, known: Iterable[str]) -> None:
    nearest = _nearest(key, known)
    hint = f"did you mean {prefix}{nearest}?" if nearest else "it takes " + ", ".join(sorted(known))
    raise ConfigError(f"unknown setting {prefix}{key}; {hint}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
