"""GLUE: dense models of language, and sparse ones made from them."""
