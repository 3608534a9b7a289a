"""Models of transformers, converted: they train, save, generate and export as before."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _dense import FAMILIES, VOCABULARY, token_batch, transformer
from torch import Tensor, nn

from moe_runtime import CometRouter, HashRouter, Router, hard_routing
from moe_runtime._checkpoint import CheckpointError
from moe_runtime.convert import (
    CopySplit,
    ImportanceSplit,
    RandomSplit,
    convert,
    converted_layers,
    from_pretrained,
    hidden_unit_importance,
    penalty,
)

transformers = pytest.importorskip(
    "transformers", reason="needs the extra: pip install 'moe-runtime[hf]'"
)
transformers.utils.logging.disable_progress_bar()


def comet(dim: int) -> Router:
    return CometRouter(dim, 4, k=1)


def hashed(_dim: int) -> Router:
    return HashRouter(VOCABULARY, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_converted_by_importance_and_trains(family: str) -> None:
    model, batch = transformer(family, dropout=0.1)
    importance = hidden_unit_importance(model, [batch, batch])
    split = ImportanceSplit(importance, width=8, num_shared=4)
    report = convert(model, batch, router=comet, split=split)
    assert {each.hidden_units for each in report.layers} == {32}
    assert {each.expert_units for each in report.layers} == {8}
    assert report.num_tokens == int(batch["attention_mask"].sum())
    model.train()
    loss = model(**batch).loss
    plain = model.eval()(**batch).loss
    assert penalty(model) > 0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or "embed" in name or "lm_head" in name, name
    assert plain.isfinite()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_penalty_is_in_the_loss_of_training_only(family: str) -> None:
    model, batch = transformer(family)
    convert(model, batch, router=comet, split=CopySplit())
    evaluated = model.eval()(**batch).loss
    trained = model.train()(**batch).loss
    torch.testing.assert_close(trained, evaluated + penalty(model))


def test_a_call_that_skips_every_layer_has_its_loss() -> None:
    model, batch = transformer("gpt2")
    convert(model, batch, router=comet, split=CopySplit())
    model.transformer.h = nn.ModuleList()
    assert model.train()(**batch).loss.isfinite()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_as_eager() -> None:
    model, batch = transformer("bert")
    convert(model, batch, router=comet, split=CopySplit())
    expected = model.eval()(**batch)
    compiled: Any = torch.compile(model, backend="eager")  # what matters is the tracing
    torch.testing.assert_close(compiled(**batch).logits, expected.logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("router", [comet, hashed])
def test_saved_and_loaded_to_the_bit(family: str, router: Any, tmp_path: Path) -> None:
    model, batch = transformer(family)
    convert(model, batch, router=router, split=RandomSplit(seed=1))
    layer = converted_layers(model)[0].mixture.routers[0]
    assert isinstance(layer, Router)
    layer.set_permutation(torch.tensor([[1, 0, 3, 2]]))
    model.eval().save_pretrained(tmp_path)
    again: Any = from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert not again.training
    expected, found = model.state_dict(), again.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with hard_routing(model), hard_routing(again):
        assert torch.equal(model(**batch).logits, again(**batch).logits)
    again.save_pretrained(tmp_path / "second")
    second: Any = from_pretrained(tmp_path / "second", type(model))
    assert second.config.moe_runtime == model.config.moe_runtime


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2}


def test_what_transformers_renames_comes_back(tmp_path: Path) -> None:
    vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            **SMALL, hidden_size=16, intermediate_size=24, image_size=8, patch_size=4
        )
    )
    neox = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**SMALL, hidden_size=16, intermediate_size=24, vocab_size=100)
    )
    bert, tokens = transformer("bert")
    # Names of old checkpoints are known to models that were loaded.
    bert.save_pretrained(tmp_path / "dense")
    loaded = type(bert).from_pretrained(tmp_path / "dense")
    pixels = {"pixel_values": torch.randn(3, 3, 8, 8)}
    for model, batch in ((vit, pixels), (neox, token_batch()), (loaded, tokens)):
        convert(model, batch, router=comet, split=RandomSplit())
        model.eval().save_pretrained(tmp_path / type(model).__name__)
        again: Any = from_pretrained(tmp_path / type(model).__name__)
        assert torch.equal(model(**batch).logits, again(**batch).logits)


def test_several_files_and_half_precision_are_loaded(tmp_path: Path) -> None:
    model, batch = transformer("bert")
    model = model.to(torch.bfloat16)
    convert(model, batch, router=comet, split=RandomSplit())
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        from_pretrained(tmp_path)
    model, batch = transformer("bert")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="the model was not converted"):
        from_pretrained(tmp_path)
    convert(model, batch, router=comet, split=RandomSplit())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    config["moe_runtime"]["layers"].pop()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"does not fit the model: .* missing"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("router", [comet, hashed])
def test_generated_text_is_that_of_the_dense_model(family: str, router: Any) -> None:
    model, _ = transformer(family)
    model.eval()
    given = token_batch()
    given["attention_mask"] = given["attention_mask"].flip(1)  # padded on the left
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    dense = model.generate(**given, **options)
    batch = given | ({"labels": given["input_ids"]} if family == "t5" else {})
    convert(model, batch, router=router, split=CopySplit())
    assert torch.equal(model.generate(**given, **options), dense)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_checkpointing_gives_the_same_gradients(family: str) -> None:
    model, batch = transformer(family)
    convert(model, batch, router=comet, split=RandomSplit())
    again = copy.deepcopy(model).train()
    enable = getattr(again, "activation_checkpointing_enable", None)
    (enable or again.gradient_checkpointing_enable)()
    losses = [each.train()(**batch).loss for each in (model, again)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(penalty(again), penalty(model))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        torch.testing.assert_close(one.grad, other.grad)


def test_reentrant_checkpointing_is_warned_of() -> None:
    model, batch = transformer("bert")
    convert(model, batch, router=comet, split=RandomSplit())
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": True})
    model.train()
    model.enable_input_require_grads()
    with pytest.warns(UserWarning, match="ran without gradients, as with reentrant"):
        model(**batch)


def test_checkpointing_keeps_calls_apart_or_refuses() -> None:
    model, batch = transformer("bert")
    convert(model, batch, router=comet, split=RandomSplit())
    plain = copy.deepcopy(model).train()
    model.train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    other = {**batch, "attention_mask": batch["attention_mask"].flip(0)}
    for _ in range(2):  # gradients add up, with a look at other rows in between
        for each in (model, plain):
            loss = each(**batch).loss
            with torch.no_grad():
                each(**other)
            loss.backward()
    for one, same in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, same.grad)
    with pytest.raises(RuntimeError, match="called more than once before the backward pass"):
        (model(**batch).loss + model(**other).loss).backward()
    model(**batch).loss.backward()
    model.eval()(**batch)  # with gradients on, but no layer of it runs again
    model.train()(**batch).loss.backward()


def test_an_interruption_from_the_keyboard_leaves_no_call_open() -> None:
    model, batch = transformer("bert")
    convert(model, batch, router=comet, split=RandomSplit())
    model.train()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.bert.encoder.layer[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**batch)
    handle.remove()
    for _ in range(2):
        loss = model(**batch).loss
        of_penalty = penalty(model)
        assert of_penalty > 0
        torch.testing.assert_close(loss - of_penalty, model.eval()(**batch).loss)
        model.train()


def test_dropout_by_a_function_is_an_obstacle() -> None:
    config = transformers.BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=VOCABULARY,
        activation_dropout=0.3,
    )  # fmt: skip
    model = transformers.BartModel(config)
    with pytest.raises(ValueError, match=r"training changes its states, and by no torch\.nn\.Drop"):
        convert(model, token_batch(), router=comet, split=CopySplit())


def test_flattened_layers_generate_with_padding() -> None:
    config = transformers.OPTConfig(
        hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1,
        num_attention_heads=2, vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=2, dropout=0.0,
    )  # fmt: skip
    model, given = transformers.OPTForCausalLM(config).eval(), token_batch()
    given["attention_mask"] = given["attention_mask"].flip(1)
    options = {"max_new_tokens": 4, "do_sample": False}
    dense = model.generate(**given, **options)
    convert(model, given, router=comet, split=CopySplit())
    assert torch.equal(model.generate(**given, **options), dense)


def test_chunks_of_a_sequence_do_not_take_the_mask_of_its_end() -> None:
    model, batch = transformer("bert")
    model = type(model)(
        type(model.config)(**{**model.config.to_dict(), "chunk_size_feed_forward": 3})
    )
    with pytest.raises(ValueError, match="`attention_mask` must have one entry a token"):
        convert(model, batch, router=comet, split=CopySplit())


def test_half_precision_and_how_to_generate_come_back(tmp_path: Path) -> None:
    model, batch = transformer("llama")
    model = model.to(torch.bfloat16).eval()
    convert(model, batch, router=comet, split=RandomSplit())
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    again: Any = from_pretrained(tmp_path)
    assert again.generation_config.max_new_tokens == 3
    frequencies = "model.rotary_emb.inv_freq"
    assert again.get_buffer(frequencies).dtype is torch.float32
    torch.testing.assert_close(
        again.get_buffer(frequencies), model.get_buffer(frequencies).float(), rtol=1e-2, atol=0
    )


def test_trainer_sees_the_penalty_and_saves(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs accelerate, as Trainer does")
    model, batch = transformer("bert")
    convert(model, batch, router=comet, split=RandomSplit())
    rows = [{name: value[row] for name, value in batch.items()} for row in range(3)] * 4
    with torch.no_grad():
        expected = model.eval()(**batch).loss + penalty(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, logging_steps=1, save_steps=3, use_cpu=True,
        learning_rate=0.0, per_device_train_batch_size=3, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    sampler = torch.utils.data.SequentialSampler

    class InOrder(transformers.Trainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *_args: Any) -> Any:
            return sampler(rows)

    trainer = InOrder(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    assert losses == pytest.approx([expected.item()] * 3, rel=1e-3)
    loaded = from_pretrained(tmp_path / "checkpoint-3")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True)
    )


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


@pytest.mark.parametrize("router", [comet, hashed])
def test_an_encoder_is_exported_with_any_batch_and_length(router: Any, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    from moe_runtime.onnx import Session, export, verify  # noqa: PLC0415 - needs the extra

    model, _ = transformer("bert")
    batch = token_batch(40)
    convert(model, batch, router=router, split=RandomSplit())
    model.eval()
    names = list(batch)
    verification = export(
        Logits(model), tuple(batch.values()), tmp_path, hard=True,
        input_names=names, output_names=["logits"],
        dynamic_axes={name: {1: "sequence"} for name in names},
    )  # fmt: skip
    assert verification.largest_error < 1e-5
    assert verification.batch_sizes[0] == 1, "transformers' own BERT refuses a batch of no rows"
    assert verify(tmp_path).holds
    session = Session(tmp_path / "model.onnx")
    for size, length in ((1, 4), (5, 13)):
        given = token_batch(size, length=length)
        answer = session.run(**{name: value.numpy() for name, value in given.items()})["logits"]
        with torch.no_grad(), hard_routing(model):
            expected = model(**given).logits
        torch.testing.assert_close(torch.from_numpy(answer), expected, atol=1e-5, rtol=1e-5)
    assert onnxruntime.__version__
