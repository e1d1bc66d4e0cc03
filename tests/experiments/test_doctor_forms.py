"""doctor.py on every published form: told, converted and back; and what is missing, extra or misshapen told by name.

The forms are narrow and shallow, their names and shapes as published, their values the reference's.
"""

import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mien.experiments import doctor
from mien.experiments.doctor import TASK
from mien.models import published, tasks
from mien.models.description import describe
from mien.models.published import save
from mien.platform import checkpoint

REFERENCE = Path(__file__).parents[1] / "reference" / "deterministic.py"
TUBES = {"frames": 4, "size": 32, "patch": 8, "tubelet": 2}  # a grid of 2 x 4 x 4
LGI: dict[str, Any] = {"name": "lgi_former", "width": 64, "depth": 2, "heads": 1, "region": [2, 2, 4]}
VIT: dict[str, Any] = {"name": "vit", "width": 64, "depth": 2, "heads": 1}
MAMBA: dict[str, Any] = {"name": "mamba", "width": 32, "depth": 2}
DECODER = {"width": 64, "depth": 1, "heads": 1}
PAIR = {"block": "mamba", "width": 48, "depth": 1}
KNOWN = {"frames": 4, "size": 32}  # what no published file tells by its weights
Content = dict[str, Tensor]


def drawn(shapes: Mapping[str, Tensor]) -> Content:
    """Return the reference's values of the entries with these names and shapes."""
    spec = importlib.util.spec_from_file_location("deterministic", REFERENCE)
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    return {name: torch.from_numpy(reference.parameter(name, tuple(x.shape))) for name, x in shapes.items()}


def of(task: str, encoder: Mapping[str, Any], **settings: Any) -> Callable[[], Content]:
    """Return the form that a task of ours has under the published names."""

    def content() -> Content:
        backbone = {"tubes": TUBES, "encoder": encoder}
        config = TASK.validate_python({"name": task, "backbone": backbone, **settings})
        state = drawn(save(tasks.build(config)))
        for alias in ("second_attn", "third_attn"):  # attentions that are shared stand under each of their names
            shared = encoder.get("sharing") == "all" or (encoder.get("sharing") and alias == "third_attn")
            for name in [name for name in state if f".{alias}." in name and shared]:
                state[name] = state[name.replace(alias, "first_attn")]
        return state

    return content


def facial(content: Callable[[], Content]) -> Callable[[], Content]:
    """Return a fine-tuned form of the facial project's state-space encoder: its norm twice, and no positions."""

    def changed() -> Content:
        state = content()
        del state["pos_embed"]
        return state | {"fc_norm.weight": state["norm_f.weight"].clone()}

    return changed


def images(content: Callable[[], Content]) -> Callable[[], Content]:
    """Return the form of VideoMamba's files of images: filters without time, and no times."""

    def changed() -> Content:
        state = content()
        del state["temporal_pos_embedding"]
        return state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"][:, :, 0].clone()}

    return changed


def variant(**changes: Any) -> Callable[[], Content]:
    """Return the fine-tuned form of a variant of the LGI-Former."""
    return of("expression", LGI | changes)


FORMS: dict[str, Callable[[], Content]] = {
    "pretraining, regions": of("mae", LGI, decoder=DECODER, mask={"ratio": 0.75}),
    "pretraining, joint": of("mae", VIT, decoder=DECODER, mask={"kind": "tube"}),
    "pretraining, state space": of("mae", MAMBA, decoder=PAIR, mask={"ratio": 0.75}),
    "classes, regions": of("expression", LGI),
    "classes, joint": of("expression", VIT),
    "classes, first token": of("expression", VIT, first_token=True),
    "classes, adapters": of("expression", LGI, lora={"rank": 2}),
    "classes, state space": of("expression", MAMBA, pool="region"),
    "classes, state space of the facial project": facial(of("expression", MAMBA, pool="patch")),
    "classes, state space of images": images(of("expression", MAMBA, pool="region")),
    "gaze": of("gaze", LGI),
    "gaze, bins": of("gaze", LGI, gaze_head="l2cs", bin_deg=2, bin_edges=True),
    "classes and gaze": of("combined", LGI),
    "classes and gaze, bins": of("combined", LGI, gaze_head="l2cs", bin_deg=2, bin_edges=True),
    "first cross": variant(first="cross"),
    "no second": variant(second=False),
    "no third": variant(third="none"),
    "third self": variant(third="self"),
    "first and third shared": variant(sharing="first_third"),
    "all shared": variant(sharing="all"),
}

TOLD = {
    "pretraining": "pretraining (masked autoencoder)",
    "classes": "expression (7 classes)",
    "gaze": "gaze (",
    "classes and gaze": "expression and gaze (7 classes)",
}
# Of these, a fit encoder of ours has other entries: they load, and are not written again as they were.
REFORMED = {"pretraining, state space", "classes, state space of the facial project", "classes, state space of images"}
# What a file may lack: names that stand for another entry of it.
SPARE = ("third_attn.", "second_attn.", "norm_f.", "fc_norm.", ".cls_token")
WORDS = [f"{name}={value}" for name, value in KNOWN.items()]


def ended(*words: str | Path) -> int:
    try:
        doctor.main([str(word) for word in words])
    except SystemExit as end:
        return int(str(end.code))
    return 0


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_told_and_goes_to_our_format_and_back(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = FORMS[form]()
    torch.save({"model": state, "epoch": 3}, tmp_path / "theirs.pth")
    assert ended(tmp_path / "theirs.pth", *WORDS, "to=safetensors", "--output", tmp_path / "ours") == 0
    printed = capsys.readouterr().out
    assert TOLD.get(form.split(",")[0], "expression (7 classes)") in printed
    assert f"loads: all of its {len(state)} tensors" in printed and f"wrote {tmp_path / 'ours'}" in printed
    assert ended(tmp_path / "ours", "to=published", "--output", tmp_path / "back.pth") == 0
    back = published.read_state(tmp_path / "back.pth")
    if form not in REFORMED:
        assert back.keys() == state.keys() and all(torch.equal(back[name], value) for name, value in state.items())
    one, two = checkpoint.weights(tmp_path / "ours"), doctor.load(tmp_path / "back.pth").state_dict()
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("wrapped", ["module.", "_orig_mod.", "module._orig_mod.", "encoder.", "backbone."])
def test_wrappers_and_prefixes_change_nothing(wrapped: str, tmp_path: Path) -> None:
    state = FORMS["classes, regions"]()
    save_file({f"{wrapped}{name}": value for name, value in state.items()}, tmp_path / "wrapped.safetensors")
    task = doctor.load(tmp_path / "wrapped.safetensors", **KNOWN)
    assert all(torch.equal(value, state[name]) for name, value in published.save(task).items())


@pytest.mark.parametrize("form", ["pretraining, regions", "classes, state space", "classes and gaze, bins", "gaze"])
def test_all_that_is_wrong_is_told_at_once(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = FORMS[form]()
    last = sorted(name for name in state if name.endswith(".bias") and (".1." in name or "s.1" in name))
    missing, misshapen = last[0], last[-1]
    del state[missing]
    state |= {misshapen: torch.zeros(7), "blocks.0.strange": torch.zeros(1)}
    torch.save({"module": state}, tmp_path / "bad.pth")
    assert ended(tmp_path / "bad.pth", *WORDS) == 1
    printed = capsys.readouterr().out
    for words in ("does not load", "not in the file: ", "unknown to the model: blocks.0.strange", "(7,) in the file"):
        assert words in printed
    for name in (missing, misshapen):
        assert name.split(".1.")[1] in printed


def opened(state: dict[str, Tensor]) -> Any:
    task = tasks.build(describe(state, **KNOWN))
    published.load(task, state)
    return task


@pytest.mark.parametrize(
    "form",
    [
        "pretraining, joint",
        "pretraining, state space",
        "classes, adapters",
        "classes, state space of the facial project",
        "classes and gaze, bins",
        "first and third shared",
    ],
)
def test_whatever_entry_is_missing_or_misshapen_is_told_by_its_name_in_the_file(form: str) -> None:
    state = {f"module.{name}": value for name, value in FORMS[form]().items()}
    for name, value in state.items():
        if ".1." in name and ".blocks.1." not in name:
            continue  # as those of the first block
        flat, lost = {**state, name: value.flatten()[:3].clone()}, {**state}
        del lost[name]
        there = re.escape(name)
        with pytest.raises(ValueError, match=f"{there}.*in the file|other shapes.*{there}|{there}.*file's differ"):
            opened(flat)
        if any(part in name for part in SPARE):
            continue
        with pytest.raises(ValueError, match=f"not in the file.*{there}|and no {there}"):
            opened(lost)


@pytest.mark.parametrize("half", ["A", "B"])
def test_half_an_adapter_is_told_before_it_is_added_to_a_weight(
    half: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"module.{name}": value for name, value in FORMS["classes, adapters"]().items()}
    name = next(name for name in state if name.endswith(f"lora_{half}"))
    for change in ({}, {name: torch.zeros(3, 5)}):
        torch.save({key: value for key, value in state.items() if key != name} | change, tmp_path / "half.pth")
        assert ended(tmp_path / "half.pth", *WORDS) == 1
        assert re.search(
            rf"does not load: (not in the file|other shapes): .*{re.escape(name)}", capsys.readouterr().out
        )
