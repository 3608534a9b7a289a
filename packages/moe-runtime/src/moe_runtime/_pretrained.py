"""Modules that are saved with the settings that built them, and built again from a folder."""

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from moe_runtime._checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    take_dtypes,
)
from moe_runtime._checks import check_type
from moe_runtime._penalties import WeightedPenalty

FORMAT, FORMAT_VERSION = "moe-runtime", 1
# The names that the hub's libraries look for.
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SCALARS = (bool, int, float, str)
# Of a module that is in a list before: where.
SAME_AS = "same_as"
RESERVED = {"class", SAME_AS}
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class PretrainedModule(nn.Module):
    """A module that can be saved to a folder, and built again from it alone.

    Derive from it in place of ``torch.nn.Module``. The arguments of the constructor are the
    settings: numbers, text, None, lists and dicts of them, penalties of this package, and other
    modules of this kind. What
    the module keeps in an attribute of an argument's name is saved as it is at the time.

    The folder holds ``model.safetensors``, with the settings in its header and a digest of
    everything, and ``config.json``, the same settings for people and model hubs. Loading builds
    classes that are defined already and derive from this one, and imports nothing.

    Examples
    --------
    >>> import tempfile, torch, moe_runtime
    >>> class Model(moe_runtime.PretrainedModule):
    ...     def __init__(self, width, *, num_experts=4):
    ...         super().__init__()
    ...         router = moe_runtime.TopKRouter(width, num_experts, k=2)
    ...         experts = moe_runtime.Experts(num_experts, (width, 8, width))
    ...         self.mixture = moe_runtime.MixtureOfExperts(router, experts)
    >>> model = Model(6)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     loaded = Model.from_pretrained(folder)
    >>> torch.equal(loaded.mixture.experts.layers[0].weight, model.mixture.experts.layers[0].weight)
    True
    """

    _arguments: dict[str, Any]

    # In `__new__`, so that a class needs nothing but its base, and the arguments are those of the
    # outermost constructor.
    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 - any constructor's
        """Note the arguments of the constructor."""
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:
            return instance  # a copy, which gets its arguments later; or `__init__` will say why
        bound.apply_defaults()
        _self, *arguments = bound.arguments.items()
        # A list may change after the module is built.
        instance.__dict__["_arguments"] = {
            name: list(value) if isinstance(value, list) else value for name, value in arguments
        }
        return instance

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json``, so that a kill leaves a whole model.

        Whether routers are hard, and the mode, training or evaluation, are not part of it.

        Parameters
        ----------
        folder
            Made if it does not exist; a model that is there is replaced.

        Raises
        ------
        TypeError
            If an argument of a constructor cannot be saved; it is named. Nothing is written then.
        """
        check_type("folder", folder, (str, os.PathLike), "a path")
        tensors = self.state_dict()  # which modules that cannot be saved refuse, and say why
        config = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": described(self)}
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        # The weights have the settings too: that one rename is what replaces a model. Until both
        # files agree there is no config.json, never one of another model.
        if (path / CONFIG).exists() and (path / CONFIG).read_text(encoding="utf-8") != text:
            (path / CONFIG).unlink()
        save_checkpoint(path / WEIGHTS, tensors, settings=config)
        beside = path / f".{CONFIG}.{os.getpid()}.tmp"
        beside.write_text(text, encoding="utf-8")
        beside.replace(path / CONFIG)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """Build what `save_pretrained` wrote, to the bit, on the CPU and in evaluation mode.

        Called on this class, it takes whatever is in the folder; on another, only that or what
        derives from it. Random numbers are left as they were.

        Raises
        ------
        CheckpointError
            If a file is missing, damaged, or from a newer version; its classes are not defined
            or are other ones; a setting is unknown, missing or refused; or a tensor is missing,
            unknown or wrongly shaped. What is wrong is named.
        """
        check_type("folder", folder, (str, os.PathLike), "a path")
        path = Path(folder) / WEIGHTS
        tensors, config = load_checkpoint(path)
        _check_config(path, config)
        with torch.random.fork_rng(devices=[]):
            module = built(path, "model", config["model"])
        if not isinstance(module, cls):
            msg = f"{path} holds a {type(module).__name__}, not a {cls.__name__}."
            raise CheckpointError(msg)
        take_dtypes(module, tensors)
        load_tensors(module, tensors)
        return module.eval()


def described(module: PretrainedModule) -> dict[str, Any]:
    """Return a module's class and settings, as JSON can hold them."""
    cls = type(module)
    if _defined().get(cls.__name__) is not cls:
        msg = f"`{cls.__name__}` must be the name of one class, got several of that name."
        raise TypeError(msg)
    settings = {}
    for name, argument in module._arguments.items():  # noqa: SLF001 - of this class
        if name not in _parameters(cls):
            if not argument:
                continue  # as of a class that has no constructor of its own
            msg = f"`{name}` of {cls.__name__} must be an argument that can be given by name."
            raise TypeError(msg)
        if isinstance(argument, torch.Tensor) and name in dict(module.named_buffers()):
            continue  # it is in the state
        kept = _current(module, name, argument)
        settings[name] = _saved(f"{name} of {cls.__name__}", kept, module)
    return {"class": cls.__name__, "settings": settings}


def _parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class's constructor that can be given by name."""
    _self, *parameters = inspect.signature(cls.__init__).parameters.values()
    return {each.name: each for each in parameters if each.kind in BY_NAME}


def _current(module: nn.Module, name: str, argument: object) -> object:
    """Return what the module keeps of an argument under its name now, if it does."""
    kept = getattr(module, name, None)
    if isinstance(kept, PretrainedModule) and isinstance(argument, PretrainedModule):
        return kept
    if isinstance(kept, nn.ModuleList) and isinstance(argument, (list, tuple, nn.ModuleList)):
        return kept
    if _are_penalties(kept) and _are_penalties(argument):
        return kept
    same_kind = type(kept) in SCALARS and (argument is None or type(argument) in SCALARS)
    return kept if same_kind else argument


def _are_penalties(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(each, WeightedPenalty) for each in value
    )


def _saved(name: str, value: object, owner: nn.Module) -> Any:  # noqa: ANN401 - JSON
    """Return an argument as JSON can hold it."""
    if value is None or type(value) in SCALARS:
        return value
    if isinstance(value, PretrainedModule):
        if all(each is not value for each in owner.modules()):
            msg = f"`{name}` must still be part of the module, got one that was replaced."
            raise TypeError(msg)
        return described(value)
    if isinstance(value, WeightedPenalty) and _defined().get(type(value).__name__) is type(value):
        return {"class": type(value).__name__, "settings": asdict(value)}
    if isinstance(value, (list, tuple, nn.ModuleList)):
        return [_saved_item(f"{name}, item {i}", i, value, owner) for i in range(len(value))]
    if isinstance(value, Mapping) and not RESERVED & set(value):
        for key in value:
            check_type(f"{name}", key, str, "keyed by strings")
        return {key: _saved(f"{name}, {key!r}", each, owner) for key, each in value.items()}
    msg = (
        f"`{name}` must be numbers, text, lists, dicts without {sorted(RESERVED)}, penalties of "
        f"moe_runtime, or PretrainedModules to be saved, got {type(value).__name__}."
    )
    raise TypeError(msg)


def _saved_item(
    name: str,
    index: int,
    items: list[Any] | tuple[Any, ...] | nn.ModuleList,
    owner: nn.Module,
) -> Any:  # noqa: ANN401 - JSON
    """Return an item of a list: of a module that is in it already, where it stands."""
    item = items[index]
    first = next(i for i in range(len(items)) if items[i] is item)
    if first < index and isinstance(item, PretrainedModule):
        return {SAME_AS: first}
    return _saved(name, item, owner)


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse settings that are of another format, or not those that `config.json` has."""
    if config.get("format") != FORMAT or set(config) != {"format", "format_version", "model"}:
        msg = f"{path} holds no settings of a model, but {sorted(config)}: see `load_checkpoint`."
        raise CheckpointError(msg)
    version = config["format_version"]
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        msg = f"{path} has settings of version {version}, this reads up to {FORMAT_VERSION}."
        raise CheckpointError(msg)
    beside = path.with_name(CONFIG)
    if not beside.exists():
        return  # a save was killed between the two files; the first has it all
    try:
        same = json.loads(beside.read_text(encoding="utf-8")) == config
    except ValueError:
        same = False
    if not same:
        msg = (
            f"{beside} does not say what is in {path}: delete it to load the model as it was saved."
        )
        raise CheckpointError(msg)


def built(path: Path, name: str, noted: object) -> PretrainedModule | WeightedPenalty:
    """Build a module or a penalty from its class and settings, as `described` noted them."""
    noted = noted if isinstance(noted, dict) else {}
    named, settings = noted.get("class"), noted.get("settings")
    if len(noted) != 2 or not isinstance(named, str) or not isinstance(settings, dict):
        msg = f"{path}: {name} must have a class and its settings, got {noted!r}."
        raise CheckpointError(msg)
    cls = _defined().get(named)
    if cls is None:
        msg = (
            f"{path}: {name} is a {named}, which is not defined here, or more than once: import "
            "the one class of that name, derived from PretrainedModule, first."
        )
        raise CheckpointError(msg)
    parameters = _parameters(cls)
    problems = [f"{each!r} is unknown" for each in settings if each not in parameters]
    problems += [
        f"{each!r} is missing"
        for each, parameter in parameters.items()
        if each not in settings and parameter.default is inspect.Parameter.empty
    ]
    if problems:
        msg = (
            f"{path}: the settings of {name}, a {cls.__name__}, do not fit: {', '.join(problems)}."
        )
        raise CheckpointError(msg)
    arguments = {each: _loaded(path, f"{name}.{each}", value) for each, value in settings.items()}
    try:
        built: PretrainedModule | WeightedPenalty = cls(**arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        msg = f"{path}: {name}, a {named}, refuses its settings: {error}"
        raise CheckpointError(msg) from error
    return built


def _loaded(path: Path, name: str, value: object) -> object:
    if isinstance(value, dict):
        if "class" in value:
            return built(path, name, value)
        return {key: _loaded(path, f"{name}.{key}", each) for key, each in value.items()}
    if not isinstance(value, list):
        return value
    items: list[object] = []
    for i, each in enumerate(value):
        first = each.get(SAME_AS) if isinstance(each, dict) else None
        if first is None:
            items.append(_loaded(path, f"{name}.{i}", each))
        elif type(first) is int and 0 <= first < i:
            items.append(items[first])
        else:
            msg = f"{path}: {name}.{i} must be an item before it, got {each!r}."
            raise CheckpointError(msg)
    return items


def _defined() -> dict[str, type[Any] | None]:
    """Return the classes that may be built, by name; None where several have one name."""
    classes: dict[str, type[Any] | None] = {}
    for cls in (*_derived(PretrainedModule), *_derived(WeightedPenalty)):
        other = classes.get(cls.__name__, cls)
        # One that is defined again, as in a notebook, takes the place of the first.
        again = other is not None and (other.__module__, other.__qualname__) == (
            cls.__module__,
            cls.__qualname__,
        )
        classes[cls.__name__] = cls if again else None
    return classes


def _derived(base: type[Any]) -> Iterator[type[Any]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _derived(cls)
