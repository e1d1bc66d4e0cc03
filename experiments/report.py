"""Write one HTML file on a study or a run, from its records alone.

    python experiments/report.py output/demo/study
    python experiments/report.py output/demo/pretrain --output pretraining.html

The folder is what another program's --output named: a study, a fine-tuning or a pretraining run, or a folder that
holds a study as `study/`. The page opens from disk with no network. What a folder does not hold, the page says.
"""

import sys
from pathlib import Path

from pydantic import BaseModel, Field

from mien.data_pipelines.manifest import Manifest, ManifestError
from mien.platform import report_costs, report_data, report_results, report_runs, report_search, report_verdict
from mien.platform.config import parse
from mien.platform.pages import Html, Section, page, paragraph
from mien.platform.records import RecordsError, Run, Study, flat, read
from mien.platform.storage import write_whole


class ReportConfig(BaseModel, frozen=True, extra="forbid"):
    """What to report on."""

    folder: str = Field(
        "output/demo/study", description="folder of a study or of a run; may be given as the first word"
    )


def report(folder: Path) -> str:
    """Return the page on a study's or a run's folder; RecordsError if it holds neither."""
    records = read(folder)
    return study_page(records) if isinstance(records, Study) else run_page(records)


def study_page(study: Study) -> str:
    """Return the page on a search: what was found, how it was searched, how it came about."""
    problems = list(study.problems)
    name = study.folder.parent.name if study.folder.name == "study" else study.folder.name
    found = report_verdict.outcome(study.test.scores if study.test else None, "test", study.config)
    winner = study.winning_trial()
    alpha = report_search.alpha_of(winner) if winner else None
    runs = {f"fold {fold}": run for fold, run in study.folds.items()}
    runs |= {"pretraining": study.pretraining} if study.pretraining else {}
    runs |= {"test": study.test} if study.test else {}
    configs = {"the study": study.config} | {name: run.config for name, run in runs.items() if "fold" not in name}
    environments = {"study": study.environment} | {
        name: run.environment for name, run in runs.items() if "fold" not in name
    }
    sections = [
        report_results.result(
            found, "Test", "The test has not been opened yet: evaluate.py does that, once, with the winner."
        ),
        report_data.data(clips(study.folder, configs), runs, study.folds, found.folds if found else {}),
        report_search.trials(study),
        report_search.settings(study),
        report_search.alpha_front(study),
        report_results.folds(found, study.folds),
        report_results.confusions(found),
        report_results.mistakes(study.mistakes, study.folder / "test" / "mistakes", problems),
        report_runs.curves(study.pretraining, study.folds),
        report_runs.reconstructions(study.pretraining, problems),
        report_costs.cost(study),
        report_costs.environment(environments, configs),
    ]
    lead = report_verdict.verdict(found, report_verdict.study_subject(study, alpha), report_verdict.UNOPENED)
    eyebrow = f"A study by mien: {len(study.trials)} trials, {len(study.folds)} folds"
    return page(name, eyebrow, [*lead, *complaints(problems)], sections)


def run_page(run: Run) -> str:
    """Return the shorter page on one run: its scores if it has any, its curves, its pictures, its cost."""
    problems = list(run.problems)
    found = report_verdict.outcome(run.scores, "validation", run.config)
    sections: list[Section] = []
    if found:
        sections += [report_results.result(found, "Scores", ""), report_results.confusions(found)]
    sections.append(report_data.data(clips(run.folder, {"run": run.config}), {"this run": run}, {}, {}))
    sections.append(report_runs.curves(None, {}, alone=run))
    sections += [report_runs.reconstructions(run, problems)] if run.pictures or not found else []
    sections.append(report_costs.cost(None, alone=run))
    sections.append(report_costs.environment({"run": run.environment}, {"the run": run.config}))
    lead = report_verdict.run_verdict(run, found)
    return page(run.folder.resolve().name, "A run by mien", [*lead, *complaints(problems)], sections)


def complaints(problems: list[str]) -> list[Html]:
    """Return a warning that lists the records which could not be read."""
    return [paragraph("Not everything could be read: ", "; ".join(problems), ".", css="alert")] if problems else []


def clips(folder: Path, configs: dict[str, dict]) -> list[report_data.Clips]:
    """Return the numbers of every manifest that the settings name and that can be read, also if all was moved."""
    named = [Path(value) for config in configs.values() for _, value in flat(config) if str(value).endswith(".parquet")]
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


def main(argv: list[str]) -> int:
    """Write the report and print where it is; return the exit code."""
    positional = argv[:1] if argv and not argv[0].startswith("-") and "=" not in argv[0] else []
    call = parse(ReportConfig, [f"folder={word}" for word in positional] + argv[len(positional) :], __doc__)
    folder = Path(call.config.folder)
    if call.dry_run:
        print(f"would report on {folder}")
        return 0
    try:
        html = report(folder)
    except RecordsError as error:
        print(error, file=sys.stderr)
        return 2
    output = call.output or folder / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, html)
    print(f"{output} ({len(html.encode()) / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
