"""Several datasets as one: classes meet by their names, and what has no class in common is left out and told.

Emotion sets name the same class in several ways (Happy, happiness, HAP); names that mean the same are listed here and
nowhere guessed. Official folds and parts stay: fold k of the whole tests what fold k of each set tests.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, Field

from mien.data_pipelines.manifest import SCHEMA, Manifest, ManifestError, concat

# As the emotion sets write them, case aside; a name that stands in no line means itself alone.
SAME = (
    ("anger", "angry", "ang"),
    ("disgust", "disgusted", "dis"),
    ("fear", "fearful", "fea"),
    ("happiness", "happy", "hap"),
    ("neutral", "neu"),
    ("sadness", "sad"),
    ("surprise", "surprised"),
)
_MEANING = {name: names[0] for names in SAME for name in names}


class JoinConfig(BaseModel, frozen=True, extra="forbid"):
    """Which manifests become one."""

    name: Literal["join"] = "join"
    manifests: tuple[str, ...] = Field(
        min_length=2, description="manifests made by prepare.py, as [a.parquet, b.parquet]"
    )
    classes: tuple[str, ...] | None = Field(
        None, description="classes of the whole, by any of their names; null: those that all labelled sets have"
    )


def read(config: JoinConfig) -> Manifest:
    """Return the clips of all manifests in one, with the classes of `config`, or those that all have."""
    manifests = [Manifest.read(path) for path in config.manifests]
    classes = common_classes(manifests) if config.classes is None else config.classes
    return concat([with_classes(manifest, classes) for manifest in manifests])


def meaning(name: str) -> str:
    """Return the one name of all that mean the same class."""
    return _MEANING.get(name.strip().lower(), name.strip().lower())


def common_classes(manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """Return the classes that all manifests with classes have, as the first of them names and orders them."""
    named = [manifest for manifest in manifests if manifest.classes]
    if not named:
        return ()
    shared = set.intersection(*({meaning(name) for name in manifest.classes} for manifest in named))
    if len(shared) < 2:
        given = "; ".join(f"{manifest.name}: {', '.join(manifest.classes)}" for manifest in named)
        raise ManifestError(
            f"sets that are joined must have two classes in common, but {given} have {len(shared)}; join others, or "
            "name the classes of the whole in `classes`"
        )
    return tuple(name for name in named[0].classes if meaning(name) in shared)


def with_classes(manifest: Manifest, classes: Sequence[str]) -> Manifest:
    """Return the manifest with these classes, matched by meaning; clips of other classes are left out, with a note.

    Clips without a label stay. Raises ManifestError where two of `classes`, or of the manifest's own, mean the same.
    """
    for names, where in ((classes, "the whole"), (manifest.classes, manifest.name)):
        twice = [name for name, count in Counter(map(meaning, names)).items() if count > 1]
        if twice:
            raise ManifestError(
                f"a class has one name, but {', '.join(names)} of {where} has two for {twice[0]}; merge them"
            )
    relabelled, left_out = matched(manifest, classes)
    notes = list(manifest.notes)
    if left_out:
        said = ", ".join(f"{count:,} {name}" for name, count in left_out.items())
        notes.append(f"clips of {manifest.name} whose class the whole does not have are left out: {said}")
    both = zip(manifest.column("label"), relabelled.column("label"), strict=True)
    kept = [row for row, (old, new) in enumerate(both) if old is None or new is not None]
    return replace(relabelled.take(kept), notes=tuple(notes))


def matched(manifest: Manifest, classes: Sequence[str]) -> tuple[Manifest, Counter[str]]:
    """Return the manifest with the labels that its clips have in `classes`, matched by meaning, every clip in its line.

    A clip of a class that is not among them has no label; how many of each there are comes second.
    """
    place = {meaning(name): index for index, name in enumerate(classes)}
    new = [place.get(meaning(name)) for name in manifest.classes]
    labels = manifest.column("label")
    left_out = Counter(manifest.classes[label] for label in labels if label is not None and new[label] is None)
    column = pa.array([None if label is None else new[label] for label in labels], type=pa.int64())
    table = manifest.table.set_column(SCHEMA.get_field_index("label"), SCHEMA.field("label"), column)
    return replace(manifest, table=table, classes=tuple(classes)), left_out
