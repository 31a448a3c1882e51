"""The models that have a name, and what is known of the files that they are made from."""

import dataclasses
import re
from pathlib import Path

from qualiclip_jax import checkpoint, prompts
from qualiclip_jax.compilation import cache_directory
from qualiclip_jax.models import backbones

TINY = "tiny"  # the model that comes with the package
TINY_FOLDER = Path(__file__).parent / "inference" / "tiny"
CONVERSION = 1  # raised when conversion gives another model, so that what is in the cache is made again
STORED_FEATURES = "prompts_features"  # what a QualiCLIP checkpoint holds beside its CLIP

QUALICLIP = "https://github.com/miccunifi/QualiCLIP/releases/download/weights/qualiclip.pth"
IQA_PYTORCH = "chaofengc/IQA-PyTorch-Weights"  # its file QualiCLIP.pth is what the prompts of QualiCLIP+ go with
NON_COMMERCIAL = {"CC BY-NC 4.0": "https://creativecommons.org/licenses/by-nc/4.0/"}

# What is known of published files: (repository, file) -> bytes, SHA-256.
KNOWN: dict[tuple[str, str], tuple[int, str]] = {
    ("timm/resnet50_clip.openai", "open_clip_model.safetensors"): (
        408_291_932,
        "da0baa37fb2211eee5729ab69ed587eb10d48f5b7076ceeed01552fc3d4cb4ee",
    ),
    ("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors"): (
        605_143_284,
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    ),
    ("timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors"): (
        598_516_980,
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
    ),
    ("timm/vit_large_patch14_clip_224.openai", "open_clip_model.safetensors"): (
        1_710_517_724,
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    ),
    (IQA_PYTORCH, "QualiCLIP.pth"): (
        408_494_502,
        "5818e085ac4b3d297cdd183fd2b1d8a4ddb2242e5bb7fd24b2cd66d7d132bc7e",
    ),
    (IQA_PYTORCH, "QualiCLIP+_koniq.pth"): (
        2_209_627,
        "450292893e96f38dca09d51ca2e0e1cd7cb1c2c55d444cfe2ac8ea2ab5d1d894",
    ),
    (IQA_PYTORCH, "QualiCLIP+_clive.pth"): (
        2_209_627,
        "5a2c75e4586abbaf1bc55e945691be14c70d68ede7dbabd86caebaf838ec50a3",
    ),
    (IQA_PYTORCH, "QualiCLIP+_flive.pth"): (
        2_209_627,
        "ac20494683fb8c26abae04c6df671c389bf42f08461b2eac8497d91d53d558cc",
    ),
    (IQA_PYTORCH, "QualiCLIP+_spaq.pth"): (
        2_209_627,
        "2d9c2ef6b746d0f42573c24a118a6f0bf1f919d60163b5dbd6de0b6fc7e1a0e9",
    ),
}


def cache_folder(name: str) -> Path:
    """Where a model of this name is kept once it is converted."""
    slug = re.sub(r"[^A-Za-z0-9.+@_-]", "-", name)
    return cache_directory() / "models" / f"{checkpoint.FORMAT}.{CONVERSION}" / slug


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model that has a name.

    Attributes:
      name: the name.
      purpose: what it is for, a few words.
      licence: of its weights.
      megabytes: what is downloaded; 0 for what comes with the package.
      source: a backbone, a repository of the hub, or the address of a release file.
      files: in the repository: the weights, and what goes with them; empty for backbones, whose files are looked for.
      pairs: the antonym pairs it judges by.
      temperature: see `quality.attribute_scores`.
      metric: its name in `evaluation.published`, if there are results.
    """

    name: str
    purpose: str
    licence: str
    megabytes: int
    source: str
    files: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = prompts.PAIRS
    temperature: float = 1.0
    metric: str = ""

    @property
    def repository(self) -> str:
        """Its repository on the Hugging Face hub, or the address of its file."""
        return backbones.TABLE[self.source].repository if self.source in backbones.TABLE else self.source

    @property
    def folder(self) -> Path:
        """Where it lies once it is converted."""
        return TINY_FOLDER if self.name == TINY else cache_folder(self.name)

    @property
    def is_cached(self) -> bool:
        """Whether it is ready to use without a network."""
        return self.folder.is_dir()


def _megabytes(name: str, millions: float) -> int:
    """What the float32 weights of a backbone take."""
    size = next((size for (repository, _), (size, _) in KNOWN.items() if repository == name), millions * 4e6)
    return round(size / 1e6)


def _entries() -> dict[str, Entry]:
    purpose = "the authors' QualiCLIP, trained without human ratings"
    table = [
        Entry(TINY, "the model of this package, a linear probe of EfficientNet-Lite0", "Apache-2.0", 0, TINY),
        Entry("qualiclip", purpose, "CC BY-NC 4.0", 408, QUALICLIP, metric="QualiCLIP"),
    ]
    for suffix, rated in (("", "koniq"), ("-clive", "clive"), ("-flive", "flive"), ("-spaq", "spaq")):
        files = ("QualiCLIP.pth", f"QualiCLIP+_{rated}.pth")
        purpose = f"QualiCLIP with prompts learned from the ratings of {rated}"
        table.append(Entry(f"qualiclip+{suffix}", purpose, "CC BY-NC 4.0", 411, IQA_PYTORCH, files, temperature=2.0))
    table.append(
        Entry("clip-iqa", 'CLIP-IQA: RN50 with "Good photo." / "Bad photo."', "MIT", 408, "RN50",
              pairs=prompts.PAIRS[:1], metric="CLIP-IQA")
    )  # fmt: skip
    for name, backbone in backbones.TABLE.items():
        purpose = f"{backbone.family}, zero-shot with QualiCLIP's seven pairs; to train from"
        size = _megabytes(backbone.repository, backbone.millions)
        table.append(Entry(name, purpose, backbone.licence, size, name))
    return {entry.name: entry for entry in table}


TABLE: dict[str, Entry] = _entries()
