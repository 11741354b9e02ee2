"""Stores: where tasks are remembered."""
