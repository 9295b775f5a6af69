from __future__ import annotations

import pickle
from typing import Any

import pytest

from xclip_deploy.errors import AnnotationError

CAPTIONS = {
    "-4wsuPCjDBc_5_15": [["a", "squirrel", "eats"], ["an", "animal"]],
    "ABccE-0p_1_2": [["dogs", "run"]],
    "not_listed_0_1": [[]],
}
EXPECTED = {"ABccE-0p_1_2": ["dogs run"], "-4wsuPCjDBc_5_15": ["a squirrel eats", "an animal"]}


@pytest.fixture
def msvd(disk: Any) -> Any:
    for split in ("train", "val", "test"):
        disk.write(f"{split}_list.txt", "ABccE-0p_1_2\n-4wsuPCjDBc_5_15\n\n")
    disk.add_videos("-4wsuPCjDBc_5_15.avi", "ABccE-0p_1_2.avi")
    return disk


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("protocol", range(6))
def test_several_captions_a_video(
    msvd: Any, captions_by_id: Any, split: str, protocol: int
) -> None:
    msvd.write("raw-captions.pkl", pickle.dumps(CAPTIONS, protocol))
    found = captions_by_id(msvd.open("msvd", split))
    assert found == EXPECTED
    assert list(found) == list(EXPECTED)


def test_captions_of_python_2(msvd: Any, captions_by_id: Any) -> None:
    # {'ABccE-0p_1_2': [['caf\xe9'], ['caf\xc3\xa9']]} as Python 2 wrote it, protocols 0 and 2.
    expect_text = (
        b"(dp0\nS'ABccE-0p_1_2'\np1\n(lp2\n(lp3\nS'caf\\xe9'\np4\naa(lp5\nS'caf\\xc3\\xa9'\naas."
    )
    binary = b"\x80\x02}U\x0cABccE-0p_1_2](]U\x04caf\xe9a]U\x05caf\xc3\xa9aes."
    msvd.write("val_list.txt", "ABccE-0p_1_2\n")
    for content in (expect_text, binary):
        msvd.write("raw-captions.pkl", content)
        assert captions_by_id(msvd.open("msvd", "val")) == {"ABccE-0p_1_2": ["café", "café"]}


@pytest.mark.parametrize("name", ["raw-captions.json", "captions.json"])
def test_captions_in_json(msvd: Any, captions_by_id: Any, name: str) -> None:
    msvd.write_json(
        name,
        {"-4wsuPCjDBc_5_15": [" a squirrel\neats", ["an", "animal"]], "ABccE-0p_1_2": ["dogs run"]},
    )
    assert captions_by_id(msvd.open("msvd", "test")) == EXPECTED


def test_a_pickle_that_runs_code_does_not(msvd: Any, tmp_path: Any) -> None:
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return type(witness).touch, (witness,)

    for protocol in range(6):
        content = pickle.dumps({"ABccE-0p_1_2": [Attack()]}, protocol)
        msvd.write("raw-captions.pkl", content)
        with pytest.raises(AnnotationError, match=r"the pickle wants .*; expected nothing but"):
            msvd.open("msvd", "train")
        assert not witness.exists()
        pickle.loads(content)  # it would have
        witness.unlink()


@pytest.mark.parametrize("sentence", [["x" * 1000] * 1000, []])
def test_one_caption_many_times(
    msvd: Any, monkeypatch: pytest.MonkeyPatch, sentence: list[str]
) -> None:
    monkeypatch.setattr("xclip_deploy.runtime.datasets.msvd.MAX_CHARACTERS", 1 << 22)
    # A pickle of some kilobytes that describes gigabytes of captions.
    sentences = [sentence] * 20_000
    ids = [f"v{n}" for n in range(200)]
    msvd.write("train_list.txt", "\n".join(ids))
    msvd.write("raw-captions.pkl", pickle.dumps(dict.fromkeys(ids, sentences), 2))
    with pytest.raises(AnnotationError, match="more than 4194304 characters; refused as hostile"):
        msvd.open("msvd", "train")


def test_no_captions_at_all(msvd: Any) -> None:
    expected = r"expected raw-captions\.pkl or raw-captions\.json or captions\.json$"
    with pytest.raises(AnnotationError, match=expected):
        msvd.open("msvd", "train")


def test_a_video_listed_twice(msvd: Any) -> None:
    msvd.write("train_list.txt", "a\nb\na\n")
    with pytest.raises(AnnotationError, match=r"train_list\.txt: line 3: video a was listed"):
        msvd.open("msvd", "train")


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ([], "holds list; expected a dict"),
        ({3: []}, "a key: int; expected text"),
        ({"ABccE-0p_1_2": "dogs"}, "ABccE-0p_1_2: str; expected a list"),
        ({"ABccE-0p_1_2": [3]}, r"ABccE-0p_1_2\[0\]: int; expected a list"),
        ({"ABccE-0p_1_2": [["a", None]]}, r"ABccE-0p_1_2\[0\]: NoneType; expected text"),
        ({"ABccE-0p_1_2": [["a"], [" "], []]}, r"empty caption at ABccE-0p_1_2\[1\] and 1 more"),
        ({"a": [], b"a": []}, "video a occurs twice"),
        ({"ABccE-0p_1_2": [["a"]]}, r"no captions for -4wsuPCjDBc_5_15 \(1 of 2\)"),
        ({"ABccE-0p_1_2": [["a"]], "-4wsuPCjDBc_5_15": []}, "no captions for -4wsuPCjDBc"),
    ],
)
def test_captions_of_another_shape(msvd: Any, captions: Any, expected: str) -> None:
    # Protocol 3: bytes have an opcode.
    msvd.write("raw-captions.pkl", pickle.dumps(captions, 3))
    with pytest.raises(AnnotationError, match=expected):
        msvd.open("msvd", "train")
