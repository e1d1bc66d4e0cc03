"""What a file calls an entry: by its name there, or where it is missing by the one that its neighbours make likely."""

import pytest
import torch

from mien.models.file_names import Entries, Filed, FileNames
from mien.models.published import bare

WRAPPED = ("module.encoder.blocks.0.norm1.bias", "module.encoder.patch_embed.proj.weight", "module.mask_token")
COMPILED = ("blocks.0.norm1.bias", "blocks.1._orig_mod.norm1.bias", "head.weight")
LAYERS = ("encoder.layers.0.norm.weight", "decoder.layers.0.norm1.weight", "mask_token")


@pytest.mark.parametrize(
    ("names", "plain", "there"),
    [
        (WRAPPED, "blocks.0.norm1.bias", "module.encoder.blocks.0.norm1.bias"),
        (WRAPPED, "blocks.7.mlp.fc1.weight", "module.encoder.blocks.7.mlp.fc1.weight"),
        (WRAPPED, "lg_region_tokens", "module.encoder.lg_region_tokens"),
        (WRAPPED, "decoder.norm.bias", "module.decoder.norm.bias"),
        (COMPILED, "blocks.1.norm2.bias", "blocks.1._orig_mod.norm2.bias"),
        (COMPILED, "mask_token", "mask_token"),
        (LAYERS, "decoder.blocks.0.mlp.fc1.bias", "decoder.layers.0.mlp.fc1.bias"),
        ((), "head.weight", "head.weight"),
    ],
)
def test_a_name_is_the_files_own_or_what_it_would_be_beside_the_others(
    names: tuple[str, ...], plain: str, there: str
) -> None:
    assert FileNames(names, bare).likely(plain) == there


def test_where_no_other_begins_alike_it_is_named_as_published() -> None:
    assert FileNames(WRAPPED, bare).likely("norm.weight", "encoder.norm.weight") == "module.encoder.norm.weight"


def test_two_names_of_one_entry_are_refused() -> None:
    with pytest.raises(ValueError, match=r"module\.head\.bias and head\.bias are the same one"):
        FileNames(["module.head.bias", "head.bias"], bare)


def test_an_entry_that_is_misshapen_is_told_by_its_name_in_the_file() -> None:
    entries = Entries({"head.weight": torch.zeros(3)}, FileNames(["module.head.weight"], bare))
    with pytest.raises(ValueError, match=r"other shapes: module\.head\.weight, .* must have 2 axes, but is \(3,\)"):
        entries.sizes("head.weight", 2)
    with pytest.raises(ValueError, match=r"not in the file: module\.head\.bias, "):
        entries["head.bias"]


def test_ours_stand_beside_and_parts_of_one_entry_are_told_as_one() -> None:
    filed = Filed({"a.q": "a.qkv", "a.kv": "a.qkv"}, {"a.qkv": (7, 2)})
    assert filed.told(["a.kv", "b", "a.q"]) == ["a.qkv (ours: a.kv, a.q)", "b"]
    state = {"a.q": torch.zeros(2, 2), "a.kv": torch.zeros(5, 2), "b": torch.zeros(())}
    own = {"a.q": torch.zeros(2, 2), "a.kv": torch.zeros(4, 2), "b": torch.zeros(1)}
    assert filed.misshapen(state, own) == [
        "a.qkv (ours: a.q, a.kv): (7, 2) in the file, (6, 2) in the model",
        "b: () in the file, (1,) in the model",
    ]
