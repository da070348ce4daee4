"""Doors to other libraries: each module imports its library, so import a module here only if you have that."""
