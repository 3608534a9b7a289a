"""The tasks of GLUE: where their files have what, and how they are scored."""

from moe_benchmarks._language._glue import GlueTask
from moe_benchmarks._language._glue_files import Layout
from moe_benchmarks._language._glue_scores import ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN

BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
BOTH = {"accuracy": ACCURACY, "f1": F1}

GLUE = (
    GlueTask(Layout("CoLA", (3,), 1, BINARY), {"matthews": MATTHEWS}),
    GlueTask(Layout("SST-2", ("sentence",), "label", BINARY), {"accuracy": ACCURACY}),
    GlueTask(Layout("MRPC", ("#1 String", "#2 String"), "Quality", BINARY), BOTH),
    GlueTask(Layout("STS-B", PAIR, "score", ()), {"pearson": PEARSON, "spearman": SPEARMAN}),
    GlueTask(Layout("QQP", ("question1", "question2"), "is_duplicate", BINARY), BOTH),
    GlueTask(
        Layout(
            "MNLI",
            PAIR,
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            dev_file="dev_matched.tsv",
        ),
        {"accuracy": ACCURACY},
    ),
    GlueTask(Layout("QNLI", ("question", "sentence"), "label", ENTAILMENT), {"accuracy": ACCURACY}),
    GlueTask(Layout("RTE", PAIR, "label", ENTAILMENT), {"accuracy": ACCURACY}),
    GlueTask(Layout("WNLI", PAIR, "label", BINARY), {"accuracy": ACCURACY}),
)
