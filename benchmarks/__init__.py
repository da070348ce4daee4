"""Benchmarks and checks that measure what the README claims."""
