"""The study: what each estimator, rule, space and noise reaches with the same number of forwards, on SST-2.

    python -m benchmarks.study run --data sst2 --out benchmarks/results/study --minutes 60
    python -m benchmarks.study table --out benchmarks/results/study
    python -m benchmarks.study plot --out benchmarks/results/study --to docs/images/study.png

`--data` is a folder with train.tsv, dev.tsv and test.tsv: a sentence, a tab, 0 or 1 on each line. The model is
SmolLM2-135M-Instruct in GGUF Q4_1. Finished runs are left alone and interrupted ones go on to the same numbers, so
`run` may be killed and repeated at any time. Two of them may share the work: a run that one holds, the other leaves.

A forward is one pass over 16 examples; a pass over 64 counts as 4, and the forwards of a calibration count.
"""
