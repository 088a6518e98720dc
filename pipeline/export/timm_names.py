"""A student of timm's in timm's own words: names of weights, and the json by which timm builds it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import MachineError
from pipeline.export.preprocessing import Preprocessing
from pipeline.export.student import Student
from pipeline.params.size import sides
from pipeline.runs.teacher_record import TeacherRecord

FAMILY = "timm"
# Of the checkpoint whose configuration the model had, and not of this one.
_OF_ANOTHER = (
    "tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "url", "hf_hub_id", "label_offset",
    "test_input_size", "test_crop_pct", "min_input_size",
)  # fmt: skip


def is_of_timm(student: Student) -> bool:
    """Say whether timm can read the student: timm has a name for each of its weights."""
    spec, network = student.spec, student.network
    # A distilled transformer has two classifiers for timm, and one for us.
    named = set(network.library_names.values()) == network.state_dict().keys()
    return spec.family == FAMILY and spec.classifier_width is None and named


def shown(teacher: TeacherRecord) -> str:
    """Return the network of a teacher in the words of params.yaml."""
    return f"{FAMILY}/{teacher.network}" if teacher.family == FAMILY else teacher.network


def on_hub(teacher: TeacherRecord) -> str:
    """Return the name on the Hub of a teacher of timm that started from timm's weights; "" of any other.

    Raises:
        MachineError: timm is not installed.
    """
    # Of a teacher with weights of its own the network alone is timm's.
    if teacher.family != FAMILY or teacher.first != "imagenet":
        return ""
    try:
        import timm
    except ModuleNotFoundError:
        raise MachineError(
            f"The name of teacher '{teacher.teacher}' on the Hub needs timm, which is not installed. Install it with: "
            "pip install -e '.[timm]'"
        ) from None

    config = timm.get_pretrained_cfg(teacher.network)
    return f"timm/{config.architecture}.{config.tag}" if config and config.tag else ""


def weights(student: Student) -> dict[str, Tensor]:
    """Return the weights by timm's names."""
    state = student.network.state_dict()
    return {name: state[ours] for name, ours in student.network.library_names.items()}


def _crop(shown: Preprocessing) -> dict[str, Any]:
    """Return the crop in timm's words, which has them for a `resize` in the proportions of the image alone."""
    tall, wide = sides(shown.resize)
    if tall * shown.width != wide * shown.height:
        return {}
    return {"crop_pct": shown.height / tall, "crop_mode": "center"}


def write_config(student: Student, path: Path) -> None:
    """Write the `config.json` from which `timm.create_model("local-dir:...")` builds the student."""
    from timm.models._hub import save_config_for_hf

    shown = student.preprocessing
    preprocessing = {
        "input_size": list(shown.shape),
        "mean": list(shown.mean),
        "std": list(shown.std),
        "interpolation": "bilinear",
        **_crop(shown),
        "num_classes": len(shown.classes),
    }

    # An attribute of a module is a module or a tensor to the type checker.
    network: Any = student.network
    arguments: dict[str, Any] = {"in_chans": shown.channels}
    if network.model.pretrained_cfg["fixed_input_size"]:
        arguments["img_size"] = [shown.height, shown.width]
    labels = {"label_names": list(shown.classes), "pretrained_cfg": preprocessing}
    save_config_for_hf(network.model, str(path), model_config=labels, model_args=arguments)

    config = json.loads(path.read_text())
    kept = {key: x for key, x in config["pretrained_cfg"].items() if key not in _OF_ANOTHER}
    path.write_text(json.dumps(config | {"pretrained_cfg": kept | preprocessing}, indent=2) + "\n")
