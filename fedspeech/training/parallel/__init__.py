"""G trained by many learners at once, the ways the field compares: one file per method.

Cui, Zhang, Finkler, Saon, Picheny, Kung 2020 (arXiv 2002.10502). `share` says what each learner
hears, `learner` is its process, `loop` what all methods share, `group` how they find each other and
`watch` what they measure; `crew` runs them on Ray, `launch` is the whole run.
"""

from fedspeech.training.parallel.allreduce import Allreduce
from fedspeech.training.parallel.method import Method

METHODS: dict[str, type[Method]] = {
    "allreduce": Allreduce,
}
"""By the name of `parallel.method`."""
