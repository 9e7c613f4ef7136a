"""What the GPU code does on a GPU, in one run: rates against ceilings, and whether results agree.

    python -m benchmarks.gpu_trial --out OUT                        # on a GPU
    python -m benchmarks.gpu_trial --out OUT --size tiny            # on a CPU, the same code
    python -m benchmarks.gpu_trial --out OUT --parts 0,2 --seconds 300

Numbered parts run one after the other, each in a process of its own with a limit, so that a part
that dies or hangs does not cost the others. Each number is appended to OUT/trial.jsonl when it is
known; OUT/trial.log has what the parts printed; OUT/table.md is written again after each part.
Models have random weights and texts are random words, because rates and agreement do not depend on
what was learned.

For a GPU machine without a network, which has PyTorch, transformers, SciPy and scikit-learn, the
other packages travel with the working tree:

    python -m benchmarks.gpu_trial wheels --to WHEELS               # where there is a network

and there:

    python3 -m pip install --no-index --no-deps --target SITE WHEELS/*.whl
    PYTHONPATH=SITE:. python3 -m benchmarks.gpu_trial --out OUT

What takes longer than --total is not run; `--parts 0,1,2,3` and `--parts 0,4,5,6,7` in two calls
have twice the time, and part 0 measures the ceilings in both.
"""
