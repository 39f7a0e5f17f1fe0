"""Checks command lines and config files against the known options, before anything is built."""
