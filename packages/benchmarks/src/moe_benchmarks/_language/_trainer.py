"""The dense model fine-tuned as most people do it: what this package's own steps must equal."""

from pathlib import Path
from typing import Any

from moe_benchmarks._language._batches import EncodedRows
from moe_benchmarks._language._dense import pretrained
from moe_benchmarks._language._library import transformers
from moe_benchmarks._language._settings import LanguageSettings
from moe_benchmarks._language._training import LARGEST_NORM, WEIGHT_DECAY, OnStep


def fine_tuned_by_trainer(
    model: str,
    rows: EncodedRows,
    settings: LanguageSettings,
    folder: Path,
    *,
    seed: int,
    on_step: OnStep = lambda _done, _total: None,
) -> Any:  # noqa: ANN401 - of transformers
    """Fine-tune a pretrained model by `transformers.Trainer`, with the same settings.

    It starts with the same head. Batches are its own: rows in any order, whatever their length.
    """
    library = transformers()
    dense = pretrained(model, settings, seed=seed)
    arguments = library.TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=LARGEST_NORM,
        bf16=settings.precision == "bfloat16",
        seed=seed,
        use_cpu=rows.device.type == "cpu",
        dataloader_pin_memory=False,  # batches are made where they are needed
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
    )

    class Progress(library.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, _arguments: object, state: Any, _control: object, **_: Any) -> None:  # noqa: ANN401 - of transformers
            on_step(state.global_step, state.max_steps)

    trainer = library.Trainer(
        dense,
        arguments,
        train_dataset=range(len(rows)),
        data_collator=rows.batch,
        callbacks=[Progress()],
    )
    trainer.remove_callback(library.PrinterCallback)
    trainer.train()
    # Without the autocast that its forward was wrapped in: scores are float32's.
    return trainer.accelerator.unwrap_model(dense, keep_fp32_wrapper=False)
