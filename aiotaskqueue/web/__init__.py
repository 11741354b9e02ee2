"""Adapters to web frameworks, one file each: the same names in every one."""
