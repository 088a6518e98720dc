"""Which code a stage runs under its settings: its own, and that of the plug-ins that these name.

Each block of a stage that costs something carries the hash of that code (`StageBlock.code_hash`), so the stage depends
on one json and its data: an edit of one network, table or encoding reruns what names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline import plugin
from pipeline.artifacts import closure
from pipeline.params.base import Block, StageBlock
from pipeline.params.project import Sections


def with_code(blocks: Mapping[str, Block], params: Sections) -> dict[str, Block]:
    """Return the blocks, each `StageBlock` with the hash of its code.

    Args:
        blocks: by file name without its ending, as `project.blocks` gives them.
        params: all of params.yaml.
    """
    return {
        name: block.model_copy(update={"code_hash": closure.digest(modules(name, params))})
        if isinstance(block, StageBlock)
        else block
        for name, block in blocks.items()
    }


def modules(name: str, params: Sections) -> list[str]:
    """Return the modules that the stage of a block runs, for instance "stages.fit_table".

    Args:
        name: of the block, for instance "fits/T-words".
        params: all of params.yaml.
    """
    section, _, rest = name.partition("/")
    key, _, part = rest.partition("/")
    match section:
        case "datasets":
            return ["stages.prepare_data", plugin.module("datasets", params.datasets[key].source)]
        case "teachers":
            teacher = params.teachers[key]
            named = [plugin.module("networks", teacher.family)]
            if part == "train":
                return ["stages.train_teacher", *named]
            stage = "extract_features" if part == "extract" else "check_features"
            return [f"stages.{stage}", *named, *_encodings(teacher.extract.features)]
        case "fits" | "derived":
            table = params.tables[getattr(params, section)[key].table].table
            return ["stages.fit_table", plugin.module("tables", table)]
        case "codes":
            code = params.codes[key]
            return ["stages.encode_views", _family(params, code.teacher), *_encodings([code.code])]
        case "matches":
            match_ = params.matches[key]
            student = plugin.module("networks", params.students[match_.student].family)
            return ["stages.match_channels", _family(params, match_.teacher), student]
        case "self_taught":
            learned = (("methods", "kd"), ("schedules", "final"))
            family = _family(params, params.self_taught[key].teacher)
            return ["stages.train_self_taught", *(plugin.module(*one) for one in learned), family]
    raise AssertionError(f"no stage has the block {name}")


def _family(params: Sections, teacher: str) -> str:
    return plugin.module("networks", params.teachers[teacher].family)


def _encodings(features: Iterable[str]) -> list[str]:
    """Return the modules of the encodings of features "tap:encoding@table"."""
    named = dict.fromkeys(part for name in features for part in name.partition("@")[0].split(":")[1:])
    return [plugin.module("encodings", encoding) for encoding in named]
