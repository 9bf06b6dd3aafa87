"""`skip_logits`: the same loss and gradients without the logits of the whole batch."""

import warnings

import pytest
import torch
from builders import build_tiny_paligemma2, picture
from versions import IS_BEFORE_5_23

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.backbone_sugar import same_logits
from sugar_hf.model.modeling_sugar import chunked_cross_entropy

SAMPLES = [["A cat.", picture(1), "A dog sits."], ["The sun rises.", picture(2)], "Two balls."]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_value_by_hand():
    hidden = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]]])
    loss = chunked_cross_entropy(hidden, torch.tensor([[7, -100, 1]]), torch.nn.Identity(), vocab_size=2)
    # only position 2 has a label (the first token is predicted by nothing): logits (1, 0), label 1
    torch.testing.assert_close(loss, torch.tensor(1.0).exp().add(1).log())


@pytest.mark.parametrize(("rows", "count"), [(1, 7), (5, None), (1000, torch.tensor(7))])
def test_loss_and_gradients_are_those_of_all_logits(sugar, monkeypatch, rows, count):
    model, processor = sugar
    inputs = processor(SAMPLES, return_labels=True)
    monkeypatch.setattr(model, "max_logits", rows * model.config.get_text_config().vocab_size)
    expected = model(**inputs, num_items_in_batch=count)
    found = model(**inputs, num_items_in_batch=count, skip_logits=True)
    assert found.logits is None
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found.retrieval_embeds, expected.retrieval_embeds)
    torch.testing.assert_close(gradients(model, found.loss), gradients(model, expected.loss), atol=1e-6, rtol=1e-4)


def test_head_sees_label_positions_only_in_chunks(fresh_llava):
    model, processor = fresh_llava
    inputs = processor(SAMPLES, return_labels=True)
    labelled = int((inputs["labels"][:, 1:] != -100).sum())
    model(**inputs, skip_logits=True)  # the first loss looks at the head
    model.max_logits = 4 * model.config.get_text_config().vocab_size
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    model(**inputs, skip_logits=True)
    assert max(rows) == 4
    assert sum(rows) == labelled < inputs["input_ids"].numel()
    rows.clear()
    inputs.pop("labels")
    model(**inputs, skip_logits=True)
    assert rows == []


def test_no_label_at_all_is_no_loss(fresh_llava):
    model, processor = fresh_llava
    inputs = processor(SAMPLES)
    loss = model(**inputs, labels=torch.full_like(inputs["input_ids"], -100), skip_logits=True).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_states_that_are_not_finite_say_nothing_of_the_head(fresh_llava):
    model, processor = fresh_llava
    inputs = processor(SAMPLES, return_labels=True)
    norm = model.get_decoder().norm.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        norm.fill_(float("nan"))
        assert model(**inputs, skip_logits=True).loss.isnan()
        norm.copy_(kept)
        torch.testing.assert_close(model(**inputs, skip_logits=True).loss, model(**inputs).loss)


def test_a_head_that_is_kept_in_float32(fresh_llava):
    model, processor = fresh_llava
    model.vlm.bfloat16()
    head = model.get_output_embeddings().float()
    head.register_forward_pre_hook(lambda module, args: (args[0].float(),), prepend=True)
    inputs = processor(SAMPLES, return_labels=True).to(torch.bfloat16)
    expected = model(**inputs)
    head._forward_pre_hooks.clear()
    found = model(**inputs, skip_logits=True)
    assert same_logits(head, found.last_hidden_state, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(gradients(model, found.loss), gradients(model, expected.loss))


@pytest.mark.skipif(IS_BEFORE_5_23, reason="there the backbone does not change its logits")
def test_backbone_that_changes_its_logits_keeps_its_own_loss():
    capped, processor = build_tiny_paligemma2()
    model = SugarForConditionalGeneration.from_backbone(capped, retrieval_dim=16).eval()
    inputs = SugarProcessor(processor)(SAMPLES, return_labels=True)
    expected = model(**inputs).loss
    with pytest.warns(UserWarning, match="PaliGemmaForConditionalGeneration changes its logits after its LM head"):
        first = model(**inputs, skip_logits=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        second = model(**inputs, skip_logits=True)
    assert first.loss == second.loss == expected
    assert first.logits is None
    assert torch.equal(first.retrieval_embeds, model(**inputs).retrieval_embeds)
    assert expected > 0
