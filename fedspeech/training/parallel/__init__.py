"""G trained by many learners at once, the ways the field compares: one file per method.

Cui, Zhang, Finkler, Saon, Picheny, Kung 2020 (arXiv 2002.10502). `share` says what each learner
hears, `learner` is its process, `loop` what all methods share, `group` how they find each other and
`watch` what they measure; `cell` trains one model on the Ray of a `crew`, `launch` is a whole run.
"""

from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel.ad_psgd import ADPSGD
from fedspeech.training.parallel.allreduce import Allreduce
from fedspeech.training.parallel.bmuf import BMUF
from fedspeech.training.parallel.delay_by_one import DelayByOne
from fedspeech.training.parallel.hierarchical import Hierarchical
from fedspeech.training.parallel.method import Method
from fedspeech.training.parallel.parameter_server import ParameterServer
from fedspeech.training.parallel.ring import Ring

METHODS: dict[str, type[Method]] = {
    "allreduce": Allreduce,
    "parameter-server": ParameterServer,
    "ring": Ring,
    "ad-psgd": ADPSGD,
    "hierarchical": Hierarchical,
    "bmuf": BMUF,
}
"""By the name of `parallel.method`."""


def method_of(settings: ParallelSettings) -> type[Method]:
    """The method that the settings name, in its variant."""
    if settings.method == "ad-psgd" and settings.partner == "delay-by-one":
        return DelayByOne
    return METHODS[settings.method]
