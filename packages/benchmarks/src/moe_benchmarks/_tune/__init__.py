"""Many trials of many variants: sampled, shared out among processes, continued, written down."""
