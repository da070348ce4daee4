"""Whole networks: one paper, one file. Build them by name with :func:`slicescan.create_model`."""
