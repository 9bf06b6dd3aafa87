"""A data set of the Hub is read by its address, as a stream, and refused in plain words where it is not reached."""

import pytest
from datasets import Dataset, Features, IterableDatasetDict, Value
from datasets import Image as ImageFeature
from PIL import Image

from sugar_hf.data import hub_rows as hub
from sugar_hf.data import load_dataset_file, read_documents


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the Hub, which has one data set."""
    features = Features({"id": Value("string"), "image": ImageFeature(), "text": Value("string")})
    rows = [{"id": str(i), "image": Image.new("RGB", (6, 4), "red"), "text": f"cat {i}"} for i in range(3)]
    stream = Dataset.from_list(rows, features=features).to_iterable_dataset()
    calls = []

    def load(name, config, *, split, revision, streaming):
        calls.append((name, config, split, revision, streaming))
        return stream if split else IterableDatasetDict({"train": stream, "test": stream})

    monkeypatch.setattr(hub, "load_dataset", load)
    return calls


def test_rows_are_read_as_those_of_files(asked):
    address = "hf://datasets/you/photos?split=test&config=small"
    documents = list(read_documents(address, drop_columns=["id"]))
    assert asked == [("you/photos", "small", "test", None, True)]
    assert [document.id for document in documents] == [f"photos-{i}" for i in range(3)]
    assert documents[1].sample[1] == "cat 1"
    assert documents[1].load()[0].size == (6, 4)
    rows = load_dataset_file("hf://datasets/photos@v1/?split=test")
    assert asked[-1] == ("photos", None, "test", "v1", True)
    assert rows["id"][:] == ["0", "1", "2"]
    assert rows["source"][2] == "hf://datasets/photos#2"


def test_wrong_addresses_are_refused(asked, subtests):
    for address, message in [
        ("hf://datasets/you/photos", "has the splits train, test. Name one"),
        ("hf://datasets/you/photos?spilt=test", "no option spilt"),
        ("hf://datasets/you/photos/data/train.parquet", "is no address of a data set"),
        ("hf://datasets", "is no address of a data set"),
    ]:
        with subtests.test(address=address), pytest.raises(ValueError, match=message):
            list(read_documents(address))


def test_without_a_network_it_says_so():
    with pytest.raises(FileNotFoundError, match=r"cannot read hf://datasets/you/photos .*HF_HUB_OFFLINE"):
        list(read_documents("hf://datasets/you/photos?split=train"))
    with pytest.raises(FileNotFoundError, match=r"write hf://datasets/you/photos\?split="):
        read_documents("you/photos")
