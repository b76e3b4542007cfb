"""A whole run with a transducer in cohorts of two, where all other runs have a TDNN."""

import math

from federations import ledger, results, settings, simulate

from fedspeech import protocol, tensors
from fedspeech.models import description

FEDERATION = {
    "bases": ["mean", "quick"],
    "improve": {"class": "flwr.serverapp.strategy:FedAvg", "rounds": 1},
}


def test_rules_races_diffs_and_a_flower_strategy(corpus, tmp_path):
    asked = settings(
        corpus,
        model={"name": "rnnt-tiny", "encoder_units": 120, "projection": 60, "subsampling": 3},
        features={"kind": "log-mel", "dimension": 64},
        federation=FEDERATION,
        budget={"personal": "10x"},
        engine={"cohort": 2},
    )
    run = simulate(asked, tmp_path / "run")
    found = results(run)
    assert {row["base"] for row in found["table"]} == {"mean", "quick"}
    assert all(row["mean"] >= 0 and math.isfinite(row["mean"]) for row in found["table"])
    layers = [row["layer"] for row in found["layer_correlation"]]
    assert layers[0] == "encoder.0" and layers[-1] == "output"
    about = description.read(run / "models" / "generic.json")
    assert about.name == "rnnt-tiny" and about.features.dimension == 64
    assert about.sizes == {"encoder_units": 120, "projection": 60, "subsampling": 3}
    model = tensors.read(run / "models" / "generic.safetensors")
    assert model["encoder.1.weight_hr_l0"].shape == (60, 120)
    assert model["encoder.1.weight_ih_l0"].shape == (4 * 120, 60)  # nothing is joined
    full = tensors.size(model)
    up = [
        int(row["bytes"])
        for row in ledger(run)
        if (row["kind"], row["direction"]) == (protocol.PERSONALIZE, "up")
    ]
    print(f"P_s took {max(up)} bytes at most, G as a whole {full}")
    assert len(up) == 4 and min(up) > 10_000 and max(up) <= full / 10 + 1200
