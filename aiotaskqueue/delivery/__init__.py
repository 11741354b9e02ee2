"""Deliveries: ways to carry one task to its handler."""
