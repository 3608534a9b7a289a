"""The names of the targets, for those who only ask for one."""

# With weights of 8 bits, whose errors are counted as root mean squares.
QUANTISED = ("int8", "qmoe")
TARGETS = ("unrolled", "scan", "onnxruntime", *QUANTISED)
