"""Published numbers to stand beside ours, each with its source, and shown only where set and protocol are the same.

All are of models that saw no human rating of the set. `UNCHECKED` holds numbers whose protocol could not be made out;
reports leave them out.
"""

from dataclasses import dataclass

from qualiclip_jax.evaluation.protocol import OFFICIAL_TEST, WHOLE

IQA_PYTORCH = "IQA-PyTorch, tests/NR_benchmark_results.csv (PLCC without mapping, full images)"
QUALICLIP = "Agnolucci et al., arXiv 2403.11176, quoted at second hand"


@dataclass(frozen=True)
class Published:
    """One published result.

    Attributes:
      metric: name of the metric.
      dataset: name of the rated set, as `qualiclip_jax.data` has it.
      protocol: `protocol.WHOLE`, `protocol.OFFICIAL_TEST`, or None if unknown.
      srcc: Spearman's correlation.
      plcc: Pearson's, without a mapping; None if not given.
      krcc: Kendall's; None if not given.
      source: where it was published.
      longest_side: of the images it was measured on, where several sizes of the set are in use, px.
    """

    metric: str
    dataset: str
    protocol: str | None
    srcc: float
    plcc: float | None
    krcc: float | None
    source: str
    longest_side: int | None = None


def _iqa_pytorch(
    dataset: str, protocol: str, rows: dict[str, tuple[float, float, float]], longest_side: int | None = None
) -> list[Published]:
    return [
        Published(metric, dataset, protocol, srcc, plcc, krcc, IQA_PYTORCH, longest_side)
        for metric, (plcc, srcc, krcc) in rows.items()
    ]


TABLE: tuple[Published, ...] = (
    *_iqa_pytorch(
        "koniq10k",
        OFFICIAL_TEST,
        {
            "BRISQUE": (0.2107, 0.2300, 0.1548),
            "NIQE": (0.3155, 0.3769, 0.2555),
            "IL-NIQE": (0.5232, 0.5510, 0.3862),
            "CLIP-IQA": (0.7211, 0.6572, 0.4736),
        },
        longest_side=512,
    ),
    *_iqa_pytorch(
        "clive",
        WHOLE,
        {
            "BRISQUE": (0.3509, 0.3128, 0.2113),
            "NIQE": (0.4800, 0.4505, 0.3069),
            "IL-NIQE": (0.4938, 0.4381, 0.2972),
            "CLIP-IQA": (0.6883, 0.6955, 0.5065),
        },
    ),
    *_iqa_pytorch(
        "tid2013",
        WHOLE,
        {
            "BRISQUE": (0.4317, 0.3672, 0.2574),
            "NIQE": (0.3669, 0.3121, 0.2124),
            "IL-NIQE": (0.5156, 0.4870, 0.3442),
            "CLIP-IQA": (0.6471, 0.5786, 0.4107),
        },
    ),
)

UNCHECKED: tuple[Published, ...] = (
    Published("QualiCLIP", "koniq10k", None, 0.817, 0.838, None, QUALICLIP),
    Published("QualiCLIP", "spaq", None, 0.841, None, None, QUALICLIP),
    Published("QualiCLIP", "clive", None, 0.725, None, None, QUALICLIP),
    Published("QualiCLIP", "flive", None, 0.442, None, None, QUALICLIP),
    Published("QualiCLIP", "agiqa3k", None, 0.667, None, None, QUALICLIP),
)


def comparable(dataset: str, protocol: str, longest_side: int | None = None) -> list[Published]:
    """Published results on the same set, by the same protocol, on images of the same size.

    Args:
      dataset: name of a rated set.
      protocol: `protocol.WHOLE` or `protocol.OFFICIAL_TEST`.
      longest_side: of our images, px; None if they differ.
    """
    return [
        entry
        for entry in TABLE
        if entry.dataset == dataset and entry.protocol == protocol and entry.longest_side in (None, longest_side)
    ]
