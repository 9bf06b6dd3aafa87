"""The default of LoRA lies in the language model's layers, also where a vision tower inside the decoder is as deep."""

import pytest
from peft import get_peft_model
from shrinker import tiny_model
from versions import since_5_23

from sugar_hf.model import SugarForConditionalGeneration
from sugar_hf.training import sugar_lora_config

# inkling2: from transformers 5.24 on, its projections are modules of a linear layer and a norm
INKLING2 = since_5_23("inkling2", reason="there is no such type")


@pytest.mark.parametrize("model_type", ["idefics", "mllama", "qwen3_5", INKLING2])
def test_adapters_lie_beside_the_token_embeddings(model_type):
    sugar = SugarForConditionalGeneration.from_backbone(tiny_model(model_type), retrieval_dim=8)
    adapted = get_peft_model(sugar, sugar_lora_config(sugar, r=2)).get_base_model()
    names = [name for name, _ in adapted.named_modules() if name.endswith("lora_A.default")]
    embeddings = adapted.get_input_embeddings()
    language = next(name.rpartition(".")[0] for name, module in adapted.named_modules() if module is embeddings)
    assert {int(name.removeprefix(f"{language}.layers.").partition(".")[0]) for name in names} == {0, 1}
