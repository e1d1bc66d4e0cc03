"""A study folder with made-up but plausible records, for tests of the report and to look at it without a search.

python tests/experiments/fake_study.py FOLDER && python experiments/report.py FOLDER/study
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import yaml

from mien.data_pipelines import manifest
from mien.platform import pictures

CLASSES = ("neutral", "happy", "surprise", "anger", "sad", "onset_smile", "offset_smile")
NUM_FOLDS = 5
ENVIRONMENT = {
    "commit": "bd565c3a91f2",
    "command": "python experiments/tune_dfew.py --demo --output output/demo",
    "seed": 0,
    "started": "2026-03-01T09:00:00+00:00",
    "versions": {"mien": "0.1.0", "python": "3.11.2", "ray": "2.60.0", "torch": "2.13.0"},
    "cpus": 2,
    "devices": [],
}


def face(rng: np.random.Generator, mouth: float, gaze: tuple[float, float], size: int = 64) -> np.ndarray:
    """Draw a face that smiles by `mouth` and looks by `gaze`, both within -1..1."""
    skin = tuple(int(v) for v in rng.integers(150, 220, 3))
    picture = np.full((size, size, 3), rng.integers(60, 110, 3), np.uint8)
    cv2.ellipse(picture, (size // 2, size // 2), (size * 2 // 5, size * 9 // 20), 0, 0, 360, skin, -1, cv2.LINE_AA)
    for x in (size * 7 // 20, size * 13 // 20):
        cv2.circle(picture, (x, size * 2 // 5), size // 12, (245, 245, 245), -1, cv2.LINE_AA)
        pupil = (round(x + gaze[0] * size / 30), round(size * 2 / 5 + gaze[1] * size / 30))
        cv2.circle(picture, pupil, size // 24, (40, 30, 30), -1, cv2.LINE_AA)
    xs = np.linspace(-1, 1, 15)
    points = np.stack([size / 2 + xs * size / 6, size * 0.68 + mouth * size / 12 * (1 - xs**2)], axis=1)
    cv2.polylines(picture, [points.round().astype(np.int32)], False, (120, 40, 50), 2, cv2.LINE_AA)
    return picture


def clip(rng: np.random.Generator, frames: int = 16) -> np.ndarray:
    """Return frames of one face whose mouth moves; uint8 (t, h, w, c)."""
    who, start, end, gaze = rng.integers(2**32), *rng.uniform(-1, 1, 2), tuple(rng.uniform(-1, 1, 2))
    return np.stack([face(np.random.default_rng(who), m, gaze) for m in np.linspace(start, end, frames)])


def scores(rng: np.random.Generator, skill: float, error: float | None, clips: int, subjects: int) -> dict:
    """Return what scores.py writes, for a model that is right with probability `skill` and off by `error` degrees."""
    confusion = np.zeros((7, 7), int)
    hard = np.array([0.02, 0.3, 0.12, 0.0, -0.1, -0.16, -0.2])
    for _ in range(clips):
        truth = int(rng.choice(7, p=[0.22, 0.2, 0.14, 0.15, 0.13, 0.1, 0.06]))
        right = rng.random() < skill + hard[truth]
        twin = {5: 6, 6: 5}.get(truth, int(rng.integers(7)))
        confusion[truth, truth if right else twin if rng.random() < 0.6 else int(rng.integers(7))] += 1
    recall = np.diag(confusion) / np.maximum(confusion.sum(1), 1)
    uar, war, half = float(recall.mean()), float(np.trace(confusion) / clips), 1.1 / np.sqrt(clips)
    f1 = 2 * np.diag(confusion) / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    named = {"uar": uar, "war": war, "f1_micro": war, "f1_macro": float(f1.mean())}
    named["f1_weighted"] = float((f1 * confusion.sum(1)).sum() / clips)
    found = named | {"confusion": confusion.tolist(), "classes": list(CLASSES)}
    found["per_class"] = {name: {"recall": share} for name, share in zip(CLASSES, recall.tolist(), strict=True)}
    found |= {"num_clips": clips, "num_subjects": subjects, "num_train_clips": 900}
    found["intervals"] = {name: [value - half, value + half] for name, value in named.items()}
    if error is not None:
        found |= {"angular_error_deg": error, "constant_error_deg": 24.0 + float(rng.normal(0, 0.4))}
        found["constant"] = {"pitch_deg": 1.0, "yaw_deg": -2.0, "from": "train"}
        found["intervals"]["angular_error_deg"] = [error - 0.9, error + 1.0]
    return found


def write(path: Path, content: object) -> None:
    """Write JSON, or lines of JSON for a .jsonl, or YAML for a .yaml."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in content))  # type: ignore[attr-defined]
    else:
        path.write_text(json.dumps(content))


def run(rng: np.random.Generator, folder: Path, steps: int, low: float, batch: int, every: int = 1) -> None:
    """Write a run folder whose loss falls to `low`."""
    lines = []
    for step in range(every, steps + 1, every):
        share = step / steps
        loss = low + (1.95 - low) * float(np.exp(-4 * share)) + float(rng.normal(0, 0.05))
        lr = 1e-3 * min(share / 0.1, 0.5 * (1 + float(np.cos(np.pi * max(share - 0.1, 0) / 0.9))))
        line = {"step": step, "train/loss": loss, "train/lr": lr, "train/seconds": 0.21 + float(rng.exponential(0.01))}
        lines.append(line | {"train/grad_norm": 1.0, "train/wait_seconds": 0.002})
        if low > 0.7 and step % (steps // 5) < every:
            score = {
                "val/uar": 0.15 + 0.4 * share**0.6 + float(rng.normal(0, 0.01)),
                "val/angular_error_deg": 22 - 9 * share,
            }
            lines.append({"step": step, **score})
    write(folder / "metrics.jsonl", lines)
    write(folder / "config.yaml", {"loop": {"batch_size": batch, "steps": steps}, "optim": {"lr": 1e-3}})
    write(
        folder / "environment.json", ENVIRONMENT | {"command": f"python experiments/pretrain.py --output {folder.name}"}
    )


def pretraining(rng: np.random.Generator, folder: Path, steps: int) -> None:
    """Write a pretraining run with two sheets of reconstructions."""
    run(rng, folder, steps, 0.55, 32)
    for step, blur in ((steps // 4, 13), (steps, 5)):
        rows: list[list[np.ndarray]] = []
        labels = []
        for index in range(3):
            frames = clip(rng)[::2]
            masked = [np.where(np.kron(rng.random((8, 8, 1)) < 0.25, np.ones((8, 8, 1))) > 0, f, 128) for f in frames]
            made = [cv2.GaussianBlur(frame, (blur, blur), 0) for frame in frames]
            motion = [
                cv2.convertScaleAbs(cv2.subtract(b, a), alpha=3, beta=128)
                for a, b in zip(made, made[1:] + made[-1:], strict=True)
            ]
            rows += [list(frames), [m.astype(np.uint8) for m in masked], made, motion]
            labels += [f"input {index + 1}", "masked", "appearance", "motion"]
        pictures.save(folder / "reconstructions" / f"step_{step:08d}.png", pictures.grid(rows, labels, height=72))


def trial(rng: np.random.Generator, number: int, gaze: bool) -> dict:
    """Return a trial whose alpha trades classes against gaze."""
    alpha = float([1, 0, 8, 0.5, 2, 4, 0.25, 16][number % 8])
    lr = float(10 ** rng.uniform(-4, -2.3))
    params = {"task.alpha": alpha, "optim.lr": lr, "optim.layer_decay": float(rng.choice([0.65, 0.75, 0.85]))}
    params |= {
        "task.pool": str(rng.choice(["region", "patch", "all"])),
        "task.smoothing": round(float(rng.uniform(0, 0.2)), 3),
    }
    params |= {"loop.epochs": 12}
    skill = 0.16 + 0.36 * alpha / (alpha + 0.7) - 0.06 * abs(np.log10(lr) + 3.1)
    error = 10.2 + 0.32 * alpha + 2.5 * abs(np.log10(lr) + 3.1)
    state = (
        "failed"
        if number == 5
        else "running"
        if number == 11
        else "pruned"
        if skill < 0.3 and number % 3
        else "complete"
    )
    done = {"failed": 0, "pruned": 2, "running": 1}.get(state, NUM_FOLDS)
    folds = {}
    for fold in range(1, done + 1):
        uar = float(np.clip(skill + rng.normal(0, 0.025), 0.1, 1))
        folds[str(fold)] = {"uar": uar, "war": uar + 0.03} | (
            {"angular_error_deg": float(error + rng.normal(0, 0.5))} if gaze else {}
        )
    mean = {name: float(np.mean([fold[name] for fold in folds.values()])) for name in next(iter(folds.values()), {})}
    began = 1_772_355_600 + number * 61.0
    return {
        "id": f"{rng.integers(2**32):08x}", "number": number, "params": params, "state": state,
        "folds": folds, "mean": mean,
        "started": began, "ended": None if state == "running" else began + 24 * done + 3,
        "seconds": None if state == "running" else 24.0 * done + 3 + float(rng.uniform(0, 4)),
        "error": "NonFiniteError: the loss must be finite, but step 41 gave nan" if state == "failed" else None,
    }  # fmt: skip


def dataset(rng: np.random.Generator, path: Path, gaze: bool) -> None:
    """Write the manifest that the study's config names."""
    rows = []
    for index in range(1050):
        row = {"video": f"fold{index % 5 + 1}/{index:05d}", "path": f"clip/{index:05d}", "dataset": "synthetic"}
        row |= {
            "subject": f"id{index // 7:03d}",
            "label": int(rng.integers(7)),
            "frames": 16,
            "height": 64,
            "width": 64,
        }
        row |= {"fold": index // 7 % 5 + 1} | ({"pitch": 0.1, "yaw": float(rng.uniform(-1, 1))} if gaze else {})
        rows.append(row)
    rejected = [manifest.Rejected("clip/00977", "0 frames: the folder is empty")]
    manifest.build(rows, CLASSES, "data", "synthetic", rejected, ["subjects from subjects.csv"]).write(path)


def study(root: Path, seed: int = 0, trials: int = 12, gaze: bool = True, test: bool = True, steps: int = 1200) -> Path:
    """Write `root/{prepare,pretrain,study}` and return the study's folder."""
    rng = np.random.default_rng(seed)
    folder = root / "study"
    dataset(rng, root / "prepare" / "dfew.parquet", gaze)
    pretraining(rng, root / "pretrain", steps)
    records = [trial(rng, number, gaze) for number in range(trials)]
    config = {"pretrained": str(root / "pretrain" / "checkpoints" / f"step_{steps:08d}"), "protocol": "honest"}
    config |= {"manifests": {"dfew": str(root / "prepare" / "dfew.parquet")}, "folds": NUM_FOLDS, "trials": trials}
    write(folder / "config.yaml", config | {"objective": "uar"})
    write(folder / "environment.json", ENVIRONMENT)
    for record in records:
        write(folder / "trials" / record["id"] / "trial.json", record)
    best = max((r for r in records if r["state"] == "complete"), key=lambda record: record["mean"]["uar"])
    for fold, found in best["folds"].items():
        place = folder / "trials" / best["id"] / f"fold_{fold}"
        run(rng, place, steps // 4, 0.95, 32, 2)
        error = found.get("angular_error_deg")
        write(
            place / "scores.json",
            scores(rng, found["uar"], error, 168, 24) | {"uar": found["uar"], "war": found["war"]},
        )
    write(root / "study" / "trials" / best["id"] / "fold_2" / "dropped.jsonl", [
        {"row": 88, "video": "fold2/00088", "path": "clip/00088", "reason": "frame 3 is truncated", "position": 412}
    ])  # fmt: skip
    value = best["mean"]["uar"]
    write(folder / "winner.json", {"trial": best["id"], "params": best["params"], "objective": "uar", "value": value})
    if test:
        tested(rng, folder / "test", value - 0.03, best["mean"].get("angular_error_deg"))
    return folder


def tested(rng: np.random.Generator, folder: Path, skill: float, error: float | None) -> None:
    """Write what evaluate.py leaves: scores over folds, and the most confident mistakes as strips."""
    each = {str(k): scores(rng, skill + rng.normal(0, 0.02), error, 210, 30) for k in range(1, NUM_FOLDS + 1)}
    pooled = scores(rng, skill, error, 1050, 150)
    pooled["confusion"] = np.sum([fold["confusion"] for fold in each.values()], axis=0).tolist()
    total = {name: float(np.mean([fold[name] for fold in each.values()])) for name in ("uar", "war")}
    whole = {"folds": each, "total": total, "pooled": pooled, "protocol": "honest", "classes": CLASSES}
    write(folder / "scores.json", whole)
    write(folder / "opened.jsonl", [{"time": "2026-03-01T09:30:00+00:00"}])
    kept = []
    for index in range(8):
        name = f"{index:03d}.jpg"
        pictures.save(folder / "mistakes" / name, pictures.strip(clip(rng), 8, 64))
        truth, wrong = rng.choice(CLASSES, 2, replace=False)
        kept.append(
            {"video": f"fold{index % 5 + 1}/{rng.integers(1050):05d}", "truth": str(truth), "predicted": str(wrong)}
        )
        kept[-1] |= {"confidence": 0.99 - 0.021 * index, "file": name}
    write(folder / "mistakes" / "mistakes.json", kept)


if __name__ == "__main__":
    print(study(Path(sys.argv[1])))
