"""Numbered migrations, forward only: ``<store>/NNNN_name.sql``."""
