"""How vectors are stored."""

import json

import faiss
import numpy as np
import pytest

from sugar_hf.retrieval.store.codecs import CODECS, BinaryCodec, Codec, Int8Codec


def unit(count, dim=12, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(params=CODECS)
def codec(request):
    return Codec.fit(request.param, [unit(100), unit(50, seed=1)])


def test_shapes_types_and_bytes(codec):
    codes = codec.encode(unit(7))
    assert codes.shape == (7, codec.code_width)
    assert codes.dtype == codec.code_dtype
    assert codes.nbytes == 7 * codec.bytes_per_vector
    assert codec.bytes_per_vector == {"float32": 48, "float16": 24, "int8": 12, "binary": 14}[codec.name]
    decoded = codec.decode(codes)
    assert (decoded.shape, decoded.dtype) == ((7, 12), np.float32)
    assert codec.encode(unit(0)).shape == (0, codec.code_width)


def test_what_is_decoded_is_near_and_is_encoded_to_the_same(codec):
    vectors = unit(100)
    codes = codec.encode(vectors)
    decoded = codec.decode(codes)
    largest = {"float32": 0.0, "float16": 5e-4}.get(codec.name)
    if isinstance(codec, Int8Codec):
        largest = float(codec.span.max()) / 255 / 2 * 1.001  # half a step
    assert np.abs(decoded - vectors).max() <= largest
    again = codec.encode(decoded)
    if isinstance(codec, BinaryCodec):  # a number next to zero may change its sign
        codes, again = codes[:, codec.sign_width :], again[:, codec.sign_width :]
    assert np.array_equal(again, codes)


def test_it_survives_json(codec):
    again = Codec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert type(again) is type(codec)
    assert np.array_equal(again.encode(unit(20, seed=5)), codec.encode(unit(20, seed=5)))
    assert again.to_dict() == codec.to_dict()


def test_int8_by_hand():
    codec = Codec.fit("int8", [np.array([[-1.0, 0.0]]), np.array([[1.0, 0.5]])])
    assert codec.to_dict() == {"name": "int8", "dim": 2, "low": [-1.0, 0.0], "span": [2.0, 0.5]}
    assert codec.encode(np.array([[-1.0, 0.5], [0.0, 0.25], [7.0, -7.0]])).tolist() == [[0, 255], [127, 127], [255, 0]]
    np.testing.assert_allclose(codec.decode(np.array([[127, 0]], np.uint8)), [[0.0, 0.5 / 255 * 0.5]], atol=1e-6)


def test_int8_is_the_scalar_quantizer_of_faiss_to_the_bit():
    codec = Codec.fit("int8", [unit(100)])
    index = faiss.IndexScalarQuantizer(12, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(np.concatenate([codec.low, codec.span]), index.sq.trained)
    index.is_trained = True
    vectors = unit(500, seed=3)  # some of them outside the ranges
    codes = codec.encode(vectors)
    assert np.array_equal(codes, index.sa_encode(vectors))
    assert np.array_equal(codec.decode(codes), index.sa_decode(codes))


def test_float16_is_read_by_faiss_as_it_is_written():
    codec = Codec.fit("float16", [unit(1)])
    codes = codec.encode(unit(100))
    index = faiss.IndexScalarQuantizer(12, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    assert np.array_equal(index.sa_decode(codes.view(np.uint8)), codec.decode(codes))


def test_signs():
    codec = Codec.fit("binary", [unit(100, 10)])
    vectors = np.array([[1, -1, 0, 2, -3, 4, 5, 6, -7, 8]], np.float32) / 20
    assert codec.signs(vectors).tolist() == [[0b10010111, 0b01000000]]
    assert np.array_equal(codec.encode(vectors)[:, :2], codec.signs(vectors))


def test_what_lies_outside_is_counted():
    codec = Codec.fit("int8", [unit(1000)])
    assert codec.clipped(unit(1000)) == 0
    beyond = unit(3)
    beyond[1, 4] = codec.low[4] + 2 * codec.span[4]
    assert codec.clipped(beyond) == 1
    assert Codec.fit("float16", [unit(3)]).clipped(beyond) == 0


def test_a_dimension_that_never_changes():
    vectors = np.array([[0.5, 1.0], [0.5, -1.0]], np.float32)
    codec = Codec.fit("int8", [vectors])
    np.testing.assert_allclose(codec.decode(codec.encode(vectors)), vectors, atol=5e-3)


def test_wrong_vectors(subtests):
    for name in CODECS:
        with subtests.test(name=name):
            codec = Codec.fit(name, [unit(10)])
            for vectors, message in (
                (unit(3, 11), r"\(n, 12\); got \(3, 11\)"),
                (unit(3)[0], r"got \(12,\)"),
                (np.where(np.arange(36).reshape(3, 12) == 13, np.nan, unit(3)), "Vector 1 has NaN"),
                (np.full((1, 12), np.inf), "Vector 0 has NaN or infinite"),
            ):
                with pytest.raises(ValueError, match=message):
                    codec.encode(vectors)
                with pytest.raises(ValueError, match=message):
                    Codec.fit("int8", [unit(2), vectors])


def test_wrong_fits_and_descriptions():
    with pytest.raises(ValueError, match=r"vectors='pq': give one of 'float32'"):
        Codec.fit("pq", [unit(3)])
    with pytest.raises(ValueError, match="there are none"):
        Codec.fit("int8", [])
    with pytest.raises(ValueError, match="there are none"):
        Codec.fit("float32", [unit(0)])
    known = Codec.fit("int8", [unit(10)]).to_dict()
    for wrong in (
        {},
        {"name": "int8", "dim": 12},
        {**known, "dim": 13},
        {**known, "span": [0.0] * 12},
        {**known, "low": [float("nan")] * 12},
        {**known, "name": "zip"},
    ):
        with pytest.raises(ValueError, match="codec"):
            Codec.from_dict(wrong)
