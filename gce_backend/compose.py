"""One Hydra composition: a project's ``conf/`` with the packaged groups behind it.

Turns what Hydra and OmegaConf raise into one sentence that names the word at fault, what is
allowed, and the closest match.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gce_backend.errors import ConfigError


class Composer:
    """Composes a project's configuration with the packaged groups behind its own.

    Hydra's public ``initialize`` is global state and refuses to work inside a Hydra application;
    a private loader works anywhere and in any thread.
    """

    def __init__(self, project_dir: Path) -> None:
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
        from hydra.core.plugins import Plugins

        Plugins.instance()  # registers the sources behind file:// and pkg://
        own = project_dir / "conf"
        path = ConfigSearchPathImpl()
        path.append("hydra", "pkg://hydra.conf")
        if own.is_dir():
            path.append("main", own.absolute().as_uri())
        path.append("gce_backend", defaults_dir().absolute().as_uri())
        path.append("schema", "structured://")
        self._loader = ConfigLoaderImpl(path)
        self._name = "config" if (own / "config.yaml").is_file() else None
        base = self._load([]) if self._name else OmegaConf.create({})
        self._missing = {
            group: word
            for group, word in (("machine", "+machine=n1-standard-2"), ("gce", "+gce=default"))
            if group not in base
        }

    @functools.cached_property
    def _base(self) -> DictConfig:
        """The tree without any override; only errors and type checks need it."""
        return self.compose([])

    def compose(self, words: Sequence[str]) -> DictConfig:
        """The whole tree with ``words`` applied; raises ConfigError naming the word at fault."""
        try:
            return self._load(self._with_groups(words))
        except Exception as error:  # Hydra's, OmegaConf's and the grammar's have no common base
            raise self._explain(words, error) from error

    def check_types(self, words: Sequence[str]) -> None:
        """Hold each word against the default that it replaces; see `check_type`."""
        for word in words:
            if "," not in word:
                check_type(word, self._base, functools.partial(self.compose, [word]))

    def _load(self, words: Sequence[str]) -> DictConfig:
        from hydra.types import RunMode

        config: DictConfig = self._loader.load_configuration(
            config_name=self._name, overrides=list(words), run_mode=RunMode.RUN
        )
        with_hydra = OmegaConf.to_container(config, resolve=False)
        assert isinstance(with_hydra, dict)
        with_hydra.pop("hydra", None)
        return OmegaConf.create(with_hydra)

    def _with_groups(self, words: Sequence[str]) -> list[str]:
        """``words``, with the groups that the project's own config does not mention put in."""
        chosen = dict(self._missing)
        rest = []
        for word in words:
            group = word.partition("=")[0]
            if group in chosen:
                chosen[group] = f"+{word}"
            else:
                rest.append(word)
        return [*chosen.values(), *rest]

    def _explain(self, words: Sequence[str], error: Exception) -> ConfigError:
        for word in words:
            try:
                self._load(self._with_groups([word]))
            except Exception as single:
                return self._explain_word(word, single)
        reason = first_line(error)
        if self._name and not words:
            return ConfigError(f"conf/config.yaml does not compose: {reason}")
        return ConfigError(f"{' '.join(words)}: does not compose: {reason}")

    def _explain_word(self, word: str, error: Exception) -> ConfigError:
        key, _, value = word.lstrip("+~").partition("=")
        if options := self._loader.get_group_options(key):
            return ConfigError(f"{key}={value}: no such {key}. {choices(value, options)}")
        if OmegaConf.select(self._base, key, default=None) is None:
            keys = dotted_keys(self._base)
            if key not in keys:
                near = [k for k in keys if k.rpartition(".")[0] == key.rpartition(".")[0]]
                return ConfigError(f"{word}: unknown key {key!r}. {choices(key, keys, near)}")
        return ConfigError(f"{word}: {first_line(error.__cause__ or error)}")


def check_type(word: str, base: DictConfig, composed: Callable[[], DictConfig]) -> None:
    """Refuse a word for a number or a switch, and a fraction for a whole number.

    No schema of the project's is known here: the default tells the type, and one that stands for
    any (null, a text) lets everything pass. So does a word that begins with ``+``. The nodes
    ``machine`` and ``gce`` have a schema, which sees to them.

    Args:
        base: the tree without the word.
        composed: gives the tree with it; asked only where its value matters.

    Raises:
        ConfigError: names the key, its default, and how to change its type on purpose.
    """
    key, sign, _ = word.partition("=")
    if not sign or key.startswith(("+", "~", "machine.", "gce.")):
        return
    default = _value(base, key)
    if not isinstance(default, (bool, int, float)):
        return
    value = _value(composed(), key)
    if wanted := _wanted(default, value):
        raise ConfigError(
            f"{key}: expected {wanted} like the default {default!r}, got {value!r}. "
            f"To change its type on purpose, write ++{word}"
        )


def _value(config: DictConfig, key: str) -> Any:
    """What stands at ``key``; None for nothing, and for what only a job can resolve."""
    try:
        return OmegaConf.select(config, key, default=None)
    except OmegaConfBaseException:
        return None


def _wanted(default: bool | int | float, value: Any) -> str:
    """What would have to stand where ``value`` does; "" where it is right."""
    if isinstance(default, bool):
        return "true or false" if isinstance(value, str) else ""
    if isinstance(value, (str, bool)):
        return "a number"
    # A whole number may be written as a float: MLflow's own parameters are.
    is_fraction = isinstance(value, float) and not value.is_integer()
    return "a whole number" if is_fraction and isinstance(default, int) else ""


def defaults_dir() -> Path:
    """The folder with the packaged ``machine`` and ``gce`` groups."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def choices(given: str, allowed: Sequence[str], near: Sequence[str] = ()) -> str:
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    shown = sorted(near or allowed)
    listed = ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "")
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Allowed: {listed}"


def dotted_keys(config: DictConfig) -> list[str]:
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            keys.append(name)
            if isinstance(value, dict):
                walk(value, f"{name}.")

    walk(OmegaConf.to_container(config, resolve=False), "")
    return keys


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
