"""The paper's ablations at equal budget: one width, the same pictures, draws and steps for every variant.

    python -m benchmarks.study train --photos FOLDER --out RUNS [--validation FOLDER] [--only hybrid skip] [--seeds 0 1]
    python -m benchmarks.study measure --photos FOLDER --out RUNS --json benchmarks/results/study.json
    python -m benchmarks.study costs --json benchmarks/results/study.json
    python -m benchmarks.study tables --json benchmarks/results/study.json

``train`` goes on where it stopped, run by run, and ``--max-seconds`` stops it with a checkpoint. ``measure`` takes the
runs that have ended: quality and NIQE on photographs blurred by a fixed recipe, and the receptive field. ``costs``
needs no runs: what a step and an image cost on this machine with nothing beside, at the width of the runs and at the
paper's, there also composed conventionally. Both add to the file, so that each may run on the machine for it.
``tables`` prints them in the layout of the paper's tables 5, 7 and 8.
"""
