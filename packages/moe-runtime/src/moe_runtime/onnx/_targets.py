"""The names of the targets, for those who only ask for one."""

TARGETS = ("unrolled", "scan", "onnxruntime", "int8")
