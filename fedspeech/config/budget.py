"""Settings of what may cross the network: how many bytes a diff may have."""

from typing import Literal

from pydantic import field_validator

from fedspeech.config.values import Budget, Settings


class BudgetSettings(Settings):
    """The most bytes of one encoded diff: `500kB`, `64KiB`, or `10x`, a tenth of a whole model.

    What has no budget travels whole, and so does G between a Flower strategy and the devices
    (`federation.improve`). Candidates of `kbest` travel as they came from their devices, within
    `personal`. Where several budgets speak of one device (the run's, its line in `speakers`, what
    it reports itself), the least one counts; a device with a budget of its own that nothing fits
    drops out.
    """

    generic: Budget | None = None
    """Of the diff that makes the next generation of G (`generic.releases`). A device that holds no
    generation which the server knows is sent G whole. A budget of a device's own (its line in
    `speakers`, or what it reports) bounds all that brings it to G together, a chain of diffs, one
    diff or the whole: where nothing is within it, the device is refused."""
    base: Budget | None = None
    """Of what brings a device M_s, or the mix of P_s and M_s."""
    personal: Budget | None = None
    """Of what brings the server P_s. The device itself uses P_s as it is."""
    speakers: str | None = None
    """A CSV file `speaker,generic,base,personal`; an empty field sets no budget."""
    method: Literal["sparse", "hash"] = "sparse"
    """Whether a diff holds the largest changes, or arrays that are fitted to all of them."""
    compare: tuple[Budget, ...] = ()
    """Every base but `generic` is also judged with M_s pushed within each of these."""

    @field_validator("compare")
    @classmethod
    def _each_once(cls, listed: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := [each for each in listed if listed.count(each) > 1]:
            raise ValueError(f"expected each once, {repeated[0]!r} comes more than once")
        return listed
