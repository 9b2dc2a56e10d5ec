"""A command's options from a file (`--config run.toml`) or under one name (`--preset`), and back into a file.

Both only change the defaults of options: what stands on the command line wins, then the file, then the
preset.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from fxdecomp.errors import PolicyError
from fxdecomp.version import __version__

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "safe": {"max_drop": 0.01, "time": True},
    "balanced": {"budget": "macs:0.5", "time": True},
    "small": {"budget": "params:0.3", "quantize": "int8", "time": True},
}
"""What each preset stands for, in options."""

POLICY_TABLE = "fxdecomp.policy"
"""Where the policy of a file is kept that holds it as a table."""

_NOT_KEPT = {"config", "preset", "as_json", "quiet", "trust"}


class ConfigError(PolicyError):
    """A file of options that cannot be meant."""


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options of a file for defaults; the callback of `--config`.

    Raises:
        ConfigError: It cannot be read, or has an option that the command has not.
    """
    if path is None:
        return None
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    data.pop("fxdecomp", None)  # the version that wrote it
    options = _options(context)
    found = {}
    for key, value in data.items():
        name = options.get(key.replace("_", "-"))
        if name == "trust":
            raise ConfigError(f"{path}: no file says that a file is to be trusted; pass --trust yourself")
        if name is None or name in _NOT_KEPT - {"preset"}:
            near = difflib.get_close_matches(key, options, 1)
            raise ConfigError(f"{path}: there is no option {key!r}" + (f"; use {near[0]}" if near else ""))
        if name == "policy" and isinstance(value, dict):
            context.meta[POLICY_TABLE] = value
        elif isinstance(value, dict) or (isinstance(value, list) and any(isinstance(x, dict) for x in value)):
            raise ConfigError(f"{path}: {key} is no table")
        else:
            found[name] = value
    _add_defaults(context, found)
    return path


def use_preset(context: typer.Context, name: str | None) -> str | None:
    """Take what a preset stands for as defaults; the callback of `--preset`.

    Raises:
        ConfigError: There is no such preset.
    """
    if name is None:
        return None
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    _add_defaults(context, PRESETS[name])
    return name


def settings_text(context: typer.Context, policy: Mapping[str, Any] | None) -> str:
    """The options of a command as TOML, which `--config` reads.

    Args:
        context: Of the command.
        policy: The policy as a table, in the place of the name of its file.
    """
    import tomli_w

    kept: dict[str, Any] = {"fxdecomp": __version__}
    parameters = {parameter.name: parameter for parameter in context.command.params}
    for option, name in _options(context).items():
        value = context.params.get(name)
        if name in _NOT_KEPT or value in (None, [], ()) or value == parameters[name].default:
            continue
        kept[option] = _plain(value)
    if policy is not None:
        kept["policy"] = dict(policy)
    return tomli_w.dumps(kept, multiline_strings=False)


def _options(context: typer.Context) -> dict[str, str]:
    """The long names of the options and arguments of a command, and the parameters that they set."""
    found = {}
    for parameter in context.command.params:
        name = str(parameter.name)
        long = max(parameter.opts, key=len).lstrip("-")
        found["model" if name == "model" else long] = name
    return found


def _add_defaults(context: typer.Context, values: Mapping[str, Any]) -> None:
    """Defaults below those that are there already."""
    context.default_map = {**values, **(context.default_map or {})}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
