"""Made-up benchmarks in the published formats, a few lines each, as checkouts that `evaluate fetch` takes."""

from __future__ import annotations

import csv
import io
import json
from argparse import Namespace
from pathlib import Path

from data_files import picture, write
from tbac_uniimage.training.evaluation import fetch

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "cow", "count": 2}],
        "exclude": [{"class": "cow", "count": 3}],
        "prompt": "a photo of two cows",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "car", "count": 1, "color": "red"},
            {"class": "dog", "count": 1, "color": "white"},
        ],
        "prompt": "a photo of a red car and a white dog",
    },
]
OBJECTS = ["person", "bench", "cow", "car", "dog"]
DPG = {
    "alpha": ("A small red house beside a lake.", ["Is there a house?", "Is the house red?"]),
    "beta": ("Two boats on calm water.", ["Are there boats?", "Are there two boats?", "Is the water calm?"]),
    "gamma": ("A lamp.", ["Is there a lamp?", "Is it lit?"]),
}
TIIF = {"text": ("A sign that says OPEN", 1), "style": ("A tree in oil", 2)}
SCRIPT = '''
raw_prompt = """Look.\\n##YNQuestions##"""
raw_prompt_1 = """Answer these:\\n##YNQuestions##"""
raw_prompt_2 = """One line each:\\n##YNQuestions##"""


def generate_with_prompt(text, url):
    return [
        {"role": "system", "content": "You look at pictures."},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]
'''
EDITS = {
    "10": {"id": "animal/a.png", "prompt": "make the dog blue", "edit_type": "adjust"},
    "11": {"id": "animal/b.png", "prompt": "remove the cat", "edit_type": "remove"},
    "12": {"id": "animal/a.png", "prompt": "paint it in oil", "edit_type": "style"},
}
TYPES = ("adjust", "remove", "style")


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def table() -> str:
    """A table of DPG-Bench, whose first row the official script loses."""
    file = io.StringIO()
    names = ["item_id", "proposition_id", "dependency", "tuple", "question_natural_language"]
    out = csv.DictWriter(file, names)
    out.writeheader()
    for item, (_, questions) in DPG.items():
        for number, question in enumerate(questions, 1):
            parents = "0" if number == 1 else "1,2" if number == 3 else "1"
            kind = "entity - whole (x)" if number == 1 else "attribute - color (x)"
            out.writerow(dict(zip(names, (item, number, parents, kind, question), strict=True)))
    return file.getvalue()


def tiif() -> dict[str, str]:
    files = {"eval/eval_with_vlm.py": SCRIPT}
    for kind, (prompt, number) in TIIF.items():
        prompts = [
            {"type": kind, "short_description": f"{prompt} {n}", "long_description": f"{prompt} {n}, long"}
            for n in range(number)
        ]
        asked = [
            {
                "type": kind,
                "yn_question_list": [f"Is it {prompt}?", f"Is it {n}?"],
                "yn_answer_list": ["yes", "Yes"],
            }
            for n in range(number)
        ]
        files[f"data/testmini_prompts/{kind}_prompts.jsonl"] = lines(prompts)
        files[f"data/testmini_eval_prompts/{kind}_eval_prompts.jsonl"] = lines(asked)
    return files


def checkouts(folder: Path) -> Path:
    """Checkouts of all the repositories, in a folder each."""
    write(
        folder / "geneval",
        {
            "prompts/evaluation_metadata.jsonl": lines(GENEVAL),
            "evaluation/object_names.txt": "\n".join(OBJECTS) + "\n",
        },
    )
    prompts = {f"dpg_bench/prompts/{item}.txt": prompt for item, (prompt, _) in DPG.items()}
    write(folder / "ELLA", {"dpg_bench/dpg_bench.csv": table()} | prompts)
    write(folder / "TIIF-Bench", tiif())
    write(
        folder / "ImgEdit",
        {
            "Benchmark/Basic/basic_edit.json": json.dumps(EDITS),
            "Benchmark/Basic/prompts.json": json.dumps({t: f"{t}: <edit_prompt>" for t in TYPES}),
            "Benchmark/singleturn/animal/a.png": picture((200, 30, 30), (96, 64)),
            "Benchmark/singleturn/animal/b.png": picture((30, 30, 200), (50, 70)),
        },
    )
    asked = {
        "vqa_list": [["Is there a cow?", "Yes"], ["How many cows?", "two"]],
        "skills": ["object", "count"],
    }
    prompt = {"prompt": "two cows", "atom_count": 3} | asked
    write(folder / "GenEval2", {"geneval2_data.jsonl": lines([prompt])})
    return folder


def fetched(folder: Path, *names: str) -> Path:
    """A cache with the made-up sets, as the command fetches them."""
    given = checkouts(folder / "checkouts")
    options = Namespace(names=names, checkouts=[given], yes=True, modified=True, sets=folder / "sets")
    fetch.run(options)
    return folder / "sets"
