"""The experiments of "Learning a Neural Diff for Speech Models": generation after generation.

Macoskey, Strimel, Rastrow, 2021 (arXiv 2108.01561). Speech or training data of a model grow from
generation to generation; each is F_{t+1} = F_t and a diff on top, and is judged beside BL (trained
anew without a limit), BLC (the model itself, as sparse as a diff) and BL∞ (F_0 for ever).
`cells` says what there is to train, `learner` trains one, `recognition` and `understanding` are the
two tasks, `launch` runs it all and `results` makes the table.
"""
