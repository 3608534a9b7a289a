"""The paper's experiments: models, gates, searches, and one training loop."""
