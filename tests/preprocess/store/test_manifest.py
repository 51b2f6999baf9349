"""manifest.json and its content hash."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from hvae_hpc.config.loader import dump
from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.recipes.recipe import GridConfig
from hvae_hpc.preprocess.store.manifest import (
    MANIFEST_SCHEMA,
    CaseEntry,
    Manifest,
    ShardEntry,
    SkippedEntry,
    compute_content_hash,
    read_manifest,
    write_manifest,
)
from tests import ROOT
from tests.preprocess.scans import tiny_recipe


def make_manifest(recipe=None, tumour_px=30):
    plain = dump(recipe or tiny_recipe())
    shards = (ShardEntry(file="shard-a.h5", pairs=1, content_sha256="a" * 64),)
    cases = (
        CaseEntry(
            case_id="c1",
            shard="shard-a.h5",
            first_row=0,
            pairs=1,
            slices=(3,),
            tumour_px=(tumour_px,),
            spacing_mm=(1.0, 1.0),
            sources={"c1.nii.gz": "b" * 64},
        ),
    )
    return Manifest(
        schema=MANIFEST_SCHEMA,
        name=plain["name"],
        modality=plain["modality"],
        recipe=plain,
        size_px=(16, 16),
        shards=shards,
        cases=cases,
        skipped=(),
        content_hash=compute_content_hash(plain, shards, cases),
    )


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    manifest = replace(make_manifest(), skipped=(SkippedEntry(case_id="c2", reason="no label"),))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_words_of_the_recipe_do_not_change_the_content_hash_but_its_rules_do():
    plain = make_manifest()
    renamed = make_manifest(tiny_recipe(name="other", about="what it is"))
    resized = make_manifest(tiny_recipe(grid=GridConfig(size_px=(16, 16), centre="tumour")))
    assert renamed.content_hash == plain.content_hash
    assert resized.content_hash != plain.content_hash
    assert make_manifest(tumour_px=31).content_hash != plain.content_hash


def test_a_folder_without_manifest_is_told_how_to_get_one(tmp_path):
    with pytest.raises(
        UserError, match=r"no manifest.json in .*python -m hvae_hpc.preprocess RECIPE --raw DIR"
    ):
        read_manifest(tmp_path)


def test_an_edited_manifest_is_refused(tmp_path):
    write_manifest(tmp_path, make_manifest())
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"c1"', '"c9"'))
    with pytest.raises(UserError, match="edited or damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 99}, "schema 99, expected 1"), ({"colour": "red"}, "unknown key 'colour'")],
)
def test_a_manifest_of_another_format_is_refused(tmp_path, change, message):
    (tmp_path / "manifest.json").write_text(json.dumps({**dump(make_manifest()), **change}))
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_a_truncated_manifest_is_refused(tmp_path):
    write_manifest(tmp_path, make_manifest())
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"manifest.json: not valid JSON"):
        read_manifest(tmp_path)


def test_manifests_and_splits_need_the_standard_library_only():
    code = (
        "import sys, hvae_hpc.preprocess.store.manifest, hvae_hpc.preprocess.store.splits, hvae_hpc.preprocess.recipes.recipe;"
        "print(sorted({'numpy', 'h5py', 'nibabel', 'torch'} & set(sys.modules)))"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == "[]\n"
