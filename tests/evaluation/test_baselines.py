"""Baselines: each mode is what the transformers model itself gives, whatever the batch."""

import io
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import picture
from tiny_encoders import FAMILIES, WORDS, save_blip2, save_dual
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from sugar_hf.data import BadSampleError, Document, text_part
from sugar_hf.evaluation.baselines import Blip2Encoder, DualEncoder
from sugar_hf.evaluation.encoders import open_encoder, similarity
from sugar_hf.picturebook import checkpoint

TEXT = Document("text", "a red cat sleeps")
IMAGE = Document("image", picture(1))
BOTH = Document("both", [picture(2), "a dog", picture(3), "runs under the house"])
OTHER = Document("other", [picture(4), "a blue house"])
LONG = Document("long", "a cat runs " * 40)
BROKEN = Document("broken", ["a dog runs", Path("nowhere.png")])


@pytest.fixture(scope="module")
def clip():
    return DualEncoder.from_pretrained(checkpoint("mini-clip"), device="cpu")


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    return save_blip2(tmp_path_factory.mktemp("models") / "blip2")


@pytest.fixture(scope="module")
def itc(blip_folder):
    return Blip2Encoder.from_pretrained(blip_folder, device="cpu")


@pytest.fixture(scope="module")
def multimodal(blip_folder):
    return Blip2Encoder.from_pretrained(blip_folder, "multimodal", device="cpu")


def in_mode(encoder, mode):
    return type(encoder)(encoder.model, encoder.image_processor, encoder.tokenizer, mode)


@torch.no_grad()
def clip_image(encoder, *images):
    pixels = encoder.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
    units = normalize(encoder.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    return normalize(units.mean(dim=0), dim=-1).numpy()


@torch.no_grad()
def clip_text(encoder, text):
    tokens = encoder.tokenizer([text], truncation=True, max_length=77, return_tensors="pt")
    return normalize(encoder.model.get_text_features(**tokens).pooler_output[0], dim=-1).numpy()


@torch.no_grad()
def blip_forward(encoder, image, text, matching):
    """What the model's own forward pass gives for an image and a text."""
    pixels = encoder.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    tokens = encoder.tokenizer([text], return_tensors="pt")
    return encoder.model(
        pixel_values=pixels,
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        use_image_text_matching_head=matching,
    )


def image_vector(encoder):
    return clip_image(encoder, picture(2), picture(3))


def text_vector(encoder):
    return clip_text(encoder, "a dog runs under the house")


def test_the_image_mode_takes_images_and_of_a_text_its_text(clip):
    text, image, both = in_mode(clip, "image").embed_documents([TEXT, IMAGE, BOTH])
    assert np.allclose(text[0], clip_text(clip, "a red cat sleeps"), atol=1e-5)
    assert np.allclose(image[0], clip_image(clip, picture(1)), atol=1e-5)
    assert np.allclose(both[0], image_vector(clip), atol=1e-5)


def test_the_text_mode_takes_texts_and_of_an_image_its_image(clip):
    text, image, both = in_mode(clip, "text").embed_documents([TEXT, IMAGE, BOTH])
    assert np.allclose(text[0], clip_text(clip, "a red cat sleeps"), atol=1e-5)
    assert np.allclose(image[0], clip_image(clip, picture(1)), atol=1e-5)
    assert np.allclose(both[0], text_vector(clip), atol=1e-5)


def test_the_average_mode_has_both_side_by_side(clip):
    text, image, both = clip.embed_documents([TEXT, IMAGE, BOTH])
    of_text, of_image = clip_text(clip, "a red cat sleeps"), clip_image(clip, picture(1))
    assert np.allclose(text[0], np.concatenate([of_text, of_text]) / math.sqrt(2), atol=1e-5)
    assert np.allclose(image[0], np.concatenate([of_image, of_image]) / math.sqrt(2), atol=1e-5)
    assert np.allclose(both[0], np.concatenate([image_vector(clip), text_vector(clip)]) / math.sqrt(2), atol=1e-5)


def test_the_average_is_that_of_two_similarities(clip):
    [both], [other], [text] = (clip.embed_documents([document]) for document in (BOTH, OTHER, TEXT))
    images = image_vector(clip) @ clip_image(clip, picture(4))
    texts = text_vector(clip) @ clip_text(clip, "a blue house")
    assert similarity([both], [other])[0, 0] == pytest.approx((images + texts) / 2, abs=1e-5)
    fact = clip_text(clip, "a red cat sleeps")
    expected = (image_vector(clip) @ fact + text_vector(clip) @ fact) / 2
    assert similarity([both], [text])[0, 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_vectors_of_every_family_are_those_of_its_forward_pass(family, tmp_path):
    encoder = open_encoder(save_dual(tmp_path, family), "image", device="cpu")
    assert type(encoder) is DualEncoder
    text, image = encoder.embed_documents([TEXT, IMAGE])
    padding = "max_length" if family.startswith("siglip") else False
    inputs = encoder.tokenizer(["a red cat sleeps"], padding=padding, max_length=16, return_tensors="pt")
    inputs |= encoder.image_processor(images=[picture(1)], return_tensors="pt")
    with torch.no_grad():
        outputs = encoder.model(**inputs)
    assert np.allclose(text, normalize(outputs.text_embeds, dim=-1).numpy(), atol=1e-5)
    assert np.allclose(image, normalize(outputs.image_embeds, dim=-1).numpy(), atol=1e-5)
    assert abs(float(similarity([text], [image])[0, 0])) < 0.999  # the two towers do not give one constant


@pytest.mark.parametrize("family", ["clip", "siglip", "altclip"])
def test_the_batch_does_not_matter_to_a_dual_encoder(family, tmp_path):
    encoder = open_encoder(save_dual(tmp_path, family), device="cpu")
    documents = [TEXT, IMAGE, BOTH, OTHER, LONG, Document("short", "a dog")]
    alone = np.concatenate(encoder.embed_documents(documents, batch_size=1))
    assert np.allclose(np.concatenate(encoder.embed_documents(documents, batch_size=4)), alone, atol=1e-5)
    assert np.allclose(np.concatenate(encoder.embed_documents(documents[::-1], batch_size=3)), alone[::-1], atol=1e-5)


@pytest.mark.parametrize("mode", ["itc", "multimodal"])
def test_the_batch_does_not_matter_to_blip2(blip_folder, mode):
    encoder = Blip2Encoder.from_pretrained(blip_folder, mode, device="cpu")
    documents = [TEXT, IMAGE, BOTH, OTHER, Document("short", "a dog")]
    alone = np.concatenate(encoder.embed_documents(documents, batch_size=1))
    assert np.allclose(np.concatenate(encoder.embed_documents(documents, batch_size=4)), alone, atol=1e-5)
    assert np.allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "itc", "multimodal"])
def test_a_broken_image_is_named_and_the_rest_embedded(name, request):
    encoder = request.getfixturevalue(name)
    skipped = []
    with tqdm(total=5, file=io.StringIO()) as bar:
        found = encoder.embed_documents(
            [BOTH, BROKEN, TEXT, Document("empty", ""), OTHER], skipped=skipped, progress=bar
        )
        assert bar.n == 5
    assert [rows is None for rows in found] == [False, True, False, True, False]
    assert [error.sample for error in skipped] == ["broken", "empty"]
    assert "nowhere.png" in str(skipped[0])
    for ours, alone in zip([found[0], found[4]], encoder.embed_documents([BOTH, OTHER]), strict=True):
        assert np.allclose(ours, alone, atol=1e-5)
    with pytest.raises(BadSampleError, match=r"broken.*nowhere\.png"):
        encoder.embed_documents([BOTH, BROKEN])


def test_texts_alone_need_no_images(clip):
    [found] = in_mode(clip, "text").embed_documents([BROKEN])
    assert np.allclose(found[0], clip_text(clip, "a dog runs"), atol=1e-5)


def test_a_document_that_comes_again_is_processed_once(clip, monkeypatch):
    seen = []
    pixels = clip._pixels
    monkeypatch.setattr(clip, "_pixels", lambda images: seen.extend(images) or pixels(images))
    first, _, again = clip.embed_documents([IMAGE, TEXT, IMAGE])
    assert again is first
    assert len(seen) == 1


def test_the_images_of_one_batch_only_are_decoded_at_once(clip, monkeypatch):
    sizes = []
    pixels = clip._pixels
    monkeypatch.setattr(clip, "_pixels", lambda images: sizes.append(len(images)) or pixels(images))
    clip.embed_documents([Document(str(i), [picture(i), picture(i + 9), "a cat"]) for i in range(5)], batch_size=2)
    assert sizes == [2, 2, 2, 2, 2]  # two documents a batch, two images a pass


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_long_texts_are_cut_and_their_documents_counted(family, tmp_path, caplog):
    encoder = open_encoder(save_dual(tmp_path, family), device="cpu")
    with caplog.at_level(logging.WARNING):
        [text, long] = encoder.embed_documents([TEXT, LONG])
        encoder.embed_documents([LONG])
    assert encoder.notes() == {"truncated": 2, "max_text_tokens": 16}
    assert len([record for record in caplog.records if "texts of more than 16 tokens are cut" in record.message]) == 1
    same_beginning = Document("longer", LONG.sample + "under the house")
    assert np.allclose(encoder.embed_documents([same_beginning])[0], long, atol=1e-5)
    assert not np.allclose(text, long, atol=1e-3)


def test_the_limit_is_that_of_model_and_tokenizer_or_lower(clip, itc):
    assert clip.describe()["max_text_tokens"] == 77
    assert itc.describe()["max_text_tokens"] == 12
    shorter = DualEncoder(clip.model, clip.image_processor, clip.tokenizer, max_length=8)
    shorter.embed_documents([LONG, Document("short", "a cat")])
    assert shorter.notes() == {"truncated": 1, "max_text_tokens": 8}


def test_a_limit_that_cannot_be_is_refused(clip, tmp_path):
    for length in (0, 78):
        with pytest.raises(ValueError, match=f"max_length={length}: give 1 to 77"):
            DualEncoder(clip.model, clip.image_processor, clip.tokenizer, max_length=length)
    with pytest.raises(ValueError, match="padded to 16 tokens"):
        DualEncoder.from_pretrained(save_dual(tmp_path, "siglip"), max_length=8)


def test_system_messages_are_no_part_of_the_text(clip):
    chat = [
        {"role": "system", "content": [text_part("a house under the house")]},
        {"role": "user", "content": [{"type": "image", "image": picture(2)}, text_part("a dog")]},
        {"role": "assistant", "content": [text_part("runs")]},
    ]
    [found] = clip.embed_documents([Document("chat", chat)])
    [expected] = clip.embed_documents([Document("plain", [picture(2), "a dog runs"])])
    assert np.allclose(found, expected, atol=1e-6)


def test_settings_go_through_json_and_tell_mode_and_weights(clip, tmp_path):
    settings = clip.describe()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["checkpoint"] == checkpoint("mini-clip")
    assert in_mode(clip, "text").describe() == settings | {"mode": "text"}
    one, two = (DualEncoder.from_pretrained(save_dual(tmp_path / str(i), "clip", seed=i)) for i in (0, 1))
    assert one.describe()["weights"] != two.describe()["weights"]


def test_numbers_that_are_none_are_an_error_of_the_document(tmp_path):
    encoder = open_encoder(save_dual(tmp_path, "clip"), device="cpu")
    with torch.no_grad():
        encoder.model.visual_projection.weight.fill_(float("nan"))
    skipped = []
    text, image = encoder.embed_documents([TEXT, IMAGE], skipped=skipped)
    assert text is not None
    assert image is None
    assert "'image'" in str(skipped[0])
    assert "no unit vector" in str(skipped[0])


def test_a_model_in_training_mode_stays_so_and_gives_the_same(tmp_path):
    encoder = open_encoder(save_dual(tmp_path, "altclip"), device="cpu")
    expected = encoder.embed_documents([TEXT])[0]
    encoder.model.train()
    assert np.allclose(encoder.embed_documents([TEXT])[0], expected)
    assert encoder.model.training


def test_contrast_of_an_image_and_a_text_is_that_of_the_forward_pass(itc):
    text, image = itc.embed_documents([TEXT, IMAGE])
    assert (text.shape, image.shape) == ((1, 8), (4, 8))
    outputs = blip_forward(itc, picture(1), "a red cat sleeps", matching=False)
    assert np.allclose(image, outputs.image_embeds[0].numpy(), atol=1e-5)
    assert np.allclose(text, outputs.text_embeds.numpy(), atol=1e-5)
    assert similarity([text], [image])[0, 0] == pytest.approx(outputs.logits_per_image.item(), abs=1e-5)


def test_contrast_of_a_document_of_both_has_the_vectors_of_all_its_images_and_its_text(itc):
    [both] = itc.embed_documents([BOTH])
    first, second, text = itc.embed_documents(
        [Document("1", picture(2)), Document("2", picture(3)), Document("3", "a dog runs under the house")]
    )
    assert np.allclose(both, np.concatenate([first, second, text]), atol=1e-5)


@torch.no_grad()
def test_multimodal_vectors_are_the_first_outputs_of_the_q_former(multimodal):
    text, image, other = multimodal.embed_documents([TEXT, IMAGE, OTHER])
    states = blip_forward(multimodal, picture(4), "a blue house", matching=True).text_model_output.last_hidden_state
    assert np.allclose(other, normalize(states[:, 0], dim=-1).numpy(), atol=1e-5)
    outputs = blip_forward(multimodal, picture(1), "a red cat sleeps", matching=False)
    states = outputs.text_model_output.last_hidden_state
    assert np.allclose(text, normalize(states[:, 0], dim=-1).numpy(), atol=1e-5)
    model = multimodal.model
    seen = outputs.vision_model_output.last_hidden_state
    states = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen).last_hidden_state
    assert np.allclose(image, normalize(states[:, 0], dim=-1).numpy(), atol=1e-5)


def test_of_several_images_each_is_seen_with_the_text(multimodal):
    [both] = multimodal.embed_documents([BOTH])
    text = "a dog runs under the house"
    first, second = multimodal.embed_documents([Document(str(i), [picture(i), text]) for i in (2, 3)])
    expected = (first + second) / np.linalg.norm(first + second)
    assert np.allclose(both, expected, atol=1e-5)


def test_matching_is_that_of_the_forward_pass(itc, subtests):
    for batch_size in [1, 3, 8]:
        with subtests.test(batch_size=batch_size):
            texts = [TEXT, Document("other text", "a dog runs under the green house")]
            images = [IMAGE, Document("other image", picture(5))]
            pairs = [(text, image) for text in texts for image in images]
            found = itc.match(pairs, batch_size=batch_size)
            expected = [
                blip_forward(itc, image.sample, text.sample, matching=True)
                .logits_per_image.softmax(dim=-1)[0, 1]
                .item()
                for text, image in pairs
            ]
            assert found == pytest.approx(expected, abs=1e-5)
            assert np.ptp(found) > 1e-3


def test_what_cannot_be_matched_is_named(itc):
    with pytest.raises(BadSampleError, match=r"'image'.*it has no text"):
        itc.match([(TEXT, IMAGE), (IMAGE, IMAGE)])
    with pytest.raises(BadSampleError, match=r"'both'.*it has 2 images"):
        itc.match([(TEXT, IMAGE), (TEXT, BOTH)])
    with pytest.raises(BadSampleError, match=r"'broken'.*nowhere\.png"):
        itc.match([(TEXT, BROKEN)])
    assert itc.match([]).shape == (0,)


def test_matching_counts_a_text_that_is_cut_once(blip_folder):
    encoder = Blip2Encoder.from_pretrained(blip_folder, device="cpu")
    encoder.match([(LONG, IMAGE), (LONG, OTHER), (TEXT, OTHER)])
    assert encoder.truncated == 1


def test_blip2_in_half_precision_is_near(blip_folder, itc):
    half = Blip2Encoder.from_pretrained(blip_folder, device="cpu", dtype="bfloat16")
    assert half.describe()["dtype"] == "bfloat16"
    for ours, exact in zip(half.embed_documents([TEXT, BOTH]), itc.embed_documents([TEXT, BOTH]), strict=True):
        assert ours.dtype == np.float32
        assert np.allclose(ours, exact, atol=0.1)
    assert half.match([(TEXT, IMAGE)]) == pytest.approx(itc.match([(TEXT, IMAGE)]), abs=0.05)


def test_the_tokenizer_of_the_tiny_blip2_knows_the_words(itc):
    tokens = itc.tokenizer("a dog runs under the house")["input_ids"]
    assert WORDS.index("[UNK]") not in tokens
