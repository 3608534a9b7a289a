"""How fast training is, and how fast the same training is as published."""
