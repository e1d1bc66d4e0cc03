"""Write one HTML file on a study or a run, from its records alone.

    python experiments/report.py output/demo/study
    python experiments/report.py output/demo/pretrain --output pretraining.html

The folder is what another program's --output named: a study, a fine-tuning or a pretraining run, or a folder that
holds a study as `study/`. The page opens from disk with no network. What a folder does not hold, the page says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mien.data_pipelines.manifest import Manifest, ManifestError
from mien.platform import (
    report_costs,
    report_data,
    report_inputs,
    report_results,
    report_runs,
    report_search,
    report_verdict,
)
from mien.platform.config import dump, parse, run_program
from mien.platform.pages import Html, Section, gathered, page, paragraph
from mien.platform.records import Run, Study, flat, read, read_run
from mien.platform.report_verdict import Outcome
from mien.platform.storage import storing, write_whole


class ReportConfig(BaseModel, frozen=True, extra="forbid"):
    """What to report on."""

    folder: str = Field(
        "output/demo/study", description="folder of a study or of a run; may be given as the first word"
    )


def report(folder: Path) -> str:
    """Return the page on a study's or a run's folder; RecordsError if it holds neither."""
    records = read(folder)
    if isinstance(records, Study):
        return study_page(records)
    return run_page(records, read_run(folder / "test") if (folder / "test").is_dir() else None)


def study_page(study: Study) -> str:
    """Return the page on a search: what was found, how it was searched, how it came about."""
    problems = list(study.problems)
    name = study.folder.parent.name if study.folder.name == "study" else study.folder.name
    found = report_verdict.outcomes(study.test, "test", study.config)
    each: Sequence[Outcome | None] = found or [None]
    of_fold = {name: record for of in found for name, record in of.folds.items()}
    stages = {stage: run for stage, run in (("pretraining", study.pretraining), ("test", study.test)) if run}
    runs = {f"fold {fold}": run for fold, run in study.folds.items()} | stages
    configs = {"the study": study.config} | {stage: run.config for stage, run in stages.items()}
    places = {"study": study.environment} | {stage: run.environment for stage, run in stages.items()}
    unopened = "The test has not been opened yet: evaluate.py does that, once, with the winner."
    sections = [
        *(report_results.result(of, titled("Test", of), unopened) for of in each),
        *report_results.motion(study.test),
        *report_inputs.inputs(study.test),
        report_data.data(clips(study.folder, [*configs.values()]), runs, study.folds, of_fold),
        report_search.trials(study),
        report_search.settings(study),
        report_search.alpha_front(study),
        *(report_results.folds(of, tested_runs(of, study.folds), titled("Folds", of)) for of in each),
        *(report_results.confusions(of, titled("Confusions", of)) for of in each),
        report_results.mistakes(study.test, problems),
        report_runs.curves(study.pretraining, study.folds),
        report_runs.reconstructions(study.pretraining, problems),
        report_costs.cost(study),
        report_costs.environment(places, configs),
    ]
    subject = report_verdict.study_subject(study, tested=bool(found))
    lead = report_verdict.verdict(found[0] if found else None, subject, report_verdict.UNOPENED)
    for of in found[1:]:
        lead += report_verdict.verdict(of, "", "")
    eyebrow = f"A study by mien, {len(study.trials)} trials"
    return page(name, eyebrow, [*lead, *complaints(problems)], gathered(sections))


def run_page(run: Run, test: Run | None) -> str:
    """Return the shorter page on one run: its scores if it has any, its curves, its pictures, its cost."""
    problems = list(run.problems) + (test.problems if test else [])
    judged = report_verdict.outcomes(test, "test", run.config) or report_verdict.outcomes(run, "validation", run.config)
    found = judged[0] if judged else None
    sections: list[Section] = []
    if found:
        sections = [report_results.result(found, found.split.capitalize(), ""), report_results.confusions(found)]
    if test:
        sections += [*report_results.motion(test), *report_inputs.inputs(test)]
        sections.append(report_results.mistakes(test, problems))
    others = [read_run(place) for place in sorted(run.folder.glob("test_on_*")) if place.is_dir()]
    sections += report_inputs.elsewhere(others)
    sections.append(report_data.data(clips(run.folder, [run.config]), {"this run": run}, {}, {}))
    sections.append(report_runs.curves(None, {}, alone=run))
    sections += [report_runs.reconstructions(run, problems)] if run.pictures or not found else []
    sections.append(report_costs.cost(None, alone=run))
    sections.append(report_costs.environment({"run": run.environment}, {"the run": run.config}))
    lead = report_verdict.run_verdict(run, found)
    return page(run.folder.resolve().name, "A run by mien", [*lead, *complaints(problems)], gathered(sections))


def titled(title: str, of: Outcome | None) -> str:
    """Return a section's title, with the dataset's name where there are several."""
    return f"{title}: {of.dataset}" if of and of.dataset else title


def tested_runs(of: Outcome | None, runs: Mapping[str, Run]) -> dict[str, Run]:
    """Return the runs of the folds of one dataset: all of them where there is but one."""
    return {name: run for name, run in runs.items() if not of or not of.dataset or name in of.folds}


def complaints(problems: list[str]) -> list[Html]:
    """Return a warning that lists the records which could not be read."""
    return [paragraph("Not everything could be read: ", "; ".join(problems), ".", css="alert")] if problems else []


def clips(folder: Path, configs: Sequence[Mapping[str, Any]]) -> list[report_data.Clips]:
    """Return the numbers of every manifest that the settings name and that can be read, also if all was moved."""
    values = [value for config in configs for _, value in flat(config)]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    named = [Path(item) for item in items if str(item).endswith(".parquet")]
    found: dict[str, report_data.Clips] = {}
    for path in named:
        places = [path, *(folder.parent.joinpath(*path.parts[index:]) for index in range(1, len(path.parts)))]
        for place in filter(Path.is_file, places):
            try:
                manifest = Manifest.read(place)
            except ManifestError:
                continue
            found.setdefault(manifest.fingerprint(), numbers(manifest))
            break
    return list(found.values())


def numbers(manifest: Manifest) -> report_data.Clips:
    """Count a manifest's clips by official part and class."""
    rows = manifest.rows()
    per_class: dict[str, dict[str, int]] = {}
    parts: dict[str, int] = {}
    for row in rows:
        part = f"fold {row['fold']}" if row["fold"] is not None else row["split"] or "all"
        parts[part] = parts.get(part, 0) + 1
        if row["label"] is not None:
            name = manifest.classes[row["label"]]
            per_class.setdefault(part, {})[name] = per_class.setdefault(part, {}).get(name, 0) + 1
    subjects = {row["subject"] for row in rows}
    return report_data.Clips(
        name=manifest.name,
        fingerprint=manifest.fingerprint(),
        classes=manifest.classes,
        clips=len(rows),
        subjects=None if None in subjects else len(subjects),
        labelled=sum(row["label"] is not None for row in rows),
        gaze=sum(row["pitch"] is not None for row in rows),
        parts=dict(sorted(parts.items())),
        per_class=per_class,
        rejected=[(item.path, item.reason) for item in manifest.rejected],
        notes=manifest.notes,
    )


def main(argv: Sequence[str]) -> None:
    """Write the report and print where it is."""
    call = parse(ReportConfig, argv, __doc__, first="folder")
    folder = Path(call.config.folder)
    output = call.output or folder / "report.html"
    if call.dry_run:
        print(dump(call.config))
        print(f"would write {output} from the records in {folder}")
        return
    html = report(folder)
    with storing(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, html)
    print(f"{output} ({len(html.encode()) / 2**20:.1f} MiB)")


if __name__ == "__main__":
    run_program(main)
