"""The published checkpoints: their files read without running code, their keys as ours, and ours as theirs.

The differences are few: prefixes, one matrix for query, key and value in joint blocks, and shared attentions listed
under each of their names; VideoMamba's are in `published_mamba`. Source: the checkpoints of MAE-DFER and the
Facial-Foundation-Model project.
"""

import argparse
import dataclasses
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mien.models import published_lora, published_mamba
from mien.models.backbone import BackboneConfig, FeatureTask, Task
from mien.models.combined import Combined
from mien.models.file_names import Filed, FileNames
from mien.models.lgi_former import LgiFormerConfig
from mien.models.loading import Report, blocks_of, load_strictly
from mien.models.lora import is_adapter
from mien.models.mae import MaskedAutoencoder
from mien.models.mamba import Mamba, MambaConfig

STAGES = ("second_attn", "third_attn")
DECODER = ("decoder.", "encoder_to_decoder.", "mask_token")
# Of a file: its weights, by name why some are left, and how the names of parameters begin that it need not hold.
Choice = tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]


class Aside:
    """Stands for a NumPy number that a file holds beside its weights, and for its type: nothing of it is kept."""

    def __init__(self, *_: object) -> None:
        """Take whatever a number is made of."""

    def __setstate__(self, _: object) -> None:
        """Take whatever a type is made of."""


# The schedules of the published system are NumPy arrays, so the learning rates in its optimiser's state are NumPy
# numbers. They are not needed, so nothing of NumPy is run. Version 2 of NumPy renamed the module.
NUMPY_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the weights of a published file (under `model` or `module`, beside settings) without wrappers' names.

    Raises ValueError for a file that holds anything but weights and plain settings, or none, or is damaged.
    """
    return {unwrapped(name): value for name, value in read_file(path)[0].items()}


def read_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of a published file under its very names, and what is beside: `epoch`, `args` and `mien`.

    `args` are the settings of whoever published it, `mien` is what `doctor.py` says of a model that it writes.
    Files of safetensors hold weights alone. Raises ValueError for a file that holds anything but weights and plain
    settings, or none, or is damaged.
    """
    if Path(path).suffix == ".safetensors":
        return _read_safetensors(path), {}
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged or no file of PyTorch 1.6 or later; fetch it again, or save it anew")
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *((Aside, name) for name in NUMPY_NAMES)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights and plain settings, so it was not opened: loading it could run code. "
            f"If you trust its origin, save its weights alone and load those. ({str(error).splitlines()[0]})"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged; fetch it again ({error})") from error
    beside: dict[str, Any] = {}
    for name in ("model", "module"):
        if isinstance(content, dict) and name in content:
            beside = {key: content[key] for key in ("epoch", "args", "mien") if key in content}
            content = content[name]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(x, Tensor) for x in content.values()):
        raise ValueError(f"{path} must hold named tensors, alone or under 'model' or 'module', but it does not")
    if isinstance(beside.get("args"), argparse.Namespace):
        beside["args"] = vars(beside["args"])
    return content, beside


def _read_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from error


def save(task: Task) -> dict[str, Tensor]:
    """Return the task's weights under the published names; adapters as the published scales of blocks take them."""
    own = published_lora.rescaled(task.state_dict(), task, to="published")
    state = {published_name(name, task): value for name, value in own.items()}
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        joint = name.removesuffix("q.weight")
        state[joint + "qkv.weight"] = torch.cat([state.pop(name), state.pop(joint + "kv.weight")])
    for alias, original in _aliases(task).items():
        state |= {
            name.replace(original, alias): value for name, value in state.items() if f".{original}." in f".{name}"
        }
    return state


def load(
    task: Task,
    state: Mapping[str, Tensor],
    norm: Literal["new", "pretrained"] = "new",
    head: Literal["kept", "new"] = "kept",
    inflation: Literal["centre", "mean"] = "centre",
    source: BackboneConfig | None = None,
    own: bool = False,
) -> Report:
    """Load published weights into a task; the decoder of a pretrained file is left where the task has none.

    As published, the pretrained final norm is left and the pooled one new; norm="pretrained" takes the one as the
    other; where the first token stands for all, it is taken, as published too. head="new" leaves the file's heads, and
    the last norm of a file that pools otherwise; an autoencoder then takes the encoder alone of a file that was trained
    otherwise, and begins with a new decoder. A file's adapters are added to its weights where the task has none.
    `source` is the file's backbone where it is to be adapted to the task's. VideoMamba's may be of images (see
    `fitted`) or of other clips; `own` says that a file is a model of ours under published names. Raises ValueError
    where anything else is missing, unknown or of another shape, or where the file differs in what the task shares.
    """
    names, shapes = FileNames(state, bare), {name: tuple(value.shape) for name, value in state.items()}
    state = {bare(name): value for name, value in state.items()}
    scanned = isinstance(task.backbone.config.encoder, MambaConfig)
    if isinstance(task, FeatureTask):
        state, left, replaced = _for_features(task, state, norm, head)
    else:
        state, left, replaced = _for_autoencoder(state, scanned, head)
    taken = _separated({name: value for name, value in state.items() if name not in left}, task, names)
    if any(map(is_adapter, taken)) and not (isinstance(task, FeatureTask) and task.lora):
        taken = published_lora.without_adapters(taken, blocks_of(taken), names)
    fitted = None
    if scanned:
        # The facial project, which leaves the last mixer out, pretrains with a decoder of mixers.
        unread = not own and any(re.match(r"decoder\..*\.mixer\.", name) for name in state)
        fitted = published_mamba.fitted(taken, source or task.backbone.config, inflation, unread, names)
        final = "norm_f." if isinstance(task, FeatureTask) else "norm."
        taken = {re.sub(r"^norm_f\.", final, name): value for name, value in fitted.state.items()}
    ours = {bare(published_name(name, task)): name for name in task.state_dict()}
    fresh = {
        name: "belongs to this task"
        for theirs, name in ours.items()
        if theirs not in taken and theirs.startswith(replaced)
    }
    if source is not None:  # the file's last blocks may have no name here
        last = {name: _of_first_block(name, ours) for name in taken.keys() - ours.keys()}
        ours |= {theirs: name for theirs, name in last.items() if name != theirs}
    there = {theirs: _filed(theirs, names, taken, published_name(name, task)) for theirs, name in ours.items()}
    left = {names.there[name]: why for name, why in left.items()}
    strange = {_filed(name, names, taken): value for name, value in taken.items() if name not in ours}
    if clash := sorted(strange.keys() & set(ours.values())):  # what is ours by name would take the place of what is
        raise ValueError(
            f"the weights do not fit the model; unknown to the model: {'; '.join(clash)}; build the model with the "
            "config that the weights were trained with"
        )
    renamed = {ours[name]: value for name, value in taken.items() if name in ours} | strange
    renamed = published_lora.rescaled(renamed, task, to="own")
    filed = Filed({name: there[theirs] for theirs, name in ours.items()}, shapes)
    if fitted is None:
        return load_strictly(task, renamed, left, fresh, source, filed)
    report = load_strictly(task, renamed, left, fresh | fitted.fresh, fitted.source, filed)
    changed = {ours.get(name, name): why for name, why in fitted.changed.items()}
    return dataclasses.replace(report, changed={**changed, **report.changed})


def _for_features(
    task: FeatureTask, state: dict[str, Tensor], norm: Literal["new", "pretrained"], head: Literal["kept", "new"]
) -> Choice:
    """Return what a task on features takes of a file (bare names), what it leaves, and what may be new."""
    left: dict[str, str] = {}
    replaced: tuple[str, ...] = ()
    pretrained = "mask_token" in state
    if pretrained:
        replaced = ("fc_norm.", "norm.", "norm_f.", "head.")
        if norm == "pretrained" and not task.first_token:
            state = {re.sub(r"^norm\.", "fc_norm.", name): value for name, value in state.items()}
        for name in state:
            if name.startswith(DECODER):
                left[name] = "of the pretraining decoder"
            elif name.startswith("norm.") and not task.first_token:
                left[name] = "the pretrained final norm, replaced by a new one as published"
    if head == "new":
        replaced += ("head.",)
        if not pretrained and not isinstance(task.backbone.encoder, Mamba):
            theirs, here = ("fc_norm.", "norm.") if task.first_token else ("norm.", "fc_norm.")
            other = {name: "the norm of tokens that were pooled otherwise" for name in state if name.startswith(theirs)}
            left, replaced = left | other, replaced + ((here,) if other else ())
        left |= {name: "a head, asked to be new" for name in state if name.startswith("head.")}
    return state, left, replaced


def _for_autoencoder(state: dict[str, Tensor], scanned: bool, head: Literal["kept", "new"]) -> Choice:
    """Return what an autoencoder takes of a file (bare names), what it leaves, and what may be new."""
    if "mask_token" in state or head == "kept":
        return state, {}, ()
    left = {name: "a head, which an autoencoder has none of" for name in state if name.startswith("head.")}
    if not scanned:  # where tokens are scanned, the norm before pooling is the encoder's last
        left |= {name: "the norm of pooled tokens" for name in state if name.startswith("fc_norm.")}
    return state, left, (*DECODER, *(() if scanned else ("norm.",)))


def published_name(name: str, task: Task) -> str:
    """Return the published name of one of the task's own, query, key and value being apart."""
    inside = "encoder." if isinstance(task, MaskedAutoencoder) else ""
    if isinstance(task, MaskedAutoencoder):
        name = re.sub(r"^norm\.", "encoder.norm.", name)
    if isinstance(task, Combined):
        name = re.sub(r"^class_head\.", "head.cls.", re.sub(r"^gaze_head\.", "head.reg.", name))
    if isinstance(task, FeatureTask) and task.first_token:
        name = re.sub(r"^fc_norm\.", "norm.", name)
    name = published_lora.published_name(name)
    name = name.replace("backbone.embed.", inside + "patch_embed.proj.", 1)
    name = name.replace("backbone.encoder.", inside, 1).replace("region_tokens", "lg_region_tokens")
    return published_mamba.published_name(name) if isinstance(task.backbone.config.encoder, MambaConfig) else name


def bare(name: str) -> str:
    """Return a published name without wrappers and the encoder's prefix; a decoder's layers are its blocks."""
    name = re.sub(r"^(encoder|backbone)\.", "", unwrapped(name))
    return re.sub(r"^decoder\.layers\.", "decoder.blocks.", name)


def unwrapped(name: str) -> str:
    """Return a name without what wrappers (parallel training, compilation) put before it."""
    return re.sub(r"(^|(?<=\.))((module|_orig_mod)\.)+", "", name)


def _filed(name: str, names: FileNames, taken: Mapping[str, Tensor], otherwise: str = "") -> str:
    """Return a file's name for a bare published one; `otherwise` is how it is published, where no other begins alike.

    Query, key and value of a joint block are one entry, and a final norm may have been taken as another one.
    """
    joint = re.sub(r"(?<=\.attn\.)(q|kv)(?=\.weight$)", "qkv", name)
    norms = [re.sub(r"^(norm|norm_f|fc_norm)\.", f"{norm}.", name) for norm in ("norm", "norm_f", "fc_norm")]
    there = [known for known in (name, joint, *(norms if name in taken else ())) if known in names.there]
    return names.there[there[0]] if there else names.likely(joint, otherwise)


def _of_first_block(name: str, ours: Mapping[str, str]) -> str:
    """Return our name for a published one of a block that the task does not have, by that of its first block."""
    block = re.search(r"(?<=blocks\.|layers\.)\d+", name)
    first = ours.get(f"{name[: block.start()]}0{name[block.end() :]}") if block else None
    return name if block is None or first is None else first.replace(".blocks.0.", f".blocks.{block[0]}.", 1)


def _aliases(task: Task) -> dict[str, str]:
    """Return the attention stages that are another one, with the one they are."""
    encoder = task.backbone.config.encoder
    if not isinstance(encoder, LgiFormerConfig) or encoder.sharing == "none":
        return {}
    shared = {"second_attn": encoder.second and encoder.sharing == "all", "third_attn": encoder.third != "none"}
    return {stage: "first_attn" for stage in STAGES if shared[stage]}


def _separated(state: Mapping[str, Tensor], task: Task, names: FileNames) -> dict[str, Tensor]:
    """Return published weights with joint matrices split and the second names of shared attentions left out."""
    aliases = _aliases(task)
    separated = {}
    for name, value in state.items():
        alias = next((alias for alias in aliases if f".{alias}." in name), None)
        if alias is not None:
            original = name.replace(alias, aliases[alias])
            if original not in state or not torch.equal(value, state[original]):
                first, second = map(names.likely, (original, name))
                raise ValueError(
                    f"the model shares {first} with {second}, but the file's differ; set sharing to 'none'"
                )
        elif name.endswith(".attn.qkv.weight"):
            joint = name.removesuffix("qkv.weight")
            separated[joint + "q.weight"], separated[joint + "kv.weight"] = value.split(
                [len(value) // 3, len(value) - len(value) // 3]
            )
        else:
            separated[name] = value
    return separated
