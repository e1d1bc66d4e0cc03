"""Look for what would make scores on a manifest wrong, before anything is trained on it.

    python experiments/audit.py output/dfew/manifest.parquet
    python experiments/audit.py output/dfew/manifest.parquet --output output/dfew_audit split.protocol=paper read=all

Checks persons and files shared between train, validation and test of every fold, validation that equals test,
duplicates (also encoded anew, or at another size), labels and class lists that contradict one another, classes that a
fold lacks, unreadable files, lengths, sizes and frame rates and, where the detector is installed, how much of the frame
faces fill. Prints what was found, and writes `audit.json` and one page `audit.html` with strips of frames; without
--output into MANIFEST_audit beside the manifest, where runs look for what it measured of the faces.

The exit code is 0 where there is no error (warnings are none), 1 where there is one, 2 where the call was wrong.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from mien.data_pipelines import decode
from mien.data_pipelines.audit import Audit, CheckConfig, audit
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.duplicates import moments
from mien.data_pipelines.fingerprint import fingerprint
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import locate
from mien.platform import pictures
from mien.platform.audit_page import audit_page
from mien.platform.config import dump, parse, plain, run_program
from mien.platform.progress import progress, table
from mien.platform.storage import storing, write_whole

MEMBERS = 4  # of a group of duplicates that are drawn
EXAMPLES = 12  # clips drawn to show what goes in
LETTERS = 70  # of an example in the printed table


class AuditConfig(CheckConfig, frozen=True, extra="forbid"):
    """Which manifest is audited, and how."""

    manifest: str = Field(
        "output/dfew/manifest.parquet", description="manifest made by prepare.py; may be given as the first word"
    )
    root: str | None = Field(None, description="folder of the clips, where it has moved since prepare.py")
    strips: int = Field(24, ge=0, description="groups of duplicates drawn on the page; audit.json lists all")


def run(config: AuditConfig, output: Path) -> Audit:
    """Audit the manifest, and write record, strips and page into `output`."""
    manifest = Manifest.read(config.manifest, config.root)
    total = 0 if config.read == "none" else len(manifest)
    with progress("reading", total, "clips", quiet=not total) as bar:
        found = audit(manifest, config, lambda done, _: bar.advance(done - bar.done))
    kept = record(manifest, found, config, output)
    write_whole(output / "audit.json", json.dumps(kept, indent=1) + "\n")
    write_whole(output / "audit.html", audit_page(kept, output))
    return found


def record(manifest: Manifest, found: Audit, config: AuditConfig, output: Path) -> dict[str, Any]:
    """Return what audit.json holds; the pictures that it names are written below `output`."""
    with storing(output):
        (output / "strips").mkdir(parents=True, exist_ok=True)
    opens = config.read != "none"
    unreadable = dict(found.unreadable)
    subjects = {subject for subject in manifest.column("subject") if subject is not None}
    groups = []
    for number, group in enumerate(found.duplicates):
        drawn = [row for row in group.rows[:MEMBERS] if row not in unreadable]
        file = f"strips/duplicate_{number:03d}.jpg"
        shown = opens and number < config.strips and draw(manifest, drawn, output / file)
        about = {"same": group.same, "where": group.where, "folds": group.folds}
        clips = [clip(manifest, row) for row in group.rows[:MEMBERS]]
        groups.append(
            about
            | {"clips": clips, "more": len(group.rows) - len(clips), "rows": group.rows}
            | {"picture": file if shown else None}
        )
    examples = []
    for number, row in enumerate(chosen(manifest, unreadable) if opens else []):
        file = f"strips/example_{number:03d}.jpg"
        if draw(manifest, [row], output / file):
            examples.append(clip(manifest, row) | {"picture": file})
    return {
        "name": manifest.name,
        "manifest": config.manifest,
        "fingerprint": manifest.fingerprint(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "clips": len(manifest),
        "subjects": len(subjects),
        "classes": manifest.classes,
        "notes": manifest.notes,
        "settings": plain(config),
        "errors": found.errors,
        "findings": [asdict(finding) for finding in found.findings],
        "duplicates": groups,
        "unreadable": [clip(manifest, row) | {"reason": reason} for row, reason in found.unreadable],
        "class_counts": found.class_counts,
        "inputs": found.inputs,
        "faces": found.faces,
        "data": fingerprint(manifest) | {"faces": found.faces},
        "examples": examples,
    }


def clip(manifest: Manifest, index: int) -> dict[str, Any]:
    """Return what is said of one clip: its id, file, official place and class."""
    row = manifest.row(index)
    place = row["split"] or ("" if row["fold"] is None else f"fold {row['fold']}")
    name = None if row["label"] is None else manifest.classes[row["label"]]
    return {"row": index, "video": row["video"], "path": row["path"], "place": place, "class": name}


def chosen(manifest: Manifest, unreadable: dict[int, str]) -> list[int]:
    """Return the first readable clip of every class or, without classes, some clips evenly spaced."""
    readable = [index for index in range(len(manifest)) if index not in unreadable]
    if not manifest.classes:
        return readable[:: max(len(readable) // EXAMPLES, 1)][:EXAMPLES]
    labels = manifest.column("label")
    first: dict[int, int] = {}
    for index in readable:
        if labels[index] is not None:
            first.setdefault(labels[index], index)
    return [first[label] for label in sorted(first)][:EXAMPLES]


def draw(manifest: Manifest, rows: Sequence[int], file: Path) -> bool:
    """Save the frames of some clips, a row each, and say whether there were any; one that fails now is left out."""
    drawn = []
    for index in rows:
        row = manifest.row(index)
        try:
            indices, size = row["start"] + moments(row["frames"]), (row["height"], row["width"])
            drawn.append(list(decode.read(locate(row, manifest.root), indices, size)))
        except DecodeError:
            continue  # gone since it was audited; the table of findings was made before
    if drawn:
        with storing(file.parent):
            pictures.save(file, pictures.grid(drawn, height=72))
    return bool(drawn)


def tell(found: Audit, output: Path) -> None:
    """Print the findings, then what to do about errors and warnings."""
    rows = []
    for finding in found.findings:
        shown = "; ".join(finding.examples)
        shown = shown if len(shown) <= LETTERS else shown[: LETTERS - 2] + " …"
        rows.append({"": finding.severity, "count": finding.count, "what": finding.what, "for example": shown or None})
    table(rows, "findings")
    for finding in found.findings:
        if finding.severity != "note" and finding.remedy:
            print(f"{finding.severity}: {finding.what}\n  -> {finding.remedy}")
    warnings = sum(finding.severity == "warning" for finding in found.findings)
    print(f"{found.errors} errors, {warnings} warnings: {output / 'audit.html'}")


def main(argv: Sequence[str]) -> None:
    """Read the command line, audit, and end with exit code 1 where an error was found."""
    call = parse(AuditConfig, argv, __doc__, first="manifest")
    file = Path(call.config.manifest)
    output = call.output or file.with_name(f"{file.stem}_audit")
    if call.dry_run:
        print(dump(call.config))
        print(f"would read {call.config.read} frames of {len(Manifest.read(file, call.config.root)):,} clips")
        return
    found = run(call.config, output)
    tell(found, output)
    if found.errors:
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
