"""SugarTrainer: what moves, what the two losses are, what is logged, saved and refused."""

import math
import warnings

import pytest
import torch
from builders import build_tiny_llava_onevision
from training_tools import (
    document,
    first_step,
    logged,
    make_arguments,
    make_dataset,
    make_rows,
    make_sugar,
    make_trainer,
)
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.structure import SliceFeatures, StructureLossConfig, label_matrix, structure_loss
from sugar_hf.training import SugarCollator, SugarTrainer, draw_slice_ends

LABEL_STATISTICS = ("label_mean", "label_share_below_0.01", "label_smallest_eigenvalue", "label_spearman")


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before, model):
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def is_head(name):
    return name.startswith("retrieval_head.")


def test_trained_weights_move_and_frozen_ones_do_not(tmp_path):
    trainer = make_trainer(tmp_path)
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
    before = snapshot(trainer.model)
    trainer.train()
    changed = moved(before, trainer.model)
    assert not [name for name in changed if "vision_tower" in name]
    for part in ("retrieval_head.", "language_model.", "multi_modal_projector."):
        assert [name for name in changed if part in name]


def test_loss_is_the_sum_of_both_losses(tmp_path):
    trainer = make_trainer(tmp_path, alpha=5.0, positions_per_sample=2)
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    model = trainer.model.eval()
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
        features = SliceFeatures(**batch["structure_features"])
        ends = draw_slice_ends(features.lengths.tolist(), batch["sample_keys"].tolist(), 2, seed=3)
        embeddings = outputs.retrieval_embeds[ends[:, 0], ends[:, 1]]
        expected = structure_loss(embeddings, label_matrix(features, ends))
    torch.testing.assert_close(loss, outputs.loss + 5.0 * expected)
    assert expected > 0


def test_alpha_zero_is_the_plain_trainer(tmp_path):
    ours = make_trainer(tmp_path / "ours", alpha=0.0, max_steps=3)
    ours.train()
    with_logits = make_trainer(tmp_path / "logits", alpha=0.0, max_steps=3)
    with_logits.keeps_logits = True
    with_logits.train()
    model, processor = make_sugar()
    collate = SugarCollator(processor)

    def plain_collate(rows):
        batch = collate(rows)
        return {
            name: batch[name]
            for name in batch
            if name not in ("sample_ids", "sample_keys", "structure_features", "slice_map")
        }

    settings = {"max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1, "per_device_train_batch_size": 4, "seed": 3}
    arguments = TrainingArguments(
        str(tmp_path / "plain"), remove_unused_columns=False, report_to="none", use_cpu=True, **settings
    )
    plain = Trainer(model, arguments, train_dataset=make_dataset(processor), data_collator=plain_collate)
    plain.train()
    assert logged(with_logits, "loss") == logged(plain, "loss")
    assert logged(ours, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-6)  # summed in another order
    assert "loss_structure" not in ours.state.log_history[0]


def gradients(folder, batch_size, steps, alpha):
    """Gradients and trainer of one optimizer step over the same four samples."""
    return first_step(
        folder,
        rows=make_rows()[:4],
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=steps,
        alpha=alpha,
        train_sampling_strategy="sequential",
    )


def test_accumulation_leaves_the_gradient_of_the_lm_loss_as_it_is(tmp_path):
    whole, _ = gradients(tmp_path / "a", 4, 1, alpha=0.0)
    parts, _ = gradients(tmp_path / "b", 1, 4, alpha=0.0)
    assert whole
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("batch_size", "steps"), [(4, 1), (2, 2)])
def test_structure_loss_is_the_mean_over_accumulation_steps(tmp_path, batch_size, steps):
    whole, trainer = gradients(tmp_path / "a", batch_size, steps, alpha=0.3)
    lm_only, _ = gradients(tmp_path / "b", batch_size, steps, alpha=0.0)
    model, processor = make_sugar()
    collate = SugarCollator(processor)
    rows = list(make_dataset(processor, make_rows()[:4]))
    losses = []
    for start in range(0, 4, batch_size):
        batch = collate(rows[start : start + batch_size])
        features = SliceFeatures(**batch.pop("structure_features"))
        del batch["sample_ids"]
        ends = draw_slice_ends(features.lengths.tolist(), batch.pop("sample_keys").tolist(), 4, seed=3, step=0)
        embeddings = model(**batch).retrieval_embeds[ends[:, 0], ends[:, 1]]
        losses.append(structure_loss(embeddings, label_matrix(features, ends)))
    mean = torch.stack(losses).mean()
    (0.3 * mean).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                whole[name] - lm_only.get(name, 0), parameter.grad, atol=2e-5, rtol=1e-3, msg=name
            )
    assert logged(trainer, "loss_structure")[0] == pytest.approx(mean.item(), rel=1e-5)
    total = logged(trainer, "loss_lm")[0] + 0.3 * logged(trainer, "loss_structure")[0]
    assert logged(trainer, "loss")[0] == pytest.approx(total, rel=1e-5)


def test_structure_loss_goes_down_when_overfitting(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=30, per_device_train_batch_size=8, learning_rate=3e-3, lr_scheduler_type="constant"
    )
    trainer.train()
    losses = logged(trainer, "loss_structure")
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert logged(trainer, "loss_lm")[-1] < logged(trainer, "loss_lm")[0]
    spearman = logged(trainer, "label_spearman")
    assert spearman[-1] > spearman[0]


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "infonce", "alpha": 0.3},
        {"objective": "mse"},
        {
            "objective": "mse",
            "label_kernel": "gak",
            "delta": 0.7,
            "same_sample": "one",
            "reduction": "paper",
            "alpha": 0.3,
        },
        {"teachers": "clip", "label_kernel": "mean"},
        {"label_kernel": "aligned", "centring": True},
    ],
)
def test_every_kind_of_structure_loss_trains(tmp_path, options):
    trainer = make_trainer(tmp_path, max_steps=1, **options)
    before = snapshot(trainer.model)
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    assert any(is_head(name) for name in moved(before, trainer.model))


def test_centring_takes_the_block_means_of_the_training_set(tmp_path):
    trainer = make_trainer(tmp_path, centring=True)
    assert set(trainer.structure_config.block_means) == {"image-image", "text-text", "image-text"}
    assert trainer.args.block_means == trainer.structure_config.block_means


def test_both_losses_and_label_statistics_are_logged_and_averaged(tmp_path):
    trainer = make_trainer(
        tmp_path,
        max_steps=4,
        logging_steps=2,
        label_statistics_steps=2,
        eval_strategy="steps",
        eval_steps=4,
        eval_dataset=make_dataset(make_sugar()[1]),
    )
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in (first, second):
        assert {"loss_lm", "loss_structure", *LABEL_STATISTICS} <= set(entry)
        assert entry["loss"] == pytest.approx(
            entry["loss_lm"] + trainer.args.alpha * entry["loss_structure"], rel=1e-5
        )
    [evaluated] = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert {"eval_loss_lm", "eval_loss_structure", *(f"eval_{name}" for name in LABEL_STATISTICS)} <= set(evaluated)
    assert trainer.evaluate()["eval_loss_structure"] == pytest.approx(evaluated["eval_loss_structure"])


def test_label_statistics_can_be_turned_off(tmp_path):
    trainer = make_trainer(tmp_path, label_statistics_steps=0, max_steps=1)
    trainer.train()
    assert logged(trainer, "loss_structure")
    assert not logged(trainer, "label_mean")


def test_compute_metrics_gets_logits_and_embeddings(tmp_path):
    seen = {}

    def compute_metrics(prediction):
        logits, embeddings, mask = prediction.predictions
        seen.update(logits=logits.shape, embeddings=embeddings.shape, mask=mask.shape)
        return {"slices": int((mask > 0).sum())}

    trainer = make_trainer(tmp_path, compute_metrics=compute_metrics, per_device_eval_batch_size=8)
    metrics = trainer.evaluate(trainer.train_dataset)
    assert seen["embeddings"][0::2] == (8, 16)
    assert metrics["eval_slices"] == 27
    assert "eval_loss_lm" in metrics


def test_head_has_its_own_learning_rate_and_keeps_weight_decay(tmp_path):
    trainer = make_trainer(tmp_path, head_learning_rate=5e-3, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == len(names)
    assert {rate for name, (rate, _) in rates.items() if is_head(name)} == {5e-3}
    assert {rate for name, (rate, _) in rates.items() if not is_head(name)} == {1e-3}
    assert rates["retrieval_head.pooled_to_hidden.weight"] == (5e-3, 0.1)
    assert rates["retrieval_head.pooled_to_hidden.bias"] == (5e-3, 0.0)
    trainer.train()


def test_head_warm_up_moves_the_head_alone(tmp_path):
    trainer = make_trainer(tmp_path / "a", max_steps=2, head_warmup_steps=2, weight_decay=0.1)
    before = snapshot(trainer.model)
    trainer.train()
    changed = moved(before, trainer.model)
    assert changed
    assert all(is_head(name) for name in changed)
    longer = make_trainer(tmp_path / "b", max_steps=3, head_warmup_steps=2, weight_decay=0.1)
    longer.train()
    assert any("language_model" in name for name in moved(before, longer.model))


def test_alpha_grows_over_its_warm_up(tmp_path):
    trainer = make_trainer(tmp_path, alpha=8.0, alpha_warmup_ratio=0.5, max_steps=8)
    seen = []
    for trainer.state.max_steps, trainer.state.global_step in [(8, step) for step in range(6)]:
        seen.append(trainer.current_alpha())
    assert seen == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_checkpoint_holds_model_and_processor(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "sugar"))
    model = AutoModel.from_pretrained(tmp_path / "sugar").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "sugar")
    assert isinstance(model, SugarForConditionalGeneration)
    inputs = processor([["A cat.", "A dog."]])
    with torch.no_grad():
        ours, theirs = trainer.model.eval()(**inputs), model(**inputs)
    assert torch.equal(ours.retrieval_embeds, theirs.retrieval_embeds)
    assert torch.equal(ours.logits, theirs.logits)


def test_a_folder_may_stand_for_model_and_processor(tmp_path):
    model, processor = make_sugar()
    model.save_pretrained(tmp_path / "sugar")
    processor.save_pretrained(tmp_path / "sugar")
    trainer = SugarTrainer(
        str(tmp_path / "sugar"),
        make_arguments(tmp_path, image_pooling="last", text_pooling="mean"),
        train_dataset=make_dataset(processor),
    )
    assert (trainer.model.config.image_pooling, trainer.model.config.text_pooling) == ("last", "mean")
    assert trainer.processing_class.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_sentences_may_be_slices(tmp_path):
    row = document(0, "ti")
    row["messages"][0]["content"][0]["text"] = "A cat. A dog."
    _, processor = make_sugar()
    dataset = make_dataset(processor, [row, document(1, "it")])
    with pytest.raises(ValueError, match=r"'document-0'.*3 slices, but teacher vectors of 2.*split_sentences"):
        make_trainer(tmp_path, train_dataset=dataset, split_sentences=True).train()


def test_a_batch_of_images_alone_trains(tmp_path):
    rows = [{**make_rows()[2], "id": str(i)} for i in range(2)]
    for row in rows:
        row["messages"] = [{"role": "document", "content": row["messages"][0]["content"][:1]}]
    trainer = make_trainer(tmp_path, rows=rows, max_steps=1)
    trainer.train()
    assert logged(trainer, "loss_lm") == [0.0]
    assert math.isfinite(logged(trainer, "loss")[0])


def test_unused_columns_may_be_removed(tmp_path):
    _, processor = make_sugar()
    dataset = make_dataset(processor).add_column("kind", ["x"] * 8)
    trainer = make_trainer(tmp_path, train_dataset=dataset, remove_unused_columns=True, max_steps=1)
    trainer.train()
    assert logged(trainer, "loss_structure")


def test_missing_teacher_vectors_are_refused_at_once(tmp_path):
    _, processor = make_sugar()
    with pytest.raises(ValueError, match=r"train_dataset lacks the columns teacher_clip.*TripleTeacher.cache"):
        make_trainer(tmp_path, train_dataset=make_dataset(processor, cached=False))
    make_trainer(tmp_path, train_dataset=make_dataset(processor, cached=False), alpha=0.0)
    with pytest.raises(ValueError, match="test lacks the columns"):
        make_trainer(tmp_path, eval_dataset={"test": make_dataset(processor, cached=False)})


@pytest.mark.parametrize("options", [{}, {"mini_batch_size": 1}])
def test_missing_teacher_vectors_of_a_batch_are_refused(tmp_path, options):
    _, processor = make_sugar()
    trainer = make_trainer(tmp_path, train_dataset=list(make_dataset(processor, cached=False)), **options)
    with pytest.raises(ValueError, match="no teacher vectors"):
        trainer.train()


def test_stale_teacher_vectors_are_refused(tmp_path):
    _, processor = make_sugar()
    dataset = make_dataset(processor)
    mixed = dataset.remove_columns("teacher_fingerprint").add_column(
        "teacher_fingerprint", ["by-hand"] * 7 + ["other"]
    )
    with pytest.raises(ValueError, match="2 different sets of teachers"):
        make_trainer(tmp_path, train_dataset=mixed)
    rows = dataset.to_list()
    rows[2]["teacher_clip"].append(rows[2]["teacher_clip"][0])
    for name in ("teacher_dino", "teacher_text", "teacher_is_image"):
        rows[2][name].append(rows[2][name][0])
    trainer = make_trainer(tmp_path, train_dataset=rows)
    with pytest.raises(ValueError, match=r"'document-2'.*2 slices, but teacher vectors of 3"):
        trainer.train()


def test_arguments_without_the_structure_loss_are_refused(tmp_path):
    model, processor = make_sugar()
    with pytest.raises(TypeError, match="knows nothing of the structure loss"):
        SugarTrainer(model, TrainingArguments(str(tmp_path)), processing_class=processor)
    with pytest.raises(TypeError, match="SugarProcessor"):
        SugarTrainer(model, make_arguments(tmp_path), processing_class=processor.backbone_processor)
    with pytest.raises(TypeError, match="Give the teacher to the collator"):
        SugarTrainer(model, make_arguments(tmp_path), SugarCollator(processor), teacher=object())


def test_inexact_embeddings_of_beginnings_are_said(tmp_path):
    backbone, backbone_processor = build_tiny_llava_onevision()
    processor = SugarProcessor(backbone_processor)
    model = SugarForConditionalGeneration.from_backbone(backbone, retrieval_dim=16)
    options = {"train_dataset": make_dataset(processor), "processing_class": processor}
    with pytest.warns(UserWarning, match="embedding of a slice end inside a longer sample is not that of"):
        SugarTrainer(model, make_arguments(tmp_path, max_steps=1), **options).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*inside a longer sample")
        SugarTrainer(model, make_arguments(tmp_path, max_steps=1, alpha=0.0), **options).train()
        make_trainer(tmp_path, max_steps=1).train()


def test_default_arguments_are_those_of_the_structure_loss(tmp_path):
    assert make_arguments(tmp_path).structure_loss_config() == StructureLossConfig()
