"""Entry point: `robo-reward <command> [key=value ...]`; `--some-key value` is read as `some_key=value`.

A command is a file `configs/<command>.yaml` whose `_target_` names a function of one frozen dataclass:
Hydra composes the config, `run_command` turns it into that dataclass once, and nothing below sees OmegaConf.
Exit status: 0 done, 1 refused or failed with one clear line on stderr, 2 wrong usage.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from robo_reward.cli.help import command_help, key_names, options_with, overview
from robo_reward.errors import ConfigError, RoboRewardError
from robo_reward.sources import typed_command

__all__ = ["commands", "config_dir", "load_config", "main", "run_command"]

_OTHER_NAMES = {"device": "accelerator", "accelerator": "device"}  # one thing, called so in some commands


class UsageError(ConfigError):
    """The command line itself is wrong: exit status 2."""


def config_dir() -> Path:
    """The Hydra config tree: beside the sources in a checkout, inside the package in a wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_configs", package.parent / "configs"):
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"no config tree beside {package}: the installation is incomplete, install it again")


def commands() -> dict[str, str]:
    """Every command and its one-line description (the first comment line of its config)."""
    found: dict[str, str] = {}
    for path in sorted(config_dir().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        found[path.stem] = first.lstrip("# ").strip()
    return found


def load_config(command: str, overrides: Sequence[str]) -> tuple[Callable[[Any], None], Any]:
    """The function of a command, and its config as that function's frozen dataclass.

    Raises:
        UsageError: unknown command or key, malformed override, wrong type, or a required value left out.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from robo_reward.imports import import_object

    _check_command(command)
    # An experiment is a choice of a group that may bring a target of its own, and with it other keys.
    groups = [override for override in overrides if _names_a_group(override)]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            defaults = compose(command, overrides=groups)
            function = import_object(str(defaults["_target_"]))
            schema = _config_type(function)
            typed = [_as_typed(override, schema, defaults) for override in overrides]
            composed = compose(command, overrides=typed)
    except (HydraException, OmegaConfBaseException) as error:
        reason = _unknown_key(error, command, overrides) or _reason(error)
        raise UsageError(f"{reason} (see: robo-reward {command} --help)") from error
    OmegaConf.set_struct(composed, False)  # Hydra seals what it composes, and _target_ is no field
    composed.pop("_target_")
    missing = sorted(str(key) for key in OmegaConf.missing_keys(composed))
    if missing:
        wanted = " ".join(f"{key}=..." for key in missing)
        raise UsageError(f"'{command}' needs {wanted} (see: robo-reward {command} --help)")
    try:
        blank = OmegaConf.structured(schema)
        _unseal(blank)
        plain = OmegaConf.to_container(OmegaConf.merge(blank, composed), resolve=True)
        return function, _build(schema, plain)
    except OmegaConfBaseException as error:
        raise UsageError(f"{_reason(error)} (see: robo-reward {command} --help)") from error


def _names_a_group(override: str) -> bool:
    """Whether it chooses an option of a config group, such as arm=sparse or +experiment=one_demo."""
    name = override.partition("=")[0].lstrip("+").split("@")[0]
    return bool(name) and (config_dir() / name).is_dir()


def _as_typed(override: str, schema: type, defaults: Any) -> str:
    """An override that means what its user typed.

    Hydra's grammar refuses apostrophes, brackets, most signs and every letter beyond ASCII, and reads the
    folder 2026_11_21 as a number. So what goes into a text is quoted, and what cannot be read otherwise.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    typed, (key, equals, value) = override, override.partition("=")
    if not equals:
        if key.startswith("~"):
            return override
        raise UsageError(f"'{override}' has no value: write {override}=VALUE")

    def quoted(text: str) -> str:
        return QuotedString(text.strip(), Quote.single).with_quotes()

    hint = _hint_of(schema, key.lstrip("+").split("."))
    whole = typing.get_origin(hint) is dict and value.startswith("{")
    if not key.startswith(("+", "~")) and (whole or _is_free(key, schema, defaults)):
        override = f"++{override}"  # Hydra adds nothing to a mapping without being told
        key = f"++{key}"
    if _is_text(hint) and value != "null":
        if not value or value[0] not in "[{'\"":
            return f"{key}={quoted(value)}"
        if re.fullmatch(r"\[[^\[\]{}'\"]+\]", value):
            return f"{key}=[{','.join(quoted(part) for part in value[1:-1].split(','))}]"
    try:
        understood = not OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException as error:
        if value[:1] in ("[", "{"):
            raise UsageError(
                f"cannot read {typed}: put texts with signs in quotes, [\"it's\",'a, b']"
            ) from error
        understood = False
    # 2026_11_21 is a name, though Hydra reads a number; where one is declared, 1_000 is converted to it.
    named = re.fullmatch(r"\d+(_\d+)+", value)
    return override if understood and not named else f"{key}={quoted(value)}"


def _hint_of(hint: Any, path: Sequence[str]) -> Any:
    """What the field at `path` of a dataclass is declared as; None where it is not declared."""
    for name in path:
        hint = typing.get_type_hints(hint).get(name) if dataclasses.is_dataclass(hint) else None
    return hint


def _is_free(key: str, schema: type, defaults: Any) -> bool:
    """Whether a key lies in a mapping that names no keys of its own, so that any may be meant."""
    from omegaconf import OmegaConf

    names = key.split(".")
    for count in range(1, len(names)):
        hint = _hint_of(schema, names[:count])
        if dict in (typing.get_origin(hint), *map(typing.get_origin, typing.get_args(hint))):
            return not OmegaConf.select(defaults, ".".join(names[:count]))
    return False


def _is_text(hint: Any) -> bool:
    """Whether a field holds text, or texts: a path, an instruction, names."""
    options = () if typing.get_origin(hint) is dict else typing.get_args(hint)
    return hint in (str, Path, Any) or any(_is_text(option) for option in options)


def _unseal(node: Any) -> None:
    """Let values be merged into the nodes that OmegaConf makes of nested frozen dataclasses."""
    from omegaconf import OmegaConf

    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if OmegaConf.is_dict(child):
            _unseal(child)


def _build(schema: Any, value: Any) -> Any:
    """A dataclass from plain containers, which OmegaConf has type-checked; lists become declared tuples."""
    if dataclasses.is_dataclass(schema):
        hints = typing.get_type_hints(schema)
        return typing.cast("Any", schema)(**{key: _build(hints[key], item) for key, item in value.items()})
    options = typing.get_args(schema) or (schema,)
    if isinstance(value, list) and tuple in (typing.get_origin(schema), *map(typing.get_origin, options)):
        return tuple(typing.cast("list[Any]", value))
    return value


_PLACES = frozenset(
    [
        "bag",
        "data",
        "dataset",
        "demos",
        "model",
        "older",
        "out",
        "path",
        "policy",
        "run",
        "store",
        "test",
        "train",
    ]
)
"""Keys whose values are files and folders."""


def run_command(command: str, overrides: Sequence[str] = ()) -> None:
    """Run one command in this process, as `main` does, but let its errors through."""
    for override in overrides:
        key, given, value = override.partition("=")
        # What a shell's unset variable leaves: it would be the folder that one happens to be in.
        if given and not value and key.lstrip("+").rpartition(".")[2] in _PLACES:
            raise UsageError(f"{key}= is empty: name a place, or leave it out")
    function, config = load_config(command, overrides)
    with typed_command(command, overrides):
        function(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into exit statuses."""
    # OpenMP threads that spin while they wait starve the batch thread and every neighbor: on two busy cores a
    # training step took three times as long. Set before torch is imported; a user's own choice stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview(commands()))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from robo_reward import __version__

        sys.stdout.write(f"robo-reward {__version__}\n")
        return 0
    command, overrides = arguments[0], arguments[1:]
    try:
        if "-h" in overrides or "--help" in overrides:
            sys.stdout.write(_help(command, overrides))
        else:
            # What plugins= and _target_ name may lie in the current folder, as for `python -m`; last, to hide
            # nothing.
            if not {"", here := str(Path.cwd())} & set(sys.path):
                sys.path.append(here)
            run_command(command, _as_overrides(overrides))
    except UsageError as error:
        return _fail(error, 2, debug)
    except RoboRewardError as error:
        return _fail(error, 1, debug)
    except KeyboardInterrupt:
        sys.stderr.write("robo-reward: interrupted\n")
        return 130
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" where '{error.filename}' is" if error.filename is not None else ""
            full = f"the disk is full{where}: make room and give the same command again"
            return _fail(ConfigError(full), 1, debug)
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(ConfigError(f"cannot use '{error.filename}': {error.strerror}"), 1, debug)
        line = _first_line(error) or type(error).__name__
        sys.stderr.write(
            f"robo-reward: unexpected {type(error).__name__}: {line}"
            " (run again with --debug for the traceback)\n"
        )
        return 1
    return 0


def _as_overrides(arguments: Sequence[str]) -> list[str]:
    """Flags as Hydra overrides: `--some-key value` and `--some-key=value` both as `some_key=value`."""
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-m", "--multirun"):
            raise UsageError(f"'{argument}': one command is one run; for several values, loop in the shell")
        if not argument.startswith("--"):
            key, equals, value = argument.partition("=")
            overrides.append(f"{key}{equals}{_at_home(value)}")
            continue
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals:
            value = next(rest, None)
            if value is None or value.startswith("--"):
                raise UsageError(f"'{argument}' has no value: write {argument} VALUE")
        overrides.append(f"{key.replace('-', '_')}={_at_home(value)}")
    return overrides


def _at_home(value: str) -> str:
    """A value in which `~/` stands for the home folder, in lists too: shells leave it after `=`."""
    return re.sub(r"(^|[\[,]\s*)~(?=/|$)", lambda found: f"{found[1]}{Path.home()}", value)


def _check_command(command: str) -> None:
    if command not in commands():
        raise UsageError(f"no command '{command}': choose one of {', '.join(commands())}")


def _help(command: str, overrides: Sequence[str]) -> str:
    _check_command(command)
    chosen = {name: value for name, equals, value in (item.partition("=") for item in overrides) if equals}
    return command_help(command, config_dir(), chosen)


def _fail(error: BaseException, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    sys.stderr.write(f"robo-reward: {' '.join(str(error).split())}\n")
    return status


def _unknown_key(error: BaseException, command: str, overrides: Sequence[str]) -> str:
    """What to say of a key or group that the command has not; "" where the error is another one."""
    found = re.match(r"Could not override '([^']+)'", _first_line(error))
    if found is None:
        return ""
    keys, other = key_names(command, config_dir()), _OTHER_NAMES.get(found[1])
    if options := options_with(found[1], command, config_dir()):
        return f"'{found[1]}' is a key of {' or '.join(options)}: choose that too, or add +{found[1]}=VALUE"
    typed = [override.partition("=")[0].lstrip("+") for override in overrides]
    if found[1] in keys and typed.count(found[1]) > 1:  # a mapping that was given takes no other names
        return f"'{found[1]}' is given twice: write {found[1]}='{{NAME: VALUE, OTHER: VALUE}}' once"
    inner = re.search(r"full_key: (\S+)", str(error.__cause__ or ""))
    if inner is not None and inner[1].startswith(f"{found[1]}."):  # a mapping is merged with what is there
        name = inner[1].removeprefix(f"{found[1]}.")
        return f"'{found[1]}' has no '{name}': to add it to what is there, write +{inner[1]}=VALUE"
    close = [other] if other in keys else get_close_matches(found[1], keys, n=1)
    if close and found[1].startswith(f"{close[0]}."):  # the mapping that it would be in: nothing resembles it
        return f"no key '{found[1]}': to add it to '{close[0]}', write +{found[1]}=VALUE"
    return f"no key '{found[1]}'" + (f": did you mean '{close[0]}'?" if close else "")


def _reason(error: BaseException) -> str:
    """What Hydra or OmegaConf has against a command line: the key, and the options where it lists them."""
    text = str(error).partition("Config search path")[0]
    reason, key = _first_line(error), getattr(error, "full_key", None)
    if "Available options" in text:
        return " ".join(text.split())
    if group := re.search(r"Could not load '(\w+)/", reason):
        known = sorted(path.stem for path in (config_dir() / group[1]).glob("*.yaml"))
        return f"{reason} Available options: {' '.join(known)}"
    if key and "not a ListConfig" in reason:
        return f"{key} is a list: write {key}=[A,B]"
    if key and re.search(r"Cannot assign .* to Dict\[", reason):
        return f"{key} is a mapping: write {key}='{{NAME: VALUE}}'"
    return f"{key}: {reason}" if key and str(key) not in reason else reason


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _config_type(function: Callable[..., Any]) -> type:
    hints = typing.get_type_hints(function)
    hints.pop("return", None)
    if len(hints) != 1 or not dataclasses.is_dataclass(schema := next(iter(hints.values()))):
        raise ConfigError(f"'{function.__module__}.{function.__qualname__}' must take one dataclass")
    return typing.cast("type", schema)


if __name__ == "__main__":
    sys.exit(main())
