"""Channel consistency: tables and pictures of a matching made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_fixtures import Links, Project

from pipeline.errors import DamagedArtifactError, MissingArtifactError


def matched(project: Project) -> Path:
    """Add a matching of two channels, 2x2 maps, to the project; return the file of its arrays."""
    project.params["matchings"] = {"kcd": {"pictured": 1}}
    asked = {"pair": "big-small", "teacher": "big", "student": "small", "matching": "kcd"}
    project.params["matches"] = {"big-small-kcd": asked}
    project.write_params()
    numbers = {
        "gamma": {"identity": 1.25, "random": 0.5, "greedy": 31.5, "bipartite": 30.0},
        "dead": {"teacher": 2, "student": 0},
        "overlap": {"plain": {"top10": 18.0}, "students": {"top10": 32.0}, "transformed": {"top10": 74.0}},
        "theta0": {"kl": 0.89, "l2": 277.19, "l2_transformed": 189.93},
        "alone": {"l2": 7.0, "l2_transformed": 5.0},  # the store holds no logits
    }
    by_seed = {str(seed): numbers | {"dead": {"teacher": 2 + seed, "student": 0}} for seed in project.seeds}
    project.json("metrics/matchings/big-small-kcd.json", by_seed)
    path = project.folder / "artifacts/matchings/big-small/big-small-kcd/measured/0.npz"
    path.parent.mkdir(parents=True)
    maps = project.random.normal(size=(3, 2, 2, 2)).astype(np.float32)
    np.savez(path, teacher_map=maps[0], transformed_map=maps[1], student_map=maps[2])
    return path


def test_consistency_is_shown_in_tables_and_pictures(project: Project) -> None:
    matched(project)
    project.metrics("students/big-small/kd/0", teacher_kl=0.25, teacher_l2=3.5)
    for seed in (1, 2):
        project.metrics(f"students/big-small/kd/{seed}", teacher_kl=0.25, teacher_l2=3.5)
    html = (project.run() / "index.html").read_text()
    page_links = Links(html)
    assert not page_links.loaded or all(link.startswith("data:") for link in page_links.loaded)
    for words in (
        "Channel consistency",
        "31.500",
        "30.000",
        "277.190",
        "189.930",
        "32.0",
        "74.0",
        "0.250",
    ):
        assert words in page_links.text, words
    assert "3.0" in page_links.text  # dead channels of the teacher, the mean over seeds
    assert page_links.text.count("big-small-kcd: ") == 5
    assert "class dog" in page_links.text


def test_a_pair_without_matchings_has_no_such_section(project: Project) -> None:
    assert "Channel consistency" not in (project.run() / "index.html").read_text()


def test_a_missing_matching_is_reported_with_its_stage(project: Project) -> None:
    path = matched(project)
    path.write_bytes(b"nothing")
    with pytest.raises(DamagedArtifactError, match="dvc repro match_channels@big-small-kcd"):
        project.collect()
    path.unlink()
    with pytest.raises(MissingArtifactError, match="dvc repro match_channels@big-small-kcd"):
        project.collect()
