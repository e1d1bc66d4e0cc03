"""Settings: typed defaults, a YAML recipe over them, the command line over the recipe.

A program's config is a frozen pydantic model made of the configs of the parts it uses. Every program is called as
`program.py [--config RECIPE.yaml] [--output DIR] [--dry-run] [key=value | --key value ...]`, keys being dotted paths
(`optim.lr=3e-4`). Whatever is wrong is said before anything starts, with the path of the key and the nearest name.
"""

import difflib
import os
import select
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mien.platform.storage import StorageError

C = TypeVar("C", bound=BaseModel)
# What whoever called a program can put right. Anything else is a fault of ours, and its traceback says where.
MISTAKES = (ValueError, StorageError, FileNotFoundError, PermissionError)


class ConfigError(ValueError):
    """A setting that does not exist, has the wrong type or breaks a rule."""


@dataclass(frozen=True)
class Invocation(Generic[C]):
    """One call of a program: its complete config, where it writes, and what else was asked."""

    config: C
    output: Path | None
    dry_run: bool
    flags: frozenset[str]


@dataclass(frozen=True)
class Setting:
    """One line of `--help`."""

    key: str
    type: str
    default: str
    meaning: str


def parse(
    config_class: type[C], argv: Sequence[str], doc: str | None, *, flags: dict[str, str] | None = None, first: str = ""
) -> Invocation[C]:
    """Read a program's command line; `flags` are its own switches (`{"demo": "what it does"}`).

    `first` names a setting whose value may stand alone as the first word. `--help` prints every setting and exits.
    Raises ConfigError for anything that is not understood.
    """
    known, words = dict(flags or {}), list(argv)
    paths: dict[str, Path] = {}
    given: dict[str, Any] = {}
    switches = set()
    if first and words and "=" not in words[0] and not words[0].startswith("-"):
        words[0] = f"{first}={words[0]}"
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            print(help_text(config_class, doc or "", known))
            raise SystemExit(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and not equals and (name == "dry-run" or name in known):
            switches.add(name)
            continue
        if word.startswith("--") and not equals:
            if not words:
                raise ConfigError(f"{word} needs a value, as in '{word} VALUE'; it was the last word of the command")
            value = words.pop(0)
        elif not equals:
            raise ConfigError(f"expected key=value or --key value, got {word!r}; --help lists every setting")
        if name in ("config", "output"):
            paths[name] = Path(value)
        else:
            given[name.replace("-", "_")] = _value(name, value)
    config = load(config_class, paths.get("config"), given)
    return Invocation(config, paths.get("output"), "dry-run" in switches, frozenset(switches - {"dry-run"}))


def load(config_class: type[C], recipe: Path | None, overrides: Mapping[str, Any]) -> C:
    """Return the config of a YAML recipe (or of the defaults) with dotted overrides on top."""
    tree: dict[str, Any] = {}
    if recipe is not None:
        if not recipe.is_file():
            raise ConfigError(f"a recipe must be a YAML file; {recipe} does not exist (working folder {Path.cwd()})")
        try:
            tree = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{recipe} is not valid YAML: {error}") from error
        if not isinstance(tree, dict):
            raise ConfigError(f"a recipe must be a mapping of settings; {recipe} holds a {type(tree).__name__}")
    merged = _overlay(config_class, _defaults(config_class), tree, "")
    return _validated(config_class, _overlay(config_class, merged, _nested(overrides), ""))


def with_overrides(config: C, overrides: Mapping[str, Any]) -> C:
    """Return `config` with dotted settings replaced, checked like any other config."""
    return _validated(type(config), _overlay(type(config), config.model_dump(), _nested(overrides), ""))


def rebuild(config_class: type[C], plain: Mapping[str, Any]) -> C:
    """Return the config that was written out as plain data (YAML, JSON, a worker's arguments)."""
    return _validated(config_class, _overlay(config_class, _defaults(config_class), plain, ""))


def plain(config: BaseModel) -> dict[str, Any]:
    """Return the complete config as plain data that YAML and JSON hold."""
    return config.model_dump(mode="json")


def dump(config: BaseModel) -> str:
    """Return the complete config, defaults included, as YAML."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def settings(config_class: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Yield every setting with its type, default and meaning; a variant's settings carry its name in the type."""
    for name, field in config_class.model_fields.items():
        key, meaning = f"{prefix}{name}", field.description or ""
        variants = _models(field.annotation)
        if not variants:
            yield Setting(key, _type_name(field.annotation), _default_text(field), meaning)
        elif len(variants) == 1:
            if type(None) in get_args(field.annotation):
                yield Setting(key, "section or null", _default_text(field), meaning)
            yield from settings(variants[0], f"{key}.")
        else:
            for variant in variants:
                tag = f"[{_tag(variant)}] "
                for setting in settings(variant, f"{key}."):
                    yield Setting(setting.key, tag + setting.type, setting.default, setting.meaning)


def help_text(config_class: type[BaseModel], doc: str, flags: Mapping[str, str]) -> str:
    """Return the text of `--help`."""
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    lines = [doc.strip(), "", "Options:"]
    options = {
        "config RECIPE.yaml": "settings that differ from the defaults",
        "output DIR": "the run folder; the same command in the same folder goes on where it stopped",
        "dry-run": "print the complete config with its sizes, and stop",
        **flags,
    }
    lines += [f"  --{name:<20} {meaning}" for name, meaning in options.items()]
    lines += ["", "Settings (key=value or --key value, over the recipe, over the default shown):"]
    for setting in settings(config_class):
        lines.append(f"  {setting.key} ({setting.type}) = {setting.default}")
        lines += textwrap.wrap(setting.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def run_program(main: Callable[[Sequence[str]], None]) -> None:
    """Run a program's main: a user's mistake ends in one message and exit code 2, never in a traceback."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # who reads what is printed (`| head`) has enough; nothing is flushed to it any more
        (reader := select.poll()).register(sys.stdout.fileno(), 0)
        if not reader.poll(0):  # it is there: another pipe broke, which is a fault of ours
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # of a program without state of its own; see run.interruptible
        print("\nstopped; the same command begins again, and keeps what is whole", file=sys.stderr)
        raise SystemExit(130) from None


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {text!r} is not a YAML value ({error})") from error


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {parent} was set to a value and to a section in the same command")
        node[last] = value
    return tree


def _defaults(config_class: type[BaseModel]) -> dict[str, Any]:
    tree = {}
    for name, field in config_class.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        if default is PydanticUndefined:
            models = _models(field.annotation)
            if len(models) == 1:
                tree[name] = _defaults(models[0])
            continue
        tree[name] = default.model_dump() if isinstance(default, BaseModel) else default
    return tree


def _overlay(
    config_class: type[BaseModel], base: dict[str, Any], given: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """Return `base` with `given` on top by section; another variant (or its name alone) drops the old one's."""
    result = dict(base)
    for key, value in given.items():
        field = config_class.model_fields.get(key)
        if field is None:
            raise ConfigError(_unknown(config_class, f"{path}{key}", key))
        models = _models(field.annotation)
        value = {"name": value} if len(models) > 1 and isinstance(value, str) else value  # a variant by its name
        if models and isinstance(value, Mapping):
            tags = {_tag(model): model for model in models}
            old = base.get(key) or {}
            tag = value.get("name", old.get("name")) if len(models) > 1 else next(iter(tags))
            if tag not in tags:
                raise ConfigError(f"{path}{key}.name must be one of {', '.join(tags)}; got {_with_nearest(tag, tags)}")
            old = old if old and old.get("name", tag) == tag else _defaults(tags[tag])
            result[key] = _overlay(tags[tag], old, value, f"{path}{key}.")
        else:
            result[key] = value
    return result


def _validated(config_class: type[C], tree: Mapping[str, Any]) -> C:
    try:
        return config_class.model_validate(tree)
    except ValidationError as error:
        lines = []
        tags = {_tag(model) for field in _all_fields(config_class) for model in _models(field.annotation)}
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"] if part not in tags)
            shown = "" if isinstance(item["input"], Mapping | BaseModel) else f"; got {item['input']!r}"
            message = item["msg"].removeprefix("Value error, ") + shown
            lines.append(f"{key}: {message}" if key else message)
        raise ConfigError("\n".join(lines)) from None


def _unknown(config_class: type[BaseModel], path: str, key: str) -> str:
    section, known = path.removesuffix(key), config_class.model_fields
    near = [f"{section}{name}" for name in difflib.get_close_matches(key, known, 1, 0.6)]
    near += [setting.key for setting in settings(config_class, section) if setting.key.endswith(f".{key}")]
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"unknown setting {path}; {hint}"


def _with_nearest(word: object, choices: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(str(word), choices, 1, 0.6)
    return " ".join([repr(word), *(f"(did you mean {near}?)" for near in nearest)])


def _all_fields(config_class: type[BaseModel]) -> Iterator[FieldInfo]:
    for field in config_class.model_fields.values():
        yield field
        for model in _models(field.annotation):
            yield from _all_fields(model)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the config classes a field may hold: none for a plain value, several for variants."""
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _tag(model: type[BaseModel]) -> str:
    name = model.model_fields.get("name")
    choices = get_args(name.annotation) if name and get_origin(name.annotation) is Literal else ()
    return choices[0] if choices else model.__name__


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type_name(part) for part in get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)


def _default_text(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    return "(must be given)" if default is PydanticUndefined else "null" if default is None else str(default)
