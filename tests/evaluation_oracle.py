"""Compare the scorers with what the official ones answered to made-up input.

    python tests/evaluation_oracle.py tests/data/evaluation

runs every record of every file of a folder of that layout, prints a line per file and exits with 1 on any
failure. Texts, verdicts and counts are compared exactly, floats to 1e-6 (WISE prints two decimals: 0.005).
Where the official code stops, this one has to refuse with a ValueError.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tbac_uniimage.training.evaluation import words
from tbac_uniimage.training.evaluation.detectors import colours, instances, verdict
from tbac_uniimage.training.evaluation.sets import (
    dpg,
    gedit,
    geneval,
    geneval2,
    imgedit,
    risebench,
    tiif,
    wise,
)

TOLERANCE = 1e-6
TWO_DECIMALS = 0.005 + 1e-9
REFUSED = "refused"

Check = tuple[str, Any, Any] | tuple[str, Any, Any, float]  # what, ours, official, tolerance


def differences(ours: Any, official: Any, tolerance: float, where: str = "") -> Iterator[str]:
    """A line for every place at which two JSON values differ; None stands for NaN."""
    if isinstance(official, Mapping):
        if not isinstance(ours, Mapping) or set(ours) != set(official):
            yield f"{where}: {ours} for {official}"
            return
        for key, value in official.items():
            yield from differences(ours[key], value, tolerance, f"{where} {key}")
    elif isinstance(official, list):
        if not isinstance(ours, list | tuple) or len(ours) != len(official):
            yield f"{where}: {ours} for {official}"
            return
        for number, (a, b) in enumerate(zip(ours, official, strict=True)):
            yield from differences(a, b, tolerance, f"{where} {number}")
    elif isinstance(official, float) or isinstance(ours, float):
        same = ours is not None and official is not None and abs(ours - official) <= tolerance
        nothing = [value is None or value != value for value in (ours, official)]
        if not (all(nothing) or (not any(nothing) and same)):
            yield f"{where}: {ours} for {official}"
    elif ours != official or isinstance(ours, bool) != isinstance(official, bool):
        yield f"{where}: {ours!r} for {official!r}"


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function's result, or REFUSED if it raises ValueError."""
    try:
        return function(*arguments)
    except ValueError:
        return REFUSED


# GenEval


LIMITS = {
    "threshold": "score",
    "counting_threshold": "counting_score",
    "max_objects": "objects",
    "max_overlap": "overlap",
    "position_threshold": "position",
}


def limits_of(options: Mapping[str, Any]) -> verdict.Limits:
    """The official script's options."""
    given = {LIMITS[name]: float(value) for name, value in options.items()}
    if "objects" in given:
        given["objects"] = int(given["objects"])
    return verdict.Limits(**given)


def geneval_evaluate(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["cases"]:
        found: dict[str, list[verdict.Seen]] = {}
        named = {}
        for detection in case["detections"]:
            seen = verdict.Seen(np.array([*detection["box"], detection["score"]], np.float32))
            found.setdefault(detection["class"], []).append(seen)
            named[id(seen)] = detection.get("color")
        calls = []

        def ask(objects, name, named=named, calls=calls):
            calls.append({"class": name, "n": len(objects)})
            return [named[id(seen)] for seen in objects]

        limits = limits_of(case["options"])
        kept = verdict.kept(found, case["metadata"]["tag"], limits)
        correct, reason = verdict.verdict(kept, case["metadata"], ask, limits)
        boxes = {name: [seen.box.tolist() for seen in objects] for name, objects in kept.items()}
        ours = {"correct": correct, "reason": reason, "kept": boxes, "color_calls": calls}
        official = dict(case["official"])
        if case.get("reason_order_free"):
            ours["reason"], official["reason"] = map(in_any_order, (ours["reason"], official["reason"]))
        if case.get("order_sensitive"):
            for result in (ours, official):
                result["kept"] = {name: sorted(objects) for name, objects in result["kept"].items()}
                del result["correct"], result["reason"]
        yield case["id"], ours, official


def in_any_order(reason: str) -> list[str]:
    """A reason's words, sorted line by line: " and " joins relations in any order."""
    return [" ".join(sorted(line.split())) for line in reason.split("\n")]


def geneval_position(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["cases"]:
        a, b = (np.array(case[name], np.float32) for name in "ab")
        yield str(case["a"]), verdict.relations(a, b, case["position_threshold"]), case["relations"]


def geneval_iou(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["cases"]:
        yield str(case["a"]), float(verdict.iou(np.array(case["a"]), np.array(case["b"]))), float(case["iou"])


def geneval_crops(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["cases"]:
        options = case["options"]
        mask = None if case["mask"] is None else np.array(case["mask"], bool)
        shown = colours.crop(
            Image.fromarray(np.array(case["pixels"], np.uint8)),
            np.array(case["box"], np.float32),
            mask,
            options.get("bgcolor", colours.BACKGROUND),
            whole=options.get("crop", "1") != "1",
        )
        yield case["note"], np.array(shown).tolist(), case["crop"]


def geneval_color_texts(data: Mapping[str, Any]) -> Iterator[Check]:
    yield "colours", list(verdict.COLOURS), data["colors"]
    yield data["class"], colours.colour_texts(data["class"]), data["texts"]
    official = data["identity_logits_give"]
    largest = torch.eye(len(official), len(verdict.COLOURS)).argmax(1).tolist()
    yield "order", [verdict.COLOURS[i] for i in largest], official


def geneval_detector_postprocess(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["cases"]:
        found = instances.instances(
            torch.tensor(case["class_logits"]),
            torch.tensor(case["mask_logits"]),
            tuple(case["valid_size"]),
            tuple(case["original_size"]),
            case["max_per_image"],
        )
        ours = [
            {"label": label, "box": box[:4], "score": box[4], "mask": mask}
            for label, box, mask in zip(
                found.labels.tolist(), found.boxes.tolist(), found.masks.int().tolist(), strict=True
            )
        ]
        yield case["note"], sorted(ours, key=by_score), sorted(case["official"], key=by_score)


def by_score(found: Mapping[str, Any]) -> tuple:
    """The surest first; equal scores have no order."""
    return -round(found["score"], 6), found["label"], found["box"]


def geneval_summary(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["cases"]:
        found = geneval.summary(case["results"])
        tasks = {
            name: {"mean": geneval.mean(right), "correct": sum(right), "images": len(right)}
            for name, right in found["tasks"].items()
        }
        ours = {
            "printed": printed(found, tasks),
            "total_images": found["images"],
            "total_prompts": found["prompts"],
            "correct_images": found["correct images"],
            "correct_prompts": found["correct prompts"],
            "tasks": tasks,
            "overall": found["overall"],
        }
        yield case["note"], ours, case["official"]
        yield case["note"] + " (order)", list(tasks), list(case["official"]["tasks"])


def printed(found: Mapping[str, Any], tasks: Mapping[str, Any]) -> str:
    """The same numbers as the official script prints them."""
    lines = ["Summary", "=======", f"Total images: {found['images']}", f"Total prompts: {found['prompts']}"]
    lines += [f"% correct {what}: {found[f'correct {what}']:.2%}" for what in ("images", "prompts")]
    lines += ["", "Task breakdown", "=============="]
    lines += [f"{name:<16} = {t['mean']:.2%} ({t['correct']} / {t['images']})" for name, t in tasks.items()]
    return "\n".join([*lines, "", f"Overall score (avg. over tasks): {found['overall']:.5f}", ""])


def geneval_files(data: Mapping[str, Any]) -> Iterator[Check]:
    folders = {str(Path(path).parent) for path in data["files"]}
    for path in data["files"]:
        is_file = path not in folders
        yield path, is_file and geneval.looked_at(path), path in data["evaluated"]


# DPG-Bench


def dpg_bench(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["cases"]:
        yield case["note"], dpg_case(case), dpg_official(case["official"])


def dpg_case(case: Mapping[str, Any]) -> dict[str, Any]:
    """What this code makes of a table, pictures and answers."""
    try:
        table = dpg.read_table(case["rows"])
    except ValueError:
        return {"crashed": True, "failed": {}, "pictures": {}, "L1": {}, "L2": {}, "score": None}
    graded, failed = {}, {}
    for file, shown in case["pictures"].items():
        item = file.split(".")[0]
        if shown is None:
            failed[file] = "no picture"
        elif item not in table:
            failed[file] = "no such item"
        else:
            tiles = case["answers"][shown][: case["pic_num"]]
            scores = [{int(n): float(said == "yes") for n, said in tile.items()} for tile in tiles]
            try:
                graded[file] = dpg.grade(table[item], scores)
            except dpg.MissingParent as parent:
                failed[file] = str(parent)
    figures = dpg.totals(graded.values())
    score = figures.pop("overall", None)
    return {
        "crashed": False,
        "failed": failed,
        "pictures": {file: {"tiles": list(g.tiles), "mean": g.mean} for file, g in graded.items()},
        "score": score,
        "L1": {name: value for name, value in figures.items() if "-" not in name},
        "L2": {name: value for name, value in figures.items() if "-" in name},
    }


def dpg_official(official: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded result, with this code's words for why a picture failed."""
    reasons = {"cannot identify image file": "no picture", "'NoneType' object": "no such item"}
    failed = {
        file: next((ours for theirs, ours in reasons.items() if why.startswith(theirs)), why)
        for file, why in official["failed"].items()
    }
    known = {key: official.get(key) for key in ("crashed", "pictures", "score", "L1", "L2")}
    return known | {"failed": failed}


# TIIF-Bench


OFFICIAL_GROUPS = {
    "Overall average score of 9 sub-attributes": "overall",
    "Basic_Following_Overall - Overall": "basic overall",
    "Advanced_Following_Overall - Overall": "advanced overall",
    "Basic_Attribute - Attribute": "attribute",
    "Basic_Relation - Relation": "relation",
    "Basic_Reasoning - Reasoning": "reasoning",
    "Advanced_Attribute+Relation - Attribute+Relation": "attribute+relation",
    "Advanced_Attribute+Reasoning - Attribute+Reasoning": "attribute+reasoning",
    "Advanced_Relation+Reasoning - Relation+Reasoning": "relation+reasoning",
    "Advanced_Text Generation - Text Generation": "text",
    "Advanced_Style Control - Style Control": "style",
    "Real_World_Following_Overall - Overall": "real world",
    "Real_Complex - Complex": "real world",
}
FOUR_DECIMALS = 0.5e-4 + 1e-9  # from the official figure, which is rounded, to ours, which is not


def tiif_summary(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["cases"]:
        official = case["official"]
        groups: dict[str, Any] = {name: {} for name in OFFICIAL_GROUPS}
        means = {}
        accuracy: dict[str, Any] = {}
        for model, attributes in case["judgements"].items():
            shares = {
                (attribute, length): tiif.of_files(files)
                for attribute, lengths in attributes.items()
                for length, files in lengths.items()
            }
            rounded = {key: None if share is None else round(share, 4) for key, share in shares.items()}
            figures = tiif.totals(rounded)
            for theirs, name in OFFICIAL_GROUPS.items():
                groups[theirs][model] = [figures.get(f"{name} ({length})") for length in tiif.LENGTHS]
            means[model] = tiif.mean(shares.values())
            accuracy[model] = {f"{attribute}|{length}": s for (attribute, length), s in rounded.items()}
        recorded = {model: dict(row) for model, row in official["accuracy"].items()}
        their_means = {model: row.pop("Mean_Accuracy") for model, row in recorded.items()}
        # an attribute that only another model has is an empty cell in the official table
        accuracy = {m: dict.fromkeys(recorded.get(m, ())) | row for m, row in accuracy.items()}
        yield case["note"], accuracy, recorded
        yield case["note"] + " (means)", means, their_means, FOUR_DECIMALS
        yield case["note"] + " (groups)", groups, official["groups"], FOUR_DECIMALS


def tiif_text(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["answers"]:
        ours = attempt(tiif.read, case["text"], case["questions"])
        yield case["text"], ours, case["official"].get("answers", REFUSED)
    for case in data["words"]:
        truth, read, official = case["truth"], case["read"], case["official"]
        yield f"gned {truth}", words.gned(truth, read), official["gned"]
        yield f"recall {truth}", attempt(words.recall, truth, read), official.get("recall", REFUSED)


# ImgEdit-Bench


def imgedit_bench(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["texts"]:
        official = case.get("official")
        yield (
            case["text"],
            attempt(imgedit.read_published, case["text"]),
            REFUSED if official is None else official,
        )
    for case in data["suites"]:
        ours = imgedit_suite(case["edits"], case["judgements"])
        yield case["note"], ours, REFUSED if "error" in case["official"] else case["official"]
    for case in data["uge"]:
        averages = readable(case["judgements"]).values()
        ours = round(sum(averages) / len(averages), 2) if averages else None
        yield "UGE", ours, case["official"]


def readable(judgements: Mapping[str, Any]) -> dict[str, float]:
    """Scores of the answers that can be read."""
    scores = {key: attempt(imgedit.read_published, text) for key, text in judgements.items()}
    return {key: score for key, score in scores.items() if score != REFUSED}


def imgedit_suite(edits: Mapping[str, str], judgements: Mapping[str, Any]) -> Any:
    """Averages, types and the overall scores of others; REFUSED if a call failed."""
    if not all(isinstance(said, str) for said in judgements.values()):
        return REFUSED
    averages = readable(judgements)
    scores: dict[str, list[float]] = {}
    for key, score in averages.items():
        if key in edits:
            scores.setdefault(edits[key], []).append(score)
    types = imgedit.type_means(scores)
    overall = sum(types.values()) / len(types) if types else None
    exact = imgedit.type_means(scores, imgedit.CORRECTED).values()
    pictures = sum(averages.values()) / len(averages) if averages else None
    return {
        "averages": averages,
        "types": types,
        "mean_of_types_unrounded": sum(exact) / len(exact) if exact else None,
        "overall_elsewhere": {
            "GenEditEvalKit: mean of the rounded type means, rounded": None
            if overall is None
            else round(overall, 2),
            "BAGEL and TorchUMM: mean over pictures, rounded": None
            if pictures is None
            else round(pictures, 2),
        },
    }


# GEdit-Bench


def gedit_bench(data: Mapping[str, Any]) -> Iterator[Check]:
    yield "groups", list(gedit.GROUPS), data["groups"]
    for case in data["texts"]:
        ours = attempt(gedit.read, case["text"])
        yield case["text"], ours, REFUSED if case["official"] is False else case["official"]
    for case in data["evaluate"]:
        ours = attempt(gedit.evaluate, case["answers"])
        yield case["note"], ours, case.get("official", REFUSED)
        yield case["note"] + " (pictures)", [2, 1] * (len(case["answers"]) // 2), case["pictures_shown"]
    for case in data["statistics"]:
        rows = [row for row in case["rows"] if row["language"] == case["language"]]
        ours = {}
        for ending, part in (("", rows), ("_intersection", [row for row in rows if row["intersection"]])):
            for kind, means in gedit.averages(part).items():
                means[f"avg_{kind}"] = means.pop("avg")
                ours[f"{kind}{ending}"] = means
        yield case["note"], ours, case["official"]


# WISE


def wise_bench(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["texts"]:
        yield case["text"], wise.read_legacy(case["text"]), case["legacy"]
        yield case["text"], wise.read_verified(case["text"]), case["verified"]
    for case in data["cases"]:
        version, category, records = case["version"], case["category"], case["records"]
        ours: dict[str, Any] = {"overall": None, "categories": {}, "aborted": True}
        if not wise.missing(version, category, records):
            scores = wise.scores_by_category(version, records)
            figures = wise.totals(version, scores)
            overall = figures.get("overall") if category == "all" else None
            categories = {name: [figures[name], len(values)] for name, values in scores.items()}
            ours = {"overall": overall, "categories": categories, "aborted": False}
        yield case["note"], ours, case["official"], TWO_DECIMALS


# GenEval 2


def geneval_2(data: Mapping[str, Any]) -> Iterator[Check]:
    for asked, official in data["accepted"].items():
        question, answer = asked.split(" | ")
        yield asked, [geneval2.asked(question), list(geneval2.accepted(question, answer))], official
    for number, case in enumerate(data["cases"]):
        figures = geneval2.totals(
            [(p["atom_count"], p["skills"], p["probabilities"]) for p in case["prompts"]]
        )
        ours = {
            "soft_tifa_am": figures["overall (AM)"],
            "soft_tifa_gm": figures["overall (GM)"],
            "skills_am": {skill: figures[skill] for skill in geneval2.SKILLS if skill in figures},
            "atomicity_gm": {n.split()[0]: value for n, value in figures.items() if n.endswith(" atoms")},
        }
        yield case.get("note", str(number)), ours, case["official"]


# RISEBench


def rise_bench(data: Mapping[str, Any]) -> Iterator[Check]:
    for case in data["texts"]:
        official = case["official"]
        yield case["text"], attempt(risebench.read, case["text"]), official if official else REFUSED
    empty = {"column exists, empty here": math.nan}
    for case in data["rows"]:
        row = {key: value for key, value in case.items() if key != "official"}
        if row["consistency_free"] == "no such column":
            del row["consistency_free"]
        else:
            row["consistency_free"] = empty.get(row["consistency_free"], row["consistency_free"])
        ours = {"score": risebench.score(row), "complete": risebench.complete(row)}
        yield str(case), ours, case["official"]


FILES: dict[str, Callable[[Mapping[str, Any]], Iterator[Check]]] = {
    "geneval_evaluate.json": geneval_evaluate,
    "geneval_position.json": geneval_position,
    "geneval_iou.json": geneval_iou,
    "geneval_crops.json": geneval_crops,
    "geneval_color_texts.json": geneval_color_texts,
    "geneval_detector_postprocess.json": geneval_detector_postprocess,
    "geneval_summary.json": geneval_summary,
    "geneval_files.json": geneval_files,
    "dpg.json": dpg_bench,
    "tiif_summary.json": tiif_summary,
    "tiif_text.json": tiif_text,
    "imgedit.json": imgedit_bench,
    "gedit.json": gedit_bench,
    "wise.json": wise_bench,
    "geneval2.json": geneval_2,
    "risebench.json": rise_bench,
}


def failures_of(path: Path) -> tuple[int, list[str]]:
    """Number of checks of a file, and a line for each that fails."""
    checks, failures = 0, []
    for what, ours, official, *tolerance in FILES[path.name](json.loads(path.read_text(encoding="utf-8"))):
        checks += 1
        found = list(differences(ours, official, *(tolerance or [TOLERANCE])))
        if found:
            failures.append(f"{what}:{found[0]}")
    return checks, failures


def main(folder: Path) -> int:
    """Check every file of a folder. Returns the exit code."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        print(f"{folder} holds no recorded answers (*.json).")
        return 1
    failed = False
    for path in paths:
        if path.name not in FILES:
            print(f"{path.name}: nothing here computes it")
            failed = True
            continue
        checks, failures = failures_of(path)
        print(f"{path.name}: {checks} cases, {len(failures)} failures")
        for line in failures:
            print(f"  {line[:300]}")
        failed |= bool(failures) or not checks
    return int(failed)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1])))
