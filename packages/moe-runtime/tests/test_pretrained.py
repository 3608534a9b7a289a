"""A folder holds a module whole: it is built again to the bit, or refused by name."""

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from _reference import DIM, ROUTERS, awake, draw_inputs, router_of
from safetensors.torch import load_file
from torch import Tensor, nn

from moe_runtime import (
    CheckpointError,
    CometRouter,
    Experts,
    HashRouter,
    MixtureOfExperts,
    MultiGateMixtureOfExperts,
    MutualInformationPenalty,
    PretrainedModule,
    TopKRouter,
    TrimmedLassoPenalty,
    load_checkpoint,
    save_checkpoint,
)
from moe_runtime._penalties import Penalty


class Classifier(PretrainedModule):
    """A user's model that builds its mixture itself; its head is tied to its embedding."""

    def __init__(
        self,
        num_words: int,
        options: Mapping[str, Any],
        *,
        share: float | None = None,
        extra: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.share = share
        self.embed = nn.Embedding(num_words, DIM)
        experts = Experts(3, (DIM, *options["hidden"], DIM))
        self.mixture = MixtureOfExperts(awake(TopKRouter(DIM, 3, k=options["k"])), experts)
        self.head = nn.Linear(DIM, num_words)
        self.head.weight = self.embed.weight
        self.extra = extra

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mixture(self.embed(words)).output)
        return logits


def mixture() -> MixtureOfExperts:
    router = CometRouter(DIM, 5, k=2, gamma=0.5)
    awake(router)
    return MixtureOfExperts(router, Experts(5, (DIM, 7, 4), activation="gelu"), kernel="sorted")


def multi_gate() -> MultiGateMixtureOfExperts:
    routers = [CometRouter(DIM, 5, k=2), TopKRouter(DIM, 5, k=3)]
    for router in routers:
        awake(router)
    return MultiGateMixtureOfExperts(routers, Experts(5, [DIM, 4]))


def classifier() -> Classifier:
    return Classifier(11, {"hidden": [4, 5], "k": 2}, share=0.1)


MODULES: dict[str, Callable[[], PretrainedModule]] = {
    "mixture": mixture,
    "multi_gate": multi_gate,
    "classifier": classifier,
    "hash": lambda: HashRouter(40, 5, seed=3),
    "experts": lambda: Experts(3, (DIM, 4)),
    "nested": lambda: Classifier(11, {"hidden": [], "k": 2}, extra=Experts(2, (1, 1))),
}


def check_equal(first: nn.Module, second: nn.Module) -> None:
    assert type(first) is type(second)
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_built_again_to_the_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    module = MODULES[name]().to(dtype)
    module.save_pretrained(tmp_path / "new" / "model")
    random = torch.get_rng_state()
    loaded = PretrainedModule.from_pretrained(str(tmp_path / "new" / "model"))
    assert torch.equal(torch.get_rng_state(), random)
    check_equal(loaded, module)
    assert not loaded.training
    assert repr(loaded) == repr(module)
    check_equal(type(module).from_pretrained(tmp_path / "new" / "model"), module)


def test_answers_are_the_same_to_the_bit(tmp_path: Path) -> None:
    module, x = mixture().eval(), torch.randn(9, DIM)
    module.save_pretrained(tmp_path)
    loaded = MixtureOfExperts.from_pretrained(tmp_path)
    assert all(torch.equal(*pair) for pair in zip(loaded(x), module(x), strict=True))


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_every_router_is_built_again_and_routes_alike(tmp_path: Path, name: str) -> None:
    router = awake(ROUTERS[name](5, 2))
    router.save_pretrained(tmp_path)
    loaded = type(router).from_pretrained(tmp_path)
    check_equal(loaded, router)
    *_, given = draw_inputs(name, 20)
    assert torch.equal(loaded(given).weights, router.eval()(given).weights)


def test_penalties_and_tables_come_back(tmp_path: Path) -> None:
    penalties = [MutualInformationPenalty(0.3), TrimmedLassoPenalty(0.2, k=2)]
    CometRouter(DIM, 5, k=2, penalties=penalties).save_pretrained(tmp_path / "comet")
    loaded = CometRouter.from_pretrained(tmp_path / "comet")
    assert loaded.penalties == tuple(penalties)
    table = torch.tensor([2, 0, 1, 2])
    HashRouter(4, 3, table=table).save_pretrained(tmp_path / "hash")
    assert torch.equal(HashRouter.from_pretrained(tmp_path / "hash").table, table.int())


@pytest.mark.parametrize("penalty", [abs, lambda decision: decision.weights.sum()])
def test_a_penalty_of_the_users_own_is_refused_by_name(tmp_path: Path, penalty: Penalty) -> None:
    router = CometRouter(DIM, 5, k=2, penalties=[penalty])
    with pytest.raises(TypeError, match="`penalties of CometRouter, item 0` must be numbers"):
        router.save_pretrained(tmp_path)


def test_tied_parameters_stay_tied(tmp_path: Path) -> None:
    classifier().double().save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path)
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.head.weight.dtype is torch.float64


def test_a_router_of_several_gates_stays_one(tmp_path: Path) -> None:
    first, second = CometRouter(DIM, 5, k=2), TopKRouter(DIM, 5, k=3)
    experts = Experts(5, [DIM, 4])
    MultiGateMixtureOfExperts([first, second, first], experts).save_pretrained(tmp_path)
    loaded = MultiGateMixtureOfExperts.from_pretrained(tmp_path)
    assert loaded.routers[2] is loaded.routers[0]
    assert isinstance(loaded.routers[1], TopKRouter)
    rewrite(tmp_path, lambda config, _: config["model"]["settings"]["routers"][2].update(same_as=2))
    message = "model.routers.2 must be an item before it, got {'same_as': 2}."
    with pytest.raises(CheckpointError, match=re.escape(message)):
        PretrainedModule.from_pretrained(tmp_path)


def test_the_folder_is_what_hubs_and_safetensors_read(tmp_path: Path) -> None:
    module = mixture()
    module.save_pretrained(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(each.shape) for name, each in tensors.items()} == {
        name: tuple(each.shape) for name, each in module.state_dict().items()
    }
    config = json.loads((tmp_path / "config.json").read_text())
    experts = {"num_experts": 5, "widths": [DIM, 7, 4], "activation": "gelu"}
    assert (config["format"], config["format_version"]) == ("moe-runtime", 1)
    settings = config["model"]["settings"]
    assert config["model"]["class"] == "MixtureOfExperts"
    assert settings["experts"]["settings"].items() >= experts.items()
    assert settings["router"]["settings"]["gamma"] == 0.5


def test_what_has_changed_since_the_constructor_is_saved_as_it_is(tmp_path: Path) -> None:
    module = multi_gate()
    module.kernel = "dense"
    router = router_of(module)
    assert isinstance(router, CometRouter)
    router.gamma = 0.25  # as a schedule does
    router.penalties = (MutualInformationPenalty(0.5),)
    other = TopKRouter(DIM, 5, k=3)
    module.routers[1] = other
    module.experts = Experts(5, (DIM, 3, 4))
    module.save_pretrained(tmp_path)
    loaded = MultiGateMixtureOfExperts.from_pretrained(tmp_path)
    check_equal(loaded, module)
    assert loaded.kernel == "dense"
    first, second = loaded.routers
    assert isinstance(first, CometRouter)
    assert isinstance(second, TopKRouter)
    assert (first.gamma, first.penalties, second.k) == (0.25, (MutualInformationPenalty(0.5),), 3)


class Wider(PretrainedModule):
    """Keeps something else than its argument under its name."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = (DIM, *sizes)
        self.experts = Experts(3, self.sizes)


def test_a_list_of_another_length_is_the_constructors_business(tmp_path: Path) -> None:
    module = Wider([4, 5])
    module.save_pretrained(tmp_path)
    check_equal(Wider.from_pretrained(tmp_path), module)


def test_a_list_that_changes_after_the_constructor_changes_nothing(tmp_path: Path) -> None:
    widths = [DIM, 16]
    experts = Experts(5, widths)
    widths.append(4)
    experts.save_pretrained(tmp_path)
    check_equal(Experts.from_pretrained(tmp_path), experts)


def test_a_copy_is_saved_like_what_it_was_copied_from(tmp_path: Path) -> None:
    module = copy.deepcopy(mixture())
    module.save_pretrained(tmp_path)
    check_equal(MixtureOfExperts.from_pretrained(tmp_path), module)


def test_a_model_of_other_settings_takes_the_place_of_the_first(tmp_path: Path) -> None:
    for module in (mixture(), multi_gate()):
        module.save_pretrained(tmp_path)
        check_equal(PretrainedModule.from_pretrained(tmp_path), module)


@pytest.mark.parametrize("stopped", range(6))
def test_a_save_that_is_cut_off_leaves_the_old_model_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    old, new = mixture(), multi_gate()
    old.save_pretrained(tmp_path)
    # Whatever changes the folder, in its order; from `stopped` on, nothing does.
    done = 0
    for name in ("unlink", "replace", "touch", "write_text"):
        real = getattr(Path, name)

        def counted(self: Path, *args: Any, _real: Any = real, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done > stopped:
                raise KeyboardInterrupt
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(Path, name, counted)
    finished = False
    try:
        new.save_pretrained(tmp_path)
        finished = True
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    assert not finished
    loaded = PretrainedModule.from_pretrained(tmp_path)
    check_equal(loaded, new if type(loaded) is type(new) else old)


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Save again what is in a folder, changed, as somebody else might have."""
    tensors, config = load_checkpoint(folder / "model.safetensors")
    change(config, tensors)
    save_checkpoint(folder / "model.safetensors", tensors, settings=config)
    (folder / "config.json").unlink()


def put(*path: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(config: dict[str, Any], _tensors: dict[str, Tensor]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


ROUTER = ("model", "settings", "router")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, t: t.pop("experts.layers.0.weight"), "experts.layers.0.weight is missing"),
        (lambda _, t: t.update(more=torch.ones(1)), "more is not part of the model"),
        (
            lambda _, t: t.update({"experts.layers.0.bias": torch.ones(4, 7)}),
            "experts.layers.0.bias has shape (4, 7), the model needs (5, 7)",
        ),
        (put("format_version", value=2), "settings of version 2, this reads up to 1."),
        (put("format_version", value="1"), "settings of version 1, this reads up to 1."),
        (put("format", value="other"), "holds no settings of a model"),
        (put("more", value=1), "holds no settings of a model"),
        (put("model", value=3), "model must have a class and its settings"),
        (put(*ROUTER, "class", value="subprocess.Popen"), "model.router is a subprocess.Popen, "),
        (put(*ROUTER, "class", value="Linear"), "model.router is a Linear, which is not defined"),
        (put(*ROUTER, "class", value=["A"]), "model.router must have a class and its settings"),
        (put(*ROUTER, "settings", value=[]), "model.router must have a class and its settings"),
        (
            put(*ROUTER, "settings", "depth", value=3),
            "the settings of model.router, a CometRouter, do not fit: 'depth' is unknown.",
        ),
        (put(*ROUTER, "settings", value={"dim": 6}), "'num_experts' is missing, 'k' is missing."),
        (
            put(*ROUTER, "settings", "gamma", value=-1),
            "model.router, a CometRouter, refuses its settings: `gamma` must be",
        ),
        (
            put(*ROUTER, value="comet"),
            "model, a MixtureOfExperts, refuses its settings: `router` must",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: Any, message: str
) -> None:
    mixture().save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        PretrainedModule.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ['{"format": "moe-runtime"}', "{", "\x00"])
def test_a_config_of_another_model_is_refused(tmp_path: Path, content: str) -> None:
    mixture().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    message = f"{tmp_path / 'config.json'} does not say what is in {tmp_path}/model.safetensors"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        PretrainedModule.from_pretrained(tmp_path)


def test_another_class_a_missing_folder_and_a_plain_checkpoint_are_refused(tmp_path: Path) -> None:
    mixture().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a MixtureOfExperts, not a TopKRouter"):
        TopKRouter.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        TopKRouter.from_pretrained(tmp_path / "missing")
    save_checkpoint(tmp_path / "model.safetensors", {}, settings={"k": 2})
    with pytest.raises(CheckpointError, match=r"holds no settings of a model, but \['k'\]"):
        TopKRouter.from_pretrained(tmp_path)


class AnyNumber(PretrainedModule):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            lambda: Classifier(5, {"hidden": [], "k": 2, "more": [torch.float32]}),
            "`options of Classifier, 'more', item 0` must be numbers, text, lists",
        ),
        (lambda: Classifier(5, {"hidden": [], "k": 2}, extra=nn.Linear(1, 1)), "got Linear."),
        (
            lambda: Classifier(5, {"hidden": [], "k": 2, "class": 1}),
            "dicts without ['class', 'same_as']",
        ),
        (lambda: AnyNumber(1, 2), "`sizes` of AnyNumber must be an argument that can be given by"),
    ],
    ids=["value", "module", "key", "positional"],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(
    tmp_path: Path, module: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        module().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_argument_that_was_replaced_unseen_is_refused(tmp_path: Path) -> None:
    module = mixture()
    module.routers[0] = TopKRouter(DIM, 5, k=3)  # the argument is called `router`
    with pytest.raises(TypeError, match="`router of MixtureOfExperts` must still be part of the"):
        module.save_pretrained(tmp_path)


def test_two_classes_of_one_name_are_not_confused(tmp_path: Path) -> None:
    def define(place: str) -> type[PretrainedModule]:
        class Twin(PretrainedModule):
            __qualname__ = f"{place}.Twin"

        return Twin

    first = define("a")
    first().save_pretrained(tmp_path)
    again = define("a")  # as a notebook defines a class again
    assert type(PretrainedModule.from_pretrained(tmp_path)) is again
    other = define("b")
    with pytest.raises(TypeError, match="`Twin` must be the name of one class"):
        other().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a Twin, which is not defined here, or more than"):
        PretrainedModule.from_pretrained(tmp_path)


def test_wrong_arguments_are_the_constructors_error() -> None:
    make: Any = Experts
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'widths'"):
        make(3)
